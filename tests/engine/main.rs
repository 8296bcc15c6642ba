//! The engines against guests of a few instructions: exits, interrupts, state and determinism.
//!
//! Runs on any KVM; `tests/nested/run` runs this very binary on a genuine kvm_amd inside QEMU.

mod determinism;
mod exits;
mod guest;
mod interrupts;
mod state;
