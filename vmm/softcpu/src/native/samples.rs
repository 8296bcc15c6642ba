//! A program that executes each form that is copied, with fixed operands, and keeps what it leaves.
//!
//! ```text
//!  per form:  load what it reads ─▶ flags ─▶ the form ─▶ SETcc ─▶ push flags, registers, memory it wrote
//! ```
//!
//! Its operands are taken from RBX on: eight general registers, then four XMM registers. An operand in memory
//! is at RBP. Results go to the stack, downwards from RSP. Each page of it ends with a HLT.

use std::ops::Range;

use iced_x86::{
    Code, Decoder, DecoderOptions, EncodingKind, Instruction, InstructionInfoFactory, MandatoryPrefix,
    Mnemonic, OpAccess, OpCodeInfo, OpCodeOperandKind as Kind, OpCodeTableKind, Register,
};

use super::form::{Form, Place, Producer, classify, has_xmm, reads};
use crate::ram::PAGE;

/// How much of it there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Each form once, its operands in registers if they can be.
    Brief,
    /// Its operands in registers and in memory, with several immediates, and MXCSR's flags.
    Full,
}

/// One form in the program.
#[derive(Debug)]
pub struct Sample {
    pub code: Code,
    #[cfg(test)]
    pub text: String,
    /// Its results, in bytes below the first RSP.
    pub results: Range<usize>,
}

/// The program and what is in it.
pub struct Program {
    pub bytes: Vec<u8>,
    pub samples: Vec<Sample>,
    /// Bytes of results in all.
    pub results: usize,
}

/// Of operands in XMM registers from RBX on, and of the one in memory.
pub const VECTORS: u8 = 0x40;
const IN_MEMORY: u8 = 0x70;
/// MXCSR before each form.
pub const MXCSR: u8 = 0x20;
/// Bytes of one set of operands.
pub const SET: usize = 0x80;
/// A byte among the general registers that the flags before a form come from.
const FLAGS: u8 = 0x28;
/// Results after which a new block begins: one check covers a block's.
const GROUP: usize = 320;
/// B, P, E, S, O: each of the flags but AF, by itself.
const CONDITIONS: [u8; 5] = [2, 10, 4, 8, 0];
/// P, BE, L: of all of them.
const BRIEF_CONDITIONS: [u8; 3] = [10, 6, 12];
/// HLT, and a jump to the next page, at the end of each: what begins with a run's first step is translated up
/// to its end.
const END: usize = 6;

/// Approximations, which hosts compute each as it likes.
fn is_approximate(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::Rcpps | M::Rcpss | M::Rsqrtps | M::Rsqrtss)
}

/// Makes the program for an address that is a page's.
pub fn program(start: u64, extent: Extent) -> Program {
    let mut maker = Maker {
        out: Program { bytes: Vec::new(), samples: Vec::new(), results: 0 },
        start,
        extent,
        factory: InstructionInfoFactory::new(),
        group: 0,
    };
    for code in Code::values().filter(|code| is_candidate(*code)) {
        maker.code(code);
    }
    maker.out.bytes.push(0xf4);
    maker.out
}

fn is_candidate(code: Code) -> bool {
    let op = code.op_code();
    let mut insn = Instruction::default();
    insn.set_code(code);
    op.is_instruction()
        && op.mode64()
        && op.encoding() == EncodingKind::Legacy
        && !is_approximate(code.mnemonic())
        && (0..op.op_count()).all(|number| is_usable(op.op_kind(number)))
}

struct Maker {
    out: Program,
    start: u64,
    extent: Extent,
    factory: InstructionInfoFactory,
    /// Where the results of the present group begin.
    group: usize,
}

