//! Power management: ACPI's PM1a event and control blocks (ACPI 6.5, 4.8.3.1 and 4.8.3.2) and timer
//! (4.8.2.1), and the other ways for a guest to end its machine: the reset control register of PC chipsets at
//! 0xcf9, the keyboard controller's reset pulse, and the event port's exit status.
//!
//! The machine is in ACPI mode from the start, and stays there: SCI_EN is wired to 1. The one event of the
//! PM1a block that happens is the fixed-feature power button (4.8.2.2.1.1): a press sets PWRBTN_STS, and the
//! SCI, a level, is high as long as that is set and enabled. What else the guest enables it reads back.
//!
//! ```text
//!  press ─▶ PWRBTN_STS ─┬─ AND ─▶ SCI        PWRBTN_STS is cleared by writing 1 to it
//!            PWRBTN_EN ─┘
//! ```

use serde::{Deserialize, Serialize};

use crate::layout::{KEYBOARD_RESET, PM1A_SLP_EN, RESET_CPU};

/// Frequency of the ACPI timer.
const TIMER_HZ: u128 = 3_579_545;
/// SCI_EN in PM1a control.
const PM1A_SCI_EN: u16 = 1;
/// The power button's bit in PM1a status and in PM1a enable.
const PWRBTN: u16 = 1 << 8;

/// How the guest ended its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// It switched itself off, with this exit status (0 by ACPI).
    PowerOff(u8),
    /// It asked for a reset.
    Reset,
}

/// Remembers the first ending, which events happened, and which of them the guest enabled.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Power {
    ended: Option<Ending>,
    status: u16,
    enabled: u16,
}

impl Power {
    pub(crate) fn ended(&self) -> Option<Ending> {
        self.ended
    }

    pub(crate) fn exit(&mut self, status: u8) {
        self.ended.get_or_insert(Ending::PowerOff(status));
    }

    /// Somebody presses the power button. Pressed again before the guest has seen it, it is pressed once.
    pub(crate) fn press_button(&mut self) {
        self.status |= PWRBTN;
    }

    /// Whether the power button was pressed since the guest cleared its status.
    pub(crate) fn is_button_pressed(&self) -> bool {
        self.status & PWRBTN != 0
    }

    /// The SCI: an event that happened is enabled.
    pub(crate) fn line(&self) -> bool {
        self.status & self.enabled != 0
    }

    /// One byte of the PM1a event block: status, then enable.
    pub(crate) fn read_event(&self, register: u16) -> u8 {
        let [status, enabled] = [self.status, self.enabled].map(u16::to_le_bytes);
        match register {
            0 | 1 => status[usize::from(register)],
            2 | 3 => enabled[usize::from(register - 2)],
            _ => 0,
        }
    }

    /// Status bits are cleared by writing 1 to them; enable bits are as written.
    pub(crate) fn write_event(&mut self, register: u16, value: u8) {
        let shift = register % 2 * 8;
        let written = u16::from(value) << shift;
        match register {
            0 | 1 => self.status &= !written,
            2 | 3 => self.enabled = self.enabled & !(0xff << shift) | written,
            _ => {}
        }
    }

    /// The ACPI timer, 32 bits wide, at this virtual time.
    #[allow(clippy::cast_possible_truncation, reason = "the timer has 32 bits, and wraps")]
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

#[cfg(test)]
#[path = "power_tests.rs"]
mod tests;
