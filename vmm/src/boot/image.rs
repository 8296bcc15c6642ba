//! What a guest image is, as far as its first bytes tell: a file that cannot be booted is refused by the name
//! of what it is and of what is missing.

use super::bzimage::{self, Header};

const PE: &[u8] = b"MZ";
const ELF_HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const EXECUTABLE: u16 = 2;
const SHARED: u16 = 3;
const X86_64: u16 = 62;
const LOAD: u32 = 1;

/// Program headers that only programs for an operating system have: what they ask of it.
const OF_PROGRAMS: [(u32, &str); 4] = [
    (3, "it wants a dynamic linker"),
    (2, "it is to be linked dynamically"),
    (7, "it wants thread-local storage"),
    (0x6474_e552, "it has pages to be protected after relocation"),
];

/// Beginnings of files that are taken for kernels: where, what is there, what it is.
const KNOWN: [(usize, &[u8], &str); 10] = [
    (0, b"\x1f\x8b", "packed with gzip: unpack it first (gunzip)"),
    (0, b"\xfd7zXZ\0", "packed with xz: unpack it first (unxz)"),
    (0, b"\x28\xb5\x2f\xfd", "packed with zstd: unpack it first (unzstd)"),
    (0, b"BZh", "packed with bzip2: unpack it first (bunzip2)"),
    (0, b"\x02\x21\x4c\x18", "packed with LZ4: unpack it first (unlz4)"),
    (0x38, b"ARM\x64", "a Linux kernel for ARM64"),
    (0, b"QFI\xfb", "a qcow2 disk image: disks are given to --disk-image"),
    (0, b"070701", "an initial RAM disk: give it to --initrd"),
    (0, b"!<arch>", "a Debian package or an archive: the kernel is in it, as boot/vmlinuz-…"),
    (0, b"#!", "a script"),
];

/// Why a file cannot be a guest's kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// No bytes.
    #[error("the file is empty")]
    Empty,
    /// Something else.
    #[error("it is neither an ELF file nor a Linux bzImage, but {0}")]
    Other(&'static str),
    /// Nothing known.
    #[error("it is neither an ELF file nor a Linux bzImage")]
    Unknown,
    /// The file ends too early.
    #[error("the file is cut short: {0}")]
    CutShort(&'static str),
    /// An ELF file of another kind.
    #[error("it is an ELF file {0}: a static 64-bit executable for x86-64 is needed")]
    Elf(String),
    /// A program.
    #[error("it is a program for an operating system, not a kernel: {0}")]
    Program(&'static str),
    /// A bzImage of an old kernel.
    #[error(
        "it is a bzImage of boot protocol {}.{:02}: 2.12 (Linux 3.8) or newer, of 64 bits, is needed",
        .0 >> 8, .0 & 0xff
    )]
    OldProtocol(u16),
    /// A bzImage of a 32-bit kernel.
    #[error("it is a bzImage without a 64-bit entry: a 64-bit kernel is needed")]
    NoEntry64,
}

/// Refuses what cannot be booted, as far as can be told without loading it.
pub fn check(image: &[u8]) -> Result<(), ImageError> {
    if image.is_empty() {
        return Err(ImageError::Empty);
    }
    if guest_images::kernel::is_elf(image) {
        return check_elf(image);
    }
    if guest_images::kernel::is_bzimage(image) {
        return check_bzimage(image);
    }
    if let Some((_, _, what)) = KNOWN.iter().find(|(at, magic, _)| starts_at(image, *at, magic)) {
        return Err(ImageError::Other(what));
    }
    if image.starts_with(PE) {
        return Err(ImageError::Other("a program for Windows or EFI (PE)"));
    }
    if image.starts_with(b"\x7fEL") || image.len() < ELF_HEADER_BYTES {
        return Err(ImageError::CutShort("no kernel is that small"));
    }
    if image.iter().take(1 << 20).all(|&byte| byte == 0) {
        return Err(ImageError::Other("zeros"));
    }
    Err(ImageError::Unknown)
}

