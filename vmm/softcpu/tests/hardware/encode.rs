//! Makes an instruction of a form with random operands: registers, addressing, immediates, harmless prefixes.

use crate::forms::{Form, Operand, Prefix, is_string};
use crate::state::{CODE, CODE_BYTES, PAGE};
use crate::values::Random;
use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, Instruction, Mnemonic, OpCodeOperandKind, OpKind, Register,
};

/// How an explicit memory operand is addressed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shape {
    /// Numbers of the registers.
    pub base: Option<usize>,
    pub index: Option<usize>,
    pub scale: u32,
    pub displacement: i64,
    /// The displacement is the address (absolute or relative to RIP).
    pub fixed: bool,
}

/// An encoded instruction.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// As decoded again from the bytes.
    pub instruction: Instruction,
    pub bytes: Vec<u8>,
    /// Where it is.
    pub at: u64,
    pub shape: Option<Shape>,
    /// Address size 32.
    pub short: bool,
}

const GPR8: [Register; 20] = [
    Register::AL,
    Register::CL,
    Register::DL,
    Register::BL,
    Register::AH,
    Register::CH,
    Register::DH,
    Register::BH,
    Register::SPL,
    Register::BPL,
    Register::SIL,
    Register::DIL,
    Register::R8L,
    Register::R9L,
    Register::R10L,
    Register::R11L,
    Register::R12L,
    Register::R13L,
    Register::R14L,
    Register::R15L,
];

const SEGMENTS: [Register; 6] =
    [Register::ES, Register::CS, Register::SS, Register::DS, Register::FS, Register::GS];

/// A random instruction of `form`, encoded at a random place.
pub fn encode(form: &Form, random: &mut Random, bases: bool) -> Encoded {
    for _ in 0..1000 {
        if let Some(encoded) = attempt(form, random, bases) {
            return encoded;
        }
    }
    panic!("no encoding found for {}", form.name());
}

fn attempt(form: &Form, random: &mut Random, bases: bool) -> Option<Encoded> {
    let op = form.code.op_code();
    let mut instruction = Instruction::default();
    instruction.set_code(form.code);
    let at = match random.below(64) {
        // Across two pages; to the end of the second, behind which there is none.
        0..8 => CODE + PAGE - 1 - random.below(14),
        8 => CODE + CODE_BYTES as u64 - 1 - random.below(14),
        _ => CODE + 0x100 + random.below(0xd00),
    };
    let short = random.one_in(8);
    let mut shape = None;
    for n in 0..op.op_count() {
        let kind = op.op_kind(n);
        if is_memory(form, kind) {
            let chosen = memory(&mut instruction, random, short, form);
            instruction.set_op_kind(n, OpKind::Memory);
            shape = Some(chosen);
        } else if !string_operand(&mut instruction, n, kind, short)
            && !immediate(&mut instruction, n, kind, random, at)
        {
            instruction.set_op_kind(n, OpKind::Register);
            instruction.set_op_register(n, register(kind, random)?);
        }
    }
    match form.prefix {
        Prefix::None => {}
        Prefix::Lock => instruction.set_has_lock_prefix(true),
        Prefix::Rep => instruction.set_has_rep_prefix(true),
        Prefix::Repne => instruction.set_has_repne_prefix(true),
    }
    if (shape.is_some() || is_string(form.code) || form.code.mnemonic() == Mnemonic::Xlatb)
        && random.one_in(6)
    {
        let segment = random.pick(&SEGMENTS);
        if bases || !matches!(segment, Register::FS | Register::GS) {
            instruction.set_segment_prefix(segment);
        }
    }
    let mut encoder = Encoder::new(64);
    encoder.encode(&instruction, at).ok()?;
    let mut bytes = encoder.take_buffer();
    let decoded = Decoder::with_ip(64, &bytes, at, DecoderOptions::NONE).decode();
    // Another code for the same bytes is another form, unless only the assembler tells them apart.
    if decoded.len() != bytes.len() || (decoded.code() != form.code && !alias(form.code, decoded.code())) {
        return None;
    }
    let relative = shape.is_some_and(|shape| shape.fixed) && decoded.is_ip_rel_memory_operand();
    if relative && decoded.ip_rel_memory_address() != instruction.memory_displacement64() {
        return None;
    }
    // An offset in bits that is also the address would lead anywhere.
    if let Some((register, _)) = bit_offset_register(&decoded)
        && shape.is_some_and(|shape| shape.base == Some(register) || shape.index == Some(register))
    {
        return None;
    }
    shuffle_prefixes(&mut bytes, random);
    if form.prefix == Prefix::None && !decoded.is_ip_rel_memory_operand() && random.one_in(24) {
        // LOCK with a control register: one vendor's CPUs refuse it, the other's take CR0 for CR8 then.
        let may_lock = !matches!(form.code, Code::Mov_cr_r64 | Code::Mov_r64_cr);
        more_prefixes(&mut bytes, may_lock, random);
    }
    if random.one_in(6) {
        ignored_prefix(&mut bytes, at, random);
    }
    Some(Encoded { instruction: decoded, bytes, at, shape, short })
}

