//! The registers as GDB names and orders them, and as its target description says.
//!
//! The core, x87 and SSE registers have GDB's own numbers; after them come the segment bases and, in a
//! feature of ours, what only a kernel has.

use gdbstub::arch::{Arch, Registers};
use gdbstub_arch::x86::reg::{F80, X86_64CoreRegs, X86SegmentRegs, X87FpuInternalRegs};

use crate::engine::CpuState;

/// Position of each of GDB's first sixteen registers (RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, R8…) in
/// `CpuState::gpr`.
const GPR_ORDER: [usize; 16] = [0, 3, 1, 2, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15];
/// CS, SS, DS, ES, FS, GS in `CpuState::segments`.
const SEGMENT_ORDER: [usize; 6] = [1, 2, 3, 0, 4, 5];
const FS: usize = 4;
const GS: usize = 5;
/// Bytes of the core, x87 and SSE registers in GDB's `g` packet.
const CORE_BYTES: usize = 0x218;
/// IA32_KERNEL_GS_BASE.
const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// Bytes of the legacy region that holds x87 and SSE (SDM vol. 1, 10.5.1).
const LEGACY_BYTES: usize = 416;

/// x86-64 as this stub describes it.
#[derive(Debug)]
pub enum X86 {}

/// Everything that goes over the wire, in its order.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct WireRegisters {
    /// General, segment, x87 and SSE registers.
    pub core: X86_64CoreRegs,
    /// FS.base and GS.base.
    pub bases: [u64; 2],
    /// KERNEL_GS_BASE, CR0, CR2, CR3, CR4, CR8, EFER.
    pub system: [u64; 7],
}

impl Registers for WireRegisters {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.core.rip
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        self.core.gdb_serialize(&mut write_byte);
        let words = self.bases.iter().chain(&self.system);
        words.flat_map(|word| word.to_le_bytes()).for_each(|byte| write_byte(Some(byte)));
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        if bytes.len() < CORE_BYTES + 9 * 8 {
            return Err(());
        }
        self.core.gdb_deserialize(&bytes[..CORE_BYTES])?;
        let words = bytes[CORE_BYTES..].chunks_exact(8);
        for (word, bytes) in self.bases.iter_mut().chain(&mut self.system).zip(words) {
            *word = u64::from_le_bytes(bytes.try_into().map_err(|_| ())?);
        }
        Ok(())
    }
}

impl Arch for X86 {
    type Usize = u64;
    type Registers = WireRegisters;
    type BreakpointKind = usize;
    type RegId = ();

    fn target_description_xml() -> Option<&'static str> {
        Some(include_str!("target.xml"))
    }
}

/// The registers for GDB.
pub fn to_wire(cpu: &CpuState) -> WireRegisters {
    let legacy = |at: usize, len: usize| cpu.xsave.get(at..at + len).unwrap_or(&[]);
    let number = |at: usize, len: usize| {
        legacy(at, len).iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte))
    };
    let [cs, ss, ds, es, fs, gs] = SEGMENT_ORDER.map(|index| u32::from(cpu.segments[index].selector));
    let st: [F80; 8] = std::array::from_fn(|i| legacy(32 + 16 * i, 10).try_into().unwrap_or_default());
    let xmm =
        std::array::from_fn(|i| u128::from_le_bytes(legacy(160 + 16 * i, 16).try_into().unwrap_or_default()));
    let fsw = number(2, 2) as u16;
    let fpu = X87FpuInternalRegs {
        fctrl: number(0, 2) as u32,
        fstat: u32::from(fsw),
        ftag: u32::from(full_tags(number(4, 1) as u8, fsw, &st)),
        fiseg: number(12, 4) as u32,
        fioff: number(8, 4) as u32,
        foseg: number(20, 4) as u32,
        fooff: number(16, 4) as u32,
        fop: number(6, 2) as u32 & 0x7ff,
    };
    let core = X86_64CoreRegs {
        regs: GPR_ORDER.map(|index| cpu.gpr[index]),
        rip: cpu.rip,
        eflags: cpu.rflags as u32,
        segments: X86SegmentRegs { cs, ss, ds, es, fs, gs },
        st,
        fpu,
        xmm,
        mxcsr: number(24, 4) as u32,
    };
    let [cr0, cr2, cr3, cr4, cr8] = cpu.cr;
    let kernel_gs =
        cpu.msrs.iter().find(|(index, _)| *index == KERNEL_GS_BASE).map_or(0, |(_, value)| *value);
    WireRegisters {
        core,
        bases: [cpu.segments[FS].base, cpu.segments[GS].base],
        system: [kernel_gs, cr0, cr2, cr3, cr4, cr8, cpu.efer],
    }
}

/// Takes over what GDB may change: general, x87 and SSE registers, RIP, RFLAGS, segment bases. Selectors and
/// control registers stay: writing one has effects that only an instruction brings about.
pub fn from_wire(cpu: &mut CpuState, wire: &WireRegisters) {
    let core = &wire.core;
    for (index, value) in GPR_ORDER.iter().zip(core.regs) {
        cpu.gpr[*index] = value;
    }
    cpu.rip = core.rip;
    cpu.rflags = cpu.rflags & !0xffff_ffff | u64::from(core.eflags) | 2;
    (cpu.segments[FS].base, cpu.segments[GS].base) = (wire.bases[0], wire.bases[1]);
    if cpu.xsave.len() < LEGACY_BYTES {
        return;
    }
    let mut put = |at: usize, bytes: &[u8]| cpu.xsave[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(core.fpu.fctrl as u16).to_le_bytes());
    put(2, &(core.fpu.fstat as u16).to_le_bytes());
    put(4, &[abridged_tags(core.fpu.ftag as u16)]);
    put(24, &(core.mxcsr & 0xffff).to_le_bytes());
    core.st.iter().enumerate().for_each(|(i, st)| put(32 + 16 * i, st));
    core.xmm.iter().enumerate().for_each(|(i, xmm)| put(160 + 16 * i, &xmm.to_le_bytes()));
}

/// The tag word as FSTENV gives it (SDM vol. 1, 8.1.7) from FXSAVE's, which says only which registers are
/// used. Both are indexed by physical register; `st` is in stack order.
fn full_tags(abridged: u8, fsw: u16, st: &[F80; 8]) -> u16 {
    let top = usize::from(fsw >> 11 & 7);
    (0..8).fold(0, |tags, register| {
        let value = &st[(register + 8 - top) % 8];
        let exponent = u16::from_le_bytes([value[8], value[9]]) & 0x7fff;
        let significand = u64::from_le_bytes(value[..8].try_into().expect("eight bytes"));
        let tag = match (abridged >> register & 1, exponent) {
            (0, _) => 3,
            (_, 0) if significand == 0 => 1,
            (_, 0 | 0x7fff) => 2,
            _ if significand >> 63 == 0 => 2,
            _ => 0,
        };
        tags | tag << (2 * register)
    })
}

fn abridged_tags(full: u16) -> u8 {
    (0..8).fold(0, |tags, register| tags | u8::from(full >> (2 * register) & 3 != 3) << register)
}

#[cfg(test)]
#[path = "registers_tests.rs"]
mod tests;
