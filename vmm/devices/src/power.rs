//! Power management: ACPI's PM1a event and control blocks (ACPI 6.5, 4.8.3.1 and 4.8.3.2) and timer
//! (4.8.2.1), and the other ways for a guest to end its machine: the reset control register of PC chipsets at
//! 0xcf9, the keyboard controller's reset pulse, and the event port's exit status.
//!
//! The machine is in ACPI mode from the start. No event of the PM1a block ever happens, so its status is
//! always zero and the SCI is never raised; what the guest enables it reads back.

use serde::{Deserialize, Serialize};

use crate::layout::{KEYBOARD_RESET, PM1A_SLP_EN, RESET_CPU};

/// Frequency of the ACPI timer.
const TIMER_HZ: u128 = 3_579_545;
/// SCI_EN in PM1a control.
const PM1A_SCI_EN: u16 = 1;

/// How the guest ended its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// It switched itself off, with this exit status (0 by ACPI).
    PowerOff(u8),
    /// It asked for a reset.
    Reset,
}

/// Remembers the first ending, and which events the guest enabled.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Power {
    ended: Option<Ending>,
    events_enabled: [u8; 2],
}

impl Power {
    pub(crate) fn ended(&self) -> Option<Ending> {
        self.ended
    }

    pub(crate) fn exit(&mut self, status: u8) {
        self.ended.get_or_insert(Ending::PowerOff(status));
    }

    /// One byte of the PM1a event block: status, then enable.
    pub(crate) fn read_event(&self, register: u16) -> u8 {
        match register {
            2 | 3 => self.events_enabled[usize::from(register - 2)],
            _ => 0,
        }
    }

    /// Status bits are cleared by writing them; there are none.
    pub(crate) fn write_event(&mut self, register: u16, value: u8) {
        if let 2 | 3 = register {
            self.events_enabled[usize::from(register - 2)] = value;
        }
    }

    /// The ACPI timer, 32 bits wide, at this virtual time.
    pub(crate) fn timer(now_ns: u64) -> u32 {
        (u128::from(now_ns) * TIMER_HZ / 1_000_000_000) as u32
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
