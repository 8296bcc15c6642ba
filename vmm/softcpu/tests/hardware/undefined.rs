//! What the architecture leaves open (Intel SDM vol. 2, each instruction's "Flags Affected", and vol. 1
//! section 8.1), so that CPUs differ and nothing is compared.

use crate::encode::Encoded;
use crate::state::{End, Mask, Outcome, Vector};
use crate::vector::in_parts;
use iced_x86::{Instruction, Mnemonic as M, Register};

const CF: u64 = 1 << 0;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;
/// MXCSR.
const OUT_OF_RANGE: u32 = (1 << 3) | (1 << 4);
const EXCEPTIONS: u32 = 0x3f;
const INEXACT: u32 = 1 << 5;
const ALL: u64 = CF | PF | AF | ZF | SF | OF;

/// Whether this host's processor is Intel's.
fn is_intel() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
}

/// Whether two ends that differ are both right: what has priority, or is checked at all, is the CPU's choice.
///
/// | instructions | choice |
/// |---|---|
/// | unaligned moves of 16 bytes, PCMPxSTRx | #AC or none (SDM vol. 3, "Alignment Check Exception") |
/// | any with a misaligned operand that also faults | #AC or the other (SDM vol. 3, 6.9) |
/// | x87 stores of a value that raises an unmasked exception | whether the address is looked at |
pub fn is_choice(instruction: &Instruction, vector: &Vector, both: [&Outcome; 2]) -> bool {
    const AC: u64 = 1 << 18;
    const SUMMARY: u16 = 0x80;
    let raised = |outcome: &Outcome| match outcome.end {
        End::Fault { vector, .. } => Some(vector),
        _ => None,
    };
    let faults = both.map(raised);
    let one = |wanted: fn(u8) -> bool| faults.iter().flatten().filter(|fault| wanted(**fault)).count() == 1;
    let stores =
        matches!(instruction.mnemonic(), M::Fst | M::Fstp | M::Fist | M::Fistp | M::Fisttp | M::Fbstp);
    let pending = both.iter().any(|outcome| outcome.end == End::Retired && outcome.user.sw & SUMMARY != 0);
    if stores && pending && one(|fault| matches!(fault, 12..=14 | 17)) {
        return true;
    }
    let misaligned = vector.user.rflags & AC != 0 && one(|fault| fault == 17);
    misaligned && (is_unaligned_move(instruction.mnemonic()) || faults.iter().all(Option::is_some))
}

fn is_unaligned_move(mnemonic: M) -> bool {
    matches!(
        mnemonic,
        M::Movups
            | M::Movupd
            | M::Movdqu
            | M::Lddqu
            | M::Pcmpestri
            | M::Pcmpestri64
            | M::Pcmpestrm
            | M::Pcmpestrm64
            | M::Pcmpistri
            | M::Pcmpistrm
    )
}

/// What is left out of a comparison.
pub fn mask(encoded: &Encoded, vector: &Vector, host: &Outcome) -> Mask {
    let mut mask = open(encoded, vector, host);
    if !is_intel() {
        let (rflags, gpr) = of_repetition(&encoded.instruction, vector, host);
        mask.rflags |= rflags;
        mask.gpr.extend(gpr);
    }
    mask
}

/// What AMD's processors do otherwise in a repeated string instruction that is not at its end: RF is clear,
/// comparisons have set flags; and with 32-bit addresses they zero-extend what they change, and nothing else.
fn of_repetition(
    instruction: &Instruction,
    vector: &Vector,
    host: &Outcome,
) -> (u64, impl Iterator<Item = (usize, u64)> + use<>) {
    const RF: u64 = 1 << 16;
    let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    let unfinished = repeated && host.user.rip == vector.user.rip;
    let short = repeated && instruction.is_string_instruction();
    let registers: &[usize] = if short { &[1, 6, 7] } else { &[] };
    let flags = if unfinished { RF | ALL } else { 0 };
    (flags, registers.iter().map(|number| (*number, 0xffff_ffff_0000_0000)))
}

fn open(encoded: &Encoded, vector: &Vector, host: &Outcome) -> Mask {
    let instruction = &encoded.instruction;
    if host.end != End::Retired {
        return of_fault(instruction, vector, host);
    }
    let (gpr, more) = destination(instruction, vector);
    let memory = memory(instruction, vector);
    Mask {
        rflags: flags(instruction, vector) | more,
        gpr: gpr.into_iter().collect(),
        memory,
        ..Mask::default()
    }
}

/// A fault on an operand that the CPU transfers in parts: which of them raises it is the CPU's choice, so CR2
/// is left out, and parts may have been stored. So may the return address of a CALL to nowhere.
fn of_fault(instruction: &Instruction, vector: &Vector, host: &Outcome) -> Mask {
    if matches!(host.end, End::Fault { vector: 19, .. }) {
        if matches!(instruction.mnemonic(), M::Dpps | M::Dppd) {
            // Products and sums: how many of them are done is open.
            return Mask { mxcsr: EXCEPTIONS, ..Mask::default() };
        }
        // Whether a result too small or too large that is reported also counts as inexact, when other lanes
        // do.
        let reported = host.user.mxcsr & !(host.user.mxcsr >> 7) & OUT_OF_RANGE;
        let open = if reported != 0 { INEXACT } else { 0 };
        return Mask { mxcsr: open, x87: converts_mmx(instruction), ..Mask::default() };
    }
    if converts_mmx(instruction) {
        // Whether the x87 unit is in MMX's state by then is open.
        return Mask { x87: true, ..Mask::default() };
    }
    if matches!(instruction.mnemonic(), M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq) {
        // Both operands may be at an end at once.
        return Mask { cr2: u64::MAX, ..Mask::default() };
    }
    if instruction.mnemonic() == M::Call {
        return Mask { memory: vec![(vector.user.gpr[4].wrapping_sub(8), 8)], ..Mask::default() };
    }
    let size = instruction.memory_size().size() as u64;
    let ten_bytes = matches!(instruction.mnemonic(), M::Fstp | M::Fbstp) && size == 10;
    if !in_parts(instruction.mnemonic()) && !ten_bytes {
        return Mask::default();
    }
    let memory = address(instruction, vector).map(|at| (at, size));
    Mask { cr2: u64::MAX, memory: memory.into_iter().collect(), ..Mask::default() }
}

