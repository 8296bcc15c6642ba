//! A guest that resets its machine: what it is started again with, and how often it may be.
//!
//! A reset is a function of the machine's own state. Both halves of a pair, and a replay, come to it at the
//! same position and start the guest again by themselves: nothing of it travels but the entry that says so.

use std::collections::VecDeque;
use std::sync::Arc;

use logchannel::OnReset;
use serde::{Deserialize, Serialize};

use crate::boot::{BootError, GuestImage};
use crate::engine::CpuState;
use crate::memory::Ram;

/// Virtual time in which resets are counted.
const WINDOW_NS: u64 = 60_000_000_000;

/// Puts a guest into zeroed memory; the vCPU's first state.
pub type Load = dyn Fn(&Ram) -> Result<CpuState, BootError> + Send + Sync;

/// What a machine does when its guest resets it. No part of its state: both halves of a pair are configured
/// alike.
#[derive(Clone)]
pub struct ResetPolicy {
    on_reset: OnReset,
    load: Option<Arc<Load>>,
}

impl Default for ResetPolicy {
    /// The machine ends.
    fn default() -> Self {
        Self { on_reset: OnReset::Stop, load: None }
    }
}

impl ResetPolicy {
    /// The policy of a guest that is started with `image`; without one a reset that restarts is an error.
    pub fn new(on_reset: OnReset, image: Option<GuestImage>) -> Self {
        let load = image.map(|image| {
            let load: Arc<Load> =
                Arc::new(move |ram: &Ram| crate::boot::load(ram.map(), ram.bytes(), &image.files()));
            load
        });
        Self { on_reset, load }
    }

    /// The policy of a guest that is put into memory in a way of its own.
    pub fn loading(on_reset: OnReset, load: Arc<Load>) -> Self {
        Self { on_reset, load: Some(load) }
    }

    /// What becomes of the guest.
    pub fn on_reset(&self) -> OnReset {
        self.on_reset
    }

    /// What puts the guest into memory, if that is known.
    pub fn load(&self) -> Option<&Load> {
        self.load.as_deref()
    }
}

/// What of the resets is state of the machine: saved, restored, digested.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetState {
    /// The guest is held in reset until the disk requests in flight are done.
    pub held: bool,
    /// Resets since power-on.
    pub count: u64,
    /// Virtual time of each of the last minute, oldest first; no more than the limit.
    recent_ns: VecDeque<u64>,
}

impl ResetState {
    /// Counts a reset at `now_ns`; false when it is one too many.
    pub fn admit(&mut self, now_ns: u64, limit: u32) -> bool {
        if limit > 0 {
            while self.recent_ns.front().is_some_and(|at| at.saturating_add(WINDOW_NS) <= now_ns) {
                self.recent_ns.pop_front();
            }
            if self.recent_ns.len() as u64 >= u64::from(limit) {
                return false;
            }
            self.recent_ns.push_back(now_ns);
        }
        self.count += 1;
        true
    }
}

#[cfg(test)]
#[path = "restart_tests.rs"]
mod tests;
