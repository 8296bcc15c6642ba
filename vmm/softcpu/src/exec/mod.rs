//! What instructions do, a module per group. Each lowers its instructions to ops and executes them.

pub(crate) mod alu;
pub(crate) mod bits;
mod branch;
pub(crate) mod condition;
mod decimal;
mod exchange;
mod mmx;
mod mov;
pub(crate) mod muldiv;
mod segment;
pub(crate) mod shift;
mod sse;
pub(crate) mod sse_control;
mod stack;
mod string;
mod system;
mod x87;
mod x87_host;

use iced_x86::Instruction;

use crate::decode::{Builder, Lowered};

/// Turns one instruction into ops.
pub type Lower = fn(&mut Builder, &Instruction) -> Lowered;

/// All groups, the frequent ones first.
pub const MODULES: [Lower; 17] = [
    mov::lower,
    alu::lower,
    branch::lower,
    stack::lower,
    condition::lower,
    shift::lower,
    muldiv::lower,
    bits::lower,
    exchange::lower,
    string::lower,
    sse::lower,
    segment::lower,
    system::lower,
    sse_control::lower,
    x87::lower,
    mmx::lower,
    decimal::lower,
];
