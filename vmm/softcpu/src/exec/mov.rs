//! MOV, MOVZX, MOVSX, LEA, XLAT, and instructions that do nothing here: NOP, prefetches, fences.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::Cpu;
use crate::access::{Addressing, Based, Indexed, reading, writing};
use crate::cpu::mode;
use crate::decode::{Builder, Lowered, gpr, operand_bytes, segment};
use crate::op::{Handler, Op, ZERO, next};
use crate::word::Word;
use crate::{or_abort, sized};

fn mov_rr<W: Word>(cpu: &mut Cpu, op: &Op) {
    let value = cpu.reg::<W>(op.src);
    cpu.set_reg(op.dst, value);
    next(cpu, op)
}

fn mov_ri<W: Word>(cpu: &mut Cpu, op: &Op) {
    cpu.set_reg(op.dst, W::of(op.imm));
    next(cpu, op)
}

fn mov_rm<A: Addressing, W: Word>(cpu: &mut Cpu, op: &Op) {
    reading::<A, W>(cpu, op, |cpu, op, value| {
        cpu.set_reg(op.dst, value);
        next(cpu, op)
    })
}

fn mov_mr<A: Addressing, W: Word>(cpu: &mut Cpu, op: &Op) {
    writing::<A, W>(cpu, op, |cpu, op| cpu.reg(op.src), next)
}

fn mov_mi<A: Addressing, W: Word>(cpu: &mut Cpu, op: &Op) {
    writing::<A, W>(cpu, op, |_, op| W::of(op.imm), next)
}

fn extend_rr<const SIGNED: bool, S: Word, D: Word>(cpu: &mut Cpu, op: &Op) {
    let value = cpu.reg::<S>(op.src);
    cpu.set_reg(op.dst, D::of(if SIGNED { value.sext() } else { value.zext() }));
    next(cpu, op)
}

fn extend_rm<const SIGNED: bool, S: Word, D: Word>(cpu: &mut Cpu, op: &Op) {
    reading::<Indexed, S>(cpu, op, |cpu, op, value| {
        cpu.set_reg(op.dst, D::of(if SIGNED { value.sext() } else { value.zext() }));
        next(cpu, op)
    })
}

fn lea<W: Word>(cpu: &mut Cpu, op: &Op) {
    let address = cpu.address(op);
    cpu.set_reg(op.dst, W::of(address));
    next(cpu, op)
}

/// XLAT; `imm` is the mask of the address size.
fn xlat(cpu: &mut Cpu, op: &Op) {
    let offset = cpu.regs[3].wrapping_add(cpu.regs[0] & 0xff) & op.imm;
    let seg = usize::from(op.src) % 8;
    let linear = if cpu.mode & mode::LONG != 0 {
        cpu.bases[seg].wrapping_add(offset)
    } else {
        or_abort!(cpu, op, cpu.segment_linear(seg, offset, 1, false))
    };
    let value = or_abort!(cpu, op, cpu.read::<u8>(linear));
    cpu.set_reg(0, value);
    next(cpu, op)
}

fn nothing(cpu: &mut Cpu, op: &Op) {
    next(cpu, op)
}

macro_rules! extend {
    ($f:ident, $signed:expr, $from:expr, $to:expr) => {
        match ($signed, $from) {
            (false, 1) => sized_to!($f, false, u8, $to),
            (false, _) => sized_to!($f, false, u16, $to),
            (true, 1) => sized_to!($f, true, u8, $to),
            (true, 2) => sized_to!($f, true, u16, $to),
            (true, _) => sized_to!($f, true, u32, $to),
        }
    };
}

macro_rules! sized_to {
    ($f:ident, $signed:literal, $from:ty, $to:expr) => {
        match $to {
            2 => $f::<$signed, $from, u16> as Handler,
            4 => $f::<$signed, $from, u32> as Handler,
            _ => $f::<$signed, $from, u64> as Handler,
        }
    };
}

