//! SHL, SHR, SAR, ROL, ROR, RCL, RCR, SHLD, SHRD (SDM vol. 2, SAL/SAR/SHL/SHR, RCL/RCR/ROL/ROR, SHLD, SHRD).
//!
//! Counts are taken modulo 32, or 64 for 64-bit operands. A count of zero leaves all flags; rotates change CF
//! and OF only. OF is defined for counts of one; for others it follows the same formula.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::Cpu;
use crate::decode::{Builder, Lowered, gpr, operand_bytes};
use crate::flags::Lazy;
use crate::op::{Handler, Op, next};
use crate::word::Word;
use crate::{or_abort, sized};

/// Register-file offset of CL.
const CL: u8 = 8;

/// What a value becomes when it is shifted.
pub trait Shift {
    /// By `count`, which is masked and not zero.
    fn apply<W: Word>(flags: &mut Lazy, a: W, count: u32) -> W;
}

#[inline(always)]
fn top<W: Word>(value: u64) -> bool {
    value >> (W::BITS - 1) & 1 != 0
}

/// The bit below the top one.
#[inline(always)]
fn second<W: Word>(value: u64) -> bool {
    value >> (W::BITS - 2) & 1 != 0
}

macro_rules! shift {
    ($name:ident, |$flags:ident, $a:ident, $count:ident| $result:expr) => {
        pub struct $name;
        impl Shift for $name {
            #[inline(always)]
            fn apply<W: Word>($flags: &mut Lazy, $a: W, $count: u32) -> W {
                $result
            }
        }
    };
}

/// Sets the flags after a shift.
#[inline(always)]
fn shifted<W: Word>(flags: &mut Lazy, result: W, cf: bool, of: bool) -> W {
    *flags = Lazy::with(result, cf, of, false);
    result
}

/// Sets the flags after a rotate.
#[inline(always)]
fn rotated<W: Word>(flags: &mut Lazy, result: W, cf: bool, of: bool) -> W {
    flags.set_cf_of(cf, of);
    result
}

shift!(Shl, |flags, a, count| {
    let x = a.zext();
    let result = W::of(x << count);
    let cf = if W::BITS == 64 { x >> (64 - count) } else { x << count >> W::BITS } & 1 != 0;
    shifted(flags, result, cf, cf ^ top::<W>(result.zext()))
});
shift!(Shr, |flags, a, count| {
    let x = a.zext();
    let result = W::of(x >> count);
    shifted(flags, result, x >> (count - 1) & 1 != 0, second::<W>(result.zext()))
});
shift!(Sar, |flags, a, count| {
    let x = a.sext() as i64;
    shifted(flags, W::of((x >> count) as u64), x >> (count - 1) & 1 != 0, false)
});
shift!(Rol, |flags, a, count| {
    let (x, by) = (a.zext(), count % W::BITS);
    let result = W::of(x << by | x.checked_shr(W::BITS - by).unwrap_or(0));
    let cf = result.zext() & 1 != 0;
    rotated(flags, result, cf, cf ^ top::<W>(result.zext()))
});
shift!(Ror, |flags, a, count| {
    let (x, by) = (a.zext(), count % W::BITS);
    let result = W::of(x >> by | x.checked_shl(W::BITS - by).unwrap_or(0));
    let cf = top::<W>(result.zext());
    rotated(flags, result, cf, cf ^ second::<W>(result.zext()))
});
shift!(Rcl, |flags, a, count| {
    let by = count % (W::BITS + 1);
    if by == 0 {
        let cf = flags.cf();
        rotated(flags, a, cf, cf ^ top::<W>(a.zext()))
    } else {
        // The operand with CF above it, twice.
        let one = u128::from(a.zext()) | u128::from(flags.cf()) << W::BITS;
        let wide = one << by | one >> (W::BITS + 1 - by);
        let result = W::of(wide as u64);
        let cf = wide >> W::BITS & 1 != 0;
        rotated(flags, result, cf, cf ^ top::<W>(result.zext()))
    }
});
shift!(Rcr, |flags, a, count| {
    let by = count % (W::BITS + 1);
    let (cf, result) = if by == 0 {
        (flags.cf(), a)
    } else {
        let one = u128::from(a.zext()) | u128::from(flags.cf()) << W::BITS;
        let wide = one >> by | one << (W::BITS + 1 - by);
        (wide >> W::BITS & 1 != 0, W::of(wide as u64))
    };
    rotated(flags, result, cf, top::<W>(result.zext()) ^ second::<W>(result.zext()))
});

