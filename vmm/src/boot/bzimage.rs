//! A Linux bzImage: its protected-mode part goes to where the kernel prefers to be, and its 64-bit entry is
//! 0x200 behind (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").

use std::io::Cursor;

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
const XLOADFLAGS_VERSION: u16 = 0x20c;
/// The header tells `kernel_info_offset`, its last field, since this version.
const KERNEL_INFO_VERSION: u16 = 0x20f;

/// Copies the kernel into memory.
pub(super) fn load(memory: &GuestMemory, ram_bytes: u64, image: &[u8]) -> Result<Loaded, BootError> {
    let preferred = image.get(PREF_ADDRESS_AT..PREF_ADDRESS_AT + 8).unwrap_or(&[0; 8]);
    let start = u64::from_le_bytes(preferred.try_into().expect("eight bytes")).max(HIGH_RAM_START);
    // A preference outside RAM fails where the kernel is copied; this bounds the sums below.
    let start = start.min(u64::from(u32::MAX));
    let loaded = BzImage::load(memory, Some(GuestAddress(start)), &mut Cursor::new(image), None)
        .map_err(BootError::Image)?;
    let mut header = loaded.setup_header.ok_or(BootError::Image(Error::MemoryOverflow))?;
    let version = header.version;
    if version < XLOADFLAGS_VERSION || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(BootError::NoEntry64(version));
    }
    if version < KERNEL_INFO_VERSION {
        header.kernel_info_offset = 0;
    }
    let end = loaded.kernel_end.max(start + u64::from(header.init_size));
    if end > ram_bytes {
        let (need, have) = ((end - start).div_ceil(1 << 20), ram_bytes >> 20);
        return Err(BootError::NoRoom { start, need, have });
    }
    Ok(Loaded { entry: start + ENTRY_64, end, header: Some(header) })
}
