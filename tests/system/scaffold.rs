//! What stands around the code under test: page tables, descriptor tables, a TSS, and an interrupt gate for
//! every vector whose handler halts at once, so that the frame that the processor pushed is read from
//! outside.
//!
//! Linear addresses equal physical ones below 4 GiB, in 2 MiB pages. The first 2 MiB of RAM are the
//! supervisor's, the rest is the user's.

use std::sync::OnceLock;

use iced_x86::code_asm::CodeAssembler;
use lockstep::boot;
use lockstep::engine::state::{CpuState, Segment, TableRegister};
use lockstep::memory::Ram;

pub const RAM_BYTES: u64 = 16 << 20;
/// Code at CPL0.
pub const KERNEL_CODE: u64 = 0x10_0000;
/// Entry of vector n at `HANDLERS + n * HANDLER_BYTES`.
pub const HANDLERS: u64 = 0x11_0000;
pub const HANDLER_BYTES: u64 = 16;
/// Data of the supervisor.
pub const KERNEL_DATA: u64 = 0x12_0000;
/// RSP of code at CPL0.
pub const KERNEL_STACK: u64 = 0x13_4000;
/// RSP0 in the TSS; RSP1 and RSP2 lie 0x400 and 0x800 below.
pub const RSP0: u64 = 0x13_8000;
/// IST1; IST n lies `(n - 1) * 0x400` above.
pub const IST1: u64 = 0x13_a000;
pub const PML4: u64 = 0x14_0000;
pub const PDPT: u64 = 0x14_1000;
pub const DIRECTORIES: u64 = 0x14_2000;
pub const GDT: u64 = 0x16_0000;
pub const IDT: u64 = 0x16_1000;
pub const TSS: u64 = 0x16_2000;
pub const LDT: u64 = 0x16_8000;
/// Room for page tables that a test makes.
pub const MORE_TABLES: u64 = 0x18_0000;
/// Code at CPL3.
pub const USER_CODE: u64 = 0x20_0000;
/// Data at CPL3.
pub const USER_DATA: u64 = 0x28_0000;
/// RSP of code at CPL3.
pub const USER_STACK: u64 = 0x30_0000;
/// Memory that tests map as they like.
pub const FRAMES: u64 = 0x40_0000;

/// Selectors, as Linux has them.
pub const KERNEL32_CS: u16 = 0x08;
pub const KERNEL_CS: u16 = 0x10;
pub const KERNEL_DS: u16 = 0x18;
pub const USER32_CS: u16 = 0x23;
pub const USER_DS: u16 = 0x2b;
pub const USER_CS: u16 = 0x33;
pub const TASK: u16 = 0x40;
pub const LOCAL: u16 = 0x50;
/// Descriptors from here are the test's.
pub const FREE: u16 = 0x60;
const GDT_LIMIT: u16 = 0x1ff;

pub const KERNEL32_CODE: u64 = 0x00cf_9b00_0000_ffff;
pub const KERNEL64_CODE: u64 = 0x00af_9b00_0000_ffff;
pub const KERNEL_FLAT: u64 = 0x00cf_9300_0000_ffff;
pub const USER32_CODE: u64 = 0x00cf_fb00_0000_ffff;
pub const USER64_CODE: u64 = 0x00af_fb00_0000_ffff;
pub const USER_FLAT: u64 = 0x00cf_f300_0000_ffff;

/// Bits of page-table entries (SDM vol. 3, 4.5).
pub const P: u64 = 1;
pub const RW: u64 = 1 << 1;
pub const US: u64 = 1 << 2;
pub const A: u64 = 1 << 5;
pub const D: u64 = 1 << 6;
pub const PS: u64 = 1 << 7;
pub const G: u64 = 1 << 8;
pub const NX: u64 = 1 << 63;

/// Bits of control registers.
pub const CR0_MP: u64 = 1 << 1;
pub const CR0_EM: u64 = 1 << 2;
pub const CR0_TS: u64 = 1 << 3;
pub const CR0_WP: u64 = 1 << 16;
pub const CR0_AM: u64 = 1 << 18;
/// PAE, PGE, OSFXSR, OSXMMEXCPT. The model has no debugging extensions.
pub const CR4: u64 = 0x6a0;
pub const CR4_TSD: u64 = 1 << 2;
pub const CR4_PGE: u64 = 1 << 7;
pub const CR4_OSFXSR: u64 = 1 << 9;
pub const CR4_OSXMMEXCPT: u64 = 1 << 10;
pub const CR4_SMEP: u64 = 1 << 20;
pub const CR4_SMAP: u64 = 1 << 21;

