//! Linux kernels as distributions pack them (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").
//!
//! ```text
//!  bzImage:  boot sector, setup: (setup_sects + 1) × 512 bytes │ unpacker ... payload (packed vmlinux) ...
//! ```
//!
//! A guest boots faster from the ELF file inside, which the unpacker need not unpack again at every boot.

use crate::compress::{UnpackError, unpack};

const HEADER_MAGIC: &[u8] = b"HdrS";
const HEADER_MAGIC_AT: usize = 0x202;
const SETUP_SECTS_AT: usize = 0x1f1;
const VERSION_AT: usize = 0x206;
const PAYLOAD_OFFSET_AT: usize = 0x248;
const PAYLOAD_LENGTH_AT: usize = 0x24c;
/// The header tells where the payload is since this version of the protocol.
const PAYLOAD_VERSION: u16 = 0x208;

/// Why a kernel image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Neither an ELF file nor a bzImage.
    #[error("no Linux kernel: neither an ELF file nor a bzImage")]
    Unknown,
    /// The boot protocol is older than the header's description of the payload.
    #[error("a bzImage of boot protocol {0:#x}: 0x208 (Linux 2.6.24) or newer is needed")]
    TooOld(u16),
    /// The header points outside the file.
    #[error("a damaged bzImage: its payload is said to be outside the file")]
    Payload,
    /// The payload cannot be unpacked.
    #[error("cannot unpack the kernel: {0}")]
    Unpack(#[from] UnpackError),
    /// What came out is no ELF file.
    #[error("what the bzImage holds is no ELF file")]
    NoElf,
}

/// Whether `image` begins as a bzImage does.
pub fn is_bzimage(image: &[u8]) -> bool {
    image.get(HEADER_MAGIC_AT..).is_some_and(|rest| rest.starts_with(HEADER_MAGIC))
}

/// Whether `image` begins as an ELF file does.
pub fn is_elf(image: &[u8]) -> bool {
    image.starts_with(b"\x7fELF")
}

/// The ELF file `vmlinux` of a kernel image: of a bzImage what it holds, of an ELF file itself.
pub fn vmlinux(image: &[u8]) -> Result<Vec<u8>, KernelError> {
    if is_elf(image) {
        return Ok(image.to_vec());
    }
    if !is_bzimage(image) {
        return Err(KernelError::Unknown);
    }
    let version = u16::from_le_bytes(field(image, VERSION_AT)?);
    if version < PAYLOAD_VERSION {
        return Err(KernelError::TooOld(version));
    }
    let [sectors] = field(image, SETUP_SECTS_AT)?;
    // Zero means four, for the oldest kernels' sake.
    let sectors = if sectors == 0 { 4 } else { usize::from(sectors) };
    let offset = u32::from_le_bytes(field(image, PAYLOAD_OFFSET_AT)?) as usize;
    let length = u32::from_le_bytes(field(image, PAYLOAD_LENGTH_AT)?) as usize;
    let start = (sectors + 1) * 512 + offset;
    let payload = image.get(start..start.saturating_add(length)).ok_or(KernelError::Payload)?;
    let kernel = unpack(payload)?;
    if is_elf(&kernel) { Ok(kernel) } else { Err(KernelError::NoElf) }
}

fn field<const N: usize>(image: &[u8], at: usize) -> Result<[u8; N], KernelError> {
    let bytes = image.get(at..at + N).ok_or(KernelError::Unknown)?;
    Ok(bytes.try_into().expect("as many as asked"))
}

#[cfg(test)]
#[path = "kernel_tests.rs"]
mod tests;
