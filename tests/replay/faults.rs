//! Planted faults: in the log, in memory, in registers. Each must be caught at the next check, the first
//! digest after it at the latest.
//!
//! A bit flipped in a place that the guest overwrites before it reads it is no fault any more when the digest
//! comes, nor is an input that came a stop early but was looked at by the same check. Such a try counts only
//! after the machine has been found equal, byte for byte, to an undisturbed one, and is made again elsewhere.
//!
//! The tries run in a process of their own: a guest with a flipped bit may compute for ever without an exit,
//! and then never gets to a check (nor does such a replica ever go live). It is ended, and counted as stuck.

use std::collections::BTreeMap;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use logchannel::{DiskStatus, Event, LogEntry, MachineDigest, Seq};
use replay::{Difference, Divergence};

use crate::machine::{ENGINE, Vm, engine_kind, minikv, on_engines};
use crate::recording::{Options, Recording, record};
use crate::replaying::{How, Replay, assert_same};
use crate::rng::Rng;
use crate::worker::{Worker, job, runs};
use crate::world::{DISK_BYTES, End, Plan};

/// How long a try may be silent. Only a guest that computes for ever takes so long.
const SILENCE: Duration = Duration::from_secs(60);
/// How many recordings there are, and how many tries in a row are made with the same.
const RECORDINGS: u64 = 5;
const TRIES_EACH: u64 = 10;
/// Most draws of one try, where some hit what the guest overwrites.
const DRAWS: u64 = 200;

/// What is done to the log or to the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// A bit of a page that holds something.
    UsedRam,
    /// A bit of any page.
    AnyRam,
    /// A bit of a general register.
    Register,
    /// An entry is missing, its number with it.
    Dropped,
    /// An input or an output never happened: the entries after it count on without a gap.
    NeverHappened,
    /// An input or an output happens twice.
    Twice,
    /// An entry lies at a position nearby.
    Shifted,
    /// A byte that arrived from the network, the disk or the console is another, or a disk request's status.
    Payload,
    /// The clock is set to another time.
    Clock,
}

const FAULTS: [Fault; 9] = [
    Fault::UsedRam,
    Fault::AnyRam,
    Fault::Register,
    Fault::Dropped,
    Fault::NeverHappened,
    Fault::Twice,
    Fault::Shifted,
    Fault::Payload,
    Fault::Clock,
];

/// What became of a planted fault.
enum Outcome {
    /// Found, and where the next check was.
    Caught { found: Box<Divergence>, check: Seq },
    /// Nothing is left of it at the next digest: the machine is in the state it would have been in.
    Healed,
    /// It should not have got here.
    Missed { check: Seq },
}

fn machine() -> Vm {
    minikv(DISK_BYTES as u64)
}

/// The `number`-th recording that faults are planted in. Every input in it has a digest behind it.
fn recording(number: u64) -> Recording {
    let seed = 1_000 + number;
    let random = Plan::random(&mut Rng::new(seed, 0));
    let used_disk = number.is_multiple_of(2);
    let plan =
        Plan { used_disk, clients: 2, steps: 12, bound_ns: Some(100_000), end: End::Settled, ..random };
    record(seed, &Options { plan: Some(plan), dense: true, ..Options::default() })
}

/// The number of the first digest after entry `seq`.
fn next_digest(log: &[LogEntry], seq: Seq) -> Seq {
    let after = log[seq as usize..].iter().find(|entry| matches!(entry.event, Event::Digest(_)));
    after.expect("a digest ends every log").seq
}

