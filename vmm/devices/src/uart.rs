//! The serial port: a 16550A (National PC16550D datasheet) whose wire is infinitely fast.
//!
//! What is sent is out at once, so the transmitter is always empty; received bytes below the FIFO's trigger
//! level count as timed out at once. Modem inputs are fixed: CTS, DSR and DCD on, RI off; in loopback they
//! follow the modem outputs. OUT2 connects the interrupt line, as on a PC.
//!
//! `vm_superio::Serial` was considered: it signals edges only, has no FIFO control register and no overrun,
//! so the level of its line is not a function of its state.
//!
//! Sent bytes gather into one output until a newline, `TX_GATHER` bytes, or the machine's next occasion (a
//! command, an input, a wait): one log entry per line rather than per byte.

//!
//! What is typed is no noise on a line: it waits until it is read. Drivers clear the FIFO when they open and
//! close the port, Linux even between enabling the receive interrupt and turning the FIFO on; what they clear
//! there goes back to where it came from.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Depth of the receive FIFO.
pub(crate) const FIFO_LEN: usize = 16;
/// Most bytes that gather before they leave as one output.
const TX_GATHER: usize = 256;

const IER_RECEIVED: u8 = 1 << 0;
const IER_TRANSMITTER_EMPTY: u8 = 1 << 1;
const IER_LINE_STATUS: u8 = 1 << 2;
const IER_MODEM_STATUS: u8 = 1 << 3;
const IIR_NONE: u8 = 0x01;
const IIR_MODEM_STATUS: u8 = 0x00;
const IIR_TRANSMITTER_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_FIFOS: u8 = 0xc0;
const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RX: u8 = 1 << 1;
const LCR_DLAB: u8 = 1 << 7;
const MCR_DTR: u8 = 1 << 0;
const MCR_RTS: u8 = 1 << 1;
const MCR_OUT1: u8 = 1 << 2;
const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;
const LSR_DATA: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
const LSR_TRANSMITTER_EMPTY: u8 = 1 << 5 | 1 << 6;
const MSR_CTS: u8 = 1 << 4;
const MSR_DSR: u8 = 1 << 5;
const MSR_RI: u8 = 1 << 6;
const MSR_DCD: u8 = 1 << 7;

/// The serial port's registers and FIFOs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Uart {
    divisor: [u8; 2],
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    /// Changes of modem inputs since MSR was read, in its low half.
    modem_changes: u8,
    overrun: bool,
    /// The transmitter ran empty, and IIR has not told the guest.
    transmitter_event: bool,
    rx: VecDeque<u8>,
    /// What was received and cleared unread: it is received again when the guest listens.
    unread: VecDeque<u8>,
    /// Bytes of the loopback are among those in `rx`.
    looped: bool,
    #[serde(with = "crate::bytes")]
    tx: Vec<u8>,
}

impl Uart {
    pub(crate) fn new() -> Self {
        Self {
            // 115200 / 12 = 9600 bit/s
            divisor: [12, 0],
            ier: 0,
            fcr: 0,
            lcr: 0x03,
            mcr: 0,
            scratch: 0,
            modem_changes: 0,
            overrun: false,
            transmitter_event: false,
            rx: VecDeque::new(),
            unread: VecDeque::new(),
            looped: false,
            tx: Vec::new(),
        }
    }

    /// The level of the interrupt line.
    pub(crate) fn line(&self) -> bool {
        self.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2 && self.pending() != IIR_NONE
    }

    /// How many more bytes can be received.
    pub(crate) fn room(&self) -> usize {
        match self.mcr & MCR_LOOP {
            0 => self.capacity().saturating_sub(self.rx.len() + self.unread.len()),
            _ => 0,
        }
    }

    /// Bytes arrive on the wire. Those without room are lost, which LSR tells.
    pub(crate) fn receive(&mut self, bytes: &[u8]) {
        if self.mcr & MCR_LOOP == 0 {
            bytes.iter().for_each(|&byte| match self.unread.is_empty() {
                true => self.push(byte),
                // Behind what came before it.
                false if self.room() > 0 => self.unread.push_back(byte),
                false => self.overrun = true,
            });
            self.receive_again();
        }
    }

    /// Receives again what was cleared unread, as much as there is room for.
    fn receive_again(&mut self) {
        while self.listens()
            && self.rx.len() < self.capacity()
            && let Some(byte) = self.unread.pop_front()
        {
            self.rx.push_back(byte);
        }
    }

    /// Whether the guest takes interrupts for what it receives. A driver that looks for the chip sets the
    /// enable bit too, but does not connect the line.
    pub(crate) fn listens(&self) -> bool {
        self.ier & IER_RECEIVED != 0 && self.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2
    }

    /// Takes what was sent and has gathered.
    pub(crate) fn take_sent(&mut self) -> Option<Vec<u8>> {
        if self.tx.is_empty() { None } else { Some(std::mem::take(&mut self.tx)) }
    }

    /// Whether what was sent should leave now.
    pub(crate) fn has_line(&self) -> bool {
        self.tx.len() >= TX_GATHER || self.tx.last() == Some(&b'\n')
    }

