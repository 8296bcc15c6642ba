//! INS and OUTS, with and without REP (SDM vol. 2, INS).
//!
//! An iteration is executed again with the answer to its exit, so that whatever can fault is tried before the port is
//! asked. Only one iteration is done at a time.

use iced_x86::{Instruction, Mnemonic};

use crate::decode::{Builder, Lowered};
use crate::exec::string::{Kind, lower_kind};
use crate::op::Op;
use crate::word::Word;
use crate::{Cpu, Exit, Fault};

const SI: usize = 6;
const DI: usize = 7;
const RDX: u8 = 16;

struct Ins;
impl Kind for Ins {
    fn step<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
        let (port, size) = (cpu.reg::<u16>(RDX), W::BYTES as u8);
        cpu.check_io(port, size)?;
        let to = cpu.destination(op);
        cpu.check_write(to, W::BYTES)?;
        let value = cpu.ask(Exit::PioRead { port, size })?;
        cpu.write(to, W::of(value))?;
        cpu.advance::<W>(op, DI, 1);
        Ok(())
    }
}

struct Outs;
impl Kind for Outs {
    fn step<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
        let (port, size) = (cpu.reg::<u16>(RDX), W::BYTES as u8);
        cpu.check_io(port, size)?;
        let value = cpu.read::<W>(cpu.source(op))?.zext() as u32;
        cpu.ask(Exit::PioWrite { port, size, value })?;
        cpu.advance::<W>(op, SI, 1);
        Ok(())
    }
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    match insn.mnemonic() {
        Mnemonic::Insb => lower_kind::<Ins>(builder, insn, 1),
        Mnemonic::Insw => lower_kind::<Ins>(builder, insn, 2),
        Mnemonic::Insd => lower_kind::<Ins>(builder, insn, 4),
        Mnemonic::Outsb => lower_kind::<Outs>(builder, insn, 1),
        Mnemonic::Outsw => lower_kind::<Outs>(builder, insn, 2),
        Mnemonic::Outsd => lower_kind::<Outs>(builder, insn, 4),
        _ => Lowered::Unknown,
    }
}
