//! SSE to SSE4.2, by the host's own instructions: results, NaN payloads and flags are bit for bit those of
//! hardware, for there is one inline assembly block per instruction and LLVM folds nothing.
//!
//! What is common: gating (SDM vol. 3, 13.1 and table 2-18 ff. of vol. 2), the kinds of memory operands,
//! and the handlers of the two regular forms, `op xmm, xmm/m` (`Binary`) and `op xmm, xmm/m, imm8`
//! (`Immediate`). The tables are in `packed`, `float` and `shuffle`; what is irregular has handlers of its
//! own.

mod compare;
mod convert;
pub mod float;
mod lanes;
pub mod moves;
pub mod packed;
mod range;
mod shuffle;
#[cfg(test)]
mod tests;
mod text;

use std::arch::x86_64::__m128i;

use iced_x86::{CpuidFeature, Instruction, Mnemonic, OpKind, Register};

use self::range::Elements;
use super::sse_control::{self, unless_traps};
use crate::cpu::mode;
use crate::decode::{Builder, Lowered, NOT_AVAILABLE, UNDEFINED};
use crate::exception::Exception;
use crate::mem::Value;
use crate::op::{Handler, Op, next};
use crate::{Cpu, Fault, or_abort};

/// The contents of an XMM register.
pub type Xmm = __m128i;

impl Value for Xmm {
    const BYTES: u64 = 16;
    #[inline(always)]
    fn from_bits(bits: u128) -> Self {
        join(bits as u64, (bits >> 64) as u64)
    }
    #[inline(always)]
    fn bits(self) -> u128 {
        let [low, high] = split(self);
        u128::from(high) << 64 | u128::from(low)
    }
}

/// A register's contents from its quadwords.
#[inline(always)]
pub fn join(low: u64, high: u64) -> Xmm {
    // SAFETY: the types have the same size, and every bit pattern is valid.
    unsafe { std::mem::transmute([low, high]) }
}

/// The low and the high quadword.
#[inline(always)]
pub fn split(value: Xmm) -> [u64; 2] {
    // SAFETY: the types have the same size, and every bit pattern is valid.
    unsafe { std::mem::transmute(value) }
}

/// The low quadword of a register, the high one zero.
#[inline(always)]
pub fn low(value: u64) -> Xmm {
    join(value, 0)
}

impl Cpu {
    #[inline(always)]
    pub(super) fn xmm(&self, number: u8) -> Xmm {
        let register: *const u128 = &self.xmm[usize::from(number & 15)];
        // SAFETY: a u128 has the size, the alignment and every bit pattern of an Xmm.
        unsafe { register.cast::<Xmm>().read() }
    }

    #[inline(always)]
    pub(super) fn set_xmm(&mut self, number: u8, value: Xmm) {
        let register: *mut u128 = &mut self.xmm[usize::from(number & 15)];
        // SAFETY: a u128 has the size and the alignment of an Xmm.
        unsafe { register.cast::<Xmm>().write(value) }
    }

    /// Low quadword of an XMM register.
    #[inline(always)]
    pub(super) fn xmm_low(&self, number: u8) -> u64 {
        self.xmm[usize::from(number & 15)] as u64
    }

    /// An operand of 16 bytes that must be aligned: else #GP(0), before any page fault.
    #[inline(always)]
    pub(super) fn aligned(&mut self, address: u64) -> Result<u64, Fault> {
        if address.is_multiple_of(16) { Ok(address) } else { self.raise(Exception::gp(0)) }
    }
}

/// A kind of memory operand.
pub trait Operand {
    /// Loads it, zero-extended to a register.
    fn load(cpu: &mut Cpu, address: u64) -> Result<Xmm, Fault>;
}

/// 16 bytes, aligned.
pub struct Aligned;
/// 16 bytes anywhere.
pub struct Loose;
/// 8 bytes.
pub struct Bits64;
/// 4 bytes.
pub struct Bits32;
/// 2 bytes.
pub struct Bits16;

impl Operand for Aligned {
    #[inline(always)]
    fn load(cpu: &mut Cpu, address: u64) -> Result<Xmm, Fault> {
        let address = cpu.aligned(address)?;
        cpu.read(address)
    }
}

