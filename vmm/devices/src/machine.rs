//! `Devices`: all devices of the machine, the clock they share, and how events of the log reach them.

use std::collections::VecDeque;

use logchannel::{DiskRequest, DiskStatus, Event, Output, TrapKind};
use serde::{Deserialize, Serialize};
use vm_memory::GuestMemory;

use crate::clock::Clock;
use crate::event_port::{EventPort, Wait};
use crate::layout::{
    DEFAULT_GUEST_MAC, DEFAULT_MEMORY_BYTES, PIT_IRQ, RTC_IRQ, SCI_IRQ, UART_IRQ, VIRTIO_BLK_IRQ,
    VIRTIO_CONSOLE_IRQ, VIRTIO_NET_IRQ, VIRTIO_RNG_IRQ,
};
use crate::pci::Pci;
use crate::pic::Pic;
use crate::pit::Pit;
use crate::power::{Ending, Power};
use crate::rtc::Rtc;
use crate::uart::Uart;
use crate::virtio::{Blk, Chain, Console, DoneError, Net, Rng};

/// What a machine's devices are made with. Both copies of a pair must use the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicesConfig {
    /// MAC address of the network device.
    pub mac: [u8; 6],
    /// Size of the disk in bytes; the rest of a last, incomplete sector is not offered.
    pub disk_bytes: u64,
    /// Unix time at power-on, nanoseconds.
    pub wall_base_ns: u64,
    /// Size of RAM in bytes, for the CMOS.
    pub memory_bytes: u64,
    /// Which console takes the input.
    pub console_input: ConsoleInput,
}

/// The device that `ConsoleRx` events go to. Both send to the same console.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsoleInput {
    /// The serial port.
    #[default]
    Serial,
    /// virtio-console.
    Virtio,
}

impl Default for DevicesConfig {
    fn default() -> Self {
        Self {
            mac: DEFAULT_GUEST_MAC,
            disk_bytes: 0,
            wall_base_ns: 0,
            memory_bytes: DEFAULT_MEMORY_BYTES,
            console_input: ConsoleInput::Serial,
        }
    }
}

/// An event that these devices, in this state, cannot have been given: the log is wrong, or this machine is
/// not the one it is the log of. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The virtual clock never goes back.
    #[error("Clock event to {to_ns} ns, but the clock is at {now_ns} ns already")]
    ClockBack {
        /// Virtual time of the machine.
        now_ns: u64,
        /// Virtual time in the event.
        to_ns: u64,
    },
    /// A disk request completed that is not in flight.
    #[error("DiskDone for request {request}, which is not in flight")]
    UnknownRequest {
        /// The request's id.
        request: u64,
    },
    /// A read brings exactly what was asked for when it succeeds, everything else nothing.
    #[error("DiskDone for request {request} with {found} bytes of data, {expected} expected")]
    DataLength {
        /// The request's id.
        request: u64,
        /// Bytes that it should bring.
        expected: u64,
        /// Bytes that it brings.
        found: u64,
    },
    /// Entropy came that nobody asked for.
    #[error("entropy that the guest did not ask for")]
    EntropyUnwanted,
    /// Not an input of devices.
    #[error("{event} is not an event that devices take")]
    NotForDevices {
        /// The event's name.
        event: &'static str,
    },
}

/// Everything of the devices that is state: saved, restored, digested.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Parts {
    pub clock: Clock,
    pub pic: Pic,
    pub pit: Pit,
    pub rtc: Rtc,
    pub uart: Uart,
    pub power: Power,
    pub pci: Pci,
    pub event_port: EventPort,
    pub net: Net,
    pub blk: Blk,
    pub rng: Rng,
    pub console: Console,
}

/// The devices of one machine.
#[derive(Debug)]
pub struct Devices {
    pub(crate) parts: Parts,
    pub(crate) outputs: VecDeque<Output>,
    /// No state: refilled whenever it is used.
    pub(crate) scratch: Chain,
    #[cfg(feature = "planted-faults")]
    pub(crate) planted: crate::planted::Planted,
}

impl Devices {
    /// Devices just powered on.
    pub fn new(config: &DevicesConfig) -> Self {
        let parts = Parts {
            clock: Clock::new(config.wall_base_ns),
            pic: Pic::new(),
            pit: Pit::new(),
            rtc: Rtc::new(config.wall_base_ns, config.memory_bytes),
            uart: Uart::new(),
            power: Power::default(),
            pci: Pci::default(),
            event_port: EventPort::default(),
            net: Net::new(config.mac),
            blk: Blk::new(config.disk_bytes),
            rng: Rng::new(),
            console: Console::new(config.console_input == ConsoleInput::Virtio),
        };
        Self::from_parts(parts, VecDeque::new())
    }

