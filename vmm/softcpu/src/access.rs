//! Ways of handlers to memory that need no stack frame: what a hit in the TLB does is inlined and leaves by a
//! jump; a miss is a function of its own, also entered by a jump, that does the same the long way.
//!
//! For that, everything a handler computes is given as functions without captured values, of the processor
//! and the op alone.

use crate::mem::Value;
use crate::op::Op;
use crate::{Cpu, or_abort};

/// How the address of an op's memory operand is computed.
pub trait Addressing: 'static {
    /// The linear address.
    fn address(cpu: &Cpu, op: &Op) -> u64;
}

/// Base and displacement: an op without an index.
pub struct Based;
impl Addressing for Based {
    #[inline(always)]
    fn address(cpu: &Cpu, op: &Op) -> u64 {
        cpu.reg::<u64>(op.base).wrapping_add(op.disp.get())
    }
}

/// Base, index and displacement.
pub struct Indexed;
impl Addressing for Indexed {
    #[inline(always)]
    fn address(cpu: &Cpu, op: &Op) -> u64 {
        cpu.address(op)
    }
}

/// The top of the stack in 64-bit mode.
pub struct Top;
impl Addressing for Top {
    #[inline(always)]
    fn address(cpu: &Cpu, _op: &Op) -> u64 {
        cpu.regs[4]
    }
}

/// Where a push in 64-bit mode writes eight bytes.
pub struct BelowTop;
impl Addressing for BelowTop {
    #[inline(always)]
    fn address(cpu: &Cpu, _op: &Op) -> u64 {
        cpu.regs[4].wrapping_sub(8)
    }
}

/// Reads, then goes on with `body`, which leaves the handler.
#[inline(always)]
pub fn reading<A: Addressing, T: Value>(cpu: &mut Cpu, op: &Op, body: impl Fn(&mut Cpu, &Op, T) + Copy) {
    match cpu.read_hit(A::address(cpu, op)) {
        Some(value) => body(cpu, op, value),
        None => reading_miss::<A, T>(cpu, op, body),
    }
}

#[cold]
#[inline(never)]
fn reading_miss<A: Addressing, T: Value>(cpu: &mut Cpu, op: &Op, body: impl Fn(&mut Cpu, &Op, T) + Copy) {
    let value = or_abort!(cpu, op, cpu.read::<T>(A::address(cpu, op)));
    body(cpu, op, value)
}

/// Writes what `value` says, then goes on with `body`, which leaves the handler.
#[inline(always)]
pub fn writing<A: Addressing, T: Value>(
    cpu: &mut Cpu,
    op: &Op,
    value: impl Fn(&Cpu, &Op) -> T + Copy,
    body: impl Fn(&mut Cpu, &Op) + Copy,
) {
    if cpu.write_hit(A::address(cpu, op), value(cpu, op)) {
        body(cpu, op)
    } else {
        writing_miss::<A, T>(cpu, op, value, body)
    }
}

#[cold]
#[inline(never)]
fn writing_miss<A: Addressing, T: Value>(
    cpu: &mut Cpu,
    op: &Op,
    value: impl Fn(&Cpu, &Op) -> T + Copy,
    body: impl Fn(&mut Cpu, &Op) + Copy,
) {
    or_abort!(cpu, op, cpu.write::<T>(A::address(cpu, op), value(cpu, op)));
    body(cpu, op)
}

/// Reads, writes what `change` makes of it, and goes on with `body`, which leaves the handler.
#[inline(always)]
pub fn modifying<A: Addressing, T: Value>(
    cpu: &mut Cpu,
    op: &Op,
    change: impl Fn(&mut Cpu, &Op, T) -> T + Copy,
    body: impl Fn(&mut Cpu, &Op) + Copy,
) {
    if cpu.modify_hit::<T>(A::address(cpu, op), |cpu, old| change(cpu, op, old)) {
        body(cpu, op)
    } else {
        modifying_miss::<A, T>(cpu, op, change, body)
    }
}

#[cold]
#[inline(never)]
fn modifying_miss<A: Addressing, T: Value>(
    cpu: &mut Cpu,
    op: &Op,
    change: impl Fn(&mut Cpu, &Op, T) -> T + Copy,
    body: impl Fn(&mut Cpu, &Op) + Copy,
) {
    let address = A::address(cpu, op);
    or_abort!(cpu, op, cpu.modify::<T, ()>(address, |cpu, old| (change(cpu, op, old), ())));
    body(cpu, op)
}
