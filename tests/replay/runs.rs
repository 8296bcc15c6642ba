//! Random runs: record, replay in another virtual machine, compare everything.

use logchannel::EventKind;

use crate::machine::{minikv, on_engines};
use crate::recording::{Options, Recording, Session, record};
use crate::replaying::{How, assert_same};
use crate::rng::Rng;
use crate::signals::in_the_rain;
use crate::worker::{Repeat, seeds};
use crate::world::DISK_BYTES;

fn machine() -> crate::machine::Vm {
    minikv(DISK_BYTES as u64)
}

fn summary(recording: &Recording) -> String {
    let kinds = EventKind::ALL.iter().map(|&kind| (kind.name(), recording.count(kind)));
    let counts: Vec<_> =
        kinds.filter(|(_, count)| *count > 0).map(|(name, n)| format!("{n} {name}")).collect();
    format!("{} positions, {} answers: {}", recording.positions(), recording.answers, counts.join(", "))
}

#[test]
fn random_runs_replay_exactly() {
    on_engines("random runs", || {
        for seed in seeds() {
            let mut repeat = Repeat::new("runs::random_runs_replay_exactly", seed);
            let options = Options::default();
            let recording = record(seed, &options);
            repeat.log.clone_from(&recording.log);
            eprintln!("seed {seed}: {}", summary(&recording));
            assert_same(&recording, machine(), How::Whole);
            match seed % 3 {
                0 => assert_same(&recording, machine(), How::Batches(seed)),
                1 => assert_same(&recording, machine(), How::Observed),
                _ => {
                    let ((), signals) =
                        in_the_rain(|| assert_same(&recording, machine(), How::Batches(seed)));
                    eprintln!("seed {seed}: {signals} signals during the replay");
                }
            }
        }
    });
}

#[test]
fn a_run_is_a_function_of_its_seed_whatever_signals_arrive() {
    on_engines("runs in the rain", || {
        for seed in seeds().into_iter().step_by(2) {
            let mut repeat =
                Repeat::new("runs::a_run_is_a_function_of_its_seed_whatever_signals_arrive", seed);
            let dry = record(seed, &Options::default());
            repeat.log.clone_from(&dry.log);
            let (wet, signals) = in_the_rain(|| record(seed, &Options::default()));
            eprintln!("seed {seed}: {signals} signals during {} positions", wet.positions());
            let differs = dry.log.iter().zip(&wet.log).find(|(a, b)| a != b);
            assert_eq!(differs, None, "the first entry that differs");
            assert_eq!(dry.log.len(), wet.log.len());
            assert_eq!(wet.last.diff(&dry.last), Vec::<String>::new());
            assert_same(&wet, machine(), How::Whole);
        }
    });
}

#[test]
fn digests_leave_no_trace_in_the_run() {
    on_engines("digests leave no trace", || {
        for seed in seeds().into_iter().step_by(4) {
            let _repeat = Repeat::new("runs::digests_leave_no_trace_in_the_run", seed);
            let with = record(seed, &Options { dense: true, ..Options::default() });
            let without = record(seed, &Options { digests: false, ..Options::default() });
            let entries = |recording: &Recording| {
                let all = recording.log.iter().filter(|entry| entry.event.kind() != EventKind::Digest);
                all.map(|entry| (entry.at, entry.event.clone())).collect::<Vec<_>>()
            };
            let (a, b) = (entries(&with), entries(&without));
            let differs = a.iter().zip(&b).find(|(a, b)| a != b);
            assert_eq!(differs, None, "the first entry that differs");
            assert_eq!(a.len(), b.len());
            assert_eq!(with.last.diff(&without.last), Vec::<String>::new());
        }
    });
}

/// What all of this is for: clients keep their connections and get the right answers.
#[test]
fn a_replica_goes_live_in_the_middle_of_a_run() {
    on_engines("going live", || {
        for seed in seeds().into_iter().step_by(2) {
            let mut repeat = Repeat::new("runs::a_replica_goes_live_in_the_middle_of_a_run", seed);
            let mut rng = Rng::new(seed, 4);
            let mut session = Session::new(seed, &Options::default());
            let mut generation = 2;
            let mut next = rng.within(1, 300);
            // With a virtual clock, the guest would give up a peer before that one could send again what got
            // lost.
            let most_lost = if session.world.plan.bound_ns.is_some() { 20 } else { 0 };
            for step in 0.. {
                if !session.step() {
                    break;
                }
                if step == next {
                    session.fail_over(rng.within(0, most_lost) as usize, generation);
                    generation += 1;
                    next += rng.within(1, 400);
                }
            }
            let recording = session.finish();
            repeat.log.clone_from(&recording.log);
            eprintln!("seed {seed}: went live {} times; {}", generation - 2, summary(&recording));
            assert_same(&recording, machine(), How::Batches(seed));
        }
    });
}