impl Maker {
    fn code(&mut self, code: Code) {
        let op = code.op_code();
        let kinds: Vec<Kind> = (0..op.op_count()).map(|number| op.op_kind(number)).collect();
        let choice = kinds.iter().any(|kind| is_choice(*kind));
        let memory = kinds.contains(&Kind::mem);
        let places: &[bool] = match (choice, memory, self.extent) {
            (true, _, Extent::Full) => &[false, true],
            (_, memory, _) => &[memory],
        };
        let immediates: &[u8] = match self.extent {
            Extent::Full if kinds.contains(&Kind::imm8) => &[1, 0x0d, 0x5a],
            _ => &[0x0d],
        };
        for memory in places {
            let mut found = false;
            for immediate in immediates {
                if let Some((insn, bytes)) = self.instruction(code, *memory, *immediate) {
                    self.samples(&insn, &bytes, *memory);
                    found = true;
                }
            }
            // CMPXCHG is copied with memory alone.
            if !found
                && choice
                && self.extent == Extent::Brief
                && let Some((insn, bytes)) = self.instruction(code, true, immediates[0])
            {
                self.samples(&insn, &bytes, true);
            }
        }
    }

    /// The form with operands, decoded from its bytes, if it is copied.
    fn instruction(&self, code: Code, memory: bool, immediate: u8) -> Option<(Instruction, Vec<u8>)> {
        let bytes = encode(code.op_code(), memory, immediate);
        let insn = Decoder::with_ip(64, &bytes, self.start, DecoderOptions::NONE).decode();
        let whole = insn.code() == code && insn.len() == bytes.len();
        (whole && is_copied(classify(&insn, true).0)).then_some((insn, bytes))
    }

    /// With its flags seen, and not. Forms whose flags cannot be kept are not copied where they are seen.
    fn samples(&mut self, insn: &Instruction, bytes: &[u8], memory: bool) {
        let seen: &[bool] = match (classify(insn, true).1, self.extent) {
            (Producer::None, _) => &[false],
            (Producer::Double | Producer::RotateCl, Extent::Brief) => &[false],
            (_, Extent::Brief) => &[true],
            (_, Extent::Full) => &[true, false],
        };
        seen.iter().for_each(|seen| self.sample(insn, bytes, memory, *seen));
    }

    fn sample(&mut self, insn: &Instruction, bytes: &[u8], memory: bool, seen: bool) {
        let first = self.out.results;
        let mut code = self.before(insn, memory);
        code.extend(bytes);
        if insn.is_jcc_short() {
            // inc rsi: not if it branches
            code.extend([0x48, 0xff, 0xc6]);
        }
        if !seen && classify(insn, true).1 != Producer::None {
            // test esi, esi
            code.extend([0x85, 0xf6]);
        }
        let results = self.after(insn, memory, seen, &mut code);
        if results == 0 {
            return;
        }
        self.out.results += results;
        self.place(&code);
        let results = first..first + results;
        self.out.samples.push(Sample {
            code: insn.code(),
            #[cfg(test)]
            text: insn.to_string(),
            results,
        });
    }

    /// General and XMM registers that the form accesses in a way.
    fn registers(&mut self, insn: &Instruction, wanted: fn(OpAccess) -> bool) -> (Vec<u8>, Vec<u8>) {
        let info = self.factory.info(insn);
        let (mut general, mut vectors) = (Vec::new(), Vec::new());
        for used in info.used_registers().iter().filter(|used| wanted(used.access())) {
            let register = used.register().full_register();
            let number = register.number() as u8;
            if register.is_gpr64() && register != Register::RBP && !general.contains(&number) {
                general.push(number);
            } else if used.register().is_xmm() && !vectors.contains(&number) {
                vectors.push(number);
            }
        }
        (general, vectors)
    }

    /// What comes before the form: all that it accesses is loaded.
    fn before(&mut self, insn: &Instruction, memory: bool) -> Vec<u8> {
        let (mut general, vectors) = self.registers(insn, |_| true);
        if insn.is_jcc_short() {
            general.push(6);
        }
        let mut code = Vec::new();
        for number in general {
            code.extend([0x48, 0x8b, 0x43 | number << 3, 8 * number]);
        }
        for number in vectors {
            code.extend([0x0f, 0x10, 0x43 | number << 3, VECTORS + 16 * number]);
        }
        if memory {
            code.extend([0x0f, 0x10, 0x5b, IN_MEMORY, 0x0f, 0x11, 0x5d, 0]);
        }
        match (insn.mnemonic(), crate::decode::operand_bytes(insn, 0)) {
            (Mnemonic::Div, _) => code.extend([0x31, 0xd2]),
            (Mnemonic::Idiv, 8) => code.extend([0x48, 0x99]),
            (Mnemonic::Idiv, _) => code.push(0x99),
            _ => {}
        }
        if self.has_mxcsr(insn) {
            code.extend([0x0f, 0xae, 0x53, MXCSR]);
        }
        if classify(insn, true).1 != Producer::None || reads(insn) != 0 {
            code.extend([0x80, 0x7b, FLAGS, 0xd5]);
        }
        code
    }

