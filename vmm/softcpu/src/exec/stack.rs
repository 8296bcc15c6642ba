//! PUSH, POP, PUSHA, POPA, PUSHF, POPF, ENTER, LEAVE, and the stack as calls use it.
//!
//! In 64-bit mode addresses on the stack are RSP itself; in compatibility mode SS has a base and SS.B says
//! how much of RSP counts.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use crate::access::{BelowTop, Top, reading, writing};
use crate::cpu::mode;
use crate::decode::{Builder, Lowered, gpr};
use crate::flags;
use crate::op::{Handler, Op, abort, next};
use crate::state::{Seg, Segment};
use crate::word::Word;
use crate::{Cpu, Fault, or_abort};

/// Register-file offset of RBP.
pub const RBP: u8 = 40;

impl Cpu {
    fn stack_mask(&self) -> u64 {
        match self.segments[Seg::Ss as usize].access & Segment::BIG {
            0 => 0xffff,
            _ => 0xffff_ffff,
        }
    }

    /// Linear address of `bytes` bytes of the stack at `offset` (a value of RSP); #SS where SS has not all of
    /// them.
    #[inline(always)]
    pub(crate) fn stack_at(&mut self, offset: u64, bytes: u64) -> Result<u64, Fault> {
        if self.mode & mode::LONG != 0 {
            return Ok(offset);
        }
        // SS can always be written.
        self.segment_linear(Seg::Ss as usize, offset & self.stack_mask(), bytes, true)
    }

    /// Raises what SS says against `count` pushes of `bytes` bytes each.
    pub(crate) fn check_stack(&mut self, count: u64, bytes: u64) -> Result<(), Fault> {
        let top = self.regs[4];
        (1..=count).try_for_each(|number| self.stack_at(top.wrapping_sub(bytes * number), bytes).map(|_| ()))
    }

    /// Moves RSP to `value`, as much of it as counts.
    #[inline(always)]
    pub(crate) fn set_stack(&mut self, value: u64) {
        if self.mode & mode::LONG != 0 {
            self.regs[4] = value;
            return;
        }
        let mask = self.stack_mask();
        let kept = if mask == 0xffff { self.regs[4] & !mask } else { 0 };
        self.regs[4] = kept | value & mask;
    }

    /// Pushes a value; RSP moves only when it could be written.
    #[inline(always)]
    pub(crate) fn push<W: Word>(&mut self, value: W) -> Result<(), Fault> {
        let to = self.regs[4].wrapping_sub(W::BYTES);
        let at = self.stack_at(to, W::BYTES)?;
        self.write(at, value)?;
        self.set_stack(to);
        Ok(())
    }

    /// Raises what a push would raise; RSP stays. In compatibility mode the value is written all the same, as
    /// it is by processors of Intel's.
    #[cold]
    pub(crate) fn push_in_vain<W: Word>(&mut self, value: W) -> Result<(), Fault> {
        let to = self.regs[4].wrapping_sub(W::BYTES);
        let at = self.stack_at(to, W::BYTES)?;
        if self.mode & mode::LONG != 0 { self.check_write(at, W::BYTES) } else { self.write(at, value) }
    }

    /// Reads the value `skip` bytes above the top of the stack; RSP stays.
    #[inline(always)]
    pub(crate) fn peek<W: Word>(&mut self, skip: u64) -> Result<W, Fault> {
        let from = self.regs[4].wrapping_add(skip);
        let at = self.stack_at(from, W::BYTES)?;
        self.read(at)
    }
}

fn push_r<W: Word>(cpu: &mut Cpu, op: &Op) {
    let value = cpu.reg::<W>(op.src);
    or_abort!(cpu, op, cpu.push(value));
    next(cpu, op)
}

