//! BT, BTS, BTR, BTC, BSF, BSR, POPCNT, BSWAP, MOVBE, CRC32, and the instructions that set single flags.
//!
//! The BT family changes CF only. In memory, a bit offset from a register reaches beyond the operand, both
//! ways (SDM vol. 1, 3.1.1.9, "Bit(BitBase, BitOffset)").
//!
//! TZCNT and LZCNT are not in the processor's model: their encodings execute as BSF and BSR, as on processors
//! that do not know the prefix.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::Cpu;
use crate::cpu::mode;
use crate::decode::{Builder, Lowered, address_bytes, gpr, operand_bytes, segment};
use crate::flags::{self, Lazy};
use crate::op::{Handler, Op, next};
use crate::word::Word;
use crate::{or_abort, sized};

const AH: u8 = 1;

/// What becomes of the bit.
const TEST: u8 = 0;
const SET: u8 = 1;
const RESET: u8 = 2;
const COMPLEMENT: u8 = 3;

#[inline(always)]
fn change<W: Word, const KIND: u8>(cpu: &mut Cpu, value: W, bit: u64) -> W {
    let (mask, x) = (1u64 << (bit & u64::from(W::BITS - 1)), value.zext());
    cpu.flags.set_cf(x & mask != 0);
    W::of(match KIND {
        TEST => x,
        SET => x | mask,
        RESET => x & !mask,
        _ => x ^ mask,
    })
}

fn bit_rr<W: Word, const KIND: u8>(cpu: &mut Cpu, op: &Op) {
    let (value, bit) = (cpu.reg::<W>(op.dst), cpu.reg::<W>(op.src).zext());
    let result = change::<W, KIND>(cpu, value, bit);
    if KIND != TEST {
        cpu.set_reg(op.dst, result);
    }
    next(cpu, op)
}

fn bit_ri<W: Word, const KIND: u8>(cpu: &mut Cpu, op: &Op) {
    let value = cpu.reg::<W>(op.dst);
    let result = change::<W, KIND>(cpu, value, op.imm);
    if KIND != TEST {
        cpu.set_reg(op.dst, result);
    }
    next(cpu, op)
}

#[inline(always)]
fn bit_in_memory<W: Word, const KIND: u8>(cpu: &mut Cpu, op: &Op, address: u64, bit: u64) {
    if KIND == TEST {
        let value = or_abort!(cpu, op, cpu.read::<W>(address));
        change::<W, KIND>(cpu, value, bit);
    } else {
        or_abort!(
            cpu,
            op,
            cpu.modify::<W, ()>(address, |cpu, value| (change::<W, KIND>(cpu, value, bit), ()))
        );
    }
    next(cpu, op)
}

/// The bit string's part that has the bit. The operand is an offset in the segment `dst`, whose base is added
/// at the end; `imm` is the mask of the address size.
fn bit_mr<W: Word, const KIND: u8>(cpu: &mut Cpu, op: &Op) {
    let offset = cpu.reg::<W>(op.src).sext() as i64;
    let part = (offset >> W::BITS.trailing_zeros()).wrapping_mul(W::BYTES as i64);
    let within = cpu.address(op).wrapping_add(part as u64) & op.imm;
    let seg = usize::from(op.dst) % 8;
    let address = if cpu.mode & mode::LONG != 0 {
        cpu.bases[seg].wrapping_add(within)
    } else {
        or_abort!(cpu, op, cpu.segment_linear(seg, within, W::BYTES, KIND != TEST))
    };
    bit_in_memory::<W, KIND>(cpu, op, address, offset as u64)
}

fn bit_mi<W: Word, const KIND: u8>(cpu: &mut Cpu, op: &Op) {
    let address = cpu.address(op);
    bit_in_memory::<W, KIND>(cpu, op, address, op.imm)
}

macro_rules! bit_form {
    ($kind:expr, $bytes:expr, $f:ident) => {
        match $kind {
            TEST => by_size!($bytes, $f, TEST),
            SET => by_size!($bytes, $f, SET),
            RESET => by_size!($bytes, $f, RESET),
            _ => by_size!($bytes, $f, COMPLEMENT),
        }
    };
}

macro_rules! by_size {
    ($bytes:expr, $f:ident, $kind:ident) => {
        match $bytes {
            2 => $f::<u16, $kind> as Handler,
            4 => $f::<u32, $kind> as Handler,
            _ => $f::<u64, $kind> as Handler,
        }
    };
}

