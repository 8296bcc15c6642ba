//! Boot: pure functions that put a guest image and its tables into memory and give the first CPU state.
//!
//! The 64-bit boot protocol of Linux (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"): long mode,
//! paging on with an identity map, interrupts off, flat segments, RSI at `boot_params`.
//!
//! ```text
//!  0x500  GDT      0x7000 boot_params     0x9000.. page tables (PML4, PDPT, 4 × PD)     0x20000 command line
//!  0xe0000  ACPI tables
//!  1 MiB or higher  kernel       end of RAM, downwards  initial RAM disk
//! ```

mod acpi;
mod bzimage;
pub mod image;
mod params;

use std::io::Cursor;
use std::sync::Arc;

use linux_loader::loader::KernelLoader;
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::Elf;
use vm_memory::{Bytes, GuestAddress};

use crate::engine::state::{CpuState, Segment, TableRegister};
use crate::memory::{GuestMemory, PAGE_BYTES};

pub use acpi::tables as acpi_tables;
pub use image::ImageError;

const GDT: u64 = 0x500;
const BOOT_PARAMS: u64 = 0x7000;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
const PAGE_DIRECTORIES: u64 = 0xb000;
const COMMAND_LINE: u64 = 0x2_0000;
/// Room for a command line and its final zero.
const COMMAND_LINE_BYTES: usize = 4096;
/// Longest command line of a kernel that is an ELF file, and says nothing of it: Linux and minikv read as
/// much, and would cut off the rest without a word (COMMAND_LINE_SIZE of arch/x86, less its final zero).
const ELF_COMMAND_LINE_MAX: usize = 2047;
const HIGH_RAM_START: u64 = 0x10_0000;
/// An initial RAM disk must end below, unless the kernel's header says something else.
const INITRD_END_MAX: u64 = 0x8000_0000;

/// Present, writable, and accessed and dirty from the start: a CPU that sets these bits by itself does so
/// also speculatively, which no log determines, and RAM would differ between replicas.
const PRESENT_WRITABLE: u64 = 0x63;
const HUGE: u64 = 1 << 7;
const USER: u64 = 1 << 2;

/// Why a guest image cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The image is no such ELF file, or does not fit.
    #[error(
        "cannot load the guest image: {cause}. It must be a static 64-bit ELF that loads between 1 MiB and \
         the end of RAM, or a bzImage; --memory gives more RAM",
        cause = .0.to_string().replace("Kernel Loader: ", "")
    )]
    Image(#[source] linux_loader::loader::Error),
    /// The file is not a kernel that can be booted.
    #[error("cannot boot the kernel: {0}")]
    Kernel(#[from] ImageError),
    /// A kernel that needs more than there is.
    #[error("the kernel needs {need} MiB from {start:#x} on, guest memory has {have} MiB: see --memory")]
    NoRoom {
        /// Where it is loaded.
        start: u64,
        /// How much it needs there, MiB.
        need: u64,
        /// Guest memory, MiB.
        have: u64,
    },
    /// The image loads where the boot tables are.
    #[error("the guest image's entry point {0:#x} is below 1 MiB, where the boot tables are")]
    TooLow(u64),
    /// The initial RAM disk and the kernel do not both fit.
    #[error(
        "the initial RAM disk of {initrd} MiB has no room behind the kernel, which ends at {kernel_end:#x}: \
         guest memory has {have} MiB, see --memory"
    )]
    Initrd {
        /// Its size in MiB.
        initrd: u64,
        /// Where the kernel ends.
        kernel_end: u64,
        /// Guest memory, MiB.
        have: u64,
    },
    /// The command line is too long.
    #[error("the guest's command line has {len} bytes, and its kernel takes {max} at most")]
    CommandLine {
        /// Its bytes.
        len: usize,
        /// Most bytes.
        max: usize,
    },
    /// Guest memory is too small for the tables.
    #[error("cannot write the boot tables: {0}")]
    Memory(#[source] vm_memory::GuestMemoryError),
}

/// What a guest is started with.
#[derive(Debug, Clone, Copy)]
pub struct GuestFiles<'a> {
    /// An ELF file, or a Linux bzImage.
    pub kernel: &'a [u8],
    /// The initial RAM disk.
    pub initrd: Option<&'a [u8]>,
    /// The command line.
    pub command_line: &'a str,
}

