//! virtio-rng with a driver's queue.

use logchannel::{Event, TrapKind};
use virtio_bindings::virtio_mmio as reg;

use crate::ApplyError;
use crate::layout::{VIRTIO_RNG_BASE, VIRTIO_RNG_IRQ};
use crate::testing::*;

const V1: u64 = 1 << 32;
const BUFFER: u64 = 0x20_0000;

fn notify(guest: &mut Guest) {
    guest.set_reg(VIRTIO_RNG_BASE, reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
}

fn give(guest: &mut Guest, value: u64) -> Result<(), ApplyError> {
    let event = Event::Trap { instruction: TrapKind::Random, value };
    assert_eq!(guest.devices.accepts(&guest.ram, &event), guest.devices.entropy_wanted() > 0);
    guest.devices.apply(&guest.ram, &event)
}

fn interrupts(guest: &mut Guest) -> u32 {
    guest.reg(VIRTIO_RNG_BASE, reg::VIRTIO_MMIO_INTERRUPT_STATUS)
}

#[test]
fn is_an_entropy_device() {
    let mut guest = Guest::new();
    assert_eq!(guest.reg(VIRTIO_RNG_BASE, reg::VIRTIO_MMIO_DEVICE_ID), 4);
    assert_eq!(guest.reg(VIRTIO_RNG_BASE, reg::VIRTIO_MMIO_CONFIG), 0);
}

#[test]
fn a_buffer_is_filled_by_words_and_returned_once() {
    let mut guest = Guest::new();
    let mut queue = guest.start_rng(V1);
    // 20 bytes in two parts.
    queue.add(&guest.ram, &[(BUFFER, 5, WRITE), (BUFFER + 0x100, 15, WRITE)]);
    assert_eq!(guest.devices.entropy_wanted(), 0, "not notified yet");
    notify(&mut guest);
    assert_eq!(guest.devices.entropy_wanted(), 3);
    give(&mut guest, 0x0807_0605_0403_0201).unwrap();
    give(&mut guest, 0x100f_0e0d_0c0b_0a09).unwrap();
    assert_eq!(guest.devices.entropy_wanted(), 1);
    assert_eq!((queue.take_used(&guest.ram), interrupts(&mut guest)), (None, 0));
    give(&mut guest, 0xffff_ffff_1413_1211).unwrap();
    assert_eq!(guest.devices.entropy_wanted(), 0);
    assert_eq!(queue.take_used(&guest.ram), Some((0, 20)));
    assert_eq!(guest.bytes(BUFFER, 6), [1, 2, 3, 4, 5, 0]);
    assert_eq!(guest.bytes(BUFFER + 0x100, 16), [6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 0]);
    assert_eq!(interrupts(&mut guest), 1);
}

#[test]
fn large_buffers_get_a_part_and_the_next_waits_its_turn() {
    let mut guest = Guest::new();
    let mut queue = guest.start_rng(V1);
    queue.add(&guest.ram, &[(BUFFER, 1 << 20, WRITE)]);
    queue.add(&guest.ram, &[(BUFFER, 8, WRITE)]);
    notify(&mut guest);
    for left in (1..=8).rev() {
        assert_eq!(guest.devices.entropy_wanted(), left);
        give(&mut guest, 7).unwrap();
    }
    assert_eq!(queue.take_used(&guest.ram), Some((0, 64)));
    assert_eq!(guest.devices.entropy_wanted(), 1, "the second buffer");
    give(&mut guest, 8).unwrap();
    assert_eq!(queue.take_used(&guest.ram), Some((1, 8)));
}

#[test]
fn entropy_that_nobody_wants_is_an_error() {
    let mut guest = Guest::new();
    let before = guest.digest();
    assert_eq!(give(&mut guest, 1), Err(ApplyError::EntropyUnwanted));
    let time = Event::Trap { instruction: TrapKind::TimeStamp, value: 1 };
    assert!(!guest.devices.accepts(&guest.ram, &time));
    assert_eq!(guest.devices.apply(&guest.ram, &time), Err(ApplyError::NotForDevices { event: "Trap" }));
    assert_eq!(guest.digest(), before);
}

#[test]
fn a_reset_forgets_the_buffer() {
    let mut guest = Guest::new();
    let mut queue = guest.start_rng(V1);
    queue.add(&guest.ram, &[(BUFFER, 16, WRITE)]);
    notify(&mut guest);
    give(&mut guest, 1).unwrap();
    guest.set_reg(VIRTIO_RNG_BASE, reg::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(guest.devices.entropy_wanted(), 0);
    assert_eq!(guest.bytes(BUFFER, 16), [0; 16]);
}

#[test]
fn buffers_of_no_use_are_returned_empty() {
    let mut guest = Guest::new();
    let mut queue = guest.start_rng(V1);
    queue.add(&guest.ram, &[(BUFFER, 16, 0)]);
    queue.add(&guest.ram, &[(BUFFER, 4, WRITE)]);
    notify(&mut guest);
    assert_eq!(queue.take_used(&guest.ram), Some((0, 0)));
    assert_eq!(guest.devices.entropy_wanted(), 1);
}

#[test]
fn a_buffer_outside_ram_breaks_the_queue() {
    let mut guest = Guest::new();
    let mut queue = guest.start_rng(V1);
    queue.add(&guest.ram, &[(RAM_BYTES - 4, 8, WRITE)]);
    notify(&mut guest);
    give(&mut guest, 1).unwrap();
    let status = guest.reg(VIRTIO_RNG_BASE, reg::VIRTIO_MMIO_STATUS);
    assert_eq!(status & 0x40, 0x40, "DEVICE_NEEDS_RESET");
    assert_eq!(queue.take_used(&guest.ram), None);
}

#[test]
fn its_line_reaches_the_second_pic() {
    let mut guest = Guest::new();
    for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0)] {
        guest.outb(port, value);
    }
    for (port, value) in [(0xa0, 0x11), (0xa1, 0x28), (0xa1, 2), (0xa1, 1), (0xa1, 0)] {
        guest.outb(port, value);
    }
    let mut queue = guest.start_rng(V1);
    queue.add(&guest.ram, &[(BUFFER, 8, WRITE)]);
    notify(&mut guest);
    assert!(!guest.devices.interrupt_pending());
    give(&mut guest, 1).unwrap();
    assert!(guest.devices.interrupt_pending());
    assert_eq!(guest.devices.acknowledge_interrupt(), 0x28 + VIRTIO_RNG_IRQ - 8);
}