/// Whether `decoded` is what the decoder calls the same bytes when it is not asked for `code`.
fn alias(code: Code, decoded: Code) -> bool {
    let name = format!("{code:?}");
    name.starts_with("Reservednop") || code.mnemonic() == decoded.mnemonic()
}

/// How many legacy prefixes there are: REX is none.
fn prefixes(bytes: &[u8]) -> usize {
    let legacy = |byte: &&u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
    bytes.iter().take_while(legacy).count()
}

/// Legacy prefixes have no order.
fn shuffle_prefixes(bytes: &mut [u8], random: &mut Random) {
    for n in (1..prefixes(bytes)).rev() {
        bytes.swap(n, random.below(n as u64 + 1) as usize);
    }
}

/// Prefixes in front: segments that 64-bit mode ignores, up to the longest instruction and one byte beyond
/// (#GP); or LOCK, which most forms refuse (#UD).
fn more_prefixes(bytes: &mut Vec<u8>, may_lock: bool, random: &mut Random) {
    let taken = |byte: &u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0xf0);
    if bytes[..prefixes(bytes)].iter().any(taken) {
        return;
    }
    let count = match random.below(4) {
        0 => 16 - bytes.len(),
        1 => 15 - bytes.len(),
        _ => 1,
    };
    for _ in 0..count {
        bytes.insert(0, random.pick(&[0x26, 0x2e, 0x36, 0x3e]));
    }
    if bytes.len() < 15 && random.one_in(4) && may_lock {
        bytes.insert(0, 0xf0);
    }
}

/// One more prefix, at any place among the others, that changes nothing: one that is there already, a REX
/// that a legacy prefix follows, an operand or address size or a repetition that the instruction does not
/// have.
fn ignored_prefix(bytes: &mut Vec<u8>, at: u64, random: &mut Random) {
    let there = prefixes(bytes);
    let prefix = match random.below(4) {
        0 if there > 0 => bytes[random.below(there as u64) as usize],
        1 if there > 0 => 0x40 | random.below(16) as u8,
        _ => random.pick(&[0x66, 0x67, 0x67, 0xf2, 0xf3]),
    };
    let rex = prefix & 0xf0 == 0x40;
    let place = random.below(if rex { there } else { there + 1 } as u64) as usize;
    let mut longer = bytes.clone();
    longer.insert(place, prefix);
    let [before, after] =
        [&*bytes, &longer].map(|bytes| Decoder::with_ip(64, bytes, at, DecoderOptions::NONE).decode());
    if longer.len() <= 15 && is_ignored(&before, &after) {
        *bytes = longer;
    }
}

/// Whether both do the same, but for their lengths.
fn is_ignored(before: &Instruction, after: &Instruction) -> bool {
    let branch = before.op0_kind() == OpKind::NearBranch64;
    let repeats = |insn: &Instruction| (insn.has_rep_prefix(), insn.has_repne_prefix());
    if branch || before.is_ip_rel_memory_operand() {
        // Operand sizes of branches are each vendor's; what is relative moves with the length.
        return false;
    }
    let string = before.is_string_instruction();
    let operands = |insn: &Instruction| {
        let operand = |n| (insn.op_kind(n), insn.op_register(n));
        let memory = (insn.memory_base(), insn.memory_index(), insn.memory_displacement64());
        let immediate = |n| insn.try_immediate(n).ok();
        let all: Vec<_> = (0..insn.op_count()).map(|n| (operand(n), immediate(n))).collect();
        (insn.code(), all, memory, insn.memory_segment())
    };
    operands(before) == operands(after) && (!string || repeats(before) == repeats(after))
}

