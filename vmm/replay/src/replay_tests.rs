//! The replayer: equal runs, and every planted fault caught.

use logchannel::{DiskStatus, MachineDigest};
use proptest::prelude::*;

use super::*;
use crate::machine::Stop;
use crate::record::Recorded;
use crate::small_machine::SmallMachine;
use crate::test_driver::{Host, Random, entries, record, record_with_resets};

const SEED: u64 = 11;
const TURNS: usize = 2_000;

type Outcome = Result<Vec<(Seq, Option<Output>)>, Box<Divergence>>;

/// Runs every entry held; what was executed.
fn run(replayer: &mut Replayer<SmallMachine>) -> Outcome {
    let mut executed = Vec::new();
    loop {
        match replayer.advance() {
            Ok(Progress::Executed { seq, output, .. }) => executed.push((seq, output)),
            Ok(Progress::Running) => {}
            Ok(Progress::NeedEntries | Progress::Ended(_)) => return Ok(executed),
            Err(ReplayError::Diverged(divergence)) => return Err(divergence),
            Err(ReplayError::Machine(error)) => panic!("{error}"),
        }
    }
}

fn replay(log: &[LogEntry]) -> Outcome {
    let mut replayer = Replayer::new(SmallMachine::new());
    for entry in log {
        match replayer.push(entry.clone()) {
            Ok(()) => {}
            Err(PushError::Diverged(divergence)) => return Err(divergence),
            Err(PushError::Full) => panic!("full"),
        }
    }
    run(&mut replayer)
}

/// The divergence of a log that was changed: the first entry of the kind, from the middle on.
fn changed(change: impl Fn(&mut Vec<LogEntry>, usize), which: impl Fn(&Event) -> bool) -> (Seq, Divergence) {
    let mut log = entries(&record(SEED, TURNS));
    let middle = log.len() / 2;
    let index = middle + log[middle..].iter().position(|e| which(&e.event)).expect("such an entry");
    let seq = log[index].seq;
    change(&mut log, index);
    (seq, *replay(&log).map(|executed| executed.len()).expect_err("must be caught"))
}

#[test]
fn replay_takes_the_recorded_path() {
    for seed in 0..20 {
        let log = record(seed, 600);
        let executed = replay(&entries(&log)).unwrap_or_else(|d| panic!("seed {seed}: {d}"));
        let expected: Vec<_> =
            log.into_iter().map(|Recorded { entry, output }| (entry.seq, output)).collect();
        assert_eq!(executed, expected, "seed {seed}");
    }
}

#[test]
fn entries_may_come_one_by_one_or_in_any_portions() {
    let log = entries(&record(SEED, 600));
    let mut random = Random(5);
    let mut replayer = Replayer::new(SmallMachine::new());
    let mut rest = log.as_slice();
    while !rest.is_empty() {
        let (now, later) = rest.split_at((random.below(5) as usize).min(rest.len()));
        now.iter().for_each(|entry| replayer.push(entry.clone()).expect("fits"));
        run(&mut replayer).expect("same path");
        assert_eq!(replayer.executed(), replayer.pushed());
        assert!(replayer.machine().position().count <= now.last().map_or(u64::MAX, |e| e.at.count));
        rest = later;
    }
}

#[test]
fn a_dropped_entry_is_caught() {
    let (seq, divergence) = changed(|log, i| drop(log.remove(i)), |e| matches!(e, Event::NetRx(_)));
    assert_eq!(divergence.difference, Difference::Sequence { expected: seq, found: seq + 1 });
}

#[test]
fn a_dropped_input_with_the_numbers_closed_up_is_caught() {
    for which in ["NetRx", "DiskDone", "Clock", "ConsoleRx", "Output"] {
        let drop_it = |log: &mut Vec<LogEntry>, i: usize| {
            log.remove(i);
            log[i..].iter_mut().for_each(|e| e.seq -= 1);
        };
        let (seq, divergence) = changed(drop_it, |e| e.name() == which);
        assert!(divergence.seq >= seq, "{which}: {divergence}");
    }
}

#[test]
fn a_repeated_entry_is_caught() {
    let (_, divergence) =
        changed(|log, i| log.insert(i, log[i].clone()), |e| matches!(e, Event::DiskDone { .. }));
    assert!(matches!(divergence.difference, Difference::Sequence { .. }), "{divergence}");
}

#[test]
fn a_shifted_position_is_caught() {
    for which in ["NetRx", "DiskDone", "Clock", "Output", "Digest"] {
        for step in [-1i64, 1] {
            let shift = |log: &mut Vec<LogEntry>, i: usize| {
                log[i].at.count = log[i].at.count.checked_add_signed(step).unwrap();
            };
            let (seq, divergence) = changed(shift, |e| e.name() == which);
            assert!(divergence.seq >= seq, "{which} {step}: {divergence}");
            assert!(divergence.seq <= seq + 100, "{which} {step}: found late: {divergence}");
        }
    }
}