    /// What comes after it; how many bytes of results there are.
    fn after(&mut self, insn: &Instruction, memory: bool, seen: bool, code: &mut Vec<u8>) -> usize {
        let mut results = 0;
        let mut push = |code: &mut Vec<u8>, bytes: &[u8]| {
            code.extend(bytes);
            results += 8;
        };
        if seen {
            // Those that the host has as they are defined are taken from it.
            let conditions = match self.extent {
                Extent::Brief => &BRIEF_CONDITIONS[..],
                Extent::Full => &CONDITIONS[..],
            };
            for (number, condition) in (0..).zip(conditions) {
                code.extend([0x41, 0x0f, 0x90 | condition, 0xc3 + number]);
            }
            for number in 0..conditions.len() as u8 {
                push(code, &[0x41, 0x53 + number]);
            }
            push(code, &[0x9c]);
        }
        let (mut general, vectors) = self.registers(insn, |access| {
            !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::None)
        });
        if insn.is_jcc_short() {
            general.push(6);
        }
        for number in general {
            push(code, &[0x50 | number]);
        }
        if memory {
            push(code, &[0xff, 0x75, 0]);
            push(code, &[0xff, 0x75, 8]);
        }
        for number in vectors {
            push(code, &[0x48, 0x8d, 0x64, 0x24, 0xf0]);
            push(code, &[0x0f, 0x11, 0x04 | number << 3, 0x24]);
        }
        if self.has_mxcsr(insn) {
            push(code, &[0x6a, 0, 0x0f, 0xae, 0x1c, 0x24]);
        }
        if results % 16 != 0 {
            // Else a vector's result could cross a page's end, and the rest of its block be interpreted.
            code.push(0x55);
            results += 8;
        }
        results
    }

    fn has_mxcsr(&self, insn: &Instruction) -> bool {
        self.extent == Extent::Full && has_xmm(insn)
    }

    /// Instructions that cross a page's end are not copied: none does.
    fn place(&mut self, code: &[u8]) {
        let bytes = &mut self.out.bytes;
        let room = PAGE as usize - bytes.len() % PAGE as usize;
        if room < code.len() + 2 + END {
            bytes.extend([0xf4, 0xe9]);
            bytes.extend(((room - END) as u32).to_le_bytes());
            bytes.resize(bytes.len() + room - END, 0xcc);
        } else if self.out.results - self.group > GROUP {
            self.group = self.out.results;
            bytes.extend([0xeb, 0]);
        }
        bytes.extend(code);
    }
}

/// Whether the host's own instruction makes the result.
pub fn is_copied(form: Form) -> bool {
    use Form as F;
    matches!(form, F::Copy | F::Lea | F::Exchange | F::BitScan | F::Divide | F::Conditional)
}

fn is_choice(kind: Kind) -> bool {
    use Kind as K;
    matches!(kind, K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem | K::xmm_or_mem)
}

fn is_vector(kind: Kind) -> bool {
    matches!(kind, Kind::xmm_or_mem | Kind::xmm_reg | Kind::xmm_rm)
}

fn is_usable(kind: Kind) -> bool {
    use Kind as K;
    is_choice(kind)
        || is_vector(kind)
        || matches!(kind, K::mem | K::r8_reg | K::r16_reg | K::r32_reg | K::r64_reg)
        || matches!(kind, K::r16_rm | K::r32_rm | K::r64_rm)
        || matches!(kind, K::r8_opcode | K::r16_opcode | K::r32_opcode | K::r64_opcode)
        || matches!(kind, K::al | K::cl | K::ax | K::dx | K::eax | K::rax | K::br64_1)
        || matches!(kind, K::imm8 | K::imm8_const_1 | K::imm16 | K::imm32 | K::imm32sex64 | K::imm64)
        || matches!(kind, K::imm8sex16 | K::imm8sex32 | K::imm8sex64)
}

