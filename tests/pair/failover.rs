//! One half is killed, or stopped and woken again, while clients are at work.

use lockstep::cluster::{ClusterOptions, Part};
use nix::sys::signal::Signal;

use crate::harness::{OTHER_LIVE, Pair, scale, wait_until};
use crate::load::{COUNTER, Load};

const CONNECTIONS: usize = 6;
/// Increments before and after a fault.
const SOME: u64 = 400;
/// How often a thing is looked at that must not change.
const LOOKS: usize = 50;

#[test]
fn the_primary_is_killed_and_the_same_connections_go_on() {
    for _ in 0..scale() {
        let Some(mut pair) = Pair::start("the_primary_is_killed") else { return };
        let load = Load::start(pair.port(), CONNECTIONS);
        load.wait_for(SOME);
        pair.kill(Part::Primary).unwrap();
        load.wait_for(SOME);
        pair.assert_one_live(Part::Backup, 2);
        let ledger = load.stop();
        let value = ledger.assert_unbroken().check(pair.port());
        // Nor is anything lost on the disk.
        pair.reboot_from_disk();
        assert_eq!(ledger.check(pair.port()), value);
        assert_eq!(pair.holding().holding.generation, 3);
    }
}

#[test]
fn the_backup_is_killed_and_the_primary_goes_on_alone() {
    for _ in 0..scale() {
        let Some(mut pair) = Pair::start("the_backup_is_killed") else { return };
        let load = Load::start(pair.port(), CONNECTIONS);
        load.wait_for(SOME);
        pair.kill(Part::Backup).unwrap();
        load.wait_for(SOME);
        pair.assert_one_live(Part::Primary, 2);
        load.stop().assert_unbroken().check(pair.port());
    }
}

#[test]
fn a_primary_that_wakes_up_replaced_halts_and_changes_nothing() {
    for _ in 0..scale() {
        let Some(mut pair) = Pair::start("a_primary_that_wakes_up") else { return };
        let load = Load::start(pair.port(), CONNECTIONS);
        load.wait_for(SOME);
        pair.signal(Part::Primary, Signal::SIGSTOP).unwrap();
        load.wait_for(SOME);
        // Nothing moves now: whatever changes on the disk from here on is the old copy's.
        let ledger = load.stop();
        let value = ledger.assert_unbroken().check(pair.port());
        let image = pair.disk_image();
        let mut client = pair.client();
        pair.signal(Part::Primary, Signal::SIGCONT).unwrap();
        assert_eq!(pair.exit_code(Part::Primary), OTHER_LIVE);
        assert!(pair.disk_image() == image, "the old copy wrote to the disk");
        assert_eq!(client.incr(COUNTER).unwrap(), value + 1);
        pair.assert_one_live(Part::Backup, 2);
        pair.reboot_from_disk();
        assert_eq!(pair.client().number(COUNTER).unwrap(), value + 1);
    }
}

/// As above, but clients are at work while the old primary wakes up.
#[test]
fn a_primary_that_wakes_up_under_load_does_not_disturb() {
    for _ in 0..scale() {
        let Some(mut pair) = Pair::start("a_primary_that_wakes_up_under_load") else { return };
        let load = Load::start(pair.port(), CONNECTIONS);
        load.wait_for(SOME);
        pair.signal(Part::Primary, Signal::SIGSTOP).unwrap();
        load.wait_for(SOME);
        pair.signal(Part::Primary, Signal::SIGCONT).unwrap();
        assert_eq!(pair.exit_code(Part::Primary), OTHER_LIVE);
        load.wait_for(SOME);
        pair.assert_one_live(Part::Backup, 2);
        load.stop().assert_unbroken().check(pair.port());
    }
}

#[test]
fn a_backup_that_wakes_up_given_up_halts() {
    for _ in 0..scale() {
        let Some(mut pair) = Pair::start("a_backup_that_wakes_up") else { return };
        let load = Load::start(pair.port(), CONNECTIONS);
        load.wait_for(SOME);
        pair.signal(Part::Backup, Signal::SIGSTOP).unwrap();
        load.wait_for(SOME);
        pair.wait_for_state(Part::Primary, "Alone");
        pair.signal(Part::Backup, Signal::SIGCONT).unwrap();
        assert_eq!(pair.exit_code(Part::Backup), OTHER_LIVE);
        load.wait_for(SOME);
        pair.assert_one_live(Part::Primary, 2);
        load.stop().assert_unbroken().check(pair.port());
    }
}

/// A pause shorter than the timeout is no failover; and while the backup pauses, no output leaves.
#[test]
fn a_short_pause_of_either_half_changes_nothing() {
    let patient = |options: &mut ClusterOptions| {
        options.pair_options = vec!["--timeout-ms".into(), "60000".into()];
    };
    let Some(mut pair) = Pair::start_with("a_short_pause", patient) else { return };
    let load = Load::start(pair.port(), CONNECTIONS);
    let number = |pair: &Pair, path: &str| {
        let status = pair.status(Part::Primary).unwrap();
        status.pointer(path).and_then(serde_json::Value::as_u64).unwrap()
    };
    for _ in 0..2 * scale() {
        load.wait_for(SOME / 2);
        pair.signal(Part::Backup, Signal::SIGSTOP).unwrap();
        wait_until("outputs to wait", || number(&pair, "/live/gated") > 0);
        // Acks that left before the pause may still be on their way: the load stands still when none is.
        let mut acked = number(&pair, "/live/acked");
        wait_until("the last acks to arrive", || {
            let before = std::mem::replace(&mut acked, number(&pair, "/live/acked"));
            let answered = load.acked();
            (0..LOOKS).all(|_| number(&pair, "/live/acked") == before) && load.acked() == answered
        });
        for _ in 0..LOOKS {
            assert_eq!(number(&pair, "/live/acked"), acked);
            assert!(number(&pair, "/live/released") <= acked);
        }
        pair.signal(Part::Backup, Signal::SIGCONT).unwrap();
        load.wait_for(SOME / 2);
        pair.signal(Part::Primary, Signal::SIGSTOP).unwrap();
        for _ in 0..LOOKS {
            assert_eq!(pair.state(Part::Backup).as_deref(), Some("Following"));
        }
        pair.signal(Part::Primary, Signal::SIGCONT).unwrap();
    }
    load.wait_for(SOME / 2);
    load.stop().assert_unbroken().check(pair.port());
    assert_eq!(pair.holding().holding.generation, 1);
    pair.wait_for_state(Part::Primary, "Replicating");
    pair.wait_for_state(Part::Backup, "Following");
}

#[test]
fn a_network_that_comes_back_is_found_by_both_halves() {
    let Some(mut pair) = Pair::start("a_network_that_comes_back") else { return };
    let incr = |pair: &mut Pair| {
        pair.wait_for_guest().expect("the guest answers");
        pair.client().incr(COUNTER).expect("an answer")
    };
    assert_eq!(incr(&mut pair), 1);
    pair.kill(Part::Lan).unwrap();
    pair.start_lan().unwrap();
    assert_eq!(incr(&mut pair), 2);
    assert_eq!(pair.state(Part::Primary).as_deref(), Some("Replicating"));
    pair.kill(Part::Primary).unwrap();
    assert_eq!(incr(&mut pair), 3);
    pair.assert_one_live(Part::Backup, 2);
}