    pub(crate) fn from_parts(parts: Parts, outputs: VecDeque<Output>) -> Self {
        let mut devices = Self {
            parts,
            outputs,
            scratch: Chain::default(),
            #[cfg(feature = "planted-faults")]
            planted: crate::planted::Planted::default(),
        };
        devices.sync_lines();
        devices
    }

    /// Virtual time, nanoseconds since power-on.
    pub fn now_ns(&self) -> u64 {
        self.parts.clock.now_ns
    }

    /// How the guest ended its machine, if it did. It must not run any more then.
    pub fn ended(&self) -> Option<Ending> {
        self.parts.power.ended()
    }

    /// What the guest waits for, from its WAIT command until that has come (event port).
    pub fn waiting<M: GuestMemory>(&self, mem: &M) -> Option<Wait> {
        self.parts.event_port.waiting(mem)
    }

    /// When, in virtual time, a timer will raise an interrupt that the PICs let through: what a guest in HLT
    /// waits for. A `Clock` event with at least this time makes it happen.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        let timer = |irq: u8, at: u64| if self.parts.pic.unmasked(irq) { at } else { u64::MAX };
        let pit = timer(PIT_IRQ, self.parts.pit.next_rise_ns());
        let rtc = timer(RTC_IRQ, self.parts.rtc.next_ns());
        Some(pit.min(rtc)).filter(|&at| at != u64::MAX)
    }

    /// The INTR pin: an interrupt waits to be acknowledged.
    pub fn interrupt_pending(&self) -> bool {
        self.parts.pic.intr()
    }

    /// The INTA cycle: returns the vector to inject. Call it when the vCPU takes the interrupt.
    pub fn acknowledge_interrupt(&mut self) -> u8 {
        self.parts.pic.acknowledge()
    }

    /// The oldest output not taken yet. The machine takes them all after each access and each event: devices
    /// bound what one call adds, not what is left lying.
    pub fn take_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Lets go of console bytes that wait for the end of their line. The machine calls this when the guest
    /// halts; commands and events do it by themselves.
    pub fn flush_console(&mut self) {
        if let Some(bytes) = self.parts.uart.take_sent() {
            self.outputs.push_back(Output::Console(bytes));
        }
    }

    /// How many bytes of console input the guest has room for: the most that one `ConsoleRx` may hold.
    pub fn console_room(&self) -> usize {
        match self.parts.console.takes_input() {
            true => self.parts.console.room(),
            false => self.parts.uart.room(),
        }
    }

    /// How many bytes of console input the guest would take now; 0 while it does not listen. Input offered
    /// earlier is what a guest loses that sets its console up later.
    pub fn console_wanted(&self) -> usize {
        match self.parts.console.takes_input() {
            true if self.parts.console.listens(self.now_ns()) => self.parts.console.room(),
            false if self.parts.uart.listens() => self.parts.uart.room(),
            _ => 0,
        }
    }

    /// How many words of entropy the guest waits for: that many `Trap` events of kind `Random` are accepted.
    pub fn entropy_wanted(&self) -> usize {
        self.parts.rng.wanted()
    }

    /// The disk requests given out and not completed, oldest first, with their data: what a copy that goes
    /// live issues again.
    pub fn in_flight_disk(&self) -> Vec<DiskRequest> {
        self.parts.blk.in_flight().collect()
    }

    /// Whether an input finds room now. One that does not is to be offered again later. Frames that no guest
    /// could receive are accepted, and dropped; completions and clocks always are, and `apply` judges them.
    pub fn accepts<M: GuestMemory>(&self, mem: &M, event: &Event) -> bool {
        match event {
            Event::NetRx(frame) => self.parts.net.accepts(mem, frame),
            Event::ConsoleRx(bytes) => bytes.len() <= self.console_room(),
            Event::DiskDone { .. } | Event::Clock { .. } | Event::PowerButton => true,
            Event::Trap { instruction: TrapKind::Random, .. } => self.entropy_wanted() > 0,
            _ => false,
        }
    }

    /// Applies one event of the log: `NetRx`, `ConsoleRx`, `DiskDone`, `Clock`, `PowerButton`, or a `Trap`
    /// that brings entropy.
    pub fn apply<M: GuestMemory>(&mut self, mem: &M, event: &Event) -> Result<(), ApplyError> {
        match event {
            Event::NetRx(frame) => self.parts.net.receive(mem, &mut self.scratch, frame),
            Event::ConsoleRx(bytes) if self.parts.console.takes_input() => {
                self.parts.console.receive(mem, &mut self.scratch, bytes);
            }
            Event::ConsoleRx(bytes) => self.parts.uart.receive(bytes),
            Event::Trap { instruction: TrapKind::Random, value } => {
                if self.entropy_wanted() == 0 {
                    return Err(ApplyError::EntropyUnwanted);
                }
                self.parts.rng.entropy(mem, &mut self.scratch, *value);
            }
            Event::DiskDone { request, status, data } => self.disk_done(mem, *request, *status, data)?,
            Event::Clock { now_ns } => {
                let before_ns = self.now_ns();
                if *now_ns < before_ns {
                    return Err(ApplyError::ClockBack { now_ns: before_ns, to_ns: *now_ns });
                }
                self.advance(*now_ns);
            }
            Event::PowerButton => self.parts.power.press_button(),
            other => return Err(ApplyError::NotForDevices { event: other.name() }),
        }
        self.flush_console();
        let Parts { event_port, clock, power, .. } = &mut self.parts;
        if !matches!(event, Event::Clock { .. } | Event::Trap { .. }) {
            event_port.count_input();
        }
        event_port.publish(mem, clock, power.is_button_pressed());
        event_port.wake(mem, clock);
        self.sync_lines();
        Ok(())
    }

    fn disk_done<M: GuestMemory>(
        &mut self,
        mem: &M,
        request: u64,
        status: DiskStatus,
        data: &[u8],
    ) -> Result<(), ApplyError> {
        let blk = &mut self.parts.blk;
        blk.check_done(request, status, data).map_err(|error| match error {
            DoneError::Unknown => ApplyError::UnknownRequest { request },
            DoneError::Length { expected } => {
                ApplyError::DataLength { request, expected, found: data.len() as u64 }
            }
        })?;
        #[cfg(feature = "planted-faults")]
        let stale = self.planted.stale_sector(mem, blk.buffers(request));
        blk.done(mem, &mut self.scratch, &mut self.outputs, (request, status, data));
        #[cfg(feature = "planted-faults")]
        crate::planted::put_back(mem, stale);
        Ok(())
    }

    /// Services every queue, as if the guest had notified each.
    pub(crate) fn service_queues<M: GuestMemory>(&mut self, mem: &M) {
        self.parts.net.service(mem, &mut self.scratch, &mut self.outputs);
        self.parts.blk.service(mem, &mut self.scratch, &mut self.outputs);
        self.parts.rng.service(mem, &mut self.scratch);
        self.parts.console.service(mem, &mut self.scratch, &mut self.outputs);
    }

    /// Brings the virtual clock forward to `now_ns`, as an engine whose positions make time does; timers that
    /// are due fire. Does nothing when that is not ahead.
    pub fn advance_to(&mut self, now_ns: u64) {
        if now_ns > self.now_ns() {
            self.advance(now_ns);
        }
    }

    /// Sets the virtual clock; timers that are due fire.
    pub(crate) fn advance(&mut self, to_ns: u64) {
        let Parts { clock, pic, pit, rtc, .. } = &mut self.parts;
        debug_assert!(to_ns >= clock.now_ns);
        clock.now_ns = to_ns;
        if to_ns >= pit.next_rise_ns() {
            if pit.advance(to_ns) {
                pic.set_line(PIT_IRQ, false);
                pic.set_line(PIT_IRQ, true);
            }
            pic.set_line(PIT_IRQ, pit.line());
        }
        if to_ns >= rtc.next_ns() {
            rtc.advance(to_ns);
            pic.set_line(RTC_IRQ, rtc.line());
        }
    }

    /// Moves the clock by the step that a read of time takes.
    pub(crate) fn time_read(&mut self) -> u64 {
        self.advance(self.parts.clock.next_read_ns());
        self.parts.clock.now_ns
    }

    /// Shows the PICs the lines of all devices.
    pub(crate) fn sync_lines(&mut self) {
        let Parts { pic, pit, rtc, uart, power, net, blk, rng, console, .. } = &mut self.parts;
        pic.set_line(PIT_IRQ, pit.line());
        pic.set_line(UART_IRQ, uart.line());
        pic.set_line(RTC_IRQ, rtc.line());
        pic.set_line(SCI_IRQ, power.line());
        pic.set_line(VIRTIO_NET_IRQ, net.line());
        pic.set_line(VIRTIO_BLK_IRQ, blk.line());
        pic.set_line(VIRTIO_RNG_IRQ, rng.line());
        pic.set_line(VIRTIO_CONSOLE_IRQ, console.line());
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
