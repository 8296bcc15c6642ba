//! Faults planted in copies of a recording, and `diverge` that must find each.

use std::fs::File;
use std::path::Path;

use lockstep::memory::Ram;
use lockstep::recording::Recording;
use lockstep::recording::writer::{PageTracker, Writer};
use logchannel::{Event, LogEntry, codec};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::PROGRAM;
use crate::recorded::{json, lockstep, shared, shared_soft};

/// Where checkpoint number `from` and all later ones have another byte.
struct OtherByte {
    from: usize,
    address: usize,
}

/// Copies a recording, with changed entries and changed memory.
fn copy(from: &Path, to: &Path, change: impl Fn(&mut LogEntry), other: Option<OtherByte>) {
    let recording = Recording::open(from).expect("a recording");
    let file = File::create_new(to).expect("a new file");
    let mut writer = Writer::new(file, recording.header()).expect("a header");
    let mut tracker = PageTracker::default();
    let mut ram = Ram::new(recording.header().machine.memory_bytes).expect("guest memory");
    let mut log = recording.log().map(|entry| entry.expect("sound")).peekable();
    for (number, checkpoint) in recording.checkpoints().iter().enumerate() {
        while let Some(mut entry) = log.next_if(|entry| entry.seq <= checkpoint.seq) {
            change(&mut entry);
            writer.append(&entry).expect("an entry");
        }
        recording.load_memory(number, &mut ram).expect("memory");
        if let Some(OtherByte { from, address }) = other
            && number >= from
        {
            let byte = ram.as_slice()[address] ^ 0xff;
            ram.write(address, &[byte]);
        }
        let state = codec::encode(&recording.state(number).expect("a state")).expect("encoded");
        let pages = tracker.collect(ram.as_slice());
        writer.checkpoint(&pages, (checkpoint.at, &state), checkpoint.now_ns).expect("a checkpoint");
    }
    for mut entry in log {
        change(&mut entry);
        writer.append(&entry).expect("an entry");
    }
    writer.finish().expect("the end");
}

fn diverge(arguments: &[&Path]) -> (Option<i32>, Value) {
    let mut words = vec!["diverge", "--json"];
    words.extend(arguments.iter().map(|path| path.to_str().expect("a name in UTF-8")));
    let output = lockstep(&words);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let value = serde_json::from_str(text.trim());
    (output.status.code(), value.unwrap_or_else(|error| panic!("{error}: {text} {output:?}")))
}

#[test]
fn equal_recordings_are_said_to_be() {
    let Some(path) = shared() else { return };
    let directory = TempDir::new().expect("a directory");
    let other = directory.path().join("copy.lkr");
    copy(path, &other, |_| {}, None);
    for arguments in [&[path][..], &[path, &other]] {
        let (code, verdict) = diverge(arguments);
        assert_eq!((code, &verdict["verdict"]), (Some(0), &"same".into()), "{verdict}");
    }
}

