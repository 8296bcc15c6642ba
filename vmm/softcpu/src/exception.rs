//! Exceptions and interrupts: what they are (SDM vol. 3, chapter 6). `interrupt` delivers them.

use crate::Cpu;
use crate::op::{Op, abort};

/// How an event relates to the instruction at RIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The instruction at RIP is executed again after the handler.
    Fault,
    /// The instruction before RIP was completed.
    Trap,
    /// From a device, between two instructions.
    External,
    /// INT n, INT3, INTO of this length at RIP: the handler returns to the instruction after it, and its gate
    /// must allow this privilege.
    Software(u8),
    /// INT1, of this length at RIP: as `Software`, for every privilege.
    Privileged(u8),
}

/// An exception that an instruction raised, or an interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// 0–31; of interrupts 0–255.
    pub vector: u8,
    /// Pushed onto the handler's stack, where the exception has one.
    pub error: Option<u32>,
    /// Goes to CR2 (#PF), DR6 (#DB) or names the address (`non_canonical`).
    pub detail: u64,
    /// Where it comes from.
    pub kind: Kind,
}

#[allow(missing_docs)]
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const XM: u8 = 19;
}

impl Exception {
    /// A fault without an error code.
    pub const fn fault(vector: u8) -> Self {
        Self { vector, error: None, detail: 0, kind: Kind::Fault }
    }

    /// A fault with an error code.
    pub const fn coded(vector: u8, error: u32) -> Self {
        Self { vector, error: Some(error), detail: 0, kind: Kind::Fault }
    }

    /// Invalid opcode.
    pub const fn ud() -> Self {
        Self::fault(vector::UD)
    }

    /// Device not available.
    pub const fn nm() -> Self {
        Self::fault(vector::NM)
    }

    /// Divide error.
    pub const fn de() -> Self {
        Self::fault(vector::DE)
    }

    /// General protection.
    pub const fn gp(error: u32) -> Self {
        Self::coded(vector::GP, error)
    }

    /// A data access to a non-canonical address: #SS(0) through the stack segment, else #GP(0). Which of the
    /// two is found out when it is delivered.
    pub const fn non_canonical(address: u64) -> Self {
        Self { vector: vector::GP, error: Some(0), detail: address, kind: Kind::Fault }
    }

    /// Page fault at `address`.
    pub const fn page_fault(address: u64, error: u32) -> Self {
        Self { vector: vector::PF, error: Some(error), detail: address, kind: Kind::Fault }
    }

    /// Debug exception; `conditions` are bits of DR6.
    pub const fn debug(conditions: u64, kind: Kind) -> Self {
        Self { vector: vector::DB, error: None, detail: conditions, kind }
    }

    /// An interrupt without an error code.
    pub const fn interrupt(vector: u8, kind: Kind) -> Self {
        Self { vector, error: None, detail: 0, kind }
    }
}

/// Raises an exception at an op: the instruction ends without effect.
#[cold]
#[inline(never)]
pub fn raise_at(cpu: &mut Cpu, op: &Op, exception: Exception) {
    let _ = cpu.raise::<()>(exception);
    abort(cpu, op)
}

/// Whether a linear address is one of the 2^48 that exist.
#[inline(always)]
pub const fn is_canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}
