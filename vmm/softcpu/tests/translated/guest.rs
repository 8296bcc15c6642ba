//! A guest with privileges, tables and handlers.
//!
//! ```text
//! linear                      physical
//! CODE, STACK, DATA    user   0x1_8000, 0x1_a000, 0x1_c000
//! KERNEL + physical    system all RAM: GDT, IDT, TSS, handlers, their stacks, page tables
//! SUMS                 system 0x2_0000
//! ```
//!
//! The handler of an exception notes its frame, and goes on at R15; that of interrupt `IRQ` notes that it
//! came.

use iced_x86::code_asm::*;
use softcpu::{Segment, State};

pub const RAM: usize = 0x3_0000;
pub const PAGE: u64 = 0x1000;
pub const KERNEL: u64 = 0xffff_8000_0000_0000;
pub const CODE: u64 = 0x40_0000;
pub const CODE_AT: u64 = 0x1_8000;
pub const STACK: u64 = 0x50_0000;
pub const STACK_AT: u64 = 0x1_a000;
/// RSP at first.
pub const STACK_TOP: u64 = STACK + 0x1800;
pub const DATA: u64 = 0x60_0000;
pub const DATA_AT: u64 = 0x1_c000;
/// What the handlers note.
pub const SUMS_AT: u64 = 0x2_0000;
/// The same for the handlers, in reach of 32 bits.
const SUMS: u64 = 0xffff_ffff_8000_0000;
/// The first physical address that is not used.
pub const FREE: u64 = 0x2_1000;
/// The vector of the interrupt that has a handler.
pub const IRQ: u8 = 0x40;
/// The vector whose handler halts.
const HALT: u8 = 0x41;
pub const READ_ONLY: u64 = 5;
pub const WRITABLE: u64 = 7;
const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const HANDLERS: u64 = 0x4000;
const HANDLER: u64 = 64;
/// Entry of SYSCALL.
const SYSCALL: u64 = HANDLERS + 0x42 * HANDLER;
pub const TABLES: u64 = 0x8000;
const WITH_ERROR: [u64; 7] = [8, 10, 11, 12, 13, 14, 17];
/// Descriptors from GDT + 8 on: code and data of CPL 0, none, data and code of CPL 3, code and data of CPL 1.
const DESCRIPTORS: [u64; 7] = [
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x00af_bb00_0000_ffff,
    0x00cf_b300_0000_ffff,
];

/// RAM and state at the start.
#[derive(Clone)]
pub struct Guest {
    pub ram: Vec<u8>,
    pub state: State,
    next: u64,
}

/// RFLAGS.AC.
pub const AC: u64 = 1 << 18;

/// Instructions behind which the guest goes on if they fault.
macro_rules! may_fault {
    ($a:ident, $($insn:expr;)*) => {$(
        let mut behind = $a.create_label();
        $a.lea(r15, qword_ptr(behind))?;
        $insn?;
        $a.set_label(&mut behind)?;
        $a.nop()?;
    )*};
}
pub(crate) use may_fault;

pub type Build<'a> = &'a dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Code for an address.
pub fn assemble(at: u64, build: Build) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).expect("64 bits");
    build(&mut assembler).expect("valid operands");
    assembler.assemble(at).expect("branches in reach")
}

