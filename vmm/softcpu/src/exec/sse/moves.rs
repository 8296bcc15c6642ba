//! Moves between XMM registers, memory and general registers.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::{Aligned, Bits32, Bits64, Loose, Operand, Xmm, join, low, number, split};
use crate::decode::{Builder, Lowered, gpr};
use crate::mem::Value;
use crate::op::{ADDRESS, Handler, Op, next};
use crate::state::Seg;
use crate::word::Word;
use crate::{Cpu, or_abort};

fn copy(cpu: &mut Cpu, op: &Op) {
    let value = cpu.xmm(op.src);
    cpu.set_xmm(op.dst, value);
    next(cpu, op)
}

/// Loads, the rest of the register zero.
fn load<M: Operand>(cpu: &mut Cpu, op: &Op) {
    let value = or_abort!(cpu, op, M::load(cpu, cpu.address(op)));
    cpu.set_xmm(op.dst, value);
    next(cpu, op)
}

fn store_aligned(cpu: &mut Cpu, op: &Op) {
    let address = or_abort!(cpu, op, cpu.aligned(cpu.address(op)));
    or_abort!(cpu, op, cpu.write(address, cpu.xmm(op.src)));
    next(cpu, op)
}

fn store_loose(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.write(cpu.address(op), cpu.xmm(op.src)));
    next(cpu, op)
}

/// Stores the low bits.
fn store<W: Word>(cpu: &mut Cpu, op: &Op) {
    let value = W::of(cpu.xmm_low(op.src));
    or_abort!(cpu, op, cpu.write(cpu.address(op), value));
    next(cpu, op)
}

fn store_high(cpu: &mut Cpu, op: &Op) {
    let value = (cpu.xmm[usize::from(op.src & 15)] >> 64) as u64;
    or_abort!(cpu, op, cpu.write(cpu.address(op), value));
    next(cpu, op)
}

fn load_low(cpu: &mut Cpu, op: &Op) {
    let value = or_abort!(cpu, op, cpu.read::<u64>(cpu.address(op)));
    merge_low(cpu, op, value);
    next(cpu, op)
}

fn load_high(cpu: &mut Cpu, op: &Op) {
    let value = or_abort!(cpu, op, cpu.read::<u64>(cpu.address(op)));
    let [kept, _] = split(cpu.xmm(op.dst));
    cpu.set_xmm(op.dst, join(kept, value));
    next(cpu, op)
}

#[inline(always)]
fn merge_low(cpu: &mut Cpu, op: &Op, value: u64) {
    let [_, kept] = split(cpu.xmm(op.dst));
    cpu.set_xmm(op.dst, join(value, kept));
}

/// MOVSD between registers leaves the upper half.
fn merge_64(cpu: &mut Cpu, op: &Op) {
    let value = cpu.xmm_low(op.src);
    merge_low(cpu, op, value);
    next(cpu, op)
}

/// MOVSS between registers leaves the upper three quarters.
fn merge_32(cpu: &mut Cpu, op: &Op) {
    let value = cpu.xmm_low(op.src) & 0xffff_ffff | cpu.xmm_low(op.dst) & !0xffff_ffff;
    merge_low(cpu, op, value);
    next(cpu, op)
}

fn copy_low(cpu: &mut Cpu, op: &Op) {
    let value = low(cpu.xmm_low(op.src));
    cpu.set_xmm(op.dst, value);
    next(cpu, op)
}

fn from_gpr<W: Word>(cpu: &mut Cpu, op: &Op) {
    let value = low(cpu.reg::<W>(op.src).zext());
    cpu.set_xmm(op.dst, value);
    next(cpu, op)
}

fn to_gpr<W: Word>(cpu: &mut Cpu, op: &Op) {
    let value = W::of(cpu.xmm_low(op.src));
    cpu.set_reg(op.dst, value);
    next(cpu, op)
}

/// Stores the bytes whose mask has its top bit set, of the `imm` bytes of the operand, all of which must be
/// writable (SDM vol. 2, MASKMOVQ, leaves it to the implementation: this is how AMD's processors do it).
pub fn store_masked(cpu: &mut Cpu, op: &Op, value: Xmm, mask: Xmm) -> Result<(), crate::Fault> {
    let (value, mask) = (value.bits().to_le_bytes(), mask.bits().to_le_bytes());
    let address = cpu.address(op);
    cpu.check_write(address, op.imm)?;
    for byte in (0..op.imm as usize).filter(|byte| mask[*byte] & 0x80 != 0) {
        cpu.write(address.wrapping_add(byte as u64), value[byte])?;
    }
    Ok(())
}

