//! Instructions with an immediate that says where things go, how to round or what to compare.
//!
//! The immediate is part of the instruction's encoding, so each of its values is an instruction of its own:
//! `apply` jumps to the one that it names. `reduce` drops the bits that have no meaning.

use std::arch::asm;

use iced_x86::{Instruction, Mnemonic};

use super::packed::{Pslld, Psllq, Psllw, Psrad, Psraw, Psrld, Psrlq, Psrlw};
use super::{Aligned, Binary, Bits32, Bits64, Immediate, Reduced, Xmm, immediate, low, number};
use crate::Cpu;
use crate::decode::{Builder, Lowered};
use crate::op::{Handler, Op, next};

/// Calls the macro `$with` with the arguments and the numbers below a power of two (or 33 or 17).
macro_rules! below {
    (4, $with:ident!($($args:tt)*)) => { $with!($($args)*; 0 1 2 3) };
    (8, $with:ident!($($args:tt)*)) => { $with!($($args)*; 0 1 2 3 4 5 6 7) };
    (16, $with:ident!($($args:tt)*)) => { $with!($($args)*; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15) };
    (17, $with:ident!($($args:tt)*)) => { $with!($($args)*; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16) };
    (33, $with:ident!($($args:tt)*)) => {
        $with!($($args)*;
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32)
    };
    (128, $with:ident!($($args:tt)*)) => {
        $with!($($args)*;
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23
            24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47
            48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 65 66 67 68 69 70 71
            72 73 74 75 76 77 78 79 80 81 82 83 84 85 86 87 88 89 90 91 92 93 94 95
            96 97 98 99 100 101 102 103 104 105 106 107 108 109 110 111 112 113 114 115 116 117 118 119
            120 121 122 123 124 125 126 127
        )
    };
    (256, $with:ident!($($args:tt)*)) => {
        $with!($($args)*;
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23
            24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47
            48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 65 66 67 68 69 70 71
            72 73 74 75 76 77 78 79 80 81 82 83 84 85 86 87 88 89 90 91 92 93 94 95
            96 97 98 99 100 101 102 103 104 105 106 107 108 109 110 111 112 113 114 115 116 117 118 119
            120 121 122 123 124 125 126 127 128 129 130 131 132 133 134 135 136 137 138 139 140 141 142 143
            144 145 146 147 148 149 150 151 152 153 154 155 156 157 158 159 160 161 162 163 164 165 166 167
            168 169 170 171 172 173 174 175 176 177 178 179 180 181 182 183 184 185 186 187 188 189 190 191
            192 193 194 195 196 197 198 199 200 201 202 203 204 205 206 207 208 209 210 211 212 213 214 215
            216 217 218 219 220 221 222 223 224 225 226 227 228 229 230 231 232 233 234 235 236 237 238 239
            240 241 242 243 244 245 246 247 248 249 250 251 252 253 254 255
        )
    };
}
pub(super) use below;

macro_rules! arms {
    ($text:literal $imm:ident $a:ident $b:ident; $($n:literal)*) => {
        match $imm {
            // SAFETY: the instruction touches nothing but its two operands and the flags of MXCSR, whose
            // exceptions are masked.
            $($n => unsafe {
                asm!(
                    concat!($text, " {}, {}, ", $n),
                    inout(xmm_reg) $a,
                    in(xmm_reg) $b,
                    options(nomem, nostack, preserves_flags)
                )
            },)*
            #[allow(unreachable_patterns)]
            _ => unreachable!("reduced"),
        }
    };
}

macro_rules! arms_in_place {
    ($text:literal $imm:ident $a:ident $b:ident; $($n:literal)*) => {
        match $imm {
            // SAFETY: the instruction touches nothing but its operand.
            $($n => unsafe {
                asm!(
                    concat!($text, " {}, ", $n),
                    inout(xmm_reg) $a,
                    options(pure, nomem, nostack, preserves_flags)
                )
            },)*
            #[allow(unreachable_patterns)]
            _ => unreachable!("reduced"),
        }
    };
}

