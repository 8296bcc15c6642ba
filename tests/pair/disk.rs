//! The disk server decides who goes on; so it fails while it is asked.

use disk_server::client::DiskClient;
use lockstep::cluster::{Cluster, Part};
use lockstep::io::clock::HostClock;
use nix::sys::signal::Signal;

use crate::harness::{PATIENCE, Pair, scale, wait_until};
use crate::load::Load;
use crate::relay::Relay;

const CONNECTIONS: usize = 4;
const SOME: u64 = 150;
/// How often a thing is looked at that must not change.
const LOOKS: usize = 50;

/// The backup asks, and does nothing else: not live, no generation.
fn stays_claiming(pair: &mut Pair) {
    pair.wait_for_state(Part::Backup, "Claiming");
    for _ in 0..LOOKS {
        let status = pair.status(Part::Backup).unwrap();
        assert_eq!(status["role"], "backup", "{status}");
        assert!(status["backup"]["state"].as_str().unwrap().starts_with("Claiming"), "{status}");
        assert_eq!(status["backup"]["generation"], 1, "{status}");
    }
}

/// Starts the disk server again where it was, with the data that is there.
fn restore(cluster: &mut Cluster) {
    let address = cluster.disk_address().to_string();
    cluster.options_mut().disk_options.clear();
    cluster.start_disk_server(&address).unwrap();
}

#[test]
fn without_the_disk_server_nobody_goes_live_until_it_is_back() {
    for _ in 0..scale() {
        let Some(mut pair) = Pair::start("without_the_disk_server") else { return };
        let load = Load::start(pair.port(), CONNECTIONS);
        load.wait_for(SOME);
        pair.kill(Part::DiskServer).unwrap();
        pair.kill(Part::Primary).unwrap();
        stays_claiming(&mut pair);
        restore(&mut pair);
        load.wait_for(SOME);
        pair.assert_one_live(Part::Backup, 2);
        load.stop().assert_unbroken().check(pair.port());
    }
}

#[test]
fn with_a_disk_server_that_does_not_answer_nobody_goes_live_until_it_does() {
    for _ in 0..scale() {
        let Some(mut pair) = Pair::start("with_a_stopped_disk_server") else { return };
        let load = Load::start(pair.port(), CONNECTIONS);
        load.wait_for(SOME);
        pair.signal(Part::DiskServer, Signal::SIGSTOP).unwrap();
        pair.kill(Part::Primary).unwrap();
        stays_claiming(&mut pair);
        pair.signal(Part::DiskServer, Signal::SIGCONT).unwrap();
        load.wait_for(SOME);
        pair.assert_one_live(Part::Backup, 2);
        load.stop().assert_unbroken().check(pair.port());
    }
}

/// A copy that asks for ten seconds and gets no answer has little to say of it.
#[test]
fn a_claim_without_an_answer_is_said_once() {
    let Some(mut pair) = Pair::start("a_claim_without_an_answer") else { return };
    pair.kill(Part::DiskServer).unwrap();
    pair.kill(Part::Backup).unwrap();
    pair.wait_for_state(Part::Primary, "Claiming");
    let since_ns = HostClock.now_ns();
    wait_until("thirty claims and more", || HostClock.now_ns() - since_ns > 4_000_000_000);
    let log = pair.log_text(Part::Primary);
    let warnings = log.lines().filter(|line| line.contains("WARN")).count();
    assert!(log.contains("no answer to a test-and-set"), "{log}");
    // That, the backup that was given up, and the connection that was lost.
    assert!(warnings <= 6, "{warnings} warnings:\n{log}");
    restore(&mut pair);
    pair.assert_one_live(Part::Primary, 2);
}

/// The disk server alone goes away and comes back: no failover, and the guest's writes wait for it.
#[test]
fn a_restart_of_the_disk_server_is_no_failover() {
    for _ in 0..scale() {
        let Some(mut pair) = Pair::start("a_restart_of_the_disk_server") else { return };
        let load = Load::start(pair.port(), CONNECTIONS);
        load.wait_for(SOME);
        pair.kill(Part::DiskServer).unwrap();
        restore(&mut pair);
        load.wait_for(SOME);
        pair.wait_for_state(Part::Primary, "Replicating");
        pair.wait_for_state(Part::Backup, "Following");
        assert_eq!(pair.holding().holding.generation, 1);
        let ledger = load.stop();
        let value = ledger.assert_unbroken().check(pair.port());
        pair.reboot_from_disk();
        assert_eq!(ledger.check(pair.port()), value);
    }
}

