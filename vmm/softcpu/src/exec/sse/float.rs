//! Floating-point arithmetic and conversions between XMM registers, under MXCSR.
//!
//! RCP and RSQRT are approximations that each maker of processors defines anew (SDM vol. 2, RCPPS: the
//! relative error is bounded, the value is not given): they are the host's.

use std::arch::asm;

use iced_x86::Mnemonic;

use super::{Aligned, Binary, Bits32, Bits64, Forms, Xmm, binary};

macro_rules! float {
    ($lookup:ident; $($name:ident $text:literal $memory:ident;)*) => {
        $(
            #[doc = concat!("`", $text, "`")]
            pub struct $name;

            impl Binary for $name {
                const FLOAT: bool = true;
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

float! {
    arithmetic;
    Addps "addps" Aligned;
    Addpd "addpd" Aligned;
    Addss "addss" Bits32;
    Addsd "addsd" Bits64;
    Subps "subps" Aligned;
    Subpd "subpd" Aligned;
    Subss "subss" Bits32;
    Subsd "subsd" Bits64;
    Mulps "mulps" Aligned;
    Mulpd "mulpd" Aligned;
    Mulss "mulss" Bits32;
    Mulsd "mulsd" Bits64;
    Divps "divps" Aligned;
    Divpd "divpd" Aligned;
    Divss "divss" Bits32;
    Divsd "divsd" Bits64;
    Minps "minps" Aligned;
    Minpd "minpd" Aligned;
    Minss "minss" Bits32;
    Minsd "minsd" Bits64;
    Maxps "maxps" Aligned;
    Maxpd "maxpd" Aligned;
    Maxss "maxss" Bits32;
    Maxsd "maxsd" Bits64;
    Sqrtps "sqrtps" Aligned;
    Sqrtpd "sqrtpd" Aligned;
    Sqrtss "sqrtss" Bits32;
    Sqrtsd "sqrtsd" Bits64;
    Addsubps "addsubps" Aligned;
    Addsubpd "addsubpd" Aligned;
    Haddps "haddps" Aligned;
    Haddpd "haddpd" Aligned;
    Hsubps "hsubps" Aligned;
    Hsubpd "hsubpd" Aligned;
    Rcpps "rcpps" Aligned;
    Rsqrtps "rsqrtps" Aligned;
    Rcpss "rcpss" Bits32;
    Rsqrtss "rsqrtss" Bits32;
}

float! {
    conversion;
    Cvtdq2ps "cvtdq2ps" Aligned;
    Cvtdq2pd "cvtdq2pd" Bits64;
    Cvtps2pd "cvtps2pd" Bits64;
    Cvtpd2ps "cvtpd2ps" Aligned;
    Cvtss2sd "cvtss2sd" Bits32;
    Cvtsd2ss "cvtsd2ss" Bits64;
    Cvtps2dq "cvtps2dq" Aligned;
    Cvttps2dq "cvttps2dq" Aligned;
    Cvtpd2dq "cvtpd2dq" Aligned;
    Cvttpd2dq "cvttpd2dq" Aligned;
}

/// Handlers of an instruction of these tables.
pub fn forms(mnemonic: Mnemonic) -> Option<Forms> {
    arithmetic(mnemonic).or_else(|| conversion(mnemonic))
}
