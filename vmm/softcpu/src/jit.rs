//! How instructions are executed: translated or interpreted. It changes nothing that a guest could tell.

use crate::Cpu;

/// Whether code is translated into the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Jit {
    /// Where the host can.
    #[default]
    On,
    /// Everything is interpreted.
    Off,
    /// Both, on two processors that are compared.
    Check,
}

impl Cpu {
    /// Sets whether code is translated.
    pub fn set_jit(&mut self, jit: Jit) {
        self.jit = jit;
        self.set_translation((jit != Jit::Off).then_some(crate::THRESHOLD));
    }

    /// Whether code is to be translated.
    pub fn jit(&self) -> Jit {
        self.jit
    }

    /// Sets whether translated code is listed for `perf`.
    pub fn set_perf_map(&mut self, on: bool) {
        self.perf_map = on;
    }

    /// Whether translated code is to be listed for `perf`.
    pub fn perf_map(&self) -> bool {
        self.perf_map
    }
}
