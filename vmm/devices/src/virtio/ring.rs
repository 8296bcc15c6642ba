//! One split virtqueue (virtio 1.2, 2.7) as its device sees it, on top of `virtio_queue::Queue`.
//!
//! `virtio_queue` ends a chain silently where a guest made it wrong. Here such a chain is an error, after
//! which the device asks to be reset: a chain that loops, leaves the table, nests indirect tables, has a
//! device-writable buffer before a readable one, or more descriptors than the queue has entries. One service
//! takes at most as many chains as the queue has entries, whatever the rings say.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::layout::VIRTQUEUE_SIZE;

/// A virtqueue that the device cannot go on with; why, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the available ring claims more entries than the queue has")]
    AvailableIndex,
    #[error("a ring is outside RAM")]
    Rings,
    #[error("a descriptor chain loops, leaves its table, or nests indirect tables")]
    Chain,
    #[error("a device-readable buffer follows a device-writable one")]
    Order,
    #[error("a buffer is outside RAM")]
    Buffer,
    #[error("a request has no place for its status")]
    NoStatus,
}

/// One buffer of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Segment {
    pub address: u64,
    pub len: u32,
}

/// The buffers of one chain. Kept and refilled, so that servicing a queue does not allocate.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    pub head: u16,
    pub readable: Vec<Segment>,
    pub writable: Vec<Segment>,
    pub readable_len: u64,
    pub writable_len: u64,
}

impl Chain {
    fn clear(&mut self, head: u16) {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        self.readable_len = 0;
        self.writable_len = 0;
    }
}

/// Copies `out.len()` bytes that begin `skip` bytes into `segments`. The caller checked that they hold so
/// many.
pub(crate) fn gather<M: GuestMemory>(
    mem: &M,
    segments: &[Segment],
    skip: u64,
    out: &mut [u8],
) -> Result<(), Broken> {
    let (mut skip, mut done) = (skip, 0);
    for segment in segments {
        let len = u64::from(segment.len);
        if skip >= len {
            skip -= len;
            continue;
        }
        let take = usize::try_from(len - skip).unwrap_or(usize::MAX).min(out.len() - done);
        let address = GuestAddress(segment.address.checked_add(skip).ok_or(Broken::Buffer)?);
        mem.read_slice(&mut out[done..done + take], address).map_err(|_| Broken::Buffer)?;
        (skip, done) = (0, done + take);
        if done == out.len() {
            break;
        }
    }
    Ok(())
}

/// Copies `data` to where `segments` begin after `skip` bytes. The caller checked that they hold so many.
pub(crate) fn scatter<M: GuestMemory>(
    mem: &M,
    segments: &[Segment],
    skip: u64,
    data: &[u8],
) -> Result<(), Broken> {
    let (mut skip, mut done) = (skip, 0);
    for segment in segments {
        let len = u64::from(segment.len);
        if skip >= len {
            skip -= len;
            continue;
        }
        let take = usize::try_from(len - skip).unwrap_or(usize::MAX).min(data.len() - done);
        let address = GuestAddress(segment.address.checked_add(skip).ok_or(Broken::Buffer)?);
        mem.write_slice(&data[done..done + take], address).map_err(|_| Broken::Buffer)?;
        (skip, done) = (0, done + take);
        if done == data.len() {
            break;
        }
    }
    Ok(())
}

/// Which of the three parts of a virtqueue an address register names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Descriptors,
    Available,
    Used,
}

/// A virtqueue.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "RingState", try_from = "RingState")]
pub(crate) struct Ring {
    queue: Queue,
}

impl Clone for Ring {
    fn clone(&self) -> Self {
        Self::try_from(RingState::from(self)).expect("a ring's own state is valid")
    }
}

impl Ring {
    pub(crate) fn new() -> Self {
        Self { queue: Queue::new(VIRTQUEUE_SIZE).expect("the size is a power of two") }
    }

    pub(crate) fn reset(&mut self) {
        self.queue.reset();
    }

    pub(crate) fn ready(&self) -> bool {
        self.queue.ready()
    }

    /// Sizes that virtio forbids are ignored.
    pub(crate) fn set_size(&mut self, size: u32) {
        if let Ok(size) = u16::try_from(size) {
            let _ = self.queue.try_set_size(size);
        }
    }

    /// Sets half of an address. Misaligned ones are ignored, so the queue never becomes ready with them.
    pub(crate) fn set_address(&mut self, part: Part, high: bool, half: u32) {
        let old = match part {
            Part::Descriptors => self.queue.desc_table(),
            Part::Available => self.queue.avail_ring(),
            Part::Used => self.queue.used_ring(),
        };
        let new = match high {
            false => (old & !0xffff_ffff) | u64::from(half),
            true => (old & 0xffff_ffff) | (u64::from(half) << 32),
        };
        let _ = match part {
            Part::Descriptors => self.queue.try_set_desc_table_address(GuestAddress(new)),
            Part::Available => self.queue.try_set_avail_ring_address(GuestAddress(new)),
            Part::Used => self.queue.try_set_used_ring_address(GuestAddress(new)),
        };
    }

