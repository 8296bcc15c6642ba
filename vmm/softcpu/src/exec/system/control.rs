//! MOV to and from control and debug registers, LMSW, SMSW, CLTS, INVLPG, cache control, CLAC, STAC.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::cpu::mode;
use crate::decode::{Builder, Lowered, gpr};
use crate::exception::{Exception, raise_at};
use crate::flags;
use crate::op::{Handler, Op, next};
use crate::word::Word;
use crate::{Cpu, or_abort};

/// PE, MP, EM, TS: what LMSW reaches.
const MACHINE_STATUS: u64 = 15;

/// Reads the register `src`, 64 bits wide in 64-bit mode, else 32.
fn source(cpu: &Cpu, op: &Op) -> u64 {
    if cpu.mode & mode::LONG != 0 { cpu.reg::<u64>(op.src) } else { cpu.reg::<u32>(op.src).into() }
}

fn set_destination(cpu: &mut Cpu, op: &Op, value: u64) {
    if cpu.mode & mode::LONG != 0 {
        cpu.set_reg(op.dst, value);
    } else {
        cpu.set_reg(op.dst, value as u32);
    }
}

fn mov_from_cr(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.must_be_supervisor());
    let value = match op.src {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        _ => cpu.cr8,
    };
    set_destination(cpu, op, value);
    next(cpu, op)
}

fn mov_to_cr(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.must_be_supervisor());
    let value = source(cpu, op);
    or_abort!(cpu, op, cpu.write_control(op.dst, value));
    cpu.end(op)
}

/// DR0–DR3, then DR6 and DR7, under either of their names: CR4.DE is never set.
fn debug_slot(number: u8) -> usize {
    usize::from(if number < 4 { number } else { 4 | number & 1 })
}

fn mov_from_dr(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.must_be_supervisor());
    or_abort!(cpu, op, cpu.guard_debug_registers());
    let value = cpu.dr[debug_slot(op.src)];
    set_destination(cpu, op, value);
    next(cpu, op)
}

fn mov_to_dr(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.must_be_supervisor());
    or_abort!(cpu, op, cpu.guard_debug_registers());
    let value = source(cpu, op);
    let slot = debug_slot(op.dst);
    if slot >= 4 && value >> 32 != 0 {
        return raise_at(cpu, op, Exception::gp(0));
    }
    cpu.dr[slot] = match slot {
        4 => value & 0x1_e00f | 0xffff_0ff0,
        5 => value & 0xffff_23ff | 0x400,
        _ => value,
    };
    cpu.flush_translations();
    cpu.update_mode();
    cpu.end(op)
}

fn clts(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.must_be_supervisor());
    cpu.clear_task_switched();
    cpu.end(op)
}

fn lmsw<const MEM: bool>(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.must_be_supervisor());
    let value =
        if MEM { or_abort!(cpu, op, cpu.read::<u16>(cpu.address(op))) } else { cpu.reg::<u16>(op.src) };
    // PE can be set, never cleared.
    let status = u64::from(value) & MACHINE_STATUS | cpu.cr0 & 1;
    or_abort!(cpu, op, cpu.write_cr0(cpu.cr0 & !MACHINE_STATUS | status));
    cpu.end(op)
}

fn smsw_r<W: Word>(cpu: &mut Cpu, op: &Op) {
    cpu.set_reg(op.dst, W::of(cpu.cr0));
    next(cpu, op)
}

fn smsw_m(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.write(cpu.address(op), cpu.cr0 as u16));
    next(cpu, op)
}

/// INVLPG, INVD, WBINVD: what is cached is invisible (see `mem`).
fn privileged_nothing(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.must_be_supervisor());
    next(cpu, op)
}

fn set_ac<const ON: bool>(cpu: &mut Cpu, op: &Op) {
    if cpu.cpl != 0 {
        return raise_at(cpu, op, Exception::ud());
    }
    cpu.system_flags = cpu.system_flags & !flags::AC | if ON { flags::AC } else { 0 };
    cpu.update_space();
    next(cpu, op)
}

fn lower_mov(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let (to, from) = (insn.op0_register(), insn.op1_register());
    if insn.op0_kind() != OpKind::Register || insn.op1_kind() != OpKind::Register {
        return Lowered::Unknown;
    }
    let (run, ends): (Handler, bool) = match () {
        () if to.is_cr() => (mov_to_cr, true),
        () if from.is_cr() => (mov_from_cr, false),
        () if to.is_dr() => (mov_to_dr, true),
        () if from.is_dr() => (mov_from_dr, false),
        () => return Lowered::Unknown,
    };
    let mut op = Op::new(run);
    op.dst = gpr(to).unwrap_or(to.number() as u8);
    op.src = gpr(from).unwrap_or(from.number() as u8);
    let exists = |register: iced_x86::Register| match register.number() {
        number if register.is_cr() => matches!(number, 0 | 2 | 3 | 4 | 8),
        number => !register.is_dr() || number < 8,
    };
    if !exists(to) || !exists(from) {
        return Lowered::Unknown;
    }
    builder.push(op);
    if ends { Lowered::Ends } else { Lowered::Continues }
}

fn lower_status(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let in_memory = insn.op0_kind() == OpKind::Memory;
    let load = insn.mnemonic() == Mnemonic::Lmsw;
    let mut op = Op::new(match (load, in_memory) {
        (true, true) => lmsw::<true>,
        (true, false) => lmsw::<false>,
        (false, true) => smsw_m,
        (false, false) => match insn.op0_register().size() {
            2 => smsw_r::<u16>,
            4 => smsw_r::<u32>,
            _ => smsw_r::<u64>,
        },
    });
    if in_memory {
        builder.memory(&mut op, insn);
    } else {
        op.dst = gpr(insn.op0_register()).unwrap_or_default();
        op.src = op.dst;
    }
    builder.push(op);
    if load { Lowered::Ends } else { Lowered::Continues }
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let (run, lowered): (Handler, Lowered) = match insn.mnemonic() {
        Mnemonic::Mov => return lower_mov(builder, insn),
        Mnemonic::Lmsw | Mnemonic::Smsw => return lower_status(builder, insn),
        Mnemonic::Clts => (clts, Lowered::Ends),
        Mnemonic::Invlpg | Mnemonic::Invd | Mnemonic::Wbinvd => (privileged_nothing, Lowered::Continues),
        Mnemonic::Clac => (set_ac::<false>, Lowered::Continues),
        Mnemonic::Stac => (set_ac::<true>, Lowered::Continues),
        _ => return Lowered::Unknown,
    };
    builder.push(Op::new(run));
    lowered
}
