//! Near JMP, Jcc, CALL, RET, LOOP, JRCXZ.
//!
//! A branch whose target lies in the same page remembers the block it leads to; others look it up by RIP. A
//! block goes on after a conditional branch that is not taken.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::access::{BelowTop, Top, reading, writing};
use crate::by_condition;
use crate::cpu::mode;
use crate::decode::{Builder, Lowered, gpr};
use crate::exception::Exception;
use crate::exec::condition;
use crate::op::{Handler, Op, abort, next};
use crate::word::Word;
use crate::{Cpu, or_abort};

/// Goes to `imm`.
#[inline(always)]
pub fn jmp(cpu: &mut Cpu, op: &Op) {
    cpu.rip = op.imm;
    cpu.retired += u64::from(op.number) + 1;
    cpu.follow(op)
}

/// The block goes on after it.
fn jcc<const CODE: u8>(cpu: &mut Cpu, op: &Op) {
    if cpu.flags.condition::<CODE>() { jmp(cpu, op) } else { next(cpu, op) }
}

/// The target is not in the code segment.
fn jcc_beyond<const CODE: u8>(cpu: &mut Cpu, op: &Op) {
    if cpu.flags.condition::<CODE>() { abort_gp(cpu, op) } else { next(cpu, op) }
}

/// Goes to a target that the guest computed.
#[inline(always)]
fn jump_to(cpu: &mut Cpu, op: &Op, target: u64) {
    if cpu.is_target(target) { cpu.jump(op, target) } else { abort_gp(cpu, op) }
}

#[cold]
fn abort_gp(cpu: &mut Cpu, op: &Op) {
    let _ = cpu.raise::<()>(Exception::gp(0));
    abort(cpu, op)
}

impl Cpu {
    /// Whether RIP may become `target`: canonical in 64-bit mode, in the code segment's limit else.
    #[inline(always)]
    pub(crate) fn is_target(&self, target: u64) -> bool {
        if self.mode & mode::LONG != 0 {
            return (target as i64) << 16 >> 16 == target as i64;
        }
        target <= u64::from(self.segments[1].limit)
    }
}

fn jmp_r<W: Word>(cpu: &mut Cpu, op: &Op) {
    let target = cpu.reg::<W>(op.src).zext();
    jump_to(cpu, op, target)
}

fn jmp_m<W: Word>(cpu: &mut Cpu, op: &Op) {
    let target = or_abort!(cpu, op, cpu.read::<W>(cpu.address(op))).zext();
    jump_to(cpu, op, target)
}

#[inline(always)]
fn call_to<W: Word>(cpu: &mut Cpu, op: &Op, target: u64) {
    let back = following(cpu, op);
    if !cpu.is_target(target) {
        // What the push would raise comes first.
        or_abort!(cpu, op, cpu.push_in_vain(W::of(back)));
        return abort_gp(cpu, op);
    }
    or_abort!(cpu, op, cpu.push(W::of(back)));
    cpu.jump(op, target)
}

/// Linear address of the next instruction.
#[inline(always)]
fn following(cpu: &Cpu, op: &Op) -> u64 {
    cpu.rip.wrapping_add(u64::from(op.following().ip))
}

/// CALL in 64-bit mode.
fn call_64(cpu: &mut Cpu, op: &Op) {
    writing::<BelowTop, u64>(cpu, op, following, |cpu, op| {
        cpu.regs[4] = cpu.regs[4].wrapping_sub(8);
        jmp(cpu, op)
    })
}

/// RET in 64-bit mode.
fn ret_64(cpu: &mut Cpu, op: &Op) {
    reading::<Top, u64>(cpu, op, |cpu, op, target| {
        if !cpu.is_target(target) {
            return abort_gp(cpu, op);
        }
        cpu.regs[4] = cpu.regs[4].wrapping_add(8 + op.imm);
        cpu.jump(op, target)
    })
}

fn call<W: Word>(cpu: &mut Cpu, op: &Op) {
    call_to::<W>(cpu, op, op.imm)
}

fn call_r<W: Word>(cpu: &mut Cpu, op: &Op) {
    let target = cpu.reg::<W>(op.src).zext();
    call_to::<W>(cpu, op, target)
}

fn call_m<W: Word>(cpu: &mut Cpu, op: &Op) {
    let target = or_abort!(cpu, op, cpu.read::<W>(cpu.address(op))).zext();
    call_to::<W>(cpu, op, target)
}

fn ret<W: Word>(cpu: &mut Cpu, op: &Op) {
    let target = or_abort!(cpu, op, cpu.peek::<W>(0)).zext();
    if !cpu.is_target(target) {
        return abort_gp(cpu, op);
    }
    cpu.set_stack(cpu.regs[4].wrapping_add(W::BYTES + op.imm));
    cpu.jump(op, target)
}

