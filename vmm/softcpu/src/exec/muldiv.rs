//! MUL, IMUL, DIV, IDIV and the conversions of the accumulator: CBW, CWDE, CDQE, CWD, CDQ, CQO.
//!
//! Of the flags, multiplications define CF and OF (the upper half of the product matters). Of those that they
//! leave undefined, SF and PF are here the low half's, ZF and AF are clear. After divisions all stay as they
//! were.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::decode::{Builder, Lowered, gpr, operand_bytes};
use crate::exception::Exception;
use crate::flags::Lazy;
use crate::op::{Handler, Op, abort, next};
use crate::word::Word;
use crate::{Cpu, or_abort, sized};

const AX: u8 = 0;
const AH: u8 = 1;
const DX: u8 = 16;

/// The double-width value in AX, or DX:AX and wider.
#[inline(always)]
fn pair<W: Word>(cpu: &Cpu) -> u128 {
    if W::BITS == 8 {
        return u128::from(cpu.reg::<u16>(AX));
    }
    u128::from(cpu.reg::<W>(AX).zext()) | u128::from(cpu.reg::<W>(DX).zext()) << W::BITS
}

#[inline(always)]
fn set_pair<W: Word>(cpu: &mut Cpu, low: W, high: W) {
    cpu.set_reg(AX, low);
    cpu.set_reg(if W::BITS == 8 { AH } else { DX }, high);
}

/// What the accumulator and an operand become; `false` for a divide error.
trait Wide {
    fn apply<W: Word>(cpu: &mut Cpu, operand: W) -> bool;
}

/// The flags after a multiplication.
#[inline(always)]
pub fn multiplied<W: Word>(low: W, carry: bool) -> Lazy {
    let mut flags = Lazy::with(low, carry, carry, false);
    if flags.result == 0 {
        // Not a zero, and as even in its low byte.
        flags.result = 0x100;
    }
    flags
}

struct Mul;
impl Wide for Mul {
    #[inline(always)]
    fn apply<W: Word>(cpu: &mut Cpu, operand: W) -> bool {
        let product = u128::from(cpu.reg::<W>(AX).zext()) * u128::from(operand.zext());
        let high = W::of((product >> W::BITS) as u64);
        let low = W::of(product as u64);
        set_pair(cpu, low, high);
        cpu.flags = multiplied(low, high.zext() != 0);
        true
    }
}

#[inline(always)]
fn signed<W: Word>(value: W) -> i128 {
    i128::from(value.sext() as i64)
}

struct Imul;
impl Wide for Imul {
    #[inline(always)]
    fn apply<W: Word>(cpu: &mut Cpu, operand: W) -> bool {
        let product = signed(cpu.reg::<W>(AX)) * signed(operand);
        let low = W::of(product as u64);
        set_pair(cpu, low, W::of((product >> W::BITS) as u64));
        cpu.flags = multiplied(low, signed(low) != product);
        true
    }
}

struct Div;
impl Wide for Div {
    #[inline(always)]
    fn apply<W: Word>(cpu: &mut Cpu, operand: W) -> bool {
        let (dividend, divisor) = (pair::<W>(cpu), operand.zext());
        if divisor == 0 || dividend >> W::BITS >= u128::from(divisor) {
            return false;
        }
        let (quotient, remainder) = match u64::try_from(dividend) {
            Ok(dividend) => (dividend / divisor, dividend % divisor),
            Err(_) => ((dividend / u128::from(divisor)) as u64, (dividend % u128::from(divisor)) as u64),
        };
        set_pair(cpu, W::of(quotient), W::of(remainder));
        true
    }
}

struct Idiv;
impl Wide for Idiv {
    #[inline(always)]
    fn apply<W: Word>(cpu: &mut Cpu, operand: W) -> bool {
        let unused = 128 - 2 * W::BITS;
        let (dividend, divisor) = ((pair::<W>(cpu) << unused) as i128 >> unused, signed(operand));
        let (quotient, remainder) = match (i64::try_from(dividend), divisor) {
            (_, 0) => return false,
            // The smallest dividend has no quotient by -1 in i128 either.
            (_, -1) => match dividend.checked_neg() {
                Some(quotient) => (quotient, 0),
                None => return false,
            },
            (Ok(dividend), _) => {
                let divisor = operand.sext() as i64;
                (i128::from(dividend / divisor), dividend % divisor)
            }
            (Err(_), _) => (dividend / divisor, (dividend % divisor) as i64),
        };
        let low = W::of(quotient as u64);
        if signed(low) != quotient {
            return false;
        }
        set_pair(cpu, low, W::of(remainder as u64));
        true
    }
}

#[cold]
fn divide_error(cpu: &mut Cpu, op: &Op) {
    let _ = cpu.raise::<()>(Exception::de());
    abort(cpu, op)
}