fn is_memory(form: &Form, kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    match kind {
        K::mem | K::mem_offs => true,
        _ => crate::forms::is_choice(kind) && form.operand == Operand::Memory,
    }
}

/// Address register numbers that have encodings of their own, among all others.
fn address_register(random: &mut Random) -> usize {
    if random.one_in(2) { random.pick(&[4, 5, 12, 13]) } else { random.below(16) as usize }
}

fn gpr(number: usize, short: bool) -> Register {
    let first = if short { Register::EAX } else { Register::RAX };
    first + number as u32
}

fn memory(instruction: &mut Instruction, random: &mut Random, short: bool, form: &Form) -> Shape {
    let mut shape = Shape { scale: 1, ..Shape::default() };
    let offset = form.code.op_code().op_kind(0) == OpCodeOperandKind::mem_offs
        || form.code.op_code().op_count() > 1
            && form.code.op_code().op_kind(1) == OpCodeOperandKind::mem_offs;
    let which = random.below(8);
    if offset || which == 0 {
        // The only ones whose address is part of the instruction.
        shape.fixed = true;
        let target = crate::vector::target(random, 8, true);
        let target = if short || !offset { target & 0x7fff_ffff } else { target };
        instruction.set_memory_displacement64(target);
        let relative = !offset && random.one_in(2);
        if relative {
            instruction.set_memory_base(if short { Register::EIP } else { Register::RIP });
        }
        instruction.set_memory_displ_size(if short { 4 } else { 8 });
        shape.displacement = target as i64;
        return shape;
    }
    if which != 1 {
        let base = address_register(random);
        shape.base = Some(base);
        instruction.set_memory_base(gpr(base, short));
    }
    let stack = crate::forms::is_stack(form.code);
    // Where RSP is the base, it must stay near the stack.
    if which < 4 && !(stack && shape.base == Some(4)) {
        let mut index = address_register(random);
        while index == 4 || shape.base == Some(index) {
            index = random.below(16) as usize;
        }
        shape.index = Some(index);
        shape.scale = 1 << random.below(4);
        instruction.set_memory_index(gpr(index, short));
        instruction.set_memory_index_scale(shape.scale);
    }
    let (size, displacement) = match random.below(4) {
        _ if shape.base.is_none() => (4, i64::from(random.bits() as i32)),
        0 if shape.base != Some(5) && shape.base != Some(13) => (0, 0),
        1 if !stack => (if short { 4 } else { 8 }, i64::from(random.integer() as i32)),
        _ => (1, i64::from(random.integer() as i8)),
    };
    shape.displacement = displacement;
    instruction.set_memory_displ_size(if shape.base.is_none() && !short { 8 } else { size });
    instruction.set_memory_displacement64(displacement as u64);
    shape
}

/// Operands of string instructions and XLAT; false for all others.
fn string_operand(instruction: &mut Instruction, n: u32, kind: OpCodeOperandKind, short: bool) -> bool {
    use OpCodeOperandKind as K;
    let kind = match (kind, short) {
        (K::seg_rSI, false) => OpKind::MemorySegRSI,
        (K::seg_rSI, true) => OpKind::MemorySegESI,
        (K::es_rDI, false) => OpKind::MemoryESRDI,
        (K::es_rDI, true) => OpKind::MemoryESEDI,
        (K::seg_rDI, false) => OpKind::MemorySegRDI,
        (K::seg_rDI, true) => OpKind::MemorySegEDI,
        (K::seg_rBX_al, _) => {
            instruction.set_memory_base(if short { Register::EBX } else { Register::RBX });
            instruction.set_memory_index(Register::AL);
            OpKind::Memory
        }
        _ => return false,
    };
    instruction.set_op_kind(n, kind);
    true
}

