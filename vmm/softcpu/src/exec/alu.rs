//! ADD, ADC, SUB, SBB, CMP, AND, OR, XOR, TEST, INC, DEC, NEG, NOT.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::Cpu;
use crate::decode::{Builder, Lowered, gpr, operand_bytes};
use crate::flags::Lazy;
use crate::op::{Handler, Op, next};
use crate::word::Word;
use crate::{or_abort, sized};

/// What two operands become.
pub trait Binary {
    /// Whether the result is stored.
    const STORES: bool = true;
    /// Computes the result and the flags.
    fn apply<W: Word>(flags: &mut Lazy, a: W, b: W) -> W;
}

#[inline(always)]
fn add<W: Word>(flags: &mut Lazy, a: W, b: W, carry: u64) -> W {
    let (x, y) = (a.zext(), b.zext());
    let result = W::of(x.wrapping_add(y).wrapping_add(carry));
    *flags = Lazy::arithmetic(result, x & y | (x | y) & !result.zext());
    result
}

#[inline(always)]
fn subtract<W: Word>(flags: &mut Lazy, a: W, b: W, borrow: u64) -> W {
    let (x, y) = (a.zext(), b.zext());
    let result = W::of(x.wrapping_sub(y).wrapping_sub(borrow));
    *flags = Lazy::arithmetic(result, !x & y | (!x | y) & result.zext());
    result
}

macro_rules! binary {
    ($name:ident, $stores:literal, |$flags:ident, $a:ident, $b:ident| $result:expr) => {
        pub struct $name;
        impl Binary for $name {
            const STORES: bool = $stores;
            #[inline(always)]
            fn apply<W: Word>($flags: &mut Lazy, $a: W, $b: W) -> W {
                $result
            }
        }
    };
}

#[inline(always)]
fn logic<W: Word>(flags: &mut Lazy, result: u64) -> W {
    let result = W::of(result);
    *flags = Lazy::logic(result);
    result
}

binary!(Add, true, |flags, a, b| add(flags, a, b, 0));
binary!(Adc, true, |flags, a, b| {
    let carry = u64::from(flags.cf());
    add(flags, a, b, carry)
});
binary!(Sub, true, |flags, a, b| subtract(flags, a, b, 0));
binary!(Sbb, true, |flags, a, b| {
    let borrow = u64::from(flags.cf());
    subtract(flags, a, b, borrow)
});
binary!(Cmp, false, |flags, a, b| subtract(flags, a, b, 0));
binary!(And, true, |flags, a, b| logic(flags, a.zext() & b.zext()));
binary!(Or, true, |flags, a, b| logic(flags, a.zext() | b.zext()));
binary!(Xor, true, |flags, a, b| logic(flags, a.zext() ^ b.zext()));
binary!(Test, false, |flags, a, b| logic(flags, a.zext() & b.zext()));
binary!(Inc, true, |flags, a, _b| {
    let carry = flags.cf();
    let result = add(flags, a, W::of(1), 0);
    flags.set_cf(carry);
    result
});
binary!(Dec, true, |flags, a, _b| {
    let carry = flags.cf();
    let result = subtract(flags, a, W::of(1), 0);
    flags.set_cf(carry);
    result
});
binary!(Neg, true, |flags, a, _b| subtract(flags, W::of(0), a, 0));
binary!(Not, true, |_flags, a, _b| W::of(!a.zext()));

fn rr<K: Binary, W: Word>(cpu: &mut Cpu, op: &Op) {
    let (a, b) = (cpu.reg::<W>(op.dst), cpu.reg::<W>(op.src));
    let result = K::apply(&mut cpu.flags, a, b);
    if K::STORES {
        cpu.set_reg(op.dst, result);
    }
    next(cpu, op)
}

fn ri<K: Binary, W: Word>(cpu: &mut Cpu, op: &Op) {
    let a = cpu.reg::<W>(op.dst);
    let result = K::apply(&mut cpu.flags, a, W::of(op.imm));
    if K::STORES {
        cpu.set_reg(op.dst, result);
    }
    next(cpu, op)
}