/// A write that was acked and let go, and is held up on its way when the primary dies: the new copy does it
/// itself; and when the old one arrives at last, it is refused.
#[test]
fn a_write_held_up_on_its_way_is_done_by_the_new_copy_and_refused_from_the_old() {
    for _ in 0..scale() {
        let Some(mut pair) = Pair::services("a_write_held_up", |_| {}) else { return };
        pair.start_backup().unwrap();
        let (relay, network) = (Relay::start(pair.disk_address()), pair.network());
        let socket = pair.control(Part::Primary).display().to_string();
        let words = ["primary", "--backup", pair.backup_address(), "--disk-server", relay.address()];
        let more = ["--net", &network, "--disk-size", "16", "--control", &socket];
        let primary = pair.spawn("primary", &[&words[..], &more].concat());
        pair.wait_for_guest().unwrap();
        let load = Load::start(pair.port(), CONNECTIONS);
        load.wait_for(SOME);
        relay.hold();
        wait_until("a write to be held", || relay.held() > 512);
        let number = |part, path: &str| pair.status(part).ok()?.pointer(path)?.as_u64();
        wait_until("the backup to keep what is in flight, and only that", || {
            let in_flight = number(Part::Primary, "/live/disk_in_flight");
            in_flight > Some(0) && number(Part::Backup, "/backup/kept") == in_flight
        });
        drop(primary);
        load.wait_for(SOME);
        pair.assert_one_live(Part::Backup, 2);
        let ledger = load.stop();
        let value = ledger.assert_unbroken().check(pair.port());
        let (image, before) = (pair.disk_image(), fenced(&pair));
        relay.release();
        wait_until("the old write to be refused", || fenced(&pair) > before);
        assert!(pair.disk_image() == image, "the old write was done");
        pair.reboot_from_disk();
        assert_eq!(ledger.check(pair.port()), value);
    }
}

/// Requests that the disk server refused as fenced.
fn fenced(pair: &Pair) -> u64 {
    let mut client = DiskClient::connect(pair.disk_address(), PATIENCE).unwrap();
    client.status().unwrap().vms.iter().map(|vm| vm.fenced).sum()
}

/// Every point of a claim at which the disk server can die. The first claim is the primary's at its start.
const POINTS: [&str; 5] = [
    "before-record:2",
    "mid-record:2",
    "before-publish:2",
    "after-publish:2",
    "after-record-before-answer:2",
];

/// The winner is the same after one more restart, and still writes.
fn the_same_after_a_restart(pair: &mut Pair, winner: Part, load: &Load) {
    pair.assert_one_live(winner, 2);
    let before = pair.holding().holding;
    pair.kill(Part::DiskServer).unwrap();
    restore(pair);
    load.wait_for(SOME);
    assert_eq!(pair.holding().holding, before);
    pair.assert_one_live(winner, 2);
}

#[test]
fn a_disk_server_that_dies_at_any_point_of_a_claim_has_one_winner() {
    for point in POINTS.repeat(scale()) {
        let crash = |options: &mut lockstep::cluster::ClusterOptions| {
            options.disk_options = vec!["--crash-at".into(), point.into()];
        };
        let Some(mut pair) = Pair::start_with("a_disk_server_that_dies", crash) else { return };
        let load = Load::start(pair.port(), CONNECTIONS);
        load.wait_for(SOME);
        pair.kill(Part::Primary).unwrap();
        died_by_itself(&mut pair);
        stays_claiming(&mut pair);
        restore(&mut pair);
        load.wait_for(SOME);
        the_same_after_a_restart(&mut pair, Part::Backup, &load);
        load.stop().assert_unbroken().check(pair.port());
    }
}

/// The same with both halves claiming at once.
#[test]
fn a_disk_server_that_dies_while_both_claim_has_one_winner() {
    for point in POINTS.repeat(scale()) {
        let crash = |options: &mut lockstep::cluster::ClusterOptions| {
            options.disk_options = vec!["--crash-at".into(), point.into()];
        };
        let Some(mut pair) = Pair::services("a_disk_server_that_dies_twice", crash) else { return };
        let mut relay = None;
        pair.start_halves(|backup| relay.insert(Relay::start(backup)).address().to_string());
        let load = Load::start(pair.port(), CONNECTIONS);
        load.wait_for(SOME);
        relay.expect("a relay").cut();
        died_by_itself(&mut pair);
        for part in [Part::Primary, Part::Backup] {
            wait_until("both halves to claim", || {
                pair.state(part).is_some_and(|state| state.starts_with("Claiming"))
            });
        }
        let acked = load.acked();
        stays_claiming(&mut pair);
        assert_eq!(load.acked(), acked, "an output left a copy that holds nothing");
        restore(&mut pair);
        let winner = pair.wait_for_the_loser();
        load.wait_for(SOME);
        the_same_after_a_restart(&mut pair, winner, &load);
        load.stop().assert_unbroken().check(pair.port());
    }
}

fn died_by_itself(pair: &mut Pair) {
    wait_until("the disk server to die", || pair.has_ended(Part::DiskServer));
    let status = pair.wait_for_end(Part::DiskServer).unwrap();
    assert_eq!(status.code(), None, "it was to abort: {status}");
}
