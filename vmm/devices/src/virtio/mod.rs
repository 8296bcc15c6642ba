//! virtio 1.2 devices on the MMIO transport, version 2.
//!
//! `ring` is one virtqueue with the checks a hostile guest calls for, `mmio` the registers every device has,
//! `net` and `blk` the devices.

mod blk;
mod mmio;
mod net;
mod ring;

pub(crate) use blk::{Blk, DoneError};
pub(crate) use net::Net;
pub(crate) use ring::Chain;