fn lower_mov(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let bytes = operand_bytes(insn, 0);
    let (to, from) = (insn.op0_kind(), insn.op1_kind());
    let mut op = match (to, from) {
        (OpKind::Register, OpKind::Register) => {
            let (Some(dst), Some(src)) = (gpr(insn.op0_register()), gpr(insn.op1_register())) else {
                return Lowered::Unknown;
            };
            let mut op = Op::new(sized!(bytes, mov_rr));
            (op.dst, op.src) = (dst, src);
            op
        }
        (OpKind::Register, OpKind::Memory) => {
            let Some(dst) = gpr(insn.op0_register()) else { return Lowered::Unknown };
            let mut op = Op::new(sized!(bytes, mov_rm, Indexed));
            op.dst = dst;
            builder.memory(&mut op, insn);
            if op.index == ZERO {
                op.run = sized!(bytes, mov_rm, Based);
            }
            op
        }
        (OpKind::Memory, OpKind::Register) => {
            let Some(src) = gpr(insn.op1_register()) else { return Lowered::Unknown };
            let mut op = Op::new(sized!(bytes, mov_mr, Indexed));
            op.src = src;
            builder.memory(&mut op, insn);
            if op.index == ZERO {
                op.run = sized!(bytes, mov_mr, Based);
            }
            op
        }
        (OpKind::Register, _) => {
            let mut op = Op::new(sized!(bytes, mov_ri));
            op.dst = gpr(insn.op0_register()).unwrap_or_default();
            op
        }
        _ => {
            let mut op = Op::new(sized!(bytes, mov_mi, Indexed));
            builder.memory(&mut op, insn);
            if op.index == ZERO {
                op.run = sized!(bytes, mov_mi, Based);
            }
            op
        }
    };
    if !matches!(from, OpKind::Register | OpKind::Memory) {
        op.imm = insn.immediate(1);
    }
    if insn.op0_kind() == OpKind::Memory || insn.op1_kind() == OpKind::Memory {
        builder.push(op);
    } else {
        builder.push_neutral(op);
    }
    Lowered::Continues
}

fn lower_extend(builder: &mut Builder, insn: &Instruction, signed: bool) -> Lowered {
    let (to, from) = (operand_bytes(insn, 0), operand_bytes(insn, 1));
    let in_memory = insn.op1_kind() == OpKind::Memory;
    let mut op = Op::new(if in_memory {
        extend!(extend_rm, signed, from, to)
    } else {
        extend!(extend_rr, signed, from, to)
    });
    op.dst = gpr(insn.op0_register()).unwrap_or_default();
    if in_memory {
        builder.memory(&mut op, insn);
        builder.push(op);
    } else {
        op.src = gpr(insn.op1_register()).unwrap_or_default();
        builder.push_neutral(op);
    }
    Lowered::Continues
}

fn lower_lea(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let mut op = Op::new(sized!(operand_bytes(insn, 0), lea));
    op.dst = gpr(insn.op0_register()).unwrap_or_default();
    builder.memory_offset(&mut op, insn);
    builder.push_neutral(op);
    Lowered::Continues
}

fn lower_xlat(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let mut op = Op::new(xlat);
    op.src = segment(insn.memory_segment()) as u8;
    op.imm = u64::MAX >> (64 - 8 * insn.memory_base().size());
    builder.push(op);
    Lowered::Continues
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    match insn.mnemonic() {
        Mnemonic::Mov => lower_mov(builder, insn),
        Mnemonic::Movzx => lower_extend(builder, insn, false),
        Mnemonic::Movsx | Mnemonic::Movsxd => lower_extend(builder, insn, true),
        Mnemonic::Lea => lower_lea(builder, insn),
        Mnemonic::Xlatb => lower_xlat(builder, insn),
        Mnemonic::Nop
        | Mnemonic::Pause
        | Mnemonic::Endbr64
        | Mnemonic::Endbr32
        | Mnemonic::Reservednop
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetchit0
        | Mnemonic::Prefetchit1
        | Mnemonic::Cldemote
        | Mnemonic::Rdsspd
        | Mnemonic::Rdsspq
        | Mnemonic::Lfence
        | Mnemonic::Sfence
        | Mnemonic::Mfence => {
            builder.push_neutral(Op::new(nothing));
            Lowered::Continues
        }
        _ => Lowered::Unknown,
    }
}