    /// Makes the queue ready, if all its parts are in RAM.
    pub(crate) fn enable<M: GuestMemory>(&mut self, mem: &M) {
        self.queue.set_ready(true);
        if self.queue.avail_ring() == 0 || !self.queue.is_valid(mem) {
            self.queue.set_ready(false);
        }
    }

    pub(crate) fn disable(&mut self) {
        self.queue.set_ready(false);
    }

    pub(crate) fn set_event_idx(&mut self, negotiated: bool) {
        self.queue.set_event_idx(negotiated);
    }

    /// Most chains to take in one service.
    pub(crate) fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Whether the guest has made a chain available.
    pub(crate) fn has_chain<M: GuestMemory>(&self, mem: &M) -> bool {
        self.ready()
            && self
                .queue
                .avail_idx(mem, Ordering::Acquire)
                .is_ok_and(|index| index.0 != self.queue.next_avail())
    }

    /// Takes the next chain; false when there is none.
    pub(crate) fn pop<M: GuestMemory>(&mut self, mem: &M, out: &mut Chain) -> Result<bool, Broken> {
        let limit = usize::from(self.queue.size());
        let mut available = self.queue.iter(mem).map_err(|error| match error {
            virtio_queue::Error::InvalidAvailRingIndex => Broken::AvailableIndex,
            _ => Broken::Rings,
        })?;
        let Some(chain) = available.next() else { return Ok(false) };
        out.clear(chain.head_index());
        let mut more = true;
        for (count, descriptor) in chain.enumerate() {
            if count == limit {
                return Err(Broken::Chain);
            }
            more = descriptor.has_next();
            let segment = Segment { address: descriptor.addr().0, len: descriptor.len() };
            if segment.len == 0 {
                continue;
            }
            if descriptor.is_write_only() {
                out.writable_len += u64::from(segment.len);
                out.writable.push(segment);
            } else if out.writable.is_empty() {
                out.readable_len += u64::from(segment.len);
                out.readable.push(segment);
            } else {
                return Err(Broken::Order);
            }
        }
        if more { Err(Broken::Chain) } else { Ok(true) }
    }

    /// Puts the chain that `pop` gave last back.
    pub(crate) fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Returns a chain to the guest, with `len` bytes written to it.
    pub(crate) fn push_used<M: GuestMemory>(&mut self, mem: &M, head: u16, len: u32) -> Result<(), Broken> {
        self.queue.add_used(mem, head, len).map_err(|_| Broken::Rings)
    }

    /// Asks to be notified of the next chain, and tells whether the guest wants an interrupt for those
    /// returned since the last call (virtio 1.2, 2.7.7 and 2.7.10). Call it once after each batch that
    /// returned any.
    pub(crate) fn wants_interrupt<M: GuestMemory>(&mut self, mem: &M) -> Result<bool, Broken> {
        if self.queue.event_idx_enabled() {
            return self.queue.needs_notification(mem).map_err(|_| Broken::Rings);
        }
        let flags = GuestAddress(self.queue.avail_ring());
        let flags: u16 = mem.load(flags, Ordering::Relaxed).map_err(|_| Broken::Rings)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// With event indexes, asks the guest to notify the device of the next chain it makes available.
    pub(crate) fn ask_for_notification<M: GuestMemory>(&mut self, mem: &M) -> Result<(), Broken> {
        if self.queue.event_idx_enabled() {
            self.queue.enable_notification(mem).map_err(|_| Broken::Rings)?;
        }
        Ok(())
    }
}

/// What of a ring is saved: `virtio_queue::QueueState`, which serde does not know.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct RingState {
    next_avail: u16,
    next_used: u16,
    event_idx: bool,
    size: u16,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
}

impl From<&Ring> for RingState {
    fn from(ring: &Ring) -> Self {
        let state = ring.queue.state();
        Self {
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx: state.event_idx_enabled,
            size: state.size,
            ready: state.ready,
            descriptors: state.desc_table,
            available: state.avail_ring,
            used: state.used_ring,
        }
    }
}

impl From<Ring> for RingState {
    fn from(ring: Ring) -> Self {
        Self::from(&ring)
    }
}

impl TryFrom<RingState> for Ring {
    type Error = virtio_queue::Error;

    fn try_from(state: RingState) -> Result<Self, Self::Error> {
        let state = QueueState {
            max_size: VIRTQUEUE_SIZE,
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx_enabled: state.event_idx,
            size: state.size,
            ready: state.ready,
            desc_table: state.descriptors,
            avail_ring: state.available,
            used_ring: state.used,
        };
        Ok(Self { queue: Queue::try_from(state)? })
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
