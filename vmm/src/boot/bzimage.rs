//! A Linux bzImage: its protected-mode part goes to where the kernel prefers to be, and its 64-bit entry is
//! 0x200 behind (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").

use std::io::Cursor;

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::{Error, KernelLoader};
use vm_memory::GuestAddress;

use super::{BootError, HIGH_RAM_START, Loaded};
use crate::memory::GuestMemory;

const PREF_ADDRESS_AT: usize = 0x258;
const ENTRY_64: u64 = 0x200;
/// `xloadflags`: the kernel has the 64-bit entry.
const XLF_KERNEL_64: u16 = 1 << 0;
/// The header tells `xloadflags` since this version of the protocol.
pub(super) const XLOADFLAGS_VERSION: u16 = 0x20c;
/// The header tells `kernel_info_offset`, its last field, since this version.
const KERNEL_INFO_VERSION: u16 = 0x20f;

const SETUP_SECTS_AT: usize = 0x1f1;
const VERSION_AT: usize = 0x206;
const XLOADFLAGS_AT: usize = 0x236;
const HEADER_END: usize = 0x268;
/// Longest command line where the header does not tell one: the protocol's before 2.06.
const DEFAULT_COMMAND_LINE: u32 = 255;

/// What of the header is looked at before anything is loaded.
pub(super) struct Header {
    /// Version of the boot protocol.
    pub version: u16,
    /// The kernel has the 64-bit entry, should the protocol's version tell of it.
    pub has_entry_64: bool,
    /// Bytes before the protected-mode part.
    pub setup_bytes: usize,
}

impl Header {
    /// That of a bzImage; none when the file ends within it.
    pub fn of(image: &[u8]) -> Option<Self> {
        let version = u16::from_le_bytes(image.get(VERSION_AT..VERSION_AT + 2)?.try_into().ok()?);
        let end = if version < XLOADFLAGS_VERSION { XLOADFLAGS_AT } else { HEADER_END };
        let header = image.get(..end)?;
        let flags =
            header.get(XLOADFLAGS_AT..XLOADFLAGS_AT + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]));
        // Zero means four, for the oldest kernels' sake.
        let sectors = match header[SETUP_SECTS_AT] {
            0 => 4,
            sectors => usize::from(sectors),
        };
        Some(Self { version, has_entry_64: flags & XLF_KERNEL_64 != 0, setup_bytes: (sectors + 1) * 512 })
    }
}

/// Longest command line that the kernel takes, without its final zero.
pub(super) fn command_line_max(header: &setup_header) -> usize {
    match header.cmdline_size {
        0 => DEFAULT_COMMAND_LINE as usize,
        size => size as usize,
    }
}

/// Copies the kernel into memory.
pub(super) fn load(memory: &GuestMemory, ram_bytes: u64, image: &[u8]) -> Result<Loaded, BootError> {
    let preferred = image.get(PREF_ADDRESS_AT..PREF_ADDRESS_AT + 8).unwrap_or(&[0; 8]);
    let start = u64::from_le_bytes(preferred.try_into().expect("eight bytes")).max(HIGH_RAM_START);
    // A preference outside RAM fails where the kernel is copied; this bounds the sums below.
    let start = start.min(u64::from(u32::MAX));
    let loaded = BzImage::load(memory, Some(GuestAddress(start)), &mut Cursor::new(image), None)
        .map_err(BootError::Image)?;
    let mut header = loaded.setup_header.ok_or(BootError::Image(Error::MemoryOverflow))?;
    if header.version < KERNEL_INFO_VERSION {
        header.kernel_info_offset = 0;
    }
    let end = loaded.kernel_end.max(start + u64::from(header.init_size));
    if end > ram_bytes {
        let (need, have) = ((end - start).div_ceil(1 << 20), ram_bytes >> 20);
        return Err(BootError::NoRoom { start, need, have });
    }
    Ok(Loaded { entry: start + ENTRY_64, end, header: Some(header) })
}
