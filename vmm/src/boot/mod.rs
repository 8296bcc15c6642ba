//! Boot: pure functions that put a guest image and its tables into memory and give the first CPU state.
//!
//! The 64-bit boot protocol of Linux (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"): long mode,
//! paging on with an identity map, interrupts off, flat segments, RSI at `boot_params`.
//!
//! ```text
//!  0x500  GDT      0x7000 boot_params     0x9000.. page tables (PML4, PDPT, 4 × PD)     0x20000 command line
//! ```

use std::io::Cursor;

use linux_loader::loader::KernelLoader;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::elf::Elf;
use vm_memory::{Bytes, GuestAddress};

use crate::engine::state::{CpuState, Segment, TableRegister};
use crate::memory::GuestMemory;

const GDT: u64 = 0x500;
const BOOT_PARAMS: u64 = 0x7000;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
const PAGE_DIRECTORIES: u64 = 0xb000;
const COMMAND_LINE: u64 = 0x2_0000;
const COMMAND_LINE_MAX: usize = 4096;
const LOW_RAM_END: u64 = 0x9_fc00;
const HIGH_RAM_START: u64 = 0x10_0000;

/// Present, writable, and accessed and dirty from the start: a CPU that sets these bits by itself does so
/// also speculatively, which no log determines, and RAM would differ between replicas.
const PRESENT_WRITABLE: u64 = 0x63;
const HUGE: u64 = 1 << 7;
const USER: u64 = 1 << 2;

const E820_RAM: u32 = 1;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
const LOADER_UNDEFINED: u8 = 0xff;

/// Why a guest image cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The image is no such ELF file, or does not fit.
    #[error(
        "cannot load the guest image: {0}. It must be a static 64-bit ELF that loads between 1 MiB and the \
         end of RAM"
    )]
    Image(#[source] linux_loader::loader::Error),
    /// The image loads where the boot tables are.
    #[error("the guest image's entry point {0:#x} is below 1 MiB, where the boot tables are")]
    TooLow(u64),
    /// The command line is too long.
    #[error("the guest command line has {0} bytes, {COMMAND_LINE_MAX} allowed")]
    CommandLine(usize),
    /// Guest memory is too small for the tables.
    #[error("cannot write the boot tables: {0}")]
    Memory(#[source] vm_memory::GuestMemoryError),
}

/// Loads the ELF `image` and makes everything it needs; the result is the vCPU's first state.
pub fn load_elf64(
    memory: &GuestMemory,
    ram_bytes: u64,
    image: &[u8],
    command_line: &str,
) -> Result<CpuState, BootError> {
    let high = Some(GuestAddress(HIGH_RAM_START));
    let loaded = Elf::load(memory, None, &mut Cursor::new(image), high).map_err(BootError::Image)?;
    boot_tables(memory, ram_bytes, loaded.kernel_load.0, command_line)
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
    boot_tables(memory, ram_bytes, entry, command_line)
}

fn boot_tables(
    memory: &GuestMemory,
    ram_bytes: u64,
    entry: u64,
    command_line: &str,
) -> Result<CpuState, BootError> {
    if entry < HIGH_RAM_START {
        return Err(BootError::TooLow(entry));
    }
    if command_line.len() >= COMMAND_LINE_MAX {
        return Err(BootError::CommandLine(command_line.len()));
    }
    let mut line = command_line.as_bytes().to_vec();
    line.push(0);
    let params = params(ram_bytes, command_line.len() as u32);
    memory.write_slice(&line, GuestAddress(COMMAND_LINE)).map_err(BootError::Memory)?;
    memory.write_obj(params, GuestAddress(BOOT_PARAMS)).map_err(BootError::Memory)?;
    page_tables(memory)?;
    first_state(memory, entry)
}

fn params(ram_bytes: u64, command_line_len: u32) -> boot_params {
    let mut params = boot_params::default();
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = COMMAND_LINE as u32;
    params.hdr.cmdline_size = command_line_len;
    params.e820_table[0] = boot_e820_entry { addr: 0, size: LOW_RAM_END, r#type: E820_RAM };
    params.e820_table[1] =
        boot_e820_entry { addr: HIGH_RAM_START, size: ram_bytes - HIGH_RAM_START, r#type: E820_RAM };
    params.e820_entries = 2;
    params
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
