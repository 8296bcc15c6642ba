//! MXCSR: the guest's rounding, denormal handling and sticky flags live in the host's MXCSR while the
//! processor runs, all exceptions masked (SDM vol. 1, 10.2.3). So no Rust code in between may compute with
//! floats. Also LDMXCSR, STMXCSR, FXSAVE, FXRSTOR (`area`) and what else of SSE has no SSE register.
//!
//! A guest that unmasks exceptions is rare: its operations are executed masked, with cleared flags, and what
//! they raise is looked at before anything is stored (SDM vol. 1, 11.5 and appendix E).

mod area;

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::sse::switched_off;
use crate::cpu::mode;
use crate::decode::{Builder, Lowered, gpr};
use crate::exception::{Exception, vector};
use crate::op::{Op, next};
use crate::word::Word;
use crate::{Cpu, Fault, or_abort};

/// All exceptions masked.
const MASKS: u32 = 0x1f80;
const STICKY: u32 = 0x3f;
/// Invalid operation, denormal operand, division by zero: found before the operation is carried out.
const EARLY: u32 = 7;
/// Precision (inexact result).
const PE: u32 = 1 << 5;
/// Overflow.
const OE: u32 = 1 << 3;
/// Underflow.
const UE: u32 = 1 << 4;
/// Flush to zero.
const FTZ: u32 = 1 << 15;
/// The bits that are not reserved: MXCSR_MASK of FXSAVE.
const MXCSR_MASK: u32 = 0xffff;
const CR4_OSXMMEXCPT: u64 = 1 << 10;

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
    let value = value & MXCSR_MASK | MASKS;
    // SAFETY: loads four bytes of `value`; no reserved bit is set.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const value, options(nostack, preserves_flags)) };
}

impl Cpu {
    /// MXCSR with the flags collected so far.
    fn current_mxcsr(&self) -> u32 {
        self.mxcsr | read() & STICKY
    }

    /// Loads MXCSR, or #GP(0) for reserved bits.
    fn load_mxcsr(&mut self, value: u32) -> Result<(), Fault> {
        if value & !MXCSR_MASK != 0 {
            return self.raise(Exception::gp(0));
        }
        self.mxcsr = value;
        write(value);
        Ok(())
    }
}

/// The guest has an exception unmasked.
#[inline(always)]
pub fn traps(cpu: &Cpu) -> bool {
    cpu.mxcsr & MASKS != MASKS
}

/// Begins the handler `$handler<$kind, TRAPS>` of an operation that reads MXCSR and sets flags there: which
/// of its two forms is executed is found out here, so that the usual one needs no stack frame.
macro_rules! unless_traps {
    ($cpu:ident, $op:ident, $traps:ident, $handler:ident, $kind:ty) => {
        if !$traps && $crate::exec::sse_control::traps($cpu) {
            return $handler::<$kind, true>($cpu, $op);
        }
    };
}
pub(super) use unless_traps;

/// Executes such an operation.
#[inline(always)]
pub fn float<R, const TRAPS: bool>(cpu: &mut Cpu, apply: impl Fn() -> R) -> Result<R, Fault> {
    if TRAPS { trapping(cpu, apply, |_| None) } else { Ok(apply()) }
}

/// With an exception unmasked: the destination stays when it is raised. `inexact` is given MXCSR and says
/// whether the result would be inexact without bounds of its exponent, if that is known.
#[cold]
#[inline(never)]
pub fn trapping<R>(
    cpu: &mut Cpu,
    apply: impl Fn() -> R,
    inexact: impl Fn(u32) -> Option<bool>,
) -> Result<R, Fault> {
    let unmasked = !cpu.mxcsr >> 7 & STICKY;
    let before = read();
    let quiet = before & !STICKY;
    let mut tiny = 0;
    if unmasked & UE != 0 {
        // An unmasked underflow is any tiny result, a masked one only an inexact one: flushing tells.
        write(quiet | FTZ);
        apply();
        tiny = read() & UE;
    }
    write(if unmasked & UE != 0 { quiet & !FTZ } else { quiet });
    let result = apply();
    let mut raised = read() & STICKY | tiny;
    if raised & unmasked & EARLY != 0 {
        raised &= EARLY;
    } else if raised & unmasked & (OE | UE) != 0
        && let Some(inexact) = inexact(before)
    {
        // A masked overflow or underflow beside it is inexact by itself.
        let beside = raised & !unmasked & (OE | UE) != 0;
        raised = raised & !PE | if inexact || beside { PE } else { 0 };
    }
    write(before | raised);
    if raised & unmasked == 0 {
        return Ok(result);
    }
    cpu.raise(if cpu.cr4 & CR4_OSXMMEXCPT != 0 { Exception::fault(vector::XM) } else { Exception::ud() })
}

fn ldmxcsr(cpu: &mut Cpu, op: &Op) {
    let value = or_abort!(cpu, op, cpu.read::<u32>(cpu.address(op)));
    or_abort!(cpu, op, cpu.load_mxcsr(value));
    next(cpu, op)
}

fn stmxcsr(cpu: &mut Cpu, op: &Op) {
    let value = cpu.current_mxcsr();
    or_abort!(cpu, op, cpu.write(cpu.address(op), value));
    next(cpu, op)
}

fn movnti<W: Word>(cpu: &mut Cpu, op: &Op) {
    let value = cpu.reg::<W>(op.src);
    or_abort!(cpu, op, cpu.write(cpu.address(op), value));
    next(cpu, op)
}

/// There is nothing to flush, but it faults as a load does.
fn clflush(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.read::<u8>(cpu.address(op)));
    next(cpu, op)
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    use Mnemonic as M;
    if insn.op0_kind() != OpKind::Memory {
        return Lowered::Unknown;
    }
    let (run, undefined_in): (crate::op::Handler, _) = match insn.mnemonic() {
        M::Ldmxcsr => (ldmxcsr, Some(mode::NO_SSE)),
        M::Stmxcsr => (stmxcsr, Some(mode::NO_SSE)),
        M::Fxsave => (area::fxsave::<false>, Some(mode::EMULATION)),
        M::Fxsave64 => (area::fxsave::<true>, Some(mode::EMULATION)),
        M::Fxrstor => (area::fxrstor::<false>, Some(mode::EMULATION)),
        M::Fxrstor64 => (area::fxrstor::<true>, Some(mode::EMULATION)),
        M::Movnti if insn.op1_register().size() == 8 => (movnti::<u64>, None),
        M::Movnti => (movnti::<u32>, None),
        M::Clflush => (clflush, None),
        _ => return Lowered::Unknown,
    };
    if let Some(ended) = undefined_in.and_then(|modes| switched_off(builder, modes)) {
        return ended;
    }
    let mut op = Op::new(run);
    if insn.op_count() == 2 {
        op.src = gpr(insn.op1_register()).unwrap_or_default();
    }
    builder.memory(&mut op, insn);
    builder.push(op);
    Lowered::Continues
}
