//! Elements of XMM registers to and from general registers and memory, and masks of their top bits.

use std::arch::x86_64::{__m128, __m128d, _mm_movemask_epi8, _mm_movemask_pd, _mm_movemask_ps};
use std::mem::transmute;

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::{Xmm, number};
use crate::decode::{Builder, Lowered, gpr};
use crate::op::{Handler, Op, next};
use crate::word::Word;
use crate::{Cpu, or_abort};

/// Bit number of the element that the immediate names.
#[inline(always)]
fn shift<W: Word>(op: &Op) -> u32 {
    (op.imm as u32).wrapping_mul(W::BITS) & 127
}

#[inline(always)]
fn element<W: Word>(cpu: &Cpu, op: &Op) -> W {
    W::of((cpu.xmm[usize::from(op.src & 15)] >> shift::<W>(op)) as u64)
}

#[inline(always)]
fn insert<W: Word>(cpu: &mut Cpu, op: &Op, value: W) {
    let register = &mut cpu.xmm[usize::from(op.dst & 15)];
    let at = shift::<W>(op);
    *register = *register & !(u128::from(W::MASK) << at) | u128::from(value.zext()) << at;
}

fn extract_r<W: Word>(cpu: &mut Cpu, op: &Op) {
    let value = element::<W>(cpu, op).zext();
    cpu.set_reg(op.dst, value);
    next(cpu, op)
}

fn extract_m<W: Word>(cpu: &mut Cpu, op: &Op) {
    let value = element::<W>(cpu, op);
    or_abort!(cpu, op, cpu.write(cpu.address(op), value));
    next(cpu, op)
}

fn insert_r<W: Word>(cpu: &mut Cpu, op: &Op) {
    let value = cpu.reg::<W>(op.src);
    insert(cpu, op, value);
    next(cpu, op)
}

fn insert_m<W: Word>(cpu: &mut Cpu, op: &Op) {
    let value = or_abort!(cpu, op, cpu.read::<W>(cpu.address(op)));
    insert(cpu, op, value);
    next(cpu, op)
}

trait Mask {
    fn apply(value: Xmm) -> i32;
}

struct Bytes;
struct Singles;
struct Doubles;

impl Mask for Bytes {
    #[inline(always)]
    fn apply(value: Xmm) -> i32 {
        // SAFETY: SSE2 is there on every x86-64.
        unsafe { _mm_movemask_epi8(value) }
    }
}

impl Mask for Singles {
    #[inline(always)]
    fn apply(value: Xmm) -> i32 {
        // SAFETY: the types have the same size.
        let value: __m128 = unsafe { transmute(value) };
        // SAFETY: SSE2 is there on every x86-64.
        unsafe { _mm_movemask_ps(value) }
    }
}

impl Mask for Doubles {
    #[inline(always)]
    fn apply(value: Xmm) -> i32 {
        // SAFETY: the types have the same size.
        let value: __m128d = unsafe { transmute(value) };
        // SAFETY: SSE2 is there on every x86-64.
        unsafe { _mm_movemask_pd(value) }
    }
}

fn mask<K: Mask>(cpu: &mut Cpu, op: &Op) {
    let value = K::apply(cpu.xmm(op.src)) as u32;
    cpu.set_reg(op.dst, value);
    next(cpu, op)
}

fn extraction<W: Word>(insn: &Instruction) -> Handler {
    if insn.op0_kind() == OpKind::Memory { extract_m::<W> } else { extract_r::<W> }
}

fn insertion<W: Word>(insn: &Instruction) -> Handler {
    if insn.op1_kind() == OpKind::Memory { insert_m::<W> } else { insert_r::<W> }
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    use Mnemonic as M;
    let mut op = Op::new(match insn.mnemonic() {
        M::Pextrb => extraction::<u8>(insn),
        M::Pextrw => extraction::<u16>(insn),
        M::Pextrd | M::Extractps => extraction::<u32>(insn),
        M::Pextrq => extraction::<u64>(insn),
        M::Pinsrb => insertion::<u8>(insn),
        M::Pinsrw => insertion::<u16>(insn),
        M::Pinsrd => insertion::<u32>(insn),
        M::Pinsrq => insertion::<u64>(insn),
        M::Pmovmskb => mask::<Bytes>,
        M::Movmskps => mask::<Singles>,
        M::Movmskpd => mask::<Doubles>,
        _ => return Lowered::Unknown,
    });
    if insn.op_count() == 3 {
        op.imm = u64::from(insn.immediate8());
    }
    let register = |register: Register| match register.is_xmm() {
        true => number(register),
        false => gpr(register).unwrap_or_default(),
    };
    if insn.op0_kind() == OpKind::Register {
        op.dst = register(insn.op0_register());
    }
    if insn.op1_kind() == OpKind::Register {
        op.src = register(insn.op1_register());
    }
    if insn.op0_kind() == OpKind::Memory || insn.op1_kind() == OpKind::Memory {
        builder.memory(&mut op, insn);
    }
    builder.push(op);
    Lowered::Continues
}
