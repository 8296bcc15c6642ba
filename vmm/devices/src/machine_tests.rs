//! The devices together: event port, lines, events.

use logchannel::{DiskOp, DiskRequest, DiskStatus, Event, Output};

use crate::layout::*;
use crate::testing::*;
use crate::{ApplyError, Ending, Wait};

const V1: u64 = 1 << 32;
const PAGE: u64 = 0x5000;

fn guest_with_page() -> Guest {
    let mut guest = Guest::new();
    guest.outl(EVENT_PAGE_PORT, (PAGE / PAGE_BYTES) as u32);
    guest
}

fn shared(guest: &Guest, offset: u64) -> u64 {
    guest.read_u64(PAGE + offset)
}

#[test]
fn event_port_has_its_identity() {
    let mut guest = Guest::new();
    assert_eq!(guest.inl(EVENT_PORT), 0x4c4b_5301);
    assert_eq!(guest.inb(EVENT_PORT), 0xff);
    assert_eq!(guest.inl(EVENT_PAGE_PORT), u32::MAX);
}

#[test]
fn shared_page_is_written_when_set_at_commands_and_at_inputs() {
    let mut guest = guest_with_page();
    assert_eq!(shared(&guest, SHARED_WALL_BASE_NS), config().wall_base_ns);
    assert_eq!(shared(&guest, SHARED_NOW_NS), 0);
    guest.outl(EVENT_PORT, EVENT_POLL);
    assert_eq!(shared(&guest, SHARED_NOW_NS), TIME_READ_STEP_NS);
    guest.devices.apply(&guest.ram, &Event::Clock { now_ns: 5_000_000 }).unwrap();
    assert_eq!(shared(&guest, SHARED_NOW_NS), 5_000_000);
    assert_eq!(shared(&guest, SHARED_INPUTS_APPLIED), 0);
    guest.devices.apply(&guest.ram, &Event::ConsoleRx(b"x".to_vec())).unwrap();
    assert_eq!(shared(&guest, SHARED_INPUTS_APPLIED), 1);
}

#[test]
fn wait_ends_at_its_deadline_or_with_an_input() {
    let mut guest = guest_with_page();
    guest.write_u64(PAGE + SHARED_WAKE_AT_NS, 1_000_000);
    assert_eq!(guest.devices.waiting(&guest.ram), None);
    guest.outl(EVENT_PORT, EVENT_WAIT);
    assert_eq!(guest.devices.waiting(&guest.ram), Some(Wait { deadline_ns: Some(1_000_000) }));
    guest.devices.apply(&guest.ram, &Event::Clock { now_ns: 999_999 }).unwrap();
    assert!(guest.devices.waiting(&guest.ram).is_some());
    guest.devices.apply(&guest.ram, &Event::Clock { now_ns: 1_000_000 }).unwrap();
    assert_eq!(guest.devices.waiting(&guest.ram), None);

    guest.write_u64(PAGE + SHARED_WAKE_AT_NS, u64::MAX);
    guest.outl(EVENT_PORT, EVENT_WAIT);
    assert_eq!(guest.devices.waiting(&guest.ram), Some(Wait { deadline_ns: None }));
    guest.devices.apply(&guest.ram, &Event::ConsoleRx(b"x".to_vec())).unwrap();
    assert_eq!(guest.devices.waiting(&guest.ram), None);
    // The wait is over for good, also once the guest has taken note of the input.
    guest.write_u64(PAGE + SHARED_INPUTS_SEEN, 1);
    assert_eq!(guest.devices.waiting(&guest.ram), None);
    // An input not taken note of ends the next wait before it begins.
    guest.write_u64(PAGE + SHARED_INPUTS_SEEN, 0);
    guest.outl(EVENT_PORT, EVENT_WAIT);
    assert_eq!(guest.devices.waiting(&guest.ram), None);
}

#[test]
fn wait_without_a_page_in_ram_does_not_wait() {
    let mut guest = Guest::new();
    guest.outl(EVENT_PORT, EVENT_WAIT);
    assert_eq!(guest.devices.waiting(&guest.ram), None);
    guest.outl(EVENT_PAGE_PORT, u32::MAX);
    guest.outl(EVENT_PORT, EVENT_WAIT);
    assert_eq!(guest.devices.waiting(&guest.ram), None);
}