fn rm<K: Binary, W: Word>(cpu: &mut Cpu, op: &Op) {
    let b = or_abort!(cpu, op, cpu.read::<W>(cpu.address(op)));
    let a = cpu.reg::<W>(op.dst);
    let result = K::apply(&mut cpu.flags, a, b);
    if K::STORES {
        cpu.set_reg(op.dst, result);
    }
    next(cpu, op)
}

#[inline(always)]
fn to_memory<K: Binary, W: Word>(cpu: &mut Cpu, op: &Op, b: W) {
    let address = cpu.address(op);
    if K::STORES {
        or_abort!(
            cpu,
            op,
            cpu.modify::<W, ()>(address, |cpu, a| {
                let result = K::apply(&mut cpu.flags, a, b);
                (result, ())
            })
        );
    } else {
        let a = or_abort!(cpu, op, cpu.read::<W>(address));
        K::apply(&mut cpu.flags, a, b);
    }
    next(cpu, op)
}

fn mr<K: Binary, W: Word>(cpu: &mut Cpu, op: &Op) {
    let b = cpu.reg::<W>(op.src);
    to_memory::<K, W>(cpu, op, b)
}

fn mi<K: Binary, W: Word>(cpu: &mut Cpu, op: &Op) {
    to_memory::<K, W>(cpu, op, W::of(op.imm))
}

struct Forms {
    rr: Handler,
    ri: Handler,
    rm: Handler,
    mr: Handler,
    mi: Handler,
}

fn forms<K: Binary>(bytes: usize) -> Forms {
    Forms {
        rr: sized!(bytes, rr, K),
        ri: sized!(bytes, ri, K),
        rm: sized!(bytes, rm, K),
        mr: sized!(bytes, mr, K),
        mi: sized!(bytes, mi, K),
    }
}

fn handlers(mnemonic: Mnemonic, bytes: usize) -> Option<Forms> {
    Some(match mnemonic {
        Mnemonic::Add => forms::<Add>(bytes),
        Mnemonic::Adc => forms::<Adc>(bytes),
        Mnemonic::Sub => forms::<Sub>(bytes),
        Mnemonic::Sbb => forms::<Sbb>(bytes),
        Mnemonic::Cmp => forms::<Cmp>(bytes),
        Mnemonic::And => forms::<And>(bytes),
        Mnemonic::Or => forms::<Or>(bytes),
        Mnemonic::Xor => forms::<Xor>(bytes),
        Mnemonic::Test => forms::<Test>(bytes),
        Mnemonic::Inc => forms::<Inc>(bytes),
        Mnemonic::Dec => forms::<Dec>(bytes),
        Mnemonic::Neg => forms::<Neg>(bytes),
        Mnemonic::Not => forms::<Not>(bytes),
        _ => return None,
    })
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let Some(forms) = handlers(insn.mnemonic(), operand_bytes(insn, 0)) else { return Lowered::Unknown };
    let first_in_memory = insn.op0_kind() == OpKind::Memory;
    let second = if insn.op_count() > 1 { insn.op1_kind() } else { OpKind::Immediate8 };
    let mut op = Op::new(match (first_in_memory, second) {
        (false, OpKind::Register) => forms.rr,
        (false, OpKind::Memory) => forms.rm,
        (false, _) => forms.ri,
        (true, OpKind::Register) => forms.mr,
        (true, _) => forms.mi,
    });
    if !first_in_memory {
        op.dst = gpr(insn.op0_register()).unwrap_or_default();
    }
    match second {
        OpKind::Register => op.src = gpr(insn.op1_register()).unwrap_or_default(),
        OpKind::Memory => {}
        _ if insn.op_count() > 1 => op.imm = insn.immediate(1),
        _ => {}
    }
    if first_in_memory || second == OpKind::Memory {
        builder.memory(&mut op, insn);
    }
    builder.push(op);
    Lowered::Continues
}
