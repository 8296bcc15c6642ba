//! PM1a's registers and the SCI, by way of the bus and the PICs.

use logchannel::Event;

use crate::layout::*;
use crate::testing::*;

const STATUS: u16 = PM1A_EVENT_PORT;
const ENABLE: u16 = PM1A_EVENT_PORT + 2;
const PWRBTN: u16 = 0x100;
/// ELCR: line 9 is a level.
const LEVEL_9: u8 = 1 << 1;

/// PICs with vectors 0x20 and 0x28, nothing masked, the SCI a level, as Linux sets it.
fn guest() -> Guest {
    let mut guest = Guest::new();
    for (port, base, icw3) in [(PIC1_PORT, 0x20, 4), (PIC2_PORT, 0x28, 2)] {
        guest.outb(port, 0x11);
        for value in [base, icw3, 1, 0] {
            guest.outb(port + 1, value);
        }
    }
    guest.outb(ELCR_PORT + 1, LEVEL_9);
    guest
}

fn read(guest: &mut Guest, port: u16) -> u16 {
    let mut data = [0xaa; 2];
    guest.devices.pio_read(&guest.ram, port, &mut data);
    u16::from_le_bytes(data)
}

fn write(guest: &mut Guest, port: u16, value: u16) {
    guest.devices.pio_write(&guest.ram, port, &value.to_le_bytes());
}

fn press(guest: &mut Guest) {
    assert!(guest.devices.accepts(&guest.ram, &Event::PowerButton));
    guest.devices.apply(&guest.ram, &Event::PowerButton).unwrap();
}

#[test]
fn before_any_event_the_status_is_zero_and_what_is_enabled_reads_back() {
    let mut guest = guest();
    write(&mut guest, ENABLE, 0x0120);
    write(&mut guest, STATUS, 0xffff);
    assert_eq!((read(&mut guest, STATUS), read(&mut guest, ENABLE)), (0, 0x0120));
    assert_eq!(read(&mut guest, PM1A_CONTROL_PORT), 1, "in ACPI mode");
    write(&mut guest, PM1A_CONTROL_PORT, 0);
    assert_eq!(read(&mut guest, PM1A_CONTROL_PORT), 1, "and for good");
    assert_eq!(guest.inl(PM1A_EVENT_PORT), 0x0120_0000);
    assert!(!guest.devices.interrupt_pending());
}

#[test]
fn the_button_raises_the_sci_until_its_status_is_cleared() {
    let mut guest = guest();
    write(&mut guest, ENABLE, PWRBTN);
    press(&mut guest);
    assert_eq!(read(&mut guest, STATUS), PWRBTN);
    assert!(guest.devices.interrupt_pending());
    assert_eq!(guest.devices.acknowledge_interrupt(), 0x28 + 1, "line 9");
    // A level: after the end of the interrupt it comes again, as long as the cause is there.
    for port in [PIC2_PORT, PIC1_PORT] {
        guest.outb(port, 0x20);
    }
    assert!(guest.devices.interrupt_pending());
    write(&mut guest, STATUS, !PWRBTN);
    assert_eq!(read(&mut guest, STATUS), PWRBTN, "zeros and other bits clear nothing");
    assert!(guest.devices.interrupt_pending());
    write(&mut guest, STATUS, PWRBTN);
    assert_eq!(read(&mut guest, STATUS), 0);
    assert!(!guest.devices.interrupt_pending());
    assert_eq!(read(&mut guest, ENABLE), PWRBTN, "it stays enabled");
}

#[test]
fn an_event_that_is_not_enabled_waits_in_the_status() {
    let mut guest = guest();
    press(&mut guest);
    press(&mut guest);
    assert_eq!(read(&mut guest, STATUS), PWRBTN);
    assert!(!guest.devices.interrupt_pending());
    write(&mut guest, ENABLE, !PWRBTN);
    assert!(!guest.devices.interrupt_pending(), "others are enabled");
    write(&mut guest, ENABLE, PWRBTN);
    assert!(guest.devices.interrupt_pending());
    write(&mut guest, ENABLE, 0);
    assert!(!guest.devices.interrupt_pending());
}

#[test]
fn each_byte_of_the_registers_is_its_own() {
    let mut guest = guest();
    press(&mut guest);
    guest.outb(ENABLE + 1, 0x01);
    guest.outb(ENABLE, 0x20);
    assert_eq!(read(&mut guest, ENABLE), 0x0120);
    assert_eq!((guest.inb(STATUS), guest.inb(STATUS + 1)), (0, 1));
    guest.outb(STATUS, 0xff);
    assert!(guest.devices.interrupt_pending(), "the button's bit is in the other byte");
    guest.outl(PM1A_EVENT_PORT, 0x0100_0100);
    assert_eq!(guest.inl(PM1A_EVENT_PORT), 0x0100_0000);
    assert!(!guest.devices.interrupt_pending());
}

#[test]
fn a_press_is_state() {
    let mut guest = guest();
    write(&mut guest, ENABLE, PWRBTN);
    let before = guest.digest();
    press(&mut guest);
    assert_ne!(guest.digest(), before);
    let mut moved = crate::Devices::restore(guest.devices.save()).unwrap();
    assert!(moved.interrupt_pending());
    moved.pio_write(&guest.ram, STATUS, &PWRBTN.to_le_bytes());
    assert!(!moved.interrupt_pending());
}
