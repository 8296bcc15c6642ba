//! Host time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// The host's monotonic clock (CLOCK_MONOTONIC), in nanoseconds. All processes of a host read the same.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostClock;

impl HostClock {
    /// Now.
    #[allow(clippy::cast_possible_truncation, reason = "584 years")]
    pub fn now_ns(self) -> u64 {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has CLOCK_MONOTONIC");
        Duration::from(now).as_nanos() as u64
    }
}

/// Unix time in nanoseconds: read once, when a machine is first powered on.
#[allow(clippy::disallowed_methods)]
#[allow(clippy::cast_possible_truncation, reason = "584 years")]
pub fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_nanos() as u64
}
