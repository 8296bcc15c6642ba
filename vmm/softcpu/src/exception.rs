//! Exceptions and interrupts: what they are, and how they are delivered (SDM vol. 3, chapter 6).

/// An exception that an instruction raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// 0–31.
    pub vector: u8,
    /// Pushed onto the handler's stack, where the exception has one.
    pub error: Option<u32>,
    /// Goes to CR2 (#PF), DR6 (#DB) or names the address (`non_canonical`).
    pub detail: u64,
    /// The instruction was completed (traps), or is the one to be executed again (faults).
    pub trap: bool,
}

#[allow(missing_docs)]
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
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
        Self { vector, error: None, detail: 0, trap: false }
    }

    /// A fault with an error code.
    pub const fn coded(vector: u8, error: u32) -> Self {
        Self { vector, error: Some(error), detail: 0, trap: false }
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
        Self { vector: vector::GP, error: Some(0), detail: address, trap: false }
    }

    /// Page fault at `address`.
    pub const fn page_fault(address: u64, error: u32) -> Self {
        Self { vector: vector::PF, error: Some(error), detail: address, trap: false }
    }
}

impl crate::Cpu {
    /// Delivers an exception, as one step.
    pub(crate) fn deliver(&mut self, _exception: Exception) {
        self.retired += 1;
        self.abort = crate::cpu::Abort::After(crate::Exit::Shutdown);
    }

    /// Delivers an external interrupt, as one step.
    pub(crate) fn deliver_interrupt(&mut self, _vector: u8) {
        self.retired += 1;
        self.abort = crate::cpu::Abort::After(crate::Exit::Shutdown);
    }
}
