//! What the processor did besides the guest's instructions.

use crate::Cpu;

/// Counts since the processor was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Translated blocks that there are.
    pub blocks: u64,
    /// Bytes of their code.
    pub bytes: u64,
    /// Blocks translated.
    pub translations: u64,
    /// Blocks dropped, because their code changed, to make room, or as they were translated anew.
    pub invalidations: u64,
    /// Time spent translating, nanoseconds.
    pub translating_ns: u64,
    /// Instructions executed as translated code, of all that `Cpu::retired` counts.
    pub native_instructions: u64,
}

impl Cpu {
    /// What it did so far.
    pub fn statistics(&self) -> Statistics {
        self.native.as_ref().map_or_else(Statistics::default, |native| native.statistics())
    }
}