fn lower_bit(builder: &mut Builder, insn: &Instruction, kind: u8) -> Lowered {
    let bytes = operand_bytes(insn, 0);
    let memory = insn.op0_kind() == OpKind::Memory;
    let by_register = insn.op1_kind() == OpKind::Register;
    let mut op = Op::new(match (memory, by_register) {
        (false, true) => bit_form!(kind, bytes, bit_rr),
        (false, false) => bit_form!(kind, bytes, bit_ri),
        (true, true) => bit_form!(kind, bytes, bit_mr),
        (true, false) => bit_form!(kind, bytes, bit_mi),
    });
    if by_register {
        op.src = gpr(insn.op1_register()).unwrap_or_default();
    } else {
        op.imm = insn.immediate(1);
    }
    if memory && by_register {
        op.dst = segment(insn.memory_segment()) as u8;
        op.imm = u64::MAX >> (64 - 8 * address_bytes(insn));
        builder.memory_offset(&mut op, insn);
    } else if memory {
        builder.memory(&mut op, insn);
    } else {
        op.dst = gpr(insn.op0_register()).unwrap_or_default();
    }
    builder.push(op);
    Lowered::Continues
}

/// A result from a source.
trait Unary {
    /// `None` leaves the destination.
    fn apply<W: Word>(flags: &mut Lazy, source: W) -> Option<W>;
}

/// The number of a bit, if there is one; of the flags only ZF is defined, the others are cleared. Else the
/// whole destination stays, also the upper half of a register with a 32-bit operand.
#[inline(always)]
fn found<W: Word>(flags: &mut Lazy, source: W, bit: u32) -> Option<W> {
    let none = source.zext() == 0;
    *flags = counted(none);
    (!none).then(|| W::of(u64::from(bit)))
}

struct Forward;
impl Unary for Forward {
    #[inline(always)]
    fn apply<W: Word>(flags: &mut Lazy, source: W) -> Option<W> {
        found(flags, source, source.zext().trailing_zeros())
    }
}

struct Reverse;
impl Unary for Reverse {
    #[inline(always)]
    fn apply<W: Word>(flags: &mut Lazy, source: W) -> Option<W> {
        found(flags, source, 63u32.wrapping_sub(source.zext().leading_zeros()))
    }
}

/// ZF, and no other flag.
pub fn counted(zero: bool) -> Lazy {
    Lazy::from_rflags(if zero { flags::ZF } else { 0 })
}

struct Popcnt;
impl Unary for Popcnt {
    #[inline(always)]
    fn apply<W: Word>(flags: &mut Lazy, source: W) -> Option<W> {
        *flags = counted(source.zext() == 0);
        Some(W::of(u64::from(source.zext().count_ones())))
    }
}

#[inline(always)]
fn reversed<W: Word>(value: W) -> W {
    W::of(value.zext().swap_bytes() >> (64 - W::BITS))
}

struct Movbe;
impl Unary for Movbe {
    #[inline(always)]
    fn apply<W: Word>(_flags: &mut Lazy, source: W) -> Option<W> {
        Some(reversed(source))
    }
}

fn unary_r<K: Unary, W: Word>(cpu: &mut Cpu, op: &Op) {
    let source = cpu.reg::<W>(op.src);
    if let Some(result) = K::apply(&mut cpu.flags, source) {
        cpu.set_reg(op.dst, result);
    }
    next(cpu, op)
}

fn unary_m<K: Unary, W: Word>(cpu: &mut Cpu, op: &Op) {
    let source = or_abort!(cpu, op, cpu.read::<W>(cpu.address(op)));
    if let Some(result) = K::apply(&mut cpu.flags, source) {
        cpu.set_reg(op.dst, result);
    }
    next(cpu, op)
}

fn movbe_store<W: Word>(cpu: &mut Cpu, op: &Op) {
    let value = reversed(cpu.reg::<W>(op.src));
    or_abort!(cpu, op, cpu.write(cpu.address(op), value));
    next(cpu, op)
}

/// BSWAP of a 16-bit register, which is undefined, clears it (as processors do).
fn bswap<W: Word>(cpu: &mut Cpu, op: &Op) {
    let value = if W::BITS == 16 { W::of(0) } else { reversed(cpu.reg::<W>(op.dst)) };
    cpu.set_reg(op.dst, value);
    next(cpu, op)
}

fn lower_unary<K: Unary>(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let bytes = operand_bytes(insn, 0);
    let memory = insn.op1_kind() == OpKind::Memory;
    let mut op = Op::new(if memory { sized!(bytes, unary_m, K) } else { sized!(bytes, unary_r, K) });
    op.dst = gpr(insn.op0_register()).unwrap_or_default();
    if memory {
        builder.memory(&mut op, insn);
    } else {
        op.src = gpr(insn.op1_register()).unwrap_or_default();
    }
    builder.push(op);
    Lowered::Continues
}