/// Bits of RFLAGS.
pub const CF: u64 = 1;
pub const ZF: u64 = 1 << 6;
/// CF, PF, AF, ZF, SF, OF.
pub const STATUS: u64 = 0x8d5;
pub const TF: u64 = 1 << 8;
pub const IF: u64 = 1 << 9;
pub const DF: u64 = 1 << 10;
pub const IOPL3: u64 = 3 << 12;
pub const NT: u64 = 1 << 14;
pub const RF: u64 = 1 << 16;
pub const AC: u64 = 1 << 18;
pub const ID: u64 = 1 << 21;

/// Indices of `CpuState::segments`.
pub const ES: usize = 0;
pub const CS: usize = 1;
pub const SS: usize = 2;
pub const DS: usize = 3;
pub const FS: usize = 4;
pub const GS: usize = 5;
pub const LDTR: usize = 6;
pub const TR: usize = 7;

/// Indices of `CpuState::gpr`.
pub const RAX: usize = 0;
pub const RCX: usize = 1;
pub const RDX: usize = 2;
pub const RBX: usize = 3;
pub const RSP: usize = 4;
pub const RSI: usize = 6;
pub const RDI: usize = 7;

/// The port that ends a test.
pub const DONE_PORT: u16 = 0xf4;
const TSS_LIMIT: u32 = 0x2068;
const IO_MAP: u64 = 0x68;

/// Vectors whose exceptions push an error code (SDM vol. 3, table 6-1).
pub fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}

/// Assembles `program` for `address`.
pub fn assemble(
    bits: u32,
    address: u64,
    program: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> Vec<u8> {
    let mut asm = CodeAssembler::new(bits).expect("an assembler");
    program(&mut asm).expect("a valid program");
    asm.assemble(address).expect("assembles")
}

/// A 64-bit interrupt gate (type 14) or trap gate (15) to `target` (SDM vol. 3, 6.14.1).
pub fn gate(kind: u64, selector: u16, target: u64, dpl: u64, ist: u64) -> [u8; 16] {
    let low = (target & 0xffff)
        | u64::from(selector) << 16
        | ist << 32
        | (0x80 | dpl << 5 | kind) << 40
        | (target >> 16 & 0xffff) << 48;
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&low.to_le_bytes());
    bytes[8..].copy_from_slice(&(target >> 32).to_le_bytes());
    bytes
}

/// Address of the handler of `vector`.
pub fn handler(vector: u8) -> u64 {
    HANDLERS + u64::from(vector) * HANDLER_BYTES
}

/// The usual interrupt gate of `vector` with another DPL or IST.
pub fn usual_gate(vector: u8, dpl: u64, ist: u64) -> [u8; 16] {
    gate(14, KERNEL_CS, handler(vector), dpl, ist)
}

/// Where the gate of `vector` is.
pub fn gate_at(vector: u8) -> u64 {
    IDT + u64::from(vector) * 16
}

/// A 16-byte system descriptor (SDM vol. 3, 8.2.3).
pub fn system_descriptor(access: u64, base: u64, limit: u64) -> [u8; 16] {
    let low = (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | (base >> 24 & 0xff) << 56;
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&low.to_le_bytes());
    bytes[8..].copy_from_slice(&(base >> 32).to_le_bytes());
    bytes
}