/// Plants the fault in a copy of the log; the log, and the number of the entry where it begins to differ.
fn mutate(fault: Fault, log: &[LogEntry], rng: &mut Rng) -> (Vec<LogEntry>, Seq) {
    let input = |event: &Event| {
        matches!(event, Event::NetRx(_) | Event::ConsoleRx(_) | Event::DiskDone { .. } | Event::Clock { .. })
    };
    let affects = |event: &Event| input(event) || matches!(event, Event::Output { .. });
    let fits = |entry: &LogEntry| match (fault, &entry.event) {
        // Of a frame that no device takes nothing is kept but that it came.
        (Fault::Payload, Event::NetRx(frame)) => (14..=1518).contains(&frame.len()),
        (Fault::Payload, event) => matches!(event, Event::DiskDone { .. } | Event::ConsoleRx(_)),
        (Fault::Clock, event) => matches!(event, Event::Clock { .. }),
        // Setting the clock to where it is does nothing.
        (Fault::Twice, event) => affects(event) && !matches!(event, Event::Clock { .. }),
        (Fault::NeverHappened, event) => affects(event),
        (Fault::Shifted, event) => {
            (affects(event) || matches!(event, Event::Digest(_)))
                && !neighbours(log, entry.seq as usize - 1).is_empty()
        }
        _ => true,
    };
    // The last digest, behind which only the log's end is: a check must come after the fault.
    let last = log.len() - 2;
    let fitting: Vec<usize> = (0..last).filter(|&index| fits(&log[index])).collect();
    let index = *rng.pick(&fitting);
    let mut log = log.to_vec();
    match fault {
        Fault::Dropped => drop(log.remove(index)),
        Fault::NeverHappened => {
            log.remove(index);
            log[index..].iter_mut().for_each(|entry| entry.seq -= 1);
        }
        Fault::Twice => {
            log.insert(index, log[index].clone());
            log[index + 1..].iter_mut().for_each(|entry| entry.seq += 1);
        }
        Fault::Shifted => log[index].at.count = *rng.pick(&neighbours(&log, index)),
        Fault::Payload => corrupt(&mut log[index].event, rng),
        Fault::Clock => {
            let Event::Clock { now_ns } = &mut log[index].event else { unreachable!("only those fit") };
            let by = rng.within(1, *rng.clone().pick(&[1, 1_000, 1_000_000]));
            *now_ns = if rng.chance(500) { now_ns.saturating_sub(by) } else { *now_ns + by };
        }
        Fault::UsedRam | Fault::AnyRam | Fault::Register => unreachable!("not in the log"),
    }
    (log, index as Seq + 1)
}

/// Positions near that of an entry to which it can be moved without leaving its place in the log: only the
/// guest's execution tells that it is wrong there.
fn neighbours(log: &[LogEntry], index: usize) -> Vec<u64> {
    let at = log[index].at.count;
    let low = if index == 0 { 0 } else { log[index - 1].at.count };
    let high = log[index + 1].at.count;
    (low.max(at.saturating_sub(3))..=high.min(at + 3)).filter(|&other| other != at).collect()
}

fn corrupt(event: &mut Event, rng: &mut Rng) {
    match event {
        Event::DiskDone { status, data, .. } if data.is_empty() => {
            let others = [DiskStatus::Ok, DiskStatus::IoError, DiskStatus::Unsupported];
            let others = others.map(|other| (other != *status).then_some(other));
            *status = *rng.pick(&others.into_iter().flatten().collect::<Vec<_>>());
        }
        Event::NetRx(data) | Event::ConsoleRx(data) | Event::DiskDone { data, .. } => {
            let at = rng.below(data.len() as u64) as usize;
            data[at] ^= 1 << rng.below(8);
        }
        _ => unreachable!("only events with a payload"),
    }
}

/// Replays a log with a fault in it.
fn try_log(fault: Fault, recording: &Recording, rng: &mut Rng) -> Outcome {
    let (log, seq) = mutate(fault, &recording.log, rng);
    let check = next_digest(&log, seq.saturating_sub(1).min(log.len() as Seq - 1));
    let mut replay = Replay::new(machine());
    let (head, tail) = log.split_at((seq as usize - 1).min(log.len()));
    let result = replay.push(head).and_then(|()| replay.run());
    result.unwrap_or_else(|divergence| panic!("before the fault: {divergence}"));
    for entry in tail {
        if let Err(found) = replay.push(std::slice::from_ref(entry)).and_then(|()| replay.run()) {
            return Outcome::Caught { found, check };
        }
        if entry.seq == check {
            break;
        }
    }
    match fault {
        Fault::Shifted => compare(&mut replay, &recording.log, check),
        _ => Outcome::Missed { check },
    }
}

/// A fault that no digest found: whether the machine is what it would be without, at the digest `check`.
fn compare(replay: &mut Replay, log: &[LogEntry], check: Seq) -> Outcome {
    let mut control = Replay::new(machine());
    control.push(log).unwrap_or_else(|divergence| panic!("{divergence}"));
    control.run_to(check).unwrap_or_else(|divergence| panic!("without a fault: {divergence}"));
    match control.state().diff(&replay.state()).is_empty() {
        true => Outcome::Healed,
        false => Outcome::Missed { check },
    }
}

