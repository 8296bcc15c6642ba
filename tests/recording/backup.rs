//! Recordings that a backup makes of the log that it executes.

use std::path::Path;

use lockstep::cluster::Part;
use lockstep::io::control;
use lockstep::recording::Recording;
use logchannel::message::Batch;
use logchannel::{Event, MachineDigest, Message};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::crafted;
use crate::harness::{DIVERGED, Pair, VM, wait_until};
use crate::recorded::{json, load, lockstep, succeeds};

/// Starts a backup that records into `path`; the primary does not.
fn start_recording_backup(pair: &mut Pair, path: &Path) {
    let of_both = pair.options_mut().vm_options.clone();
    let words = ["--record", path.to_str().expect("UTF-8"), "--checkpoint-every", "0.1"];
    pair.options_mut().vm_options.extend(words.map(String::from));
    pair.start_backup().expect("the backup");
    pair.options_mut().vm_options = of_both;
}

/// Kills the primary, gives the backup work as the live copy, and ends it.
fn fail_over_and_end(pair: &mut Pair) {
    pair.kill(Part::Primary).expect("SIGKILL");
    pair.wait_for_state(Part::Backup, "Alone");
    pair.wait_for_guest().expect("the guest answers again");
    load(pair.port(), 200);
    pair.signal(Part::Backup, Signal::SIGTERM).expect("SIGTERM");
    assert_eq!(pair.exit_code(Part::Backup), 0, "{}", pair.log_tail(Part::Backup));
}

/// The recording is sound, begins with entry `first`, and has the failover in its middle.
fn check(path: &Path, first: u64) {
    let recording = Recording::open(path).expect("a recording");
    assert_eq!(recording.checkpoints()[0].seq + 1, first);
    let name = path.to_str().expect("a name in UTF-8");
    let stat = json(&["log", "stat", name, "--json"]);
    let end = json(&["replay", name, "--json"]);
    assert_eq!(end["position"], stat["position"]);
    assert!(succeeds(&["log", "dump", name]).contains("GoLive"));
    assert!(succeeds(&["verify", name, "-n", "1", "--stops", "20"]).contains("all equal"));
    assert_eq!(json(&["diverge", name, "--json"])["verdict"], "same");
}

#[test]
fn a_backup_records_and_goes_on_when_it_goes_live() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("backup.lkr");
    let engine = |options: &mut lockstep::cluster::ClusterOptions| {
        options.vm_options.extend(["--engine", "soft", "--digest-ms", "50"].map(String::from));
    };
    let Some(mut pair) = Pair::services("a backup's recording", engine) else { return };
    start_recording_backup(&mut pair, &path);
    pair.start_primary().expect("the primary");
    pair.wait_for_guest().expect("the guest answers");
    load(pair.port(), 200);
    fail_over_and_end(&mut pair);
    check(&path, 1);
}

/// A backup whose log has a digest that its machine does not have.
#[test]
fn a_backup_that_diverges_names_the_command_that_compares() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("diverged.lkr");
    let machine = ["--disk-size", "16", "--engine", "soft"];
    let options = |options: &mut lockstep::cluster::ClusterOptions| {
        options.vm_options = machine.map(String::from).to_vec();
    };
    let Some(mut pair) = Pair::services("a diverged backup's recording", options) else { return };
    start_recording_backup(&mut pair, &path);
    let (generation, _disk) = crafted::win(&pair, VM);
    let hello = crafted::hello(crafted::pair_config(&machine));
    let mut channel = crafted::connect(pair.backup_address(), &hello, generation).expect("a handshake");
    let mut log = crafted::entries(1, 1000, vec![Event::Clock { now_ns: 1_000_000 }]);
    log.extend(crafted::entries(2, 20_000, vec![Event::Digest(MachineDigest::default())]));
    let batch = Batch { first: 1, released: 0, base: 0, entries: log };
    assert!(channel.send(&Message::Entries(batch)), "the backup listens");
    assert_eq!(pair.exit_code(Part::Backup), DIVERGED, "{}", pair.log_text(Part::Backup));
    let report = std::fs::read_to_string(pair.directory().join("divergence-vm0-2.txt")).expect("a report");
    let name = path.to_str().expect("a name in UTF-8");
    assert!(report.contains(&format!("replay with: lockstep diverge {name}")), "{report}");
    // The same machine follows the log no better here: it is the log that is wrong.
    let output = lockstep(&["diverge", name]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.code() == Some(DIVERGED) && said.contains("entry 2: state of the machine"),
        "{said}"
    );
    assert_eq!(
        Recording::open(&path).expect("a recording").checkpoints().last().expect("one").at.count,
        20_000
    );
}

#[test]
fn a_backup_that_joins_a_running_machine_records_from_there() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("joined.lkr");
    let alone = |options: &mut lockstep::cluster::ClusterOptions| {
        options.replicated = false;
        options.vm_options.extend(["--engine", "soft", "--digest-ms", "50"].map(String::from));
    };
    let Some(mut pair) = Pair::services("a joined backup's recording", alone) else { return };
    pair.start_primary().expect("the machine");
    pair.wait_for_guest().expect("the guest answers");
    load(pair.port(), 100);
    start_recording_backup(&mut pair, &path);
    let ask = format!("replicate {}", pair.backup_address());
    control::ask(&pair.control(Part::Primary), &ask).expect("an answer");
    pair.wait_for_state(Part::Primary, "Replicating");
    load(pair.port(), 100);
    wait_until("the backup to record", || std::fs::metadata(&path).is_ok_and(|data| data.len() > 0));
    let log = pair.log_text(Part::Primary);
    let first = log.lines().find_map(|line| line.split_once(" from entry ")).map(|(_, rest)| rest);
    let first = first.and_then(|rest| rest.split(' ').next()).and_then(|number| number.parse().ok());
    fail_over_and_end(&mut pair);
    check(&path, first.expect("the primary says from where on it replicates"));
}
