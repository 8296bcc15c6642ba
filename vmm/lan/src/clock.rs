//! Host time of the network thread: nanoseconds since it started.

use std::time::Instant;

/// A monotonic clock that counts from its making.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    /// Starts at 0.
    pub(crate) fn start() -> Self {
        Self(host_now())
    }

    /// Nanoseconds since `start`.
    #[allow(clippy::cast_possible_truncation, reason = "584 years")]
    pub(crate) fn now_ns(&self) -> u64 {
        host_now().duration_since(self.0).as_nanos() as u64
    }
}

// The network is the host world: its ageing and TCP timers run on host time.
#[allow(clippy::disallowed_methods)]
fn host_now() -> Instant {
    Instant::now()
}
