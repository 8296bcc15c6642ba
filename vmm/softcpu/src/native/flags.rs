//! The status flags as translated code leaves them: operands and results, by kind of instruction, from which
//! they follow when somebody looks.

use super::frame::Frame;
use crate::exec::alu::{Adc, Add, Binary, Cmp, Dec, Inc, Sbb};
use crate::exec::bits::counted;
use crate::exec::muldiv::multiplied;
use crate::exec::shift::{Rol, Ror, Sar, Shift, Shl, Shr};
use crate::flags::{CF, Lazy, OF, STATUS};
use crate::word::Word;

/// What flags follow from. Kinds with an operand size have its binary logarithm, in bytes, added.
pub mod kind {
    /// `a` and `b` as in `Lazy`.
    pub const LAZY: u32 = 0;
    /// LAHF and SETO left them in `a`.
    pub const RAW: u32 = 1;
    /// Of the result `a`: ZF, and no other.
    pub const ZERO: u32 = 2;
    /// a − b.
    pub const SUB: u32 = 4;
    /// a + b.
    pub const ADD: u32 = 8;
    /// The result a of AND, OR, XOR.
    pub const LOGIC: u32 = 12;
    /// a & b.
    pub const TEST: u32 = 16;
    /// a + b + carry.
    pub const ADC: u32 = 20;
    /// a − b − carry.
    pub const SBB: u32 = 24;
    /// The result a of INC, and the carry of before.
    pub const INC: u32 = 28;
    /// The result a of DEC, and the carry of before.
    pub const DEC: u32 = 32;
    /// a shifted by b, which is not zero.
    pub const SHL: u32 = 36;
    pub const SHR: u32 = 40;
    pub const SAR: u32 = 44;
    /// The low half a of a product, and its carry.
    pub const MUL: u32 = 48;
    /// The sum a, of something and b.
    pub const SUM: u32 = 52;
    /// The difference a, of something less b.
    pub const DIFFERENCE: u32 = 56;
    /// Above all of them.
    pub const END: u32 = 60;
}

/// What replaces CF, or CF and OF, afterwards. With operand sizes, as kinds.
pub mod overlay {
    pub const NONE: u32 = 0;
    /// CF is bit 0 of `rotated`.
    pub const CARRY: u32 = 1;
    /// ROL left `rotated`.
    pub const ROL: u32 = 4;
    /// ROR left `rotated`.
    pub const ROR: u32 = 8;
}

/// Where an operand or result is from which flags follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// In its field of the frame.
    Stored,
    /// A guest register's value. Not RSP's.
    Register(u8),
    /// Sign-extended.
    Constant(i32),
}

/// What the frame's flags are to be, while that is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    pub kind: u32,
    pub a: Part,
    pub b: Part,
}

impl Recipe {
    /// Guest registers that it takes values of, a bit each.
    pub fn registers(&self) -> u16 {
        [self.a, self.b].iter().fold(0, |all, part| match part {
            Part::Register(guest) => all | 1 << guest,
            _ => all,
        })
    }

    /// Stores them.
    pub fn apply(&self, frame: &mut Frame, regs: &[u64]) {
        (frame.kind, frame.overlay) = (self.kind, overlay::NONE);
        for (part, field) in [(self.a, &mut frame.a), (self.b, &mut frame.b)] {
            match part {
                Part::Stored => {}
                Part::Register(guest) => *field = regs[usize::from(guest)],
                Part::Constant(value) => *field = value as u64,
            }
        }
    }
}

/// Applies an expression to the width in a kind's low two bits.
macro_rules! by_width {
    ($kind:expr, $f:ident $(::<$k:ty>)?, $($argument:expr),*) => {
        match $kind & 3 {
            0 => $f::<$($k,)? u8>($($argument),*),
            1 => $f::<$($k,)? u16>($($argument),*),
            2 => $f::<$($k,)? u32>($($argument),*),
            _ => $f::<$($k,)? u64>($($argument),*),
        }
    };
}

