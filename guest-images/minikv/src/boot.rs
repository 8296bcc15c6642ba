//! What the boot protocol gives: `boot_params` of the Linux x86 boot protocol, of which only the command line
//! matters here (the entry in `cpl0.s` reads the memory map).

use core::slice;

/// Offset of cmd_line_ptr.
const COMMAND_LINE: usize = 0x228;
/// Longest command line that is read.
const MAX_COMMAND_LINE: usize = 2048;
/// The entry maps what is below 1 MiB, but for the first page, to be read.
const READABLE: core::ops::Range<usize> = 0x1000..0x10_0000;

// SAFETY: a symbol of the linker script; only its address is taken.
unsafe extern "C" {
    /// The linker script puts it behind the image.
    #[link_name = "image_end"]
    static IMAGE_END: u8;
}

/// The first address behind the image.
pub fn image_end() -> usize {
    &raw const IMAGE_END as usize
}

/// The page that the boot protocol passes.
pub struct BootParams(usize);

impl BootParams {
    /// # Safety
    /// `address` is where a `boot_params` is, below 1 MiB, and nothing writes to it.
    pub unsafe fn new(address: usize) -> Self {
        Self(address)
    }

    /// The command line, up to the first byte that is no ASCII.
    pub fn command_line(&self) -> &'static str {
        // SAFETY: `new`'s promise.
        let start = unsafe { ((self.0 + COMMAND_LINE) as *const u32).read_unaligned() } as usize;
        if !READABLE.contains(&start) {
            return "";
        }
        let len = MAX_COMMAND_LINE.min(READABLE.end - start);
        // SAFETY: these bytes are mapped, and nothing writes to them.
        let bytes = unsafe { slice::from_raw_parts(start as *const u8, len) };
        let end = bytes.iter().position(|byte| !byte.is_ascii() || *byte == 0).unwrap_or(len);
        core::str::from_utf8(&bytes[..end]).unwrap_or_default()
    }
}
