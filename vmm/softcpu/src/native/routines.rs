//! Code that is made once: entering and leaving translated code, checks of accesses, flags brought back, the
//! jump cache.

use std::mem::offset_of;

use super::code::CodeMemory;
use super::emit::{Code, Mem, Opcode, R12, R13, R14, R15, RAX, RSP, Reg, Target, cc};
use super::flags::kind;
use super::frame::{Frame, JUMP_BITS, JUMP_FACTOR, Jump, exit};
use crate::mem::{READ_ENTRIES, WRITE_ENTRIES};
use crate::ram::PAGE;

/// A field of the frame, for translated code.
macro_rules! field {
    ($name:ident) => {
        $crate::native::emit::Mem::base(
            $crate::native::emit::RSP,
            std::mem::offset_of!($crate::native::frame::Frame, $name) as i32,
        )
    };
}
pub(super) use field;

/// The same for a routine that was called.
fn called(field: Mem) -> Mem {
    Mem { disp: field.disp + 8, ..field }
}

/// The host's register for each guest register that has one: R8 to R11 are in the frame.
pub const HOST: [Option<Reg>; 16] = [
    Some(0),
    Some(1),
    Some(2),
    Some(3),
    Some(R15),
    Some(5),
    Some(6),
    Some(7),
    None,
    None,
    None,
    None,
    Some(8),
    Some(9),
    Some(10),
    Some(11),
];

/// Where a guest register without one of the host is.
pub fn spilled(guest: u8) -> Mem {
    let field = offset_of!(Frame, spilled) as i32;
    Mem::base(RSP, field + 8 * i32::from(guest - 8))
}

/// Where the guest register is whose register has the value of another, the block's `number`th.
pub fn parked(number: usize) -> Mem {
    Mem::base(RSP, offset_of!(Frame, parked) as i32 + 8 * number as i32)
}

/// Where the addend of a group of accesses is.
pub fn group(number: usize) -> Mem {
    Mem::base(RSP, offset_of!(Frame, groups) as i32 + 8 * number as i32)
}

/// Offsets in code memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct Routines {
    /// `extern "sysv64" fn(*mut Frame, u64)`: runs code at an address until it is left.
    pub enter: u32,
    /// Ends `enter`; `exit` and what belongs to it are set.
    pub leave: u32,
    /// Loads the XMM registers. R12 is lost.
    pub load_vectors: u32,
    /// Goes on at the RIP in R14.
    pub find: u32,
    /// Brings the status flags back from the frame. R12 and R14 are lost.
    pub restore: u32,
    /// Makes the page that has the bytes from R12 to R14 the stack's, if the TLB has it for writes: ZF says
    /// so. R12 and R14 are lost.
    pub stack: u32,
    /// Reads of 1, 2, 4, 8, 16 bytes, and of 16 that must be aligned: R12 has the linear address and is lost;
    /// the result, in R14, is what makes it an address of the host.
    pub reads: [u32; 6],
    /// The same for writes.
    pub writes: [u32; 6],
    /// Leaves: the access at the linear address in R12 is the first of a group that no entry covers.
    pub group: u32,
}

/// Which of `Routines::reads` an access takes.
pub fn access_number(bytes: u32, aligned: bool) -> usize {
    if aligned { 5 } else { bytes.trailing_zeros() as usize }
}

impl Routines {
    /// Makes all of them.
    pub fn new(memory: &mut CodeMemory) -> Self {
        let mut made = Self { leave: place(memory, leave), ..Self::default() };
        made.enter = place(memory, enter);
        made.load_vectors = place(memory, load_vectors);
        made.find = place(memory, |code| find(code, made.leave));
        made.restore = place(memory, |code| restore(code, made.leave));
        made.stack = place(memory, find_stack);
        for (number, bytes, aligned) in
            [(0, 1, false), (1, 2, false), (2, 4, false), (3, 8, false), (4, 16, false), (5, 16, true)]
        {
            made.reads[number] = place(memory, |code| check(code, bytes, aligned, false, made.leave));
            made.writes[number] = place(memory, |code| check(code, bytes, aligned, true, made.leave));
        }
        made.group = place(memory, |code| {
            code.store(called(field!(address)), R12);
            give_up(code, exit::GROUP, made.leave);
        });
        memory.keep();
        made
    }
}

