//! Drivers for virtio-mmio devices (virtio 1.2, version 2 of the register layout).
//!
//! They neither notify nor take interrupts: a COMMAND on the event port lets the devices serve every queue,
//! and used rings are looked at afterwards.

pub mod blk;
mod mmio;
pub mod net;
mod queue;
