//! The devices together: event port, lines, events.

use logchannel::{DiskOp, DiskRequest, DiskStatus, Event, Output};
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

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
    assert_eq!(shared(&guest, SHARED_POWER_BUTTON), 0);
    guest.devices.apply(&guest.ram, &Event::PowerButton).unwrap();
    assert_eq!((shared(&guest, SHARED_INPUTS_APPLIED), shared(&guest, SHARED_POWER_BUTTON)), (2, 1));
    // PWRBTN_STS is cleared; the page tells at the next command.
    guest.outb(PM1A_EVENT_PORT + 1, 1);
    guest.outl(EVENT_PORT, EVENT_POLL);
    assert_eq!(shared(&guest, SHARED_POWER_BUTTON), 0);
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
fn the_acpi_timer_counts_virtual_time() {
    let mut guest = Guest::new();
    guest.devices.apply(&guest.ram, &Event::Clock { now_ns: 10_000_000_000 - TIME_READ_STEP_NS }).unwrap();
    assert_eq!(guest.inl(PM_TIMER_PORT), 35_795_450);
    assert_eq!(guest.inl(PM_TIMER_PORT), 35_795_453, "no two reads see the same instant");
    let now_ns = 1_300_000_000_000;
    guest.devices.apply(&guest.ram, &Event::Clock { now_ns }).unwrap();
    let ticks = u64::from(guest.inl(PM_TIMER_PORT));
    assert_eq!(ticks, 3_579_545 * 1300 + 3 - (1 << 32), "it wraps at 32 bits");
    assert_eq!(guest.inb(PM_TIMER_PORT), 0xff, "32 bits at once, or nothing");
}

#[test]
fn nobody_home_reads_all_ones() {
    let mut guest = Guest::new();
    for size in [1, 2, 4, 8] {
        for port in [0x90, 0xcf4, 0x1234, 0xfffe] {
            let mut data = [0; 8];
            guest.devices.pio_read(&guest.ram, port, &mut data[..size]);
            assert_eq!(data[..size], [0xff; 8][..size]);
            guest.devices.pio_write(&guest.ram, port, &data[..size]);
        }
        for address in [RAM_BYTES, VIRTIO_NET_BASE - 8, VIRTIO_CONSOLE_BASE + VIRTIO_MMIO_SIZE, u64::MAX] {
            let mut data = [0; 8];
            guest.devices.mmio_read(&guest.ram, address, &mut data[..size]);
            assert_eq!(data[..size], [0xff; 8][..size]);
            guest.devices.mmio_write(&guest.ram, address, &data[..size]);
        }
    }
    assert_eq!(guest.devices.ended(), None);
}

/// What Linux does to find PCI's configuration mechanism (`pci_check_type1`, `pci_sanity_check`).
#[test]
fn pci_has_its_mechanism_and_a_host_bridge_alone() {
    let mut guest = Guest::new();
    guest.outb(PCI_ADDRESS_PORT + 3, 1);
    assert_eq!(guest.inl(PCI_ADDRESS_PORT), 0);
    guest.outl(PCI_ADDRESS_PORT, 0x8000_0000);
    assert_eq!(guest.inl(PCI_ADDRESS_PORT), 0x8000_0000);
    assert_eq!(guest.inl(PCI_DATA_PORT), 0x0d57_8086);
    let mut bridges = Vec::new();
    for function in 0..256 {
        guest.outl(PCI_ADDRESS_PORT, 0x8000_0008 | function << 8);
        let mut class = [0; 2];
        guest.devices.pio_read(&guest.ram, PCI_DATA_PORT + 2, &mut class);
        bridges.extend((u16::from_le_bytes(class) == 0x0600).then_some(function));
        assert!(function == 0 || class == [0xff; 2]);
    }
    assert_eq!(bridges, [0]);
    guest.outl(PCI_ADDRESS_PORT, 0x8001_0000);
    assert_eq!(guest.inl(PCI_DATA_PORT), u32::MAX, "no other bus");
    guest.outl(PCI_ADDRESS_PORT, 0x0000_0000);
    assert_eq!(guest.inl(PCI_DATA_PORT), u32::MAX, "not enabled");
    guest.outl(PCI_ADDRESS_PORT, 0x8000_0010);
    guest.outl(PCI_DATA_PORT, u32::MAX);
    assert_eq!(guest.inl(PCI_DATA_PORT), 0, "nothing to write");
    assert_eq!((guest.inb(PCI_ADDRESS_PORT), guest.inb(RESET_PORT)), (0xff, 0xff), "32 bits or nothing");
    guest.outl(PCI_ADDRESS_PORT, 0xffff_ffff);
    assert_eq!((guest.inl(PCI_ADDRESS_PORT), guest.devices.ended()), (0x80ff_fffc, None));
    guest.outb(RESET_PORT, RESET_CPU);
    assert_eq!(guest.devices.ended(), Some(crate::Ending::Reset));
}

