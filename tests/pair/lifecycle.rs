//! Starting twice, and ending together.

use lockstep::cluster::Part;

use crate::client::{Client, Reply};
use crate::harness::{OTHER_LIVE, Pair, wait_until};
use crate::load::{COUNTER, Load};

const SOME: u64 = 100;

/// Options of one more live copy of the same machine.
fn another(pair: &Pair, command: &str, more: &[&str]) -> Vec<String> {
    let network = pair.network();
    let mut words =
        vec![command, "--disk-server", pair.disk_address(), "--net", &network, "--disk-size", "16"];
    words.extend(more);
    words.into_iter().map(str::to_string).collect()
}

fn spawn(pair: &Pair, name: &str, words: &[String]) -> crate::harness::Process {
    pair.spawn(name, &words.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn a_second_start_of_a_live_machine_is_refused() {
    let Some(mut pair) = Pair::start("a_second_start") else { return };
    let load = Load::start(pair.port(), 2);
    load.wait_for(SOME);
    let nobody = "127.0.0.1:9";
    for (name, words) in [
        ("second-run", another(&pair, "run", &[])),
        ("second-primary", another(&pair, "primary", &["--backup", nobody])),
    ] {
        let mut second = spawn(&pair, name, &words);
        assert_eq!(second.exit_code(), OTHER_LIVE, "{}", second.output());
        let said = second.output();
        assert!(said.contains("vm0 is live elsewhere: generation 1 is held by"), "{said}");
        // The way is not to fence it.
        assert!(said.contains("left alone") && !said.contains("--take-over"), "{said}");
    }
    load.wait_for(SOME);
    load.stop().assert_unbroken().check(pair.port());
    pair.wait_for_state(Part::Primary, "Replicating");
    assert_eq!(pair.holding().holding.generation, 1);
}

/// The first pair is fenced: its primary halts, and its backup, which then claims, too.
#[test]
fn take_over_fences_the_first_pair() {
    let Some(mut pair) = Pair::start("take_over") else { return };
    let load = Load::start(pair.port(), 2);
    load.wait_for(SOME);
    let value = load.stop().assert_unbroken().check(pair.port());
    // An idle guest: nothing that it does would tell it.
    let mut second = spawn(&pair, "second", &another(&pair, "run", &["--take-over"]));
    assert_eq!(pair.exit_code(Part::Primary), OTHER_LIVE);
    assert_eq!(pair.exit_code(Part::Backup), OTHER_LIVE);
    let state = pair.holding();
    assert_eq!((state.holding.generation, state.holder_connected), (2, true));
    // The connection of a client of the first is of no use to the second, which booted afresh.
    let mut found = None;
    wait_until("the second to answer", || {
        found =
            crate::client::Client::connect(pair.port()).and_then(|mut client| client.number(COUNTER)).ok();
        found.is_some()
    });
    assert_eq!(found, Some(value));
    assert!(second.runs());
}

#[test]
fn a_machine_that_is_taken_over_without_a_backup_halts() {
    let unreplicated = |options: &mut lockstep::cluster::ClusterOptions| options.replicated = false;
    let Some(mut pair) = Pair::services("a_machine_that_is_taken_over", unreplicated) else { return };
    pair.start_primary().unwrap();
    pair.wait_for_guest().unwrap();
    pair.client().set("key", "value").unwrap();
    let mut second = spawn(&pair, "second", &another(&pair, "run", &["--take-over"]));
    assert_eq!(pair.exit_code(Part::Primary), OTHER_LIVE);
    assert!(second.runs());
    assert_eq!(pair.holding().holding.generation, 2);
}

/// Both halves end, and the disk server never hears a claim.
fn ended_together(pair: &mut Pair) {
    for part in [Part::Primary, Part::Backup] {
        assert_eq!(pair.exit_code(part), 0, "{}:\n{}", part.name(), pair.log_tail(part));
    }
    let state = pair.holding();
    assert_eq!((state.holding.generation, state.holder_connected), (1, false));
    assert!(!pair.log_text(Part::Backup).contains("claiming"), "{}", pair.log_text(Part::Backup));
}

#[test]
fn shutdown_by_the_guest_ends_the_pair() {
    for _ in 0..5 * crate::harness::scale() {
        let Some(mut pair) = Pair::start("shutdown_by_the_guest") else { return };
        let load = Load::start(pair.port(), 4);
        load.wait_for(SOME);
        let mut client = pair.client();
        client.set("last", "word").unwrap();
        client.shutdown().unwrap();
        ended_together(&mut pair);
        let ledger = load.abandon();
        pair.reboot_from_disk();
        assert_eq!(pair.client().get("last").unwrap().as_deref(), Some("word"));
        ledger.check(pair.port());
    }
}

/// Runs `lockstep stop` to its end; its exit code and what it said.
fn stop(pair: &Pair, part: Part, options: &[&str]) -> (i32, String) {
    let socket = pair.control(part);
    let words = [&["stop"], options, &[socket.to_str().unwrap()]].concat();
    let mut command = pair.spawn("stop", &words);
    (command.exit_code(), command.output())
}

#[test]
fn shutdown_from_outside_ends_the_pair() {
    for _ in 0..5 * crate::harness::scale() {
        let Some(mut pair) = Pair::start("shutdown_from_outside") else { return };
        let load = Load::start(pair.port(), 4);
        load.wait_for(SOME);
        let (code, said) = stop(&pair, Part::Primary, &["--force"]);
        assert_eq!((code, said.trim()), (0, "lockstep: powered off from outside"));
        ended_together(&mut pair);
        load.abandon();
    }
}

/// The power button, pressed at the primary, reaches the guest on both halves.
fn switch_off(pair: &mut Pair) {
    let (code, said) = stop(pair, Part::Primary, &["--wait", "60"]);
    assert_eq!((code, said.trim()), (0, "lockstep: the guest switched itself off, status 0"));
    ended_together(pair);
    assert!(pair.log_text(Part::Primary).contains("minikv: the power button was pressed"));
}

#[test]
fn the_power_button_ends_a_busy_pair_and_nothing_acknowledged_is_lost() {
    let Some(mut pair) = Pair::start("the_power_button_busy") else { return };
    let load = Load::start(pair.port(), 4);
    load.wait_for(SOME);
    switch_off(&mut pair);
    let ledger = load.abandon();
    pair.reboot_from_disk();
    ledger.check(pair.port());
}

/// An idle guest stands in a WAIT that only an input ends.
#[test]
fn the_power_button_wakes_an_idle_guest() {
    let Some(mut pair) = Pair::start("the_power_button_idle") else { return };
    let load = Load::start(pair.port(), 2);
    load.wait_for(SOME);
    let value = load.stop().assert_unbroken().check(pair.port());
    switch_off(&mut pair);
    pair.reboot_from_disk();
    assert_eq!(pair.client().number(COUNTER).unwrap(), value);
}

fn keyspace_hits(client: &mut Client) -> u64 {
    let Reply::Bulk(Some(info)) = client.command(&[b"INFO"]).unwrap() else { panic!("no text") };
    let info = String::from_utf8(info).unwrap();
    let hits = info.lines().find_map(|line| line.strip_prefix("keyspace_hits:")).unwrap();
    hits.parse().unwrap()
}

/// A client that takes no replies does not hold it up for ever.
#[test]
fn the_power_button_works_while_a_client_does_not_listen() {
    let Some(mut pair) = Pair::start("the_power_button_deaf_client") else { return };
    let mut client = pair.client();
    client.set("large", &"x".repeat(1 << 20)).unwrap();
    for _ in 0..64 {
        client.raw(b"*2\r\n$3\r\nGET\r\n$5\r\nlarge\r\n").unwrap();
    }
    let (mut second, mut last, mut same) = (pair.client(), None, 0);
    wait_until("the network's buffers to be full", || {
        let hits = keyspace_hits(&mut second);
        same = if last == Some(hits) { same + 1 } else { 0 };
        last = Some(hits);
        same > 100
    });
    assert!(last < Some(64), "its replies are still in the guest");
    switch_off(&mut pair);
}

/// Only the live copy can be switched off; a backup says so, and does not keep it for later.
#[test]
fn a_backup_cannot_be_told_to_switch_the_machine_off() {
    let Some(mut pair) = Pair::start("a_backup_cannot_be_told") else { return };
    for option in ["--force", "--wait=0", "--wait=60"] {
        let (code, said) = stop(&pair, Part::Backup, &[option]);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("no live copy runs in this backup: ask the primary"), "{said}");
    }
    let load = Load::start(pair.port(), 2);
    load.wait_for(SOME);
    pair.kill(Part::Primary).unwrap();
    load.wait_for(SOME);
    pair.assert_one_live(Part::Backup, 2);
    load.stop().assert_unbroken().check(pair.port());
}
