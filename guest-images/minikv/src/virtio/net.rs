//! The network card (virtio 1.2, 5.1), as smoltcp sees it.

use core::ptr::NonNull;
use core::slice;

use alloc::vec::Vec;
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use super::mmio::Window;
use super::queue::{Buffer, QUEUE_SIZE, Queue};
use crate::heap;

const ADDRESS: usize = 0xd000_0000;
const DEVICE_ID: u32 = 1;
/// VIRTIO_NET_F_MAC
const FEATURE_MAC: u64 = 1 << 5;
const DEFAULT_MAC: [u8; 6] = [0x52, 0x4c, 0x4b, 0, 0, 2];
const RECEIVE_QUEUE: u32 = 0;
const TRANSMIT_QUEUE: u32 = 1;
/// Bytes of the header before every frame, with VIRTIO_F_VERSION_1.
const HEADER_LEN: usize = 12;
/// Bytes of a buffer, header and frame.
const BUFFER_LEN: usize = 2048;
/// Bytes of the longest frame: Ethernet header and 1500.
const MAX_FRAME_LEN: usize = 1514;

/// One buffer of `BUFFER_LEN` bytes for each entry of a queue.
struct Buffers(NonNull<u8>);

impl Buffers {
    fn new() -> Self {
        Self(heap::dma_pages(usize::from(QUEUE_SIZE) * BUFFER_LEN / 4096))
    }

    fn buffer(&self, index: u16, len: usize, device_writes: bool) -> Buffer {
        let address = self.0.as_ptr() as usize + usize::from(index) * BUFFER_LEN;
        Buffer { address, len, device_writes }
    }

    /// The bytes of a buffer.
    ///
    /// # Safety
    /// The device does not have this buffer while the slice lives, and nothing else has a slice of it.
    #[expect(clippy::mut_from_ref)]
    unsafe fn bytes(&self, index: u16) -> &mut [u8] {
        // SAFETY: there are QUEUE_SIZE buffers.
        let start = unsafe { self.0.add(usize::from(index) * BUFFER_LEN) };
        // SAFETY: the buffer is ours for ever; the rest is the caller's promise.
        unsafe { slice::from_raw_parts_mut(start.as_ptr(), BUFFER_LEN) }
    }
}

struct Receiver {
    queue: Queue,
    buffers: Buffers,
    /// The buffer of the frame handed out last; it goes back to the device with the next one.
    lent: Option<u16>,
}

impl Receiver {
    fn next_frame(&mut self) -> Option<&[u8]> {
        if let Some(index) = self.lent.take() {
            self.queue.make_available(index);
        }
        let (index, len) = self.queue.next_used()?;
        self.lent = Some(index);
        // SAFETY: the device gave the buffer back, and gets it again only with the next call, for which this
        // slice must be gone.
        let bytes = unsafe { self.buffers.bytes(index) };
        Some(&bytes[HEADER_LEN..len.clamp(HEADER_LEN, BUFFER_LEN)])
    }
}

/// Where frames go out.
struct Sender {
    queue: Queue,
    buffers: Buffers,
    free: Vec<u16>,
}

impl Sender {
    fn has_room(&mut self) -> bool {
        while let Some((index, _)) = self.queue.next_used() {
            self.free.push(index);
        }
        !self.free.is_empty()
    }
}

/// The network card.
pub struct Net {
    receiver: Receiver,
    sender: Sender,
    mac: [u8; 6],
}

impl Net {
    /// The card, if there is one.
    pub fn open() -> Option<Self> {
        let (window, features) = Window::open(ADDRESS, DEVICE_ID, FEATURE_MAC)?;
        let mut receiver = Receiver { queue: Queue::new(), buffers: Buffers::new(), lent: None };
        let mut sender = Sender { queue: Queue::new(), buffers: Buffers::new(), free: Vec::new() };
        for index in 0..QUEUE_SIZE {
            receiver.queue.describe(index, receiver.buffers.buffer(index, BUFFER_LEN, true), None);
            receiver.queue.make_available(index);
        }
        // The last one to be given back is the first to be used: few pages change.
        sender.free.extend((0..QUEUE_SIZE).rev());
        window.add_queue(RECEIVE_QUEUE, &receiver.queue);
        window.add_queue(TRANSMIT_QUEUE, &sender.queue);
        window.start();
        let mut mac = DEFAULT_MAC;
        if features & FEATURE_MAC != 0 {
            mac = core::array::from_fn(|index| window.config8(index));
        }
        Some(Self { receiver, sender, mac })
    }

    /// Its hardware address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Whether a frame could be sent now.
    pub fn can_send(&mut self) -> bool {
        self.sender.has_room()
    }
}

/// A received frame.
pub struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// Room for a frame to send.
pub struct Room<'a>(&'a mut Sender);

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let index = self.0.free.pop().expect("there was room when this was made");
        // SAFETY: the buffer is free, so the device does not have it; the slice is gone before it gets it.
        let bytes = unsafe { self.0.buffers.bytes(index) };
        bytes[..HEADER_LEN].fill(0);
        let result = f(&mut bytes[HEADER_LEN..HEADER_LEN + len]);
        let buffer = self.0.buffers.buffer(index, HEADER_LEN + len, false);
        self.0.queue.describe(index, buffer, None);
        self.0.queue.make_available(index);
        result
    }
}

impl Device for Net {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Room<'_>)> {
        if !self.sender.has_room() {
            return None;
        }
        let frame = self.receiver.next_frame()?;
        Some((Received(frame), Room(&mut self.sender)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        self.sender.has_room().then_some(Room(&mut self.sender))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MAX_FRAME_LEN;
        capabilities
    }
}