fn maskmovdqu(cpu: &mut Cpu, op: &Op) {
    let (value, mask) = (cpu.xmm(op.dst), cpu.xmm(op.src));
    or_abort!(cpu, op, store_masked(cpu, op, value, mask));
    next(cpu, op)
}

/// The implied operand of MASKMOV: rDI in the address size, in DS or what overrides it.
fn destination_index<const MASK: u64>(cpu: &mut Cpu, op: &Op) {
    let offset = cpu.regs[7] & MASK;
    let seg = usize::from(op.src) % 8;
    let linear = if cpu.mode & crate::cpu::mode::LONG != 0 {
        cpu.bases[seg].wrapping_add(offset)
    } else {
        or_abort!(cpu, op, cpu.segment_linear(seg, offset, op.imm, true))
    };
    cpu.set_reg(ADDRESS, linear);
    next(cpu, op)
}

/// Makes `op` address the implied operand of MASKMOVDQU and MASKMOVQ.
pub fn masked_operand(builder: &mut Builder, op: &mut Op, insn: &Instruction) {
    let mut before = Op::new(match insn.op0_kind() {
        OpKind::MemorySegDI => destination_index::<0xffff>,
        OpKind::MemorySegEDI => destination_index::<0xffff_ffff>,
        _ => destination_index::<{ u64::MAX }>,
    });
    let segment = match insn.memory_segment() {
        Register::None => Seg::Ds,
        other => crate::decode::segment(other),
    };
    before.src = segment as u8;
    before.imm = insn.memory_size().size() as u64;
    builder.push(before);
    op.base = ADDRESS;
}

fn lower_masked(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let mut op = Op::new(maskmovdqu);
    masked_operand(builder, &mut op, insn);
    (op.dst, op.src) = (number(insn.op1_register()), number(insn.op2_register()));
    op.imm = 16;
    builder.push(op);
    Lowered::Continues
}

/// Handlers of the forms xmm ← xmm, xmm ← m, m ← xmm.
fn handlers(mnemonic: Mnemonic) -> Option<[Handler; 3]> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Movaps | M::Movapd | M::Movdqa => [copy, load::<Aligned>, store_aligned],
        M::Movntps | M::Movntpd | M::Movntdq | M::Movntdqa => [copy, load::<Aligned>, store_aligned],
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu => [copy, load::<Loose>, store_loose],
        M::Movss => [merge_32, load::<Bits32>, store::<u32>],
        M::Movsd => [merge_64, load::<Bits64>, store::<u64>],
        M::Movq => [copy_low, load::<Bits64>, store::<u64>],
        M::Movd => [copy_low, load::<Bits32>, store::<u32>],
        M::Movlps | M::Movlpd => [copy, load_low, store::<u64>],
        M::Movhps | M::Movhpd => [copy, load_high, store_high],
        _ => return None,
    })
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    if insn.mnemonic() == Mnemonic::Maskmovdqu {
        return lower_masked(builder, insn);
    }
    let Some([rr, rm, mr]) = handlers(insn.mnemonic()) else { return Lowered::Unknown };
    let (to, from) = (insn.op0_register(), insn.op1_register());
    let mut op = Op::new(rr);
    if insn.op0_kind() == OpKind::Memory {
        op.run = mr;
        op.src = number(from);
        builder.memory(&mut op, insn);
    } else if insn.op1_kind() == OpKind::Memory {
        op.run = rm;
        op.dst = number(to);
        builder.memory(&mut op, insn);
    } else if from.is_gpr() {
        op.run = if from.size() == 8 { from_gpr::<u64> } else { from_gpr::<u32> };
        (op.dst, op.src) = (number(to), gpr(from).unwrap_or_default());
    } else if to.is_gpr() {
        op.run = if to.size() == 8 { to_gpr::<u64> } else { to_gpr::<u32> };
        (op.dst, op.src) = (gpr(to).unwrap_or_default(), number(from));
    } else {
        (op.dst, op.src) = (number(to), number(from));
    }
    builder.push(op);
    Lowered::Continues
}
