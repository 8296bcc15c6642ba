//! What translated code finds at the host's RSP: state that has no register, and where things are.
//!
//! A stack lies below it, for the calls of translated code and for the frames of signals.

use super::flags;
use super::groups::GROUPS;
use super::mapping::Mapping;
use crate::flags::Lazy;

/// Why translated code was left.
pub mod exit {
    /// The block of site `argument` does not fit below the limit: `rip` is its start.
    pub const LIMIT: u32 = 0;
    /// A branch to `rip`, which was not found.
    pub const LOOKUP: u32 = 1;
    /// The edge number `argument` is not linked; it leads to `rip`.
    pub const LINK: u32 = 2;
    /// The instruction of the site number `argument` is to be interpreted.
    pub const INTERPRET: u32 = 3;
    /// The block of site `argument` found the stack's page not to be the one at hand.
    pub const STACK: u32 = 4;
    /// As `LOOKUP`, after the pop of a RET at site `argument`.
    pub const RETURN: u32 = 5;
    /// Flags cannot be brought back in place: the instruction of the call that returns to `argument` is to be
    /// interpreted.
    pub const FLAGS: u32 = 6;
    /// An access of the call that returns to `argument` found no entry in the TLB; bits 0–2 are
    /// `routines::access_number`.
    pub const ACCESS: u32 = 16;
    /// The first access of a group, of the call that returns to `argument`, found no entry in the TLB that
    /// covers the group.
    pub const GROUP: u32 = 7;
    /// Of `ACCESS`: it is a write.
    pub const WRITE: u32 = 8;
}

/// An RIP and the code for it.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Jump {
    pub rip: u64,
    /// Offset in code memory.
    pub code: u32,
    /// Valid while `Frame::id` is this.
    pub id: u32,
}

/// Slots of the jump cache, as a power of two.
pub const JUMP_BITS: u32 = 15;
/// Of a multiplicative hash of RIP's low half.
pub const JUMP_FACTOR: u32 = 0x9e37_79b1;

/// The slot of an RIP.
pub fn jump_slot(rip: u64) -> usize {
    ((rip as u32).wrapping_mul(JUMP_FACTOR) >> (32 - JUMP_BITS)) as usize
}

/// Offsets are short up to 127.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Frame {
    /// How the status flags are kept: `flags::kind`, and, above it, `flags::overlay`.
    pub kind: u32,
    pub overlay: u32,
    /// Operands or results by `kind`.
    pub a: u64,
    pub b: u64,
    /// CF before, or beside.
    pub carry: u64,
    /// What an overlay takes CF (and OF) from.
    pub rotated: u64,
    /// The stack's page, and what makes an address of it one of the host. Or `none` is not zero: an RSP can
    /// have any value, so that no `page` would say it.
    pub page: u64,
    pub none: u64,
    pub addend: u64,
    /// Guest registers R8 to R11.
    pub spilled: [u64; 4],
    /// As `Cpu::space`.
    pub space: u64,
    /// Of links and the jump cache: the address space and the epoch.
    pub id: u32,
    /// The XMM registers are loaded.
    pub vectors: u32,
    /// Linear address of the access being checked.
    pub address: u64,
    pub rip: u64,
    /// Tables of the TLB.
    pub reads: u64,
    pub writes: u64,
    pub jumps: u64,
    /// Address of code memory.
    pub code: u64,
    /// Bases of FS and GS.
    pub bases: [u64; 2],
    /// Where the registers are kept outside.
    pub regs: u64,
    pub xmm: u64,
    /// RSP outside.
    pub host: u64,
    /// Steps to the limit.
    pub left: u64,
    pub exit: u32,
    /// So many more branches to other pages go by the jump cache before one is linked anew.
    pub relink: u32,
    pub argument: u64,
    /// A value on its way between two accesses of an instruction.
    pub value: u64,
    /// Guest registers whose own registers have others, while a block runs that does not name them.
    pub parked: [u64; 4],
    /// Addends of groups of accesses, as `groups` finds them.
    pub groups: [u64; GROUPS],
}

/// `Frame::none` of a frame without a page of the stack.
pub const NONE: u64 = 1 << 63;

/// Bytes below the frame.
const STACK: usize = 1 << 20;
const GUARD: usize = 64 << 10;

/// A frame with the stack below it, in a mapping of its own.
pub struct Stack(Mapping);

impl Stack {
    /// A frame of zeros is valid; whoever enters completes it.
    pub fn new() -> Option<Self> {
        let bytes = GUARD + STACK + size_of::<Frame>().next_multiple_of(4096);
        Mapping::guarded(bytes, GUARD).map(Self)
    }

    /// The frame, while translated code does not run.
    pub fn get(&self) -> &Frame {
        // SAFETY: the frame is in the mapping, and nobody else has a reference.
        unsafe { &*self.frame() }
    }

    /// The same.
    pub fn get_mut(&mut self) -> &mut Frame {
        // SAFETY: as above.
        unsafe { &mut *self.frame() }
    }

    /// The frame, aligned as it asks for.
    pub fn frame(&self) -> *mut Frame {
        self.0.start().wrapping_add(GUARD + STACK).cast()
    }
}

impl Frame {
    /// The status flags as the interpreter keeps them.
    pub fn flags(&self) -> Lazy {
        flags::interpret(self)
    }

    /// The same flags in the way that the host takes back.
    pub fn set_raw_flags(&mut self) {
        self.set_flags(self.flags());
    }

    /// Takes the interpreter's flags, in that way.
    pub fn set_flags(&mut self, flags: Lazy) {
        let flags = flags.rflags();
        (self.kind, self.overlay) = (flags::kind::RAW, flags::overlay::NONE);
        self.a = flags << 8 & 0xff00 | u64::from(flags & crate::flags::OF != 0);
    }
}
