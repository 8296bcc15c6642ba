//! IRET in IA-32e mode (SDM vol. 2, IRET; vol. 3, 6.14.3).

use iced_x86::{Instruction, Mnemonic};

use super::far::Return;
use crate::cpu::mode;
use crate::decode::{Builder, Lowered};
use crate::exception::Exception;
use crate::flags;
use crate::op::{Handler, Op, abort};
use crate::word::Word;
use crate::{Cpu, Fault, or_abort};

/// From 64-bit mode SS:RSP is always popped, from compatibility mode only to an outer privilege.
fn popped<W: Word>(cpu: &mut Cpu) -> Result<(Return, u64), Fault> {
    if cpu.system_flags & flags::NT != 0 {
        return cpu.raise(Exception::gp(0));
    }
    let rip = cpu.peek::<W>(0)?.zext();
    let cs = cpu.peek::<W>(W::BYTES)?.zext() as u16;
    let rflags = cpu.peek::<W>(2 * W::BYTES)?.zext();
    let outer = (cs & 3) as u8 > cpu.cpl;
    let stack = if outer || cpu.mode & mode::LONG != 0 {
        let rsp = cpu.peek::<W>(3 * W::BYTES)?.zext();
        Some((cpu.peek::<W>(4 * W::BYTES)?.zext() as u16, rsp))
    } else {
        None
    };
    Ok((Return { cs, rip, stack }, rflags))
}

impl Cpu {
    /// The flags that IRET may set at this privilege; RF among them.
    fn return_flags(&self, value: u64, bytes: u64) -> u64 {
        let mut mask = flags::STATUS | flags::TF | flags::DF | flags::NT;
        if bytes > 2 {
            mask |= flags::RF | flags::AC | flags::ID;
        }
        if u64::from(self.cpl) <= (self.system_flags & flags::IOPL) >> 12 {
            mask |= flags::IF;
        }
        if self.cpl == 0 {
            mask |= flags::IOPL;
        }
        self.rflags() & !mask | value & mask
    }
}

fn iret<W: Word>(cpu: &mut Cpu, op: &Op) {
    let Ok((to, value)) = popped::<W>(cpu) else { return abort(cpu, op) };
    let checked = or_abort!(cpu, op, cpu.check_return(&to));
    let rflags = cpu.return_flags(value, W::BYTES);
    cpu.set_rflags(rflags);
    if to.stack.is_none() {
        cpu.set_stack(cpu.regs[4].wrapping_add(3 * W::BYTES));
    }
    cpu.make_return(op, &checked, 0)
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let run: Handler = match insn.mnemonic() {
        Mnemonic::Iret => iret::<u16>,
        Mnemonic::Iretd => iret::<u32>,
        Mnemonic::Iretq => iret::<u64>,
        _ => return Lowered::Unknown,
    };
    builder.push(Op::new(run));
    Lowered::Ends
}
