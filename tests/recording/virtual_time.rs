//! With `--clock virtual` no host time enters: two runs with the same inputs are one.

use lockstep::cluster::Part;
use lockstep::recording::Recording;
use logchannel::{Event, LogEntry};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::harness::{Pair, scale, wait_until};
use crate::recorded::{has_guest, json};
use crate::tiers;

/// The recording of a boot on an empty disk that is powered off when it has `booted`, and its log. There is
/// no network: frames would be inputs of their own moments.
fn boot(
    directory: &TempDir,
    name: &str,
    options: &[&str],
    booted: impl Fn(&Pair) -> bool,
) -> Option<(Vec<LogEntry>, Recording)> {
    let path = directory.path().join(name);
    let record = path.display().to_string();
    let mut pair = Pair::services("virtual time", |cluster| {
        (cluster.replicated, cluster.networked) = (false, false);
        let words = ["--clock", "virtual", "--record", &record];
        cluster.vm_options.extend(words.iter().chain(options).map(|word| word.to_string()));
    })?;
    pair.start_primary().expect("the machine");
    wait_until("the guest to have booted", || booted(&pair));
    pair.signal(Part::Primary, Signal::SIGTERM).expect("SIGTERM");
    pair.wait_for_end(Part::Primary).expect("it ends by itself");
    drop(pair);
    let recording = Recording::open(&path).expect("a recording");
    assert!(recording.header().virtual_clock);
    Some((recording.log().map(|entry| entry.expect("sound")).collect(), recording))
}

#[test]
fn boots_of_minikv_are_identical_in_virtual_time() {
    for engine in ["kvm", "soft"] {
        let directory = TempDir::new().expect("a directory");
        let options = ["--engine", engine, "--checkpoint-every", "0.000001"];
        // It has no timer then: all boots wait in one place.
        let booted = |pair: &Pair| {
            let status = pair.status(Part::Primary);
            let waits = status.is_ok_and(|status| status["live"]["waiting"] == true);
            waits && pair.log_text(Part::Primary).contains("minikv")
        };
        let boot = |name| boot(&directory, name, &options, booted);
        let end =
            |recording: &Recording| json(&["replay", recording.path().to_str().expect("UTF-8"), "--json"]);
        let Some((log, first)) = boot("first.lkr") else { return };
        assert!(log.iter().any(|entry| matches!(entry.event, Event::DiskDone { .. })), "it used its disk");
        for name in ["second.lkr", "third.lkr"] {
            let (again, recording) = boot(name).expect("as before");
            assert!(again == log, "{engine}: {log:?}, then {again:?}");
            assert_eq!(end(&recording), end(&first));
        }
    }
}

/// The tiers of the software processor are one machine: one boot is translated, the other interpreted.
#[test]
fn boots_of_linux_are_identical_in_virtual_time_and_stop_anywhere() {
    if !has_guest("busybox") {
        return;
    }
    let directory = TempDir::new().expect("a directory");
    let booted = |pair: &Pair| pair.log_text(Part::Primary).contains("Enter 'help'");
    let boot = |tier| {
        let options = ["--engine", "soft", "--guest", "busybox", "--checkpoint-every", "1", "--jit", tier];
        boot(&directory, &format!("{tier}.lkr"), &options, booted)
    };
    let Some((one, translated)) = boot("on") else { return };
    let (other, interpreted) = boot("off").expect("as before");
    // They were powered off at a moment of the host's: but for what then was logged, they are one.
    let shorter = one.len().min(other.len()) - 2;
    assert!(shorter > 10, "{shorter} entries");
    let differs = one[..shorter].iter().zip(&other).find(|(a, b)| a != b);
    assert_eq!(differs, None);
    assert!(one.iter().any(|entry| matches!(entry.event, Event::Digest(_))));
    let stops = (50 * scale()).to_string();
    tiers::verify(translated.path(), "off", "1", &stops);
    tiers::verify(interpreted.path(), "on", "1", &stops);
}
