//! Lockstep: runs one virtual machine as a primary and a backup that takes over where the primary stopped.
//!
//! See docs/ARCHITECTURE.md for the map. This crate holds what touches KVM, memory and the host; the parts
//! that must be pure live in crates of their own (devices, replay, ft, logchannel).
#![cfg_attr(
    test,
    allow(
        clippy::cast_lossless,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "tests cast small numbers of their own"
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
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "not looked at yet"
)]
pub mod pair;
#[cfg(feature = "planted-faults")]
mod planted;
pub mod random;
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "lengths are below those that the codec allows"
)]
pub mod recording;
pub mod restart;
pub mod sizes;
