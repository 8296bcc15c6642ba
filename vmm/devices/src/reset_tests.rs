//! What a reset of the machine leaves of its devices.

use logchannel::{DiskOp, DiskRequest, DiskStatus, Event, Output};
use virtio_bindings::virtio_blk as def;
use virtio_bindings::virtio_mmio as reg;

use crate::layout::*;
use crate::testing::*;
use crate::{Devices, Ending};

const HEADER: u64 = 0x20_0000;
const DATA: u64 = 0x21_0000;
const STATUS: u64 = 0x20_0100;
const PENDING: u8 = 0xee;
const V1: u64 = 1 << 32;

fn state(devices: &Devices) -> Vec<u8> {
    let mut bytes = Vec::new();
    devices.digest_bytes(&mut |part| bytes.extend_from_slice(part));
    bytes
}

/// A read of the guest's that is in flight.
fn read_in_flight(guest: &mut Guest) -> u64 {
    let mut queue = guest.start_blk(V1);
    guest.poke(STATUS, &[PENDING]);
    guest.poke(HEADER, &[0; 16]);
    guest.poke(HEADER, &def::VIRTIO_BLK_T_IN.to_le_bytes());
    queue.add(&guest.ram, &[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
    guest.set_reg(VIRTIO_BLK_BASE, reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    match guest.devices.take_output() {
        Some(Output::Disk(DiskRequest { id, op: DiskOp::Read { .. } })) => id,
        other => panic!("{other:?}"),
    }
}

#[test]
fn devices_are_as_at_power_on_but_for_the_clock() {
    let (mut guest, mut fresh) = (Guest::new(), Guest::new());
    for guest in [&mut guest, &mut fresh] {
        guest.devices.apply(&guest.ram, &Event::Clock { now_ns: 7_000_000_000 }).unwrap();
    }
    fresh.devices.reset();
    let fresh = state(&fresh.devices);
    // A PIT that runs, unmasked interrupts, a UART with input and half a line, a driver with a queue.
    guest.outb(PIC1_PORT + 1, 0);
    guest.outb(PIT_PORT + 3, 0x34);
    guest.outb(PIT_PORT, 0x10);
    guest.outb(PIT_PORT, 0x10);
    guest.outb(UART_PORT + 1, 1);
    guest.outb(UART_PORT, b'x');
    guest.devices.apply(&guest.ram, &Event::ConsoleRx(b"typed".to_vec())).unwrap();
    guest.outl(EVENT_PAGE_PORT, 5);
    guest.outb(PM1A_EVENT_PORT + 2, 1);
    guest.start_blk(V1);
    guest.outb(RESET_PORT, 0x06);
    assert_eq!(guest.devices.ended(), Some(Ending::Reset));
    let _ = guest.devices.take_output();
    let before = guest.bytes(0, RAM_BYTES as usize);
    guest.devices.reset();
    assert_eq!(guest.devices.ended(), None);
    assert_eq!(guest.devices.waiting(&guest.ram), None);
    assert!(!guest.devices.disk_is_busy());
    assert!(state(&guest.devices) == fresh, "another state than at power-on");
    assert!(guest.bytes(0, RAM_BYTES as usize) == before, "a reset of devices touches no memory");
}

#[test]
fn what_the_guest_sent_leaves_before_the_reset() {
    let mut guest = Guest::new();
    for byte in b"no newline" {
        guest.outb(UART_PORT, *byte);
    }
    guest.devices.reset();
    assert_eq!(guest.devices.take_output(), Some(Output::Console(b"no newline".to_vec())));
    assert_eq!(guest.devices.take_output(), None);
}

#[test]
fn a_request_in_flight_is_known_until_it_is_done_and_touches_no_memory() {
    let mut guest = Guest::new();
    let request = read_in_flight(&mut guest);
    guest.devices.reset();
    assert!(guest.devices.disk_is_busy());
    assert_eq!(guest.devices.in_flight_disk().len(), 1);
    let before = guest.bytes(0, RAM_BYTES as usize);
    let done = Event::DiskDone { request, status: DiskStatus::Ok, data: vec![0x5a; 512] };
    assert!(guest.devices.accepts(&guest.ram, &done));
    guest.devices.apply(&guest.ram, &done).unwrap();
    assert!(guest.bytes(0, RAM_BYTES as usize) == before, "a late completion wrote memory");
    assert!(!guest.devices.disk_is_busy());
    assert_eq!(guest.devices.take_output(), None);
    // Numbers of requests go on.
    assert_eq!(read_in_flight(&mut guest), request + 1);
}

#[test]
fn frames_wait_and_nothing_is_listened_to_until_the_guest_is_up_again() {
    let mut guest = Guest::new();
    guest.outb(UART_PORT + 1, 1);
    guest.devices.reset();
    assert!(!guest.devices.accepts(&guest.ram, &Event::NetRx(vec![0; 64])));
    assert_eq!((guest.devices.console_wanted(), guest.devices.entropy_wanted()), (0, 0));
}

#[test]
fn the_clock_of_the_board_goes_on() {
    let mut guest = Guest::new();
    let read = |guest: &mut Guest, register: u8| {
        guest.outb(CMOS_PORT, register);
        guest.inb(CMOS_PORT + 1)
    };
    // Set an hour ahead, the periodic interrupt on, a byte in its RAM.
    let hour = read(&mut guest, 4);
    for (register, value) in [(4, hour + 1), (0x0b, 0x42), (0x60, 0xa7)] {
        guest.outb(CMOS_PORT, register);
        guest.outb(CMOS_PORT + 1, value);
    }
    guest.devices.apply(&guest.ram, &Event::Clock { now_ns: 2_000_000_000 }).unwrap();
    let second = read(&mut guest, 0);
    guest.devices.reset();
    assert_eq!((read(&mut guest, 4), read(&mut guest, 0), read(&mut guest, 0x60)), (hour + 1, second, 0xa7));
    assert_eq!(read(&mut guest, 0x0b), 0x02, "interrupts are off");
    assert_eq!(guest.devices.next_deadline_ns(), None);
}
