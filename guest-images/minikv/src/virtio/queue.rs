//! A split virtqueue (virtio 1.2, 2.7) of 256 entries, without events.
//!
//! Descriptors are the drivers' to number: they fill them in, and make a chain available by its first.

use core::ptr::NonNull;
use core::sync::atomic::{Ordering, compiler_fence};

use crate::heap;

/// Entries of every queue.
pub const QUEUE_SIZE: u16 = 256;

const FLAG_NEXT: u16 = 1;
const FLAG_WRITE: u16 = 2;
/// VIRTQ_AVAIL_F_NO_INTERRUPT
const NO_INTERRUPT: u16 = 1;

#[repr(C)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// What a descriptor points at.
#[derive(Clone, Copy)]
pub struct Buffer {
    /// Physical address, which is the virtual one.
    pub address: usize,
    /// Bytes.
    pub len: usize,
    /// Whether the device writes to it.
    pub device_writes: bool,
}

/// One queue.
pub struct Queue {
    descriptors: NonNull<Descriptor>,
    /// flags, index, then the ring.
    available: NonNull<u16>,
    /// flags and index in one word, then pairs of head and length.
    used: NonNull<u32>,
    available_index: u16,
    used_index: u16,
}

impl Queue {
    /// An empty one.
    pub fn new() -> Self {
        let pages = heap::dma_pages(4);
        let queue = Self {
            descriptors: pages.cast(),
            // SAFETY: four pages are ours; the descriptors take exactly the first.
            available: unsafe { pages.add(4096) }.cast(),
            // SAFETY: as above; the used ring has 6 + 8 * 256 bytes.
            used: unsafe { pages.add(8192) }.cast(),
            available_index: 0,
            used_index: 0,
        };
        // SAFETY: the flags are the first word of the available ring.
        unsafe { queue.available.write_volatile(NO_INTERRUPT) };
        queue
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        QUEUE_SIZE
    }

    /// Addresses of the descriptors, the available and the used ring.
    pub fn addresses(&self) -> [usize; 3] {
        [self.descriptors.as_ptr() as usize, self.available.as_ptr() as usize, self.used.as_ptr() as usize]
    }

    /// Fills in descriptor `index`, followed by descriptor `next` if there is one.
    pub fn describe(&mut self, index: u16, buffer: Buffer, next: Option<u16>) {
        assert!(index < QUEUE_SIZE, "a descriptor of this queue");
        let flags = if next.is_some() { FLAG_NEXT } else { 0 };
        let descriptor = Descriptor {
            address: buffer.address as u64,
            len: buffer.len as u32,
            flags: flags | if buffer.device_writes { FLAG_WRITE } else { 0 },
            next: next.unwrap_or(0),
        };
        // SAFETY: the table has QUEUE_SIZE descriptors, and the driver describes only those it has.
        unsafe { self.descriptors.as_ptr().wrapping_add(usize::from(index)).write_volatile(descriptor) };
    }

    /// Gives the device the chain that begins at descriptor `head`.
    pub fn make_available(&mut self, head: u16) {
        let slot = 2 + usize::from(self.available_index % QUEUE_SIZE);
        // SAFETY: the ring has QUEUE_SIZE slots after two words.
        unsafe { self.available.as_ptr().wrapping_add(slot).write_volatile(head) };
        compiler_fence(Ordering::Release);
        self.available_index = self.available_index.wrapping_add(1);
        // SAFETY: the index is the second word.
        unsafe { self.available.as_ptr().wrapping_add(1).write_volatile(self.available_index) };
    }

    /// The next chain that the device is done with: its head, and how many bytes the device wrote.
    pub fn next_used(&mut self) -> Option<(u16, usize)> {
        // SAFETY: flags and index are the first word.
        let index = (unsafe { self.used.read_volatile() } >> 16) as u16;
        if index == self.used_index {
            return None;
        }
        compiler_fence(Ordering::Acquire);
        let slot = 1 + 2 * usize::from(self.used_index % QUEUE_SIZE);
        // SAFETY: the ring has QUEUE_SIZE pairs after the first word.
        let head = unsafe { self.used.as_ptr().wrapping_add(slot).read_volatile() };
        // SAFETY: as above.
        let len = unsafe { self.used.as_ptr().wrapping_add(slot + 1).read_volatile() };
        self.used_index = self.used_index.wrapping_add(1);
        assert!(head < u32::from(QUEUE_SIZE), "the device returns what it was given");
        Some((head as u16, len as usize))
    }
}