impl Guest {
    /// A guest whose code is followed by a HLT, and whose privilege is `cpl`.
    pub fn new(cpl: u8, build: Build) -> Self {
        let mut guest = Self { ram: vec![0; RAM], state: State::default(), next: TABLES + PAGE };
        for page in 0..RAM as u64 / PAGE {
            guest.map(KERNEL + page * PAGE, page * PAGE, 3);
        }
        for (linear, physical, pages) in [(CODE, CODE_AT, 2), (STACK, STACK_AT, 2), (DATA, DATA_AT, 4)] {
            for page in 0..pages {
                guest.map(linear + page * PAGE, physical + page * PAGE, WRITABLE);
            }
        }
        guest.map(SUMS, SUMS_AT, 3);
        for (n, chunk) in guest.ram[STACK_AT as usize..SUMS_AT as usize].chunks_exact_mut(8).enumerate() {
            chunk.copy_from_slice(&(n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        }
        guest.descriptors();
        guest.registers();
        guest.set_privilege(cpl);
        guest.code(build);
        guest
    }

    /// Replaces the code. Behind it comes the interrupt whose handler halts.
    pub fn code(&mut self, build: Build) {
        let code = assemble(CODE, &|a| {
            build(a)?;
            a.int(i32::from(HALT))
        });
        assert!(code.len() < 2 * PAGE as usize);
        self.write(CODE_AT, &code);
    }

    pub fn write(&mut self, physical: u64, bytes: &[u8]) {
        self.ram[physical as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    pub fn word(&self, physical: u64) -> u64 {
        u64::from_le_bytes(self.ram[physical as usize..][..8].try_into().expect("eight bytes"))
    }

    pub fn set_word(&mut self, physical: u64, value: u64) {
        self.write(physical, &value.to_le_bytes());
    }

    /// Maps a page; bit 0 of `bits` says whether it is present.
    pub fn map(&mut self, linear: u64, physical: u64, bits: u64) {
        let entry = self.entry(linear);
        self.set_word(entry, physical | bits);
    }

    /// Where the entry of a page is, in the last table.
    pub fn entry(&mut self, linear: u64) -> u64 {
        let mut table = TABLES;
        for shift in [39, 30, 21] {
            let entry = table + (linear >> shift & 511) * 8;
            if self.word(entry) == 0 {
                assert!(self.next < CODE_AT, "room for tables");
                self.set_word(entry, self.next | 7);
                self.next += PAGE;
            }
            table = self.word(entry) & 0xf_ffff_f000;
        }
        table + (linear >> 12 & 511) * 8
    }

    /// CPL 0, 1 or 3.
    pub fn set_privilege(&mut self, cpl: u8) {
        let (code, data, dpl) = match cpl {
            0 => (0x08, 0x10, 0),
            1 => (0x31, 0x39, 1 << 5),
            _ => (0x2b, 0x23, 3 << 5),
        };
        let flat = |selector, access| Segment { selector, base: 0, limit: u32::MAX, access };
        for segment in &mut self.state.segments[..6] {
            *segment = flat(data, 0xc093 | dpl);
        }
        self.state.segments[1] = flat(code, 0xa09b | dpl);
    }

    fn descriptors(&mut self) {
        for (n, descriptor) in (1..).zip(DESCRIPTORS) {
            self.set_word(GDT + n * 8, descriptor);
        }
        for vector in 0..=u64::from(HALT) {
            let at = KERNEL + HANDLERS + vector * HANDLER;
            let stack = if vector < 32 { 1 } else { 2 };
            let gate = at & 0xffff | 8 << 16 | stack << 32 | 0xee << 40 | (at >> 16 & 0xffff) << 48;
            self.set_word(IDT + vector * 16, gate);
            self.set_word(IDT + vector * 16 + 8, at >> 32);
            self.write(HANDLERS + vector * HANDLER, &handler(vector, at));
        }
        let entry = assemble(KERNEL + SYSCALL, &|a| {
            a.inc(qword_ptr(SUMS + 8))?;
            a.sysretq()
        });
        self.write(SYSCALL, &entry);
        self.set_word(TSS + 4, KERNEL + 0x8000);
        self.set_word(TSS + 0x24, KERNEL + 0x7000);
        self.set_word(TSS + 0x2c, KERNEL + 0x8000);
        // No I/O bitmap: it would begin beyond the limit.
        self.write(TSS + 0x66, &0x68u16.to_le_bytes());
    }

    fn registers(&mut self) {
        let state = &mut self.state;
        let none = Segment { selector: 0, base: 0, limit: 0, access: Segment::UNUSABLE };
        state.segments = [none; 8];
        state.segments[7] = Segment { selector: 0x18, base: KERNEL + TSS, limit: 0x67, access: 0x8b };
        (state.gdtr.base, state.gdtr.limit) = (KERNEL + GDT, 0xff);
        (state.idtr.base, state.idtr.limit) = (KERNEL + IDT, 0xfff);
        // PG, AM, WP, NE, ET, MP, PE; PAE, PGE, OSFXSR, OSXMMEXCPT; NXE, LMA, LME, SCE.
        (state.cr0, state.cr3, state.cr4, state.efer) = (0x8005_0033, TABLES, 0x6a0, 0xd01);
        (state.msrs.star, state.msrs.lstar) = (0x1b_0008 << 32, KERNEL + SYSCALL);
        state.msrs.sfmask = 0x4_0700;
        state.gpr = std::array::from_fn(|n| 0x0123_4567_89ab_cdef_u64.rotate_left(7 * n as u32));
        state.gpr[4] = STACK_TOP;
        state.gpr[3] = DATA;
        (state.rip, state.rflags) = (CODE, 0x202);
        for (n, xmm) in state.xmm.iter_mut().enumerate() {
            *xmm = 0x3ff8_0000_4040_0000_4008_0000_3f80_0000_u128.rotate_left(8 * n as u32);
        }
    }
}

/// A handler: notes what it finds.
fn handler(vector: u64, at: u64) -> Vec<u8> {
    let sum = |n: u64| qword_ptr(SUMS + 8 * n);
    assemble(at, &|a| {
        if vector == u64::from(HALT) {
            return a.hlt();
        }
        if WITH_ERROR.contains(&vector) {
            a.add(rsp, 8)?;
        }
        a.push(rax)?;
        a.mov(rax, qword_ptr(rsp + 24))?;
        a.xor(rax, qword_ptr(rsp + 8))?;
        a.rol(sum(0), 9)?;
        a.add(sum(0), rax)?;
        a.inc(sum(16 + vector))?;
        if vector < 32 {
            a.mov(qword_ptr(rsp + 8), r15)?;
        }
        a.pop(rax)?;
        a.iretq()
    })
}