/// LOOP, LOOPE, LOOPNE: `KIND` 0, 1, 2. JRCXZ: 3. The count is `W` wide.
fn count<W: Word, const KIND: u8>(cpu: &mut Cpu, op: &Op) {
    let old = cpu.reg::<W>(8).zext();
    let left = W::of(old.wrapping_sub(1));
    let taken = if KIND == 3 {
        old == 0
    } else {
        let wanted = match KIND {
            1 => cpu.flags.zf(),
            2 => !cpu.flags.zf(),
            _ => true,
        };
        left.zext() != 0 && wanted
    };
    if taken && !cpu.is_target(op.imm) {
        return abort_gp(cpu, op);
    }
    if KIND != 3 {
        cpu.set_reg(8, left);
    }
    let target = if taken { op.imm } else { following(cpu, op) };
    cpu.jump(op, target)
}

macro_rules! pointer {
    ($bytes:expr, $f:ident $(, $g:literal)*) => {
        match $bytes {
            2 => $f::<u16 $(, $g)*> as Handler,
            4 => $f::<u32 $(, $g)*> as Handler,
            _ => $f::<u64 $(, $g)*> as Handler,
        }
    };
}

/// By address size: 67h and the mode, as the register that iced names as used.
fn count_bytes(insn: &Instruction) -> usize {
    use iced_x86::Code as C;
    match insn.code() {
        C::Loop_rel8_64_RCX | C::Loope_rel8_64_RCX | C::Loopne_rel8_64_RCX | C::Jrcxz_rel8_64 => 8,
        C::Loop_rel8_16_CX
        | C::Loop_rel8_32_CX
        | C::Loope_rel8_16_CX
        | C::Loope_rel8_32_CX
        | C::Loopne_rel8_16_CX
        | C::Loopne_rel8_32_CX
        | C::Jcxz_rel8_16
        | C::Jcxz_rel8_32 => 2,
        _ => 4,
    }
}

fn is_near(insn: &Instruction) -> bool {
    matches!(insn.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64)
}

fn bytes(builder: &Builder, insn: &Instruction) -> usize {
    match insn.op0_kind() {
        OpKind::Register => insn.op0_register().size(),
        OpKind::Memory => insn.memory_size().size(),
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 => 4,
        _ if builder.is_long() => 8,
        _ => 4,
    }
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    use Mnemonic as M;
    let bytes = bytes(builder, insn);
    let mut lowered = Lowered::Ends;
    let mut op = Op::new(match insn.mnemonic() {
        M::Jmp if is_near(insn) && builder.is_beyond(insn.near_branch_target()) => abort_gp,
        M::Jmp if is_near(insn) => jmp,
        M::Jmp if insn.is_jmp_near_indirect() && insn.op0_kind() == OpKind::Register => {
            pointer!(bytes, jmp_r)
        }
        M::Jmp if insn.is_jmp_near_indirect() => pointer!(bytes, jmp_m),
        M::Call if is_near(insn) && builder.is_long() && bytes == 8 => call_64,
        M::Call if is_near(insn) => pointer!(bytes, call),
        M::Call if insn.is_call_near_indirect() && insn.op0_kind() == OpKind::Register => {
            pointer!(bytes, call_r)
        }
        M::Call if insn.is_call_near_indirect() => pointer!(bytes, call_m),
        M::Ret => {
            let popped = insn.stack_pointer_increment().unsigned_abs() as u64;
            match popped - if insn.op_count() > 0 { u64::from(insn.immediate16()) } else { 0 } {
                8 if builder.is_long() => ret_64,
                bytes => pointer!(bytes, ret),
            }
        }
        M::Loop => pointer!(count_bytes(insn), count, 0),
        M::Loope => pointer!(count_bytes(insn), count, 1),
        M::Loopne => pointer!(count_bytes(insn), count, 2),
        M::Jrcxz | M::Jecxz | M::Jcxz => pointer!(count_bytes(insn), count, 3),
        _ if insn.is_jcc_short_or_near() => match condition::code(insn) {
            Some(code) if builder.is_beyond(insn.near_branch_target()) => {
                lowered = Lowered::Continues;
                by_condition!(code, jcc_beyond)
            }
            Some(code) => {
                builder.fuse(code);
                lowered = Lowered::Continues;
                by_condition!(code, jcc)
            }
            None => return Lowered::Unknown,
        },
        _ => return Lowered::Unknown,
    });
    match insn.op0_kind() {
        _ if insn.mnemonic() == M::Ret => {
            op.imm = if insn.op_count() > 0 { u64::from(insn.immediate16()) } else { 0 };
        }
        OpKind::Register => op.src = gpr(insn.op0_register()).unwrap_or_default(),
        OpKind::Memory => builder.memory(&mut op, insn),
        _ => {
            op.imm = insn.near_branch_target();
            builder.link(&mut op, insn.near_branch_target());
        }
    }
    builder.push(op);
    lowered
}
