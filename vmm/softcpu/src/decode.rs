//! Decoding: bytes to iced-x86 instructions to ops.
//!
//! Each module of `exec` knows its instructions: its `lower` turns one into ops, or says it is not its own.
//! What none of them knows is #UD, and CPUID does not advertise it.

use iced_x86::{
    Decoder, DecoderError, DecoderOptions, Instruction, InstructionInfoFactory, InstructionInfoOptions,
    OpKind, Register,
};

use crate::cache::LINKS;
use crate::cpu::mode;
use crate::exception::Exception;
use crate::op::{ADDRESS, Handler, Op, ZERO, abort, next};
use crate::ram::PAGE;
use crate::state::Seg;
use crate::{Cpu, Fault, exec, or_abort};

/// Most instructions in a block.
const BLOCK: u64 = 64;
/// Most bytes of a block.
pub const BLOCK_BYTES: usize = BLOCK as usize * LONGEST;
/// Most conditional branches in a block.
const BRANCHES: u64 = 3;
/// Longest instruction in bytes (SDM vol. 2, 2.3.11).
pub const LONGEST: usize = 15;

/// What a module made of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lowered {
    /// Nothing: it is not one of its own.
    Unknown,
    /// The block goes on after it.
    Continues,
    /// It is the last of its block: its op does not call `next`.
    Ends,
}

/// The handler that also does the work of the conditional branch which follows, by condition.
pub type Fused = fn(u8) -> Option<Handler>;

/// A block being decoded.
pub struct Builder {
    ops: Vec<Op>,
    number: u64,
    /// Of the block's start.
    rip: u64,
    /// One of `cpu::mode`.
    pub mode: u32,
    /// Base of the code segment.
    base: u64,
    /// The last target of a branch that the code segment has.
    limit: u64,
    ip: u16,
    /// The instruction's bytes.
    pub raw: [u8; LONGEST],
    /// The block is not a part, which is used once: branches may link.
    whole: bool,
    /// The last instruction can be fused with a conditional branch: its number, and its handler by condition.
    compare: Option<(u64, Fused)>,
    /// An op whose flags nothing has seen yet, and its handler that does not set any.
    unseen: Option<(usize, Handler)>,
    /// Conditional branches so far.
    branches: u64,
}

impl Builder {
    /// 64-bit code.
    pub fn is_long(&self) -> bool {
        self.mode & mode::LONG != 0
    }

    /// Appends an op of the instruction being decoded.
    pub fn push(&mut self, op: Op) {
        self.unseen = None;
        self.push_neutral(op);
    }

    /// Appends an op that always goes on to the next, and neither reads nor writes flags.
    pub fn push_neutral(&mut self, mut op: Op) {
        op.number = self.number as u8;
        op.ip = self.ip;
        self.ops.push(op);
    }

    /// Appends an op that sets all status flags. If it `always` goes on to the next op and reads no flags,
    /// those that an op before it set are lost unseen, and need not be computed. `quiet` does the same as
    /// the op but sets no flags.
    pub fn push_setter(&mut self, op: Op, always: bool, quiet: Option<Handler>) {
        if let Some((index, handler)) = self.unseen.filter(|_| always) {
            self.ops[index].run = handler;
        }
        self.unseen = quiet.map(|quiet| (self.ops.len(), quiet));
        self.push_neutral(op);
    }

    /// The op that is pushed next can be fused with a conditional branch that follows.
    pub fn fusible(&mut self, handler: Fused) {
        self.compare = Some((self.number, handler));
    }

    /// A conditional branch is pushed next: an instruction before it that can be fused does its work too.
    pub fn fuse(&mut self, condition: u8) {
        self.branches += 1;
        if let (Some((number, handler)), Some(op)) = (self.compare, self.ops.last_mut())
            && number + 1 == self.number
            && let Some(run) = handler(condition)
        {
            op.run = run;
        }
    }

    /// Lets a branch to `target` remember the block, if that is in the same page.
    pub fn link(&self, op: &mut Op, target: u64) {
        let page = |rip: u64| {
            let linear = self.base.wrapping_add(rip);
            if self.is_long() { linear / PAGE } else { (linear & 0xffff_ffff) / PAGE }
        };
        if self.whole && page(self.rip) == page(target) {
            op.scale = LINKS;
        }
    }

