//! Host time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The host's monotonic clock, in nanoseconds since it was made.
#[derive(Debug, Clone, Copy)]
pub struct HostClock {
    start: Instant,
}

impl HostClock {
    /// Starts at 0.
    #[allow(clippy::new_without_default, clippy::disallowed_methods)]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    /// Nanoseconds since it was made.
    #[allow(clippy::disallowed_methods)]
    pub fn now_ns(&self) -> u64 {
        Instant::now().duration_since(self.start).as_nanos() as u64
    }
}

/// Unix time in nanoseconds: read once, when a machine is first powered on.
#[allow(clippy::disallowed_methods)]
pub fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_nanos() as u64
}
