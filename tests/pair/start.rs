//! A start wins its generation last: until the machine is about to run, nobody is fenced, and a backup that
//! was greeted is free again when its primary goes away.

use std::time::Duration;

use lockstep::cluster::{ClusterOptions, Part};
use logchannel::tcp::TcpError;

use crate::crafted::{self, hello, pair_config};
use crate::harness::{Pair, Process, VM, scale, wait_until};
use crate::load::Load;
use crate::relay::Relay;

const MACHINE: [&str; 2] = ["--disk-size", "16"];
const LONG: Duration = Duration::from_secs(60);

fn start(pair: &Pair, name: &str, command: &str, disk_server: &str, more: &[&str]) -> Process {
    let network = pair.network();
    let mut words = vec![command, "--disk-server", disk_server, "--net", &network];
    words.extend(MACHINE);
    words.extend(more);
    pair.spawn(name, &words)
}

/// A supervisor starts the old primary again while the only live copy has just lost its connection to the
/// disk server. No backup waits: the old one is the live copy.
#[test]
fn a_stale_start_never_fences_a_live_copy_that_is_briefly_cut_off() {
    // No time to return: the generation is what nobody wins without a backup.
    let Some(pair) = Pair::services("a_stale_start", |options| options.grace_s = 0) else { return };
    let relay = Relay::start(pair.disk_address());
    let mut live = start(&pair, "live", "run", relay.address(), &[]);
    let mut client = None;
    wait_until("the guest to answer", || {
        client = crate::client::Client::connect(pair.port())
            .and_then(|mut client| client.incr("n").map(|_| client))
            .ok();
        client.is_some()
    });
    let mut client = client.expect("it answered");
    for number in 0..12 * scale() as i64 {
        relay.hold();
        relay.cut();
        wait_until("the live copy to be cut off", || !pair.holding().holder_connected);
        let mut stale = start(
            &pair,
            &format!("stale{number}"),
            "primary",
            pair.disk_address(),
            &["--backup", "127.0.0.1:9"],
        );
        stale.wait_for_line("waiting for the backup at ");
        relay.release();
        wait_until("the live copy to be back", || pair.holding().holder_connected);
        assert_eq!(pair.holding().holding.generation, 1, "{}", stale.output());
        assert_eq!(client.incr("n").unwrap(), number + 2);
        assert!(live.runs(), "{}", live.output());
    }
}

/// Two primaries are welcomed by one backup: the one that wins the generation has it, the other one is told.
#[test]
fn a_backup_follows_the_primary_that_won() {
    let Some(mut pair) = Pair::services("a_backup_follows_the_one_that_won", |_| {}) else { return };
    pair.start_backup().unwrap();
    let address = pair.backup_address().to_string();
    let greet = || logchannel::tcp::connect(&address, &hello(pair_config(&MACHINE)), LONG).unwrap().0;
    let (mut first, second) = (greet(), greet());
    pair.wait_for_state(Part::Backup, "Reserved");
    // It did not win, and says so all the same.
    let error = second.begin(7, LONG).unwrap_err();
    let TcpError::Refused { refusal, .. } = error else { panic!("{error}") };
    assert!(refusal.to_string().contains("has generation 0 of vm0"), "{refusal}");
    pair.start_primary().unwrap();
    pair.wait_for_guest().unwrap();
    pair.wait_for_state(Part::Primary, "Replicating");
    wait_until("the first to be turned away", || first.preparing().is_err());
    assert_eq!(pair.holding().holding.generation, 1);
}

/// A primary may take minutes between its greeting and the beginning, and may die meanwhile.
#[test]
fn a_primary_that_dies_before_it_begins_leaves_the_backup_waiting() {
    let Some(mut pair) = Pair::services("a_primary_that_dies_before", |_| {}) else { return };
    pair.start_backup().unwrap();
    pair.wait_for_state(Part::Backup, "Waiting");
    let address = pair.backup_address().to_string();
    for words in 0..3 * scale() {
        let (mut primary, _) =
            logchannel::tcp::connect(&address, &hello(pair_config(&MACHINE)), LONG).unwrap();
        pair.wait_for_state(Part::Backup, "Reserved");
        for _ in 0..words {
            primary.preparing().unwrap();
        }
        // It may have won: that is nobody's but the disk server's.
        let (_, disk) = crafted::win(&pair, VM);
        drop((primary, disk));
        pair.wait_for_state(Part::Backup, "Waiting");
    }
    wait_until("the last to be gone", || !pair.holding().holder_connected);
    let generation = pair.holding().holding.generation;
    pair.start_primary().unwrap();
    pair.wait_for_guest().unwrap();
    pair.wait_for_state(Part::Primary, "Replicating");
    let load = Load::start(pair.port(), 2);
    load.wait_for(50);
    pair.kill(Part::Primary).unwrap();
    load.wait_for(50);
    pair.assert_one_live(Part::Backup, generation + 2);
    load.stop().assert_unbroken().check(pair.port());
}

/// The primary's times and clock hold for both halves, and a line says so.
#[test]
fn one_policy_holds_for_both_halves() {
    let primarys = |options: &mut ClusterOptions| {
        options.primary_options = ["--heartbeat-ms", "40", "--timeout-ms", "5000", "--lag-target-ms", "70"]
            .map(String::from)
            .to_vec();
    };
    let Some(mut pair) = Pair::services("one_policy", primarys) else { return };
    let backups = ["--heartbeat-ms", "10", "--timeout-ms", "100", "--clock", "virtual", "--digest-ms", "0"];
    pair.options_mut().vm_options.extend(backups.map(String::from));
    pair.start_backup().unwrap();
    pair.options_mut().vm_options.truncate(MACHINE.len());
    pair.start_primary().unwrap();
    pair.wait_for_guest().unwrap();
    pair.wait_for_state(Part::Primary, "Replicating");
    let expected = serde_json::json!({
        "heartbeat_ms": 40, "timeout_ms": 5000, "lag_target_ms": 70, "digest_ms": 1000,
        "virtual_clock": false,
    });
    for part in [Part::Primary, Part::Backup] {
        assert_eq!(pair.status(part).unwrap()["policy"], expected, "{}", part.name());
    }
    let said = "the primary's options hold: --heartbeat-ms 40 (not 10), --timeout-ms 5000 (not 100), \
                --lag-target-ms 70 (not 50), --digest-ms 1000 (not 0), --clock host (not virtual)";
    let log = pair.log_text(Part::Backup);
    assert!(log.contains(said), "{log}");
    pair.kill(Part::Primary).unwrap();
    pair.wait_for_state(Part::Backup, "Alone");
    assert_eq!(pair.status(Part::Backup).unwrap()["policy"], expected);
}

/// Times that no pair can have are refused by the command line.
#[test]
fn impossible_times_are_refused() {
    let Some(pair) = Pair::services("impossible_times", |_| {}) else { return };
    for (option, value, said) in [
        ("--timeout-ms", "18446744073709551615", "--timeout-ms 18446744073709551615: 2 to 3600000"),
        ("--timeout-ms", "60", "at least twice --heartbeat-ms 50"),
        ("--heartbeat-ms", "0", "--heartbeat-ms 0: 1 to 3600000"),
        ("--digest-ms", "18446744073709551615", "--digest-ms"),
    ] {
        let mut backup = start(&pair, "refused", "backup", pair.disk_address(), &[option, value]);
        assert_eq!(backup.exit_code(), 1, "{}", backup.output());
        assert!(backup.output().contains(said), "{said}: {}", backup.output());
    }
}
