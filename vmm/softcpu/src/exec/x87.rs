//! The x87 unit (SDM vol. 1, chapter 8): checks, operands and pointers here, arithmetic on the host's unit.
//!
//! About 100 ns an instruction: 64-bit code computes with SSE and comes here for long double only.

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::mode;
use crate::decode::{Builder, Lowered, NOT_AVAILABLE};
use crate::exception::{Exception, vector};
use crate::exec::x87_host::{Image, MEMORY_FORMS, REGISTER_FORMS, SHORT_FORMS};
use crate::flags::Lazy;
use crate::op::{Op, abort, next};
use crate::state::Fpu;
use crate::{Cpu, Fault, or_abort};

/// Status word: an unmasked exception waits to be raised.
const SW_ES: u16 = 1 << 7;

/// What an instruction does with its memory operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operand {
    Load(u8),
    Store(u8),
    /// FLDENV, FRSTOR; FNSTENV, FNSAVE: 28 or 108 bytes, 14 less with 16-bit operands.
    LoadEnvironment(u8),
    StoreEnvironment(u8),
    Invalid,
}

/// By first byte minus 0xd8 and the register field of modrm.
fn operand(first: u8, reg: u8) -> Operand {
    use Operand as O;
    match (first, reg) {
        (0, _) | (2, _) => O::Load(4),
        (4, _) => O::Load(8),
        (6, _) => O::Load(2),
        (1, 0) | (3, 0) => O::Load(4),
        (1, 2..=3) | (3, 1..=3) => O::Store(4),
        (1, 4) => O::LoadEnvironment(28),
        (1, 6) => O::StoreEnvironment(28),
        (1, 5) => O::Load(2),
        (1, 7) | (5, 7) => O::Store(2),
        (3, 5) | (7, 4) => O::Load(10),
        (3, 7) | (7, 6) => O::Store(10),
        (5, 0) | (7, 5) => O::Load(8),
        (5, 1..=3) | (7, 7) => O::Store(8),
        (5, 4) => O::LoadEnvironment(108),
        (5, 6) => O::StoreEnvironment(108),
        (7, 0) => O::Load(2),
        (7, 1..=3) => O::Store(2),
        _ => O::Invalid,
    }
}

/// Control instructions leave opcode and pointers of the last arithmetic one.
fn is_control(first: u8, second: u8) -> bool {
    match (first, second) {
        (1 | 5, 0..0xc0) => second >> 3 & 7 >= 4,
        (3, 0xe0..=0xe4) | (7, 0xe0) => true,
        _ => false,
    }
}

/// First byte minus 0xd8, second byte.
const FNINIT: (u8, u8) = (3, 0xe3);

/// Those that do not look at pending exceptions (SDM vol. 1, 8.6).
fn waits(first: u8, second: u8) -> bool {
    match (first, second) {
        (1 | 5, 0..0xc0) => second >> 3 & 7 < 6,
        (3, 0xe0..=0xe4) | (7, 0xe0) => false,
        _ => true,
    }
}

impl Cpu {
    /// Raises #MF if an x87 exception is pending.
    #[inline(always)]
    pub(crate) fn check_x87(&mut self) -> Result<(), Fault> {
        if self.fpu.sw & SW_ES != 0 {
            return self.raise(Exception::fault(vector::MF));
        }
        Ok(())
    }

    fn note_x87(&mut self, op: &Op, first: u8, second: u8) {
        self.fpu.fop = u16::from(first) << 8 | u16::from(second);
        self.fpu.fip = self.rip.wrapping_add(u64::from(op.ip));
    }
}

/// `imm`: first byte minus 0xd8, second byte.
fn bytes(op: &Op) -> (u8, u8) {
    ((op.imm & 7) as u8, (op.imm >> 8) as u8)
}

fn register_form(cpu: &mut Cpu, op: &Op) {
    let (first, second) = bytes(op);
    if waits(first, second) {
        or_abort!(cpu, op, cpu.check_x87());
    }
    execute_register(cpu, op, first, second);
    next(cpu, op)
}

#[inline(never)]
fn execute_register(cpu: &mut Cpu, op: &Op, first: u8, second: u8) {
    let mut image = Image::new(&cpu.fpu);
    let run = REGISTER_FORMS[usize::from(first)][usize::from(second - 0xc0)];
    let status = run(&mut image, cpu.flags.rflags());
    cpu.flags = Lazy::from_rflags(status);
    image.store(&mut cpu.fpu);
    if !is_control(first, second) {
        cpu.note_x87(op, first, second);
    } else if (first, second) == FNINIT {
        (cpu.fpu.fop, cpu.fpu.fip, cpu.fpu.fdp) = (0, 0, 0);
    }
}

fn store_status(cpu: &mut Cpu, op: &Op) {
    let sw = cpu.fpu.sw;
    cpu.set_reg(0, sw);
    next(cpu, op)
}

fn wait(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.check_x87());
    next(cpu, op)
}

fn memory_form<const SHORT: bool>(cpu: &mut Cpu, op: &Op) {
    match execute_memory(cpu, op, SHORT) {
        Ok(()) => next(cpu, op),
        Err(Fault) => abort(cpu, op),
    }
}