/// The part of a count that counts.
#[inline(always)]
fn masked<W: Word>(count: u8) -> u32 {
    u32::from(count) & if W::BITS == 64 { 63 } else { 31 }
}

/// By an immediate that is not zero once masked.
fn by_constant<K: Shift, W: Word>(cpu: &mut Cpu, op: &Op) {
    let a = cpu.reg::<W>(op.dst);
    // The mask changes nothing; it tells the compiler.
    let result = K::apply(&mut cpu.flags, a, masked::<W>(op.imm as u8));
    cpu.set_reg(op.dst, result);
    next(cpu, op)
}

/// As `by_constant`; nothing will see the flags.
fn by_constant_quiet<K: Shift, W: Word>(cpu: &mut Cpu, op: &Op) {
    let (a, mut flags) = (cpu.reg::<W>(op.dst), cpu.flags);
    let result = K::apply(&mut flags, a, masked::<W>(op.imm as u8));
    cpu.set_reg(op.dst, result);
    next(cpu, op)
}

fn by_cl<K: Shift, W: Word>(cpu: &mut Cpu, op: &Op) {
    let a = cpu.reg::<W>(op.dst);
    let count = masked::<W>(cpu.reg::<u8>(CL));
    let result = if count == 0 { a } else { K::apply(&mut cpu.flags, a, count) };
    cpu.set_reg(op.dst, result);
    next(cpu, op)
}

#[inline(always)]
fn in_memory<K: Shift, W: Word>(cpu: &mut Cpu, op: &Op, count: u32) {
    let address = cpu.address(op);
    or_abort!(
        cpu,
        op,
        cpu.modify::<W, ()>(address, |cpu, a| {
            (if count == 0 { a } else { K::apply(&mut cpu.flags, a, count) }, ())
        })
    );
    next(cpu, op)
}

fn memory_by_constant<K: Shift, W: Word>(cpu: &mut Cpu, op: &Op) {
    in_memory::<K, W>(cpu, op, masked::<W>(op.imm as u8))
}

fn memory_by_cl<K: Shift, W: Word>(cpu: &mut Cpu, op: &Op) {
    let count = masked::<W>(cpu.reg::<u8>(CL));
    in_memory::<K, W>(cpu, op, count)
}

/// A count of zero: as a move of the register to itself.
fn by_zero<W: Word>(cpu: &mut Cpu, op: &Op) {
    let value = cpu.reg::<W>(op.dst);
    cpu.set_reg(op.dst, value);
    next(cpu, op)
}

struct Forms {
    constant: Handler,
    quiet: Handler,
    cl: Handler,
    memory_constant: Handler,
    memory_cl: Handler,
}

fn forms<K: Shift>(bytes: usize) -> Forms {
    Forms {
        constant: sized!(bytes, by_constant, K),
        quiet: if bytes == 8 { by_constant_quiet::<K, u64> } else { by_constant_quiet::<K, u32> },
        cl: sized!(bytes, by_cl, K),
        memory_constant: sized!(bytes, memory_by_constant, K),
        memory_cl: sized!(bytes, memory_by_cl, K),
    }
}

fn handlers(mnemonic: Mnemonic, bytes: usize) -> Option<Forms> {
    Some(match mnemonic {
        Mnemonic::Shl | Mnemonic::Sal => forms::<Shl>(bytes),
        Mnemonic::Shr => forms::<Shr>(bytes),
        Mnemonic::Sar => forms::<Sar>(bytes),
        Mnemonic::Rol => forms::<Rol>(bytes),
        Mnemonic::Ror => forms::<Ror>(bytes),
        Mnemonic::Rcl => forms::<Rcl>(bytes),
        Mnemonic::Rcr => forms::<Rcr>(bytes),
        _ => return None,
    })
}

fn lower_shift(builder: &mut Builder, insn: &Instruction, forms: &Forms, bytes: usize) -> Lowered {
    let by_register = insn.op1_kind() == OpKind::Register;
    let memory = insn.op0_kind() == OpKind::Memory;
    let mut op = Op::new(match (memory, by_register) {
        (false, false) => forms.constant,
        (false, true) => forms.cl,
        (true, false) => forms.memory_constant,
        (true, true) => forms.memory_cl,
    });
    if !by_register {
        op.imm = insn.immediate(1) & if bytes == 8 { 63 } else { 31 };
        if op.imm == 0 && !memory {
            op.run = sized!(bytes, by_zero);
        }
    }
    if memory {
        builder.memory(&mut op, insn);
    } else {
        op.dst = gpr(insn.op0_register()).unwrap_or_default();
    }
    if memory || by_register {
        builder.push(op);
    } else if op.imm == 0 {
        builder.push_neutral(op);
    } else {
        let sets_all =
            matches!(insn.mnemonic(), Mnemonic::Shl | Mnemonic::Sal | Mnemonic::Shr | Mnemonic::Sar);
        builder.push_setter(op, sets_all, (bytes >= 4).then_some(forms.quiet));
    }
    Lowered::Continues
}