impl Operand for Loose {
    #[inline(always)]
    fn load(cpu: &mut Cpu, address: u64) -> Result<Xmm, Fault> {
        cpu.read(address)
    }
}

macro_rules! narrow {
    ($($name:ident $bits:ty),*) => {$(
        impl Operand for $name {
            #[inline(always)]
            fn load(cpu: &mut Cpu, address: u64) -> Result<Xmm, Fault> {
                cpu.read::<$bits>(address).map(|value| low(u64::from(value)))
            }
        }
    )*};
}

narrow!(Bits64 u64, Bits32 u32, Bits16 u16);

/// `op xmm, xmm/m`: the destination becomes a function of both operands.
pub trait Binary {
    /// It reads MXCSR and sets flags there.
    const FLOAT: bool;
    /// What it does to the elements of its sources.
    const ELEMENTS: Elements = Elements::Unknown;
    /// They are of double precision.
    const WIDE: bool = false;
    /// How many they are.
    const COUNT: usize = 0;
    /// The form of a memory operand.
    type Memory: Operand;
    /// Executes it.
    fn apply(a: Xmm, b: Xmm) -> Xmm;
}

/// `op xmm, xmm/m, imm8`.
pub trait Immediate {
    /// It reads MXCSR and sets flags there.
    const FLOAT: bool;
    /// The form of a memory operand.
    type Memory: Operand;
    /// What of the immediate counts.
    fn reduce(imm: u8) -> u8;
    /// Executes it, with an immediate that `reduce` returned.
    fn apply(imm: u8, a: Xmm, b: Xmm) -> Xmm;
}

/// Handlers of an instruction with a register and with a memory operand as the source.
#[derive(Clone, Copy)]
pub struct Forms {
    /// `op xmm, xmm`.
    pub rr: Handler,
    /// `op xmm, m`.
    pub rm: Handler,
}

/// The handlers of a `Binary`.
pub const fn binary<K: Binary>() -> Forms {
    Forms { rr: binary_rr::<K, false>, rm: binary_rm::<K, false> }
}

/// Handlers, and what of the immediate they are to get.
type Reduced = (Forms, fn(u8) -> u8);

/// The handlers of an `Immediate`, and its `reduce`.
const fn immediate<K: Immediate>() -> Reduced {
    (Forms { rr: immediate_rr::<K>, rm: immediate_rm::<K> }, K::reduce)
}

#[inline(always)]
fn execute<K: Binary, const TRAPS: bool>(cpu: &mut Cpu, a: Xmm, b: Xmm) -> Result<Xmm, Fault> {
    if !TRAPS {
        return Ok(K::apply(a, b));
    }
    let inexact = |mxcsr| range::inexact(K::ELEMENTS, K::WIDE, K::COUNT, mxcsr, a, b);
    sse_control::trapping(cpu, move || K::apply(a, b), inexact)
}

#[inline(never)]
fn binary_rr<K: Binary, const TRAPS: bool>(cpu: &mut Cpu, op: &Op) {
    if K::FLOAT {
        unless_traps!(cpu, op, TRAPS, binary_rr, K);
    }
    let (a, b) = (cpu.xmm(op.dst), cpu.xmm(op.src));
    let result = or_abort!(cpu, op, execute::<K, TRAPS>(cpu, a, b));
    cpu.set_xmm(op.dst, result);
    next(cpu, op)
}

#[inline(never)]
fn binary_rm<K: Binary, const TRAPS: bool>(cpu: &mut Cpu, op: &Op) {
    if K::FLOAT {
        unless_traps!(cpu, op, TRAPS, binary_rm, K);
    }
    let b = or_abort!(cpu, op, K::Memory::load(cpu, cpu.address(op)));
    let a = cpu.xmm(op.dst);
    let result = or_abort!(cpu, op, execute::<K, TRAPS>(cpu, a, b));
    cpu.set_xmm(op.dst, result);
    next(cpu, op)
}

fn execute_immediate<K: Immediate, const TRAPS: bool>(cpu: &mut Cpu, op: &Op, b: Xmm) -> Result<(), Fault> {
    let (imm, a) = (op.imm as u8, cpu.xmm(op.dst));
    let result = sse_control::float::<Xmm, TRAPS>(cpu, move || K::apply(imm, a, b))?;
    cpu.set_xmm(op.dst, result);
    Ok(())
}

