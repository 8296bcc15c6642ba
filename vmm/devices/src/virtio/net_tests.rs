//! virtio-net with a driver's queues.

use logchannel::{Event, Output};
use virtio_bindings::virtio_mmio as reg;

use super::*;
use crate::layout::{VIRTIO_NET_BASE, VIRTIO_NET_IRQ};
use crate::testing::*;

const V1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;
const BUFFER: u64 = 0x20_0000;

impl Net {
    pub(crate) fn transport(&self) -> &Transport {
        &self.transport
    }
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|byte| byte as u8).collect()
}

/// Puts header and frame at `BUFFER`.
fn put_frame(guest: &Guest, frame: &[u8]) {
    guest.poke(BUFFER, &[0; HEADER_LEN]);
    guest.poke(BUFFER + HEADER_LEN as u64, frame);
}

fn notify(guest: &mut Guest, queue: u32) {
    guest.set_reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue);
}

fn receive(guest: &mut Guest, frame: Vec<u8>) {
    let event = Event::NetRx(frame);
    assert!(guest.devices.accepts(&guest.ram, &event));
    guest.devices.apply(&guest.ram, &event).unwrap();
}

fn sent(guest: &mut Guest) -> Option<Vec<u8>> {
    guest.devices.take_output().map(|output| match output {
        Output::Net(frame) => frame,
        other => panic!("{other:?}"),
    })
}

#[test]
fn sends_a_frame_however_it_is_split() {
    let splits: [&[(u64, u32, u16)]; 5] = [
        &[(0, 72, 0)],
        &[(0, 12, 0), (12, 60, 0)],
        &[(0, 5, 0), (5, 20, 0), (25, 47, 0)],
        &[(0, 12, 0), (12, 0, 0), (12, 60, 0)],
        &[(0, 30, 0), (30, 42, 0)],
    ];
    for split in splits {
        let mut guest = Guest::new();
        let [_, mut tx] = guest.start_net(V1);
        put_frame(&guest, &frame(60));
        let buffers: Vec<_> = split.iter().map(|&(at, len, flags)| (BUFFER + at, len, flags)).collect();
        let head = tx.add(&guest.ram, &buffers);
        notify(&mut guest, TX_QUEUE);
        assert_eq!(sent(&mut guest), Some(frame(60)), "{split:?}");
        assert_eq!(tx.take_used(&guest.ram), Some((u32::from(head), 0)));
    }
}

#[test]
fn sends_many_frames_in_order_around_the_ring() {
    let mut guest = Guest::new();
    let [_, mut tx] = guest.start_net(V1);
    for round in 0..10u8 {
        for index in 0..7u8 {
            let address = BUFFER + 0x1000 * u64::from(index);
            guest.poke(address, &[[0; 12].as_slice(), &[round, index], &[0; 30]].concat());
            tx.add(&guest.ram, &[(address, 12, 0), (address + 12, 32, 0)]);
        }
        notify(&mut guest, TX_QUEUE);
        for index in 0..7u8 {
            assert_eq!(sent(&mut guest).unwrap()[..2], [round, index]);
            assert!(tx.take_used(&guest.ram).is_some());
        }
        assert_eq!(sent(&mut guest), None);
    }
}

#[test]
fn frames_ethernet_does_not_know_are_not_sent() {
    let mut guest = Guest::new();
    let [_, mut tx] = guest.start_net(V1);
    for (len, goes) in [(13, false), (14, true), (1514, true), (1515, false), (65_000, false)] {
        put_frame(&guest, &frame(len));
        tx.add(&guest.ram, &[(BUFFER, (HEADER_LEN + len) as u32, 0)]);
        notify(&mut guest, TX_QUEUE);
        assert_eq!(sent(&mut guest), goes.then(|| frame(len)));
        assert!(tx.take_used(&guest.ram).is_some(), "the buffer comes back in any case");
    }
    // Not even a header, and a buffer that is to be written.
    for buffers in [&[(BUFFER, 4, 0)][..], &[(BUFFER, 72, 0), (BUFFER, 72, WRITE)], &[(BUFFER, 72, WRITE)]] {
        tx.add(&guest.ram, buffers);
        notify(&mut guest, TX_QUEUE);
        assert_eq!(sent(&mut guest), None);
        assert!(tx.take_used(&guest.ram).is_some());
    }
    assert_eq!(guest.reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_STATUS), 15);
}

#[test]
fn receives_a_frame_into_however_many_buffers() {
    for split in [&[72][..], &[12, 60], &[1, 10, 1, 30, 30], &[100, 100], &[40, 1500]] {
        let mut guest = Guest::new();
        let [mut rx, _] = guest.start_net(V1);
        let mut at = BUFFER;
        let buffers: Vec<_> = split
            .iter()
            .map(|&len| {
                let buffer = (at, len, WRITE);
                at += u64::from(len);
                buffer
            })
            .collect();
        let head = rx.add(&guest.ram, &buffers);
        receive(&mut guest, frame(60));
        assert_eq!(rx.take_used(&guest.ram), Some((u32::from(head), 72)));
        assert_eq!(guest.bytes(BUFFER, 12), RX_HEADER);
        assert_eq!(guest.bytes(BUFFER + 12, 60), frame(60));
        assert_eq!(guest.bytes(BUFFER + 72, 100), [0; 100], "not a byte more");
    }
}

