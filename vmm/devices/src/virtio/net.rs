//! virtio-net (virtio 1.2, 5.1): one receive and one transmit queue, MAC and STATUS, no offloads.
//!
//! With VERSION_1 each frame follows a header of 12 bytes, of which nothing is used here:
//!
//! ```text
//!  flags u8 | gso_type u8 | hdr_len u16 | gso_size u16 | csum_start u16 | csum_offset u16 | num_buffers u16
//! ```
//!
//! Frames that Ethernet does not know (below 14 bytes, above 1514 sent or 1518 received) are dropped, as are
//! received ones that the guest's next buffer cannot hold.

use std::collections::VecDeque;

use logchannel::Output;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP};
use vm_memory::GuestMemory;

use super::mmio::{COMMON_FEATURES, Effect, Identity, Transport};
use super::ring::{Broken, Chain, Ring, gather, scatter};
use crate::layout::{MAX_RX_FRAME, MAX_TX_FRAME, MIN_FRAME};

/// Bytes of `struct virtio_net_hdr`.
const HEADER_LEN: usize = 12;
/// The header of a received frame: num_buffers is 1.
const RX_HEADER: [u8; HEADER_LEN] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// Number of the transmit queue.
const TX_QUEUE: u32 = 1;

const IDENTITY: Identity = Identity {
    name: "virtio-net",
    device_id: VIRTIO_ID_NET,
    features: COMMON_FEATURES | 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS,
};

/// The network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Net {
    transport: Transport,
    rx: Ring,
    tx: Ring,
    mac: [u8; 6],
}

impl Net {
    pub(crate) fn new(mac: [u8; 6]) -> Self {
        Self { transport: Transport::default(), rx: Ring::new(), tx: Ring::new(), mac }
    }

    /// Resets the machine's part of it: the MAC address stays.
    pub(crate) fn reset(&mut self) {
        *self = Self { transport: self.transport.after_reset(), ..Self::new(self.mac) };
    }

    /// The level of the interrupt line.
    pub(crate) fn line(&self) -> bool {
        self.transport.line()
    }

    #[allow(clippy::cast_possible_truncation, reason = "a frame is at most 1518 bytes")]
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 8];
        config[..6].copy_from_slice(&self.mac);
        config[6..].copy_from_slice(&(VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
        self.transport.read(&IDENTITY, &[&self.rx, &self.tx], &config, offset, data);
    }

    pub(crate) fn write<M: GuestMemory>(
        &mut self,
        mem: &M,
        scratch: &mut Chain,
        outputs: &mut VecDeque<Output>,
        offset: u64,
        data: &[u8],
    ) {
        let rings = &mut [&mut self.rx, &mut self.tx];
        if self.transport.write(mem, &IDENTITY, rings, offset, data) == Effect::Notify(TX_QUEUE) {
            self.service(mem, scratch, outputs);
        }
    }

    /// Whether a received frame finds a buffer, or would be dropped anyway.
    pub(crate) fn accepts<M: GuestMemory>(&self, mem: &M, frame: &[u8]) -> bool {
        !is_frame(frame, MAX_RX_FRAME) || (self.transport.running() && self.rx.has_chain(mem))
    }

    /// Hands a received frame to the guest.
    pub(crate) fn receive<M: GuestMemory>(&mut self, mem: &M, scratch: &mut Chain, frame: &[u8]) {
        if !self.transport.running() || !self.rx.ready() || !is_frame(frame, MAX_RX_FRAME) {
            return;
        }
        if let Err(reason) = self.try_receive(mem, scratch, frame) {
            self.transport.break_down(&IDENTITY, reason);
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "a frame is at most 1518 bytes")]
    fn try_receive<M: GuestMemory>(
        &mut self,
        mem: &M,
        chain: &mut Chain,
        frame: &[u8],
    ) -> Result<(), Broken> {
        if !self.rx.pop(mem, chain)? {
            return Ok(());
        }
        let len = HEADER_LEN + frame.len();
        if chain.writable_len < len as u64 {
            self.rx.unpop();
            return Ok(());
        }
        scatter(mem, &chain.writable, 0, &RX_HEADER)?;
        scatter(mem, &chain.writable, HEADER_LEN as u64, frame)?;
        self.rx.push_used(mem, chain.head, len as u32)?;
        if self.rx.wants_interrupt(mem)? {
            self.transport.interrupt_used();
        }
        Ok(())
    }

    /// Sends what the guest has put into the transmit queue.
    pub(crate) fn service<M: GuestMemory>(
        &mut self,
        mem: &M,
        scratch: &mut Chain,
        outputs: &mut VecDeque<Output>,
    ) {
        if !self.transport.running() || !self.tx.has_chain(mem) {
            return;
        }
        if let Err(reason) = self.try_service(mem, scratch, outputs) {
            self.transport.break_down(&IDENTITY, reason);
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "a frame is at most 1518 bytes")]
    fn try_service<M: GuestMemory>(
        &mut self,
        mem: &M,
        chain: &mut Chain,
        outputs: &mut VecDeque<Output>,
    ) -> Result<(), Broken> {
        for _ in 0..self.tx.size() {
            if !self.tx.pop(mem, chain)? {
                break;
            }
            let len = chain.readable_len.saturating_sub(HEADER_LEN as u64);
            if chain.writable.is_empty() && (MIN_FRAME as u64..=MAX_TX_FRAME as u64).contains(&len) {
                let mut frame = vec![0; len as usize];
                gather(mem, &chain.readable, HEADER_LEN as u64, &mut frame)?;
                outputs.push_back(Output::Net(frame));
            }
            self.tx.push_used(mem, chain.head, 0)?;
        }
        self.tx.ask_for_notification(mem)?;
        if self.tx.wants_interrupt(mem)? {
            self.transport.interrupt_used();
        }
        Ok(())
    }
}

fn is_frame(frame: &[u8], max: usize) -> bool {
    (MIN_FRAME..=max).contains(&frame.len())
}

#[cfg(test)]
#[path = "net_tests.rs"]
mod tests;
