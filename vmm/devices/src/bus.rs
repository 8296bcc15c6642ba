//! The bus: which access reaches which register. Nobody home reads as all ones and swallows writes.
//!
//! Wide registers (event port, PM1a control, ACPI timer) exist at their own width only. All other ports are 8
//! bits wide: a wider access is split into bytes at consecutive ports, as an ISA bus does.

use vm_memory::GuestMemory;

use crate::layout::{
    CMOS_PORT, ELCR_PORT, EVENT_EXIT_PORT, EVENT_IDENTITY, EVENT_PAGE_PORT, EVENT_POLL, EVENT_PORT,
    EVENT_WAIT, KEYBOARD_COMMAND_PORT, PCI_ADDRESS_PORT, PCI_DATA_PORT, PIC1_PORT, PIC2_PORT, PIT_PORT,
    PM_TIMER_PORT, PM1A_CONTROL_PORT, PM1A_EVENT_PORT, PORT_B, RESET_PORT, UART_PORT, VIRTIO_BLK_BASE,
    VIRTIO_CONSOLE_BASE, VIRTIO_MMIO_SIZE, VIRTIO_NET_BASE, VIRTIO_RNG_BASE,
};
use crate::machine::{Devices, Parts};
use crate::power::Power;

const PIC1_DATA: u16 = PIC1_PORT + 1;
const PIC2_DATA: u16 = PIC2_PORT + 1;
const ELCR2: u16 = ELCR_PORT + 1;
const PIT_CONTROL: u16 = PIT_PORT + 3;
const CMOS_DATA: u16 = CMOS_PORT + 1;
const UART_LAST: u16 = UART_PORT + 7;
const PCI_DATA_LAST: u16 = PCI_DATA_PORT + 3;
const PM1A_EVENT_LAST: u16 = PM1A_EVENT_PORT + 3;

/// Which device a guest physical address belongs to.
enum Window {
    Net(u64),
    Blk(u64),
    Rng(u64),
    Console(u64),
}

fn window(address: u64) -> Option<Window> {
    let offset = address % VIRTIO_MMIO_SIZE;
    match address - offset {
        VIRTIO_NET_BASE => Some(Window::Net(offset)),
        VIRTIO_BLK_BASE => Some(Window::Blk(offset)),
        VIRTIO_RNG_BASE => Some(Window::Rng(offset)),
        VIRTIO_CONSOLE_BASE => Some(Window::Console(offset)),
        _ => None,
    }
}

impl Devices {
    /// The guest reads from a port, `data.len()` bytes.
    pub fn pio_read<M: GuestMemory>(&mut self, _mem: &M, port: u16, data: &mut [u8]) {
        match (port, &mut *data) {
            (EVENT_PORT, data) if data.len() == 4 => data.copy_from_slice(&EVENT_IDENTITY.to_le_bytes()),
            (PM1A_CONTROL_PORT, [low, high]) => {
                [*low, *high] = self.parts.power.read_pm1a().to_le_bytes();
            }
            (PM_TIMER_PORT, data) if data.len() == 4 => {
                let now_ns = self.time_read();
                #[cfg(feature = "planted-faults")]
                let now_ns = self.planted.timer_ns(now_ns);
                data.copy_from_slice(&Power::timer(now_ns).to_le_bytes());
                self.sync_lines();
            }
            (PCI_ADDRESS_PORT, data) if data.len() == 4 => {
                data.copy_from_slice(&self.parts.pci.address().to_le_bytes());
            }
            (EVENT_PORT..=EVENT_EXIT_PORT, data) => data.fill(0xff),
            (_, data) => {
                for (offset, byte) in (0..).zip(data) {
                    *byte = self.read_port(port.wrapping_add(offset));
                }
                self.sync_lines();
            }
        }
    }

    /// The guest writes `data` to a port.
    pub fn pio_write<M: GuestMemory>(&mut self, mem: &M, port: u16, data: &[u8]) {
        match (port, data) {
            (EVENT_PORT, &[a, b, c, d]) => self.command(mem, u32::from_le_bytes([a, b, c, d])),
            (EVENT_PAGE_PORT, &[a, b, c, d]) => {
                let frame = u32::from_le_bytes([a, b, c, d]);
                let Parts { event_port, clock, power, .. } = &mut self.parts;
                event_port.set_page(mem, frame, clock, power.is_button_pressed());
            }
            (EVENT_EXIT_PORT, &[status]) => {
                self.flush_console();
                self.parts.power.exit(status);
            }
            (EVENT_PORT..=EVENT_EXIT_PORT, _) => {}
            (PM1A_CONTROL_PORT, &[low, high, ..]) => {
                self.flush_console();
                self.parts.power.write_pm1a(u16::from_le_bytes([low, high]));
            }
            // What this covers of the ports behind it is no reset.
            (PCI_ADDRESS_PORT, &[a, b, c, d]) => {
                self.parts.pci.write_address(u32::from_le_bytes([a, b, c, d]));
            }
            (RESET_PORT, &[value]) => {
                self.flush_console();
                self.parts.power.write_reset(value);
            }
            (_, data) => {
                for (offset, &byte) in (0..).zip(data) {
                    self.write_port(port.wrapping_add(offset), byte);
                }
                self.sync_lines();
            }
        }
    }