#[test]
fn writes_to_memory_are_seen_by_dirty_page_tracking() {
    let ram = GuestMemoryMmap::<AtomicBitmap>::from_ranges(&[(GuestAddress(0), RAM_BYTES as usize)]).unwrap();
    let dirty = |address: u64| ram.find_region(GuestAddress(0)).unwrap().bitmap().dirty_at(address as usize);
    let mut devices = devices();
    devices.pio_write(&ram, EVENT_PAGE_PORT, &5u32.to_le_bytes());
    assert!(dirty(PAGE));
    assert!(!dirty(PAGE - 1) && !dirty(PAGE + PAGE_BYTES));
}

#[test]
fn reads_of_time_are_never_the_same_instant() {
    let mut guest = Guest::new();
    guest.outb(CMOS_PORT, 0);
    for port in [PIT_PORT, PORT_B, CMOS_PORT + 1] {
        let before = guest.devices.now_ns();
        guest.inb(port);
        assert_eq!(guest.devices.now_ns(), before + TIME_READ_STEP_NS);
    }
    let before = guest.devices.now_ns();
    guest.outb(CMOS_PORT, 0x40);
    for port in [CMOS_PORT + 1, UART_PORT, PIC1_PORT, 0x1234] {
        guest.inb(port);
    }
    assert_eq!(guest.devices.now_ns(), before, "and nothing else moves the clock");
}

/// Vectors 0x20 and 0x28, nothing masked.
fn start_pics(guest: &mut Guest) {
    for (port, base, icw3) in [(PIC1_PORT, 0x20, 4), (PIC2_PORT, 0x28, 2)] {
        guest.outb(port, 0x11);
        for value in [base, icw3, 1, 0] {
            guest.outb(port + 1, value);
        }
    }
}

#[test]
fn the_timer_interrupts_when_the_clock_says_so() {
    let mut guest = Guest::new();
    assert_eq!(guest.devices.next_deadline_ns(), None);
    // 100 Hz
    guest.outb(PIT_PORT + 3, 0x34);
    guest.outb(PIT_PORT, (11_932u16 & 0xff) as u8);
    guest.outb(PIT_PORT, (11_932u16 >> 8) as u8);
    assert_eq!(guest.devices.next_deadline_ns(), None, "masked");
    start_pics(&mut guest);
    for round in 1..20u64 {
        let deadline = guest.devices.next_deadline_ns().unwrap();
        assert!(deadline.abs_diff(round * 10_000_000) < 20_000, "{deadline}");
        guest.devices.apply(&guest.ram, &Event::Clock { now_ns: deadline - 1 }).unwrap();
        assert!(!guest.devices.interrupt_pending());
        guest.devices.apply(&guest.ram, &Event::Clock { now_ns: deadline }).unwrap();
        assert!(guest.devices.interrupt_pending());
        assert_eq!(guest.devices.acknowledge_interrupt(), 0x20 + PIT_IRQ);
        assert!(!guest.devices.interrupt_pending());
        guest.outb(PIC1_PORT, 0x20);
    }
    // A jump over many periods leaves one interrupt.
    guest.devices.apply(&guest.ram, &Event::Clock { now_ns: 10_000_000_000 }).unwrap();
    assert_eq!(guest.devices.acknowledge_interrupt(), 0x20);
    guest.outb(PIC1_PORT, 0x20);
    assert!(!guest.devices.interrupt_pending());
}