    /// Whether EIP wraps when the block goes on by `length` bytes: no block does.
    fn passes_the_end(&self, length: usize) -> bool {
        !self.is_long() && self.rip.saturating_add(u64::from(self.ip) + length as u64) > 0xffff_ffff
    }

    /// Whether a branch to `target` leaves the code segment.
    pub fn is_beyond(&self, target: u64) -> bool {
        target > self.limit
    }

    /// Whether accesses through a segment register are checked.
    pub fn is_checked(&self, segment: Seg) -> bool {
        self.mode & (mode::CHECKED << segment as u32) != 0
    }

    /// The number of the instruction being decoded.
    pub fn number(&self) -> u8 {
        self.number as u8
    }

    /// Describes the memory operand of `insn` in `op`, in 64-bit addressing without a segment base; anything
    /// else is computed by an op of its own before.
    pub fn memory(&mut self, op: &mut Op, insn: &Instruction) {
        self.operand(op, insn, segment(insn.memory_segment()));
    }

    /// Moves an address that `memory` had computed by an op of its own.
    pub fn move_address(&mut self, op: &Op, by: u64) {
        if let Some(before) = self.ops.last_mut().filter(|_| op.base == ADDRESS) {
            before.disp.set(before.disp.get().wrapping_add(by));
        }
    }

    /// As `memory`, without any segment's base: the offset, as LEA computes it.
    pub fn memory_offset(&mut self, op: &mut Op, insn: &Instruction) {
        self.operand(op, insn, NO_SEGMENT);
    }

    fn operand(&mut self, op: &mut Op, insn: &Instruction, segment: Seg) {
        if insn.is_ip_rel_memory_operand() {
            op.disp.set(insn.ip_rel_memory_address());
        } else {
            op.base = gpr(insn.memory_base()).unwrap_or(ZERO);
            op.index = gpr(insn.memory_index()).unwrap_or(ZERO);
            op.scale = insn.memory_index_scale().trailing_zeros() as u8;
            op.disp.set(insn.memory_displacement64());
        }
        let size = address_bytes(insn);
        if self.is_long() && size == 8 && !matches!(segment, Seg::Fs | Seg::Gs) {
            return;
        }
        let mut before = Op::new(if size == 4 { address_32 } else { address_64 });
        if size == 2 {
            before.run = address_16;
        }
        (before.base, before.index, before.scale) = (op.base, op.index, op.scale);
        before.disp.set(op.disp.get());
        before.src = segment as u8;
        if segment != NO_SEGMENT && self.is_checked(segment) {
            before.run = if size == 4 { checked_32 } else { checked_16 };
            before.imm = access(insn);
        }
        self.push_neutral(before);
        (op.base, op.index, op.scale) = (ADDRESS, ZERO, 0);
        op.disp.set(0);
    }
}

/// Has no base.
const NO_SEGMENT: Seg = Seg::Tr;

fn set_address(cpu: &mut Cpu, op: &Op, offset: u64) {
    let mut linear = cpu.bases[usize::from(op.src) % 8].wrapping_add(offset);
    if cpu.mode & mode::LONG == 0 {
        linear &= 0xffff_ffff;
    }
    cpu.set_reg(ADDRESS, linear);
    next(cpu, op)
}

fn address_64(cpu: &mut Cpu, op: &Op) {
    let offset = cpu.address(op);
    set_address(cpu, op, offset)
}

fn address_32(cpu: &mut Cpu, op: &Op) {
    let offset = cpu.address(op) & 0xffff_ffff;
    set_address(cpu, op, offset)
}

/// What a memory operand is accessed for: bytes, and whether it is written in bit 16.
fn access(insn: &Instruction) -> u64 {
    use iced_x86::OpAccess as A;
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info_options(insn, InstructionInfoOptions::NO_REGISTER_USAGE);
    let written = |n: &u32| {
        let access = info.op_access(*n);
        matches!(access, A::Write | A::CondWrite | A::ReadWrite | A::ReadCondWrite)
    };
    let mut operands = (0..insn.op_count()).filter(|n| insn.op_kind(*n) == OpKind::Memory);
    let write = operands.find(written).is_some();
    // The two bounds of BOUND are accesses of their own.
    let parts = if insn.mnemonic() == iced_x86::Mnemonic::Bound { 2 } else { 1 };
    (insn.memory_size().size() / parts).max(1) as u64 | u64::from(write) << 16
}