    pub(crate) fn read(&mut self, register: u16) -> u8 {
        let dlab = self.lcr & LCR_DLAB != 0;
        match register & 7 {
            0 if dlab => self.divisor[0],
            1 if dlab => self.divisor[1],
            0 => self.read_data(),
            1 => self.ier,
            2 => self.read_iir(),
            3 => self.lcr,
            4 => self.mcr,
            5 => {
                let value = self.line_status();
                self.overrun = false;
                value
            }
            6 => {
                let value = self.modem_inputs() | self.modem_changes;
                self.modem_changes = 0;
                value
            }
            _ => self.scratch,
        }
    }

    pub(crate) fn write(&mut self, register: u16, value: u8) {
        let dlab = self.lcr & LCR_DLAB != 0;
        match register & 7 {
            0 if dlab => self.divisor[0] = value,
            1 if dlab => self.divisor[1] = value,
            0 => self.send(value),
            1 => {
                // Enabling the interrupt while the transmitter is empty raises it.
                if value & !self.ier & IER_TRANSMITTER_EMPTY != 0 {
                    self.transmitter_event = true;
                }
                self.ier = value & 0x0f;
            }
            2 => self.write_fcr(value),
            3 => self.lcr = value,
            4 => self.write_mcr(value & 0x1f),
            // LSR and MSR are for reading.
            5 | 6 => {}
            _ => self.scratch = value,
        }
        self.receive_again();
    }

    fn read_data(&mut self) -> u8 {
        let byte = self.rx.pop_front().unwrap_or(0);
        self.looped &= !self.rx.is_empty();
        self.receive_again();
        byte
    }

    fn capacity(&self) -> usize {
        if self.fcr & FCR_ENABLE != 0 { FIFO_LEN } else { 1 }
    }

    fn push(&mut self, byte: u8) {
        if self.rx.len() < self.capacity() {
            self.rx.push_back(byte);
        } else {
            self.overrun = true;
        }
    }

    fn send(&mut self, byte: u8) {
        if self.mcr & MCR_LOOP != 0 {
            self.push(byte);
            self.looped = true;
        } else {
            self.tx.push(byte);
        }
        self.transmitter_event = true;
    }

    fn line_status(&self) -> u8 {
        let data = if self.rx.is_empty() { 0 } else { LSR_DATA };
        let overrun = if self.overrun { LSR_OVERRUN } else { 0 };
        data | overrun | LSR_TRANSMITTER_EMPTY
    }

    fn modem_inputs(&self) -> u8 {
        if self.mcr & MCR_LOOP == 0 {
            return MSR_CTS | MSR_DSR | MSR_DCD;
        }
        let follow = |output: u8, input: u8| if self.mcr & output != 0 { input } else { 0 };
        follow(MCR_RTS, MSR_CTS)
            | follow(MCR_DTR, MSR_DSR)
            | follow(MCR_OUT1, MSR_RI)
            | follow(MCR_OUT2, MSR_DCD)
    }

    fn write_mcr(&mut self, value: u8) {
        let before = self.modem_inputs();
        self.mcr = value;
        let changed = before ^ self.modem_inputs();
        // Of RI only the trailing edge counts.
        let rose = changed & !before & MSR_RI;
        self.modem_changes |= (changed & !rose) >> 4;
    }

    fn write_fcr(&mut self, value: u8) {
        let toggled = (value ^ self.fcr) & FCR_ENABLE != 0;
        if toggled || value & FCR_CLEAR_RX != 0 {
            // A driver that takes interrupts and clears the FIFO means it.
            if std::mem::take(&mut self.looped) || (self.listens() && !toggled) {
                self.rx.clear();
            }
            while let Some(byte) = self.rx.pop_back() {
                self.unread.push_front(byte);
            }
        }
        // The other bits count only together with ENABLE.
        self.fcr = if value & FCR_ENABLE != 0 { value & 0xc9 } else { 0 };
    }

    fn trigger_level(&self) -> usize {
        match (self.fcr & FCR_ENABLE != 0, self.fcr >> 6) {
            (false, _) | (true, 0) => 1,
            (true, 1) => 4,
            (true, 2) => 8,
            (true, _) => 14,
        }
    }

    /// The interrupt with the highest priority, as IIR encodes it.
    fn pending(&self) -> u8 {
        let enabled = |bit: u8| self.ier & bit != 0;
        if enabled(IER_LINE_STATUS) && self.overrun {
            IIR_LINE_STATUS
        } else if enabled(IER_RECEIVED) && self.rx.len() >= self.trigger_level() {
            IIR_RECEIVED
        } else if enabled(IER_RECEIVED) && !self.rx.is_empty() {
            IIR_TIMEOUT
        } else if enabled(IER_TRANSMITTER_EMPTY) && self.transmitter_event {
            IIR_TRANSMITTER_EMPTY
        } else if enabled(IER_MODEM_STATUS) && self.modem_changes != 0 {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        }
    }

    fn read_iir(&mut self) -> u8 {
        let pending = self.pending();
        if pending == IIR_TRANSMITTER_EMPTY {
            self.transmitter_event = false;
        }
        pending | if self.fcr & FCR_ENABLE != 0 { IIR_FIFOS } else { 0 }
    }
}

#[cfg(test)]
#[path = "uart_tests.rs"]
mod tests;
