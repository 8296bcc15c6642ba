//! Single-step and debug registers (SDM vol. 3, 17.2 and 17.3).

use crate::Cpu;
use crate::flags;

impl Cpu {
    /// Whether instructions must be executed one by one.
    pub(crate) fn is_traced(&self) -> bool {
        self.system_flags & flags::TF != 0
    }

    /// What comes before an instruction executed by itself; false when it is not to be executed.
    pub(crate) fn before_traced(&mut self) -> bool {
        true
    }

    /// What comes after an instruction executed by itself, which held off traps if `_shadow`.
    pub(crate) fn after_traced(&mut self, _shadow: bool) {}

    /// Looks at a data access while data breakpoints are set.
    pub(crate) fn watch_access(&mut self, _address: u64, _write: bool) {}
}
