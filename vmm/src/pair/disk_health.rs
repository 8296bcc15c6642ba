//! When the disk server last answered this process: for `status`, and for a backup that is greeted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::Serialize;

use crate::io::clock::{HostClock, wall_ns};

/// Silence beyond this is no slow answer any more: the generation is looked at every 500 ms.
const SILENT_NS: u64 = 3_000_000_000;

/// What was last heard of the disk server. Shared by the threads that ask it.
#[derive(Debug)]
pub struct DiskHealth {
    clock: HostClock,
    /// Host time of the last answer; at first, of the start.
    answered_ns: AtomicU64,
    asked: AtomicBool,
    failed: AtomicBool,
}

/// The disk server, for `status`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiskServerStatus {
    /// Where it is, as given to `--disk-server`.
    pub address: String,
    /// Whether it answers; null before it was first asked.
    pub answers: Option<bool>,
    /// Seconds since its last answer, or since this process started.
    pub silent_s: f64,
    /// While it does not answer: since when, Unix time in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silent_since: Option<u64>,
}

impl Default for DiskHealth {
    fn default() -> Self {
        let clock = HostClock;
        let answered_ns = AtomicU64::new(clock.now_ns());
        Self { clock, answered_ns, asked: AtomicBool::new(false), failed: AtomicBool::new(false) }
    }
}

impl DiskHealth {
    /// The server answered, whatever it said.
    pub fn answered(&self) {
        self.answered_ns.fetch_max(self.clock.now_ns(), Ordering::Relaxed);
        self.failed.store(false, Ordering::Relaxed);
        self.asked.store(true, Ordering::Relaxed);
    }

    /// The server could not be reached, or did not answer in time.
    pub fn failed(&self) {
        self.failed.store(true, Ordering::Relaxed);
        self.asked.store(true, Ordering::Relaxed);
    }

    /// Whether the server is known not to answer.
    pub fn is_silent(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
            || self.asked.load(Ordering::Relaxed) && self.silent_ns() > SILENT_NS
    }

    /// When the server last answered, host nanoseconds; at first, when this was made.
    pub fn answered_ns(&self) -> u64 {
        self.answered_ns.load(Ordering::Relaxed)
    }

    fn silent_ns(&self) -> u64 {
        self.clock.now_ns().saturating_sub(self.answered_ns())
    }

    /// The server at `address`, for people.
    pub fn status(&self, address: &str) -> DiskServerStatus {
        let silent_ns = self.silent_ns();
        let is_silent = self.is_silent();
        DiskServerStatus {
            address: address.to_owned(),
            answers: self.asked.load(Ordering::Relaxed).then_some(!is_silent),
            silent_s: (silent_ns / 1_000_000) as f64 / 1e3,
            silent_since: is_silent.then(|| wall_ns().saturating_sub(silent_ns) / 1_000_000_000),
        }
    }
}
