//! MOVS, STOS, LODS, CMPS, SCAS, INS, OUTS, with and without REP.
//!
//! One iteration of a repeated instruction is one step, so RIP stays until the last (SDM vol. 2, REP): the
//! op is alone in its block and does as many iterations as the block may take steps. Where source and
//! destination are cached pages of RAM, iterations are done as one copy, fill or search.
//!
//! Between iterations RFLAGS.RF is set, so that an interrupt or trap there pushes it (SDM vol. 3, 17.3.1.1)
//! and an instruction breakpoint stops once, before the first. Comparisons set the status flags when the
//! repetition ends; a fault, or a stop between iterations, leaves them as they were before (SDM vol. 2, REP).
//!
//! With 32-bit addresses in 64-bit mode some of the registers are zero-extended even when nothing is done or
//! the first iteration faults. Which is not documented; this is what Intel's processors do.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::cpu::mode;
use crate::decode::{Builder, Lowered, segment};
use crate::exec::alu::{Binary, Cmp};
use crate::flags;
use crate::op::{Op, abort, next};
use crate::state::Seg;
use crate::word::Word;
use crate::{Cpu, Exit, Fault, or_abort, sized};

const AX: u8 = 0;
const DX: u8 = 16;
const CX: usize = 1;
const SI: usize = 6;
const DI: usize = 7;

/// `dst` of an op some segment of which needs checks.
const CHECKED: u8 = 1;

/// Not repeated.
const ONCE: u8 = 0;
/// Repeated while the count lasts; by comparing instructions also while ZF is set.
const WHILE_EQUAL: u8 = 1;
/// As before, while ZF is clear.
const WHILE_DIFFERENT: u8 = 2;

impl Cpu {
    /// How much of RSI, RDI and RCX counts: `scale` is log 2 of the address size.
    #[inline(always)]
    fn string_mask(op: &Op) -> u64 {
        match op.scale {
            1 => 0xffff,
            2 => 0xffff_ffff,
            _ => u64::MAX,
        }
    }

    #[inline(always)]
    fn string_register(&self, op: &Op, number: usize) -> u64 {
        self.regs[number] & Self::string_mask(op)
    }

    /// Writes RSI, RDI or RCX in the address size, as registers are written.
    #[inline(always)]
    fn set_string_register(&mut self, op: &Op, number: usize, value: u64) {
        self.regs[number] = match op.scale {
            1 => self.regs[number] & !0xffff | value & 0xffff,
            2 => value & 0xffff_ffff,
            _ => value,
        };
    }

    /// The linear address of an operand, before anything of it is accessed.
    #[inline(always)]
    fn string_linear(&mut self, segment: u8, offset: u64, size: u64, write: bool) -> Result<u64, Fault> {
        let segment = usize::from(segment) % 8;
        if self.mode & mode::LONG != 0 {
            return Ok(self.bases[segment].wrapping_add(offset));
        }
        self.segment_linear(segment, offset, size, write)
    }

    #[inline(always)]
    fn source<W: Word>(&mut self, op: &Op) -> Result<u64, Fault> {
        self.string_linear(op.src, self.string_register(op, SI), W::BYTES, false)
    }

    #[inline(always)]
    fn destination<W: Word>(&mut self, op: &Op, write: bool) -> Result<u64, Fault> {
        self.string_linear(Seg::Es as u8, self.string_register(op, DI), W::BYTES, write)
    }

    /// As the other two, for operands whose segments need no check.
    #[inline(always)]
    fn open_linear(&self, segment: u8, offset: u64) -> u64 {
        let linear = self.bases[usize::from(segment) % 8].wrapping_add(offset);
        if self.mode & mode::LONG != 0 { linear } else { linear & 0xffff_ffff }
    }

    #[inline(always)]
    fn open_source(&self, op: &Op) -> u64 {
        self.open_linear(op.src, self.string_register(op, SI))
    }

    #[inline(always)]
    fn open_destination(&self, op: &Op) -> u64 {
        self.open_linear(Seg::Es as u8, self.string_register(op, DI))
    }

    #[inline(always)]
    fn is_down(&self) -> bool {
        self.system_flags & flags::DF != 0
    }

    #[inline(always)]
    fn advance<W: Word>(&mut self, op: &Op, number: usize, iterations: u64) {
        // With 32-bit addresses even no distance would clear the upper half.
        if iterations == 0 {
            return;
        }
        let distance = iterations * W::BYTES;
        let by = if self.is_down() { distance.wrapping_neg() } else { distance };
        self.set_string_register(op, number, self.regs[number].wrapping_add(by));
    }

