//! Instructions on integers and bits in XMM registers: they neither read nor set anything in MXCSR.

use std::arch::asm;

use iced_x86::Mnemonic;

use super::{Aligned, Binary, Bits16, Bits32, Bits64, Forms, Xmm, binary};

macro_rules! packed {
    ($lookup:ident; $($name:ident $text:literal $memory:ident;)*) => {
        $(
            #[doc = concat!("`", $text, "`")]
            pub struct $name;

            impl Binary for $name {
                const FLOAT: bool = false;
                type Memory = $memory;
                #[inline(always)]
                fn apply(mut a: Xmm, b: Xmm) -> Xmm {
                    // SAFETY: the instruction touches nothing but its two operands.
                    unsafe {
                        asm!(
                            concat!($text, " {}, {}"),
                            inout(xmm_reg) a,
                            in(xmm_reg) b,
                            options(pure, nomem, nostack, preserves_flags)
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

packed! {
    sse_and_sse2;
    Andps "andps" Aligned;
    Andpd "andpd" Aligned;
    Andnps "andnps" Aligned;
    Andnpd "andnpd" Aligned;
    Orps "orps" Aligned;
    Orpd "orpd" Aligned;
    Xorps "xorps" Aligned;
    Xorpd "xorpd" Aligned;
    Unpcklps "unpcklps" Aligned;
    Unpcklpd "unpcklpd" Aligned;
    Unpckhps "unpckhps" Aligned;
    Unpckhpd "unpckhpd" Aligned;
    Movhlps "movhlps" Aligned;
    Movlhps "movlhps" Aligned;
    Movshdup "movshdup" Aligned;
    Movsldup "movsldup" Aligned;
    Movddup "movddup" Bits64;
    Pand "pand" Aligned;
    Pandn "pandn" Aligned;
    Por "por" Aligned;
    Pxor "pxor" Aligned;
    Paddb "paddb" Aligned;
    Paddw "paddw" Aligned;
    Paddd "paddd" Aligned;
    Paddq "paddq" Aligned;
    Paddsb "paddsb" Aligned;
    Paddsw "paddsw" Aligned;
    Paddusb "paddusb" Aligned;
    Paddusw "paddusw" Aligned;
    Psubb "psubb" Aligned;
    Psubw "psubw" Aligned;
    Psubd "psubd" Aligned;
    Psubq "psubq" Aligned;
    Psubsb "psubsb" Aligned;
    Psubsw "psubsw" Aligned;
    Psubusb "psubusb" Aligned;
    Psubusw "psubusw" Aligned;
    Pmullw "pmullw" Aligned;
    Pmulhw "pmulhw" Aligned;
    Pmulhuw "pmulhuw" Aligned;
    Pmuludq "pmuludq" Aligned;
    Pmaddwd "pmaddwd" Aligned;
    Pcmpeqb "pcmpeqb" Aligned;
    Pcmpeqw "pcmpeqw" Aligned;
    Pcmpeqd "pcmpeqd" Aligned;
    Pcmpgtb "pcmpgtb" Aligned;
    Pcmpgtw "pcmpgtw" Aligned;
    Pcmpgtd "pcmpgtd" Aligned;
    Pavgb "pavgb" Aligned;
    Pavgw "pavgw" Aligned;
    Pmaxub "pmaxub" Aligned;
    Pmaxsw "pmaxsw" Aligned;
    Pminub "pminub" Aligned;
    Pminsw "pminsw" Aligned;
    Psadbw "psadbw" Aligned;
    Packsswb "packsswb" Aligned;
    Packssdw "packssdw" Aligned;
    Packuswb "packuswb" Aligned;
    Punpcklbw "punpcklbw" Aligned;
    Punpcklwd "punpcklwd" Aligned;
    Punpckldq "punpckldq" Aligned;
    Punpcklqdq "punpcklqdq" Aligned;
    Punpckhbw "punpckhbw" Aligned;
    Punpckhwd "punpckhwd" Aligned;
    Punpckhdq "punpckhdq" Aligned;
    Punpckhqdq "punpckhqdq" Aligned;
    Psllw "psllw" Aligned;
    Pslld "pslld" Aligned;
    Psllq "psllq" Aligned;
    Psrlw "psrlw" Aligned;
    Psrld "psrld" Aligned;
    Psrlq "psrlq" Aligned;
    Psraw "psraw" Aligned;
    Psrad "psrad" Aligned;
}

packed! {
    later;
    Pshufb "pshufb" Aligned;
    Phaddw "phaddw" Aligned;
    Phaddd "phaddd" Aligned;
    Phaddsw "phaddsw" Aligned;
    Phsubw "phsubw" Aligned;
    Phsubd "phsubd" Aligned;
    Phsubsw "phsubsw" Aligned;
    Pmaddubsw "pmaddubsw" Aligned;
    Pmulhrsw "pmulhrsw" Aligned;
    Psignb "psignb" Aligned;
    Psignw "psignw" Aligned;
    Psignd "psignd" Aligned;
    Pabsb "pabsb" Aligned;
    Pabsw "pabsw" Aligned;
    Pabsd "pabsd" Aligned;
    Packusdw "packusdw" Aligned;
    Pcmpeqq "pcmpeqq" Aligned;
    Pcmpgtq "pcmpgtq" Aligned;
    Phminposuw "phminposuw" Aligned;
    Pmaxsb "pmaxsb" Aligned;
    Pmaxsd "pmaxsd" Aligned;
    Pmaxud "pmaxud" Aligned;
    Pmaxuw "pmaxuw" Aligned;
    Pminsb "pminsb" Aligned;
    Pminsd "pminsd" Aligned;
    Pminud "pminud" Aligned;
    Pminuw "pminuw" Aligned;
    Pmuldq "pmuldq" Aligned;
    Pmulld "pmulld" Aligned;
    Pmovsxbw "pmovsxbw" Bits64;
    Pmovsxbd "pmovsxbd" Bits32;
    Pmovsxbq "pmovsxbq" Bits16;
    Pmovsxwd "pmovsxwd" Bits64;
    Pmovsxwq "pmovsxwq" Bits32;
    Pmovsxdq "pmovsxdq" Bits64;
    Pmovzxbw "pmovzxbw" Bits64;
    Pmovzxbd "pmovzxbd" Bits32;
    Pmovzxbq "pmovzxbq" Bits16;
    Pmovzxwd "pmovzxwd" Bits64;
    Pmovzxwq "pmovzxwq" Bits32;
    Pmovzxdq "pmovzxdq" Bits64;
}

/// Handlers of an instruction of these tables.
pub fn forms(mnemonic: Mnemonic) -> Option<Forms> {
    sse_and_sse2(mnemonic).or_else(|| later(mnemonic))
}
