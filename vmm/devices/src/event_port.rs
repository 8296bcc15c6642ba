//! The event port: a paravirtual device for guests that poll, so that one exit does everything (README,
//! "Event port").
//!
//! A guest shares one page of RAM with the device, writes its requests into virtqueues, and writes one
//! command:
//!
//! ```text
//!  POLL ─▶ all queues serviced, page updated ─▶ guest runs on
//!  WAIT ─▶ all queues serviced, page updated ─▶ guest stopped ─ input or wake_at ─▶ guest runs on
//! ```

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use crate::clock::Clock;
use crate::layout::{
    PAGE_BYTES, SHARED_INPUTS_APPLIED, SHARED_INPUTS_SEEN, SHARED_NOW_NS, SHARED_POWER_BUTTON,
    SHARED_WAKE_AT_NS,
};

/// `PAGE_BYTES`, as the length of a slice.
const PAGE_LEN: usize = 4096;

/// What a guest that gave the WAIT command waits for, besides an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// Virtual time at which it goes on, nanoseconds since power-on; none if only an input can wake it.
    pub deadline_ns: Option<u64>,
}

/// State of the event port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EventPort {
    page: Option<u64>,
    inputs_applied: u64,
    waiting: bool,
}

impl EventPort {
    /// Sets the shared page. A page outside RAM is none: the guest sees that nothing gets written.
    pub(crate) fn set_page<M: GuestMemory>(&mut self, mem: &M, frame: u32, clock: &Clock, button: bool) {
        let address = u64::from(frame) * PAGE_BYTES;
        let in_ram = mem.check_range(GuestAddress(address), PAGE_LEN, Permissions::ReadWrite);
        self.page = in_ram.then_some(address);
        self.publish(mem, clock, button);
    }

    /// Counts one applied input.
    pub(crate) fn count_input(&mut self) {
        self.inputs_applied = self.inputs_applied.wrapping_add(1);
    }

    /// Writes the device's fields of the shared page; `button` is the power button's status.
    pub(crate) fn publish<M: GuestMemory>(&self, mem: &M, clock: &Clock, button: bool) {
        let Some(page) = self.page else { return };
        let mut times = [0; 16];
        times[..8].copy_from_slice(&clock.now_ns.to_le_bytes());
        times[8..].copy_from_slice(&clock.wall_base_ns.to_le_bytes());
        // The page was checked to be RAM when it was set, and RAM does not go away.
        let _ = mem.write_slice(&times, GuestAddress(page + SHARED_NOW_NS));
        let applied = self.inputs_applied.to_le_bytes();
        let _ = mem.write_slice(&applied, GuestAddress(page + SHARED_INPUTS_APPLIED));
        let button = u64::from(button).to_le_bytes();
        let _ = mem.write_slice(&button, GuestAddress(page + SHARED_POWER_BUTTON));
    }

    /// Begins a wait, unless what it would wait for is there already.
    pub(crate) fn begin_wait<M: GuestMemory>(&mut self, mem: &M, clock: &Clock) {
        self.waiting = true;
        self.wake(mem, clock);
    }

    /// Ends the wait if what it waits for is there. Called after whatever may satisfy it.
    pub(crate) fn wake<M: GuestMemory>(&mut self, mem: &M, clock: &Clock) {
        if self.waiting && self.satisfied(mem, clock) {
            self.waiting = false;
        }
    }

    /// The wait under way.
    pub(crate) fn waiting<M: GuestMemory>(&self, mem: &M) -> Option<Wait> {
        if !self.waiting {
            return None;
        }
        let deadline_ns = self.field(mem, SHARED_WAKE_AT_NS).filter(|&at| at != u64::MAX);
        Some(Wait { deadline_ns })
    }

    /// Without a shared page nothing could ever satisfy a wait, so none begins.
    fn satisfied<M: GuestMemory>(&self, mem: &M, clock: &Clock) -> bool {
        let Some(seen) = self.field(mem, SHARED_INPUTS_SEEN) else { return true };
        let Some(wake_at) = self.field(mem, SHARED_WAKE_AT_NS) else { return true };
        seen != self.inputs_applied || clock.now_ns >= wake_at
    }

    fn field<M: GuestMemory>(&self, mem: &M, offset: u64) -> Option<u64> {
        let mut value = [0; 8];
        mem.read_slice(&mut value, GuestAddress(self.page? + offset)).ok()?;
        Some(u64::from_le_bytes(value))
    }
}
