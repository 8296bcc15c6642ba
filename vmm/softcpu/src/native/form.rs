//! Which instructions are copied, and what each does to the flags: an allow-list. Everything else is
//! interpreted.

use iced_x86::{
    Code, ConditionCode, CpuidFeature, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind, OpKind,
    Register,
};

use super::self_test;
use crate::flags::{AF, CF, OF, PF, SF, STATUS, ZF};

/// How an instruction is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Left to the interpreter.
    Interpret,
    /// Nothing at all.
    Nothing,
    /// The same with other registers and another address.
    Copy,
    Lea,
    Exchange,
    BitScan,
    Divide,
    Push,
    Pop,
    Leave,
    Jump,
    Conditional,
    Call,
    JumpIndirect,
    CallIndirect,
    Return,
    /// A repeated string instruction, before which the block ends.
    Repeat,
}

/// What an instruction leaves in the status flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Producer {
    /// All as they were.
    None,
    /// Operand 0 less operand 1.
    Sub,
    Add,
    Adc,
    Sbb,
    /// Zero less operand 0.
    Neg,
    /// The result, operand 0.
    Logic,
    Test,
    Inc,
    Dec,
    /// By a constant, as in `flags::kind`.
    Shift(u32, u8),
    ShiftCl(u32),
    /// By a constant, as in `flags::overlay`.
    Rotate(u32, u8),
    RotateCl,
    /// SHLD, SHRD.
    Double,
    /// The accumulator's product.
    Multiply,
    /// Operand 0's product.
    MultiplyTo,
    /// POPCNT: ZF by operand 0.
    Count,
    /// BSF, BSR: ZF by operand 1.
    Scan,
    /// CF: a bit.
    Bit,
    /// RAX less operand 0.
    CompareExchange,
    /// All, as the host has them.
    Raw,
}

impl Producer {
    /// Replaces all flags, so that what was before cannot be seen any more.
    pub fn is_full(self) -> bool {
        use Producer as P;
        !matches!(self, P::None | P::Inc | P::Dec | P::ShiftCl(_) | P::Rotate(..) | P::RotateCl | P::Bit)
    }

    /// Replaces some of them.
    pub fn is_partial(self) -> bool {
        self != Producer::None && !self.is_full()
    }

    /// Which flags the host has as they are defined, after it; `before` it had those.
    pub fn valid(self, before: u64, bits: u32) -> u64 {
        use Producer as P;
        match self {
            P::None => before,
            P::Sub | P::Add | P::Adc | P::Sbb | P::Neg | P::CompareExchange | P::Raw | P::Count => STATUS,
            P::Logic | P::Test => STATUS & !AF,
            P::Inc | P::Dec => before & CF | STATUS & !CF,
            P::Shift(_, count) => {
                let carry = if u32::from(count) < bits { CF } else { 0 };
                carry | PF | ZF | SF | if count == 1 { OF } else { 0 }
            }
            P::Rotate(_, count) => {
                let carry = if u32::from(count).is_multiple_of(bits) { 0 } else { CF };
                before & !(CF | OF) | carry | if count == 1 { OF } else { 0 }
            }
            P::Double => PF | ZF | SF | CF,
            P::Multiply | P::MultiplyTo => CF | OF,
            P::Scan => ZF,
            P::Bit => before & ZF | CF,
            P::ShiftCl(_) | P::RotateCl => 0,
        }
    }
}

/// The flags that a condition looks at.
pub fn condition_flags(insn: &Instruction) -> u64 {
    use ConditionCode as C;
    match insn.condition_code() {
        C::None => 0,
        C::o | C::no => OF,
        C::b | C::ae => CF,
        C::e | C::ne => ZF,
        C::be | C::a => CF | ZF,
        C::s | C::ns => SF,
        C::p | C::np => PF,
        C::l | C::ge => SF | OF,
        C::le | C::g => ZF | SF | OF,
    }
}

