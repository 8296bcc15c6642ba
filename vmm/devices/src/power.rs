//! Ways for a guest to end its machine: ACPI PM1a control (ACPI 6.5, 4.8.3.2), the reset control register of
//! PC chipsets at 0xcf9, the keyboard controller's reset pulse, and the event port's exit status.

use serde::{Deserialize, Serialize};

use crate::layout::{KEYBOARD_RESET, PM1A_SLP_EN, RESET_CPU};

/// SCI_EN in PM1a control: the machine is in ACPI mode from the start.
const PM1A_SCI_EN: u16 = 1;

/// How the guest ended its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// It switched itself off, with this exit status (0 by ACPI).
    PowerOff(u8),
    /// It asked for a reset.
    Reset,
}

/// Remembers the first ending.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Power {
    ended: Option<Ending>,
}

impl Power {
    pub(crate) fn ended(&self) -> Option<Ending> {
        self.ended
    }

    pub(crate) fn exit(&mut self, status: u8) {
        self.ended.get_or_insert(Ending::PowerOff(status));
    }

    pub(crate) fn read_pm1a(&self) -> u16 {
        PM1A_SCI_EN
    }

    pub(crate) fn write_pm1a(&mut self, value: u16) {
        if value & PM1A_SLP_EN != 0 {
            self.exit(0);
        }
    }

    pub(crate) fn write_keyboard_command(&mut self, value: u8) {
        if value == KEYBOARD_RESET {
            self.ended.get_or_insert(Ending::Reset);
        }
    }

    pub(crate) fn write_reset(&mut self, value: u8) {
        if value & RESET_CPU != 0 {
            self.ended.get_or_insert(Ending::Reset);
        }
    }
}
