//! Decoded instructions: what a block is made of, and how one hands over to the next.
//!
//! A block is an array of `Op`s. Each holds the function that executes it; the function ends by calling that
//! of the next op in tail position, which an optimising build compiles to a jump, so that every op has an
//! indirect jump (and a branch predictor entry) of its own. Where a build does not, the stack grows by the
//! instructions of one slice at most (`SLICE`).
//!
//! Operands are byte offsets into the register file: 8 × number, + 1 for AH, CH, DH, BH.

use std::cell::Cell;

use crate::Cpu;

/// Executes one op, then the rest of the block.
pub type Handler = fn(&mut Cpu, &Op);

/// Offset of a register that always reads zero: no base, no index.
pub const ZERO: u8 = 16 * 8;
/// Offset of the register that holds an effective address computed beforehand.
pub const ADDRESS: u8 = 17 * 8;
/// Words in the register file: eight bytes at any offset that a `u8` can hold are inside.
pub const REGISTERS: usize = 33;

/// One decoded instruction, or a part of one.
///
/// Only the decoder makes them, in arrays whose last op does not call `next`.
#[derive(Debug, Clone)]
#[repr(C, align(32))]
pub struct Op {
    /// Executes it.
    pub run: Handler,
    /// Displacement, or the whole address of a RIP-relative operand. In branches that link: the first op of
    /// the block they lead to, once it is known.
    pub disp: Cell<u64>,
    /// Immediate, sign-extended; target of a branch.
    pub imm: u64,
    /// Destination register.
    pub dst: u8,
    /// Source register.
    pub src: u8,
    /// Base register of the memory operand, or `ZERO`.
    pub base: u8,
    /// Index register of the memory operand, or `ZERO`.
    pub index: u8,
    /// Log 2 of the index's factor. In branches: `cache::LINKS` if they may link.
    pub scale: u8,
    /// Number of the instruction in its block.
    pub number: u8,
    /// Offset of the instruction from the block's start.
    pub ip: u16,
}

impl Op {
    /// An op without operands.
    pub fn new(run: Handler) -> Self {
        let disp = Cell::new(0);
        Self { run, disp, imm: 0, dst: 0, src: 0, base: ZERO, index: ZERO, scale: 0, number: 0, ip: 0 }
    }

    /// The op after this one: every op that asks has one.
    #[inline(always)]
    pub fn following(&self) -> &Op {
        // SAFETY: the decoder ends every block with an op that does not come here.
        unsafe { &*std::ptr::from_ref(self).wrapping_add(1) }
    }
}

/// Goes on with the next op.
#[inline(always)]
pub fn next(cpu: &mut Cpu, op: &Op) {
    let following = op.following();
    (following.run)(cpu, following)
}

/// Stops before this instruction, for the reason in `cpu.abort`.
#[cold]
pub fn abort(cpu: &mut Cpu, op: &Op) {
    cpu.rip = cpu.rip.wrapping_add(u64::from(op.ip));
    cpu.retired += u64::from(op.number);
}

/// Unwraps the result of a memory access or check, or stops before this instruction.
#[macro_export]
#[doc(hidden)]
macro_rules! or_abort {
    ($cpu:ident, $op:ident, $result:expr) => {
        match $result {
            Ok(value) => value,
            Err($crate::Fault) => return $crate::op::abort($cpu, $op),
        }
    };
}