fn starts_at(image: &[u8], at: usize, magic: &[u8]) -> bool {
    image.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

fn u16_at(image: &[u8], at: usize) -> u16 {
    image.get(at..at + 2).map_or(0, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
}

fn u32_at(image: &[u8], at: usize) -> u32 {
    u32::from(u16_at(image, at)) | u32::from(u16_at(image, at + 2)) << 16
}

fn u64_at(image: &[u8], at: usize) -> u64 {
    u64::from(u32_at(image, at)) | u64::from(u32_at(image, at + 4)) << 32
}

fn check_elf(image: &[u8]) -> Result<(), ImageError> {
    let other = |text: &str| Err(ImageError::Elf(text.to_owned()));
    if image.len() < ELF_HEADER_BYTES {
        return Err(ImageError::CutShort("it ends within the ELF header"));
    }
    if image[4] != CLASS_64 {
        return other("of 32 bits");
    }
    if image[5] != LITTLE_ENDIAN {
        return other("of big-endian numbers");
    }
    let machine = u16_at(image, 18);
    if machine != X86_64 {
        return other(&format!("for another processor (machine {machine})"));
    }
    let headers = program_headers(image)?;
    // What a program asks for says more than that it can be loaded anywhere.
    let asks = |kind: u32| headers.iter().any(|header| u32_at(header, 0) == kind);
    if let Some((_, what)) = OF_PROGRAMS.iter().find(|(kind, _)| asks(*kind)) {
        return Err(ImageError::Program(what));
    }
    match u16_at(image, 16) {
        EXECUTABLE => {}
        SHARED => return other("that is to be loaded anywhere (position-independent, or a shared library)"),
        1 => return other("that is not linked yet (an object file, or a kernel module)"),
        4 => return other("that is a core dump"),
        kind => return other(&format!("of unknown type {kind}")),
    }
    if !asks(LOAD) {
        return other("in which nothing is to be loaded");
    }
    for header in headers.iter().filter(|header| u32_at(header, 0) == LOAD) {
        let end = u64_at(header, 8).checked_add(u64_at(header, 32));
        if end.is_none_or(|end| end > image.len() as u64) {
            return Err(ImageError::CutShort("a part that is to be loaded lies behind its end"));
        }
    }
    Ok(())
}

fn program_headers(image: &[u8]) -> Result<Vec<&[u8]>, ImageError> {
    let (at, count) = (u64_at(image, 32), usize::from(u16_at(image, 56)));
    if count == 0 {
        return Err(ImageError::Elf("without program headers (an object file, or a kernel module)".into()));
    }
    if usize::from(u16_at(image, 54)) != PROGRAM_HEADER_BYTES {
        return Err(ImageError::Elf("whose program headers have an unknown size".into()));
    }
    let start = usize::try_from(at).ok();
    let end = start.and_then(|start| start.checked_add(count * PROGRAM_HEADER_BYTES));
    let headers = start.zip(end).and_then(|(start, end)| image.get(start..end));
    let headers = headers.ok_or(ImageError::CutShort("its program headers lie behind its end"))?;
    Ok(headers.chunks_exact(PROGRAM_HEADER_BYTES).collect())
}

fn check_bzimage(image: &[u8]) -> Result<(), ImageError> {
    let header = Header::of(image).ok_or(ImageError::CutShort("it ends within the header of a bzImage"))?;
    if header.version < bzimage::XLOADFLAGS_VERSION {
        return Err(ImageError::OldProtocol(header.version));
    }
    if !header.has_entry_64 {
        return Err(ImageError::NoEntry64);
    }
    if image.len() <= header.setup_bytes {
        return Err(ImageError::CutShort("it ends before the kernel begins"));
    }
    Ok(())
}

/// Whether a kernel is Linux, by its banner or its header.
pub fn is_linux(image: &[u8]) -> bool {
    const BANNER: &[u8] = b"Linux version ";
    guest_images::kernel::is_bzimage(image)
        || image.windows(BANNER.len()).any(|bytes| bytes[0] == BANNER[0] && bytes == BANNER)
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
