//! Moves between MMX registers, memory, general and XMM registers; elements of words; masks.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::number;
use crate::decode::{Builder, Lowered, gpr};
use crate::exec::sse::{low, moves};
use crate::op::{Handler, Op, next};
use crate::word::Word;
use crate::{Cpu, or_abort};

/// Reads a source.
trait From {
    fn get(cpu: &mut Cpu, op: &Op) -> Result<u64, crate::Fault>;
}

/// Writes a destination, and enters MMX state.
trait To {
    fn set(cpu: &mut Cpu, op: &Op, value: u64) -> Result<(), crate::Fault>;
}

struct Mm;
struct Low;
struct General32;
struct General64;
struct Memory16;
struct Memory32;
struct Memory64;

impl From for Mm {
    fn get(cpu: &mut Cpu, op: &Op) -> Result<u64, crate::Fault> {
        Ok(cpu.mm(op.src))
    }
}

impl To for Mm {
    fn set(cpu: &mut Cpu, op: &Op, value: u64) -> Result<(), crate::Fault> {
        cpu.set_mm(op.dst, value);
        Ok(())
    }
}

/// The low half of an XMM register; as a destination all of it.
impl From for Low {
    fn get(cpu: &mut Cpu, op: &Op) -> Result<u64, crate::Fault> {
        Ok(cpu.xmm_low(op.src))
    }
}

impl To for Low {
    fn set(cpu: &mut Cpu, op: &Op, value: u64) -> Result<(), crate::Fault> {
        cpu.set_xmm(op.dst, low(value));
        cpu.enter_mmx();
        Ok(())
    }
}

macro_rules! general_and_memory {
    ($($general:ident $memory:ident $word:ty;)*) => {$(
        impl From for $general {
            fn get(cpu: &mut Cpu, op: &Op) -> Result<u64, crate::Fault> {
                Ok(cpu.reg::<$word>(op.src).zext())
            }
        }

        impl To for $general {
            fn set(cpu: &mut Cpu, op: &Op, value: u64) -> Result<(), crate::Fault> {
                cpu.set_reg(op.dst, <$word>::of(value));
                cpu.enter_mmx();
                Ok(())
            }
        }

        impl From for $memory {
            fn get(cpu: &mut Cpu, op: &Op) -> Result<u64, crate::Fault> {
                cpu.read::<$word>(cpu.address(op)).map(Word::zext)
            }
        }

        impl To for $memory {
            fn set(cpu: &mut Cpu, op: &Op, value: u64) -> Result<(), crate::Fault> {
                cpu.write(cpu.address(op), <$word>::of(value))?;
                cpu.enter_mmx();
                Ok(())
            }
        }
    )*};
}

general_and_memory! {
    General32 Memory32 u32;
    General64 Memory64 u64;
}

impl From for Memory16 {
    fn get(cpu: &mut Cpu, op: &Op) -> Result<u64, crate::Fault> {
        cpu.read::<u16>(cpu.address(op)).map(Word::zext)
    }
}

fn copy<F: From, T: To>(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.check_x87());
    let value = or_abort!(cpu, op, F::get(cpu, op));
    or_abort!(cpu, op, T::set(cpu, op, value));
    next(cpu, op)
}

/// PINSRW.
fn insert<F: From>(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.check_x87());
    let word = or_abort!(cpu, op, F::get(cpu, op)) & 0xffff;
    let at = 16 * (op.imm & 3);
    let value = cpu.mm(op.dst) & !(0xffff << at) | word << at;
    cpu.set_mm(op.dst, value);
    next(cpu, op)
}

/// PEXTRW.
fn extract(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.check_x87());
    let word = cpu.mm(op.src) >> (16 * (op.imm & 3)) & 0xffff;
    cpu.enter_mmx();
    cpu.set_reg(op.dst, word);
    next(cpu, op)
}

/// PMOVMSKB.
fn mask(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.check_x87());
    let value = cpu.mm(op.src);
    let bits = (0..8).fold(0, |bits, n| bits | (value >> (8 * n + 7) & 1) << n);
    cpu.enter_mmx();
    cpu.set_reg::<u64>(op.dst, bits);
    next(cpu, op)
}

/// MMX state is entered even if the store faults.
fn maskmovq(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.check_x87());
    cpu.enter_mmx();
    let (value, mask) = (low(cpu.mm(op.dst)), low(cpu.mm(op.src)));
    or_abort!(cpu, op, moves::store_masked(cpu, op, value, mask));
    next(cpu, op)
}

/// What can be moved where.
fn kind(insn: &Instruction, operand: u32) -> (Kind, u8) {
    if insn.op_kind(operand) == OpKind::Memory {
        return (Kind::Memory, 0);
    }
    let register = insn.op_register(operand);
    match register {
        _ if register.is_mm() => (Kind::Mm, number(register)),
        _ if register.is_xmm() => (Kind::Xmm, number(register)),
        _ => (Kind::General, gpr(register).unwrap_or_default()),
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Mm,
    Xmm,
    General,
    Memory,
}

fn copies(to: Kind, from: Kind, wide: bool) -> Option<Handler> {
    Some(match (to, from, wide) {
        (Kind::Mm, Kind::Mm, _) => copy::<Mm, Mm>,
        (Kind::Mm, Kind::Xmm, _) => copy::<Low, Mm>,
        (Kind::Xmm, Kind::Mm, _) => copy::<Mm, Low>,
        (Kind::Mm, Kind::General, false) => copy::<General32, Mm>,
        (Kind::Mm, Kind::General, true) => copy::<General64, Mm>,
        (Kind::Mm, Kind::Memory, false) => copy::<Memory32, Mm>,
        (Kind::Mm, Kind::Memory, true) => copy::<Memory64, Mm>,
        (Kind::General, Kind::Mm, false) => copy::<Mm, General32>,
        (Kind::General, Kind::Mm, true) => copy::<Mm, General64>,
        (Kind::Memory, Kind::Mm, false) => copy::<Mm, Memory32>,
        (Kind::Memory, Kind::Mm, true) => copy::<Mm, Memory64>,
        _ => return None,
    })
}

fn lower_maskmovq(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let mut op = Op::new(maskmovq);
    moves::masked_operand(builder, &mut op, insn);
    (op.dst, op.src) = (number(insn.op1_register()), number(insn.op2_register()));
    op.imm = 8;
    builder.push(op);
    Lowered::Continues
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    use Mnemonic as M;
    if insn.mnemonic() == M::Maskmovq {
        return lower_maskmovq(builder, insn);
    }
    let ((to, dst), (from, src)) = (kind(insn, 0), kind(insn, 1));
    let run = match insn.mnemonic() {
        M::Movd => copies(to, from, false),
        M::Movq | M::Movntq | M::Movq2dq | M::Movdq2q => copies(to, from, true),
        M::Pinsrw if matches!(from, Kind::Memory) => Some(insert::<Memory16> as Handler),
        M::Pinsrw => Some(insert::<General32> as Handler),
        M::Pextrw => Some(extract as Handler),
        M::Pmovmskb => Some(mask as Handler),
        _ => None,
    };
    let Some(run) = run else { return Lowered::Unknown };
    let mut op = Op::new(run);
    (op.dst, op.src) = (dst, src);
    if insn.op_count() == 3 {
        op.imm = u64::from(insn.immediate8());
    }
    if insn.op0_kind() == OpKind::Memory || insn.op1_kind() == OpKind::Memory {
        builder.memory(&mut op, insn);
    }
    builder.push(op);
    Lowered::Continues
}
