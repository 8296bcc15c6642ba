//! ADD, ADC, SUB, SBB, CMP, AND, OR, XOR, TEST, INC, DEC, NEG, NOT.
//!
//! CMP and TEST are fused with a conditional branch right after them; flags that nothing can see are not
//! computed.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::access::{Addressing, Based, Indexed, modifying, reading};
use crate::decode::{Builder, Fused, Lowered, gpr, operand_bytes};
use crate::exec::branch;
use crate::flags::Lazy;
use crate::op::{Handler, Op, ZERO, next};
use crate::word::Word;
use crate::{Cpu, by_condition, sized};

/// What two operands become.
pub trait Binary {
    /// Whether the result is stored.
    const STORES: bool = true;
    /// Computes the result and the flags.
    fn apply<W: Word>(flags: &mut Lazy, a: W, b: W) -> W;
}

/// Where a handler goes when its work is done.
trait Then: 'static {
    /// Whether the flags are set.
    const FLAGS: bool = true;
    fn go(cpu: &mut Cpu, op: &Op);
}

/// To the next op.
struct Onward;
impl Then for Onward {
    #[inline(always)]
    fn go(cpu: &mut Cpu, op: &Op) {
        next(cpu, op)
    }
}

/// To the next op; nothing will see the flags.
struct Quiet;
impl Then for Quiet {
    const FLAGS: bool = false;
    #[inline(always)]
    fn go(cpu: &mut Cpu, op: &Op) {
        next(cpu, op)
    }
}