/// PUSH of a register in 64-bit mode.
fn push_64(cpu: &mut Cpu, op: &Op) {
    writing::<BelowTop, u64>(
        cpu,
        op,
        |cpu, op| cpu.reg(op.src),
        |cpu, op| {
            cpu.regs[4] = cpu.regs[4].wrapping_sub(8);
            next(cpu, op)
        },
    )
}

/// POP of a register in 64-bit mode.
fn pop_64(cpu: &mut Cpu, op: &Op) {
    reading::<Top, u64>(cpu, op, |cpu, op, value| {
        cpu.regs[4] = cpu.regs[4].wrapping_add(8);
        cpu.set_reg(op.dst, value);
        next(cpu, op)
    })
}

fn push_i<W: Word>(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.push(W::of(op.imm)));
    next(cpu, op)
}

fn push_m<W: Word>(cpu: &mut Cpu, op: &Op) {
    let value = or_abort!(cpu, op, cpu.read::<W>(cpu.address(op)));
    or_abort!(cpu, op, cpu.push(value));
    next(cpu, op)
}

/// A push of 32 bits writes two of the four bytes (SDM vol. 2, PUSH), and needs no more of the segment.
fn push_segment<W: Word>(cpu: &mut Cpu, op: &Op) {
    let selector = cpu.segments[usize::from(op.src) % 8].selector;
    if W::BITS == 32 {
        let to = cpu.regs[4].wrapping_sub(W::BYTES);
        let at = or_abort!(cpu, op, cpu.stack_at(to, 2));
        or_abort!(cpu, op, cpu.write(at, selector));
        cpu.set_stack(to);
    } else {
        or_abort!(cpu, op, cpu.push(W::of(u64::from(selector))));
    }
    next(cpu, op)
}

fn pop_r<W: Word>(cpu: &mut Cpu, op: &Op) {
    let value = or_abort!(cpu, op, cpu.peek::<W>(0));
    cpu.set_stack(cpu.regs[4].wrapping_add(W::BYTES));
    cpu.set_reg(op.dst, value);
    next(cpu, op)
}

/// Raises what reading the top of the stack raises.
fn peek_first<W: Word>(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.peek::<W>(0));
    next(cpu, op)
}

/// POP to memory computes its address with RSP already moved (SDM vol. 2, POP).
fn pop_m<W: Word>(cpu: &mut Cpu, op: &Op) {
    let value = or_abort!(cpu, op, cpu.peek::<W>(0));
    let before = cpu.regs[4];
    cpu.set_stack(before.wrapping_add(W::BYTES));
    if cpu.write(cpu.address(op), value).is_err() {
        cpu.regs[4] = before;
        return abort(cpu, op);
    }
    next(cpu, op)
}

fn pushf<W: Word>(cpu: &mut Cpu, op: &Op) {
    let value = W::of(cpu.rflags() & !(flags::RF | flags::VM));
    or_abort!(cpu, op, cpu.push(value));
    next(cpu, op)
}

/// POPF: IOPL changes at CPL 0 only, IF when CPL ≤ IOPL (SDM vol. 2, POPF).
fn popf<W: Word>(cpu: &mut Cpu, op: &Op) {
    let value = or_abort!(cpu, op, cpu.peek::<W>(0)).zext();
    cpu.set_stack(cpu.regs[4].wrapping_add(W::BYTES));
    cpu.load_rflags(value, W::BYTES);
    cpu.end(op)
}

impl Cpu {
    /// Sets the flags that this privilege may set from the low `bytes` bytes of `value`.
    pub(crate) fn load_rflags(&mut self, value: u64, bytes: u64) {
        let iopl = (self.system_flags & flags::IOPL) >> 12;
        let mut mask = flags::STATUS | flags::TF | flags::DF | flags::NT;
        if bytes > 2 {
            mask |= flags::AC | flags::ID | flags::RF;
        }
        if self.cpl == 0 {
            mask |= flags::IOPL;
        }
        if u64::from(self.cpl) <= iopl {
            mask |= flags::IF;
        }
        let old = self.rflags();
        self.set_rflags((old & !mask | value & mask) & !flags::RF);
        self.update_space();
    }
}