#[test]
fn a_changed_byte_of_a_payload_is_caught() {
    let change = |log: &mut Vec<LogEntry>, i: usize| match &mut log[i].event {
        Event::NetRx(frame) => frame[4] ^= 0x40,
        Event::ConsoleRx(bytes) => bytes[0] ^= 1,
        Event::DiskDone { data, status, .. } if data.is_empty() => *status = DiskStatus::IoError,
        Event::DiskDone { data, .. } => data[1] ^= 1,
        Event::Output { digest, .. } => digest[7] ^= 1,
        Event::Clock { now_ns } => *now_ns += 1,
        Event::Digest(digest) => digest.devices ^= 1,
        other => panic!("{}", other.name()),
    };
    for which in ["NetRx", "ConsoleRx", "DiskDone", "Output", "Clock", "Digest"] {
        let (seq, divergence) = changed(change, |e| e.name() == which);
        assert!(divergence.seq >= seq, "{which}: {divergence}");
    }
    let read = |e: &Event| matches!(e, Event::DiskDone { data, .. } if !data.is_empty());
    let (_, divergence) = changed(change, read);
    assert!(matches!(divergence.difference, Difference::Output { .. }), "{divergence}");
}

#[test]
fn a_clock_that_goes_back_is_caught() {
    let back = |log: &mut Vec<LogEntry>, i: usize| log[i].event = Event::Clock { now_ns: 3 };
    let (seq, divergence) = changed(back, |e| matches!(e, Event::Clock { .. }));
    assert_eq!(divergence.seq, seq);
    assert!(matches!(divergence.difference, Difference::ClockBackwards { expected: 3, .. }));
}

#[test]
fn a_flipped_bit_of_the_state_is_caught_and_the_report_says_which_part() {
    let log = entries(&record(SEED, TURNS));
    let middle = log.len() / 2;
    for registers in [false, true] {
        let mut replayer = Replayer::new(SmallMachine::new());
        log[..middle].iter().for_each(|entry| replayer.push(entry.clone()).expect("fits"));
        run(&mut replayer).expect("same path so far");
        let agreed = log[..middle].iter().rfind(|e| matches!(e.event, Event::Digest(_))).map(|e| e.seq);
        match registers {
            true => replayer.machine_mut().flip_register_bit(61),
            false => replayer.machine_mut().flip_memory_bit(7 * 64 + 40),
        }
        log[middle..].iter().for_each(|entry| replayer.push(entry.clone()).expect("fits"));
        let divergence = run(&mut replayer).map(|executed| executed.len()).expect_err("must be caught");
        assert_eq!(Some(divergence.agreed), agreed);
        assert_eq!(divergence.recent.len(), RECENT);
        assert_eq!(divergence.recent.last().unwrap().seq + 1, divergence.seq);
        if !registers {
            let text = divergence.to_string();
            assert!(text.contains("memory"), "{text}");
        }
    }
}

#[test]
fn an_input_that_the_guest_has_no_room_for_is_caught() {
    let change = |log: &mut Vec<LogEntry>, i: usize| {
        log[i].event = Event::DiskDone { request: 1 << 40, status: DiskStatus::Ok, data: Vec::new() };
    };
    let (seq, divergence) = changed(change, |e| matches!(e, Event::NetRx(_)));
    assert_eq!(divergence.seq, seq);
    assert!(matches!(divergence.difference, Difference::InputRefused { .. }));
}

#[test]
fn a_guest_that_waits_where_the_log_runs_on_is_caught() {
    let mut replayer = Replayer::new(SmallMachine::new());
    let entry = LogEntry { seq: 1, at: Position::at(1_000), event: Event::Digest(MachineDigest::default()) };
    replayer.push(entry).unwrap();
    let divergence = run(&mut replayer).map(|executed| executed.len()).expect_err("must be caught");
    assert!(matches!(divergence.difference, Difference::Waits { deadline_ns: Some(_), .. }), "{divergence}");
}

#[test]
fn a_replica_that_diverged_stays_stopped() {
    let mut replayer = Replayer::new(SmallMachine::new());
    let entry =
        |seq, count| LogEntry { seq, at: Position::at(count), event: Event::GoLive { generation: 1 } };
    replayer.push(entry(1, 1)).unwrap();
    assert!(matches!(replayer.push(entry(3, 1)), Err(PushError::Diverged(_))));
    assert!(matches!(replayer.push(entry(2, 1)), Err(PushError::Diverged(_))));
    assert!(matches!(replayer.advance(), Err(ReplayError::Diverged(_))));
    assert!(replayer.divergence().is_some());
    assert_eq!(replayer.executed(), 0);
}