/// The flags that an instruction which is translated reads.
pub fn reads(insn: &Instruction) -> u64 {
    match insn.mnemonic() {
        Mnemonic::Adc | Mnemonic::Sbb => CF,
        _ => condition_flags(insn),
    }
}

/// Where an operand is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The ModRM byte's reg field.
    Reg,
    /// Its r/m field.
    Rm,
    /// The opcode's low bits.
    Opcode,
    /// Nowhere, or it is an immediate.
    Other,
}

/// Where operand `number` is encoded.
pub fn place(insn: &Instruction, number: u32) -> Place {
    use OpCodeOperandKind as K;
    match insn.op_code().op_kind(number) {
        K::r8_reg | K::r16_reg | K::r32_reg | K::r64_reg | K::xmm_reg => Place::Reg,
        K::r8_opcode | K::r16_opcode | K::r32_opcode | K::r64_opcode => Place::Opcode,
        K::mem
        | K::r8_or_mem
        | K::r16_or_mem
        | K::r32_or_mem
        | K::r64_or_mem
        | K::r16_rm
        | K::r32_rm
        | K::r64_rm
        | K::xmm_rm
        | K::xmm_or_mem => Place::Rm,
        _ => Place::Other,
    }
}

/// An immediate that an instruction may have when it is copied.
fn is_immediate(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
    )
}

