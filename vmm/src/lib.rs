//! Lockstep: runs one virtual machine as a primary and a backup that takes over where the primary stopped.
//!
//! See docs/ARCHITECTURE.md for the map. This crate holds what touches KVM, memory and the host; the parts
//! that must be pure live in crates of their own (devices, replay, ft, logchannel).
#![cfg_attr(
    not(test),
    warn(
        clippy::cast_lossless,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
    )
)]

pub mod assemble;
pub mod boot;
pub mod cli;
pub mod cluster;
pub mod config;
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "registers and packets have the widths of their protocol"
)]
pub mod debug;
pub mod disk_image;
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "registers have the processor's widths"
)]
pub mod engine;
pub mod io;
pub mod machine;
pub mod memory;
pub mod meter;
pub mod pair;
#[cfg(feature = "planted-faults")]
mod planted;
pub mod random;
#[allow(
    clippy::cast_possible_truncation,
    reason = "a batch has at most 4 MiB, a piece of an image 8 MiB, RAM at most 3 GiB in pages of 4 KiB"
)]
pub mod recording;
pub mod restart;
pub mod sizes;
