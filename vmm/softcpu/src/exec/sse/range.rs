//! Whether an operation would be inexact if exponents had no bounds: what the precision flag says of an
//! overflow or underflow that is reported (SDM vol. 1, 4.9.1.4 to 4.9.1.6).
//!
//! With exceptions masked no SSE instruction tells. The x87 unit does: its exponents have 15 bits whatever
//! the precision that it rounds to.

use std::arch::asm;

use super::{Xmm, split};

/// What is done to the elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elements {
    /// Something whose results never leave the range, or that takes more than one operation.
    Unknown,
    /// Additions.
    Add,
    /// Subtractions.
    Sub,
    /// Subtractions and additions by turns.
    AddSub,
    /// Additions of neighbours.
    Hadd,
    /// Subtractions of neighbours.
    Hsub,
    /// Multiplications.
    Mul,
    /// Divisions.
    Div,
    /// Conversions from double to single precision.
    Narrow,
}

/// x87 control words: exceptions masked, 24 or 53 bits of precision.
const SINGLE: u16 = 0x007f;
const DOUBLE: u16 = 0x027f;
/// x87 status word: precision.
const PE: u16 = 1 << 5;
/// 1.0.
const ONE: u64 = 0x3ff0_0000_0000_0000;
/// MXCSR: denormals are zeros.
const DAZ: u32 = 1 << 6;

macro_rules! inexact {
    ($($name:ident $control:ident $size:literal $operation:literal;)*) => {$(
        fn $name(a: u64, b: u64) -> bool {
            let control = $control;
            let status: u16;
            // SAFETY: reads the three variables. The x87 registers are declared, and the unit is left as it
            // is between functions: initialised.
            unsafe {
                asm!(
                    "fninit",
                    "fldcw word ptr [{control}]",
                    concat!("fld ", $size, " ptr [{a}]"),
                    concat!($operation, " ", $size, " ptr [{b}]"),
                    "fnstsw ax",
                    "fninit",
                    control = in(reg) &raw const control,
                    a = in(reg) &raw const a,
                    b = in(reg) &raw const b,
                    out("ax") status,
                    out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                    out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                    options(nostack, readonly)
                )
            };
            status & PE != 0
        }
    )*};
}

inexact! {
    add_singles SINGLE "dword" "fadd";
    sub_singles SINGLE "dword" "fsub";
    mul_singles SINGLE "dword" "fmul";
    div_singles SINGLE "dword" "fdiv";
    add_doubles DOUBLE "qword" "fadd";
    sub_doubles DOUBLE "qword" "fsub";
    mul_doubles DOUBLE "qword" "fmul";
    div_doubles DOUBLE "qword" "fdiv";
    narrow SINGLE "qword" "fmul";
}

fn singles(value: Xmm, mxcsr: u32) -> [u64; 4] {
    let [low, high] = split(value);
    [low, low >> 32, high, high >> 32].map(|element| {
        let element = element & 0xffff_ffff;
        let denormal = element & 0x7f80_0000 == 0;
        if mxcsr & DAZ != 0 && denormal { element & 0x8000_0000 } else { element }
    })
}

fn doubles(value: Xmm, mxcsr: u32) -> [u64; 2] {
    split(value).map(|element| {
        let denormal = element & 0x7ff0_0000_0000_0000 == 0;
        if mxcsr & DAZ != 0 && denormal { element & 1 << 63 } else { element }
    })
}

/// Whether any of the first `count` elements has an inexact result without bounds of the exponent; `None`
/// for operations that this is not known of.
pub fn inexact(elements: Elements, wide: bool, count: usize, mxcsr: u32, a: Xmm, b: Xmm) -> Option<bool> {
    use Elements as E;
    let [add, sub, mul, div] = if wide {
        [add_doubles, sub_doubles, mul_doubles, div_doubles]
    } else {
        [add_singles, sub_singles, mul_singles, div_singles]
    };
    let list = |value| if wide { doubles(value, mxcsr).to_vec() } else { singles(value, mxcsr).to_vec() };
    let (a, b) = (list(a), list(b));
    let vertical = |one: fn(u64, u64) -> bool| (0..count).any(|n| one(a[n], b[n]));
    let pairs = |one: fn(u64, u64) -> bool| a.chunks(2).chain(b.chunks(2)).any(|pair| one(pair[0], pair[1]));
    Some(match elements {
        E::Unknown => return None,
        E::Add => vertical(add),
        E::Sub => vertical(sub),
        E::Mul => vertical(mul),
        E::Div => vertical(div),
        E::AddSub => (0..count).any(|n| if n % 2 == 0 { sub(a[n], b[n]) } else { add(a[n], b[n]) }),
        E::Hadd => pairs(add),
        E::Hsub => pairs(sub),
        E::Narrow => b[..count].iter().any(|value| narrow(*value, ONE)),
    })
}
