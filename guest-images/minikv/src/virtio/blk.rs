//! The block device (virtio 1.2, 5.2). VIRTIO_BLK_F_FLUSH is not negotiated, so the device is writethrough: a
//! write that completed is durable.

use core::ptr::NonNull;

use super::mmio::Window;
use super::queue::{Buffer, Queue};
use crate::heap;

const ADDRESS: usize = 0xd000_1000;
const DEVICE_ID: u32 = 2;
/// VIRTIO_BLK_T_IN
const TYPE_READ: u32 = 0;
/// VIRTIO_BLK_T_OUT
const TYPE_WRITE: u32 = 1;
/// VIRTIO_BLK_S_OK
const STATUS_OK: u8 = 0;
/// Longest request, in bytes.
pub const MAX_REQUEST_LEN: usize = 256 << 10;
/// Most requests at a time; each takes three descriptors.
pub const MAX_REQUESTS: usize = 16;
/// Bytes between the headers of two requests, and where the status is.
const SLOT_LEN: usize = 32;
const STATUS_AT: usize = 16;

#[repr(C)]
struct Header {
    kind: u32,
    reserved: u32,
    sector: u64,
}

/// The disk.
pub struct Blk {
    queue: Queue,
    sectors: u64,
    /// For each request a header, then a status.
    slots: NonNull<u8>,
    /// Bit n: slot n is in use.
    busy: u32,
}

impl Blk {
    /// The disk, if there is one with anything on it.
    pub fn open() -> Option<Self> {
        let (window, _) = Window::open(ADDRESS, DEVICE_ID, 0)?;
        let queue = Queue::new();
        window.add_queue(0, &queue);
        window.start();
        let sectors = u64::from(window.config32(0)) | u64::from(window.config32(4)) << 32;
        (sectors > 0).then(|| Self { queue, sectors, slots: heap::dma_pages(1), busy: 0 })
    }

    /// Its size, in sectors of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Asks for a write. The bytes must stay where they are until it is done.
    pub fn write(&mut self, sector: u64, bytes: &[u8]) -> usize {
        let buffer = Buffer { address: bytes.as_ptr() as usize, len: bytes.len(), device_writes: false };
        self.request(TYPE_WRITE, sector, buffer)
    }

    /// Asks for a read. The bytes must stay where they are, and unread, until it is done.
    pub fn read(&mut self, sector: u64, bytes: &mut [u8]) -> usize {
        let buffer = Buffer { address: bytes.as_mut_ptr() as usize, len: bytes.len(), device_writes: true };
        self.request(TYPE_READ, sector, buffer)
    }

    /// Returns the request's number.
    fn request(&mut self, kind: u32, sector: u64, data: Buffer) -> usize {
        assert!(data.len <= MAX_REQUEST_LEN, "no longer than a request may be");
        let slot = self.busy.trailing_ones() as usize;
        assert!(slot < MAX_REQUESTS, "no more requests than slots");
        self.busy |= 1 << slot;
        let address = self.slots.as_ptr() as usize + slot * SLOT_LEN;
        // SAFETY: the page has MAX_REQUESTS slots of this alignment; this one is free, so the device does not
        // use it.
        unsafe { (address as *mut Header).write_volatile(Header { kind, reserved: 0, sector }) };
        // SAFETY: as above; a slot is longer than that.
        unsafe { ((address + STATUS_AT) as *mut u8).write_volatile(0xff) };
        let first = (slot * 3) as u16;
        let header = Buffer { address, len: STATUS_AT, device_writes: false };
        self.queue.describe(first, header, Some(first + 1));
        self.queue.describe(first + 1, data, Some(first + 2));
        let status = Buffer { address: address + STATUS_AT, len: 1, device_writes: true };
        self.queue.describe(first + 2, status, None);
        self.queue.make_available(first);
        slot
    }

    /// The next request that is done: its number, and whether it went well.
    pub fn next_done(&mut self) -> Option<(usize, bool)> {
        let (head, _) = self.queue.next_used()?;
        let slot = usize::from(head / 3);
        assert!(slot < MAX_REQUESTS && self.busy & (1 << slot) != 0, "a request that was made");
        self.busy &= !(1 << slot);
        // SAFETY: the slot is within the page, and the device is done with it.
        let status = unsafe { self.slots.as_ptr().wrapping_add(slot * SLOT_LEN + STATUS_AT).read_volatile() };
        Some((slot, status == STATUS_OK))
    }
}
