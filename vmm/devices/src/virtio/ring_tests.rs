//! Queues that a guest got wrong, by mistake or on purpose.

use proptest::prelude::*;
use virtio_bindings::virtio_mmio as reg;

use super::*;
use crate::layout::{EVENT_POLL, EVENT_PORT, VIRTIO_BLK_BASE, VIRTIO_NET_BASE};
use crate::testing::*;
use logchannel::{DiskStatus, Event, Output};

const V1: u64 = 1 << 32;
const BUFFER: u64 = 0x20_0000;

/// A ring of 16 entries, ready, with its driver's side.
fn ring(ram: &Ram) -> (Ring, Driver) {
    let driver = Driver::at(0x1_0000, 16);
    let mut ring = Ring::new();
    ring.set_size(16);
    ring.set_address(Part::Descriptors, false, driver.base as u32);
    ring.set_address(Part::Available, false, driver.available() as u32);
    ring.set_address(Part::Used, false, driver.used_ring() as u32);
    ring.enable(ram);
    assert!(ring.ready());
    (ring, driver)
}

fn pop(ring: &mut Ring, ram: &Ram) -> Result<Option<(usize, usize)>, Broken> {
    let mut chain = Chain::default();
    Ok(ring.pop(ram, &mut chain)?.then_some((chain.readable.len(), chain.writable.len())))
}

#[test]
fn chains_that_are_right() {
    let ram = ram();
    let (mut ring, mut driver) = ring(&ram);
    assert_eq!(pop(&mut ring, &ram), Ok(None));
    driver.add(&ram, &[(BUFFER, 1, 0), (BUFFER, 0, 0), (BUFFER, 1, WRITE), (BUFFER, 1, WRITE)]);
    assert_eq!(pop(&mut ring, &ram), Ok(Some((1, 2))));
    assert_eq!(pop(&mut ring, &ram), Ok(None));
    // As long as the queue.
    driver.add(&ram, &[(BUFFER, 1, 0); 16]);
    assert_eq!(pop(&mut ring, &ram), Ok(Some((16, 0))));
}

#[test]
fn loops_and_wrong_indexes_are_errors() {
    let ram = ram();
    for (flags, next) in [(NEXT, 0), (NEXT, 1), (NEXT, 16), (NEXT, u16::MAX)] {
        let (mut ring, mut driver) = ring(&ram);
        driver.set_descriptor(&ram, 0, BUFFER, 1, flags, next);
        driver.set_descriptor(&ram, 1, BUFFER, 1, NEXT, 0);
        driver.offer(&ram, 0);
        assert_eq!(pop(&mut ring, &ram), Err(Broken::Chain), "next {next}");
    }
    let (mut ring, mut driver) = ring(&ram);
    driver.offer(&ram, 16);
    assert_eq!(pop(&mut ring, &ram), Err(Broken::Chain));
}

#[test]
fn a_readable_buffer_behind_a_writable_one_is_an_error() {
    let ram = ram();
    let (mut ring, mut driver) = ring(&ram);
    driver.add(&ram, &[(BUFFER, 1, WRITE), (BUFFER, 1, 0)]);
    assert_eq!(pop(&mut ring, &ram), Err(Broken::Order));
}

#[test]
fn indirect_tables_do_not_nest_and_are_bounded() {
    let ram = ram();
    let table = Driver::at(BUFFER, 16);
    // Nested, not a whole number of descriptors, empty, outside RAM.
    for (address, len) in [(BUFFER, 16), (BUFFER, 17), (BUFFER, 0), (RAM_BYTES, 16), (u64::MAX, 32)] {
        let (mut ring, mut driver) = ring(&ram);
        table.set_descriptor(&ram, 0, BUFFER, 16, INDIRECT, 0);
        driver.add(&ram, &[(address, len, INDIRECT)]);
        assert_eq!(pop(&mut ring, &ram), Err(Broken::Chain), "{address:#x} {len}");
    }
    // 17 descriptors on a queue of 16.
    let (mut ring, mut driver) = ring(&ram);
    for index in 0..17 {
        table.set_descriptor(&ram, index, BUFFER, 1, if index < 16 { NEXT } else { 0 }, index + 1);
    }
    driver.add(&ram, &[(BUFFER, 17 * 16, INDIRECT)]);
    assert_eq!(pop(&mut ring, &ram), Err(Broken::Chain));
}

#[test]
fn an_available_index_that_runs_away_is_an_error() {
    let ram = ram();
    let (mut ring, mut driver) = ring(&ram);
    for _ in 0..17 {
        driver.offer(&ram, 0);
    }
    assert_eq!(pop(&mut ring, &ram), Err(Broken::AvailableIndex));
}

#[test]
fn chains_of_more_than_4_gib_are_errors() {
    let ram = ram();
    let (mut ring, mut driver) = ring(&ram);
    driver.add(&ram, &[(BUFFER, u32::MAX, 0), (BUFFER, u32::MAX, 0)]);
    assert_eq!(pop(&mut ring, &ram), Err(Broken::Chain));
}