    /// Bytes from `offset` (RSI or RDI) until the address would wrap in its size.
    #[inline(always)]
    fn until_wrap(&self, op: &Op, number: usize) -> u64 {
        let offset = self.string_register(op, number);
        (Self::string_mask(op) - offset).saturating_add(1)
    }
}

/// A string instruction.
trait Kind {
    /// ZF can end the repetition.
    const COMPARES: bool = false;
    /// Registers besides RCX that REP with 32-bit addresses zero-extends in any case.
    const EXTENDED: &[usize] = &[];
    /// One iteration, but for the count.
    fn step<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault>;
    /// Up to `most` iterations at once; none where that does not go. Those that compare stop after the first
    /// iteration whose ZF is not `equal`.
    #[inline(always)]
    fn bulk<W: Word>(_cpu: &mut Cpu, _op: &Op, _most: u64, _equal: bool) -> u64 {
        0
    }
}

struct Movs;
impl Kind for Movs {
    const EXTENDED: &[usize] = &[SI, DI];

    #[inline(always)]
    fn step<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
        let from = cpu.source::<W>(op)?;
        let value = cpu.read::<W>(from)?;
        let to = cpu.destination::<W>(op, true)?;
        cpu.write(to, value)?;
        cpu.advance::<W>(op, SI, 1);
        cpu.advance::<W>(op, DI, 1);
        Ok(())
    }

    #[inline(always)]
    fn bulk<W: Word>(cpu: &mut Cpu, op: &Op, most: u64, _equal: bool) -> u64 {
        if cpu.is_down() {
            return 0;
        }
        let room = cpu.until_wrap(op, SI).min(cpu.until_wrap(op, DI)) / W::BYTES;
        let done = cpu.copy_forward::<W>(cpu.open_source(op), cpu.open_destination(op), most.min(room));
        cpu.advance::<W>(op, SI, done);
        cpu.advance::<W>(op, DI, done);
        done
    }
}

struct Stos;
impl Kind for Stos {
    const EXTENDED: &[usize] = &[DI];

    #[inline(always)]
    fn step<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
        let to = cpu.destination::<W>(op, true)?;
        cpu.write(to, cpu.reg::<W>(AX))?;
        cpu.advance::<W>(op, DI, 1);
        Ok(())
    }

    #[inline(always)]
    fn bulk<W: Word>(cpu: &mut Cpu, op: &Op, most: u64, _equal: bool) -> u64 {
        if cpu.is_down() {
            return 0;
        }
        let room = cpu.until_wrap(op, DI) / W::BYTES;
        let done = cpu.fill(cpu.open_destination(op), cpu.reg::<W>(AX), most.min(room));
        cpu.advance::<W>(op, DI, done);
        done
    }
}

struct Lods;
impl Kind for Lods {
    #[inline(always)]
    fn step<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
        let from = cpu.source::<W>(op)?;
        let value = cpu.read::<W>(from)?;
        cpu.set_reg(AX, value);
        cpu.advance::<W>(op, SI, 1);
        Ok(())
    }
}

struct Cmps;
impl Kind for Cmps {
    const COMPARES: bool = true;

    #[inline(always)]
    fn step<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
        let with = cpu.destination::<W>(op, false)?;
        let b = cpu.read::<W>(with)?;
        let from = cpu.source::<W>(op)?;
        let a = cpu.read::<W>(from)?;
        Cmp::apply(&mut cpu.flags, a, b);
        cpu.advance::<W>(op, SI, 1);
        cpu.advance::<W>(op, DI, 1);
        Ok(())
    }

    #[inline(always)]
    fn bulk<W: Word>(cpu: &mut Cpu, op: &Op, most: u64, equal: bool) -> u64 {
        if cpu.is_down() {
            return 0;
        }
        let room = cpu.until_wrap(op, SI).min(cpu.until_wrap(op, DI)) / W::BYTES;
        let a = cpu.cached_bytes(cpu.open_source(op));
        let b = cpu.cached_bytes(cpu.open_destination(op));
        let size = W::BYTES as usize;
        let Some((done, a, b)) = search(
            a.chunks_exact(size).zip(b.chunks_exact(size)).map(|(a, b)| (load::<W>(a), load::<W>(b))),
            most.min(room),
            equal,
        ) else {
            return 0;
        };
        Cmp::apply(&mut cpu.flags, a, b);
        cpu.advance::<W>(op, SI, done);
        cpu.advance::<W>(op, DI, done);
        done
    }
}

