//! IN and OUT; permission to use a port (SDM vol. 1, 18.5).

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::decode::{Builder, Lowered};
use crate::exception::Exception;
use crate::flags;
use crate::op::{Handler, Op};
use crate::state::{Seg, Segment};
use crate::word::Word;
use crate::{Cpu, Exit, Fault, or_abort};

/// Offset of the I/O map base in the 64-bit TSS.
const IO_MAP_BASE: u64 = 102;
const RAX: u8 = 0;
const RDX: u8 = 16;

impl Cpu {
    /// #GP unless CPL ≤ IOPL or the TSS's bitmap opens all `size` ports.
    pub(crate) fn check_io(&mut self, port: u16, size: u8) -> Result<(), Fault> {
        if u64::from(self.cpl) <= (self.system_flags & flags::IOPL) >> 12 {
            return Ok(());
        }
        let tr = self.segments[Seg::Tr as usize];
        let limit = u64::from(tr.limit);
        if tr.access & (Segment::PRESENT | Segment::UNUSABLE) != Segment::PRESENT || limit < IO_MAP_BASE + 1 {
            return self.raise(Exception::gp(0));
        }
        let start = u64::from(self.read_system::<u16>(tr.base.wrapping_add(IO_MAP_BASE))?);
        let at = start + u64::from(port / 8);
        // Two bytes are read, wherever the bits lie.
        if at + 1 > limit {
            return self.raise(Exception::gp(0));
        }
        let bits = self.read_system::<u16>(tr.base.wrapping_add(at))?;
        let mask = ((1u16 << size) - 1) << (port % 8);
        if bits & mask != 0 {
            return self.raise(Exception::gp(0));
        }
        Ok(())
    }
}

fn port<const DX: bool>(cpu: &Cpu, op: &Op) -> u16 {
    if DX { cpu.reg::<u16>(RDX) } else { op.imm as u16 }
}

fn input<const DX: bool, W: Word>(cpu: &mut Cpu, op: &Op) {
    let (port, size) = (port::<DX>(cpu, op), W::BYTES as u8);
    or_abort!(cpu, op, cpu.check_io(port, size));
    let value = or_abort!(cpu, op, cpu.ask(Exit::PioRead { port, size }));
    cpu.set_reg(RAX, W::of(value));
    cpu.end(op)
}

fn output<const DX: bool, W: Word>(cpu: &mut Cpu, op: &Op) {
    let (port, size) = (port::<DX>(cpu, op), W::BYTES as u8);
    or_abort!(cpu, op, cpu.check_io(port, size));
    let value = cpu.reg::<W>(RAX).zext() as u32;
    or_abort!(cpu, op, cpu.ask(Exit::PioWrite { port, size, value }));
    cpu.end(op)
}

macro_rules! accumulator {
    ($register:expr, $f:ident, $dx:literal) => {
        match $register {
            Register::AL => $f::<$dx, u8> as Handler,
            Register::AX => $f::<$dx, u16> as Handler,
            _ => $f::<$dx, u32> as Handler,
        }
    };
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let (run, port_operand) = match insn.mnemonic() {
        Mnemonic::In if insn.op1_kind() == OpKind::Register => {
            (accumulator!(insn.op0_register(), input, true), None)
        }
        Mnemonic::In => (accumulator!(insn.op0_register(), input, false), Some(1)),
        Mnemonic::Out if insn.op0_kind() == OpKind::Register => {
            (accumulator!(insn.op1_register(), output, true), None)
        }
        Mnemonic::Out => (accumulator!(insn.op1_register(), output, false), Some(0)),
        _ => return Lowered::Unknown,
    };
    let mut op = Op::new(run);
    op.imm = port_operand.map_or(0, |number| insn.immediate(number) & 0xff);
    builder.push(op);
    Lowered::Ends
}