fn wide_r<K: Wide, W: Word>(cpu: &mut Cpu, op: &Op) {
    let operand = cpu.reg::<W>(op.src);
    if K::apply(cpu, operand) { next(cpu, op) } else { divide_error(cpu, op) }
}

fn wide_m<K: Wide, W: Word>(cpu: &mut Cpu, op: &Op) {
    let operand = or_abort!(cpu, op, cpu.read::<W>(cpu.address(op)));
    if K::apply(cpu, operand) { next(cpu, op) } else { divide_error(cpu, op) }
}

#[inline(always)]
fn multiply<W: Word>(cpu: &mut Cpu, op: &Op, a: W, b: W) {
    let (product, carry) = if W::BITS == 64 {
        let (product, carry) = (a.zext() as i64).overflowing_mul(b.zext() as i64);
        (product as u64, carry)
    } else {
        let product = (a.sext() as i64).wrapping_mul(b.sext() as i64) as u64;
        (product, W::of(product).sext() != product)
    };
    cpu.flags = multiplied(W::of(product), carry);
    cpu.set_reg(op.dst, W::of(product));
    next(cpu, op)
}

fn multiply_rr<W: Word>(cpu: &mut Cpu, op: &Op) {
    let (a, b) = (cpu.reg::<W>(op.dst), cpu.reg::<W>(op.src));
    multiply(cpu, op, a, b)
}

fn multiply_rm<W: Word>(cpu: &mut Cpu, op: &Op) {
    let b = or_abort!(cpu, op, cpu.read::<W>(cpu.address(op)));
    let a = cpu.reg::<W>(op.dst);
    multiply(cpu, op, a, b)
}

fn multiply_ri<W: Word>(cpu: &mut Cpu, op: &Op) {
    let a = cpu.reg::<W>(op.src);
    multiply(cpu, op, a, W::of(op.imm))
}

fn multiply_mi<W: Word>(cpu: &mut Cpu, op: &Op) {
    let a = or_abort!(cpu, op, cpu.read::<W>(cpu.address(op)));
    multiply(cpu, op, a, W::of(op.imm))
}

/// CBW, CWDE, CDQE: `S` sign-extended to `D`.
fn widen<S: Word, D: Word>(cpu: &mut Cpu, op: &Op) {
    let value = cpu.reg::<S>(AX).sext();
    cpu.set_reg(AX, D::of(value));
    next(cpu, op)
}

/// CWD, CDQ, CQO: the sign of the accumulator to DX.
fn sign<W: Word>(cpu: &mut Cpu, op: &Op) {
    let value = cpu.reg::<W>(AX).sext() as i64 >> 63;
    cpu.set_reg(DX, W::of(value as u64));
    next(cpu, op)
}

fn lower_wide<K: Wide>(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let bytes = operand_bytes(insn, 0);
    let op = if insn.op0_kind() == OpKind::Memory {
        let mut op = Op::new(sized!(bytes, wide_m, K));
        builder.memory(&mut op, insn);
        op
    } else {
        let mut op = Op::new(sized!(bytes, wide_r, K));
        op.src = gpr(insn.op0_register()).unwrap_or_default();
        op
    };
    builder.push(op);
    Lowered::Continues
}

fn lower_imul(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let bytes = operand_bytes(insn, 0);
    let memory = insn.op1_kind() == OpKind::Memory;
    let mut op = Op::new(match (insn.op_count() == 3, memory) {
        (false, false) => sized!(bytes, multiply_rr),
        (false, true) => sized!(bytes, multiply_rm),
        (true, false) => sized!(bytes, multiply_ri),
        (true, true) => sized!(bytes, multiply_mi),
    });
    op.dst = gpr(insn.op0_register()).unwrap_or_default();
    if insn.op_count() == 3 {
        op.imm = insn.immediate(2);
    }
    if memory {
        builder.memory(&mut op, insn);
    } else {
        op.src = gpr(insn.op1_register()).unwrap_or_default();
    }
    builder.push(op);
    Lowered::Continues
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let handler: Handler = match insn.mnemonic() {
        Mnemonic::Imul if insn.op_count() > 1 => return lower_imul(builder, insn),
        Mnemonic::Imul => return lower_wide::<Imul>(builder, insn),
        Mnemonic::Mul => return lower_wide::<Mul>(builder, insn),
        Mnemonic::Div => return lower_wide::<Div>(builder, insn),
        Mnemonic::Idiv => return lower_wide::<Idiv>(builder, insn),
        Mnemonic::Cbw => widen::<u8, u16>,
        Mnemonic::Cwde => widen::<u16, u32>,
        Mnemonic::Cdqe => widen::<u32, u64>,
        Mnemonic::Cwd => sign::<u16>,
        Mnemonic::Cdq => sign::<u32>,
        Mnemonic::Cqo => sign::<u64>,
        _ => return Lowered::Unknown,
    };
    builder.push(Op::new(handler));
    Lowered::Continues
}