#[test]
fn state_survives_encoding() {
    let ram = ram();
    let (mut ring, mut driver) = ring(&ram);
    driver.add(&ram, &[(BUFFER, 1, 0)]);
    pop(&mut ring, &ram).unwrap();
    let bytes = logchannel::codec::encode(&ring).unwrap();
    let copy: Ring = logchannel::codec::decode(&bytes).unwrap();
    assert_eq!(copy, ring);
    assert_eq!(ring.clone(), ring);
}

/// A used ring on top of the available ring, so that every buffer returned makes another one available.
#[test]
fn rings_that_feed_themselves_come_to_an_end() {
    let mut guest = Guest::new();
    guest.negotiate(VIRTIO_NET_BASE, V1);
    let mut tx = guest.add_queue(VIRTIO_NET_BASE, 1, 16, 0x10_0000);
    guest.set_reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_QUEUE_READY, 0);
    guest.set_reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_QUEUE_USED_LOW, tx.available() as u32);
    guest.set_reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_QUEUE_READY, 1);
    guest.driver_ok(VIRTIO_NET_BASE);
    for index in 0..16 {
        tx.set_descriptor(&guest.ram, index, BUFFER, 72, 0, 0);
    }
    tx.offer(&guest.ram, 0);
    for _ in 0..100 {
        guest.outl(EVENT_PORT, EVENT_POLL);
        let sent = std::iter::from_fn(|| guest.devices.take_output()).count();
        assert!(sent <= 16);
    }
}

#[test]
fn a_broken_device_leaves_the_other_alone() {
    let mut guest = Guest::new();
    let [_, mut tx] = guest.start_net(V1);
    let mut blk = guest.start_blk(V1);
    tx.offer(&guest.ram, 99);
    guest.poke(BUFFER, &[4]);
    blk.add(&guest.ram, &[(BUFFER, 16, 0), (BUFFER + 16, 1, WRITE)]);
    guest.outl(EVENT_PORT, EVENT_POLL);
    assert_eq!(guest.reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_STATUS), 15 | 64);
    assert_eq!(guest.reg(VIRTIO_BLK_BASE, reg::VIRTIO_MMIO_STATUS), 15);
    assert!(matches!(guest.devices.take_output(), Some(Output::Disk(_))));
}

/// Descriptors that are likely to be nearly right.
fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let address = prop_oneof![
        8 => BUFFER..BUFFER + 0x4000,
        2 => 0x10_0000u64..0x13_0000,
        1 => any::<u64>(),
        1 => RAM_BYTES - 64..RAM_BYTES + 64,
    ];
    let len = prop_oneof![8 => 0u32..1600, 4 => Just(16), 4 => Just(1), 4 => Just(512), 1 => any::<u32>()];
    let flags = prop_oneof![8 => 0u16..4, 1 => 0u16..8, 1 => any::<u16>()];
    (address, len, flags, prop_oneof![8 => 0u16..16, 1 => any::<u16>()])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever is in the rings, nothing panics, every step's work is bounded, and the device either goes on
    /// or says that it does not.
    #[test]
    fn hostile_rings_do_no_harm(
        tables in prop::collection::vec(prop::collection::vec(descriptor(), 16), 3),
        raw in prop::collection::vec(any::<u8>(), 0..0x400),
        event_idx in any::<bool>(),
        steps in prop::collection::vec((0u8..6, 0usize..3, 0u16..18, any::<u16>()), 1..60),
    ) {
        let mut guest = Guest::new();
        let features = V1 | u64::from(event_idx) << 29;
        let [rx, tx] = guest.start_net(features);
        let mut queues = [rx, tx, guest.start_blk(features)];
        guest.poke(BUFFER, &raw);
        for (queue, table) in queues.iter().zip(&tables) {
            for (index, &(address, len, flags, next)) in table.iter().enumerate() {
                queue.set_descriptor(&guest.ram, index as u16, address, len, flags, next);
            }
        }
        let mut in_flight = Vec::new();
        for (kind, queue, head, word) in steps {
            match kind {
                0 | 1 => queues[queue].offer(&guest.ram, head),
                2 => guest.outl(EVENT_PORT, EVENT_POLL),
                3 => {
                    let frame = Event::NetRx(vec![7; usize::from(word) % 1600]);
                    guest.devices.apply(&guest.ram, &frame).unwrap();
                }
                4 => guest.poke(queues[queue].available() + 2, &word.to_le_bytes()),
                _ => {
                    if let Some((request, len)) = in_flight.pop() {
                        let data = vec![1; len];
                        let done = Event::DiskDone { request, status: DiskStatus::Ok, data };
                        guest.devices.apply(&guest.ram, &done).unwrap();
                    }
                }
            }
            let mut outputs = 0;
            while let Some(output) = guest.devices.take_output() {
                outputs += 1;
                if let Output::Disk(request) = output {
                    let len = match request.op {
                        logchannel::DiskOp::Read { len, .. } => len as usize,
                        _ => 0,
                    };
                    in_flight.push((request.id, len));
                }
            }
            prop_assert!(outputs <= 32);
            for device in [VIRTIO_NET_BASE, VIRTIO_BLK_BASE] {
                let status = guest.reg(device, reg::VIRTIO_MMIO_STATUS);
                prop_assert!(status == 15 || status == 15 | 64);
            }
        }
    }
}