struct Scas;
impl Kind for Scas {
    const COMPARES: bool = true;

    #[inline(always)]
    fn step<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
        let with = cpu.destination::<W>(op, false)?;
        let value = cpu.read::<W>(with)?;
        let a = cpu.reg::<W>(AX);
        Cmp::apply(&mut cpu.flags, a, value);
        cpu.advance::<W>(op, DI, 1);
        Ok(())
    }

    #[inline(always)]
    fn bulk<W: Word>(cpu: &mut Cpu, op: &Op, most: u64, equal: bool) -> u64 {
        if cpu.is_down() {
            return 0;
        }
        let room = cpu.until_wrap(op, DI) / W::BYTES;
        let a = cpu.reg::<W>(AX);
        let bytes = cpu.cached_bytes(cpu.open_destination(op));
        let pairs = bytes.chunks_exact(W::BYTES as usize).map(|b| (a, load::<W>(b)));
        let Some((done, a, b)) = search(pairs, most.min(room), equal) else { return 0 };
        Cmp::apply(&mut cpu.flags, a, b);
        cpu.advance::<W>(op, DI, done);
        done
    }
}

#[inline(always)]
fn load<W: Word>(bytes: &[u8]) -> W {
    let mut all = [0; 8];
    all[..W::BYTES as usize].copy_from_slice(bytes);
    W::of(u64::from_le_bytes(all))
}

/// How many pairs there are up to the first whose equality is not `equal`, and the last of them.
#[inline(always)]
fn search<W: Word>(pairs: impl Iterator<Item = (W, W)>, most: u64, equal: bool) -> Option<(u64, W, W)> {
    let mut last = None;
    for (number, (a, b)) in pairs.take(most as usize).enumerate() {
        last = Some((number as u64 + 1, a, b));
        if (a == b) != equal {
            break;
        }
    }
    last
}

struct Ins;
impl Kind for Ins {
    fn step<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
        let port = cpu.reg::<u16>(DX);
        cpu.check_io(port, W::BYTES as u8)?;
        let to = cpu.destination::<W>(op, true)?;
        cpu.check_write(to, W::BYTES)?;
        let value = cpu.ask(Exit::PioRead { port, size: W::BYTES as u8 })?;
        cpu.write(to, W::of(value))?;
        cpu.advance::<W>(op, DI, 1);
        Ok(())
    }
}

struct Outs;
impl Kind for Outs {
    fn step<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
        let port = cpu.reg::<u16>(DX);
        cpu.check_io(port, W::BYTES as u8)?;
        let from = cpu.source::<W>(op)?;
        let value = cpu.read::<W>(from)?.zext() as u32;
        cpu.ask(Exit::PioWrite { port, size: W::BYTES as u8, value })?;
        cpu.advance::<W>(op, SI, 1);
        Ok(())
    }
}

fn once<K: Kind, W: Word>(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, K::step::<W>(cpu, op));
    next(cpu, op)
}

/// As many iterations as there are, or as the limit allows. `limit` is at least one step away, because the op
/// is the only one of its block.
#[inline(always)]
fn repeat<K: Kind, W: Word>(cpu: &mut Cpu, op: &Op, equal: bool) {
    let count = cpu.string_register(op, CX);
    let following = cpu.rip.wrapping_add(u64::from(op.following().ip));
    if op.scale == 2 {
        for number in K::EXTENDED.iter().copied().chain([CX]) {
            cpu.regs[number] &= Cpu::string_mask(op);
        }
    }
    if count == 0 {
        return cpu.jump(op, following);
    }
    let most = count.min(cpu.limit.saturating_sub(cpu.retired).max(1));
    let flags_before = cpu.flags;
    let mut done = 0;
    let mut stopped = false;
    let mut result = Ok(());
    while done < most && !stopped {
        let at_once = if op.dst == CHECKED { 0 } else { K::bulk::<W>(cpu, op, most - done, equal) };
        if at_once == 0 {
            result = K::step::<W>(cpu, op);
            if result.is_err() {
                break;
            }
        }
        done += at_once.max(1);
        stopped = K::COMPARES && cpu.flags.zf() != equal;
    }
    if done > 0 {
        cpu.set_string_register(op, CX, count - done);
    }
    if done == count || stopped {
        cpu.retired += done - 1;
        return cpu.jump(op, following);
    }
    if done > 0 {
        cpu.system_flags |= flags::RF;
    }
    if K::COMPARES {
        cpu.flags = flags_before;
    }
    if result.is_err() {
        cpu.retired += done;
        return abort(cpu, op);
    }
    cpu.retired += done;
}

