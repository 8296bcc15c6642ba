//! virtio 1.2 devices on the MMIO transport, version 2.
//!
//! `ring` is one virtqueue with the checks a hostile guest calls for, `mmio` the registers every device has,
//! `net`, `blk`, `rng` and `console` the devices.

mod blk;
mod console;
mod mmio;
mod net;
mod ring;
mod rng;

pub(crate) use blk::{Blk, DoneError};
pub(crate) use console::Console;
pub(crate) use net::Net;
pub(crate) use ring::Chain;
#[cfg(feature = "planted-faults")]
pub(crate) use ring::Segment;
pub(crate) use rng::Rng;