    /// The guest reads from an address that is not RAM.
    pub fn mmio_read<M: GuestMemory>(&mut self, _mem: &M, address: u64, data: &mut [u8]) {
        match window(address) {
            Some(Window::Net(offset)) => self.parts.net.read(offset, data),
            Some(Window::Blk(offset)) => self.parts.blk.read(offset, data),
            Some(Window::Rng(offset)) => self.parts.rng.read(offset, data),
            Some(Window::Console(offset)) => self.parts.console.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes to an address that is not RAM.
    pub fn mmio_write<M: GuestMemory>(&mut self, mem: &M, address: u64, data: &[u8]) {
        let now_ns = self.now_ns();
        let (scratch, outputs) = (&mut self.scratch, &mut self.outputs);
        match window(address) {
            Some(Window::Net(offset)) => self.parts.net.write(mem, scratch, outputs, offset, data),
            Some(Window::Blk(offset)) => self.parts.blk.write(mem, scratch, outputs, offset, data),
            Some(Window::Rng(offset)) => self.parts.rng.write(mem, scratch, offset, data),
            Some(Window::Console(offset)) => {
                self.parts.console.write(mem, scratch, outputs, offset, data);
                self.parts.console.note_driver(now_ns);
            }
            None => return,
        }
        self.sync_lines();
    }

    /// A command of the event port. Each is a read of time, so that a guest that polls gets ahead.
    fn command<M: GuestMemory>(&mut self, mem: &M, command: u32) {
        if !matches!(command, EVENT_POLL | EVENT_WAIT) {
            return;
        }
        self.time_read();
        self.flush_console();
        self.service_queues(mem);
        let Parts { event_port, clock, power, .. } = &mut self.parts;
        event_port.publish(mem, clock, power.is_button_pressed());
        if command == EVENT_WAIT {
            self.parts.event_port.begin_wait(mem, &self.parts.clock);
        }
        self.sync_lines();
    }

    fn read_port(&mut self, port: u16) -> u8 {
        match port {
            PIC1_PORT | PIC1_DATA => self.parts.pic.read(false, port == PIC1_DATA),
            PIC2_PORT | PIC2_DATA => self.parts.pic.read(true, port == PIC2_DATA),
            ELCR_PORT | ELCR2 => self.parts.pic.read_elcr(port == ELCR2),
            PIT_PORT..=PIT_CONTROL => {
                let now_ns = self.time_read();
                self.parts.pit.read(port - PIT_PORT, now_ns)
            }
            PORT_B => {
                let now_ns = self.time_read();
                self.parts.pit.read_port_b(now_ns)
            }
            CMOS_DATA => {
                let now_ns = match self.parts.rtc.at_time_register() {
                    true => self.time_read(),
                    false => self.now_ns(),
                };
                self.parts.rtc.read_data(now_ns)
            }
            UART_PORT..=UART_LAST => self.parts.uart.read(port - UART_PORT),
            PM1A_EVENT_PORT..=PM1A_EVENT_LAST => self.parts.power.read_event(port - PM1A_EVENT_PORT),
            PCI_DATA_PORT..=PCI_DATA_LAST => self.parts.pci.read_data(port - PCI_DATA_PORT),
            _ => 0xff,
        }
    }

    fn write_port(&mut self, port: u16, value: u8) {
        let now_ns = self.now_ns();
        match port {
            PIC1_PORT | PIC1_DATA => self.parts.pic.write(false, port == PIC1_DATA, value),
            PIC2_PORT | PIC2_DATA => self.parts.pic.write(true, port == PIC2_DATA, value),
            ELCR_PORT | ELCR2 => self.parts.pic.write_elcr(port == ELCR2, value),
            PIT_PORT..=PIT_CONTROL => self.parts.pit.write(port - PIT_PORT, value, now_ns),
            PORT_B => self.parts.pit.write_port_b(value, now_ns),
            KEYBOARD_COMMAND_PORT => {
                self.flush_console();
                self.parts.power.write_keyboard_command(value);
            }
            CMOS_PORT => self.parts.rtc.write_index(value),
            CMOS_DATA => self.parts.rtc.write_data(value, now_ns),
            UART_PORT..=UART_LAST => {
                self.parts.uart.write(port - UART_PORT, value);
                if self.parts.uart.has_line() {
                    self.flush_console();
                }
            }
            PM1A_EVENT_PORT..=PM1A_EVENT_LAST => self.parts.power.write_event(port - PM1A_EVENT_PORT, value),
            // POST codes, and ports where nobody lives.
            _ => {}
        }
    }
}
