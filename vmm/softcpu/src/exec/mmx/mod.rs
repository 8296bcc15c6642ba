//! MMX, and its instructions in SSE to SSSE3. Its registers are the mantissas of the x87 registers: MMn is
//! the n-th physical one, whatever TOP is. Every instruction but EMMS makes all of them valid and TOP zero,
//! and sets the exponent of what it writes to ones (SDM vol. 1, 9.5; vol. 3, 12.2).
//!
//! ```text
//!  79  exponent, sign  64 63        MMn        0
//! ┌──────────────────────┬──────────────────────┐
//! │        0xffff        │                      │  st[(n - TOP) & 7]
//! └──────────────────────┴──────────────────────┘
//! ```

mod convert;
mod moves;
mod packed;

use iced_x86::{CpuidFeature, Instruction, Mnemonic, OpKind, Register};

use super::sse::{has, switched_off};
use crate::cpu::mode;
use crate::decode::{Builder, Lowered};
use crate::op::{Handler, Op, next};
use crate::{Cpu, or_abort};

const TOP: u16 = 7 << 11;

impl Cpu {
    /// Reads MMn.
    fn mm(&self, number: u8) -> u64 {
        let top = (self.fpu.sw >> 11) as u8;
        let register = &self.fpu.st[usize::from(number.wrapping_sub(top) & 7)];
        u64::from_le_bytes(std::array::from_fn(|n| register[n]))
    }

    /// From x87 to MMX: TOP becomes zero, every register valid.
    fn enter_mmx(&mut self) {
        let top = usize::from(self.fpu.sw >> 11 & 7);
        self.fpu.st.rotate_right(top);
        self.fpu.sw &= !TOP;
        self.fpu.tag = 0xff;
    }

    /// Writes MMn, in MMX state afterwards.
    fn set_mm(&mut self, number: u8, value: u64) {
        self.enter_mmx();
        let register = &mut self.fpu.st[usize::from(number & 7)];
        *register = [0xff; 10];
        register[..8].copy_from_slice(&value.to_le_bytes());
    }
}

fn emms(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.check_x87());
    cpu.enter_mmx();
    cpu.fpu.tag = 0;
    next(cpu, op)
}

/// Handlers with a register and with a memory operand as the source.
type Forms = [Handler; 2];

/// Number of an MMX register.
fn number(register: Register) -> u8 {
    register.number() as u8
}

/// Appends an op of the form `op mm, mm/m`.
fn lower_forms(builder: &mut Builder, insn: &Instruction, [rr, rm]: Forms) -> Lowered {
    let mut op = Op::new(rr);
    op.dst = number(insn.op0_register());
    match insn.op1_kind() {
        OpKind::Memory => {
            op.run = rm;
            builder.memory(&mut op, insn);
        }
        OpKind::Register => op.src = number(insn.op1_register()),
        _ => {}
    }
    if insn.op_kind(insn.op_count() - 1) == OpKind::Immediate8 {
        op.imm = u64::from(insn.immediate8());
    }
    builder.push(op);
    Lowered::Continues
}

/// Whether MMX or one of SSE to SSSE3 has it: not 3DNow!.
fn is_mmx(insn: &Instruction) -> bool {
    use CpuidFeature as F;
    let sets = [F::MMX, F::SSE, F::SSE2, F::SSSE3];
    insn.cpuid_features().iter().any(|feature| sets.contains(feature))
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let mnemonic = insn.mnemonic();
    if mnemonic != Mnemonic::Emms && !(has(insn, Register::is_mm) && is_mmx(insn)) {
        return convert::lower_from_memory(builder, insn);
    }
    let with_sse = has(insn, Register::is_xmm) || convert::forms(mnemonic).is_some();
    let undefined_in = if with_sse { mode::NO_SSE } else { mode::EMULATION };
    if let Some(ended) = switched_off(builder, undefined_in) {
        return ended;
    }
    if mnemonic == Mnemonic::Emms {
        builder.push(Op::new(emms));
        return Lowered::Continues;
    }
    if let Some(forms) = packed::forms(insn).or_else(|| convert::forms(mnemonic)) {
        return lower_forms(builder, insn, forms);
    }
    moves::lower(builder, insn)
}
