//! Reset of the whole machine: every device as it was at power-on, but for what a reset of a PC leaves alone.
//!
//! | goes on | why |
//! |---|---|
//! | the virtual clock, the time and RAM of the RTC | the battery's |
//! | disk requests in flight, and the numbers of requests | the outside has them, and will complete them |
//! | how often a device broke down | what of it is logged is bounded for the machine's whole life |
//!
//! Requests in flight lose their guest: their completions touch no memory. What the guest had sent to the
//! console leaves; what the console had received is lost, and so is what waits in the guest's queues.

use crate::event_port::EventPort;
use crate::machine::{Devices, Parts};
use crate::pci::Pci;
use crate::pic::Pic;
use crate::pit::Pit;
use crate::power::Power;
use crate::uart::Uart;

impl Devices {
    /// Resets every device. Outputs not taken yet stay, and the rest of a console line joins them.
    pub fn reset(&mut self) {
        self.flush_console();
        let Parts { clock, pic, pit, rtc, uart, power, pci, event_port, net, blk, rng, console } =
            &mut self.parts;
        *pic = Pic::new();
        *pit = Pit::new();
        rtc.reset(clock.now_ns);
        *uart = Uart::new();
        *power = Power::default();
        *pci = Pci::default();
        *event_port = EventPort::default();
        net.reset();
        blk.reset();
        rng.reset();
        console.reset();
        self.sync_lines();
    }

    /// Whether disk requests are in flight.
    pub fn disk_is_busy(&self) -> bool {
        self.parts.blk.is_busy()
    }
}

#[cfg(test)]
#[path = "reset_tests.rs"]
mod tests;
