//! virtio-blk with a driver's queue.

use logchannel::{DiskOp, DiskRequest, DiskStatus, Event, Output};
use virtio_bindings::virtio_mmio as reg;

use super::*;
use crate::layout::VIRTIO_BLK_BASE;
use crate::testing::*;
use crate::{ApplyError, Devices};

const V1: u64 = 1 << 32;
const FLUSH: u64 = 1 << def::VIRTIO_BLK_F_FLUSH;
const HEADER: u64 = 0x20_0000;
const DATA: u64 = 0x21_0000;
const STATUS: u64 = 0x20_0100;
const PENDING: u8 = 0xee;

struct Disk {
    guest: Guest,
    queue: Driver,
}

impl Disk {
    fn new(features: u64) -> Self {
        let mut guest = Guest::new();
        let queue = guest.start_blk(features);
        guest.poke(STATUS, &[PENDING]);
        Self { guest, queue }
    }

    fn header(&self, kind: u32, sector: u64) {
        self.guest.poke(HEADER, &kind.to_le_bytes());
        self.guest.poke(HEADER + 4, &[0; 4]);
        self.guest.poke(HEADER + 8, &sector.to_le_bytes());
    }

    fn notify(&mut self) {
        self.guest.set_reg(VIRTIO_BLK_BASE, reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    }

    fn submit(&mut self, buffers: &[(u64, u32, u16)]) {
        self.queue.add(&self.guest.ram, buffers);
        self.notify();
    }

    fn read(&mut self, sector: u64, len: u32) {
        self.header(def::VIRTIO_BLK_T_IN, sector);
        self.submit(&[(HEADER, 16, 0), (DATA, len, WRITE), (STATUS, 1, WRITE)]);
    }

    fn write(&mut self, sector: u64, len: u32) {
        self.header(def::VIRTIO_BLK_T_OUT, sector);
        self.submit(&[(HEADER, 16, 0), (DATA, len, 0), (STATUS, 1, WRITE)]);
    }

    fn take(&mut self) -> Option<DiskRequest> {
        self.guest.devices.take_output().map(|output| match output {
            Output::Disk(request) => request,
            other => panic!("{other:?}"),
        })
    }

    fn done(&mut self, request: u64, status: DiskStatus, data: &[u8]) -> Result<(), ApplyError> {
        let event = Event::DiskDone { request, status, data: data.to_vec() };
        self.guest.devices.apply(&self.guest.ram, &event)
    }

    fn status(&self) -> u8 {
        self.guest.bytes(STATUS, 1)[0]
    }

    fn device_status(&mut self) -> u32 {
        self.guest.reg(VIRTIO_BLK_BASE, reg::VIRTIO_MMIO_STATUS)
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|byte| (byte * 7 / 3) as u8).collect()
}

#[test]
fn reads_into_scattered_buffers() {
    let mut disk = Disk::new(V1);
    disk.header(def::VIRTIO_BLK_T_IN, 5);
    // Status behind data in one buffer; the header split.
    disk.submit(&[(HEADER, 4, 0), (HEADER + 4, 12, 0), (DATA, 700, WRITE), (DATA + 0x1000, 325, WRITE)]);
    assert_eq!(disk.take(), Some(DiskRequest { id: 1, op: DiskOp::Read { offset: 5 * 512, len: 1024 } }));
    assert_eq!(disk.queue.take_used(&disk.guest.ram), None);
    let data = pattern(1024);
    disk.done(1, DiskStatus::Ok, &data).unwrap();
    assert_eq!(disk.queue.take_used(&disk.guest.ram), Some((0, 1025)));
    assert_eq!(disk.guest.bytes(DATA, 700), data[..700]);
    assert_eq!(disk.guest.bytes(DATA + 0x1000, 324), data[700..]);
    assert_eq!(disk.guest.bytes(DATA + 0x1000 + 324, 2), [0, 0], "status OK, and nothing behind it");
    assert!(disk.guest.devices.parts.blk.line());
}

#[test]
fn writes_are_durable_unless_flush_was_negotiated() {
    for (features, durable) in [(V1, true), (V1 | FLUSH, false)] {
        let mut disk = Disk::new(features);
        let data = pattern(1536);
        disk.guest.poke(DATA, &data);
        disk.write(2, 1536);
        let op = DiskOp::Write { offset: 1024, data, durable };
        assert_eq!(disk.take(), Some(DiskRequest { id: 1, op }));
        disk.done(1, DiskStatus::Ok, &[]).unwrap();
        assert_eq!(disk.status(), 0);
        assert_eq!(disk.queue.take_used(&disk.guest.ram), Some((0, 1)));
    }
}

#[test]
fn flush_and_failures() {
    let mut disk = Disk::new(V1 | FLUSH);
    for (status, code) in [(DiskStatus::Ok, 0), (DiskStatus::IoError, 1), (DiskStatus::Unsupported, 2)] {
        disk.header(def::VIRTIO_BLK_T_FLUSH, 0);
        disk.submit(&[(HEADER, 16, 0), (STATUS, 1, WRITE)]);
        let request = disk.take().unwrap();
        assert_eq!(request.op, DiskOp::Flush);
        disk.done(request.id, status, &[]).unwrap();
        assert_eq!(disk.status(), code);
    }
    disk.read(0, 512);
    let request = disk.take().unwrap();
    disk.done(request.id, DiskStatus::IoError, &[]).unwrap();
    assert_eq!(disk.status(), 1);
    assert_eq!(disk.guest.bytes(DATA, 512), [0; 512]);
}

#[test]
fn completions_may_come_in_any_order() {
    let mut disk = Disk::new(V1);
    for index in 0..4u32 {
        disk.header(def::VIRTIO_BLK_T_IN, u64::from(index));
        let at = DATA + 0x1000 * u64::from(index);
        disk.submit(&[(HEADER, 16, 0), (at, 513, WRITE)]);
    }
    for id in [3, 1, 4, 2] {
        disk.done(id, DiskStatus::Ok, &[id as u8; 512]).unwrap();
        let at = DATA + 0x1000 * (id - 1);
        assert_eq!(disk.guest.bytes(at, 513), [vec![id as u8; 512], vec![0]].concat());
        let (head, len) = disk.queue.take_used(&disk.guest.ram).unwrap();
        assert_eq!((u64::from(head), len), ((id - 1) * 2, 513));
    }
}

#[test]
fn get_id_and_unknown_requests_are_answered_at_once() {
    let mut disk = Disk::new(V1);
    disk.header(def::VIRTIO_BLK_T_GET_ID, 0);
    disk.submit(&[(HEADER, 16, 0), (DATA, 20, WRITE), (STATUS, 1, WRITE)]);
    assert_eq!(disk.guest.bytes(DATA, 20), SERIAL);
    assert_eq!(disk.queue.take_used(&disk.guest.ram), Some((0, 21)));
    for kind in [2, 3, def::VIRTIO_BLK_T_DISCARD, u32::MAX] {
        disk.header(kind, 0);
        disk.submit(&[(HEADER, 16, 0), (STATUS, 1, WRITE)]);
        assert_eq!(disk.status(), 2);
        assert!(disk.queue.take_used(&disk.guest.ram).is_some());
    }
    assert_eq!(disk.take(), None);
}

#[test]
fn requests_that_do_not_fit_the_disk_fail() {
    let sectors = DISK_BYTES / 512;
    for (sector, len) in [
        (sectors, 512),
        (sectors - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (0, 511),
        (0, 513),
        (0, 0),
        (0, (MAX_DISK_REQUEST_BYTES + 512) as u32),
    ] {
        let mut disk = Disk::new(V1);
        disk.read(sector, len);
        disk.write(sector, len);
        assert_eq!(disk.take(), None, "{sector} {len}");
        assert_eq!(disk.status(), 1);
        assert_eq!(disk.queue.take_used(&disk.guest.ram), Some((0, 1)));
        assert_eq!(disk.device_status(), 15, "the device goes on");
    }
    let mut disk = Disk::new(V1);
    disk.read(sectors - 2048, MAX_DISK_REQUEST_BYTES as u32);
    assert!(disk.take().is_some());
}

#[test]
fn buffers_outside_ram_fail_the_request() {
    for buffer in [RAM_BYTES - 100, RAM_BYTES, u64::MAX - 100] {
        let mut disk = Disk::new(V1);
        disk.header(def::VIRTIO_BLK_T_IN, 0);
        disk.submit(&[(HEADER, 16, 0), (buffer, 512, WRITE), (STATUS, 1, WRITE)]);
        assert_eq!(disk.status(), 1);
        disk.guest.poke(STATUS, &[PENDING]);
        disk.header(def::VIRTIO_BLK_T_OUT, 0);
        disk.submit(&[(HEADER, 16, 0), (buffer, 512, 0), (STATUS, 1, WRITE)]);
        assert_eq!(disk.status(), 1);
        assert_eq!(disk.take(), None);
    }
}

#[test]
fn requests_without_a_place_for_the_status_break_the_device() {
    for buffers in [
        &[(HEADER, 16, 0)][..],
        &[(HEADER, 16, 0), (RAM_BYTES, 1, WRITE)],
        &[(HEADER, 16, 0), (u64::MAX, 2, WRITE)],
    ] {
        let mut disk = Disk::new(V1);
        disk.header(def::VIRTIO_BLK_T_FLUSH, 0);
        disk.submit(buffers);
        assert_eq!(disk.device_status(), 15 | 64);
        assert_eq!(disk.guest.reg(VIRTIO_BLK_BASE, reg::VIRTIO_MMIO_INTERRUPT_STATUS), 2);
        // Nothing happens any more, until a reset.
        disk.submit(&[(HEADER, 16, 0), (STATUS, 1, WRITE)]);
        assert_eq!(disk.take(), None);
        disk.queue = disk.guest.start_blk(V1);
        disk.guest.poke(disk.queue.used_ring() + 2, &[0, 0]);
        disk.submit(&[(HEADER, 16, 0), (STATUS, 1, WRITE)]);
        assert!(disk.take().is_some());
    }
}

#[test]
fn a_short_header_fails_the_request() {
    let mut disk = Disk::new(V1);
    disk.submit(&[(HEADER, 15, 0), (STATUS, 1, WRITE)]);
    assert_eq!(disk.status(), 1);
}

#[test]
fn false_completions_are_refused() {
    let mut disk = Disk::new(V1);
    disk.read(0, 512);
    assert_eq!(disk.done(2, DiskStatus::Ok, &[]), Err(ApplyError::UnknownRequest { request: 2 }));
    for (status, len, expected) in [(DiskStatus::Ok, 511, 512), (DiskStatus::IoError, 512, 0)] {
        assert_eq!(
            disk.done(1, status, &vec![0; len]),
            Err(ApplyError::DataLength { request: 1, expected, found: len as u64 })
        );
    }
    disk.done(1, DiskStatus::Ok, &[0; 512]).unwrap();
    assert_eq!(disk.done(1, DiskStatus::Ok, &[0; 512]), Err(ApplyError::UnknownRequest { request: 1 }));
}

#[test]
fn in_flight_requests_keep_their_data_and_order() {
    let mut disk = Disk::new(V1);
    let data = pattern(512);
    disk.guest.poke(DATA, &data);
    disk.write(1, 512);
    disk.read(2, 512);
    // The guest, against the rules, changes the buffer.
    disk.guest.poke(DATA, &[0; 512]);
    let expected = [
        DiskRequest { id: 1, op: DiskOp::Write { offset: 512, data, durable: true } },
        DiskRequest { id: 2, op: DiskOp::Read { offset: 1024, len: 512 } },
    ];
    assert_eq!(disk.guest.devices.in_flight_disk(), expected);
    let restored = Devices::restore(disk.guest.devices.save()).unwrap();
    assert_eq!(restored.in_flight_disk(), expected);
}

#[test]
fn requests_abandoned_by_a_reset_complete_without_touching_memory() {
    let mut disk = Disk::new(V1);
    disk.read(0, 512);
    disk.queue = disk.guest.start_blk(V1);
    disk.guest.poke(disk.queue.available() + 2, &[0, 0]);
    assert_eq!(disk.guest.devices.in_flight_disk().len(), 1);
    let before = disk.guest.bytes(0, RAM_BYTES as usize);
    disk.done(1, DiskStatus::Ok, &[1; 512]).unwrap();
    assert!(disk.guest.devices.in_flight_disk().is_empty());
    assert!(disk.guest.bytes(0, RAM_BYTES as usize) == before);
}

#[test]
fn what_is_in_flight_is_bounded_and_the_rest_waits() {
    let mut disk = Disk::new(V1);
    let len = MAX_DISK_REQUEST_BYTES as u32;
    for _ in 0..5 {
        disk.header(def::VIRTIO_BLK_T_IN, 0);
        disk.submit(&[(HEADER, 16, 0), (DATA, len, WRITE), (STATUS, 1, WRITE)]);
    }
    let ids: Vec<u64> = std::iter::from_fn(|| disk.take()).map(|request| request.id).collect();
    assert_eq!(ids, [1, 2, 3, 4]);
    disk.notify();
    assert_eq!(disk.take(), None);
    disk.done(2, DiskStatus::Ok, &vec![9; len as usize]).unwrap();
    assert_eq!(disk.take().unwrap().id, 5, "taken once there is room, without another notification");
    // So is what a guest abandons, again and again.
    for _ in 0..1000 {
        disk.queue = disk.guest.start_blk(V1);
        disk.guest.poke(disk.queue.available() + 2, &[0, 0]);
        disk.read(0, len);
    }
    assert_eq!(disk.guest.devices.in_flight_disk().len(), 4);
}
