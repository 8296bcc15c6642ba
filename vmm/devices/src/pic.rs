//! The interrupt controllers: two 8259As (Intel 8259A datasheet, 231468), the second one on input 2 of the
//! first, with the edge/level control registers of the PC's chipsets (ELCR).
//!
//! ```text
//!             ┌───────── 8259A, first ─────────┐
//!   line 0-7 ─┤ IRR ─ IMR ─ priority ─ ISR     ├─▶ INTR
//!             └──▲──────────────────────────────┘
//!              2 │
//!             ┌──┴────── 8259A, second ────────┐
//!  line 8-15 ─┤                                │
//!             └────────────────────────────────┘
//! ```
//!
//! An edge stays requested when its line falls before the acknowledge (as in the emulations all PC systems
//! run on; the chip would answer with its spurious vector), because timers here jump over short pulses. A
//! level goes with its line.

use serde::{Deserialize, Serialize};

use crate::layout::{CASCADE_IRQ, PIT_IRQ};

/// Inputs that are edges whatever ELCR says: timer, keyboard, cascade; RTC, coprocessor.
const ELCR_MASK: [u8; 2] = [0xf8, 0xde];

/// Progress of the initialisation sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Init {
    Done,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Chip {
    lines: u8,
    /// Requests of edges; those of levels are `lines`.
    edges: u8,
    mask: u8,
    in_service: u8,
    elcr: u8,
    vector_base: u8,
    init: Init,
    needs_icw4: bool,
    single: bool,
    level_triggered: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    special_fully_nested: bool,
    read_in_service: bool,
    poll: bool,
    /// The input of the lowest priority; the next one has the highest.
    lowest: u8,
    is_second: bool,
}

impl Chip {
    fn new(is_second: bool) -> Self {
        Self {
            lines: 0,
            edges: 0,
            // Firmware leaves everything masked.
            mask: 0xff,
            in_service: 0,
            elcr: 0,
            vector_base: 0,
            init: Init::Done,
            needs_icw4: false,
            single: false,
            level_triggered: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_mask: false,
            special_fully_nested: false,
            read_in_service: false,
            poll: false,
            lowest: 7,
            is_second,
        }
    }

    fn levels(&self) -> u8 {
        if self.level_triggered { 0xff } else { self.elcr }
    }

    fn requests(&self) -> u8 {
        let levels = self.levels();
        (self.edges & !levels) | (self.lines & levels)
    }

    fn set_line(&mut self, input: u8, level: bool) {
        let bit = 1 << (input & 7);
        if level {
            self.edges |= bit & !self.lines;
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
    }

    /// The position of the highest-priority input in `set`, 0 the highest; 8 if the set is empty.
    #[allow(clippy::cast_possible_truncation, reason = "at most 8")]
    fn priority(&self, set: u8) -> u8 {
        set.rotate_right(u32::from(self.highest())).trailing_zeros() as u8
    }

    fn input_at(&self, priority: u8) -> u8 {
        (self.highest() + priority) & 7
    }

    fn highest(&self) -> u8 {
        self.lowest.wrapping_add(1) & 7
    }

    /// The input that is to be served now, if any.
    fn pending(&self) -> Option<u8> {
        let requested = self.priority(self.requests() & !self.mask);
        if requested == 8 {
            return None;
        }
        let mut blocking = self.in_service;
        if self.special_mask {
            blocking &= !self.mask;
        }
        // Special fully nested: the second chip may raise again while an interrupt of it is in service.
        if self.special_fully_nested && !self.is_second {
            blocking &= !(1 << CASCADE_IRQ);
        }
        (requested < self.priority(blocking)).then(|| self.input_at(requested))
    }

    fn acknowledge(&mut self, input: u8) {
        self.edges &= !(1 << input);
        if !self.auto_eoi {
            self.in_service |= 1 << input;
        } else if self.rotate_on_auto_eoi {
            self.lowest = input;
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.initialise(value);
        } else if value & 0x08 != 0 {
            self.write_ocw3(value);
        } else {
            self.write_ocw2(value);
        }
    }

    fn initialise(&mut self, icw1: u8) {
        // Edge detection starts anew: an input must rise again. What ICW1 does not name keeps its value.
        self.edges = 0;
        self.mask = 0;
        self.in_service = 0;
        self.lowest = 7;
        self.special_mask = false;
        self.read_in_service = false;
        self.poll = false;
        self.rotate_on_auto_eoi = false;
        self.auto_eoi = false;
        self.special_fully_nested = false;
        self.needs_icw4 = icw1 & 0x01 != 0;
        self.single = icw1 & 0x02 != 0;
        self.level_triggered = icw1 & 0x08 != 0;
        self.init = Init::Icw2;
    }

    fn write_ocw2(&mut self, value: u8) {
        let named = value & 7;
        match value >> 5 {
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            0b001 | 0b101 => {
                let priority = self.priority(self.in_service_for_eoi());
                if priority < 8 {
                    let input = self.input_at(priority);
                    self.in_service &= !(1 << input);
                    if value >> 5 == 0b101 {
                        self.lowest = input;
                    }
                }
            }
            0b011 => self.in_service &= !(1 << named),
            0b111 => {
                self.in_service &= !(1 << named);
                self.lowest = named;
            }
            0b110 => self.lowest = named,
            // 0b010: no operation
            _ => {}
        }
    }

    /// In special mask mode a non-specific EOI does not clear a masked input (datasheet, special mask mode).
    fn in_service_for_eoi(&self) -> u8 {
        if self.special_mask { self.in_service & !self.mask } else { self.in_service }
    }

    fn write_ocw3(&mut self, value: u8) {
        self.poll = value & 0x04 != 0;
        if value & 0x02 != 0 {
            self.read_in_service = value & 0x01 != 0;
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }

    fn write_data(&mut self, value: u8) {
        match self.init {
            Init::Done => self.mask = value,
            Init::Icw2 => {
                self.vector_base = value & 0xf8;
                self.init = match (self.single, self.needs_icw4) {
                    (false, _) => Init::Icw3,
                    (true, true) => Init::Icw4,
                    (true, false) => Init::Done,
                };
            }
            // The wiring is fixed, whatever ICW3 says.
            Init::Icw3 => self.init = if self.needs_icw4 { Init::Icw4 } else { Init::Done },
            Init::Icw4 => {
                self.auto_eoi = value & 0x02 != 0;
                self.special_fully_nested = value & 0x10 != 0;
                self.init = Init::Done;
            }
        }
    }

    /// A read while a poll is due is an acknowledge.
    fn read(&mut self, data_port: bool) -> u8 {
        if std::mem::take(&mut self.poll) {
            return match self.pending() {
                Some(input) => {
                    self.acknowledge(input);
                    0x80 | input
                }
                None => 0,
            };
        }
        match (data_port, self.read_in_service) {
            (true, _) => self.mask,
            (false, true) => self.in_service,
            (false, false) => self.requests(),
        }
    }
}

/// The pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pic {
    chips: [Chip; 2],
}

impl Pic {
    pub(crate) fn new() -> Self {
        let mut chips = [Chip::new(false), Chip::new(true)];
        // The timer's output is high from the start, which is no edge.
        chips[0].lines = 1 << PIT_IRQ;
        Self { chips }
    }