#[inline(never)]
fn execute_memory(cpu: &mut Cpu, op: &Op, short: bool) -> Result<(), Fault> {
    let (first, second) = bytes(op);
    let reg = second >> 3 & 7;
    if waits(first, second) {
        cpu.check_x87()?;
    }
    let address = cpu.address(op);
    let kind = operand(first, reg);
    let (bytes, stores) = match kind {
        Operand::Load(bytes) => (usize::from(bytes), false),
        Operand::Store(bytes) => (usize::from(bytes), true),
        Operand::LoadEnvironment(bytes) => (usize::from(bytes) - if short { 14 } else { 0 }, false),
        Operand::StoreEnvironment(bytes) => (usize::from(bytes) - if short { 14 } else { 0 }, true),
        Operand::Invalid => return cpu.raise(Exception::ud()),
    };
    let alignment = match bytes {
        10 => 8,
        14 | 94 => 2,
        28 | 108 => 4,
        number => number as u64,
    };
    cpu.check_canonical(address, bytes as u64)?;
    cpu.check_aligned(address, alignment)?;
    let mut data = [0; 108];
    if stores {
        cpu.check_write(address, bytes as u64)?;
    }
    // An unmasked exception keeps the instruction from storing: then what was there is stored again.
    cpu.read_bytes(address, &mut data[..bytes])?;
    let form = match (short, kind) {
        (true, Operand::LoadEnvironment(_) | Operand::StoreEnvironment(_)) => {
            &SHORT_FORMS[usize::from(first / 4)]
        }
        _ => &MEMORY_FORMS[usize::from(first)],
    };
    let mut image = Image::new(&cpu.fpu);
    form[usize::from(reg)](&mut image, &mut data);
    let mut after = cpu.fpu;
    image.store(&mut after);
    match kind {
        Operand::LoadEnvironment(_) => load_pointers(&mut after, &data, short),
        Operand::StoreEnvironment(_) => store_pointers(&cpu.fpu, &mut data, short),
        _ => {}
    }
    if stores {
        cpu.write_bytes(address, &data[..bytes])?;
    }
    if (first, reg) == (5, 6) {
        (after.fop, after.fip, after.fdp) = (0, 0, 0);
    }
    cpu.fpu = after;
    if !is_control(first, second) {
        cpu.note_x87(op, first, second);
        cpu.fpu.fdp = address;
    }
    Ok(())
}

fn word(data: &[u8; 108], at: usize) -> u16 {
    u16::from_le_bytes([data[at], data[at + 1]])
}

/// The pointers of an environment in protected-mode layout (SDM vol. 1, 8.1.10); selectors are dropped.
fn load_pointers(fpu: &mut Fpu, data: &[u8; 108], short: bool) {
    let long = |at: usize| u64::from(word(data, at)) | u64::from(word(data, at + 2)) << 16;
    if short {
        (fpu.fip, fpu.fdp, fpu.fop) = (u64::from(word(data, 6)), u64::from(word(data, 10)), 0);
    } else {
        (fpu.fip, fpu.fdp, fpu.fop) = (long(12), long(20), word(data, 18) & 0x7ff);
    }
}

fn store_pointers(fpu: &Fpu, data: &mut [u8; 108], short: bool) {
    let mut put = |at: usize, value: u64, bytes: usize| {
        data[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
    };
    if short {
        put(6, fpu.fip, 2);
        put(8, 0, 2);
        put(10, fpu.fdp, 2);
        put(12, 0, 2);
    } else {
        put(12, fpu.fip, 4);
        put(16, u64::from(fpu.fop) << 16, 4);
        put(20, fpu.fdp, 4);
        put(24, 0xffff_0000, 4);
    }
}

/// First two bytes of the instruction behind its prefixes.
fn opcode(builder: &Builder) -> Option<(u8, u8, bool)> {
    let mut short = false;
    let mut bytes = builder.raw.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            0x66 => short = true,
            0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67 | 0xf2 | 0xf3 => {}
            0x40..=0x4f if builder.is_long() => {}
            0xd8..=0xdf => return Some((byte - 0xd8, *bytes.next()?, short)),
            _ => return None,
        }
    }
    None
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let unavailable = builder.mode & (mode::TASK_SWITCHED | mode::EMULATION) != 0;
    if insn.mnemonic() == Mnemonic::Wait {
        let run = if builder.mode & mode::MONITORED != 0 { NOT_AVAILABLE } else { wait };
        builder.push(Op::new(run));
        return Lowered::Continues;
    }
    let Some((first, second, short)) = opcode(builder).filter(|_| !insn.is_invalid()) else {
        return Lowered::Unknown;
    };
    let mut op = Op::new(if (first, second) == (7, 0xe0) { store_status } else { register_form });
    op.imm = u64::from(second) << 8 | u64::from(first);
    if second < 0xc0 {
        if operand(first, second >> 3 & 7) == Operand::Invalid {
            return Lowered::Unknown;
        }
        op.run = if short { memory_form::<true> } else { memory_form::<false> };
        if !unavailable && waits(first, second) && !builder.is_long() {
            // Exceptions that are pending come before those of the operand's segment.
            builder.push(Op::new(wait));
        }
        if !unavailable {
            builder.memory(&mut op, insn);
        }
    }
    if unavailable {
        op = Op::new(NOT_AVAILABLE);
    }
    builder.push(op);
    Lowered::Continues
}
