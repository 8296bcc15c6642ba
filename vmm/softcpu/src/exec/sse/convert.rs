//! Conversions between XMM and general registers, under MXCSR.

use std::arch::asm;

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{Bits32, Bits64, Operand, Xmm, number};
use crate::decode::{Builder, Lowered, gpr, operand_bytes};
use crate::exec::sse_control::{self, unless_traps};
use crate::op::{Handler, Op, next};
use crate::word::Word;
use crate::{Cpu, or_abort};

/// From a general register or memory; the rest of the XMM register stays.
trait FromInteger {
    type Integer: Word;
    fn apply(a: Xmm, b: Self::Integer) -> Xmm;
}

/// To a general register.
trait ToInteger {
    type Integer: Word;
    type Memory: Operand;
    fn apply(b: Xmm) -> Self::Integer;
}

macro_rules! from_integer {
    ($($name:ident $template:literal $integer:ty;)*) => {$(
        struct $name;

        impl FromInteger for $name {
            type Integer = $integer;
            #[inline(always)]
            fn apply(mut a: Xmm, b: $integer) -> Xmm {
                // SAFETY: the instruction touches nothing but its operands and the flags of MXCSR, whose
                // exceptions are masked.
                unsafe {
                    asm!($template, inout(xmm_reg) a, in(reg) b, options(nomem, nostack, preserves_flags))
                };
                a
            }
        }
    )*};
}

macro_rules! to_integer {
    ($($name:ident $template:literal $integer:ty, $memory:ident;)*) => {$(
        struct $name;

        impl ToInteger for $name {
            type Integer = $integer;
            type Memory = $memory;
            #[inline(always)]
            fn apply(b: Xmm) -> $integer {
                let value;
                // SAFETY: the instruction touches nothing but its operands and the flags of MXCSR, whose
                // exceptions are masked.
                unsafe {
                    asm!(
                        $template,
                        out(reg) value,
                        in(xmm_reg) b,
                        options(nomem, nostack, preserves_flags)
                    )
                };
                value
            }
        }
    )*};
}

from_integer! {
    Si2ss32 "cvtsi2ss {}, {:e}" u32;
    Si2ss64 "cvtsi2ss {}, {}" u64;
    Si2sd32 "cvtsi2sd {}, {:e}" u32;
    Si2sd64 "cvtsi2sd {}, {}" u64;
}

to_integer! {
    Ss2si32 "cvtss2si {:e}, {}" u32, Bits32;
    Ss2si64 "cvtss2si {}, {}" u64, Bits32;
    Sd2si32 "cvtsd2si {:e}, {}" u32, Bits64;
    Sd2si64 "cvtsd2si {}, {}" u64, Bits64;
    Tss2si32 "cvttss2si {:e}, {}" u32, Bits32;
    Tss2si64 "cvttss2si {}, {}" u64, Bits32;
    Tsd2si32 "cvttsd2si {:e}, {}" u32, Bits64;
    Tsd2si64 "cvttsd2si {}, {}" u64, Bits64;
}

#[inline(never)]
fn from_r<K: FromInteger, const TRAPS: bool>(cpu: &mut Cpu, op: &Op) {
    unless_traps!(cpu, op, TRAPS, from_r, K);
    let (a, b) = (cpu.xmm(op.dst), cpu.reg::<K::Integer>(op.src));
    let result = or_abort!(cpu, op, sse_control::float::<Xmm, TRAPS>(cpu, move || K::apply(a, b)));
    cpu.set_xmm(op.dst, result);
    next(cpu, op)
}

#[inline(never)]
fn from_m<K: FromInteger, const TRAPS: bool>(cpu: &mut Cpu, op: &Op) {
    unless_traps!(cpu, op, TRAPS, from_m, K);
    let b = or_abort!(cpu, op, cpu.read::<K::Integer>(cpu.address(op)));
    let a = cpu.xmm(op.dst);
    let result = or_abort!(cpu, op, sse_control::float::<Xmm, TRAPS>(cpu, move || K::apply(a, b)));
    cpu.set_xmm(op.dst, result);
    next(cpu, op)
}

#[inline(never)]
fn to_from_r<K: ToInteger, const TRAPS: bool>(cpu: &mut Cpu, op: &Op) {
    unless_traps!(cpu, op, TRAPS, to_from_r, K);
    let b = cpu.xmm(op.src);
    let result = or_abort!(cpu, op, sse_control::float::<K::Integer, TRAPS>(cpu, move || K::apply(b)));
    cpu.set_reg(op.dst, result);
    next(cpu, op)
}

#[inline(never)]
fn to_from_m<K: ToInteger, const TRAPS: bool>(cpu: &mut Cpu, op: &Op) {
    unless_traps!(cpu, op, TRAPS, to_from_m, K);
    let b = or_abort!(cpu, op, K::Memory::load(cpu, cpu.address(op)));
    let result = or_abort!(cpu, op, sse_control::float::<K::Integer, TRAPS>(cpu, move || K::apply(b)));
    cpu.set_reg(op.dst, result);
    next(cpu, op)
}

fn from<K: FromInteger>() -> [Handler; 2] {
    [from_r::<K, false>, from_m::<K, false>]
}

fn to<K: ToInteger>() -> [Handler; 2] {
    [to_from_r::<K, false>, to_from_m::<K, false>]
}

/// Those that may be without an XMM register.
pub fn to_integer(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::Cvtss2si | M::Cvtsd2si | M::Cvttss2si | M::Cvttsd2si)
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    use Mnemonic as M;
    let wide = |operand| operand_bytes(insn, operand) == 8;
    let is_from = matches!(insn.mnemonic(), M::Cvtsi2ss | M::Cvtsi2sd);
    let [from_register, from_memory] = match insn.mnemonic() {
        M::Cvtsi2ss if wide(1) => from::<Si2ss64>(),
        M::Cvtsi2ss => from::<Si2ss32>(),
        M::Cvtsi2sd if wide(1) => from::<Si2sd64>(),
        M::Cvtsi2sd => from::<Si2sd32>(),
        M::Cvtss2si if wide(0) => to::<Ss2si64>(),
        M::Cvtss2si => to::<Ss2si32>(),
        M::Cvtsd2si if wide(0) => to::<Sd2si64>(),
        M::Cvtsd2si => to::<Sd2si32>(),
        M::Cvttss2si if wide(0) => to::<Tss2si64>(),
        M::Cvttss2si => to::<Tss2si32>(),
        M::Cvttsd2si if wide(0) => to::<Tsd2si64>(),
        M::Cvttsd2si => to::<Tsd2si32>(),
        _ => return Lowered::Unknown,
    };
    let register = |register| if is_from { gpr(register).unwrap_or_default() } else { number(register) };
    let mut op = Op::new(from_register);
    if insn.op1_kind() == OpKind::Memory {
        op.run = from_memory;
        builder.memory(&mut op, insn);
    } else {
        op.src = register(insn.op1_register());
    }
    op.dst = match is_from {
        true => number(insn.op0_register()),
        false => gpr(insn.op0_register()).unwrap_or_default(),
    };
    builder.push(op);
    Lowered::Continues
}
