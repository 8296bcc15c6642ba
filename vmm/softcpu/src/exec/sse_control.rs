//! MXCSR: the guest's rounding, denormal handling and sticky flags live in the host's MXCSR while the
//! processor runs, all exceptions masked (SDM vol. 1, 10.2.3). LDMXCSR, STMXCSR, FXSAVE, FXRSTOR.

use iced_x86::Instruction;

use crate::Cpu;
use crate::decode::{Builder, Lowered};

/// All exceptions masked.
const MASKS: u32 = 0x1f80;
const STICKY: u32 = 0x3f;

/// Loads the guest's MXCSR; the result is the host's.
pub fn enter(cpu: &Cpu) -> u32 {
    let host = read();
    write(cpu.mxcsr | MASKS);
    host
}

/// Collects the sticky flags and loads the host's MXCSR.
pub fn leave(cpu: &mut Cpu, host: u32) {
    cpu.mxcsr |= read() & STICKY;
    write(host);
}

/// The host's MXCSR.
pub fn read() -> u32 {
    let mut value = 0u32;
    // SAFETY: stores four bytes to `value`.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack, preserves_flags)) };
    value
}

/// Sets the host's MXCSR; exceptions stay masked.
pub fn write(value: u32) {
    let value = value & 0xffff | MASKS;
    // SAFETY: loads four bytes of `value`; no reserved bit is set.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const value, options(nostack, preserves_flags)) };
}

pub fn lower(_builder: &mut Builder, _insn: &Instruction) -> Lowered {
    Lowered::Unknown
}
