//! Recorders that are killed, and files that are damaged.

use std::net::Shutdown;

use lockstep::cluster::Part;
use lockstep::recording::Recording;
use tempfile::TempDir;

use crate::client::Client;
use crate::harness::{Pair, scale, wait_until};
use crate::recorded::{json, load, lockstep, shared, start, succeeds};

/// Keeps the guest busy while `work` goes on.
fn under_load(port: u16, work: impl FnOnce()) {
    let mut client = Client::connect(port).expect("a connection");
    let closer = client.closer().expect("a handle");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut number = 0;
            while client.set(&format!("key{}", number % 9), "value").is_ok() {
                number += 1;
            }
        });
        work();
        closer.shutdown(Shutdown::Both).expect("the connection ends");
    });
}

/// What is left of a recording whose recorder was killed is sound, and has something in it.
fn check_torn(path: &str) {
    let stat = json(&["log", "stat", path, "--json"]);
    assert!(stat["entries"].as_u64().expect("a number") > 100, "{stat}");
    let said = lockstep(&["replay", path, "--no-console"]);
    assert!(said.status.success(), "{said:?}");
    assert!(String::from_utf8_lossy(&said.stderr).contains("was not ended properly"), "{said:?}");
    let end = json(&["replay", path, "--json"]);
    assert_eq!((&end["position"], &end["entries"]), (&stat["position"], &stat["entries"]));
    assert!(succeeds(&["verify", path, "-n", "2", "--stops", "50"]).contains("all equal"));
}

#[test]
fn a_killed_recorder_leaves_a_usable_recording() {
    for (round, engine) in ["kvm", "soft"].into_iter().cycle().take(2 * scale()).enumerate() {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("killed.lkr");
        let Some(mut pair) = start("a killed recorder", &path, "0.05", engine) else { return };
        under_load(pair.port(), || {
            let length = || std::fs::metadata(&path).map_or(0, |data| data.len());
            let enough = length() + 60_000 + 20_000 * round as u64;
            wait_until("the recording to grow", || length() > enough);
            pair.kill(Part::Primary).expect("SIGKILL");
        });
        check_torn(path.to_str().expect("a name in UTF-8"));
    }
}

#[test]
fn a_killed_primary_of_a_pair_leaves_a_usable_recording() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("primary.lkr");
    let words = ["--record", path.to_str().expect("UTF-8"), "--checkpoint-every", "0.1", "--digest-ms", "50"];
    let Some(mut pair) = Pair::services("a killed primary's recording", |_| {}) else { return };
    pair.start_backup().expect("the backup");
    pair.options_mut().vm_options.extend(words.iter().map(|word| word.to_string()));
    pair.start_primary().expect("the primary");
    pair.wait_for_guest().expect("the guest answers");
    load(pair.port(), 300);
    under_load(pair.port(), || pair.kill(Part::Primary).expect("SIGKILL"));
    // The backup goes on; what the primary did until then can be looked at.
    pair.promote_backup().expect("the backup is live");
    pair.wait_for_guest().expect("the guest answers again");
    check_torn(path.to_str().expect("a name in UTF-8"));
}

#[test]
fn a_recording_is_never_overwritten() {
    let Some(path) = shared() else { return };
    let before = std::fs::read(path).expect("the recording");
    let Some(mut pair) = Pair::services("no overwriting", |options| {
        options.replicated = false;
        options.vm_options.extend(["--record".into(), path.display().to_string()]);
    }) else {
        return;
    };
    pair.start_primary().expect("a process");
    let status = pair.wait_for_end(Part::Primary).expect("it ends");
    assert_eq!(status.code(), Some(1));
    assert!(pair.log_tail(Part::Primary).contains("cannot create the recording"));
    assert!(std::fs::read(path).expect("the recording") == before);
}

#[test]
fn damage_is_told_and_what_is_before_is_used() {
    let Some(path) = shared() else { return };
    let whole = std::fs::read(path).expect("the recording");
    let directory = TempDir::new().expect("a directory");
    let damaged = directory.path().join("damaged.lkr");
    let name = damaged.to_str().expect("a name in UTF-8");
    let recording = Recording::open(path).expect("a recording");
    let first_entries = recording.batches()[1].frame.offset as usize;
    for round in 1..=6 * scale() {
        let mut bytes = whole.clone();
        let at = bytes.len() * round / (6 * scale() + 1);
        bytes[at] ^= 0x10;
        // Without its end it has no index, and is read from its beginning.
        bytes.truncate(whole.len() - usize::from(round % 2 == 0));
        std::fs::write(&damaged, &bytes).expect("a file");
        let (dump, replay) = (lockstep(&["log", "dump", name]), lockstep(&["replay", name, "--no-console"]));
        for output in [&dump, &replay] {
            let said = String::from_utf8_lossy(&output.stderr);
            let told = said.contains("damaged") || said.contains("not ended properly");
            // A page of a checkpoint that is passed by is never looked at.
            assert!(told || output.status.success(), "byte {at}: {output:?}");
        }
        assert!(at < first_entries || !dump.stdout.is_empty(), "entries before byte {at}");
    }
    let mut first = whole.clone();
    first[30] ^= 1;
    std::fs::write(&damaged, &first).expect("a file");
    assert_eq!(lockstep(&["replay", name]).status.code(), Some(1));
}