/// Replays a log and plants a fault in the machine on the way.
fn try_machine(fault: Fault, recording: &Recording, rng: &mut Rng) -> Outcome {
    let log = &recording.log;
    let mut replay = Replay::new(machine());
    replay.push(log).unwrap_or_else(|divergence| panic!("{divergence}"));
    // The log ends with a digest and the shutdown.
    let seq = rng.within(1, log.len() as Seq - 2);
    replay.run_to(seq).unwrap_or_else(|divergence| panic!("before the fault: {divergence}"));
    let target = replay.replayer.machine_mut();
    if fault == Fault::Register {
        let mut cpu = target.cpu().expect("registers");
        cpu.gpr[rng.below(16) as usize] ^= 1 << rng.below(64);
        target.set_cpu(&cpu).expect("sets them");
    } else {
        flip_ram_bit(target, fault == Fault::UsedRam, rng);
    }
    let check = next_digest(log, seq);
    match replay.run_to(check) {
        Err(found) => Outcome::Caught { found, check },
        Ok(()) => compare(&mut replay, log, check),
    }
}

fn flip_ram_bit(machine: &mut Vm, used: bool, rng: &mut Rng) {
    let len = machine.ram().as_slice().len() as u64;
    let address = loop {
        let address = rng.below(len) as usize;
        let page = machine.ram().page(address / lockstep::memory::PAGE_BYTES);
        if !used || page.iter().any(|&byte| byte != 0) {
            break address;
        }
    };
    let byte = machine.ram().as_slice()[address] ^ 1 << rng.below(8);
    machine.ram_mut().write(address, &[byte]);
}

fn attempt(fault: Fault, recording: &Recording, rng: &mut Rng) -> Outcome {
    match fault {
        Fault::UsedRam | Fault::AnyRam | Fault::Register => try_machine(fault, recording, rng),
        _ => try_log(fault, recording, rng),
    }
}

/// What found it, in a word.
fn means(difference: &Difference) -> &'static str {
    match difference {
        Difference::Sequence { .. } => "sequence",
        Difference::PositionDecreases { .. } => "order",
        Difference::PositionPassed { .. } => "position",
        Difference::Waits { .. } => "wait",
        Difference::Ended { .. } => "ending",
        Difference::Output { .. } | Difference::OutputMissing { .. } | Difference::OutputNotLogged { .. } => {
            "output"
        }
        Difference::ResetMissing | Difference::ResetNotLogged { .. } => "reset",
        Difference::State { expected, found } => part(expected, found),
        Difference::InputRefused { .. } => "refusal",
        Difference::DiskData { .. } => "disk",
        Difference::ClockBackwards { .. } => "clock",
    }
}

fn part(expected: &MachineDigest, found: &MachineDigest) -> &'static str {
    match (expected.registers != found.registers, expected.devices != found.devices) {
        (true, _) => "digest with registers",
        (false, true) => "digest with devices",
        (false, false) => "digest of memory alone",
    }
}

/// The tries of one fault from `first` on: a line each.
#[test]
#[ignore = "runs in a process of its own, started by the tests below"]
fn worker() {
    let Some(job) = job() else { return };
    let words: Vec<&str> = job.split(' ').collect();
    let [name, first, count] = words[..] else { panic!("job {job:?}") };
    let fault = FAULTS.into_iter().find(|fault| format!("{fault:?}") == name).expect("a fault");
    let (first, count) = (first.parse::<u64>().expect("a number"), count.parse::<u64>().expect("a number"));
    let mut recordings = BTreeMap::new();
    for number in first..count {
        let which = number / TRIES_EACH % RECORDINGS;
        let recording = recordings.entry(which).or_insert_with(|| recording(which));
        for draw in 0..DRAWS {
            let mut rng = Rng::new(number << 8 | draw, fault as u64);
            match attempt(fault, recording, &mut rng) {
                Outcome::Healed => println!("TRY {number} healed"),
                Outcome::Missed { check } => {
                    println!("TRY {number} missed: nothing was found up to the digest at entry {check}");
                    break;
                }
                Outcome::Caught { found, check } if found.seq > check => {
                    println!("TRY {number} missed: found after the digest at entry {check}: {found}");
                    break;
                }
                Outcome::Caught { found, .. } => {
                    println!("TRY {number} caught by {}", means(&found.difference));
                    break;
                }
            }
        }
    }
    println!("DONE");
}

