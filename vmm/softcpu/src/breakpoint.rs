//! Addresses at which a debugger wants the processor to stand still, before their instruction.
//!
//! No block begins at such an address and none goes past one, so every way there ends in the run loop, which
//! looks. Code without breakpoints runs as ever: setting them drops all decoded code once.

use std::collections::BTreeSet;

use crate::Cpu;

/// The addresses.
#[derive(Debug, Default)]
pub struct Breakpoints {
    addresses: BTreeSet<u64>,
    /// `run` stops there. Otherwise it goes over them one instruction at a time.
    obeyed: bool,
}

impl Breakpoints {
    /// Whether the instruction at this linear address is one.
    #[inline]
    pub(crate) fn has(&self, rip: u64) -> bool {
        !self.addresses.is_empty() && self.addresses.contains(&rip)
    }

    pub(crate) fn are_obeyed(&self) -> bool {
        self.obeyed
    }
}

impl Cpu {
    /// Sets the linear addresses (with a CS base of zero: values of RIP) of all breakpoints.
    pub fn set_breakpoints(&mut self, addresses: &BTreeSet<u64>) {
        if self.breakpoints.addresses != *addresses {
            self.breakpoints.addresses.clone_from(addresses);
            self.ram_written(0, self.ram.pages() * crate::ram::PAGE as usize);
        }
    }

    /// Whether `run` stops at breakpoints with `Exit::Breakpoint`, be it at its first instruction. They cost
    /// time at their addresses in any case.
    pub fn obey_breakpoints(&mut self, on: bool) {
        self.breakpoints.obeyed = on;
    }
}
