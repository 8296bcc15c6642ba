//! Floating-point arithmetic and conversions between XMM registers, under MXCSR.
//!
//! RCP and RSQRT are approximations that each maker of processors defines anew (SDM vol. 2, RCPPS: the
//! relative error is bounded, the value is not given): they are the host's.

use std::arch::asm;

use iced_x86::Mnemonic;

use super::range::Elements;
use super::{Aligned, Binary, Bits32, Bits64, Forms, Xmm, binary};

macro_rules! float {
    ($lookup:ident; $($name:ident $text:literal $memory:ident $elements:ident;)*) => {
        $(
            #[doc = concat!("`", $text, "`")]
            pub struct $name;

            impl Binary for $name {
                const FLOAT: bool = true;
                const ELEMENTS: Elements = Elements::$elements;
                const WIDE: bool = is_wide($text);
                const COUNT: usize = count($text);
                type Memory = $memory;
                #[inline(always)]
                fn apply(mut a: Xmm, b: Xmm) -> Xmm {
                    // SAFETY: the instruction touches nothing but its two operands and the flags of MXCSR,
                    // whose exceptions are masked. Not `pure`, so that it is neither moved past a change of
                    // MXCSR nor left out.
                    unsafe {
                        asm!(
                            concat!($text, " {}, {}"),
                            inout(xmm_reg) a,
                            in(xmm_reg) b,
                            options(nomem, nostack, preserves_flags)
                        )
                    };
                    a
                }
            }
        )*

        fn $lookup(mnemonic: Mnemonic) -> Option<Forms> {
            Some(match mnemonic {
                $(Mnemonic::$name => const { binary::<$name>() },)*
                _ => return None,
            })
        }
    };
}

/// Of double precision, as the sources of `text` are.
const fn is_wide(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes[bytes.len() - 1] == b'd' || matches!(bytes, b"cvtpd2ps" | b"cvtsd2ss")
}

/// How many elements of the sources are read.
const fn count(text: &str) -> usize {
    let bytes = text.as_bytes();
    match (bytes[bytes.len() - 2], is_wide(text)) {
        _ if matches!(bytes, b"cvtsd2ss") => 1,
        (b's', _) => 1,
        (_, true) => 2,
        (_, false) => 4,
    }
}

float! {
    arithmetic;
    Addps "addps" Aligned Add;
    Addpd "addpd" Aligned Add;
    Addss "addss" Bits32 Add;
    Addsd "addsd" Bits64 Add;
    Subps "subps" Aligned Sub;
    Subpd "subpd" Aligned Sub;
    Subss "subss" Bits32 Sub;
    Subsd "subsd" Bits64 Sub;
    Mulps "mulps" Aligned Mul;
    Mulpd "mulpd" Aligned Mul;
    Mulss "mulss" Bits32 Mul;
    Mulsd "mulsd" Bits64 Mul;
    Divps "divps" Aligned Div;
    Divpd "divpd" Aligned Div;
    Divss "divss" Bits32 Div;
    Divsd "divsd" Bits64 Div;
    Minps "minps" Aligned Unknown;
    Minpd "minpd" Aligned Unknown;
    Minss "minss" Bits32 Unknown;
    Minsd "minsd" Bits64 Unknown;
    Maxps "maxps" Aligned Unknown;
    Maxpd "maxpd" Aligned Unknown;
    Maxss "maxss" Bits32 Unknown;
    Maxsd "maxsd" Bits64 Unknown;
    Sqrtps "sqrtps" Aligned Unknown;
    Sqrtpd "sqrtpd" Aligned Unknown;
    Sqrtss "sqrtss" Bits32 Unknown;
    Sqrtsd "sqrtsd" Bits64 Unknown;
    Addsubps "addsubps" Aligned AddSub;
    Addsubpd "addsubpd" Aligned AddSub;
    Haddps "haddps" Aligned Hadd;
    Haddpd "haddpd" Aligned Hadd;
    Hsubps "hsubps" Aligned Hsub;
    Hsubpd "hsubpd" Aligned Hsub;
    Rcpps "rcpps" Aligned Unknown;
    Rsqrtps "rsqrtps" Aligned Unknown;
    Rcpss "rcpss" Bits32 Unknown;
    Rsqrtss "rsqrtss" Bits32 Unknown;
}

float! {
    conversion;
    Cvtdq2ps "cvtdq2ps" Aligned Unknown;
    Cvtdq2pd "cvtdq2pd" Bits64 Unknown;
    Cvtps2pd "cvtps2pd" Bits64 Unknown;
    Cvtpd2ps "cvtpd2ps" Aligned Narrow;
    Cvtss2sd "cvtss2sd" Bits32 Unknown;
    Cvtsd2ss "cvtsd2ss" Bits64 Narrow;
    Cvtps2dq "cvtps2dq" Aligned Unknown;
    Cvttps2dq "cvttps2dq" Aligned Unknown;
    Cvtpd2dq "cvtpd2dq" Aligned Unknown;
    Cvttpd2dq "cvttpd2dq" Aligned Unknown;
}

/// Handlers of an instruction of these tables.
pub fn forms(mnemonic: Mnemonic) -> Option<Forms> {
    arithmetic(mnemonic).or_else(|| conversion(mnemonic))
}
