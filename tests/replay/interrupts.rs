//! Interrupts at random positions, recorded and replayed.

use lockstep::engine::EngineKind;
use logchannel::{Event, EventKind, LogEntry, Output};
use replay::{ClockPolicy, Machine as _, Offer, Recorded, Recorder, Stop};

use crate::interrupt_guest::{
    CARD_COUNT, FAULT_COUNT, QUEUE_SIZE, ROUNDS, SERIAL_COUNT, TICKS, WORKS, Work, counter, machine,
};
use crate::machine::{State, engine_kind, on_engines};
use crate::replaying::{How, replay};
use crate::rng::Rng;
use crate::signals::in_the_rain;
use crate::worker::{Repeat, seeds};

/// More than the guest's setup takes: exits, and instructions.
fn setup() -> u64 {
    if engine_kind() == EngineKind::Kvm { 100 } else { 400 }
}

struct Run {
    log: Vec<LogEntry>,
    outputs: Vec<Output>,
    /// What was sent to the guest and accepted.
    frames: Vec<Vec<u8>>,
    console: Vec<u8>,
    last: State,
}

/// Lets random inputs in at random stops.
fn record(seed: u64, work: Work, digests: bool) -> Run {
    let (mut rng, mut digest_rng) = (Rng::new(seed, 10 + work as u64), Rng::new(seed, 20));
    let policy = ClockPolicy::Host { bound_ns: *rng.pick(&[10_000, 300_000, 2_000_000]) };
    let mut recorder = Recorder::new(machine(work), policy, 0);
    let mut out: Vec<Recorded> = Vec::new();
    let (mut frames, mut console, mut host_ns) = (Vec::new(), Vec::new(), 0);
    for _ in 0..rng.within(300, 900) {
        let stop = recorder.advance(&mut out).expect("the guest runs");
        assert!(!matches!(stop, Stop::Ended(_)), "{stop:?}");
        host_ns += rng.below(*rng.clone().pick(&[1_000, 50_000, 1_500_000]));
        if rng.chance(300) {
            recorder.clock(host_ns, &mut out).expect("the clock");
        }
        // What arrives before the FIFO is on is lost when it is switched on.
        if rng.chance(40) && recorder.machine().position().count > setup() {
            let len = rng.within(1, 16) as usize;
            let bytes = rng.bytes(len);
            let offer = recorder.offer(Event::ConsoleRx(bytes.clone()), &mut out).expect("console input");
            if offer == Offer::Applied {
                console.extend(bytes);
            }
        }
        if rng.chance(40) {
            let len = rng.within(14, 1514) as usize;
            let frame = rng.bytes(len);
            let offer = recorder.offer(Event::NetRx(frame.clone()), &mut out).expect("a frame");
            if offer == Offer::Applied {
                frames.push(frame);
            }
        }
        if digest_rng.chance(60) && digests {
            recorder.digest(&mut out).expect("a digest");
        }
    }
    recorder.shutdown(&mut out).expect("a last digest");
    let outputs = out.iter().filter_map(|recorded| recorded.output.clone()).collect();
    let log = out.into_iter().map(|recorded| recorded.entry).collect();
    Run { log, outputs, frames, console, last: State::of(&mut recorder.into_machine()) }
}

/// The guest sent back what it was sent, and nothing else: all but what was still under way at the end.
fn check_echoes(run: &Run) {
    let (mut frames, mut console) = (Vec::new(), Vec::new());
    for output in &run.outputs {
        match output {
            Output::Net(frame) => frames.push(frame.clone()),
            Output::Console(bytes) => console.extend_from_slice(bytes),
            Output::Disk(_) => panic!("there is no disk"),
        }
    }
    assert!(run.frames.starts_with(&frames), "frames come back in order");
    assert!(run.frames.len() - frames.len() <= QUEUE_SIZE as usize);
    assert!(run.console.starts_with(&console), "bytes come back in order");
    // A FIFO that was not read, and a line that was not ended.
    assert!(run.console.len() - console.len() <= 16 + 256);
}

fn assert_replays(run: &Run, work: Work, how: How) {
    let mut replay =
        replay(&run.log, machine(work), how).unwrap_or_else(|divergence| panic!("{how:?}: {divergence}"));
    assert!(replay.outputs == run.outputs, "{how:?}: outputs differ");
    assert_eq!(replay.state().diff(&run.last), Vec::<String>::new(), "{how:?}");
}

#[test]
fn interrupts_at_random_positions_replay_exactly() {
    on_engines("interrupts", || {
        for work in WORKS {
            let (mut ticks, mut serial, mut card) = (0, 0, 0);
            for seed in seeds().into_iter().step_by(2) {
                let mut repeat =
                    Repeat::new("interrupts::interrupts_at_random_positions_replay_exactly", seed);
                let run = record(seed, work, true);
                repeat.log.clone_from(&run.log);
                check_echoes(&run);
                let (rounds, faults) = (counter(&run.last, ROUNDS), counter(&run.last, FAULT_COUNT));
                assert!(rounds - faults <= 1, "{work:?}: {faults} exceptions in {rounds} rounds");
                ticks += counter(&run.last, TICKS);
                serial += counter(&run.last, SERIAL_COUNT);
                card += counter(&run.last, CARD_COUNT);
                assert_replays(&run, work, How::Whole);
                match seed % 3 {
                    0 => assert_replays(&run, work, How::Observed),
                    1 => assert_replays(&run, work, How::Batches(seed)),
                    _ => {
                        let (wet, _signals) = in_the_rain(|| record(seed, work, true));
                        assert!(wet.log == run.log, "{work:?}: signals change the run");
                    }
                }
            }
            eprintln!("{work:?}: {ticks} timer, {serial} serial, {card} card interrupts");
            assert!(ticks > 0 && serial > 0 && card > 0, "{work:?}: every kind of interrupt was taken");
        }
    });
}

/// A digest completes the exit at which it is taken, but must not open or close the door for an interrupt
/// there.
#[test]
fn digests_do_not_move_interrupts() {
    on_engines("digests and interrupts", || {
        for work in WORKS {
            for seed in seeds().into_iter().step_by(4) {
                let _repeat = Repeat::new("interrupts::digests_do_not_move_interrupts", seed);
                let entries = |run: &Run| {
                    let all = run.log.iter().filter(|entry| entry.event.kind() != EventKind::Digest);
                    all.map(|entry| (entry.at, entry.event.clone())).collect::<Vec<_>>()
                };
                let (with, without) = (record(seed, work, true), record(seed, work, false));
                let (a, b) = (entries(&with), entries(&without));
                let differs = a.iter().zip(&b).find(|(a, b)| a != b);
                assert_eq!(differs, None, "{work:?}: the first entry that differs");
                assert_eq!(with.last.diff(&without.last), Vec::<String>::new(), "{work:?}");
            }
        }
    });
}
