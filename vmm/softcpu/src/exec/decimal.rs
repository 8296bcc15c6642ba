//! AAA, AAS, DAA, DAS, AAM, AAD (SDM vol. 2): decimal digits, in compatibility mode only. What the manuals
//! leave undefined of the flags is what a processor of Intel's was measured to do: the flags of the result in
//! AL, and OF clear.

use iced_x86::{Instruction, Mnemonic};

use crate::Cpu;
use crate::decode::{Builder, Lowered};
use crate::exception::{Exception, raise_at};
use crate::flags::Lazy;
use crate::op::{Handler, Op, next};

const AL: u8 = 0;
const AH: u8 = 1;
/// What makes one digit of six more.
const DIGIT: u8 = 6;
const TENS: u8 = 0x60;

/// AAA and AAS: AL is a digit afterwards, and AH has the carry or borrow.
fn unpacked<const SUBTRACT: bool>(cpu: &mut Cpu, op: &Op) {
    let ax = cpu.reg::<u16>(AL);
    let adjusts = ax & 0xf > 9 || cpu.flags.af();
    let by = if adjusts { 0x106 } else { 0 };
    let ax = if SUBTRACT { ax.wrapping_sub(by) } else { ax.wrapping_add(by) } & 0xff0f;
    cpu.set_reg(AL, ax);
    cpu.flags = Lazy::with(ax as u8, adjusts, false, adjusts);
    next(cpu, op)
}

/// DAA and DAS: AL is two digits afterwards.
fn packed<const SUBTRACT: bool>(cpu: &mut Cpu, op: &Op) {
    let al = cpu.reg::<u8>(AL);
    let low = al & 0xf > 9 || cpu.flags.af();
    let high = al > 0x99 || cpu.flags.cf();
    let by = if low { DIGIT } else { 0 } + if high { TENS } else { 0 };
    let result = if SUBTRACT { al.wrapping_sub(by) } else { al.wrapping_add(by) };
    let carry = high || SUBTRACT && low && al < DIGIT;
    cpu.set_reg(AL, result);
    cpu.flags = Lazy::with(result, carry, false, low);
    next(cpu, op)
}

/// AAM: the digits of AL in base `imm`.
fn aam(cpu: &mut Cpu, op: &Op) {
    let (al, base) = (cpu.reg::<u8>(AL), op.imm as u8);
    if base == 0 {
        return raise_at(cpu, op, Exception::de());
    }
    cpu.set_reg(AH, al / base);
    cpu.set_reg(AL, al % base);
    cpu.flags = Lazy::logic(al % base);
    next(cpu, op)
}

/// AAD: the value of the digits AH and AL in base `imm`; flags as of the addition.
fn aad(cpu: &mut Cpu, op: &Op) {
    let (al, ah) = (cpu.reg::<u8>(AL), cpu.reg::<u8>(AH));
    let tens = ah.wrapping_mul(op.imm as u8);
    let (value, carry) = al.overflowing_add(tens);
    let overflow = (al ^ value) & (tens ^ value) & 0x80 != 0;
    cpu.set_reg(AH, 0u8);
    cpu.set_reg(AL, value);
    cpu.flags = Lazy::with(value, carry, overflow, (al ^ tens ^ value) & 0x10 != 0);
    next(cpu, op)
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let run: Handler = match insn.mnemonic() {
        Mnemonic::Aaa => unpacked::<false>,
        Mnemonic::Aas => unpacked::<true>,
        Mnemonic::Daa => packed::<false>,
        Mnemonic::Das => packed::<true>,
        Mnemonic::Aam => aam,
        Mnemonic::Aad => aad,
        _ => return Lowered::Unknown,
    };
    let mut op = Op::new(run);
    if insn.op_count() > 0 {
        op.imm = u64::from(insn.immediate8());
    }
    builder.push(op);
    Lowered::Continues
}