/// What a guest is started with, kept so that it can be started again: the files may have changed.
#[derive(Debug, Clone)]
pub struct GuestImage {
    /// An ELF file, or a Linux bzImage.
    pub kernel: Arc<Vec<u8>>,
    /// The initial RAM disk.
    pub initrd: Option<Arc<Vec<u8>>>,
    /// The command line.
    pub command_line: String,
}

impl GuestImage {
    /// The files.
    pub fn files(&self) -> GuestFiles<'_> {
        let initrd = self.initrd.as_ref().map(|initrd| initrd.as_slice());
        GuestFiles { kernel: &self.kernel, initrd, command_line: &self.command_line }
    }

    /// BLAKE3 of everything that is loaded into the guest's memory.
    pub fn digest(&self) -> [u8; 32] {
        let kernel = blake3::hash(&self.kernel);
        match &self.initrd {
            None => *kernel.as_bytes(),
            Some(initrd) => {
                let both = [*kernel.as_bytes(), *blake3::hash(initrd).as_bytes()];
                *blake3::hash(&both.concat()).as_bytes()
            }
        }
    }
}

/// A kernel in memory.
struct Loaded {
    /// Where it begins to run.
    entry: u64,
    /// First byte that is free behind it and what it needs at once.
    end: u64,
    /// What a bzImage says about itself.
    header: Option<setup_header>,
}

/// Loads a guest and makes everything it needs; the result is the vCPU's first state.
pub fn load(memory: &GuestMemory, ram_bytes: u64, files: &GuestFiles<'_>) -> Result<CpuState, BootError> {
    image::check(files.kernel)?;
    let loaded = match guest_images::kernel::is_bzimage(files.kernel) {
        true => bzimage::load(memory, ram_bytes, files.kernel)?,
        false => load_elf(memory, files.kernel)?,
    };
    let initrd = match files.initrd {
        Some(data) if !data.is_empty() => Some(place_initrd(memory, ram_bytes, &loaded, data)?),
        _ => None,
    };
    boot_tables(memory, ram_bytes, &loaded, initrd, files.command_line)
}

/// Loads the ELF `image` and makes everything it needs; the result is the vCPU's first state.
pub fn load_elf64(
    memory: &GuestMemory,
    ram_bytes: u64,
    image: &[u8],
    command_line: &str,
) -> Result<CpuState, BootError> {
    load(memory, ram_bytes, &GuestFiles { kernel: image, initrd: None, command_line })
}

/// Copies position-dependent 64-bit code to `entry` (at least 1 MiB) and makes what it needs to start there.
pub fn load_flat64(
    memory: &GuestMemory,
    ram_bytes: u64,
    code: &[u8],
    entry: u64,
    command_line: &str,
) -> Result<CpuState, BootError> {
    memory.write_slice(code, GuestAddress(entry)).map_err(BootError::Memory)?;
    let loaded = Loaded { entry, end: entry + code.len() as u64, header: None };
    boot_tables(memory, ram_bytes, &loaded, None, command_line)
}

fn load_elf(memory: &GuestMemory, image: &[u8]) -> Result<Loaded, BootError> {
    let high = Some(GuestAddress(HIGH_RAM_START));
    let loaded = Elf::load(memory, None, &mut Cursor::new(image), high).map_err(BootError::Image)?;
    Ok(Loaded { entry: loaded.kernel_load.0, end: loaded.kernel_end, header: None })
}

/// Copies the initial RAM disk as high as the kernel takes it; where it is, and its size.
fn place_initrd(
    memory: &GuestMemory,
    ram_bytes: u64,
    kernel: &Loaded,
    data: &[u8],
) -> Result<(u64, u64), BootError> {
    let told = kernel.header.map(|header| u64::from(header.initrd_addr_max) + 1);
    let end = ram_bytes.min(told.unwrap_or(INITRD_END_MAX));
    let size = data.len() as u64;
    let start = end.checked_sub(size).map(|start| start - start % PAGE_BYTES as u64);
    let Some(start) = start.filter(|&start| start >= kernel.end) else {
        return Err(BootError::Initrd {
            initrd: size.div_ceil(1 << 20),
            kernel_end: kernel.end,
            have: ram_bytes >> 20,
        });
    };
    memory.write_slice(data, GuestAddress(start)).map_err(BootError::Memory)?;
    Ok((start, size))
}

