//! HLT, CLI, STI, and the instructions that raise interrupts.

use iced_x86::{Instruction, Mnemonic};

use crate::decode::{Builder, Lowered, gpr};
use crate::exception::{Exception, Kind, raise_at, vector};
use crate::flags;
use crate::op::{Handler, Op, next};
use crate::state::Shadow;
use crate::word::Word;
use crate::{Cpu, Exit, Fault, or_abort};

impl Cpu {
    /// #GP unless CPL ≤ IOPL.
    fn must_have_io_privilege(&mut self) -> Result<(), Fault> {
        if u64::from(self.cpl) <= (self.system_flags & flags::IOPL) >> 12 {
            return Ok(());
        }
        self.raise(Exception::gp(0))
    }
}

fn hlt(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.must_be_supervisor());
    cpu.end_with(op, Exit::Hlt)
}

fn cli(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.must_have_io_privilege());
    cpu.system_flags &= !flags::IF;
    next(cpu, op)
}

/// Interrupts stay off for one more instruction when they were (SDM vol. 2, STI).
fn sti(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.must_have_io_privilege());
    cpu.shadow = if cpu.interrupts_enabled() { Shadow::None } else { Shadow::Interrupts };
    cpu.system_flags |= flags::IF;
    cpu.end(op)
}

fn length(op: &Op) -> u8 {
    (op.following().ip - op.ip) as u8
}

fn int(cpu: &mut Cpu, op: &Op) {
    let event = Exception::interrupt(op.imm as u8, Kind::Software(length(op)));
    raise_at(cpu, op, event)
}

fn int1(cpu: &mut Cpu, op: &Op) {
    let event = Exception::interrupt(vector::DB, Kind::Privileged(length(op)));
    raise_at(cpu, op, event)
}

fn into(cpu: &mut Cpu, op: &Op) {
    if cpu.flags.of() { int(cpu, op) } else { cpu.end(op) }
}

/// BOUND: a signed index in `dst`, one of the bounds in memory, the lower one first.
fn bound<W: Word, const UPPER: bool>(cpu: &mut Cpu, op: &Op) {
    let bound = or_abort!(cpu, op, cpu.read::<W>(cpu.address(op))).sext() as i64;
    let index = cpu.reg::<W>(op.dst).sext() as i64;
    if if UPPER { index > bound } else { index < bound } {
        return raise_at(cpu, op, Exception::fault(vector::BR));
    }
    next(cpu, op)
}

/// The bounds are two operands: the offset may wrap between them, and nothing looks at the upper one when the
/// index is below the lower.
fn lower_bound(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let wide = insn.op0_register().size() == 4;
    let handlers: [(Handler, u64); 2] = if wide {
        [(bound::<u32, false>, 0), (bound::<u32, true>, 4)]
    } else {
        [(bound::<u16, false>, 0), (bound::<u16, true>, 2)]
    };
    for (run, offset) in handlers {
        let mut op = Op::new(run);
        op.dst = gpr(insn.op0_register()).unwrap_or_default();
        builder.memory(&mut op, insn);
        builder.move_address(&op, offset);
        builder.push(op);
    }
    Lowered::Continues
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let one = |builder: &mut Builder, run: Handler, imm: u64, lowered: Lowered| {
        let mut op = Op::new(run);
        op.imm = imm;
        builder.push(op);
        lowered
    };
    match insn.mnemonic() {
        Mnemonic::Bound => lower_bound(builder, insn),
        Mnemonic::Hlt => one(builder, hlt, 0, Lowered::Ends),
        Mnemonic::Cli => one(builder, cli, 0, Lowered::Continues),
        Mnemonic::Sti => one(builder, sti, 0, Lowered::Ends),
        Mnemonic::Int => one(builder, int, u64::from(insn.immediate8()), Lowered::Ends),
        Mnemonic::Int1 => one(builder, int1, 0, Lowered::Ends),
        Mnemonic::Int3 => one(builder, int, u64::from(vector::BP), Lowered::Ends),
        Mnemonic::Into => one(builder, into, u64::from(vector::OF), Lowered::Ends),
        _ => Lowered::Unknown,
    }
}
