//! Which claimants are connected to a VM, and for how long a holder that is not may still return.
//!
//! ```text
//!   holder connects ──▶ here ── its last connection ends ──▶ may return for `grace` ──▶ given up by starts
//!                        ▲                                        │    ▲
//!                        └────────────── connects again ──────────┘    └── the server started
//! ```
//!
//! Only claims of a start ask this. A half of a pair knows that its peer is gone, or holds the generation.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::clock;
use crate::test_and_set::Claimant;

#[derive(Debug)]
struct State {
    connections: BTreeMap<Claimant, usize>,
    holder: Option<Claimant>,
    absent_since: Instant,
}

/// The claimants of one VM.
#[derive(Debug)]
pub(crate) struct Presence {
    grace: Duration,
    state: Mutex<State>,
}

impl Presence {
    /// Nobody is connected; `holder` may have been until now.
    pub(crate) fn new(holder: Option<Claimant>, grace: Duration) -> Self {
        let state = State { connections: BTreeMap::new(), holder, absent_since: clock::now() };
        Self { grace, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The generation has another holder.
    pub(crate) fn set_holder(&self, holder: Claimant) {
        let mut state = self.lock();
        (state.holder, state.absent_since) = (Some(holder), clock::now());
    }

    /// Notes that one more connection belongs to `claimant`.
    pub(crate) fn connect(&self, claimant: Claimant) {
        *self.lock().connections.entry(claimant).or_insert(0) += 1;
    }

    /// Takes back one `connect`.
    pub(crate) fn disconnect(&self, claimant: Claimant) {
        let mut state = self.lock();
        match state.connections.get_mut(&claimant) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                state.connections.remove(&claimant);
                if state.holder == Some(claimant) {
                    state.absent_since = clock::now();
                }
            }
        }
    }

    /// Whether the holder is connected; if it is not, for how long it may still return.
    pub(crate) fn holder(&self) -> (bool, Duration) {
        let state = self.lock();
        match state.holder {
            None => (false, Duration::ZERO),
            Some(holder) if state.connections.contains_key(&holder) => (true, Duration::ZERO),
            Some(_) => {
                let absent = clock::now().saturating_duration_since(state.absent_since);
                (false, self.grace.saturating_sub(absent))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn a_holder_may_return_after_a_start_and_after_its_last_connection() {
        let presence = Presence::new(Some(7), LONG);
        assert!(!presence.holder().0 && presence.holder().1 > Duration::ZERO, "the server started");
        presence.connect(7);
        presence.connect(7);
        assert_eq!(presence.holder(), (true, Duration::ZERO));
        presence.disconnect(7);
        assert_eq!(presence.holder(), (true, Duration::ZERO));
        presence.disconnect(7);
        assert!(!presence.holder().0 && presence.holder().1 > Duration::ZERO);
        presence.connect(8);
        assert!(!presence.holder().0, "others do not count");
        presence.set_holder(8);
        assert_eq!(presence.holder(), (true, Duration::ZERO));
    }

    #[test]
    fn no_holder_and_no_grace_mean_no_wait() {
        assert_eq!(Presence::new(None, LONG).holder(), (false, Duration::ZERO));
        assert_eq!(Presence::new(Some(7), Duration::ZERO).holder(), (false, Duration::ZERO));
    }
}