#[allow(clippy::cast_possible_truncation, reason = "COMMAND_LINE_MAX was checked")]
fn boot_tables(
    memory: &GuestMemory,
    ram_bytes: u64,
    kernel: &Loaded,
    initrd: Option<(u64, u64)>,
    command_line: &str,
) -> Result<CpuState, BootError> {
    if kernel.entry < HIGH_RAM_START {
        return Err(BootError::TooLow(kernel.entry));
    }
    let told = kernel.header.as_ref().map_or(ELF_COMMAND_LINE_MAX, bzimage::command_line_max);
    let (len, max) = (command_line.len(), told.min(COMMAND_LINE_BYTES - 1));
    if len > max {
        return Err(BootError::CommandLine { len, max });
    }
    let mut line = command_line.as_bytes().to_vec();
    line.push(0);
    memory.write_slice(&line, GuestAddress(COMMAND_LINE)).map_err(BootError::Memory)?;
    let acpi = acpi::tables();
    memory.write_slice(&acpi.bytes, GuestAddress(acpi.start)).map_err(BootError::Memory)?;
    let params = params::boot_params(ram_bytes, kernel.header, initrd, command_line.len() as u32);
    memory.write_obj(params, GuestAddress(BOOT_PARAMS)).map_err(BootError::Memory)?;
    page_tables(memory)?;
    first_state(memory, kernel.entry)
}

/// Identity map of the first 4 GiB by 2 MiB pages, supervisor only.
fn page_tables(memory: &GuestMemory) -> Result<(), BootError> {
    let write = |value: u64, at: u64| memory.write_obj(value, GuestAddress(at)).map_err(BootError::Memory);
    write(PDPT | PRESENT_WRITABLE, PML4)?;
    for gib in 0..4 {
        let directory = PAGE_DIRECTORIES + gib * 0x1000;
        write(directory | PRESENT_WRITABLE, PDPT + gib * 8)?;
        for slot in 0..512 {
            write(gib << 30 | slot << 21 | HUGE | PRESENT_WRITABLE, directory + slot * 8)?;
        }
    }
    Ok(())
}

/// Lets CPL3 use the boot tables' identity map.
pub fn open_to_users(memory: &GuestMemory) -> Result<(), BootError> {
    let open = |at: u64| {
        let entry: u64 = memory.read_obj(GuestAddress(at)).map_err(BootError::Memory)?;
        memory.write_obj(entry | USER, GuestAddress(at)).map_err(BootError::Memory)
    };
    open(PML4)?;
    (0..4).try_for_each(|gib| open(PDPT + gib * 8))?;
    (0..4 * 512).try_for_each(|slot| open(PAGE_DIRECTORIES + slot * 8))
}

fn first_state(memory: &GuestMemory, entry: u64) -> Result<CpuState, BootError> {
    // Selectors 0x10 (code) and 0x18 (data), as the boot protocol names them.
    let descriptors: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    for (slot, descriptor) in descriptors.iter().enumerate() {
        memory.write_obj(*descriptor, GuestAddress(GDT + slot as u64 * 8)).map_err(BootError::Memory)?;
    }
    let code = Segment { selector: 0x10, base: 0, limit: u32::MAX, access: 0xa09b };
    let data = Segment { selector: 0x18, base: 0, limit: u32::MAX, access: 0xc093 };
    let unusable = Segment { access: 1 << 16, ..Segment::default() };
    let task = Segment { selector: 0, base: 0, limit: 0xffff, access: 0x8b };
    let mut state = CpuState {
        rip: entry,
        rflags: 2,
        segments: [data, code, data, data, data, data, unusable, task],
        gdtr: TableRegister { base: GDT, limit: 31 },
        idtr: TableRegister { base: 0, limit: 0 },
        // CR0: PG, AM off, WP, NE, ET, PE. CR4: PAE.
        cr: [0x8001_0031, 0, PML4, 0x20, 0],
        // EFER: LMA, LME, SCE off.
        efer: 0x500,
        dr: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
        ..CpuState::default()
    };
    state.gpr[6] = BOOT_PARAMS;
    Ok(state)
}

#[cfg(test)]
#[path = "boot_tests.rs"]
mod tests;
