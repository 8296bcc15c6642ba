//! The gateway's end of its switch port, as smoltcp sees it: frames in, frames out.

use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use crate::packet::ETHERNET_LEN;
use crate::wire::FrameBatch;

const MTU: usize = 1500;

/// Frames between the switch and smoltcp.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    received: FrameBatch,
    next: usize,
    /// What smoltcp sent.
    pub(crate) sent: FrameBatch,
}

impl Wire {
    /// A frame for smoltcp, processed by the next poll.
    pub(crate) fn deliver(&mut self, frame: &[u8]) {
        if self.next == self.received.len() {
            self.received.clear();
            self.next = 0;
        }
        self.received.push(frame);
    }

    /// Whether smoltcp has frames to process.
    pub(super) fn has_received(&self) -> bool {
        self.next < self.received.len()
    }
}

impl phy::Device for Wire {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = ETHERNET_LEN + MTU;
        capabilities
    }

    fn receive(&mut self, _: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        let frame = self.received.get(self.next)?;
        self.next += 1;
        Some((RxToken(frame), TxToken(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_>> {
        Some(TxToken(&mut self.sent))
    }
}

/// A received frame.
pub(crate) struct RxToken<'a>(&'a [u8]);

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// Room for a frame to send.
pub(crate) struct TxToken<'a>(&'a mut FrameBatch);

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.0.push_with(len, f)
    }
}