fn leave<W: Word>(cpu: &mut Cpu, op: &Op) {
    let frame = cpu.regs[5];
    let at = or_abort!(cpu, op, cpu.stack_at(frame, W::BYTES));
    let value = or_abort!(cpu, op, cpu.read::<W>(at));
    cpu.set_stack(frame.wrapping_add(W::BYTES));
    cpu.set_reg(RBP, value);
    next(cpu, op)
}

/// ENTER; `imm` has the allocation in bits 0–15 and the nesting level in bits 16–20.
fn enter<W: Word>(cpu: &mut Cpu, op: &Op) {
    match enter_frame::<W>(cpu, op.imm & 0xffff, op.imm >> 16 & 31) {
        Ok(()) => next(cpu, op),
        Err(Fault) => abort(cpu, op),
    }
}

fn enter_frame<W: Word>(cpu: &mut Cpu, allocate: u64, level: u64) -> Result<(), Fault> {
    let bytes = W::BYTES;
    let old = cpu.regs[4];
    let pushed = |number: u64| old.wrapping_sub(bytes * number);
    let frame = pushed(1);
    let top = pushed(if level == 0 { 1 } else { level + 1 }).wrapping_sub(allocate);
    let at = cpu.stack_at(frame, bytes)?;
    cpu.write(at, cpu.reg::<W>(RBP))?;
    for number in 1..level {
        let from = cpu.regs[5].wrapping_sub(bytes * number);
        let at = cpu.stack_at(from, bytes)?;
        let value = cpu.read::<W>(at)?;
        let at = cpu.stack_at(pushed(number + 1), bytes)?;
        cpu.write(at, value)?;
    }
    if level > 0 {
        let at = cpu.stack_at(pushed(level + 1), bytes)?;
        cpu.write(at, W::of(frame))?;
    }
    // Registers change only when the new top can be written, too; the frame below the old top is written by
    // then.
    let at = cpu.stack_at(top, bytes)?;
    cpu.check_write(at, bytes)?;
    cpu.set_stack(top);
    cpu.set_reg(RBP, W::of(frame));
    Ok(())
}

/// PUSHA: RAX to RDI in their order, RSP as it was before.
fn pusha<W: Word>(cpu: &mut Cpu, op: &Op) {
    let old = cpu.regs[4];
    for number in 0..8u8 {
        let to = old.wrapping_sub(W::BYTES * (u64::from(number) + 1));
        let to = or_abort!(cpu, op, cpu.stack_at(to, W::BYTES));
        or_abort!(cpu, op, cpu.write(to, cpu.reg::<W>(number * 8)));
    }
    cpu.set_stack(old.wrapping_sub(W::BYTES * 8));
    next(cpu, op)
}

/// POPA: the value for RSP is thrown away.
fn popa<W: Word>(cpu: &mut Cpu, op: &Op) {
    let mut values = [W::of(0); 8];
    for (number, value) in values.iter_mut().enumerate() {
        *value = or_abort!(cpu, op, cpu.peek::<W>(W::BYTES * number as u64));
    }
    for (number, value) in values.into_iter().enumerate().filter(|(number, _)| *number != 3) {
        cpu.set_reg((7 - number as u8) * 8, value);
    }
    cpu.set_stack(cpu.regs[4].wrapping_add(W::BYTES * 8));
    next(cpu, op)
}

/// By operand size; pushes and pops are 64 bits wide in 64-bit mode, or 16.
macro_rules! wide {
    ($bytes:expr, $f:ident) => {
        match $bytes {
            2 => $f::<u16> as Handler,
            4 => $f::<u32> as Handler,
            _ => $f::<u64> as Handler,
        }
    };
}

/// Bytes that a PUSH or POP moves.
fn stack_bytes(insn: &Instruction) -> usize {
    insn.stack_pointer_increment().unsigned_abs() as usize
}