fn while_equal<K: Kind, W: Word>(cpu: &mut Cpu, op: &Op) {
    repeat::<K, W>(cpu, op, true)
}

fn while_different<K: Kind, W: Word>(cpu: &mut Cpu, op: &Op) {
    repeat::<K, W>(cpu, op, false)
}

/// Ends a block before a repeated instruction, which begins its own.
fn before_repeat(cpu: &mut Cpu, op: &Op) {
    cpu.rip = cpu.rip.wrapping_add(u64::from(op.ip));
    cpu.retired += u64::from(op.number);
    if let Some(first) = cpu.cached_block(cpu.rip) {
        (first.run)(cpu, first)
    }
}

fn lower_kind<K: Kind>(builder: &mut Builder, insn: &Instruction, bytes: usize) -> Lowered {
    let repeat = match (insn.has_repne_prefix(), insn.has_rep_prefix()) {
        (true, _) if K::COMPARES => WHILE_DIFFERENT,
        (false, false) => ONCE,
        _ => WHILE_EQUAL,
    };
    if repeat != ONCE && builder.number() != 0 {
        builder.push(Op::new(before_repeat));
        return Lowered::Ends;
    }
    let mut op = Op::new(match repeat {
        WHILE_EQUAL => sized!(bytes, while_equal, K),
        WHILE_DIFFERENT => sized!(bytes, while_different, K),
        _ => sized!(bytes, once, K),
    });
    op.scale = address_scale(insn);
    let from = segment(insn.memory_segment());
    op.src = from as u8;
    if builder.is_checked(from) || builder.is_checked(Seg::Es) {
        op.dst = CHECKED;
    }
    builder.push(op);
    if repeat == ONCE { Lowered::Continues } else { Lowered::Ends }
}

/// Log 2 of the address size.
fn address_scale(insn: &Instruction) -> u8 {
    for operand in 0..insn.op_count() {
        match insn.op_kind(operand) {
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => return 1,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => return 2,
            _ => {}
        }
    }
    3
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    use Mnemonic as M;
    if !insn.is_string_instruction() {
        return Lowered::Unknown;
    }
    match insn.mnemonic() {
        M::Movsb => lower_kind::<Movs>(builder, insn, 1),
        M::Movsw => lower_kind::<Movs>(builder, insn, 2),
        M::Movsd => lower_kind::<Movs>(builder, insn, 4),
        M::Movsq => lower_kind::<Movs>(builder, insn, 8),
        M::Stosb => lower_kind::<Stos>(builder, insn, 1),
        M::Stosw => lower_kind::<Stos>(builder, insn, 2),
        M::Stosd => lower_kind::<Stos>(builder, insn, 4),
        M::Stosq => lower_kind::<Stos>(builder, insn, 8),
        M::Lodsb => lower_kind::<Lods>(builder, insn, 1),
        M::Lodsw => lower_kind::<Lods>(builder, insn, 2),
        M::Lodsd => lower_kind::<Lods>(builder, insn, 4),
        M::Lodsq => lower_kind::<Lods>(builder, insn, 8),
        M::Cmpsb => lower_kind::<Cmps>(builder, insn, 1),
        M::Cmpsw => lower_kind::<Cmps>(builder, insn, 2),
        M::Cmpsd => lower_kind::<Cmps>(builder, insn, 4),
        M::Cmpsq => lower_kind::<Cmps>(builder, insn, 8),
        M::Scasb => lower_kind::<Scas>(builder, insn, 1),
        M::Scasw => lower_kind::<Scas>(builder, insn, 2),
        M::Scasd => lower_kind::<Scas>(builder, insn, 4),
        M::Scasq => lower_kind::<Scas>(builder, insn, 8),
        M::Insb => lower_kind::<Ins>(builder, insn, 1),
        M::Insw => lower_kind::<Ins>(builder, insn, 2),
        M::Insd => lower_kind::<Ins>(builder, insn, 4),
        M::Outsb => lower_kind::<Outs>(builder, insn, 1),
        M::Outsw => lower_kind::<Outs>(builder, insn, 2),
        M::Outsd => lower_kind::<Outs>(builder, insn, 4),
        _ => Lowered::Unknown,
    }
}