    /// Sets the level of one of 16 interrupt lines.
    pub(crate) fn set_line(&mut self, irq: u8, level: bool) {
        self.chips[usize::from(irq >> 3 & 1)].set_line(irq & 7, level);
        if irq >= 8 {
            self.cascade();
        }
    }

    /// The INTR pin.
    pub(crate) fn intr(&self) -> bool {
        self.chips[0].pending().is_some()
    }

    /// Whether a request on this line would reach INTR were nothing in service.
    pub(crate) fn unmasked(&self, irq: u8) -> bool {
        let open = |chip: &Chip, input: u8| chip.mask & (1 << (input & 7)) == 0;
        match irq {
            0..8 => open(&self.chips[0], irq),
            _ => open(&self.chips[1], irq) && open(&self.chips[0], CASCADE_IRQ),
        }
    }

    /// The INTA cycles: the vector. When nothing is pending any more, the spurious one (input 7), which sets
    /// no in-service bit.
    pub(crate) fn acknowledge(&mut self) -> u8 {
        let [first, second] = &mut self.chips;
        let Some(input) = first.pending() else { return first.vector_base | 7 };
        if input != CASCADE_IRQ {
            first.acknowledge(input);
            return first.vector_base | input;
        }
        let vector = match second.pending() {
            Some(input) => {
                second.acknowledge(input);
                second.vector_base | input
            }
            None => second.vector_base | 7,
        };
        first.acknowledge(CASCADE_IRQ);
        self.recascade();
        vector
    }

    pub(crate) fn read(&mut self, second: bool, data_port: bool) -> u8 {
        let value = self.chips[usize::from(second)].read(data_port);
        if second {
            self.recascade();
        }
        value
    }

    pub(crate) fn write(&mut self, second: bool, data_port: bool, value: u8) {
        let chip = &mut self.chips[usize::from(second)];
        if data_port {
            chip.write_data(value)
        } else {
            chip.write_command(value)
        }
        self.cascade();
    }

    pub(crate) fn read_elcr(&self, second: bool) -> u8 {
        self.chips[usize::from(second)].elcr
    }

    pub(crate) fn write_elcr(&mut self, second: bool, value: u8) {
        let chip = &mut self.chips[usize::from(second)];
        chip.elcr = value & ELCR_MASK[usize::from(second)];
        self.cascade();
    }

    /// The second chip's output is the first one's input 2.
    fn cascade(&mut self) {
        let output = self.chips[1].pending().is_some();
        let first = &mut self.chips[0];
        first.set_line(CASCADE_IRQ, output);
        if !output {
            first.edges &= !(1 << CASCADE_IRQ);
        }
    }

    /// The output goes low during an acknowledge, so that what is pending next makes an edge.
    fn recascade(&mut self) {
        self.chips[0].set_line(CASCADE_IRQ, false);
        self.cascade();
    }
}

#[cfg(test)]
#[path = "pic_tests.rs"]
mod tests;
