//! Every instruction form that user code may execute on this CPU model, and the list of those left out with
//! the reason for each.

use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind};

/// What the operand that is a register or memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    Register,
    Memory,
    /// The form has no choice.
    Fixed,
}

/// Prefixes that change what an instruction does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefix {
    None,
    Lock,
    Rep,
    Repne,
}

/// One form: everything that is not random about an instruction.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    pub code: Code,
    pub operand: Operand,
    pub prefix: Prefix,
    /// Repeated to its end, not for one iteration.
    pub whole: bool,
}

impl Form {
    /// What reports call it.
    pub fn name(&self) -> String {
        let prefix = match self.prefix {
            Prefix::None => "",
            Prefix::Lock => "lock ",
            Prefix::Rep => "rep ",
            Prefix::Repne => "repne ",
        };
        let operand = match self.operand {
            Operand::Register => " reg",
            Operand::Memory => " mem",
            Operand::Fixed => "",
        };
        format!("{prefix}{:?}{operand}{}", self.code, if self.whole { " whole" } else { "" })
    }
}

/// The features whose instructions are tested.
pub const FEATURES: [CpuidFeature; 27] = [
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::CMOV,
    CpuidFeature::MOVBE,
    CpuidFeature::CX8,
    CpuidFeature::CMPXCHG16B,
    CpuidFeature::FPU,
    CpuidFeature::FPU287,
    CpuidFeature::FPU387,
    CpuidFeature::FXSR,
    CpuidFeature::MMX,
    CpuidFeature::SSE,
    CpuidFeature::SSE2,
    CpuidFeature::SSE3,
    CpuidFeature::SSSE3,
    CpuidFeature::SSE4_1,
    CpuidFeature::SSE4_2,
    CpuidFeature::POPCNT,
    CpuidFeature::CLFSH,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::PAUSE,
    CpuidFeature::CET_IBT,
    CpuidFeature::MSR,
];

/// Why a form of the features above is not tested here.
pub fn left_out(code: Code) -> Option<&'static str> {
    use Mnemonic as M;
    let op = code.op_code();
    let mnemonic = code.mnemonic();
    let loads_segment = (0..op.op_count()).any(|n| {
        let kind = op.op_kind(n);
        n == 0 && kind == OpCodeOperandKind::seg_reg
    });
    if !op.intel_decoder64() || !op.amd_decoder64() {
        return Some("only one vendor's CPUs decode it in 64-bit mode");
    }
    if op.fwait() {
        return Some("two instructions, FWAIT and the form that does not wait; each is tested");
    }
    if format!("{code:?}").ends_with("_0F0D") {
        return Some("0F 0D with a register: one vendor's CPUs refuse it, the other's do nothing");
    }
    if code == Code::Movsxd_r16_rm16 {
        return Some("reads two bytes of memory on one vendor's CPUs, four on the other's");
    }
    match mnemonic {
        M::Ud0 | M::Ud1 => Some("one vendor's CPUs fetch a ModRM byte first, the other's do not"),
        M::Int | M::Int1 | M::Int3 => Some("goes through the guest's IDT: tests of the system level"),
        M::Iret | M::Iretd | M::Iretq | M::Retf => Some("far control transfer: tests of the system level"),
        M::Call | M::Jmp if code.is_call_far_indirect() || code.is_jmp_far_indirect() => {
            Some("far control transfer: tests of the system level")
        }
        M::Lss | M::Lfs | M::Lgs => Some("loads a segment register: tests of the system level"),
        M::Mov | M::Pop if loads_segment => Some("loads a segment register: tests of the system level"),
        M::Pop if matches!(op.op_kind(0), OpCodeOperandKind::fs | OpCodeOperandKind::gs) => {
            Some("loads a segment register: tests of the system level")
        }
        M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw => Some("the host's kernel may emulate it (UMIP)"),
        M::Lar | M::Lsl | M::Verr | M::Verw => Some("reads the host's descriptor tables"),
        M::Sysexit | M::Sysenter | M::Syscall | M::Sysret => Some("enters the host's kernel"),
        _ => None,
    }
}

/// Whether the form is one of the features that are tested.
fn candidate(code: Code) -> bool {
    let op = code.op_code();
    op.is_instruction()
        && op.mode64()
        && op.encoding() == EncodingKind::Legacy
        && code.cpuid_features().iter().all(|feature| FEATURES.contains(feature))
}

/// All forms, and all codes left out with the reason.
pub fn all() -> (Vec<Form>, Vec<(Code, &'static str)>) {
    let (mut forms, mut out) = (Vec::new(), Vec::new());
    for code in Code::values().filter(|code| candidate(*code)) {
        match left_out(code) {
            Some(reason) => out.push((code, reason)),
            None => forms_of(code, &mut forms),
        }
    }
    (forms, out)
}

fn forms_of(code: Code, forms: &mut Vec<Form>) {
    let op = code.op_code();
    let kinds = (0..op.op_count()).map(|n| op.op_kind(n));
    let operands: &[Operand] = if kinds.into_iter().any(is_choice) {
        &[Operand::Register, Operand::Memory]
    } else {
        &[Operand::Fixed]
    };
    for operand in operands {
        let mut add = |prefix, whole| forms.push(Form { code, operand: *operand, prefix, whole });
        add(Prefix::None, false);
        if op.can_use_lock_prefix() && *operand != Operand::Register {
            add(Prefix::Lock, false);
        }
        let privileged = matches!(code.mnemonic(), Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd)
            || matches!(code.mnemonic(), Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd);
        if is_string(code) && !privileged {
            for prefix in [Prefix::Rep, Prefix::Repne] {
                add(prefix, false);
                add(prefix, true);
            }
        }
    }
}

/// A string instruction, that REP repeats.
pub fn is_string(code: Code) -> bool {
    let op = code.op_code();
    (0..op.op_count())
        .any(|n| matches!(op.op_kind(n), OpCodeOperandKind::seg_rSI | OpCodeOperandKind::es_rDI))
}

/// An instruction that pushes or pops.
pub fn is_stack(code: Code) -> bool {
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    instruction.is_stack_instruction()
}

/// An operand that is a register in one form and memory in another.
pub fn is_choice(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    matches!(
        kind,
        K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem | K::mm_or_mem | K::xmm_or_mem
    )
}
