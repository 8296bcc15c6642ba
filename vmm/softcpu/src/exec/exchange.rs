//! XCHG, XADD, CMPXCHG, CMPXCHG8B, CMPXCHG16B. There is one processor: every instruction is atomic.
//!
//! CMPXCHG writes its destination in any case, with the old value when the comparison fails (SDM vol. 2,
//! CMPXCHG), so it faults as a write does.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::decode::{Builder, Lowered, gpr, operand_bytes};
use crate::exception::Exception;
use crate::exec::alu::{Add, Binary, Cmp};
use crate::op::{Op, abort, next};
use crate::word::Word;
use crate::{Cpu, or_abort, sized};

const AX: u8 = 0;
const CX: u8 = 8;
const DX: u8 = 16;
const BX: u8 = 24;

fn xchg_r<W: Word>(cpu: &mut Cpu, op: &Op) {
    let (a, b) = (cpu.reg::<W>(op.dst), cpu.reg::<W>(op.src));
    cpu.set_reg(op.dst, b);
    cpu.set_reg(op.src, a);
    next(cpu, op)
}

fn xchg_m<W: Word>(cpu: &mut Cpu, op: &Op) {
    let new = cpu.reg::<W>(op.src);
    let address = cpu.address(op);
    let old = or_abort!(cpu, op, cpu.modify::<W, W>(address, |_, old| (new, old)));
    cpu.set_reg(op.src, old);
    next(cpu, op)
}

fn xadd_r<W: Word>(cpu: &mut Cpu, op: &Op) {
    let (a, b) = (cpu.reg::<W>(op.dst), cpu.reg::<W>(op.src));
    let sum = Add::apply(&mut cpu.flags, a, b);
    cpu.set_reg(op.src, a);
    cpu.set_reg(op.dst, sum);
    next(cpu, op)
}

fn xadd_m<W: Word>(cpu: &mut Cpu, op: &Op) {
    let b = cpu.reg::<W>(op.src);
    let address = cpu.address(op);
    let change = |cpu: &mut Cpu, a: W| (Add::apply(&mut cpu.flags, a, b), a);
    let old = or_abort!(cpu, op, cpu.modify::<W, W>(address, change));
    cpu.set_reg(op.src, old);
    next(cpu, op)
}

fn cmpxchg_r<W: Word>(cpu: &mut Cpu, op: &Op) {
    let (old, new, expected) = (cpu.reg::<W>(op.dst), cpu.reg::<W>(op.src), cpu.reg::<W>(AX));
    Cmp::apply(&mut cpu.flags, expected, old);
    if old == expected {
        cpu.set_reg(op.dst, new);
    } else {
        cpu.set_reg(AX, old);
    }
    next(cpu, op)
}

fn cmpxchg_m<W: Word>(cpu: &mut Cpu, op: &Op) {
    let (new, expected) = (cpu.reg::<W>(op.src), cpu.reg::<W>(AX));
    let address = cpu.address(op);
    let change = |cpu: &mut Cpu, old: W| {
        Cmp::apply(&mut cpu.flags, expected, old);
        (if old == expected { new } else { old }, old)
    };
    let old = or_abort!(cpu, op, cpu.modify::<W, W>(address, change));
    if old != expected {
        cpu.set_reg(AX, old);
    }
    next(cpu, op)
}

fn cmpxchg8b(cpu: &mut Cpu, op: &Op) {
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let expected = pair(cpu.reg(AX), cpu.reg(DX));
    let new = pair(cpu.reg(BX), cpu.reg(CX));
    let address = cpu.address(op);
    let change = |_: &mut Cpu, old: u64| (if old == expected { new } else { old }, old);
    let old = or_abort!(cpu, op, cpu.modify::<u64, u64>(address, change));
    cpu.flags.set_zf(old == expected);
    if old != expected {
        cpu.set_reg(AX, old as u32);
        cpu.set_reg(DX, (old >> 32) as u32);
    }
    next(cpu, op)
}

fn cmpxchg16b(cpu: &mut Cpu, op: &Op) {
    let pair = |low: u64, high: u64| u128::from(low) | u128::from(high) << 64;
    let expected = pair(cpu.reg(AX), cpu.reg(DX));
    let new = pair(cpu.reg(BX), cpu.reg(CX));
    let address = cpu.address(op);
    if !address.is_multiple_of(16) {
        let _ = cpu.raise::<()>(Exception::gp(0));
        return abort(cpu, op);
    }
    let change = |_: &mut Cpu, old: u128| (if old == expected { new } else { old }, old);
    let old = or_abort!(cpu, op, cpu.modify::<u128, u128>(address, change));
    cpu.flags.set_zf(old == expected);
    if old != expected {
        cpu.set_reg(AX, old as u64);
        cpu.set_reg(DX, (old >> 64) as u64);
    }
    next(cpu, op)
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let bytes = operand_bytes(insn, 0);
    let memory = insn.op0_kind() == OpKind::Memory;
    let mut op = Op::new(match (insn.mnemonic(), memory) {
        (Mnemonic::Xchg, false) => sized!(bytes, xchg_r),
        (Mnemonic::Xchg, true) => sized!(bytes, xchg_m),
        (Mnemonic::Xadd, false) => sized!(bytes, xadd_r),
        (Mnemonic::Xadd, true) => sized!(bytes, xadd_m),
        (Mnemonic::Cmpxchg, false) => sized!(bytes, cmpxchg_r),
        (Mnemonic::Cmpxchg, true) => sized!(bytes, cmpxchg_m),
        (Mnemonic::Cmpxchg8b, true) => cmpxchg8b,
        (Mnemonic::Cmpxchg16b, true) => cmpxchg16b,
        _ => return Lowered::Unknown,
    });
    if insn.op_count() > 1 {
        op.src = gpr(insn.op1_register()).unwrap_or_default();
    }
    if memory {
        builder.memory(&mut op, insn);
    } else {
        op.dst = gpr(insn.op0_register()).unwrap_or_default();
    }
    builder.push(op);
    Lowered::Continues
}