fn place(memory: &mut CodeMemory, make: impl FnOnce(&mut Code)) -> u32 {
    let mut code = Code::default();
    make(&mut code);
    let at = memory.next().0;
    memory.place(&code, &Code::default());
    at
}

const SAVED: [Reg; 6] = [3, 5, R12, R13, R14, R15];

fn enter(code: &mut Code) {
    const RDI: Reg = 7;
    const RSI: Reg = 6;
    for register in SAVED {
        code.opcode_register(Opcode::one(0x50, false), register);
    }
    code.store(Mem::base(RDI, field!(host).disp), RSP);
    code.mov(RSP, RDI);
    code.store(field!(argument), RSI);
    code.load(R12, field!(regs));
    for guest in 0..16u8 {
        let kept = Mem::base(R12, 8 * i32::from(guest));
        match HOST[usize::from(guest)] {
            Some(host) => code.load(host, kept),
            None => {
                code.load(R14, kept);
                code.store(spilled(guest), R14);
            }
        }
    }
    code.load(R13, field!(left));
    if_vectors(code, |code| {
        code.load(R12, field!(xmm));
        vectors(code, 0x28);
    });
    code.rm(Opcode::one(0xff, false), 4, field!(argument));
}

fn leave(code: &mut Code) {
    code.store(field!(left), R13);
    code.load(R12, field!(regs));
    for guest in 0..16u8 {
        let kept = Mem::base(R12, 8 * i32::from(guest));
        match HOST[usize::from(guest)] {
            Some(host) => code.store(kept, host),
            None => {
                code.load(R14, spilled(guest));
                code.store(kept, R14);
            }
        }
    }
    if_vectors(code, |code| {
        code.load(R12, field!(xmm));
        vectors(code, 0x29);
        code.store32_constant(field!(vectors), 0);
    });
    code.load(RSP, field!(host));
    for register in SAVED.into_iter().rev() {
        code.opcode_register(Opcode::one(0x58, false), register);
    }
    code.byte(0xc3);
}

/// What `make` makes is executed if the XMM registers are, or are to be, loaded.
fn if_vectors(code: &mut Code, make: impl FnOnce(&mut Code)) {
    code.rm(Opcode::one(0x83, false), 7, field!(vectors));
    code.byte(0);
    let place = code.here() + 2;
    code.jcc(cc::E, Target::Hot(0));
    make(code);
    let here = code.here();
    for (at, target) in &mut code.fixups {
        if *at == place {
            *target = Target::Hot(here);
        }
    }
}

/// MOVAPS of all XMM registers: 28 loads, 29 stores.
fn vectors(code: &mut Code, opcode: u8) {
    for number in 0..16u8 {
        code.rm(Opcode::two(opcode, false), number, Mem::base(R12, 16 * i32::from(number)));
    }
}

fn load_vectors(code: &mut Code) {
    code.load(R12, called(field!(xmm)));
    vectors(code, 0x28);
    code.store32_constant(called(field!(vectors)), 1);
    code.byte(0xc3);
}

/// Looks up the RIP in R14, and goes there if it is found; else to what follows.
pub fn look_up(code: &mut Code) {
    code.store(field!(rip), R14);
    // imul r12d, r14d, factor
    code.rr(Opcode::one(0x69, false), R12, R14);
    code.dword(JUMP_FACTOR as i32);
    code.shift(5, false, R12, (32 - JUMP_BITS) as u8);
    code.shift(4, false, R12, size_of::<Jump>().trailing_zeros() as u8);
    // add r12, [jumps]
    code.rm(Opcode::one(0x03, true), R12, field!(jumps));
    code.rm(Opcode::one(0x3b, true), R14, Mem::base(R12, offset_of!(Jump, rip) as i32));
    let other = code.skip(cc::NE);
    code.load32(R14, field!(id));
    code.rm(Opcode::one(0x3b, false), R14, Mem::base(R12, offset_of!(Jump, id) as i32));
    let stale = code.skip(cc::NE);
    code.load32(R12, Mem::base(R12, offset_of!(Jump, code) as i32));
    code.rm(Opcode::one(0x03, true), R12, field!(code));
    code.rr(Opcode::one(0xff, false), 4, R12);
    code.land(other);
    code.land(stale);
}

