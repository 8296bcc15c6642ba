//! Sessions, as a debugger uses them: any position, from anywhere, has one state.

use lockstep::random::Random;
use lockstep::recording::{Arrival, Recording, Session};
use logchannel::{MachineDigest, Position};

use crate::harness::scale;
use crate::recorded::{shared, shared_soft};

fn digest(session: &mut Session) -> MachineDigest {
    session.digest().expect("a digest")
}

/// The state at each of some positions, by one run straight through.
fn straight(path: &std::path::Path, places: &[u64]) -> Vec<MachineDigest> {
    let mut session = Session::open(path).expect("a session");
    places
        .iter()
        .map(|place| {
            assert_eq!(session.run_to(Position::at(*place)).expect("it runs"), Arrival::There);
            digest(&mut session)
        })
        .collect()
}

#[test]
fn a_position_has_one_state_whichever_way_one_comes() {
    for path in [shared(), shared_soft()].into_iter().flatten() {
        wander(path);
    }
}

fn wander(path: &std::path::Path) {
    let mut session = Session::open(path).expect("a session");
    let mut random = Random::new(11);
    let end = session.end().count;
    let mut places: Vec<u64> = (0..40 * scale()).map(|_| random.below(end)).collect();
    places.sort_unstable();
    let states = straight(path, &places);
    for _ in 0..60 * scale() {
        let chosen = random.below(places.len() as u64) as usize;
        assert_eq!(session.seek(Position::at(places[chosen])).expect("it goes there"), Arrival::There);
        assert_eq!(session.position().count, places[chosen]);
        assert!(digest(&mut session) == states[chosen], "position {}", places[chosen]);
        if random.below(3) == 0 {
            session.snapshot().expect("a snapshot");
        }
    }
}

#[test]
fn stepping_back_retraces_the_steps() {
    for path in [shared(), shared_soft()].into_iter().flatten() {
        retrace(path);
    }
}

fn retrace(path: &std::path::Path) {
    let mut session = Session::open(path).expect("a session");
    let from = session.end().count / 2;
    session.seek(Position::at(from)).expect("it goes there");
    let mut states = vec![digest(&mut session)];
    for _ in 0..30 {
        assert_eq!(session.step(1).expect("a step"), Arrival::There);
        states.push(digest(&mut session));
    }
    assert_eq!(session.position().count, from + 30);
    for steps in (0..30).rev() {
        assert_eq!(session.step_back(1).expect("a step back"), Arrival::There);
        assert_eq!(session.position().count, from + steps as u64);
        assert!(digest(&mut session) == states[steps], "{steps} steps on");
    }
    // Further than there is.
    assert_eq!(session.step_back(u64::MAX).expect("to the beginning"), Arrival::There);
    let first = Recording::open(path).expect("a recording").checkpoints()[0].at;
    assert_eq!(session.position(), first);
}

#[test]
fn the_end_of_the_log_and_interruptions_are_said() {
    let Some(path) = shared() else { return };
    let mut session = Session::open(path).expect("a session");
    session.interrupter().store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(session.run_to_end().expect("it runs"), Arrival::Interrupted);
    let end = session.run_to_end().expect("it runs");
    assert!(matches!(end, Arrival::Ended(_)), "{end:?}");
    assert_eq!(session.executed(), session.recording().last_seq());
    assert_eq!(session.position(), session.end());
    // And back from there.
    session.seek(Position::at(1)).expect("back");
    assert_eq!(session.position().count, 1);
}
