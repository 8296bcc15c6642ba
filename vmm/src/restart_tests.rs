//! How often a guest may reset its machine.

use super::*;

const SECOND: u64 = 1_000_000_000;

#[test]
fn five_resets_a_minute_are_taken_and_a_sixth_is_not() {
    let mut state = ResetState::default();
    for second in 0..5 {
        assert!(state.admit(second * SECOND, 5), "{second}");
    }
    assert!(!state.admit(WINDOW_NS - 1, 5));
    assert_eq!(state.count, 5);
    // The first is a minute ago.
    assert!(state.admit(WINDOW_NS, 5));
    assert!(!state.admit(WINDOW_NS + SECOND - 1, 5));
    assert!(state.admit(WINDOW_NS + SECOND, 5));
    assert_eq!(state.count, 7);
}

#[test]
fn without_a_limit_nothing_is_kept() {
    let mut state = ResetState::default();
    assert!((0..10_000).all(|_| state.admit(7, 0)));
    assert_eq!((state.count, state.recent_ns.len()), (10_000, 0));
}

#[test]
fn times_at_the_end_of_time_do_no_harm() {
    let mut state = ResetState::default();
    assert!(state.admit(u64::MAX, 1));
    assert!(!state.admit(u64::MAX - 1, 1));
}