fn find(code: &mut Code, leave: u32) {
    look_up(code);
    code.store32_constant(field!(exit), exit::LOOKUP as i32);
    code.jmp(Target::Code(leave));
}

/// Where the access's entry is: the tag of its last byte in R14, the entry's address in R12. `field` names
/// fields of the frame from here.
pub fn probe(code: &mut Code, bytes: u32, write: bool, field: impl Fn(Mem) -> Mem) {
    code.lea(R14, Mem::base(R12, bytes as i32 - 1));
    entry(code, R12, write, &field);
    code.arithmetic(4, true, R14, -(PAGE as i32));
    // or r14, [space]
    code.rm(Opcode::one(0x0b, true), R14, field(field!(space)));
    code.rm(Opcode::one(0x3b, true), R14, Mem::base(R12, 0));
}

/// Where the TLB's entry of the address in a register is.
fn entry(code: &mut Code, register: Reg, write: bool, field: impl Fn(Mem) -> Mem) {
    let (entries, table) =
        if write { (WRITE_ENTRIES, field!(writes)) } else { (READ_ENTRIES, field!(reads)) };
    // Sixteen bytes an entry.
    code.shift(5, true, register, PAGE.trailing_zeros() as u8 - 4);
    code.arithmetic(4, false, register, ((entries - 1) << 4) as i32);
    code.rm(Opcode::one(0x03, true), register, field(table));
}

fn find_stack(code: &mut Code) {
    code.rr(Opcode::one(0x33, true), R12, R14);
    code.arithmetic(7, true, R12, PAGE as i32 - 1);
    let crosses = code.skip(cc::A);
    code.mov(R12, R14);
    entry(code, R12, true, called);
    code.arithmetic(4, true, R14, -(PAGE as i32));
    code.rm(Opcode::one(0x0b, true), R14, called(field!(space)));
    code.rm(Opcode::one(0x3b, true), R14, Mem::base(R12, 0));
    let miss = code.skip(cc::NE);
    code.load(R12, Mem::base(R12, 8));
    code.store(called(field!(addend)), R12);
    code.arithmetic(4, true, R14, -(PAGE as i32));
    code.store(called(field!(page)), R14);
    code.store_constant(called(field!(none)), 0);
    code.rr(Opcode::one(0x3b, true), R14, R14);
    code.land(miss);
    code.land(crosses);
    code.byte(0xc3);
}

/// Whether R12 is a multiple of 16: as ZF.
pub fn test_alignment(code: &mut Code) {
    code.rr(Opcode { rex: true, ..Opcode::one(0xf6, false) }, 0, R12);
    code.byte(15);
}

fn check(code: &mut Code, bytes: u32, aligned: bool, write: bool, leave: u32) {
    code.store(called(field!(address)), R12);
    let mut misaligned = None;
    if aligned {
        test_alignment(code);
        misaligned = Some(code.skip(cc::NE));
    }
    probe(code, bytes, write, called);
    let miss = code.skip(cc::NE);
    code.load(R14, Mem::base(R12, 8));
    code.byte(0xc3);
    code.land(miss);
    if let Some(misaligned) = misaligned {
        code.land(misaligned);
    }
    let write = if write { exit::WRITE } else { 0 };
    give_up(code, exit::ACCESS | write | access_number(bytes, aligned) as u32, leave);
}

