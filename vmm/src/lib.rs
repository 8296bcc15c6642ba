//! Lockstep: runs one virtual machine as a primary and a backup that takes over where the primary stopped.
//!
//! See docs/ARCHITECTURE.md for the map. This crate holds what touches KVM, memory and the host; the parts
//! that must be pure live in crates of their own (devices, replay, ft, logchannel).

pub mod assemble;
pub mod boot;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod debug;
pub mod disk_image;
pub mod engine;
pub mod io;
pub mod machine;
pub mod memory;
pub mod pair;
#[cfg(feature = "planted-faults")]
mod planted;
pub mod random;
pub mod recording;
pub mod restart;
pub mod sizes;
