//! Who may use a disk: of each claimant, its newest connection only.
//!
//! A client that loses its connection repeats on a new one what was not answered. What the old connection
//! still brings must then be executed before the repetitions, or never: executed later, it would undo a newer
//! write to the same sectors. The generation does not tell them apart, it is the same. So each claimant has
//! one seat at a disk, and `Open` on a newer connection takes it:
//!
//! ```text
//!   open:     newest = mine ─ nobody inside? (wait) ─ Opened
//!   request:  newest == mine? ─ inside ─ fence … pwrite ─ outside
//! ```
//!
//! Both first steps are made under the seat's lock. So a request of an older connection was inside before
//! `newest` changed, and then `Opened` waits for it, or it finds that it comes too late. The lock is not held
//! during I/O, so that one who waits for storage that hangs can be superseded too.
//!
//! Invariants: `newest` of a seat never decreases; a seat is forgotten only when its newest connection ends,
//! and then nobody is inside. Connections that still hold a forgotten seat are not its newest.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::test_and_set::Claimant;

/// A connection's number: connections accepted later have greater ones.
pub(crate) type Number = u64;

/// A newer connection of the same claimant has the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Superseded;

#[derive(Debug)]
struct Seat {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    newest: Number,
    /// Whether a request is being executed. A connection executes one at a time, and a newer one begins only
    /// when that of the older one is finished.
    inside: bool,
}

/// The seats at one disk, by claimant.
#[derive(Debug, Default)]
pub(crate) struct Seats(Mutex<BTreeMap<Claimant, Arc<Seat>>>);

impl Seats {
    /// Gives the seat of `claimant` to `connection`, and says whom it had before. `Place::settle` must follow
    /// before the first request.
    pub(crate) fn take(
        &self,
        claimant: Claimant,
        connection: Number,
    ) -> Result<(Place, Option<Number>), Superseded> {
        let mut seats = lock(&self.0);
        let place = |seat: &Arc<Seat>| Place { claimant, connection, seat: Arc::clone(seat) };
        if let Some(seat) = seats.get(&claimant) {
            let mut state = lock(&seat.state);
            if state.newest > connection {
                return Err(Superseded);
            }
            let older = std::mem::replace(&mut state.newest, connection);
            seat.changed.notify_all();
            return Ok((place(seat), Some(older)));
        }
        let state = Mutex::new(State { newest: connection, inside: false });
        let seat = Arc::new(Seat { state, changed: Condvar::new() });
        let place = place(&seat);
        seats.insert(claimant, seat);
        Ok((place, None))
    }

    /// Ends a connection's use of the disk. Nothing of it may be inside.
    pub(crate) fn leave(&self, place: &Place) {
        let mut seats = lock(&self.0);
        if !place.is_superseded() {
            seats.remove(&place.claimant);
        }
    }
}

/// What a connection has of a seat.
#[derive(Debug)]
pub(crate) struct Place {
    claimant: Claimant,
    connection: Number,
    seat: Arc<Seat>,
}

impl Place {
    /// Whose seat it is.
    pub(crate) fn claimant(&self) -> Claimant {
        self.claimant
    }

    /// Waits until nothing of an older connection is being executed.
    pub(crate) fn settle(&self) -> Result<(), Superseded> {
        let mut state = self.newest()?;
        while state.inside {
            state = self.seat.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            if state.newest != self.connection {
                return Err(Superseded);
            }
        }
        Ok(())
    }

    /// Admits one request. Until the result is dropped, no newer connection gets beyond `settle`.
    pub(crate) fn enter(&self) -> Result<Inside<'_>, Superseded> {
        let mut state = self.newest()?;
        assert!(!state.inside, "two requests inside: one of them came before its place was settled");
        state.inside = true;
        Ok(Inside(self))
    }

    /// Whether a newer connection has the seat.
    pub(crate) fn is_superseded(&self) -> bool {
        self.newest().is_err()
    }

    fn newest(&self) -> Result<MutexGuard<'_, State>, Superseded> {
        let state = lock(&self.seat.state);
        if state.newest == self.connection { Ok(state) } else { Err(Superseded) }
    }
}

/// A request that is being executed.
#[derive(Debug)]
pub(crate) struct Inside<'a>(&'a Place);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let Place { seat, connection, .. } = self.0;
        let mut state = lock(&seat.state);
        state.inside = false;
        // Only a newer connection waits.
        if state.newest != *connection {
            seat.changed.notify_all();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "seat_tests.rs"]
mod tests;