fn lower_push(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let bytes = stack_bytes(insn);
    let mut op = match insn.op0_kind() {
        OpKind::Register => match gpr(insn.op0_register()) {
            Some(src) => {
                let long = builder.is_long() && bytes == 8;
                let mut op = Op::new(if long { push_64 } else { wide!(bytes, push_r) });
                op.src = src;
                op
            }
            None => {
                let mut op = Op::new(wide!(bytes, push_segment));
                op.src = crate::decode::segment(insn.op0_register()) as u8;
                op
            }
        },
        OpKind::Memory => {
            let mut op = Op::new(wide!(bytes, push_m));
            builder.memory(&mut op, insn);
            op
        }
        _ => Op::new(wide!(bytes, push_i)),
    };
    if !matches!(insn.op0_kind(), OpKind::Register | OpKind::Memory) {
        op.imm = insn.immediate(0);
    }
    builder.push(op);
    Lowered::Continues
}

fn lower_pop(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let bytes = stack_bytes(insn);
    let op = match (insn.op0_kind(), gpr(insn.op0_register())) {
        (OpKind::Memory, _) => {
            let mut op = Op::new(wide!(bytes, pop_m));
            if builder.is_checked(crate::decode::segment(insn.memory_segment())) {
                // The stack is read before the operand's segment is looked at.
                builder.push(Op::new(wide!(bytes, peek_first)));
            }
            builder.memory(&mut op, insn);
            if insn.memory_base().full_register() == iced_x86::Register::RSP {
                builder.move_address(&op, bytes as u64);
            }
            op
        }
        (_, Some(dst)) => {
            let long = builder.is_long() && bytes == 8;
            let mut op = Op::new(if long { pop_64 } else { wide!(bytes, pop_r) });
            op.dst = dst;
            op
        }
        _ => return Lowered::Unknown,
    };
    builder.push(op);
    Lowered::Continues
}

/// Operand size of ENTER and LEAVE.
fn frame_bytes(insn: &Instruction) -> usize {
    match insn.code() {
        Code::Enterw_imm16_imm8 | Code::Leavew => 2,
        Code::Enterd_imm16_imm8 | Code::Leaved => 4,
        _ => 8,
    }
}

fn lower_enter(builder: &mut Builder, insn: &Instruction, bytes: usize) -> Lowered {
    let mut op = Op::new(wide!(bytes, enter));
    op.imm = u64::from(insn.immediate16()) | u64::from(insn.immediate8_2nd()) << 16;
    builder.push(op);
    Lowered::Continues
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    use Mnemonic as M;
    let one = |builder: &mut Builder, run: Handler, lowered: Lowered| {
        builder.push(Op::new(run));
        lowered
    };
    match insn.mnemonic() {
        M::Push => lower_push(builder, insn),
        M::Pop => lower_pop(builder, insn),
        M::Pushf => one(builder, pushf::<u16>, Lowered::Continues),
        M::Pushfd => one(builder, pushf::<u32>, Lowered::Continues),
        M::Pushfq => one(builder, pushf::<u64>, Lowered::Continues),
        M::Popf => one(builder, popf::<u16>, Lowered::Ends),
        M::Popfd => one(builder, popf::<u32>, Lowered::Ends),
        M::Popfq => one(builder, popf::<u64>, Lowered::Ends),
        M::Pusha => one(builder, pusha::<u16>, Lowered::Continues),
        M::Pushad => one(builder, pusha::<u32>, Lowered::Continues),
        M::Popa => one(builder, popa::<u16>, Lowered::Continues),
        M::Popad => one(builder, popa::<u32>, Lowered::Continues),
        M::Leave => one(builder, wide!(frame_bytes(insn), leave), Lowered::Continues),
        M::Enter => lower_enter(builder, insn, frame_bytes(insn)),
        _ => Lowered::Unknown,
    }
}