#[test]
fn going_live_continues_the_log_wherever_it_was_cut() {
    let log = record_with_resets(SEED, 300);
    assert!(log.iter().filter(|recorded| recorded.entry.event == Event::Reset).count() >= 4);
    for cut in 0..log.len() {
        let mut replayer = Replayer::new(SmallMachine::new());
        entries(&log[..cut]).into_iter().for_each(|entry| replayer.push(entry).expect("fits"));
        run(&mut replayer).expect("same path");
        let recorder = replayer.into_recorder(ClockPolicy::default(), 77);
        let mut host = Host::around(recorder, 1);
        let mut fresh = Vec::new();
        host.recorder.go_live(2, &mut fresh);
        assert_eq!(fresh[0].entry.seq, cut as u64 + 1);
        // Outputs whose entries were cut off come first, with their own numbers.
        for (again, once) in fresh.iter().zip(&log[cut..]).filter(|(again, _)| again.output.is_some()) {
            assert_eq!(again, once, "cut {cut}");
        }
        assert!(matches!(fresh.last().unwrap().entry.event, Event::GoLive { generation: 2 }));
        host.log = fresh;
        let stop = host.recorder.stop();
        assert!(!matches!(stop, Stop::Ended(_)));
        (0..40).for_each(|_| host.turn());
        let mut whole = entries(&log[..cut]);
        whole.extend(entries(&host.log));
        replay(&whole).unwrap_or_else(|d| panic!("cut {cut}: {d}"));
    }
}

#[test]
#[should_panic(expected = "not executed yet")]
fn it_does_not_go_live_with_entries_left() {
    let mut replayer = Replayer::new(SmallMachine::new());
    entries(&record(SEED, 50)).into_iter().for_each(|entry| replayer.push(entry).expect("fits"));
    replayer.into_recorder(ClockPolicy::default(), 0);
}

#[test]
fn the_end_of_the_guest_is_replayed() {
    let mut host = Host::new(SEED, ClockPolicy::default());
    (0..200).for_each(|_| host.turn());
    host.recorder.shutdown(&mut host.log).unwrap();
    let mut replayer = Replayer::new(SmallMachine::new());
    entries(&host.log).into_iter().for_each(|entry| replayer.push(entry).expect("fits"));
    run(&mut replayer).expect("same path");
    assert_eq!(replayer.advance().unwrap(), Progress::Ended(Ending::Shutdown));
    let late = LogEntry {
        seq: replayer.pushed() + 1,
        at: replayer.machine().position(),
        event: Event::ConsoleRx(vec![1]),
    };
    replayer.push(late).unwrap();
    let divergence = run(&mut replayer).map(|executed| executed.len()).expect_err("nothing follows the end");
    assert!(matches!(divergence.difference, Difference::Ended { .. }), "{divergence}");
}

#[test]
fn a_report_names_what_people_need() {
    let (_, mut divergence) = changed(|log, i| log[i].at.count += 1, |e| matches!(e, Event::Output { .. }));
    divergence.notes.push("RAX 1, the log has 2".into());
    divergence.replay_command = Some("lockstep replay run.log".into());
    let text = divergence.to_string();
    for part in
        ["diverged at entry", "state agreed last", "RAX 1", "lockstep replay run.log", "entries before"]
    {
        assert!(text.contains(part), "{part} missing in:\n{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever is done to a log, replay ends with the whole of it executed or with a report: no panic.
    #[test]
    fn any_damage_ends_in_a_report_or_nothing(
        seed in 0u64..1000, at in 0.0f64..1.0, shift in 0u64..9, swap: bool,
    ) {
        let mut log = entries(&record(seed, 120));
        let last = log.len() - 1;
        let i = (at * last as f64) as usize;
        if swap && i < last {
            log.swap(i, i + 1);
            let (a, b) = (log[i].seq, log[i + 1].seq);
            (log[i].seq, log[i + 1].seq) = (b, a);
        } else {
            log[i].at.count += shift;
        }
        let _ = replay(&log);
    }
}

fn with_resets() -> (Vec<LogEntry>, usize) {
    let log = entries(&record_with_resets(SEED, 300));
    let reset = log.iter().position(|entry| entry.event == Event::Reset).expect("a reset");
    (log, reset)
}

/// The log without, or with one more of, an entry.
fn renumbered(entries: impl Iterator<Item = LogEntry>) -> Vec<LogEntry> {
    entries.enumerate().map(|(index, entry)| LogEntry { seq: index as u64 + 1, ..entry }).collect()
}

#[test]
fn resets_are_replayed() {
    let (log, reset) = with_resets();
    assert!(matches!(log[reset + 1].event, Event::Digest(_)));
    assert_eq!(replay(&log).unwrap().len(), log.len());
}

#[test]
fn a_reset_that_the_log_does_not_have_is_caught() {
    let (log, reset) = with_resets();
    let without = log.iter().enumerate().filter(|(index, _)| *index != reset).map(|(_, entry)| entry.clone());
    let divergence = replay(&renumbered(without)).expect_err("must be caught");
    assert!(matches!(divergence.difference, Difference::ResetNotLogged { .. }), "{divergence}");
    assert_eq!(divergence.seq, reset as u64 + 1);
}

#[test]
fn a_reset_that_did_not_happen_is_caught() {
    let (log, reset) = with_resets();
    let twice = log.iter().flat_map(|entry| match entry.seq == log[reset].seq {
        true => vec![entry.clone(), entry.clone()],
        false => vec![entry.clone()],
    });
    let divergence = replay(&renumbered(twice)).expect_err("must be caught");
    assert_eq!(divergence.difference, Difference::ResetMissing);
}