#[test]
fn one_command_services_all_queues() {
    let mut guest = guest_with_page();
    let [_, mut tx] = guest.start_net(V1);
    let mut blk = guest.start_blk(V1);
    let mut frame = vec![0; 12];
    frame.extend(0..60);
    guest.poke(0x20_0000, &frame);
    tx.add(&guest.ram, &[(0x20_0000, frame.len() as u32, 0)]);
    // Read the third sector.
    guest.poke(0x21_0000, &[0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    blk.add(&guest.ram, &[(0x21_0000, 16, 0), (0x21_1000, 512, WRITE), (0x21_2000, 1, WRITE)]);
    guest.outl(EVENT_PORT, EVENT_POLL);
    assert_eq!(guest.devices.take_output(), Some(Output::Net((0..60).collect())));
    let request = DiskRequest { id: 1, op: DiskOp::Read { offset: 1024, len: 512 } };
    assert_eq!(guest.devices.take_output(), Some(Output::Disk(request.clone())));
    assert_eq!(guest.devices.take_output(), None);
    assert_eq!(tx.take_used(&guest.ram), Some((0, 0)));
    assert_eq!(guest.devices.in_flight_disk(), [request]);
    let done = Event::DiskDone { request: 1, status: DiskStatus::Ok, data: vec![7; 512] };
    guest.devices.apply(&guest.ram, &done).unwrap();
    assert_eq!(blk.take_used(&guest.ram), Some((0, 513)));
    assert_eq!(guest.bytes(0x21_1000, 512), [7; 512]);
    assert_eq!(guest.bytes(0x21_2000, 1), [0]);
    assert!(guest.devices.in_flight_disk().is_empty());
    assert_eq!(shared(&guest, SHARED_INPUTS_APPLIED), 1);
}

#[test]
fn events_that_cannot_be_are_errors_and_change_nothing() {
    let mut guest = guest_with_page();
    guest.devices.apply(&guest.ram, &Event::Clock { now_ns: 10 }).unwrap();
    let before = guest.digest();
    let apply = |guest: &mut Guest, event: Event| guest.devices.apply(&guest.ram, &event);
    assert_eq!(
        apply(&mut guest, Event::Clock { now_ns: 9 }),
        Err(ApplyError::ClockBack { now_ns: 10, to_ns: 9 })
    );
    let done = Event::DiskDone { request: 1, status: DiskStatus::Ok, data: Vec::new() };
    assert!(!guest.devices.accepts(&guest.ram, &done));
    assert_eq!(apply(&mut guest, done), Err(ApplyError::UnknownRequest { request: 1 }));
    assert_eq!(apply(&mut guest, Event::Shutdown), Err(ApplyError::NotForDevices { event: "Shutdown" }));
    assert_eq!(guest.digest(), before);
}

#[test]
fn ways_to_end() {
    for (port, data, ending) in [
        (EVENT_EXIT_PORT, &[7u8][..], Ending::PowerOff(7)),
        (PM1A_CONTROL_PORT, &[0, 0x20], Ending::PowerOff(0)),
        (RESET_PORT, &[0x06], Ending::Reset),
        (KEYBOARD_COMMAND_PORT, &[0xfe], Ending::Reset),
    ] {
        let mut guest = Guest::new();
        guest.devices.pio_write(&guest.ram, port, data);
        assert_eq!(guest.devices.ended(), Some(ending));
        guest.outb(EVENT_EXIT_PORT, 1);
        assert_eq!(guest.devices.ended(), Some(ending), "the first ending stays");
    }
    let mut guest = Guest::new();
    guest.outl(RESET_PORT - 1, 0x8000_06ff);
    guest.outb(RESET_PORT, 0x02);
    guest.outb(KEYBOARD_COMMAND_PORT, 0xd1);
    guest.devices.pio_write(&guest.ram, PM1A_CONTROL_PORT, &[1, 0]);
    assert_eq!(guest.devices.ended(), None);
}

#[test]
fn nobody_home_reads_all_ones() {
    let mut guest = Guest::new();
    for size in [1, 2, 4, 8] {
        for port in [0x90, 0xcf8, 0x1234, 0xfffe] {
            let mut data = [0; 8];
            guest.devices.pio_read(&guest.ram, port, &mut data[..size]);
            assert_eq!(data[..size], [0xff; 8][..size]);
            guest.devices.pio_write(&guest.ram, port, &data[..size]);
        }
        for address in [RAM_BYTES, VIRTIO_RNG_BASE, VIRTIO_CONSOLE_BASE, u64::MAX] {
            let mut data = [0; 8];
            guest.devices.mmio_read(&guest.ram, address, &mut data[..size]);
            assert_eq!(data[..size], [0xff; 8][..size]);
            guest.devices.mmio_write(&guest.ram, address, &data[..size]);
        }
    }
    assert_eq!(guest.devices.ended(), None);
}