/// The number of an operand's register: RSI, RDI; XMM1, XMM2.
fn register(kind: Kind, number: u32, vectors: &mut u8) -> u8 {
    if is_vector(kind) {
        *vectors += 1;
        return *vectors;
    }
    6 + (number % 2) as u8
}

/// Immediates and branch targets: how many bytes of a wide one.
fn immediate_bytes(kind: Kind) -> usize {
    use Kind as K;
    match kind {
        K::imm8 | K::imm8sex16 | K::imm8sex32 | K::imm8sex64 | K::br64_1 => 1,
        K::imm16 => 2,
        K::imm32 | K::imm32sex64 => 4,
        K::imm64 => 8,
        _ => 0,
    }
}

/// The bytes of a form (SDM vol. 2, chapter 2). iced's encoder would take longer than all else to begin with.
fn encode(op: &OpCodeInfo, memory: bool, immediate: u8) -> Vec<u8> {
    const WIDE: u64 = 0x8765_4321_fedc_ba98;
    let (mut rex, mut modrm, mut in_opcode) = (0u8, None, 0);
    let mut immediates = Vec::new();
    let mut vectors = 0;
    if op.operand_size() == 64 {
        rex |= 0x48;
    }
    for number in 0..op.op_count() {
        let kind = op.op_kind(number);
        let in_memory = kind == Kind::mem || memory && is_choice(kind);
        let of_bytes = matches!(kind, Kind::r8_or_mem | Kind::r8_reg | Kind::r8_opcode);
        if of_bytes && !in_memory {
            rex |= 0x40;
        }
        match place_of(kind) {
            // [rbp]
            Place::Rm if in_memory => modrm = Some(modrm.unwrap_or(0) | 0x45),
            Place::Rm => modrm = Some(modrm.unwrap_or(0) | 0xc0 | register(kind, number, &mut vectors)),
            Place::Reg => modrm = Some(modrm.unwrap_or(0) | register(kind, number, &mut vectors) << 3),
            Place::Opcode => in_opcode = register(kind, number, &mut vectors),
            Place::Other => match immediate_bytes(kind) {
                0 => {}
                // Over INC RSI.
                1 if kind == Kind::br64_1 => immediates.push(3),
                1 => immediates.push(immediate),
                count => immediates.extend(&WIDE.to_le_bytes()[..count]),
            },
        }
    }
    if let Ok(digit) = u8::try_from(op.group_index()) {
        modrm = modrm.map(|modrm| modrm | digit << 3);
    }
    let mut bytes = Vec::with_capacity(15);
    bytes.extend((op.operand_size() == 16).then_some(0x66));
    bytes.extend(match op.mandatory_prefix() {
        MandatoryPrefix::P66 => Some(0x66),
        MandatoryPrefix::PF3 => Some(0xf3),
        MandatoryPrefix::PF2 => Some(0xf2),
        _ => None,
    });
    bytes.extend((rex != 0).then_some(rex));
    bytes.extend(match op.table() {
        OpCodeTableKind::T0F => &[0x0f][..],
        OpCodeTableKind::T0F38 => &[0x0f, 0x38],
        OpCodeTableKind::T0F3A => &[0x0f, 0x3a],
        _ => &[],
    });
    let opcode = op.op_code().to_be_bytes();
    bytes.extend(&opcode[4 - op.op_code_len() as usize..]);
    if let Some(last) = bytes.last_mut() {
        *last |= in_opcode;
    }
    if let Some(modrm) = modrm {
        bytes.push(modrm);
        bytes.extend((modrm & 0xc0 == 0x40).then_some(0));
    }
    bytes.extend(immediates);
    bytes
}

fn place_of(kind: Kind) -> Place {
    use Kind as K;
    match kind {
        K::mem => Place::Rm,
        _ if is_choice(kind) => Place::Rm,
        K::r16_rm | K::r32_rm | K::r64_rm | K::xmm_rm => Place::Rm,
        K::r8_reg | K::r16_reg | K::r32_reg | K::r64_reg | K::xmm_reg => Place::Reg,
        K::r8_opcode | K::r16_opcode | K::r32_opcode | K::r64_opcode => Place::Opcode,
        _ => Place::Other,
    }
}