/// Immediates and branch targets; false for all others.
fn immediate(
    instruction: &mut Instruction,
    n: u32,
    kind: OpCodeOperandKind,
    random: &mut Random,
    at: u64,
) -> bool {
    use OpCodeOperandKind as K;
    let value = random.integer();
    let near = |distance: i64| at.wrapping_add(8).wrapping_add_signed(distance);
    match kind {
        K::imm8 if instruction.code().mnemonic() == Mnemonic::Enter => {
            instruction.set_op_kind(n, OpKind::Immediate8_2nd);
            instruction.set_immediate8_2nd(random.below(36) as u8 * u8::from(random.one_in(2)));
        }
        K::imm8 => {
            instruction.set_op_kind(n, OpKind::Immediate8);
            instruction.set_immediate8(value as u8);
        }
        K::imm8_const_1 => {
            instruction.set_op_kind(n, OpKind::Immediate8);
            instruction.set_immediate8(1);
        }
        K::imm8sex16 => {
            instruction.set_op_kind(n, OpKind::Immediate8to16);
            instruction.set_immediate8to16((value as i8).into());
        }
        K::imm8sex32 => {
            instruction.set_op_kind(n, OpKind::Immediate8to32);
            instruction.set_immediate8to32((value as i8).into());
        }
        K::imm8sex64 => {
            instruction.set_op_kind(n, OpKind::Immediate8to64);
            instruction.set_immediate8to64((value as i8).into());
        }
        K::imm16 => {
            // ENTER allocates more than the pages hold in most cases, and RET discards it.
            let small = instruction.code().mnemonic() == Mnemonic::Enter && !random.one_in(8);
            let value = if small { value & 0x1ff } else { value };
            instruction.set_op_kind(n, OpKind::Immediate16);
            instruction.set_immediate16(value as u16);
        }
        K::imm32 => {
            instruction.set_op_kind(n, OpKind::Immediate32);
            instruction.set_immediate32(value as u32);
        }
        K::imm32sex64 => {
            instruction.set_op_kind(n, OpKind::Immediate32to64);
            instruction.set_immediate32to64((value as i32).into());
        }
        K::imm64 => {
            instruction.set_op_kind(n, OpKind::Immediate64);
            instruction.set_immediate64(value);
        }
        K::br64_1 => {
            instruction.set_op_kind(n, OpKind::NearBranch64);
            instruction.set_near_branch64(near((value as i8 / 2).into()));
        }
        K::br64_4 => {
            instruction.set_op_kind(n, OpKind::NearBranch64);
            instruction.set_near_branch64(near((value as i32 / 4).into()));
        }
        _ => return false,
    }
    true
}

fn register(kind: OpCodeOperandKind, random: &mut Random) -> Option<Register> {
    use OpCodeOperandKind as K;
    let number = random.below(16) as u32;
    let low = random.below(8) as u32;
    Some(match kind {
        K::r8_or_mem | K::r8_reg | K::r8_opcode => random.pick(&GPR8),
        K::r16_or_mem | K::r16_reg | K::r16_reg_mem | K::r16_rm | K::r16_opcode => Register::AX + number,
        K::r32_or_mem | K::r32_reg | K::r32_reg_mem | K::r32_rm | K::r32_opcode => Register::EAX + number,
        K::r64_or_mem | K::r64_reg | K::r64_reg_mem | K::r64_rm | K::r64_opcode => Register::RAX + number,
        K::mm_or_mem | K::mm_reg | K::mm_rm => Register::MM0 + low,
        K::xmm_or_mem | K::xmm_reg | K::xmm_rm => Register::XMM0 + number,
        K::seg_reg => random.pick(&SEGMENTS),
        K::cr_reg => random.pick(&[Register::CR0, Register::CR2, Register::CR3, Register::CR4]),
        K::dr_reg => random.pick(&[Register::DR0, Register::DR3, Register::DR6, Register::DR7]),
        K::st0 => Register::ST0,
        K::sti_opcode => Register::ST0 + low,
        K::al => Register::AL,
        K::cl => Register::CL,
        K::ax => Register::AX,
        K::dx => Register::DX,
        K::eax => Register::EAX,
        K::rax => Register::RAX,
        K::fs => Register::FS,
        K::gs => Register::GS,
        other => panic!("an operand kind without a register: {other:?}"),
    })
}

/// The register of BT, BTS, BTR and BTC that holds an offset in bits: number, and bits of the operand.
pub fn bit_offset_register(instruction: &Instruction) -> Option<(usize, i64)> {
    let bits = matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
    let register = instruction.op1_register();
    (bits && register != Register::None).then(|| (register.number(), register.size() as i64 * 8))
}