fn lower_movbe(builder: &mut Builder, insn: &Instruction) -> Lowered {
    if insn.op0_kind() != OpKind::Memory {
        return lower_unary::<Movbe>(builder, insn);
    }
    let mut op = Op::new(sized!(operand_bytes(insn, 0), movbe_store));
    op.src = gpr(insn.op1_register()).unwrap_or_default();
    builder.memory(&mut op, insn);
    builder.push(op);
    Lowered::Continues
}

/// The remainders of a byte by CRC-32C's polynomial, bits reflected.
const CRC: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut rest = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            rest = rest >> 1 ^ if rest & 1 != 0 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[byte] = rest;
        byte += 1;
    }
    table
};

fn crc<W: Word>(start: u32, value: W) -> u64 {
    let bytes = value.zext().to_le_bytes();
    let step = |crc: u32, byte: &u8| crc >> 8 ^ CRC[usize::from(crc as u8 ^ byte)];
    u64::from(bytes[..W::BYTES as usize].iter().fold(start, step))
}

fn crc_r<W: Word>(cpu: &mut Cpu, op: &Op) {
    let result = crc(cpu.reg::<u32>(op.dst), cpu.reg::<W>(op.src));
    cpu.set_reg(op.dst, result);
    next(cpu, op)
}

fn crc_m<W: Word>(cpu: &mut Cpu, op: &Op) {
    let value = or_abort!(cpu, op, cpu.read::<W>(cpu.address(op)));
    let result = crc(cpu.reg::<u32>(op.dst), value);
    cpu.set_reg(op.dst, result);
    next(cpu, op)
}

fn lower_crc(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let bytes = operand_bytes(insn, 1);
    let memory = insn.op1_kind() == OpKind::Memory;
    let mut op = Op::new(if memory { sized!(bytes, crc_m) } else { sized!(bytes, crc_r) });
    op.dst = gpr(insn.op0_register()).unwrap_or_default();
    if memory {
        builder.memory(&mut op, insn);
    } else {
        op.src = gpr(insn.op1_register()).unwrap_or_default();
    }
    builder.push(op);
    Lowered::Continues
}

fn lahf(cpu: &mut Cpu, op: &Op) {
    let value = cpu.flags.rflags() as u8 | 2;
    cpu.set_reg(AH, value);
    next(cpu, op)
}

fn sahf(cpu: &mut Cpu, op: &Op) {
    let of = cpu.flags.rflags() & flags::OF;
    cpu.flags = Lazy::from_rflags(of | u64::from(cpu.reg::<u8>(AH)) & (flags::STATUS & !flags::OF));
    next(cpu, op)
}

fn carry<const CARRY: bool>(cpu: &mut Cpu, op: &Op) {
    cpu.flags.set_cf(CARRY);
    next(cpu, op)
}

fn cmc(cpu: &mut Cpu, op: &Op) {
    let carry = !cpu.flags.cf();
    cpu.flags.set_cf(carry);
    next(cpu, op)
}

fn direction<const DOWN: bool>(cpu: &mut Cpu, op: &Op) {
    cpu.system_flags = cpu.system_flags & !flags::DF | if DOWN { flags::DF } else { 0 };
    next(cpu, op)
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let handler: Handler = match insn.mnemonic() {
        Mnemonic::Bt => return lower_bit(builder, insn, TEST),
        Mnemonic::Bts => return lower_bit(builder, insn, SET),
        Mnemonic::Btr => return lower_bit(builder, insn, RESET),
        Mnemonic::Btc => return lower_bit(builder, insn, COMPLEMENT),
        Mnemonic::Bsf | Mnemonic::Tzcnt => return lower_unary::<Forward>(builder, insn),
        Mnemonic::Bsr | Mnemonic::Lzcnt => return lower_unary::<Reverse>(builder, insn),
        Mnemonic::Popcnt => return lower_unary::<Popcnt>(builder, insn),
        Mnemonic::Movbe => return lower_movbe(builder, insn),
        Mnemonic::Crc32 => return lower_crc(builder, insn),
        Mnemonic::Bswap => {
            let mut op = Op::new(sized!(operand_bytes(insn, 0), bswap));
            op.dst = gpr(insn.op0_register()).unwrap_or_default();
            builder.push(op);
            return Lowered::Continues;
        }
        Mnemonic::Lahf => lahf,
        Mnemonic::Sahf => sahf,
        Mnemonic::Clc => carry::<false>,
        Mnemonic::Stc => carry::<true>,
        Mnemonic::Cmc => cmc,
        Mnemonic::Cld => direction::<false>,
        Mnemonic::Std => direction::<true>,
        _ => return Lowered::Unknown,
    };
    builder.push(Op::new(handler));
    Lowered::Continues
}
