//! String compares: PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM (SDM vol. 2, 4.1).

use std::arch::asm;

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::shuffle::below;
use super::{Loose, Operand, Xmm, number};
use crate::decode::{Builder, Lowered};
use crate::flags::{self, Lazy};
use crate::op::{Handler, Op, next};
use crate::{Cpu, or_abort};

/// RAX and RDX: the lengths of PCMPESTRx.
type Lengths = (u32, u32);

trait Compare {
    /// Executes the variant `imm` and sets what it sets.
    fn apply(cpu: &mut Cpu, imm: u8, a: Xmm, b: Xmm, lengths: Lengths);
}

/// A length beyond ±16 counts as 16, so 64 bits of it are no more than 32.
fn saturated(length: u64) -> u32 {
    (length as i64).clamp(-17, 17) as u32
}

fn set_flags(cpu: &mut Cpu, status: u64) {
    let low = status >> 8 & (flags::CF | flags::ZF | flags::SF);
    cpu.flags = Lazy::from_rflags(low | if status & 1 != 0 { flags::OF } else { 0 });
}

macro_rules! index {
    (
        $text:literal $imm:ident $a:ident $b:ident $lengths:ident $status:ident $result:ident;
        $($n:literal)*
    ) => {
        match $imm {
            // SAFETY: the instructions touch nothing but their operands, RAX, RCX and the status flags.
            $($n => unsafe {
                asm!(
                    concat!($text, " {}, {}, ", $n),
                    "lahf",
                    "seto al",
                    in(xmm_reg) $a,
                    in(xmm_reg) $b,
                    inout("rax") u64::from($lengths.0) => $status,
                    in("rdx") u64::from($lengths.1),
                    out("rcx") $result,
                    options(pure, nomem, nostack)
                )
            },)*
            _ => unreachable!("reduced"),
        }
    };
}

macro_rules! mask {
    (
        $text:literal $imm:ident $a:ident $b:ident $lengths:ident $status:ident $result:ident;
        $($n:literal)*
    ) => {
        match $imm {
            // SAFETY: the instructions touch nothing but their operands, RAX, XMM0 and the status flags.
            $($n => unsafe {
                asm!(
                    concat!($text, " {}, {}, ", $n),
                    "lahf",
                    "seto al",
                    in(xmm_reg) $a,
                    in(xmm_reg) $b,
                    inout("rax") u64::from($lengths.0) => $status,
                    in("rdx") u64::from($lengths.1),
                    out("xmm0") $result,
                    options(pure, nomem, nostack)
                )
            },)*
            _ => unreachable!("reduced"),
        }
    };
}

macro_rules! compare {
    ($($name:ident $text:literal $kind:ident $result:ty, $set:expr;)*) => {$(
        struct $name;

        impl Compare for $name {
            #[inline(never)]
            fn apply(cpu: &mut Cpu, imm: u8, a: Xmm, b: Xmm, lengths: Lengths) {
                let status: u64;
                let result: $result;
                below!(128, $kind!($text imm a b lengths status result));
                set_flags(cpu, status);
                let set: fn(&mut Cpu, $result) = $set;
                set(cpu, result);
            }
        }
    )*};
}

compare! {
    Explicit "pcmpestri" index u64, |cpu, result| cpu.regs[1] = result;
    Implicit "pcmpistri" index u64, |cpu, result| cpu.regs[1] = result;
    ExplicitMask "pcmpestrm" mask Xmm, |cpu, result| cpu.set_xmm(0, result);
    ImplicitMask "pcmpistrm" mask Xmm, |cpu, result| cpu.set_xmm(0, result);
}

/// `WIDE`: the lengths are all of RAX and RDX.
#[inline(always)]
fn execute<K: Compare, const WIDE: bool>(cpu: &mut Cpu, op: &Op, b: Xmm) {
    let (rax, rdx) = (cpu.regs[0], cpu.regs[2]);
    let lengths = if WIDE { (saturated(rax), saturated(rdx)) } else { (rax as u32, rdx as u32) };
    let a = cpu.xmm(op.dst);
    K::apply(cpu, op.imm as u8, a, b, lengths);
}

fn rr<K: Compare, const WIDE: bool>(cpu: &mut Cpu, op: &Op) {
    let b = cpu.xmm(op.src);
    execute::<K, WIDE>(cpu, op, b);
    next(cpu, op)
}

fn rm<K: Compare, const WIDE: bool>(cpu: &mut Cpu, op: &Op) {
    let b = or_abort!(cpu, op, Loose::load(cpu, cpu.address(op)));
    execute::<K, WIDE>(cpu, op, b);
    next(cpu, op)
}

fn handlers<K: Compare, const WIDE: bool>() -> [Handler; 2] {
    [rr::<K, WIDE>, rm::<K, WIDE>]
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    use Mnemonic as M;
    let [register, memory] = match insn.mnemonic() {
        M::Pcmpestri => handlers::<Explicit, false>(),
        M::Pcmpestri64 => handlers::<Explicit, true>(),
        M::Pcmpestrm => handlers::<ExplicitMask, false>(),
        M::Pcmpestrm64 => handlers::<ExplicitMask, true>(),
        M::Pcmpistri => handlers::<Implicit, false>(),
        M::Pcmpistrm => handlers::<ImplicitMask, false>(),
        _ => return Lowered::Unknown,
    };
    let mut op = Op::new(register);
    // Bit 7 has no meaning.
    op.imm = u64::from(insn.immediate8() & 0x7f);
    op.dst = number(insn.op0_register());
    if insn.op1_kind() == OpKind::Memory {
        op.run = memory;
        builder.memory(&mut op, insn);
    } else {
        op.src = number(insn.op1_register());
    }
    builder.push(op);
    Lowered::Continues
}