macro_rules! immediates {
    (
        $lookup:ident, $float:literal, $arms:ident;
        $($name:ident $text:literal $memory:ident $count:tt $reduce:expr;)*
    ) => {
        $(
            #[doc = concat!("`", $text, "`")]
            pub struct $name;

            impl Immediate for $name {
                const FLOAT: bool = $float;
                type Memory = $memory;
                fn reduce(imm: u8) -> u8 {
                    let reduce: fn(u8) -> u8 = $reduce;
                    reduce(imm)
                }
                #[inline(always)]
                fn apply(imm: u8, mut a: Xmm, b: Xmm) -> Xmm {
                    below!($count, $arms!($text imm a b));
                    let _ = b;
                    a
                }
            }
        )*

        fn $lookup(mnemonic: Mnemonic) -> Option<Reduced> {
            Some(match mnemonic {
                $(Mnemonic::$name => const { immediate::<$name>() },)*
                _ => return None,
            })
        }
    };
}

immediates! {
    rearrangement, false, arms;
    Shufps "shufps" Aligned 256 |imm| imm;
    Shufpd "shufpd" Aligned 4 |imm| imm & 3;
    Pshufd "pshufd" Aligned 256 |imm| imm;
    Pshufhw "pshufhw" Aligned 256 |imm| imm;
    Pshuflw "pshuflw" Aligned 256 |imm| imm;
    Palignr "palignr" Aligned 33 |imm| imm.min(32);
    Pblendw "pblendw" Aligned 256 |imm| imm;
    Blendps "blendps" Aligned 16 |imm| imm & 15;
    Blendpd "blendpd" Aligned 4 |imm| imm & 3;
    Mpsadbw "mpsadbw" Aligned 8 |imm| imm & 7;
    Insertps "insertps" Bits32 256 |imm| imm;
}

immediates! {
    float, true, arms;
    Cmpps "cmpps" Aligned 8 |imm| imm & 7;
    Cmppd "cmppd" Aligned 8 |imm| imm & 7;
    Cmpss "cmpss" Bits32 8 |imm| imm & 7;
    Cmpsd "cmpsd" Bits64 8 |imm| imm & 7;
    Roundps "roundps" Aligned 16 |imm| imm & 15;
    Roundpd "roundpd" Aligned 16 |imm| imm & 15;
    Roundss "roundss" Bits32 16 |imm| imm & 15;
    Roundsd "roundsd" Bits64 16 |imm| imm & 15;
    Dpps "dpps" Aligned 256 |imm| imm;
    Dppd "dppd" Aligned 256 |imm| imm;
}

immediates! {
    byte_shift, false, arms_in_place;
    Pslldq "pslldq" Aligned 17 |imm| imm.min(16);
    Psrldq "psrldq" Aligned 17 |imm| imm.min(16);
}

/// Handlers of an instruction of these tables, and what of the immediate it is to get.
pub fn forms(mnemonic: Mnemonic) -> Option<Reduced> {
    rearrangement(mnemonic).or_else(|| float(mnemonic))
}

/// INSERTPS from memory has one element to choose from: bits 6 and 7 do not count.
pub fn insertps_from_memory(imm: u8) -> u8 {
    imm & 0x3f
}

/// A shift by an immediate, by the form that has the count in a register.
fn shift<K: Binary>(cpu: &mut Cpu, op: &Op) {
    let result = K::apply(cpu.xmm(op.dst), low(op.imm));
    cpu.set_xmm(op.dst, result);
    next(cpu, op)
}

/// Shifts by an immediate: `op xmm, imm8`.
pub fn lower_shift(builder: &mut Builder, insn: &Instruction) -> Lowered {
    use Mnemonic as M;
    let mut imm = insn.immediate8();
    let run: Handler = match insn.mnemonic() {
        M::Psllw => shift::<Psllw>,
        M::Pslld => shift::<Pslld>,
        M::Psllq => shift::<Psllq>,
        M::Psrlw => shift::<Psrlw>,
        M::Psrld => shift::<Psrld>,
        M::Psrlq => shift::<Psrlq>,
        M::Psraw => shift::<Psraw>,
        M::Psrad => shift::<Psrad>,
        mnemonic => match byte_shift(mnemonic) {
            Some((forms, reduce)) => {
                imm = reduce(imm);
                forms.rr
            }
            None => return Lowered::Unknown,
        },
    };
    let mut op = Op::new(run);
    op.imm = u64::from(imm);
    op.dst = number(insn.op0_register());
    op.src = op.dst;
    builder.push(op);
    Lowered::Continues
}