fn again(fault: Fault, number: u64) -> String {
    format!(
        "repeat with: {ENGINE}={} LOCKSTEP_REPLAY_JOB='{fault:?} {number} {}' \
         cargo test --release -p lockstep \
         --test replay -- --exact faults::worker --ignored --nocapture",
        engine_kind().name(),
        number + 1
    )
}

fn every_try_is_caught(fault: Fault) {
    on_engines("planted faults", || {
        let count = runs();
        let mut caught: BTreeMap<String, u64> = BTreeMap::new();
        let (mut healed, mut first) = (0, 0);
        while first < count {
            let worker = Worker::start("faults::worker", &format!("{fault:?} {first} {count}"));
            loop {
                match worker.lines.recv_timeout(SILENCE) {
                    Ok(line) if line == "DONE" => {
                        assert_eq!(first, count, "{fault:?}: every try ended");
                        break;
                    }
                    Ok(line) => {
                        let Some(text) = line.split_once("TRY ").map(|(_, text)| text) else { continue };
                        let (number, text) = text.split_once(' ').expect("a number and what became of it");
                        assert!(
                            !text.starts_with("missed"),
                            "{fault:?}, try {number}: {text}; {}",
                            again(fault, first)
                        );
                        assert_eq!(number, first.to_string());
                        match text.strip_prefix("caught by ") {
                            Some(means) => {
                                *caught.entry(means.to_string()).or_default() += 1;
                                first += 1;
                            }
                            None => healed += 1,
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => {
                        *caught.entry("never getting to the check".into()).or_default() += 1;
                        first += 1;
                        break;
                    }
                    Err(RecvTimeoutError::Disconnected) => {
                        panic!("{fault:?}: the worker ended; {}", again(fault, first))
                    }
                }
            }
        }
        let sum: u64 = caught.values().sum();
        assert_eq!(sum, count, "{fault:?}");
        eprintln!(
            "{fault:?}: {sum} of {count} caught, {healed} more left no trace up to the check: {caught:?}"
        );
    });
}

#[test]
fn flipped_bits_of_used_memory_are_caught() {
    every_try_is_caught(Fault::UsedRam);
}

#[test]
fn flipped_bits_anywhere_in_memory_are_caught() {
    every_try_is_caught(Fault::AnyRam);
}

#[test]
fn flipped_bits_of_registers_are_caught() {
    every_try_is_caught(Fault::Register);
}

#[test]
fn dropped_entries_are_caught() {
    every_try_is_caught(Fault::Dropped);
}

#[test]
fn events_that_never_happened_are_caught() {
    every_try_is_caught(Fault::NeverHappened);
}

#[test]
fn events_that_happen_twice_are_caught() {
    every_try_is_caught(Fault::Twice);
}

#[test]
fn shifted_positions_are_caught() {
    every_try_is_caught(Fault::Shifted);
}

#[test]
fn changed_bytes_are_caught() {
    every_try_is_caught(Fault::Payload);
}

#[test]
fn changed_clocks_are_caught() {
    every_try_is_caught(Fault::Clock);
}

/// The other side: without a fault there is no alarm, also where registers and memory were touched.
#[test]
fn nothing_is_found_where_nothing_was_planted() {
    on_engines("no fault", || {
        for number in 0..2 {
            let recording = recording(number);
            assert_same(&recording, machine(), How::Whole);
            let mut replay = Replay::new(machine());
            replay.push(&recording.log).unwrap_or_else(|divergence| panic!("{divergence}"));
            let mut rng = Rng::new(number, 99);
            let mut seq = 0;
            while seq < recording.log.len() as Seq {
                seq = (seq + rng.within(1, 20)).min(recording.log.len() as Seq);
                replay.run_to(seq).unwrap_or_else(|divergence| panic!("{divergence}"));
                let machine = replay.replayer.machine_mut();
                let cpu = machine.cpu().expect("registers");
                machine.set_cpu(&cpu).expect("sets them as they are");
                let byte = machine.ram().as_slice()[0x10_0000];
                machine.ram_mut().write(0x10_0000, &[byte]);
            }
            assert_eq!(replay.state().diff(&recording.last), Vec::<String>::new());
        }
    });
}