/// It does the work of the conditional branch that follows, too: that op says where to.
struct Branch<const CODE: u8>;
impl<const CODE: u8> Then for Branch<CODE> {
    #[inline(always)]
    fn go(cpu: &mut Cpu, op: &Op) {
        let jcc = op.following();
        if cpu.flags.condition::<CODE>() { branch::jmp(cpu, jcc) } else { next(cpu, jcc) }
    }
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

#[inline(always)]
fn apply<T: Then, K: Binary, W: Word>(cpu: &mut Cpu, a: W, b: W) -> W {
    let mut flags = cpu.flags;
    let result = K::apply(&mut flags, a, b);
    if T::FLAGS {
        cpu.flags = flags;
    }
    result
}

fn rr<T: Then, K: Binary, W: Word>(cpu: &mut Cpu, op: &Op) {
    let (a, b) = (cpu.reg::<W>(op.dst), cpu.reg::<W>(op.src));
    let result = apply::<T, K, W>(cpu, a, b);
    if K::STORES {
        cpu.set_reg(op.dst, result);
    }
    T::go(cpu, op)
}

fn ri<T: Then, K: Binary, W: Word>(cpu: &mut Cpu, op: &Op) {
    let a = cpu.reg::<W>(op.dst);
    let result = apply::<T, K, W>(cpu, a, W::of(op.imm));
    if K::STORES {
        cpu.set_reg(op.dst, result);
    }
    T::go(cpu, op)
}

fn rm<T: Then, K: Binary, A: Addressing, W: Word>(cpu: &mut Cpu, op: &Op) {
    reading::<A, W>(cpu, op, |cpu, op, b| {
        let a = cpu.reg::<W>(op.dst);
        let result = apply::<T, K, W>(cpu, a, b);
        if K::STORES {
            cpu.set_reg(op.dst, result);
        }
        T::go(cpu, op)
    })
}

#[inline(always)]
fn to_memory<T: Then, K: Binary, A: Addressing, W: Word>(
    cpu: &mut Cpu,
    op: &Op,
    b: impl Fn(&Cpu, &Op) -> W + Copy,
) {
    if K::STORES {
        modifying::<A, W>(
            cpu,
            op,
            |cpu, op, a| {
                let b = b(cpu, op);
                K::apply(&mut cpu.flags, a, b)
            },
            T::go,
        )
    } else {
        reading::<A, W>(cpu, op, |cpu, op, a| {
            let b = b(cpu, op);
            K::apply(&mut cpu.flags, a, b);
            T::go(cpu, op)
        })
    }
}

fn mr<T: Then, K: Binary, A: Addressing, W: Word>(cpu: &mut Cpu, op: &Op) {
    to_memory::<T, K, A, W>(cpu, op, |cpu, op| cpu.reg(op.src))
}

fn mi<T: Then, K: Binary, A: Addressing, W: Word>(cpu: &mut Cpu, op: &Op) {
    to_memory::<T, K, A, W>(cpu, op, |_, op| W::of(op.imm))
}

/// Where the operands are, destination first.
#[derive(Clone, Copy)]
enum Form {
    RegisterRegister,
    RegisterImmediate,
    RegisterMemory,
    MemoryRegister,
    MemoryImmediate,
}

fn handler<K: Binary>(form: Form, indexed: bool, bytes: usize) -> Handler {
    match (form, indexed) {
        (Form::RegisterRegister, _) => sized!(bytes, rr, Onward, K),
        (Form::RegisterImmediate, _) => sized!(bytes, ri, Onward, K),
        (Form::RegisterMemory, false) => sized!(bytes, rm, Onward, K, Based),
        (Form::RegisterMemory, true) => sized!(bytes, rm, Onward, K, Indexed),
        (Form::MemoryRegister, false) => sized!(bytes, mr, Onward, K, Based),
        (Form::MemoryRegister, true) => sized!(bytes, mr, Onward, K, Indexed),
        (Form::MemoryImmediate, false) => sized!(bytes, mi, Onward, K, Based),
        (Form::MemoryImmediate, true) => sized!(bytes, mi, Onward, K, Indexed),
    }
}

fn handlers(mnemonic: Mnemonic, form: Form, indexed: bool, bytes: usize) -> Option<Handler> {
    Some(match mnemonic {
        Mnemonic::Add => handler::<Add>(form, indexed, bytes),
        Mnemonic::Adc => handler::<Adc>(form, indexed, bytes),
        Mnemonic::Sub => handler::<Sub>(form, indexed, bytes),
        Mnemonic::Sbb => handler::<Sbb>(form, indexed, bytes),
        Mnemonic::Cmp => handler::<Cmp>(form, indexed, bytes),
        Mnemonic::And => handler::<And>(form, indexed, bytes),
        Mnemonic::Or => handler::<Or>(form, indexed, bytes),
        Mnemonic::Xor => handler::<Xor>(form, indexed, bytes),
        Mnemonic::Test => handler::<Test>(form, indexed, bytes),
        Mnemonic::Inc => handler::<Inc>(form, indexed, bytes),
        Mnemonic::Dec => handler::<Dec>(form, indexed, bytes),
        Mnemonic::Neg => handler::<Neg>(form, indexed, bytes),
        Mnemonic::Not => handler::<Not>(form, indexed, bytes),
        _ => return None,
    })
}

fn rr_branch<K: Binary, W: Word, const CODE: u8>(cpu: &mut Cpu, op: &Op) {
    rr::<Branch<CODE>, K, W>(cpu, op)
}

fn ri_branch<K: Binary, W: Word, const CODE: u8>(cpu: &mut Cpu, op: &Op) {
    ri::<Branch<CODE>, K, W>(cpu, op)
}

fn rm_branch<K: Binary, W: Word, const CODE: u8>(cpu: &mut Cpu, op: &Op) {
    rm::<Branch<CODE>, K, Based, W>(cpu, op)
}

fn mr_branch<K: Binary, W: Word, const CODE: u8>(cpu: &mut Cpu, op: &Op) {
    mr::<Branch<CODE>, K, Based, W>(cpu, op)
}

fn mi_branch<K: Binary, W: Word, const CODE: u8>(cpu: &mut Cpu, op: &Op) {
    mi::<Branch<CODE>, K, Based, W>(cpu, op)
}

fn quiet_handler<K: Binary>(form: Form, indexed: bool, bytes: usize) -> Option<Handler> {
    Some(match (form, indexed, bytes) {
        (Form::RegisterRegister, _, 4) => rr::<Quiet, K, u32>,
        (Form::RegisterRegister, _, 8) => rr::<Quiet, K, u64>,
        (Form::RegisterImmediate, _, 4) => ri::<Quiet, K, u32>,
        (Form::RegisterImmediate, _, 8) => ri::<Quiet, K, u64>,
        (Form::RegisterMemory, false, 4) => rm::<Quiet, K, Based, u32>,
        (Form::RegisterMemory, false, 8) => rm::<Quiet, K, Based, u64>,
        (Form::RegisterMemory, true, 4) => rm::<Quiet, K, Indexed, u32>,
        (Form::RegisterMemory, true, 8) => rm::<Quiet, K, Indexed, u64>,
        _ => return None,
    })
}

/// The handlers that set no flags, of the frequent instructions.
fn quiet(mnemonic: Mnemonic, form: Form, indexed: bool, bytes: usize) -> Option<Handler> {
    match mnemonic {
        Mnemonic::Add => quiet_handler::<Add>(form, indexed, bytes),
        Mnemonic::Adc => quiet_handler::<Adc>(form, indexed, bytes),
        Mnemonic::Sub => quiet_handler::<Sub>(form, indexed, bytes),
        Mnemonic::And => quiet_handler::<And>(form, indexed, bytes),
        Mnemonic::Or => quiet_handler::<Or>(form, indexed, bytes),
        Mnemonic::Xor => quiet_handler::<Xor>(form, indexed, bytes),
        Mnemonic::Inc => quiet_handler::<Inc>(form, indexed, bytes),
        Mnemonic::Dec => quiet_handler::<Dec>(form, indexed, bytes),
        _ => None,
    }
}

/// Appends the op as one that sets flags, or (NOT) leaves them.
fn push(builder: &mut Builder, mnemonic: Mnemonic, op: Op, registers: bool, quiet: Option<Handler>) {
    use Mnemonic as M;
    match mnemonic {
        M::Not if registers => builder.push_neutral(op),
        M::Not => builder.push(op),
        _ => {
            let reads_flags = matches!(mnemonic, M::Adc | M::Sbb | M::Inc | M::Dec);
            builder.push_setter(op, registers && !reads_flags, quiet);
        }
    }
}

/// The handlers, by condition, of a comparison and the branch after it.
fn fused<K: Binary, W: Word>(form: Form) -> Fused {
    match form {
        Form::RegisterRegister => |code| Some(by_condition!(code, rr_branch, K, W)),
        Form::RegisterImmediate => |code| Some(by_condition!(code, ri_branch, K, W)),
        Form::RegisterMemory => |code| Some(by_condition!(code, rm_branch, K, W)),
        Form::MemoryRegister => |code| Some(by_condition!(code, mr_branch, K, W)),
        Form::MemoryImmediate => |code| Some(by_condition!(code, mi_branch, K, W)),
    }
}

/// As loops end: ZF after an operation with an immediate.
fn fused_zero<K: Binary, W: Word>() -> Fused {
    |code| match code {
        4 => Some(ri_branch::<K, W, 4>),
        5 => Some(ri_branch::<K, W, 5>),
        _ => None,
    }
}

macro_rules! fused_zero {
    ($bytes:expr, $kind:ty) => {
        match $bytes {
            4 => fused_zero::<$kind, u32>(),
            8 => fused_zero::<$kind, u64>(),
            _ => return,
        }
    };
}

/// Marks what can be fused.
fn offer(builder: &mut Builder, mnemonic: Mnemonic, form: Form, bytes: usize) {
    let immediate = matches!(form, Form::RegisterImmediate);
    builder.fusible(match (mnemonic, bytes) {
        (Mnemonic::Add, _) if immediate => fused_zero!(bytes, Add),
        (Mnemonic::Sub, _) if immediate => fused_zero!(bytes, Sub),
        (Mnemonic::And, _) if immediate => fused_zero!(bytes, And),
        (Mnemonic::Inc, _) if immediate => fused_zero!(bytes, Inc),
        (Mnemonic::Dec, _) if immediate => fused_zero!(bytes, Dec),
        (Mnemonic::Cmp, 1) => fused::<Cmp, u8>(form),
        (Mnemonic::Cmp, 4) => fused::<Cmp, u32>(form),
        (Mnemonic::Cmp, 8) => fused::<Cmp, u64>(form),
        (Mnemonic::Test, 1) => fused::<Test, u8>(form),
        (Mnemonic::Test, 4) => fused::<Test, u32>(form),
        (Mnemonic::Test, 8) => fused::<Test, u64>(form),
        _ => return,
    });
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let first_in_memory = insn.op0_kind() == OpKind::Memory;
    let second = if insn.op_count() > 1 { insn.op1_kind() } else { OpKind::Immediate8 };
    let form = match (first_in_memory, second) {
        (false, OpKind::Register) => Form::RegisterRegister,
        (false, OpKind::Memory) => Form::RegisterMemory,
        (false, _) => Form::RegisterImmediate,
        (true, OpKind::Register) => Form::MemoryRegister,
        (true, _) => Form::MemoryImmediate,
    };
    let bytes = operand_bytes(insn, 0);
    let Some(run) = handlers(insn.mnemonic(), form, true, bytes) else { return Lowered::Unknown };
    let mut op = Op::new(run);
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
    if op.index == ZERO {
        op.run = handlers(insn.mnemonic(), form, false, bytes).unwrap_or(run);
        offer(builder, insn.mnemonic(), form, bytes);
    }
    let quiet = quiet(insn.mnemonic(), form, op.index != ZERO, bytes);
    let registers = matches!(form, Form::RegisterRegister | Form::RegisterImmediate);
    push(builder, insn.mnemonic(), op, registers, quiet);
    Lowered::Continues
}
