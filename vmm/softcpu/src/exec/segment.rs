//! Segment registers: MOV, POP, LDS and its kin (SDM vol. 2, MOV and LDS; vol. 3, 5.5 and 5.7).

mod far;
mod iret;
mod table;

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::decode::{Builder, Lowered, gpr, operand_bytes, segment};
use crate::descriptor::{coded_selector, is_null, null_segment};
use crate::exception::{Exception, vector};
use crate::interrupt::null_stack;
use crate::op::{Handler, Op, next};
use crate::state::{Seg, Segment, Shadow};
use crate::word::Word;
use crate::{Cpu, Fault, or_abort};

const NUMBERED: [Seg; 6] = [Seg::Es, Seg::Cs, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs];

impl Cpu {
    /// What loading `selector` into a data segment register or SS puts there, checked; nothing changes but
    /// the descriptor's accessed bit.
    fn data_segment(&mut self, seg: Seg, selector: u16) -> Result<Segment, Fault> {
        let rpl = (selector & 3) as u8;
        if is_null(selector) {
            if seg != Seg::Ss {
                return Ok(null_segment(selector));
            }
            let allowed = self.mode & crate::cpu::mode::LONG != 0 && self.cpl < 3 && rpl == self.cpl;
            return if allowed { Ok(null_stack(self.cpl)) } else { self.raise(Exception::gp(0)) };
        }
        let descriptor = self.descriptor_or(selector, vector::GP, 0)?;
        let loaded = if seg == Seg::Ss {
            self.stack_segment(selector, self.cpl, descriptor)?
        } else {
            let code = coded_selector(selector);
            let guarded = !descriptor.is_conforming();
            if !descriptor.is_readable() || guarded && rpl.max(self.cpl) > descriptor.dpl() {
                return self.raise(Exception::gp(code));
            }
            if !descriptor.is_present() {
                return self.raise(Exception::coded(vector::NP, code));
            }
            descriptor.segment(selector)
        };
        self.mark_accessed(descriptor)?;
        Ok(loaded)
    }

    /// Loads a data segment register or SS. The block being executed must end.
    fn load_segment(&mut self, seg: Seg, selector: u16) -> Result<(), Fault> {
        let loaded = self.data_segment(seg, selector)?;
        self.set_segment(seg, loaded);
        Ok(())
    }

    fn set_segment(&mut self, seg: Seg, segment: Segment) {
        self.segments[seg as usize] = segment;
        self.update_mode();
    }

    /// After MOV SS and POP SS interrupts and debug traps wait for one instruction.
    fn hold_off(&mut self, seg: Seg) {
        if seg == Seg::Ss {
            self.shadow = Shadow::Stack;
            self.debug.inhibit = true;
        }
    }
}

fn seg_of(number: u8) -> Seg {
    NUMBERED[usize::from(number) % 6]
}

/// The 16-bit operand of an op, in register `src` or in memory.
pub fn selector_operand<const MEM: bool>(cpu: &mut Cpu, op: &Op) -> Result<u16, Fault> {
    if MEM { cpu.read(cpu.address(op)) } else { Ok(cpu.reg(op.src)) }
}

fn mov_to<const MEM: bool>(cpu: &mut Cpu, op: &Op) {
    let selector = or_abort!(cpu, op, selector_operand::<MEM>(cpu, op));
    let seg = seg_of(op.dst);
    or_abort!(cpu, op, cpu.load_segment(seg, selector));
    cpu.hold_off(seg);
    cpu.end(op)
}

fn mov_from_r<W: Word>(cpu: &mut Cpu, op: &Op) {
    let selector = cpu.segments[usize::from(op.src) % 8].selector;
    cpu.set_reg(op.dst, W::of(selector.into()));
    next(cpu, op)
}

fn mov_from_m(cpu: &mut Cpu, op: &Op) {
    let selector = cpu.segments[usize::from(op.src) % 8].selector;
    or_abort!(cpu, op, cpu.write(cpu.address(op), selector));
    next(cpu, op)
}

