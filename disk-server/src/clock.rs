//! Host time, for statistics and for deadlines of calls: it decides nothing that a machine could see.

use std::time::Instant;

/// The host's monotonic clock.
#[allow(clippy::disallowed_methods)]
pub(crate) fn now() -> Instant {
    Instant::now()
}