/// Leaves from a routine that was called.
fn give_up(code: &mut Code, exit: u32, leave: u32) {
    code.opcode_register(Opcode::one(0x58, false), R14);
    code.store(field!(argument), R14);
    code.store32_constant(field!(exit), exit as i32);
    code.jmp(Target::Code(leave));
}

/// Brings flags back that were stored by a kind with two operands, or a result.
pub fn restore_kind(code: &mut Code, of: u32, field: impl Fn(Mem) -> Mem) -> bool {
    let width = of & 3;
    // Opcodes of operations on bytes are one less than on words.
    let sized = |byte: u8| Opcode {
        prefix: (width == 1).then_some(0x66),
        wide: width == 3,
        rex: true,
        ..Opcode::one(byte | u8::from(width > 0), false)
    };
    let (a, b) = (field(field!(a)), field(field!(b)));
    match of & !3 {
        0 if of == kind::RAW => {
            code.mov(R12, RAX);
            code.load(RAX, a);
            // add al, 7f; sahf
            code.byte(0x04);
            code.byte(0x7f);
            code.byte(0x9e);
            code.mov(RAX, R12);
        }
        kind::SUB => {
            code.load(R12, a);
            code.rm(sized(0x3a), R12, b);
        }
        kind::ADD => {
            code.load(R12, a);
            code.rm(sized(0x02), R12, b);
        }
        kind::SUM => {
            code.load(R12, a);
            code.rm(sized(0x2a), R12, b);
            code.rm(sized(0x02), R12, b);
        }
        kind::DIFFERENCE => {
            code.load(R12, a);
            code.rm(sized(0x02), R12, b);
            code.rm(sized(0x2a), R12, b);
        }
        kind::LOGIC => {
            code.load(R12, a);
            code.rr(sized(0x84), R12, R12);
        }
        kind::TEST => {
            code.load(R12, a);
            code.rm(sized(0x84), R12, b);
        }
        kind::INC | kind::DEC => {
            let up = of & !3 == kind::INC;
            code.load(R12, a);
            code.advance(R12, if up { -1 } else { 1 });
            code.test_bit(field(field!(carry)));
            code.rr(sized(0xfe), u8::from(!up), R12);
        }
        _ => return false,
    }
    true
}

fn restore(code: &mut Code, leave: u32) {
    let mut bodies = Vec::new();
    let mut table = Code::default();
    for of in 0..kind::END {
        let mut body = Code::default();
        if restore_kind(&mut body, of, called) {
            body.byte(0xc3);
        } else {
            give_up(&mut body, exit::FLAGS, leave);
        }
        bodies.push(body);
    }
    let longest = bodies.iter().map(Code::here).max().unwrap_or(0).next_power_of_two();
    // Flags with an overlay are not brought back here.
    code.rm(Opcode::one(0x83, false), 7, called(field!(overlay)));
    code.byte(0);
    let overlaid = code.here() + 6;
    code.jcc(cc::NE, Target::Hot(0));
    code.load32(R12, called(field!(kind)));
    code.shift(4, false, R12, longest.trailing_zeros() as u8);
    // lea r14, [rip + …]; add r14, r12; jmp r14
    code.byte(0x4c);
    code.byte(0x8d);
    code.byte(0x35);
    let base = code.here();
    code.dword(0);
    code.rr(Opcode::one(0x03, true), R14, R12);
    code.rr(Opcode::one(0xff, false), 4, R14);
    let give = code.here();
    give_up(code, exit::FLAGS, leave);
    code.fixups[0] = (overlaid - 4, Target::Hot(give));
    let start = code.here();
    code.bytes[base..base + 4].copy_from_slice(&((start - base - 4) as u32).to_le_bytes());
    for body in bodies {
        let at = code.here();
        for (place, target) in body.fixups {
            table.fixups.push((at + place, target));
        }
        code.bytes.extend_from_slice(&body.bytes);
        code.bytes.resize(at + longest, 0xcc);
    }
    code.fixups.append(&mut table.fixups);
}