#[test]
fn replays_by_two_processes_are_equal() {
    for path in [shared(), shared_soft()].into_iter().flatten() {
        let recording = Recording::open(path).expect("a recording");
        let middle = recording.checkpoints()[recording.checkpoints().len() / 2].at.count;
        let name = path.to_str().expect("a name in UTF-8");
        for from in [0, middle] {
            let verdict =
                json(&["diverge", name, "--json", "--against", PROGRAM, "--from", &from.to_string()]);
            assert_eq!(
                (&verdict["verdict"], &verdict["position"]),
                (&"same".into(), &recording.end().count.into())
            );
        }
        let output = lockstep(&["diverge", name, "--against", "false"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("false: no answer"), "{output:?}");
    }
}

#[test]
fn another_input_is_found_to_the_position() {
    for path in [shared(), shared_soft()].into_iter().flatten() {
        another_input(path);
    }
}

fn another_input(path: &Path) {
    let directory = TempDir::new().expect("a directory");
    let log: Vec<LogEntry> =
        Recording::open(path).expect("a recording").log().map(|entry| entry.expect("sound")).collect();
    let frames: Vec<&LogEntry> =
        log.iter().filter(|entry| matches!(&entry.event, Event::NetRx(data) if data.len() > 60)).collect();
    for part in [4, 2] {
        let victim = frames[frames.len() / part];
        let other = directory.path().join(format!("other{part}.lkr"));
        let change = |entry: &mut LogEntry| {
            if let (true, Event::NetRx(data)) = (entry.seq == victim.seq, &mut entry.event) {
                data[50] ^= 0x40;
            }
        };
        copy(path, &other, change, None);
        let (code, verdict) = diverge(&[path, &other]);
        assert_eq!((code, &verdict["verdict"]), (Some(4), &"parted".into()), "{verdict}");
        assert_eq!(verdict["position"], victim.at.count, "{verdict}");
        assert_eq!(verdict["agreed"], victim.at.count - 1);
        let seen = verdict["entries_a"].as_array().expect("entries");
        assert!(seen.iter().any(|entry| entry.as_str().is_some_and(|e| e.contains("NetRx"))), "{verdict}");
        assert!(verdict["instruction"].as_str().is_some_and(|text| text.starts_with("0x")), "{verdict}");
        let memory = verdict["difference"]["memory"].as_array().expect("ranges");
        assert_eq!(memory.len(), 1, "one byte of one buffer: {verdict}");
    }
}

#[test]
fn a_run_that_its_log_does_not_lead_to_is_found_between_checkpoints() {
    for path in [shared(), shared_soft()].into_iter().flatten() {
        astray(path);
    }
}

fn astray(path: &Path) {
    let directory = TempDir::new().expect("a directory");
    let recording = Recording::open(path).expect("a recording");
    let from = recording.checkpoints().len() / 2;
    // A byte that the guest wrote between the two checkpoints.
    let mut before = Ram::new(recording.header().machine.memory_bytes).expect("guest memory");
    let mut after = Ram::new(recording.header().machine.memory_bytes).expect("guest memory");
    recording.load_memory(from - 1, &mut before).expect("memory");
    recording.load_memory(from, &mut after).expect("memory");
    let pairs = before.as_slice().iter().zip(after.as_slice()).enumerate();
    let written = pairs.filter(|(_, (a, b))| a != b).map(|(address, _)| address).max().expect("it wrote");
    for (name, address, by_guest) in [("written", written, true), ("still", 0x2_0000, false)] {
        let other = directory.path().join(format!("{name}.lkr"));
        copy(path, &other, |_| {}, Some(OtherByte { from, address }));
        for arguments in [&[other.as_path()][..], &[path, &other]] {
            let (code, verdict) = diverge(arguments);
            assert_eq!((code, &verdict["verdict"]), (Some(4), &"astray".into()), "{verdict}");
            assert_eq!(verdict["position"], recording.checkpoints()[from].at.count, "{verdict}");
            assert_eq!(verdict["agreed"], recording.checkpoints()[from - 1].at.count, "{verdict}");
            assert_eq!(verdict["difference"]["memory"][0]["address"], address as u64, "{verdict}");
            assert_eq!(verdict["written_at"].is_array(), by_guest, "{verdict}");
        }
    }
}

#[test]
fn another_output_than_the_guest_makes_is_found() {
    let Some(path) = shared() else { return };
    let directory = TempDir::new().expect("a directory");
    let other = directory.path().join("output.lkr");
    let recording = Recording::open(path).expect("a recording");
    let middle = recording.last_seq() / 2;
    let outputs = recording.log().map(|entry| entry.expect("sound"));
    let mut outputs = outputs.filter(|entry| matches!(entry.event, Event::Output { .. }));
    let victim = outputs.find(|entry| entry.seq > middle).expect("an output");
    let change = |entry: &mut LogEntry| {
        if let (true, Event::Output { digest, .. }) = (entry.seq == victim.seq, &mut entry.event) {
            digest[0] ^= 1;
        }
    };
    copy(path, &other, change, None);
    let (code, verdict) = diverge(&[&other]);
    assert_eq!((code, &verdict["verdict"]), (Some(4), &"astray".into()), "{verdict}");
    assert_eq!(verdict["position"], victim.at.count);
    let seen = verdict["seen"].as_str().expect("what was seen");
    assert!(seen.contains(&format!("entry {}", victim.seq)), "{seen}");
    let name = other.to_str().expect("a name in UTF-8");
    for command in [&["replay", name][..], &["verify", name, "-n", "1"]] {
        let output = lockstep(command);
        assert_eq!(output.status.code(), Some(4), "{command:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("diverged at entry"), "{output:?}");
    }
}
