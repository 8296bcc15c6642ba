//! The commands, one file each.

pub mod doctor;

/// The host cannot run a virtual machine.
pub const EXIT_NO_KVM: u8 = 5;
