//! The virtual clock of an engine whose positions are exits: it stands still, moves when a `Clock` event sets
//! it, and takes one small step whenever the guest reads time, so that no two reads see the same instant and
//! a guest that spins on a counter gets ahead.

use serde::{Deserialize, Serialize};

use crate::layout::TIME_READ_STEP_NS;

/// Virtual time. Never decreases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Clock {
    /// Nanoseconds since power-on.
    pub now_ns: u64,
    /// Unix time at power-on, nanoseconds.
    pub wall_base_ns: u64,
}

impl Clock {
    pub(crate) fn new(wall_base_ns: u64) -> Self {
        Self { now_ns: 0, wall_base_ns }
    }

    /// The instant that the guest's next read of time sees.
    pub(crate) fn next_read_ns(&self) -> u64 {
        self.now_ns.saturating_add(TIME_READ_STEP_NS)
    }
}
