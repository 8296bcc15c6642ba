//! Computations on MMX registers, by the instructions on XMM registers of the same name: operands go where
//! the wider instruction yields the same result in its low quadword.

use std::marker::PhantomData;

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::Forms;
use crate::exec::sse::packed as wide;
use crate::exec::sse::{Binary, join, low, split};
use crate::op::{Op, next};
use crate::word::Word;
use crate::{Cpu, or_abort};

/// `op mm, mm/m`.
trait Narrow {
    /// The memory operand.
    type Memory: Word;
    fn apply(a: u64, b: u64) -> u64;
}

/// Each element of the result comes from the same place of the operands.
struct Lanes<K>(PhantomData<K>);
/// As `Lanes`, with four bytes of memory: interleaves the low halves.
struct Lower<K>(PhantomData<K>);
/// Interleaves the high halves: `K` does so with the low ones.
struct Upper<K>(PhantomData<K>);
/// The result has the first operand's in the lower half and the second one's in the upper.
struct Joined<K>(PhantomData<K>);
/// PSHUFB: three bits of an index count.
struct Shuffle;

impl<K: Binary> Narrow for Lanes<K> {
    type Memory = u64;
    #[inline(always)]
    fn apply(a: u64, b: u64) -> u64 {
        split(K::apply(low(a), low(b)))[0]
    }
}

impl<K: Binary> Narrow for Lower<K> {
    type Memory = u32;
    #[inline(always)]
    fn apply(a: u64, b: u64) -> u64 {
        split(K::apply(low(a), low(b)))[0]
    }
}

impl<K: Binary> Narrow for Upper<K> {
    type Memory = u64;
    #[inline(always)]
    fn apply(a: u64, b: u64) -> u64 {
        split(K::apply(low(a >> 32), low(b >> 32)))[0]
    }
}

impl<K: Binary> Narrow for Joined<K> {
    type Memory = u64;
    #[inline(always)]
    fn apply(a: u64, b: u64) -> u64 {
        split(K::apply(join(a, b), join(a, b)))[0]
    }
}

impl Narrow for Shuffle {
    type Memory = u64;
    #[inline(always)]
    fn apply(a: u64, b: u64) -> u64 {
        split(wide::Pshufb::apply(low(a), low(b & 0x8787_8787_8787_8787)))[0]
    }
}

fn rr<K: Narrow>(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.check_x87());
    let result = K::apply(cpu.mm(op.dst), cpu.mm(op.src));
    cpu.set_mm(op.dst, result);
    next(cpu, op)
}

fn rm<K: Narrow>(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.check_x87());
    let b = or_abort!(cpu, op, cpu.read::<K::Memory>(cpu.address(op)));
    let result = K::apply(cpu.mm(op.dst), b.zext());
    cpu.set_mm(op.dst, result);
    next(cpu, op)
}

fn shift<K: Binary>(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.check_x87());
    let result = Lanes::<K>::apply(cpu.mm(op.dst), op.imm);
    cpu.set_mm(op.dst, result);
    next(cpu, op)
}

/// `op mm, mm/m64, imm8`.
trait Immediate {
    fn apply(imm: u64, a: u64, b: u64) -> u64;
}

struct ShuffleWords;
struct Align;

impl Immediate for ShuffleWords {
    fn apply(imm: u64, _a: u64, b: u64) -> u64 {
        let word = |n: u32| (b >> (16 * (imm >> (2 * n) & 3)) & 0xffff) << (16 * n);
        word(0) | word(1) | word(2) | word(3)
    }
}

impl Immediate for Align {
    fn apply(imm: u64, a: u64, b: u64) -> u64 {
        let both = u128::from(a) << 64 | u128::from(b);
        both.checked_shr(8 * imm as u32).unwrap_or(0) as u64
    }
}

fn immediate_rr<K: Immediate>(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.check_x87());
    let result = K::apply(op.imm, cpu.mm(op.dst), cpu.mm(op.src));
    cpu.set_mm(op.dst, result);
    next(cpu, op)
}

fn immediate_rm<K: Immediate>(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.check_x87());
    let b = or_abort!(cpu, op, cpu.read::<u64>(cpu.address(op)));
    let result = K::apply(op.imm, cpu.mm(op.dst), b);
    cpu.set_mm(op.dst, result);
    next(cpu, op)
}

macro_rules! table {
    ($lookup:ident; $($shape:ident: $($name:ident)*;)*) => {
        fn $lookup(mnemonic: Mnemonic) -> Option<Forms> {
            Some(match mnemonic {
                $($(Mnemonic::$name => [rr::<$shape<wide::$name>>, rm::<$shape<wide::$name>>],)*)*
                _ => return None,
            })
        }
    };
}

table! {
    regular;
    Lanes: Pand Pandn Por Pxor Paddb Paddw Paddd Paddq Paddsb Paddsw Paddusb Paddusw Psubb Psubw Psubd Psubq
        Psubsb Psubsw Psubusb Psubusw Pmullw Pmulhw Pmulhuw Pmuludq Pmaddwd Pcmpeqb Pcmpeqw Pcmpeqd Pcmpgtb
        Pcmpgtw Pcmpgtd Pavgb Pavgw Pmaxub Pmaxsw Pminub Pminsw Psadbw Psllw Pslld Psllq Psrlw Psrld Psrlq
        Psraw Psrad Pmaddubsw Pmulhrsw Psignb Psignw Psignd Pabsb Pabsw Pabsd;
    Lower: Punpcklbw Punpcklwd Punpckldq;
    Joined: Packsswb Packssdw Packuswb Phaddw Phaddd Phaddsw Phsubw Phsubd Phsubsw;
}

fn shifts(mnemonic: Mnemonic) -> Option<Forms> {
    use Mnemonic as M;
    let run = match mnemonic {
        M::Psllw => shift::<wide::Psllw>,
        M::Pslld => shift::<wide::Pslld>,
        M::Psllq => shift::<wide::Psllq>,
        M::Psrlw => shift::<wide::Psrlw>,
        M::Psrld => shift::<wide::Psrld>,
        M::Psrlq => shift::<wide::Psrlq>,
        M::Psraw => shift::<wide::Psraw>,
        M::Psrad => shift::<wide::Psrad>,
        _ => return None,
    };
    Some([run, run])
}

/// Handlers of a computation.
pub fn forms(insn: &Instruction) -> Option<Forms> {
    use Mnemonic as M;
    if insn.op1_kind() == OpKind::Immediate8 {
        return shifts(insn.mnemonic());
    }
    Some(match insn.mnemonic() {
        M::Punpckhbw => [rr::<Upper<wide::Punpcklbw>>, rm::<Upper<wide::Punpcklbw>>],
        M::Punpckhwd => [rr::<Upper<wide::Punpcklwd>>, rm::<Upper<wide::Punpcklwd>>],
        M::Punpckhdq => [rr::<Upper<wide::Punpckldq>>, rm::<Upper<wide::Punpckldq>>],
        M::Pshufb => [rr::<Shuffle>, rm::<Shuffle>],
        M::Pshufw => [immediate_rr::<ShuffleWords>, immediate_rm::<ShuffleWords>],
        M::Palignr => [immediate_rr::<Align>, immediate_rm::<Align>],
        other => return regular(other),
    })
}
