//! What the tests of this crate share: entries of every kind, made by hand and by proptest.
#![allow(dead_code, clippy::unwrap_used)]

use logchannel::entry::{Point, TrapKind};
use logchannel::{
    DiskStatus, Event, LogEntry, MachineDigest, OutputKind, PairConfig, Position, pair::OnReset,
};
use proptest::prelude::*;

/// One entry of every kind, positions with and without a point, counts near and far.
pub fn every_kind() -> Vec<LogEntry> {
    let point = Point { rip: 0xffff_8000_0000_1234, rcx: 7, registers: u64::MAX };
    let digest = MachineDigest { registers: 1, devices: 1 << 40, memory: u64::MAX };
    let events = [
        (3, None, Event::NetRx((0..100).collect())),
        (3, None, Event::Output { kind: OutputKind::Net, digest: *b"lockstep" }),
        (66, None, Event::ConsoleRx(b"help\r".to_vec())),
        (9_000, Some(point), Event::DiskDone { request: 300, status: DiskStatus::Ok, data: vec![0xa5; 512] }),
        (
            9_000,
            Some(Point { rcx: 6, ..point }),
            Event::DiskDone { request: 301, status: DiskStatus::IoError, data: Vec::new() },
        ),
        (9_001, None, Event::Clock { now_ns: 1_700_000_000_000 }),
        (1 << 33, None, Event::Trap { instruction: TrapKind::TimeStamp, value: u64::MAX }),
        (1 << 33, None, Event::Output { kind: OutputKind::Disk, digest: [0xff; 8] }),
        (1 << 34, None, Event::Digest(digest)),
        (1 << 34, None, Event::GoLive { generation: 2 }),
        (1 << 34, None, Event::DiskRead { request: 302, offset: 1 << 32, len: 4096, digest: *b"xxh3-64." }),
        (u64::MAX - 3, None, Event::PowerButton),
        (u64::MAX - 2, None, Event::HandOver),
        (u64::MAX - 1, None, Event::Reset),
        (u64::MAX, Some(point), Event::Shutdown),
    ];
    let entry =
        |(i, (count, point, event))| LogEntry { seq: i as u64 + 1, at: Position { count, point }, event };
    events.into_iter().enumerate().map(entry).collect()
}

/// A machine, as a pair or a recording describes it.
pub fn config() -> PairConfig {
    PairConfig {
        vm: "shop".into(),
        engine: "kvm".into(),
        clock: "exits".into(),
        cpu_model: "x86-64-v1".into(),
        host_cpu: "GenuineIntel 6/143/8 0x2b000603 93a1c8".into(),
        machine_model: "pc 1".into(),
        memory_bytes: 64 << 20,
        image_digest: [0x5a; 32],
        command_line: "ip=10.77.0.2/24 port=6379".into(),
        disk: "root".into(),
        disk_bytes: 256 << 20,
        mac: [0x52, 0x4c, 0x4b, 0, 0, 2],
        on_reset: OnReset::Restart { limit: 5 },
        wall_base_ns: 1_700_000_000_000_000_000,
    }
}

/// Any event; its data short.
pub fn event() -> impl Strategy<Value = Event> {
    let data = || proptest::collection::vec(any::<u8>(), 0..300);
    let status = prop_oneof![Just(DiskStatus::Ok), Just(DiskStatus::IoError), Just(DiskStatus::Unsupported)];
    let kind = prop_oneof![Just(OutputKind::Net), Just(OutputKind::Disk), Just(OutputKind::Console)];
    let trap = prop_oneof![Just(TrapKind::TimeStamp), Just(TrapKind::Random)];
    prop_oneof![
        data().prop_map(Event::NetRx),
        data().prop_map(Event::ConsoleRx),
        (any::<u64>(), status, data()).prop_map(|(request, status, data)| Event::DiskDone {
            request,
            status,
            data
        }),
        any::<u64>().prop_map(|now_ns| Event::Clock { now_ns }),
        (trap, any::<u64>()).prop_map(|(instruction, value)| Event::Trap { instruction, value }),
        (kind, any::<[u8; 8]>()).prop_map(|(kind, digest)| Event::Output { kind, digest }),
        any::<[u64; 3]>().prop_map(|[registers, devices, memory]| Event::Digest(MachineDigest {
            registers,
            devices,
            memory
        })),
        Just(Event::Shutdown),
        Just(Event::Reset),
        Just(Event::HandOver),
        Just(Event::PowerButton),
        any::<u64>().prop_map(|generation| Event::GoLive { generation }),
        (any::<u64>(), any::<u64>(), any::<u32>(), any::<[u8; 8]>())
            .prop_map(|(request, offset, len, digest)| Event::DiskRead { request, offset, len, digest }),
    ]
}

/// A log of up to `most` entries from the first on.
pub fn log(most: usize) -> impl Strategy<Value = Vec<LogEntry>> {
    let step = prop_oneof![4 => 0..50u64, 2 => 0..100_000u64, 1 => 0..u64::MAX / 1000];
    let point = proptest::option::weighted(
        0.2,
        any::<[u64; 3]>().prop_map(|[rip, rcx, registers]| Point { rip, rcx, registers }),
    );
    proptest::collection::vec((step, point, event()), 0..most.min(1000)).prop_map(|parts| {
        let mut count = 0;
        let number = |(i, (step, point, event)): (usize, (u64, Option<Point>, Event))| {
            count += step;
            LogEntry { seq: i as u64 + 1, at: Position { count, point }, event }
        };
        parts.into_iter().enumerate().map(number).collect()
    })
}