fn set_checked(cpu: &mut Cpu, op: &Op, offset: u64) {
    let (size, write) = (op.imm & 0xffff, op.imm >> 16 != 0);
    let linear = or_abort!(cpu, op, cpu.segment_linear(usize::from(op.src), offset, size, write));
    cpu.set_reg(ADDRESS, linear);
    next(cpu, op)
}

fn checked_32(cpu: &mut Cpu, op: &Op) {
    let offset = cpu.address(op) & 0xffff_ffff;
    set_checked(cpu, op, offset)
}

fn checked_16(cpu: &mut Cpu, op: &Op) {
    let offset = cpu.address(op) & 0xffff;
    set_checked(cpu, op, offset)
}

fn address_16(cpu: &mut Cpu, op: &Op) {
    let offset = cpu.address(op) & 0xffff;
    set_address(cpu, op, offset)
}

/// Size of the addresses that a memory operand is computed in.
pub fn address_bytes(insn: &Instruction) -> usize {
    let of = |register: Register| (register != Register::None).then(|| register.size());
    let base = insn.memory_base();
    if insn.is_ip_rel_memory_operand() {
        return if base == Register::EIP { 4 } else { 8 };
    }
    let by_displacement = match insn.memory_displ_size() {
        2 => 2,
        4 => 4,
        _ => 8,
    };
    of(base).or_else(|| of(insn.memory_index())).unwrap_or(by_displacement)
}

/// Register-file offset of a general register of any size.
pub fn gpr(register: Register) -> Option<u8> {
    match register {
        Register::None | Register::RIP | Register::EIP => None,
        Register::AH => Some(1),
        Register::CH => Some(9),
        Register::DH => Some(17),
        Register::BH => Some(25),
        other if other.is_gpr() => Some(other.full_register().number() as u8 * 8),
        _ => None,
    }
}

/// Segment register of iced's.
pub fn segment(register: Register) -> Seg {
    match register {
        Register::ES => Seg::Es,
        Register::CS => Seg::Cs,
        Register::SS => Seg::Ss,
        Register::FS => Seg::Fs,
        Register::GS => Seg::Gs,
        _ => Seg::Ds,
    }
}

/// Bytes of operand `number`: of a register or of memory.
pub fn operand_bytes(insn: &Instruction, number: u32) -> usize {
    match insn.op_kind(number) {
        OpKind::Register => insn.op_register(number).size(),
        OpKind::Immediate8 => 1,
        _ => insn.memory_size().size(),
    }
}

/// The handler of the operand size: `sized!(bytes, handler, Kind)`.
#[macro_export]
#[doc(hidden)]
macro_rules! sized {
    ($bytes:expr, $f:ident $(, $g:ty)*) => {
        match $bytes {
            1 => $f::<$($g,)* u8> as $crate::op::Handler,
            2 => $f::<$($g,)* u16> as $crate::op::Handler,
            4 => $f::<$($g,)* u32> as $crate::op::Handler,
            _ => $f::<$($g,)* u64> as $crate::op::Handler,
        }
    };
}

fn undefined(cpu: &mut Cpu, op: &Op) {
    let _ = cpu.raise::<()>(Exception::ud());
    abort(cpu, op)
}

fn not_available(cpu: &mut Cpu, op: &Op) {
    let _ = cpu.raise::<()>(Exception::nm());
    abort(cpu, op)
}

fn too_long(cpu: &mut Cpu, op: &Op) {
    let _ = cpu.raise::<()>(Exception::gp(0));
    abort(cpu, op)
}

/// Raises #UD: for forms that a module knows to be invalid.
pub const UNDEFINED: Handler = undefined;
/// Raises #NM.
pub const NOT_AVAILABLE: Handler = not_available;

/// Ends a block that just stops: the next instruction follows.
fn fall_through(cpu: &mut Cpu, op: &Op) {
    cpu.rip = cpu.rip.wrapping_add(u64::from(op.ip));
    cpu.retired += u64::from(op.number);
    cpu.follow(op)
}

/// Ends a part of a block.
fn stop(cpu: &mut Cpu, op: &Op) {
    cpu.rip = cpu.rip.wrapping_add(u64::from(op.ip));
    cpu.retired += u64::from(op.number);
}

/// Ends an instruction by itself, in the middle of a block.
fn single_done(cpu: &mut Cpu, _op: &Op) {
    cpu.resumed = true;
}

fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    for module in exec::MODULES {
        let lowered = module(builder, insn);
        if lowered != Lowered::Unknown {
            return lowered;
        }
    }
    builder.push(Op::new(UNDEFINED));
    Lowered::Ends
}

impl Cpu {
    fn decoder<'a>(&self, bytes: &'a [u8], rip: u64) -> Decoder<'a> {
        let bits = match self.mode & (mode::LONG | mode::BIG) {
            0 => 16,
            mode::BIG => 32,
            _ => 64,
        };
        Decoder::with_ip(bits, bytes, rip, DecoderOptions::NONE)
    }

    fn builder(&self, ops: Vec<Op>, whole: bool) -> Builder {
        let (number, ip, raw, compare, unseen, branches) = (0, 0, [0; LONGEST], None, None, 0);
        let (rip, mode, limit) = (self.rip, self.mode, self.code_limit());
        let base = if mode & mode::LONG != 0 { 0 } else { self.base(Seg::Cs) };
        Builder { ops, number, rip, mode, base, limit, ip, raw, whole, compare, unseen, branches }
    }

    /// Whether an instruction that was not recognised would be one, were it not longer than fifteen bytes: it
    /// is one without its first prefix and with more bytes.
    fn is_too_long(&self, bytes: &[u8]) -> bool {
        const LOCK: u8 = 0xf0;
        let mut shorter = [0; LONGEST];
        // LOCK, where it is not allowed, must stay: it is what is wrong then.
        let Some(prefix) = bytes.iter().position(|byte| *byte != LOCK).filter(|_| bytes.len() == LONGEST)
        else {
            return false;
        };
        shorter[..LONGEST - 1].copy_from_slice(&bytes[..LONGEST - 1]);
        shorter[prefix..LONGEST - 1].copy_from_slice(&bytes[prefix + 1..LONGEST]);
        let insn = self.decoder(&shorter, self.rip).decode();
        !insn.is_invalid() || insn.len() == LONGEST
    }

    /// Reads code inside one page; beyond the end of RAM nothing is read.
    pub(crate) fn read_code(&self, gpa: u64, into: &mut [u8]) {
        self.ram.read(gpa, into);
        #[cfg(feature = "planted-faults")]
        self.stale.show(gpa, into);
    }

    /// Decodes the block at RIP, whose first byte is at `gpa`. `None` when its first instruction crosses into
    /// the next page.
    pub(crate) fn decode_block(&mut self, gpa: u64) -> Option<(Vec<Op>, u64)> {
        let mut bytes = [0; BLOCK_BYTES];
        let room = self.code_room(self.rip).min(PAGE - gpa % PAGE).min(BLOCK_BYTES as u64);
        let bytes = &mut bytes[..room as usize];
        self.read_code(gpa, bytes);
        let mut ops = self.cache.take_scratch();
        ops.push(Op::new(stop));
        let mut builder = self.builder(ops, true);
        let bytes = &*bytes;
        let mut decoder = self.decoder(bytes, self.rip);
        let mut insn = Instruction::default();
        let mut ended = false;
        while builder.number < BLOCK && builder.branches < BRANCHES && !ended && decoder.can_decode() {
            let at = decoder.position();
            if builder.number > 0 && self.breakpoints.has(self.rip.wrapping_add(u64::from(builder.ip))) {
                break;
            }
            decoder.decode_out(&mut insn);
            if insn.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes {
                break;
            }
            if builder.passes_the_end(insn.len()) {
                break;
            }
            if insn.is_invalid() && self.is_too_long(&bytes[at..at + insn.len()]) {
                builder.push(Op::new(too_long));
                builder.number += 1;
                builder.ip += LONGEST as u16;
                ended = true;
                break;
            }
            builder.raw[..insn.len()].copy_from_slice(&bytes[at..at + insn.len()]);
            ended = lower(&mut builder, &insn) == Lowered::Ends;
            builder.number += 1;
            builder.ip += insn.len() as u16;
        }
        if builder.number == 0 {
            self.cache.keep_scratch(builder.ops);
            return None;
        }
        let (count, length) = (builder.number, u64::from(builder.ip));
        let mut last = Op::new(if ended { stop } else { fall_through });
        builder.link(&mut last, self.rip.wrapping_add(length));
        builder.push(last);
        builder.ops[0].imm = count;
        Some((builder.ops, length))
    }

    /// Decodes at most `count` instructions at RIP, as far as one page goes, for a single use.
    pub(crate) fn decode_part(&mut self, count: u64) -> Result<Vec<Op>, Fault> {
        let ops = self.cache.take_scratch();
        let mut builder = self.builder(ops, false);
        let mut insn = Instruction::default();
        let mut ended = false;
        while builder.number < count.min(BLOCK) && !ended {
            let rip = builder.rip.wrapping_add(u64::from(builder.ip));
            if builder.number > 0 && builder.passes_the_end(0) {
                break;
            }
            let mut bytes = [0; LONGEST];
            let Ok(length) = self.fetch(rip, &mut bytes, &mut insn) else {
                if builder.number == 0 {
                    return Err(Fault);
                }
                self.abort = crate::cpu::Abort::None;
                break;
            };
            builder.raw = bytes;
            ended = lower(&mut builder, &insn) == Lowered::Ends;
            builder.number += 1;
            builder.ip += length as u16;
        }
        builder.push(Op::new(stop));
        Ok(builder.ops)
    }

    /// The ops of an instruction, `at` bytes from RIP and the number `number` of its block, with one behind
    /// them that says that they are done. `None` if the block ends with it.
    pub(crate) fn decode_single(
        &self,
        insn: &Instruction,
        bytes: &[u8],
        number: u8,
        at: usize,
    ) -> Option<Box<[Op]>> {
        let mut builder = self.builder(Vec::new(), false);
        (builder.number, builder.ip) = (u64::from(number), at as u16);
        builder.raw[..bytes.len()].copy_from_slice(bytes);
        if lower(&mut builder, insn) == Lowered::Ends {
            return None;
        }
        builder.number += 1;
        builder.ip += bytes.len() as u16;
        builder.push(Op::new(single_done));
        Some(builder.ops.into_boxed_slice())
    }

    /// Fetches and decodes the instruction at `rip`; the second page is touched only if it reaches there.
    pub(crate) fn fetch(
        &mut self,
        rip: u64,
        bytes: &mut [u8; LONGEST],
        insn: &mut Instruction,
    ) -> Result<usize, Fault> {
        let room = self.code_room(rip).min(LONGEST as u64) as usize;
        if room == 0 {
            return self.raise(Exception::gp(0));
        }
        let linear = self.code_linear(rip);
        let gpa = self.translate_code(linear)?;
        let here = ((PAGE - linear % PAGE) as usize).min(room);
        bytes.fill(0xff);
        self.read_code(gpa, &mut bytes[..here]);
        let mut decoder = self.decoder(&bytes[..here], rip);
        decoder.decode_out(insn);
        let mut short = insn.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes;
        if short && here < room {
            let gpa = self.translate_code(self.code_linear(rip.wrapping_add(here as u64)))?;
            self.read_code(gpa, &mut bytes[here..room]);
            let mut decoder = self.decoder(&bytes[..room], rip);
            decoder.decode_out(insn);
            short = insn.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes;
        }
        if short && room < LONGEST {
            // It goes on beyond the limit.
            return self.raise(Exception::gp(0));
        }
        if insn.is_invalid() && self.is_too_long(&bytes[..insn.len()]) {
            return self.raise(Exception::gp(0));
        }
        Ok(insn.len())
    }

    /// Fetches `length` bytes at `rip`, the rest zero.
    pub(crate) fn fetch_bytes(&mut self, rip: u64, length: usize) -> Result<[u8; LONGEST], Fault> {
        let mut bytes = [0; LONGEST];
        let linear = self.code_linear(rip);
        let here = ((PAGE - linear % PAGE) as usize).min(length);
        bytes[..length].fill(0xff);
        let gpa = self.translate_code(linear)?;
        self.read_code(gpa, &mut bytes[..here]);
        if here < length {
            let gpa = self.translate_code(self.code_linear(rip.wrapping_add(here as u64)))?;
            self.read_code(gpa, &mut bytes[here..length]);
        }
        Ok(bytes)
    }

    /// Decodes the instruction at RIP again: for what an exception needs to know of it.
    pub fn instruction_at_rip(&mut self) -> Option<Instruction> {
        let (abort, rip) = (self.abort, self.rip);
        let mut insn = Instruction::default();
        let fetched = self.fetch(rip, &mut [0; LONGEST], &mut insn);
        self.abort = abort;
        fetched.ok().map(|_| insn)
    }
}
