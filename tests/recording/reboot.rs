//! Recordings of guests that reset their machine: replayed from the start and from between two resets, gone
//! through backwards over them, and refused where they lack what a reset needs.

use std::io::Write as _;
use std::path::Path;

use lockstep::cluster::Part;
use lockstep::recording::{Arrival, Recording, Session};
use logchannel::{Event, LogEntry, OutputKind, Position};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::client::Client;
use crate::harness::{Pair, wait_until};
use crate::recorded::{json, load, lockstep, succeeds};

const RESETS: usize = 3;
const SET: &[u8] = b"*3\r\n$3\r\nSET\r\n$4\r\nlate\r\n$5\r\nvalue\r\n";

fn entries(recording: &Recording) -> Vec<LogEntry> {
    recording.log().map(|entry| entry.expect("an entry")).collect()
}

/// A recorded machine under load, reset several times; none where the engine is not there.
fn record(path: &Path, engine: &str) -> Option<()> {
    let record = path.display().to_string();
    let mut pair = Pair::services("recorded resets", |options| {
        options.replicated = false;
        let words = ["--record", &record, "--checkpoint-every", "0.2", "--digest-ms", "50", "--memory", "32"];
        options.vm_options.extend(words.iter().chain(&["--engine", engine]).map(|word| word.to_string()));
        options.vm_options.extend(["--reset-limit", "0"].map(String::from));
    })?;
    pair.start_primary().expect("the machine");
    pair.wait_for_guest().expect("the guest answers");
    for count in 1..=RESETS as u64 {
        load(pair.port(), 60);
        let live =
            |pair: &Pair, name: &str| pair.status(Part::Primary).ok().and_then(|s| s["live"][name].as_u64());
        // Every other time with a write in flight.
        let held = count % 2 == 0;
        let mut writers = Vec::new();
        if held {
            pair.signal(Part::DiskServer, Signal::SIGSTOP).expect("SIGSTOP");
            // A connection that the guest does not take is no write: another one is.
            wait_until("a write in flight", || {
                let writer = Client::connect(pair.port()).and_then(|writer| writer.closer());
                writers.extend(writer.and_then(|mut stream| stream.write_all(SET).map(|()| stream)));
                live(&pair, "disk_in_flight") > Some(0)
            });
        }
        Client::connect(pair.port()).and_then(Client::restart).expect("sent");
        wait_until("a reset", || live(&pair, "resets") >= Some(count));
        if held {
            pair.signal(Part::DiskServer, Signal::SIGCONT).expect("SIGCONT");
        }
        pair.wait_for_guest().expect("the guest answers again");
        if count == 1 {
            // One may be of before the reset and written late.
            let checkpoints = || Recording::open(path).map_or(0, |recording| recording.checkpoints().len());
            let enough = checkpoints() + 2;
            wait_until("a checkpoint between resets", || {
                load(pair.port(), 5);
                checkpoints() >= enough
            });
        }
    }
    load(pair.port(), 60);
    pair.signal(Part::Primary, Signal::SIGTERM).expect("SIGTERM");
    let status = pair.wait_for_end(Part::Primary).expect("it ends by itself");
    assert!(status.success(), "{status}: {}", pair.log_tail(Part::Primary));
    Some(())
}

#[test]
fn resets_replay_from_the_start_from_between_and_backwards() {
    for engine in ["soft", "kvm"] {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("resets.lkr");
        if record(&path, engine).is_some() {
            check(&path);
        }
    }
}

fn check(path: &Path) {
    let name = path.to_str().expect("a name in UTF-8");
    let recording = Recording::open(path).expect("a recording");
    let log = entries(&recording);
    let resets: Vec<&LogEntry> = log.iter().filter(|entry| entry.event == Event::Reset).collect();
    assert!(resets.len() >= RESETS, "{} resets", resets.len());
    for reset in &resets {
        let next = &log[reset.seq as usize];
        assert!(matches!(next.event, Event::Digest(_)) && next.at == reset.at, "{next:?}");
    }
    assert!(in_flight(&log) > 0, "no reset while a request was in flight");
    assert!(succeeds(&["verify", name, "-n", "1", "--stops", "20"]).contains("all equal"));
    let end = json(&["replay", name, "--json"]);
    assert_eq!(end["arrival"], "powered off from outside");
    let places: Vec<u64> = resets.iter().map(|reset| reset.at.count).collect();
    let checkpoints = recording.checkpoints();
    let between =
        checkpoints.iter().filter(|c| c.at.count > places[0] && c.at.count < places[places.len() - 1]);
    assert!(between.count() > 0, "no checkpoint between resets");
    backwards(path, &places);
}

/// How many resets came while the disk had something to do.
fn in_flight(log: &[LogEntry]) -> usize {
    let (mut flying, mut found) = (0i64, 0);
    for entry in log {
        match entry.event {
            Event::Output { kind: OutputKind::Disk, .. } => flying += 1,
            Event::DiskDone { .. } => flying -= 1,
            Event::Reset => found += usize::from(flying > 0),
            _ => {}
        }
    }
    found
}

/// A position has one state, also next to a reset, whichever way one comes.
fn backwards(path: &Path, resets: &[u64]) {
    let mut session = Session::open(path).expect("a session");
    let places = resets.iter().flat_map(|at| [at - 1, *at, at + 1]).collect::<Vec<_>>();
    let straight: Vec<_> = places
        .iter()
        .map(|at| {
            assert_eq!(session.run_to(Position::at(*at)).expect("it runs"), Arrival::There);
            session.digest().expect("a digest")
        })
        .collect();
    for (at, expected) in places.iter().zip(&straight).rev() {
        assert_eq!(session.seek(Position::at(*at)).expect("it goes back"), Arrival::There);
        assert!(session.digest().expect("a digest") == *expected, "position {at}");
    }
    session.seek(Position::at(resets[0] + 1)).expect("it goes there");
    for back in [0, 1] {
        session.step_back(1).expect("a step back");
        assert!(session.digest().expect("a digest") == straight[1 - back], "{back} before the reset");
    }
}

/// Cut off right before the guest's files: the machine still comes to the reset, if an entry lies there.
#[test]
fn a_recording_that_was_cut_off_before_a_reset_replays_to_there() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("whole.lkr");
    let Some(()) = record(&path, "soft") else { return };
    let recording = Recording::open(&path).expect("a recording");
    let reset = entries(&recording).iter().find(|entry| entry.event == Event::Reset).expect("a reset").seq;
    let batch = recording.batch_of(reset);
    let cut = recording.batches()[batch].frame.offset as usize;
    let torn = directory.path().join("torn.lkr");
    let whole = std::fs::read(&path).expect("the file");
    for len in [cut, cut - 100_000] {
        std::fs::write(&torn, &whole[..len]).expect("a shorter file");
        let said = lockstep(&["replay", torn.to_str().expect("UTF-8"), "--no-console"]);
        assert!(said.status.success(), "{said:?}");
        assert!(String::from_utf8_lossy(&said.stderr).contains("was not ended properly"), "{said:?}");
    }
}