fn binary<K: Binary, W: Word>(frame: &Frame) -> Lazy {
    let mut flags = Lazy::from_rflags(frame.carry & CF);
    K::apply(&mut flags, W::of(frame.a), W::of(frame.b));
    flags
}

fn sum<W: Word>(frame: &Frame) -> Lazy {
    let mut flags = Lazy::default();
    Add::apply(&mut flags, W::of(frame.a.wrapping_sub(frame.b)), W::of(frame.b));
    flags
}

fn difference<W: Word>(frame: &Frame) -> Lazy {
    let mut flags = Lazy::default();
    Cmp::apply(&mut flags, W::of(frame.a.wrapping_add(frame.b)), W::of(frame.b));
    flags
}

fn logic<W: Word>(result: u64) -> Lazy {
    Lazy::logic(W::of(result))
}

fn increment<W: Word>(frame: &Frame) -> Lazy {
    let mut flags = Lazy::from_rflags(frame.carry & CF);
    Inc::apply(&mut flags, W::of(frame.a.wrapping_sub(1)), W::of(0));
    flags
}

fn decrement<W: Word>(frame: &Frame) -> Lazy {
    let mut flags = Lazy::from_rflags(frame.carry & CF);
    Dec::apply(&mut flags, W::of(frame.a.wrapping_add(1)), W::of(0));
    flags
}

fn shift<K: Shift, W: Word>(frame: &Frame) -> Lazy {
    let mut flags = Lazy::default();
    K::apply(&mut flags, W::of(frame.a), frame.b as u32 & if W::BITS == 64 { 63 } else { 31 });
    flags
}

fn product<W: Word>(frame: &Frame) -> Lazy {
    multiplied(W::of(frame.a), frame.carry & CF != 0)
}

/// A rotate by `W::BITS` leaves the result and sets the flags from it.
fn rotate<K: Shift, W: Word>(flags: &mut Lazy, result: u64) {
    K::apply(flags, W::of(result), W::BITS);
}

/// The status flags of a frame.
pub fn interpret(frame: &Frame) -> Lazy {
    let mut flags = match frame.kind & !3 {
        0 => match frame.kind {
            kind::LAZY => Lazy { result: frame.a, aux: frame.b },
            kind::RAW => {
                let overflow = if frame.a & 1 != 0 { OF } else { 0 };
                Lazy::from_rflags(frame.a >> 8 & STATUS & !OF | overflow)
            }
            _ => counted(frame.a == 0),
        },
        kind::SUB => by_width!(frame.kind, binary::<Cmp>, frame),
        kind::ADD => by_width!(frame.kind, binary::<Add>, frame),
        kind::LOGIC => by_width!(frame.kind, logic, frame.a),
        kind::TEST => by_width!(frame.kind, logic, frame.a & frame.b),
        kind::ADC => by_width!(frame.kind, binary::<Adc>, frame),
        kind::SBB => by_width!(frame.kind, binary::<Sbb>, frame),
        kind::INC => by_width!(frame.kind, increment, frame),
        kind::DEC => by_width!(frame.kind, decrement, frame),
        kind::SHL => by_width!(frame.kind, shift::<Shl>, frame),
        kind::SHR => by_width!(frame.kind, shift::<Shr>, frame),
        kind::SAR => by_width!(frame.kind, shift::<Sar>, frame),
        kind::SUM => by_width!(frame.kind, sum, frame),
        kind::DIFFERENCE => by_width!(frame.kind, difference, frame),
        _ => by_width!(frame.kind, product, frame),
    };
    match frame.overlay & !3 {
        0 if frame.overlay == overlay::CARRY => flags.set_cf(frame.rotated & 1 != 0),
        0 => {}
        overlay::ROL => by_width!(frame.overlay, rotate::<Rol>, &mut flags, frame.rotated),
        _ => by_width!(frame.overlay, rotate::<Ror>, &mut flags, frame.rotated),
    }
    flags
}
