//! A program that executes each form that is copied, with fixed operands, and keeps what it leaves.
//!
//! ```text
//!  per form:  load what it reads ─▶ flags ─▶ the form ─▶ SETcc ─▶ push flags, registers, memory it wrote
//! ```
//!
//! Its operands are taken from RBX on: eight general registers, then four XMM registers. An operand in memory
//! is at RBP. Results go to the stack, downwards from RSP.

use std::ops::Range;

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, EncodingKind, Instruction, InstructionInfoFactory, Mnemonic,
    OpAccess, OpCodeOperandKind as Kind, OpKind, Register,
};

use super::form::{Form, Producer, classify, has_xmm, reads};
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
/// A jump to the next page, at the end of each.
const JUMP: usize = 5;

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
        encoder: Encoder::new(64),
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
    encoder: Encoder,
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
                if let Some(insn) = self.instruction(code, *memory, *immediate) {
                    self.sample(&insn, *memory);
                    found = true;
                }
            }
            // CMPXCHG is copied with memory alone.
            if !found
                && choice
                && self.extent == Extent::Brief
                && let Some(insn) = self.instruction(code, true, immediates[0])
            {
                self.sample(&insn, true);
            }
        }
    }

    /// The form with operands, decoded from its bytes, if it is copied.
    fn instruction(&mut self, code: Code, memory: bool, immediate: u8) -> Option<Instruction> {
        let op = code.op_code();
        let mut insn = Instruction::default();
        insn.set_code(code);
        let mut vectors = 0;
        for number in 0..op.op_count() {
            let kind = op.op_kind(number);
            if kind == Kind::mem || memory && is_choice(kind) {
                insn.set_op_kind(number, OpKind::Memory);
                insn.set_memory_base(Register::RBP);
                insn.set_memory_displ_size(1);
            } else if !set_immediate(&mut insn, number, kind, immediate) {
                insn.set_op_kind(number, OpKind::Register);
                insn.set_op_register(number, register(kind, number, &mut vectors));
            }
        }
        if insn.op0_kind() == OpKind::NearBranch64 {
            insn.set_near_branch64(self.start + 5);
        }
        if !is_copied(classify(&insn, true).0) {
            return None;
        }
        self.encoder.encode(&insn, self.start).ok()?;
        let bytes = self.encoder.take_buffer();
        let insn = Decoder::with_ip(64, &bytes, self.start, DecoderOptions::NONE).decode();
        (insn.code() == code && is_copied(classify(&insn, true).0)).then_some(insn)
    }

    fn sample(&mut self, insn: &Instruction, memory: bool) {
        let first = self.out.results;
        let mut code = self.before(insn, memory);
        self.encoder.encode(insn, self.start).expect("it was encoded once");
        code.extend(self.encoder.take_buffer());
        if insn.is_jcc_short() {
            // inc rsi: not if it branches
            code.extend([0x48, 0xff, 0xc6]);
        }
        let results = self.after(insn, memory, &mut code);
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
            code.extend([0x80, 0x7b, FLAGS, 0x55]);
        }
        code
    }

    /// What comes after it; how many bytes of results there are.
    fn after(&mut self, insn: &Instruction, memory: bool, code: &mut Vec<u8>) -> usize {
        let mut results = 0;
        let mut push = |code: &mut Vec<u8>, bytes: &[u8]| {
            code.extend(bytes);
            results += 8;
        };
        if classify(insn, true).1 != Producer::None {
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
        results
    }

    fn has_mxcsr(&self, insn: &Instruction) -> bool {
        self.extent == Extent::Full && has_xmm(insn)
    }

    /// Instructions that cross a page's end are not copied: none does.
    fn place(&mut self, code: &[u8]) {
        let bytes = &mut self.out.bytes;
        let room = PAGE as usize - bytes.len() % PAGE as usize;
        if room < code.len() + 2 + JUMP {
            bytes.push(0xe9);
            bytes.extend(((room - JUMP) as u32).to_le_bytes());
            bytes.resize(bytes.len() + room - JUMP, 0xcc);
        } else if self.out.results - self.group > GROUP {
            self.group = self.out.results;
            bytes.extend([0xeb, 0]);
        }
        bytes.extend(code);
    }
}

/// Whether the host's own instruction makes the result.
fn is_copied(form: Form) -> bool {
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

/// The register of an operand: RSI, RDI; XMM1, XMM2.
fn register(kind: Kind, number: u32, vectors: &mut u32) -> Register {
    use Kind as K;
    if is_vector(kind) {
        *vectors += 1;
        return Register::XMM0 + *vectors;
    }
    let from = |first: Register| first + (6 + number % 2);
    match kind {
        K::al => Register::AL,
        K::cl => Register::CL,
        K::ax => Register::AX,
        K::dx => Register::DX,
        K::eax => Register::EAX,
        K::rax => Register::RAX,
        K::r8_or_mem | K::r8_reg | K::r8_opcode if number.is_multiple_of(2) => Register::SIL,
        K::r8_or_mem | K::r8_reg | K::r8_opcode => Register::DIL,
        K::r16_or_mem | K::r16_reg | K::r16_rm | K::r16_opcode => from(Register::AX),
        K::r32_or_mem | K::r32_reg | K::r32_rm | K::r32_opcode => from(Register::EAX),
        _ => from(Register::RAX),
    }
}

/// Immediates and branch targets; false for all others.
fn set_immediate(insn: &mut Instruction, number: u32, kind: Kind, value: u8) -> bool {
    use Kind as K;
    const WIDE: u64 = 0x8765_4321_fedc_ba98;
    let kind = match kind {
        K::imm8 | K::imm8_const_1 => OpKind::Immediate8,
        K::imm8sex16 => OpKind::Immediate8to16,
        K::imm8sex32 => OpKind::Immediate8to32,
        K::imm8sex64 => OpKind::Immediate8to64,
        K::imm16 => OpKind::Immediate16,
        K::imm32 => OpKind::Immediate32,
        K::imm32sex64 => OpKind::Immediate32to64,
        K::imm64 => OpKind::Immediate64,
        K::br64_1 => OpKind::NearBranch64,
        _ => return false,
    };
    insn.set_op_kind(number, kind);
    match kind {
        OpKind::Immediate8 if insn.op_code().op_kind(number) == K::imm8_const_1 => insn.set_immediate8(1),
        OpKind::Immediate8 => insn.set_immediate8(value),
        OpKind::Immediate8to16 => insn.set_immediate8to16(value.cast_signed().into()),
        OpKind::Immediate8to32 => insn.set_immediate8to32(value.cast_signed().into()),
        OpKind::Immediate8to64 => insn.set_immediate8to64(value.cast_signed().into()),
        OpKind::Immediate16 => insn.set_immediate16(WIDE as u16),
        OpKind::Immediate32 => insn.set_immediate32(WIDE as u32),
        OpKind::Immediate32to64 => insn.set_immediate32to64((WIDE as i32).into()),
        OpKind::Immediate64 => insn.set_immediate64(WIDE),
        _ => {}
    }
    true
}