#[test]
fn the_rtc_interrupts_through_the_second_pic() {
    let mut guest = Guest::new();
    start_pics(&mut guest);
    guest.outb(CMOS_PORT, 0x0b);
    guest.outb(CMOS_PORT + 1, 0x12);
    let deadline = guest.devices.next_deadline_ns().unwrap();
    assert_eq!(deadline, 750_000_000);
    guest.devices.apply(&guest.ram, &Event::Clock { now_ns: deadline }).unwrap();
    assert_eq!(guest.devices.acknowledge_interrupt(), 0x28);
    guest.outb(CMOS_PORT, 0x0c);
    assert_eq!(guest.inb(CMOS_PORT + 1) & 0x90, 0x90);
    assert_eq!(guest.devices.next_deadline_ns(), Some(1_750_000_000));
    guest.outb(PIC2_PORT + 1, 1);
    assert_eq!(guest.devices.next_deadline_ns(), None, "masked");
}

#[test]
fn console_bytes_come_in_and_go_out() {
    let mut guest = Guest::new();
    start_pics(&mut guest);
    guest.outb(UART_PORT + 2, 1);
    guest.outb(UART_PORT + 4, 8);
    guest.outb(UART_PORT + 1, 1);
    assert_eq!(guest.devices.console_room(), 16);
    assert!(!guest.devices.accepts(&guest.ram, &Event::ConsoleRx(vec![0; 17])));
    guest.devices.apply(&guest.ram, &Event::ConsoleRx(b"ls".to_vec())).unwrap();
    assert_eq!(guest.devices.acknowledge_interrupt(), 0x20 + UART_IRQ);
    assert_eq!([guest.inb(UART_PORT), guest.inb(UART_PORT)], *b"ls");
    for &byte in b"a\nb" {
        guest.outb(UART_PORT, byte);
    }
    assert_eq!(guest.devices.take_output(), Some(Output::Console(b"a\n".to_vec())));
    assert_eq!(guest.devices.take_output(), None);
    guest.devices.flush_console();
    assert_eq!(guest.devices.take_output(), Some(Output::Console(b"b".to_vec())));
    // Whatever else happens takes the rest of a line along, before it.
    for end in [EVENT_PORT, EVENT_EXIT_PORT] {
        guest.outb(UART_PORT, b'c');
        if end == EVENT_PORT {
            guest.outl(end, EVENT_POLL)
        } else {
            guest.outb(end, 0)
        }
        assert_eq!(guest.devices.take_output(), Some(Output::Console(b"c".to_vec())));
    }
}

#[test]
fn wide_accesses_reach_neighbouring_ports() {
    let mut guest = Guest::new();
    // Index and data of the CMOS in one 16-bit write.
    guest.devices.pio_write(&guest.ram, CMOS_PORT, &[0x40, 0xa5]);
    let mut data = [0; 2];
    guest.devices.pio_read(&guest.ram, CMOS_PORT, &mut data);
    assert_eq!(data, [0xff, 0xa5]);
    guest.devices.pio_read(&guest.ram, PM1A_CONTROL_PORT, &mut data);
    assert_eq!(data, [1, 0], "ACPI mode");
    let mut wrapped = [0; 4];
    guest.devices.pio_read(&guest.ram, 0xffff, &mut wrapped);
    assert_eq!(wrapped, [0xff; 4]);
}