/// A code or data descriptor with base and limit (in bytes or, with bit 15 of `access`, in pages).
pub fn descriptor(access: u64, base: u64, limit: u64) -> u64 {
    (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | (access & 0xf0ff) << 40
        | (limit >> 16 & 0xf) << 48
        | (base >> 24 & 0xff) << 56
}

/// Code at CPL0 or CPL3 starts like this.
pub fn first_state(user: bool, compat: bool) -> CpuState {
    static BASE: OnceLock<CpuState> = OnceLock::new();
    let base = BASE.get_or_init(|| {
        let ram = Ram::new(RAM_BYTES).expect("guest memory");
        boot::load_flat64(ram.map(), RAM_BYTES, &[], KERNEL_CODE, "").expect("a first state")
    });
    let mut state = base.clone();
    state.gpr = std::array::from_fn(|n| if n < 8 { 0 } else { 0x0101_0101_0101_0101 * n as u64 });
    state.cr = [0x8005_0033, 0, PML4, CR4, 0];
    state.efer = 0xd01;
    state.gdtr = TableRegister { base: GDT, limit: GDT_LIMIT };
    state.idtr = TableRegister { base: IDT, limit: 0xfff };
    state.rflags = 2;
    let flat = |selector, access| Segment { selector, base: 0, limit: u32::MAX, access };
    let (code, data, rsp, rip) = match (user, compat) {
        (false, false) => (flat(KERNEL_CS, 0xa09b), flat(KERNEL_DS, 0xc093), KERNEL_STACK, KERNEL_CODE),
        (false, true) => (flat(KERNEL32_CS, 0xc09b), flat(KERNEL_DS, 0xc093), KERNEL_STACK, KERNEL_CODE),
        (true, false) => (flat(USER_CS, 0xa0fb), flat(USER_DS, 0xc0f3), USER_STACK, USER_CODE),
        (true, true) => (flat(USER32_CS, 0xc0fb), flat(USER_DS, 0xc0f3), USER_STACK, USER_CODE),
    };
    state.segments[..6].copy_from_slice(&[data, code, data, data, data, data]);
    state.segments[LDTR] = Segment { selector: 0, base: 0, limit: 0, access: 1 << 16 };
    state.segments[TR] = Segment { selector: TASK, base: TSS, limit: TSS_LIMIT, access: 0x8b };
    state.gpr[RSP] = rsp;
    state.rip = rip;
    state
}

/// Everything of the scaffold in memory.
pub fn build(ram: &mut Ram) {
    let mut put = |at: u64, bytes: &[u8]| ram.write(at as usize, bytes);
    // Whatever runs astray halts.
    put(KERNEL_CODE, &[0xf4; 0x1000]);
    put(USER_CODE, &[0xf4; 0x1000]);
    page_tables(&mut put);
    for (selector, entry) in [
        (KERNEL32_CS, KERNEL32_CODE),
        (KERNEL_CS, KERNEL64_CODE),
        (KERNEL_DS, KERNEL_FLAT),
        (USER32_CS, USER32_CODE),
        (USER_DS, USER_FLAT),
        (USER_CS, USER64_CODE),
    ] {
        put(GDT + u64::from(selector & !7), &entry.to_le_bytes());
    }
    put(GDT + u64::from(TASK), &system_descriptor(0x8b, TSS, u64::from(TSS_LIMIT)));
    put(GDT + u64::from(LOCAL), &system_descriptor(0x82, LDT, 0xff));
    for vector in 0..=255u8 {
        put(gate_at(vector), &usual_gate(vector, 0, 0));
        let mut code = vec![0xf4];
        if has_error_code(vector) {
            code.extend([0x48, 0x8d, 0x64, 0x24, 0x08]); // lea rsp, [rsp + 8]
        }
        code.extend([0x48, 0xcf]); // iretq
        put(handler(vector), &code);
    }
    for level in 0..3 {
        put(TSS + 4 + level * 8, &(RSP0 - level * 0x400).to_le_bytes());
    }
    for ist in 0..7 {
        put(TSS + 0x24 + ist * 8, &(IST1 + ist * 0x400).to_le_bytes());
    }
    // Every port is open to CPL3.
    put(TSS + 0x66, &(IO_MAP as u16).to_le_bytes());
    put(TSS + u64::from(TSS_LIMIT), &[0xff]);
}

fn page_tables(put: &mut impl FnMut(u64, &[u8])) {
    put(PML4, &(PDPT | P | RW | US | A).to_le_bytes());
    for gib in 0..4u64 {
        let directory = DIRECTORIES + gib * 0x1000;
        put(PDPT + gib * 8, &(directory | P | RW | US | A).to_le_bytes());
        let entries = (0..512u64).flat_map(|slot| {
            let supervisor = gib == 0 && slot == 0;
            let access = P | RW | A | D | PS | if supervisor { 0 } else { US };
            (gib << 30 | slot << 21 | access).to_le_bytes()
        });
        put(directory, &entries.collect::<Vec<u8>>());
    }
}