/// AH, CH, DH or BH.
pub fn is_high(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// Whether all operands are of the kinds that are copied.
fn operands_are_plain(insn: &Instruction) -> bool {
    (0..insn.op_count()).all(|number| match insn.op_kind(number) {
        OpKind::Register => {
            let register = insn.op_register(number);
            register.is_gpr() || register.is_xmm()
        }
        OpKind::Memory => is_plain_memory(insn) && place(insn, number) == Place::Rm,
        kind => is_immediate(kind),
    }) && high_registers_fit(insn)
}

/// AH and its like cannot be encoded beside a register of the upper eight, and every access takes one.
fn high_registers_fit(insn: &Instruction) -> bool {
    let registers = || {
        (0..insn.op_count())
            .filter(|number| insn.op_kind(*number) == OpKind::Register)
            .map(|number| insn.op_register(number))
    };
    if !registers().any(is_high) {
        return true;
    }
    let memory = (0..insn.op_count()).any(|number| insn.op_kind(number) == OpKind::Memory);
    let needs_rex = |register: Register| {
        let number = register.full_register().number();
        number >= 8 || number == 4 || register.size() == 1 && !is_high(register) && number >= 4
    };
    !memory && !registers().any(needs_rex)
}

/// 64-bit addressing.
fn is_plain_memory(insn: &Instruction) -> bool {
    let wide = |register: Register| register == Register::None || register.is_gpr64();
    (insn.memory_base() == Register::RIP || wide(insn.memory_base()))
        && wide(insn.memory_index())
        && crate::decode::address_bytes(insn) == 8
}

/// What is translated, and how; and what it does to the flags.
pub fn classify(insn: &Instruction, sse: bool) -> (Form, Producer) {
    let (form, producer) = by_mnemonic(insn, sse);
    let plain = match form {
        Form::Interpret | Form::Nothing | Form::Repeat => true,
        Form::Jump | Form::Conditional | Form::Call | Form::Return | Form::Leave => true,
        Form::Lea => is_plain_memory(insn) && insn.op0_register().size() >= 4,
        _ => insn.op_code().encoding() == EncodingKind::Legacy && operands_are_plain(insn),
    };
    let copied = plain && !self_test::is_refused(insn.code());
    if copied { (form, producer) } else { (Form::Interpret, Producer::None) }
}

fn by_mnemonic(insn: &Instruction, sse: bool) -> (Form, Producer) {
    use Mnemonic as M;
    let copy = |producer| (Form::Copy, producer);
    match insn.mnemonic() {
        M::Mov | M::Movzx | M::Movsx | M::Movsxd | M::Cbw | M::Cwde | M::Cdqe | M::Cwd | M::Cdq | M::Cqo => {
            copy(Producer::None)
        }
        M::Add => copy(Producer::Add),
        M::Adc => copy(Producer::Adc),
        M::Sub | M::Cmp => copy(Producer::Sub),
        M::Sbb => copy(Producer::Sbb),
        M::And | M::Or | M::Xor => copy(Producer::Logic),
        M::Test => copy(Producer::Test),
        M::Inc => copy(Producer::Inc),
        M::Dec => copy(Producer::Dec),
        M::Neg => copy(Producer::Neg),
        M::Not => copy(Producer::None),
        M::Bswap if insn.op0_register().size() >= 4 => copy(Producer::None),
        M::Xadd => copy(Producer::Add),
        M::Cmpxchg if insn.op0_kind() == OpKind::Memory => copy(Producer::CompareExchange),
        // With words they would need two prefixes.
        M::Popcnt | M::Crc32 if crate::decode::operand_bytes(insn, 1) == 2 => {
            (Form::Interpret, Producer::None)
        }
        M::Popcnt => copy(Producer::Count),
        M::Bt | M::Bts | M::Btr | M::Btc
            if insn.op0_kind() == OpKind::Register || insn.op1_kind() != OpKind::Register =>
        {
            copy(Producer::Bit)
        }
        M::Mul => copy(Producer::Multiply),
        M::Imul if insn.op_count() == 1 => copy(Producer::Multiply),
        M::Imul => copy(Producer::MultiplyTo),
        M::Crc32 => copy(Producer::None),
        _ if insn.is_string_instruction() && (insn.has_rep_prefix() || insn.has_repne_prefix()) => {
            (Form::Repeat, Producer::None)
        }
        _ if crate::exec::condition::code(insn).is_some() && !insn.is_jcc_short_or_near() => {
            if insn.op0_kind() == OpKind::Register || insn.op0_kind() == OpKind::Memory {
                copy(Producer::None)
            } else {
                (Form::Interpret, Producer::None)
            }
        }
        _ => irregular(insn).or_else(|| transfer(insn)).unwrap_or_else(|| vector(insn, sse)),
    }
}

/// What is not just copied, or copied with care.
fn irregular(insn: &Instruction) -> Option<(Form, Producer)> {
    use Mnemonic as M;
    Some(match insn.mnemonic() {
        M::Lea => (Form::Lea, Producer::None),
        M::Xchg => (Form::Exchange, Producer::None),
        M::Bsf | M::Bsr | M::Tzcnt | M::Lzcnt => (Form::BitScan, Producer::Scan),
        M::Div | M::Idiv if divides_words(insn) => (Form::Divide, Producer::None),
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror => shift(insn),
        M::Shld | M::Shrd if crate::decode::operand_bytes(insn, 0) > 2 => match insn.op2_kind() {
            OpKind::Register => (Form::Interpret, Producer::None),
            _ if masked(insn, 2) == 0 => (Form::Interpret, Producer::None),
            _ => (Form::Copy, Producer::Double),
        },
        M::Nop
        | M::Pause
        | M::Endbr64
        | M::Endbr32
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetch
        | M::Prefetchw
        | M::Prefetchwt1
        | M::Lfence
        | M::Sfence
        | M::Mfence => (Form::Nothing, Producer::None),
        _ => return None,
    })
}

fn divides_words(insn: &Instruction) -> bool {
    crate::decode::operand_bytes(insn, 0) >= 4
}

/// A shift's or rotate's constant count, as far as it counts.
fn masked(insn: &Instruction, operand: u32) -> u8 {
    let wide = crate::decode::operand_bytes(insn, 0) == 8;
    insn.immediate(operand) as u8 & if wide { 63 } else { 31 }
}

fn shift(insn: &Instruction) -> (Form, Producer) {
    use super::flags::{kind, overlay};
    use Mnemonic as M;
    let by_register = insn.op1_kind() == OpKind::Register;
    let count = if by_register { 1 } else { masked(insn, 1) };
    let producer = match insn.mnemonic() {
        // As a move of the register to itself.
        _ if count == 0 => Producer::None,
        M::Rol | M::Ror if by_register => Producer::RotateCl,
        M::Rol => Producer::Rotate(overlay::ROL, count),
        M::Ror => Producer::Rotate(overlay::ROR, count),
        mnemonic => {
            let kind = match mnemonic {
                M::Shr => kind::SHR,
                M::Sar => kind::SAR,
                _ => kind::SHL,
            };
            if by_register { Producer::ShiftCl(kind) } else { Producer::Shift(kind, count) }
        }
    };
    (Form::Copy, producer)
}

/// Branches, and what moves the stack pointer.
fn transfer(insn: &Instruction) -> Option<(Form, Producer)> {
    use Mnemonic as M;
    let near = insn.op_count() > 0 && insn.op0_kind() == OpKind::NearBranch64;
    let form = match insn.mnemonic() {
        M::Push if insn.stack_pointer_increment() == -8 => match insn.op0_kind() {
            OpKind::Register if insn.op0_register().is_segment_register() => Form::Interpret,
            _ => Form::Push,
        },
        M::Pop if insn.stack_pointer_increment() == 8 => match insn.op0_kind() {
            OpKind::Register if insn.op0_register().is_gpr64() => Form::Pop,
            _ => Form::Interpret,
        },
        M::Leave if insn.code() == Code::Leaveq => Form::Leave,
        M::Jmp if near => Form::Jump,
        M::Call if near => Form::Call,
        M::Jmp if matches!(insn.code(), Code::Jmp_rm64) => Form::JumpIndirect,
        M::Call if matches!(insn.code(), Code::Call_rm64) => Form::CallIndirect,
        M::Ret if matches!(insn.code(), Code::Retnq | Code::Retnq_imm16) => Form::Return,
        _ if insn.is_jcc_short_or_near() && near => Form::Conditional,
        _ => return None,
    };
    Some((form, Producer::None))
}

/// SSE instructions without a register of another kind than XMM and general ones.
fn vector(insn: &Instruction, sse: bool) -> (Form, Producer) {
    use CpuidFeature as F;
    use Mnemonic as M;
    let no = (Form::Interpret, Producer::None);
    let known = insn
        .cpuid_features()
        .iter()
        .all(|f| matches!(f, F::SSE | F::SSE2 | F::SSE3 | F::SSSE3 | F::SSE4_1 | F::SSE4_2));
    if !sse || !known || insn.op_count() == 0 || !has_xmm(insn) {
        return no;
    }
    match insn.mnemonic() {
        M::Maskmovdqu | M::Movntdqa | M::Movntdq | M::Movntps | M::Movntpd => no,
        M::Comiss | M::Comisd | M::Ucomiss | M::Ucomisd | M::Ptest => (Form::Copy, Producer::Raw),
        M::Pcmpistri | M::Pcmpistrm | M::Pcmpestri | M::Pcmpestrm => (Form::Copy, Producer::Raw),
        M::Pcmpestri64 | M::Pcmpestrm64 => no,
        _ => (Form::Copy, Producer::None),
    }
}

/// Whether an operand is an XMM register.
pub fn has_xmm(insn: &Instruction) -> bool {
    (0..insn.op_count())
        .any(|number| insn.op_kind(number) == OpKind::Register && insn.op_register(number).is_xmm())
}

/// Whether an access of 16 bytes need not be aligned.
pub fn may_be_misaligned(insn: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        insn.mnemonic(),
        M::Movups
            | M::Movupd
            | M::Movdqu
            | M::Lddqu
            | M::Pcmpistri
            | M::Pcmpistrm
            | M::Pcmpestri
            | M::Pcmpestrm
    )
}
