//! Comparisons that set RFLAGS (COMISS, COMISD, UCOMISS, UCOMISD, PTEST) and the blends by XMM0.

use std::arch::asm;

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{Aligned, Bits32, Bits64, Forms, Operand, Xmm, lower_forms};
use crate::decode::{Builder, Lowered};
use crate::exec::sse_control::{self, unless_traps};
use crate::flags::{self, Lazy};
use crate::op::{Op, next};
use crate::{Cpu, Fault, or_abort};

/// Sets ZF, PF and CF; clears OF, SF and AF.
trait Compare {
    const FLOAT: bool;
    type Memory: Operand;
    /// The low byte of RFLAGS in the second byte.
    fn apply(a: Xmm, b: Xmm) -> u64;
}

macro_rules! compare {
    ($($name:ident $text:literal $float:literal $memory:ident;)*) => {
        $(
            struct $name;

            impl Compare for $name {
                const FLOAT: bool = $float;
                type Memory = $memory;
                #[inline(always)]
                fn apply(a: Xmm, b: Xmm) -> u64 {
                    let status: u64;
                    // SAFETY: the instructions touch nothing but their operands, RAX, the status flags, and
                    // the flags of MXCSR, whose exceptions are masked.
                    unsafe {
                        asm!(
                            concat!($text, " {}, {}"),
                            "lahf",
                            in(xmm_reg) a,
                            in(xmm_reg) b,
                            out("rax") status,
                            options(nomem, nostack)
                        )
                    };
                    status
                }
            }
        )*

        fn forms(mnemonic: Mnemonic) -> Option<Forms> {
            Some(match mnemonic {
                $(Mnemonic::$name => {
                    Forms { rr: compare_rr::<$name, false>, rm: compare_rm::<$name, false> }
                })*
                _ => return None,
            })
        }
    };
}

compare! {
    Comiss "comiss" true Bits32;
    Comisd "comisd" true Bits64;
    Ucomiss "ucomiss" true Bits32;
    Ucomisd "ucomisd" true Bits64;
    Ptest "ptest" false Aligned;
}

#[inline(always)]
fn compare<K: Compare, const TRAPS: bool>(cpu: &mut Cpu, op: &Op, b: Xmm) -> Result<(), Fault> {
    let a = cpu.xmm(op.dst);
    let status = sse_control::float::<u64, TRAPS>(cpu, move || K::apply(a, b))?;
    cpu.flags = Lazy::from_rflags(status >> 8 & (flags::ZF | flags::PF | flags::CF));
    Ok(())
}

#[inline(never)]
fn compare_rr<K: Compare, const TRAPS: bool>(cpu: &mut Cpu, op: &Op) {
    if K::FLOAT {
        unless_traps!(cpu, op, TRAPS, compare_rr, K);
    }
    let b = cpu.xmm(op.src);
    or_abort!(cpu, op, compare::<K, TRAPS>(cpu, op, b));
    next(cpu, op)
}

#[inline(never)]
fn compare_rm<K: Compare, const TRAPS: bool>(cpu: &mut Cpu, op: &Op) {
    if K::FLOAT {
        unless_traps!(cpu, op, TRAPS, compare_rm, K);
    }
    let b = or_abort!(cpu, op, K::Memory::load(cpu, cpu.address(op)));
    or_abort!(cpu, op, compare::<K, TRAPS>(cpu, op, b));
    next(cpu, op)
}

macro_rules! blend {
    ($($name:ident $rr:ident $rm:ident $text:literal;)*) => {
        $(
            #[inline(always)]
            fn $name(cpu: &mut Cpu, op: &Op, b: Xmm) {
                let mut a = cpu.xmm(op.dst);
                // SAFETY: the instruction touches nothing but its operands.
                unsafe {
                    asm!(
                        concat!($text, " {}, {}"),
                        inout(xmm_reg) a,
                        in(xmm_reg) b,
                        in("xmm0") cpu.xmm(0),
                        options(pure, nomem, nostack, preserves_flags)
                    )
                };
                cpu.set_xmm(op.dst, a);
            }

            fn $rr(cpu: &mut Cpu, op: &Op) {
                let b = cpu.xmm(op.src);
                $name(cpu, op, b);
                next(cpu, op)
            }

            fn $rm(cpu: &mut Cpu, op: &Op) {
                let b = or_abort!(cpu, op, Aligned::load(cpu, cpu.address(op)));
                $name(cpu, op, b);
                next(cpu, op)
            }
        )*
    };
}

blend! {
    blendvps blendvps_rr blendvps_rm "blendvps";
    blendvpd blendvpd_rr blendvpd_rm "blendvpd";
    pblendvb pblendvb_rr pblendvb_rm "pblendvb";
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let forms = match insn.mnemonic() {
        Mnemonic::Blendvps => Some(Forms { rr: blendvps_rr, rm: blendvps_rm }),
        Mnemonic::Blendvpd => Some(Forms { rr: blendvpd_rr, rm: blendvpd_rm }),
        Mnemonic::Pblendvb => Some(Forms { rr: pblendvb_rr, rm: pblendvb_rm }),
        other => forms(other),
    };
    match forms {
        Some(forms) if insn.op0_kind() == OpKind::Register => lower_forms(builder, insn, forms, 0),
        _ => Lowered::Unknown,
    }
}
