//! The guests that come with Lockstep.
//!
//! `minikv` is a bare-metal 64-bit guest that serves the Redis protocol. This package's build script builds
//! it from `minikv/`, a workspace of its own, and puts its image in here; there is nothing else to install or
//! to run.
//!
//! What the machine has to offer it: RAM from 0 (32 MiB or more), the 64-bit Linux boot protocol
//! (`boot_params` with an e820 map and a command line), the event port, and optionally virtio-mmio net and
//! blk devices at their addresses of the machine model `pc`, and a UART. What it never executes: RDTSC,
//! RDRAND, RDSEED, CPUID; `tests/` checks that, and that its CPL0 part keeps to the few instructions that
//! every KVM emulates.
//!
//! The other guests are Linux, made of Debian packages on the user's machine by `recipe` and kept by `cache`
//! (docs/guests.md).
#![cfg_attr(
    not(test),
    warn(
        clippy::cast_lossless,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
    )
)]
#![forbid(unsafe_code)]

pub mod apt;
pub mod cache;
pub mod compress;
pub mod disk_image;
mod elf;
pub mod initramfs;
pub mod kernel;
mod modules;
pub mod recipe;

pub use modules::ModuleError;

/// The ELF64 image of `minikv`. Its segments are loaded at their physical addresses, from 1 MiB on.
pub const MINIKV: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/minikv.elf"));

/// `cpubench`: nine kernels that measure a processor, as a static Linux program that is also a first process.
pub const CPUBENCH: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cpubench.elf"));

/// The command line that `minikv` assumes where none says otherwise: `ip=`, `gw=` and `port=`, separated by
/// spaces, each optional.
pub const MINIKV_COMMAND_LINE: &str = "ip=10.77.0.2/24 gw=10.77.0.1 port=6379";

/// The blake3 digest of `MINIKV`, which the two machines of a pair compare before they work together.
pub fn minikv_digest() -> [u8; 32] {
    blake3::hash(MINIKV).into()
}
