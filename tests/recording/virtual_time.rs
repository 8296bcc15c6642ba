//! With `--clock virtual` no host time enters: two runs with the same inputs are one.

use lockstep::cluster::Part;
use lockstep::recording::Recording;
use logchannel::{Event, LogEntry};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::harness::{Pair, wait_until};
use crate::recorded::json;

/// The log of a boot of minikv on an empty disk, until it waits.
fn boot(directory: &TempDir, name: &str) -> Option<(Vec<LogEntry>, serde_json::Value)> {
    let path = directory.path().join(name);
    let record = path.display().to_string();
    let mut pair = Pair::services("virtual time", |options| {
        options.replicated = false;
        let words = ["--clock", "virtual", "--record", &record, "--checkpoint-every", "0.000001"];
        options.vm_options.extend(words.iter().map(|word| word.to_string()));
    })?;
    pair.start_primary().expect("the machine");
    wait_until("the guest to have booted", || pair.log_tail(Part::Primary).contains("minikv"));
    pair.signal(Part::Primary, Signal::SIGTERM).expect("SIGTERM");
    pair.wait_for_end(Part::Primary).expect("it ends by itself");
    drop(pair);
    let recording = Recording::open(&path).expect("a recording");
    assert!(recording.header().virtual_clock);
    let log = recording.log().map(|entry| entry.expect("sound")).collect();
    Some((log, json(&["replay", &record, "--json"])))
}

#[test]
fn boots_are_identical_in_virtual_time() {
    let directory = TempDir::new().expect("a directory");
    let Some((log, end)) = boot(&directory, "first.lkr") else { return };
    assert!(log.iter().any(|entry| matches!(entry.event, Event::DiskDone { .. })), "it used its disk");
    for name in ["second.lkr", "third.lkr"] {
        let (again, again_end) = boot(&directory, name).expect("there was a KVM before");
        assert!(again == log, "{} entries, then {}", log.len(), again.len());
        assert_eq!(again_end, end);
    }
}