/// Whether it leaves the x87 unit in MMX's state besides what may fault: conversions, and stores of MMX
/// registers.
fn converts_mmx(instruction: &Instruction) -> bool {
    let conversion = matches!(
        instruction.mnemonic(),
        M::Cvtpd2pi | M::Cvtps2pi | M::Cvttpd2pi | M::Cvttps2pi | M::Cvtpi2pd | M::Cvtpi2ps
    );
    let store = matches!(instruction.mnemonic(), M::Movd | M::Movq | M::Movntq | M::Maskmovq);
    conversion || store && (0..instruction.op_count()).any(|n| instruction.op_register(n).is_mm())
}

/// Undefined flags.
///
/// | instructions | undefined |
/// |---|---|
/// | AND, OR, XOR, TEST | AF |
/// | MUL, IMUL | SF, ZF, AF, PF |
/// | DIV, IDIV | all |
/// | SHL, SHR, SAR | AF; OF where the count is not 1; CF where SHL's or SHR's count is the width or more |
/// | SHLD, SHRD | AF; OF where the count is not 1; all where the count is above the width |
/// | ROL, ROR, RCL, RCR | OF where the count is not 1 |
/// | BT, BTS, BTR, BTC | OF, SF, AF, PF |
/// | BSF, BSR | all but ZF |
fn flags(instruction: &Instruction, vector: &Vector) -> u64 {
    let not_one = |count: u64| if count == 1 { 0 } else { OF };
    match instruction.mnemonic() {
        M::And | M::Or | M::Xor | M::Test => AF,
        M::Mul | M::Imul => SF | ZF | AF | PF,
        M::Div | M::Idiv => ALL,
        M::Bt | M::Bts | M::Btr | M::Btc => OF | SF | AF | PF,
        M::Bsf | M::Bsr => ALL & !ZF,
        M::Shl | M::Sal | M::Shr | M::Sar | M::Shld | M::Shrd | M::Rol | M::Ror | M::Rcl | M::Rcr => {
            let width = width(instruction);
            let count = count(instruction, vector);
            if count == 0 {
                return 0;
            }
            match instruction.mnemonic() {
                M::Rol | M::Ror | M::Rcl | M::Rcr => not_one(count),
                M::Sar => AF | not_one(count),
                M::Shld | M::Shrd if count > width => ALL,
                M::Shld | M::Shrd => AF | not_one(count),
                _ if count >= width => AF | CF | not_one(count),
                _ => AF | not_one(count),
            }
        }
        _ => 0,
    }
}

/// Bits of the first operand.
fn width(instruction: &Instruction) -> u64 {
    let register = instruction.op0_register();
    let bytes = if register == Register::None { instruction.memory_size().size() } else { register.size() };
    bytes as u64 * 8
}

/// The masked count of a shift.
fn count(instruction: &Instruction, vector: &Vector) -> u64 {
    let last = instruction.op_count() - 1;
    let raw = if instruction.op_register(last) == Register::CL {
        vector.user.gpr[1]
    } else {
        instruction.immediate(last)
    };
    raw & if width(instruction) == 64 { 63 } else { 31 }
}

/// A destination that is undefined: SHLD and SHRD of a 16-bit operand by more than 16.
fn destination(instruction: &Instruction, vector: &Vector) -> (Option<(usize, u64)>, u64) {
    let shift = matches!(instruction.mnemonic(), M::Shld | M::Shrd);
    if !shift || count(instruction, vector) <= width(instruction) {
        return (None, 0);
    }
    match instruction.op0_register() {
        Register::None => (None, 0),
        register => (Some((register.number(), 0xffff)), 0),
    }
}

/// Bytes that are undefined, or that the CPU's model decides: the address and opcode of the last x87
/// instruction (vendors differ in when they keep them), MXCSR_MASK.
fn memory(instruction: &Instruction, vector: &Vector) -> Vec<(u64, u64)> {
    let Some(at) = address(instruction, vector) else { return Vec::new() };
    let size = instruction.memory_size().size();
    match instruction.mnemonic() {
        M::Fxsave | M::Fxsave64 => vec![(at + 6, 18), (at + 28, 4)],
        M::Fnstenv | M::Fnsave if size == 14 || size == 94 => vec![(at + 6, 8)],
        M::Fnstenv | M::Fnsave => vec![(at + 12, 16)],
        M::Shld | M::Shrd if count(instruction, vector) > width(instruction) => vec![(at, 2)],
        _ => Vec::new(),
    }
}

/// Linear address of the explicit memory operand.
pub fn address(instruction: &Instruction, vector: &Vector) -> Option<u64> {
    let n = (0..instruction.op_count()).find(|n| instruction.op_kind(*n) == iced_x86::OpKind::Memory)?;
    instruction.virtual_address(n, 0, |register, _, _| match register {
        Register::FS => Some(vector.user.fs_base),
        Register::GS => Some(vector.user.gs_base),
        _ if register.is_segment_register() => Some(0),
        _ if register.is_gpr32() => Some(vector.user.gpr[register.number()] & 0xffff_ffff),
        _ if register == Register::AL => Some(vector.user.gpr[0] & 0xff),
        _ => Some(vector.user.gpr[register.number()]),
    })
}
