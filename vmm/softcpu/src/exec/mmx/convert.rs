//! Conversions between MMX and XMM registers, under MXCSR. MMX state is entered even if they raise #XM.

use iced_x86::{Instruction, Mnemonic};

use super::{Forms, lower_forms};
use crate::cpu::mode;
use crate::decode::{Builder, Lowered};
use crate::exec::sse::float::{Cvtdq2pd, Cvtdq2ps, Cvtpd2dq, Cvtps2dq, Cvttpd2dq, Cvttps2dq};
use crate::exec::sse::{Aligned, Binary, Bits64, Operand, Xmm, join, low, split, switched_off};
use crate::exec::sse_control::{self, unless_traps};
use crate::op::{Op, next};
use crate::{Cpu, or_abort};

/// `op xmm, mm/m64`.
trait FromMmx {
    fn apply(a: Xmm, b: u64) -> Xmm;
}

struct Cvtpi2ps;
struct Cvtpi2pd;

impl FromMmx for Cvtpi2ps {
    #[inline(always)]
    fn apply(a: Xmm, b: u64) -> Xmm {
        let [singles, _] = split(Cvtdq2ps::apply(a, low(b)));
        join(singles, split(a)[1])
    }
}

impl FromMmx for Cvtpi2pd {
    #[inline(always)]
    fn apply(a: Xmm, b: u64) -> Xmm {
        Cvtdq2pd::apply(a, low(b))
    }
}

/// `op mm, xmm/m`.
trait ToMmx {
    type Memory: Operand;
    fn apply(b: Xmm) -> u64;
}

macro_rules! to_mmx {
    ($($name:ident $wide:ident $memory:ident |$b:ident| $source:expr;)*) => {$(
        struct $name;

        impl ToMmx for $name {
            type Memory = $memory;
            #[inline(always)]
            fn apply($b: Xmm) -> u64 {
                split($wide::apply($b, $source))[0]
            }
        }
    )*};
}

to_mmx! {
    Cvtps2pi Cvtps2dq Bits64 |b| low(split(b)[0]);
    Cvttps2pi Cvttps2dq Bits64 |b| low(split(b)[0]);
    Cvtpd2pi Cvtpd2dq Aligned |b| b;
    Cvttpd2pi Cvttpd2dq Aligned |b| b;
}

#[inline(never)]
fn from_r<K: FromMmx, const TRAPS: bool>(cpu: &mut Cpu, op: &Op) {
    unless_traps!(cpu, op, TRAPS, from_r, K);
    or_abort!(cpu, op, cpu.check_x87());
    cpu.enter_mmx();
    let (a, b) = (cpu.xmm(op.dst), cpu.mm(op.src));
    let result = or_abort!(cpu, op, sse_control::float::<Xmm, TRAPS>(cpu, move || K::apply(a, b)));
    cpu.set_xmm(op.dst, result);
    next(cpu, op)
}

/// A memory operand has nothing to do with MMX.
#[inline(never)]
fn from_m<K: FromMmx, const TRAPS: bool>(cpu: &mut Cpu, op: &Op) {
    unless_traps!(cpu, op, TRAPS, from_m, K);
    let b = or_abort!(cpu, op, cpu.read::<u64>(cpu.address(op)));
    let a = cpu.xmm(op.dst);
    let result = or_abort!(cpu, op, sse_control::float::<Xmm, TRAPS>(cpu, move || K::apply(a, b)));
    cpu.set_xmm(op.dst, result);
    next(cpu, op)
}

#[inline(never)]
fn to_from_r<K: ToMmx, const TRAPS: bool>(cpu: &mut Cpu, op: &Op) {
    unless_traps!(cpu, op, TRAPS, to_from_r, K);
    or_abort!(cpu, op, cpu.check_x87());
    cpu.enter_mmx();
    let b = cpu.xmm(op.src);
    let result = or_abort!(cpu, op, sse_control::float::<u64, TRAPS>(cpu, move || K::apply(b)));
    cpu.set_mm(op.dst, result);
    next(cpu, op)
}

#[inline(never)]
fn to_from_m<K: ToMmx, const TRAPS: bool>(cpu: &mut Cpu, op: &Op) {
    unless_traps!(cpu, op, TRAPS, to_from_m, K);
    or_abort!(cpu, op, cpu.check_x87());
    let b = or_abort!(cpu, op, K::Memory::load(cpu, cpu.address(op)));
    cpu.enter_mmx();
    let result = or_abort!(cpu, op, sse_control::float::<u64, TRAPS>(cpu, move || K::apply(b)));
    cpu.set_mm(op.dst, result);
    next(cpu, op)
}

/// Handlers of a conversion.
pub fn forms(mnemonic: Mnemonic) -> Option<Forms> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Cvtpi2ps => [from_r::<Cvtpi2ps, false>, from_m::<Cvtpi2ps, false>],
        M::Cvtpi2pd => [from_r::<Cvtpi2pd, false>, from_m::<Cvtpi2pd, false>],
        M::Cvtps2pi => [to_from_r::<Cvtps2pi, false>, to_from_m::<Cvtps2pi, false>],
        M::Cvttps2pi => [to_from_r::<Cvttps2pi, false>, to_from_m::<Cvttps2pi, false>],
        M::Cvtpd2pi => [to_from_r::<Cvtpd2pi, false>, to_from_m::<Cvtpd2pi, false>],
        M::Cvttpd2pi => [to_from_r::<Cvttpd2pi, false>, to_from_m::<Cvttpd2pi, false>],
        _ => return None,
    })
}

/// Conversions from memory to XMM registers: no operand is an MMX register.
pub fn lower_from_memory(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let Some(forms) = forms(insn.mnemonic()) else { return Lowered::Unknown };
    if let Some(ended) = switched_off(builder, mode::NO_SSE) {
        return ended;
    }
    lower_forms(builder, insn, forms)
}
