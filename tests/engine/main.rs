//! The engines against guests of a few instructions: exits, interrupts, state and determinism.
//!
//! Runs on any KVM; `tests/nested/run` runs this very binary on a genuine kvm_amd inside QEMU.
#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests cast small numbers of their own"
)]

mod determinism;
mod exits;
mod guest;
mod interrupts;
mod state;