#[test]
fn accepts_frames_while_there_are_buffers() {
    let mut guest = Guest::new();
    let event = Event::NetRx(frame(60));
    assert!(!guest.devices.accepts(&guest.ram, &event), "no driver yet");
    let [mut rx, _] = guest.start_net(V1);
    assert!(!guest.devices.accepts(&guest.ram, &event));
    rx.add(&guest.ram, &[(BUFFER, 2048, WRITE)]);
    assert!(guest.devices.accepts(&guest.ram, &event));
    receive(&mut guest, frame(60));
    assert!(!guest.devices.accepts(&guest.ram, &event));
    // Applied all the same it is lost, as on a wire.
    guest.devices.apply(&guest.ram, &event).unwrap();
    rx.add(&guest.ram, &[(BUFFER, 2048, WRITE)]);
    guest.set_reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_STATUS, 0);
    assert!(!guest.devices.accepts(&guest.ram, &event));
}

#[test]
fn frames_that_fit_nowhere_are_dropped() {
    let mut guest = Guest::new();
    let [mut rx, _] = guest.start_net(V1);
    rx.add(&guest.ram, &[(BUFFER, 12 + 100, WRITE)]);
    for len in [0, 13, 101, 1519, 70_000] {
        receive(&mut guest, frame(len));
        assert_eq!(rx.take_used(&guest.ram), None);
    }
    receive(&mut guest, frame(100));
    assert_eq!(rx.take_used(&guest.ram), Some((0, 112)), "the buffer waited for one that fits");
}

#[test]
fn interrupts_until_acknowledged() {
    let mut guest = Guest::new();
    let [mut rx, _] = guest.start_net(V1);
    rx.add(&guest.ram, &[(BUFFER, 2048, WRITE)]);
    rx.add(&guest.ram, &[(BUFFER, 2048, WRITE)]);
    receive(&mut guest, frame(60));
    assert!(guest.devices.parts.net.line());
    assert_eq!(guest.reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    guest.set_reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert!(!guest.devices.parts.net.line());
    rx.set_flags(&guest.ram, 1);
    receive(&mut guest, frame(60));
    assert!(!guest.devices.parts.net.line(), "the guest wants none");
}

#[test]
fn the_interrupt_reaches_the_vcpu() {
    let mut guest = Guest::new();
    for (port, base) in [(0x20, 0x20), (0xa0, 0x28)] {
        guest.outb(port, 0x11);
        for value in [base, if port == 0x20 { 4 } else { 2 }, 1, 0] {
            guest.outb(port + 1, value);
        }
    }
    let [mut rx, _] = guest.start_net(V1);
    rx.add(&guest.ram, &[(BUFFER, 2048, WRITE)]);
    assert!(!guest.devices.interrupt_pending());
    receive(&mut guest, frame(60));
    assert!(guest.devices.interrupt_pending());
    assert_eq!(guest.devices.acknowledge_interrupt(), 0x20 + VIRTIO_NET_IRQ);
    assert!(!guest.devices.interrupt_pending());
}

#[test]
fn event_indexes_choose_interrupts_and_notifications() {
    let mut guest = Guest::new();
    let [mut rx, mut tx] = guest.start_net(V1 | EVENT_IDX);
    for _ in 0..4 {
        rx.add(&guest.ram, &[(BUFFER, 2048, WRITE)]);
    }
    rx.set_used_event(&guest.ram, 1);
    receive(&mut guest, frame(60));
    assert!(!guest.devices.parts.net.line(), "the first is not asked for");
    receive(&mut guest, frame(60));
    assert!(guest.devices.parts.net.line(), "the second is");
    put_frame(&guest, &frame(60));
    for count in 1..=3 {
        tx.add(&guest.ram, &[(BUFFER, 72, 0)]);
        notify(&mut guest, TX_QUEUE);
        assert_eq!(tx.avail_event(&guest.ram), count, "notify me of the next");
    }
}

#[test]
fn indirect_descriptors_work() {
    let mut guest = Guest::new();
    let [_, mut tx] = guest.start_net(V1);
    put_frame(&guest, &frame(60));
    let table = BUFFER + 0x1000;
    let indirect = Driver::at(table, 16);
    indirect.set_descriptor(&guest.ram, 0, BUFFER, 12, NEXT, 1);
    indirect.set_descriptor(&guest.ram, 1, BUFFER + 12, 60, 0, 0);
    tx.add(&guest.ram, &[(table, 32, INDIRECT)]);
    notify(&mut guest, TX_QUEUE);
    assert_eq!(sent(&mut guest), Some(frame(60)));
}