fn pop<W: Word>(cpu: &mut Cpu, op: &Op) {
    let selector = or_abort!(cpu, op, cpu.peek::<W>(0)).zext() as u16;
    let seg = seg_of(op.dst);
    let loaded = or_abort!(cpu, op, cpu.data_segment(seg, selector));
    cpu.set_stack(cpu.regs[4].wrapping_add(W::BYTES));
    cpu.set_segment(seg, loaded);
    cpu.hold_off(seg);
    cpu.end(op)
}

/// LDS, LES, LFS, LGS, LSS: an offset of width `W`, then the selector. `imm` is the segment register.
fn load_pointer<W: Word>(cpu: &mut Cpu, op: &Op) {
    let at = cpu.address(op);
    let offset = or_abort!(cpu, op, cpu.read::<W>(at));
    let selector = or_abort!(cpu, op, cpu.read::<u16>(at.wrapping_add(W::BYTES)));
    or_abort!(cpu, op, cpu.load_segment(seg_of(op.imm as u8), selector));
    cpu.set_reg(op.dst, offset);
    cpu.end(op)
}

macro_rules! wide {
    ($bytes:expr, $f:ident) => {
        match $bytes {
            2 => $f::<u16> as Handler,
            4 => $f::<u32> as Handler,
            _ => $f::<u64> as Handler,
        }
    };
}

fn lower_mov(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let (to, from) = (insn.op0_register(), insn.op1_register());
    if insn.op0_kind() == OpKind::Register && to.is_segment_register() {
        let in_memory = insn.op1_kind() == OpKind::Memory;
        let mut op = Op::new(if in_memory { mov_to::<true> } else { mov_to::<false> });
        op.dst = segment(to) as u8;
        op.src = gpr(from).unwrap_or_default();
        if op.dst == Seg::Cs as u8 {
            return Lowered::Unknown;
        }
        if in_memory {
            builder.memory(&mut op, insn);
        }
        builder.push(op);
        return Lowered::Ends;
    }
    if insn.op1_kind() != OpKind::Register || !from.is_segment_register() {
        return Lowered::Unknown;
    }
    let in_memory = insn.op0_kind() == OpKind::Memory;
    let mut op = Op::new(if in_memory { mov_from_m } else { wide!(operand_bytes(insn, 0), mov_from_r) });
    op.src = segment(from) as u8;
    op.dst = gpr(to).unwrap_or_default();
    if in_memory {
        builder.memory(&mut op, insn);
    }
    builder.push(op);
    Lowered::Continues
}

fn lower_pop(builder: &mut Builder, insn: &Instruction) -> Lowered {
    if insn.op0_kind() != OpKind::Register || !insn.op0_register().is_segment_register() {
        return Lowered::Unknown;
    }
    let mut op = Op::new(wide!(insn.stack_pointer_increment(), pop));
    op.dst = segment(insn.op0_register()) as u8;
    builder.push(op);
    Lowered::Ends
}

fn lower_pointer(builder: &mut Builder, insn: &Instruction, seg: Seg) -> Lowered {
    let mut op = Op::new(wide!(operand_bytes(insn, 0), load_pointer));
    op.imm = seg as u64;
    op.dst = gpr(insn.op0_register()).unwrap_or_default();
    builder.memory(&mut op, insn);
    builder.push(op);
    Lowered::Ends
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let own = match insn.mnemonic() {
        Mnemonic::Mov => lower_mov(builder, insn),
        Mnemonic::Pop => lower_pop(builder, insn),
        Mnemonic::Lds => lower_pointer(builder, insn, Seg::Ds),
        Mnemonic::Les => lower_pointer(builder, insn, Seg::Es),
        Mnemonic::Lfs => lower_pointer(builder, insn, Seg::Fs),
        Mnemonic::Lgs => lower_pointer(builder, insn, Seg::Gs),
        Mnemonic::Lss => lower_pointer(builder, insn, Seg::Ss),
        _ => Lowered::Unknown,
    };
    let known = |lowered: &Lowered| *lowered != Lowered::Unknown;
    Some(own)
        .filter(known)
        .or_else(|| Some(table::lower(builder, insn)).filter(known))
        .or_else(|| Some(far::lower(builder, insn)).filter(known))
        .unwrap_or_else(|| iret::lower(builder, insn))
}
