//! System instructions (SDM vol. 3, 2.8): control and debug registers, MSRs, CPUID, ports, interrupts, time.

mod control;
mod cpuid;
mod fast_call;
mod interrupt;
mod io;
mod msr;

use iced_x86::Instruction;

use crate::decode::{Builder, Lowered};

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    for module in [control::lower, interrupt::lower, fast_call::lower, io::lower, msr::lower, cpuid::lower] {
        let lowered = module(builder, insn);
        if lowered != Lowered::Unknown {
            return lowered;
        }
    }
    Lowered::Unknown
}