/// SHLD (or, if `RIGHT`, SHRD) of `a`, filled from `b`. 16-bit operands by more than 16 go on with `a`
/// itself.
#[inline(always)]
fn double<W: Word, const RIGHT: bool>(flags: &mut Lazy, a: W, b: W, count: u32) -> W {
    if count == 0 {
        return a;
    }
    let (x, y, bits) = (u128::from(a.zext()), u128::from(b.zext()), W::BITS);
    let (result, cf) = if RIGHT {
        let wide = x | y << bits | if bits == 16 { x << 32 } else { 0 };
        (W::of((wide >> count) as u64), wide >> (count - 1) & 1 != 0)
    } else if bits == 16 {
        let wide = (x << 32 | y << 16 | x) << count;
        (W::of((wide >> 32) as u64), wide >> 48 & 1 != 0)
    } else {
        let high = x << count;
        (W::of((high | y >> (bits - count)) as u64), high >> bits & 1 != 0)
    };
    let of = top::<W>(a.zext()) ^ top::<W>(result.zext());
    shifted(flags, result, cf, of)
}

#[inline(always)]
fn double_count<W: Word, const CONSTANT: bool>(cpu: &Cpu, op: &Op) -> u32 {
    masked::<W>(if CONSTANT { op.imm as u8 } else { cpu.reg::<u8>(CL) })
}

fn double_r<W: Word, const RIGHT: bool, const CONSTANT: bool>(cpu: &mut Cpu, op: &Op) {
    let (a, b) = (cpu.reg::<W>(op.dst), cpu.reg::<W>(op.src));
    let count = double_count::<W, CONSTANT>(cpu, op);
    let result = double::<W, RIGHT>(&mut cpu.flags, a, b, count);
    cpu.set_reg(op.dst, result);
    next(cpu, op)
}

fn double_m<W: Word, const RIGHT: bool, const CONSTANT: bool>(cpu: &mut Cpu, op: &Op) {
    let b = cpu.reg::<W>(op.src);
    let count = double_count::<W, CONSTANT>(cpu, op);
    let address = cpu.address(op);
    let change = |cpu: &mut Cpu, a: W| (double::<W, RIGHT>(&mut cpu.flags, a, b, count), ());
    or_abort!(cpu, op, cpu.modify::<W, ()>(address, change));
    next(cpu, op)
}

fn double_handler<W: Word>(right: bool, constant: bool, memory: bool) -> Handler {
    match (right, constant, memory) {
        (false, false, false) => double_r::<W, false, false>,
        (false, true, false) => double_r::<W, false, true>,
        (true, false, false) => double_r::<W, true, false>,
        (true, true, false) => double_r::<W, true, true>,
        (false, false, true) => double_m::<W, false, false>,
        (false, true, true) => double_m::<W, false, true>,
        (true, false, true) => double_m::<W, true, false>,
        (true, true, true) => double_m::<W, true, true>,
    }
}

fn lower_double(builder: &mut Builder, insn: &Instruction, right: bool) -> Lowered {
    let constant = insn.op2_kind() != OpKind::Register;
    let memory = insn.op0_kind() == OpKind::Memory;
    let mut op = Op::new(match operand_bytes(insn, 0) {
        2 => double_handler::<u16>(right, constant, memory),
        4 => double_handler::<u32>(right, constant, memory),
        _ => double_handler::<u64>(right, constant, memory),
    });
    op.src = gpr(insn.op1_register()).unwrap_or_default();
    if constant {
        op.imm = insn.immediate(2);
    }
    if memory {
        builder.memory(&mut op, insn);
    } else {
        op.dst = gpr(insn.op0_register()).unwrap_or_default();
    }
    builder.push(op);
    Lowered::Continues
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    match insn.mnemonic() {
        Mnemonic::Shld => return lower_double(builder, insn, false),
        Mnemonic::Shrd => return lower_double(builder, insn, true),
        _ => {}
    }
    let bytes = operand_bytes(insn, 0);
    match handlers(insn.mnemonic(), bytes) {
        Some(forms) => lower_shift(builder, insn, &forms, bytes),
        None => Lowered::Unknown,
    }
}