// Out of line: `apply` needs a stack frame, its callers must have none to leave by a jump.
#[inline(never)]
fn by_register<K: Immediate>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let b = cpu.xmm(op.src);
    if K::FLOAT && sse_control::traps(cpu) {
        return execute_immediate::<K, true>(cpu, op, b);
    }
    execute_immediate::<K, false>(cpu, op, b)
}

#[inline(never)]
fn by_memory<K: Immediate>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
    let b = K::Memory::load(cpu, cpu.address(op))?;
    if K::FLOAT && sse_control::traps(cpu) {
        return execute_immediate::<K, true>(cpu, op, b);
    }
    execute_immediate::<K, false>(cpu, op, b)
}

fn immediate_rr<K: Immediate>(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, by_register::<K>(cpu, op));
    next(cpu, op)
}

fn immediate_rm<K: Immediate>(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, by_memory::<K>(cpu, op));
    next(cpu, op)
}

/// Number of an XMM register.
pub fn number(register: Register) -> u8 {
    register.number() as u8
}

/// Appends an op of the form `op xmm, xmm/m`: `dst` from operand 0, the source from operand 1.
fn lower_forms(builder: &mut Builder, insn: &Instruction, forms: Forms, imm: u64) -> Lowered {
    let mut op = Op::new(forms.rr);
    op.imm = imm;
    op.dst = number(insn.op0_register());
    if insn.op1_kind() == OpKind::Memory {
        op.run = forms.rm;
        builder.memory(&mut op, insn);
    } else {
        op.src = number(insn.op1_register());
    }
    builder.push(op);
    Lowered::Continues
}

/// What an SSE instruction does in a mode that has it switched off: #UD before #NM.
pub fn switched_off(builder: &mut Builder, undefined_in: u32) -> Option<Lowered> {
    let handler = if builder.mode & undefined_in != 0 {
        UNDEFINED
    } else if builder.mode & mode::TASK_SWITCHED != 0 {
        NOT_AVAILABLE
    } else {
        return None;
    };
    builder.push(Op::new(handler));
    Some(Lowered::Ends)
}

/// Whether any operand is a register of a kind.
pub fn has(insn: &Instruction, kind: fn(Register) -> bool) -> bool {
    let is = |n| insn.op_kind(n) == OpKind::Register && kind(insn.op_register(n));
    (0..insn.op_count().min(3)).any(is)
}

/// Whether SSE to SSE4.2 has it, in the encoding without VEX.
fn is_sse(insn: &Instruction) -> bool {
    use CpuidFeature as F;
    let sse = [F::SSE, F::SSE2, F::SSE3, F::SSSE3, F::SSE4_1, F::SSE4_2];
    insn.cpuid_features().iter().all(|feature| sse.contains(feature))
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let ours = has(insn, Register::is_xmm) || convert::to_integer(insn.mnemonic());
    if !ours || has(insn, Register::is_mm) || !is_sse(insn) {
        return Lowered::Unknown;
    }
    if let Some(ended) = switched_off(builder, mode::NO_SSE) {
        return ended;
    }
    let mnemonic = insn.mnemonic();
    if insn.op1_kind() == OpKind::Immediate8 {
        return shuffle::lower_shift(builder, insn);
    }
    if let Some(forms) = packed::forms(mnemonic).or_else(|| float::forms(mnemonic)) {
        return lower_forms(builder, insn, forms, 0);
    }
    if let Some((forms, reduce)) = shuffle::forms(mnemonic) {
        let mut imm = reduce(insn.immediate8());
        if mnemonic == Mnemonic::Insertps && insn.op1_kind() == OpKind::Memory {
            imm = shuffle::insertps_from_memory(imm);
        }
        return lower_forms(builder, insn, forms, u64::from(imm));
    }
    for module in [moves::lower, compare::lower, convert::lower, lanes::lower, text::lower] {
        let lowered = module(builder, insn);
        if lowered != Lowered::Unknown {
            return lowered;
        }
    }
    Lowered::Unknown
}
