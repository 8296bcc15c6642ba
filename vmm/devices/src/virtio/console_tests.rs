//! virtio-console with a driver's queues.

use logchannel::{Event, Output};
use virtio_bindings::virtio_mmio as reg;

use super::*;
use crate::layout::VIRTIO_CONSOLE_BASE;
use crate::testing::*;
use crate::{ConsoleInput, Devices, DevicesConfig};

const V1: u64 = 1 << 32;
const BUFFER: u64 = 0x20_0000;

/// A guest whose console input comes here.
fn guest() -> Guest {
    let mut guest = Guest::new();
    guest.devices =
        Devices::new(&DevicesConfig { console_input: ConsoleInput::Virtio, ..crate::testing::config() });
    guest
}

fn notify(guest: &mut Guest, queue: u32) {
    guest.set_reg(VIRTIO_CONSOLE_BASE, reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue);
}

fn type_in(guest: &mut Guest, text: &[u8]) {
    let event = Event::ConsoleRx(text.to_vec());
    assert!(guest.devices.accepts(&guest.ram, &event));
    guest.devices.apply(&guest.ram, &event).unwrap();
}

#[test]
fn is_a_console_without_features() {
    let mut guest = guest();
    assert_eq!(guest.reg(VIRTIO_CONSOLE_BASE, reg::VIRTIO_MMIO_DEVICE_ID), 3);
    assert_eq!(guest.reg(VIRTIO_CONSOLE_BASE, reg::VIRTIO_MMIO_CONFIG + 4), 0);
}

#[test]
fn what_the_guest_sends_leaves_as_one_output() {
    let mut guest = guest();
    let [_, mut tx] = guest.start_console(V1);
    guest.poke(BUFFER, b"hello world\n");
    tx.add(&guest.ram, &[(BUFFER, 6, 0)]);
    tx.add(&guest.ram, &[(BUFFER + 6, 2, 0), (BUFFER + 8, 4, 0)]);
    notify(&mut guest, TX_QUEUE);
    assert_eq!(guest.devices.take_output(), Some(Output::Console(b"hello world\n".to_vec())));
    assert_eq!(guest.devices.take_output(), None);
    assert_eq!((tx.take_used(&guest.ram), tx.take_used(&guest.ram)), (Some((0, 0)), Some((1, 0))));
    assert_eq!(guest.reg(VIRTIO_CONSOLE_BASE, reg::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
}

#[test]
fn outputs_are_bounded() {
    let mut guest = guest();
    let [_, mut tx] = guest.start_console(V1);
    for _ in 0..3 {
        tx.add(&guest.ram, &[(0, 1 << 20, 0)]);
    }
    notify(&mut guest, TX_QUEUE);
    for _ in 0..3 {
        assert_eq!(guest.devices.take_output().map(|output| output.len()), Some(MAX_SENT));
    }
    assert_eq!(guest.devices.take_output(), None);
}

#[test]
fn input_fills_buffers_and_the_rest_waits() {
    let mut guest = guest();
    assert_eq!(guest.devices.console_wanted(), 0, "no driver yet");
    let [mut rx, _] = guest.start_console(V1);
    assert_eq!(guest.devices.console_wanted(), 0, "Linux would drop what comes before its port is set up");
    let now_ns = guest.devices.now_ns();
    guest.devices.advance_to(now_ns + SETTLING_NS);
    assert_eq!(guest.devices.console_wanted(), MAX_PENDING);
    rx.add(&guest.ram, &[(BUFFER, 4, WRITE)]);
    notify(&mut guest, RX_QUEUE);
    type_in(&mut guest, b"uname -a\n");
    assert_eq!(rx.take_used(&guest.ram), Some((0, 4)));
    assert_eq!(guest.bytes(BUFFER, 5), b"unam\0");
    assert_eq!(guest.devices.console_room(), MAX_PENDING - 5);
    rx.add(&guest.ram, &[(BUFFER, 64, WRITE)]);
    notify(&mut guest, RX_QUEUE);
    assert_eq!(rx.take_used(&guest.ram), Some((1, 5)));
    assert_eq!(guest.bytes(BUFFER, 6), b"e -a\n\0");
    assert_eq!(guest.devices.console_room(), MAX_PENDING);
}

#[test]
fn more_input_than_there_is_room_for_is_not_accepted() {
    let guest = guest();
    let event = |len: usize| Event::ConsoleRx(vec![b'x'; len]);
    assert!(guest.devices.accepts(&guest.ram, &event(MAX_PENDING)));
    assert!(!guest.devices.accepts(&guest.ram, &event(MAX_PENDING + 1)));
}

#[test]
fn input_goes_to_the_serial_port_unless_told() {
    let mut guest = Guest::new();
    let [mut rx, _] = guest.start_console(V1);
    rx.add(&guest.ram, &[(BUFFER, 4, WRITE)]);
    notify(&mut guest, RX_QUEUE);
    assert_eq!(guest.devices.console_wanted(), 0, "the serial port's receive interrupt is off");
    type_in(&mut guest, b"x");
    assert_eq!(rx.take_used(&guest.ram), None);
    assert_eq!(guest.inb(crate::layout::UART_PORT), b'x');
    guest.outb(crate::layout::UART_PORT + 1, 1);
    assert_eq!(guest.devices.console_wanted(), 0, "OUT2 does not connect the line");
    guest.outb(crate::layout::UART_PORT + 4, 8);
    assert_eq!(guest.devices.console_wanted(), 1, "no FIFO");
}

#[test]
fn a_broken_queue_asks_for_a_reset() {
    let mut guest = guest();
    let [mut rx, _] = guest.start_console(V1);
    rx.add(&guest.ram, &[(RAM_BYTES - 2, 8, WRITE)]);
    type_in(&mut guest, b"four");
    let status = guest.reg(VIRTIO_CONSOLE_BASE, reg::VIRTIO_MMIO_STATUS);
    assert_eq!(status & 0x40, 0x40, "DEVICE_NEEDS_RESET");
}
