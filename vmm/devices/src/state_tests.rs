//! Saving, restoring, and two machines that are given the same.

use std::collections::VecDeque;

use logchannel::{DiskOp, DiskStatus, Event, TrapKind};
use proptest::prelude::*;

use super::*;
use crate::layout::*;
use crate::testing::*;

/// Something that happens to a machine.
#[derive(Debug, Clone)]
enum Step {
    In(u16, usize),
    Out(u16, Vec<u8>),
    Read(u64, usize),
    Write(u64, Vec<u8>),
    /// The guest offers this head in a queue: 0 and 1 are the network's, 2 the disk's, 3 entropy's, 4 and 5
    /// the console's.
    Offer(usize, u16),
    /// The guest writes into its shared page.
    Poke(u64, u64),
    Frame(usize, u8),
    Console(Vec<u8>),
    Entropy(u64),
    PowerButton,
    /// The clock moves by so many nanoseconds.
    Pass(u64),
    /// The oldest request in flight completes; true for success.
    Complete(bool),
    Acknowledge,
}

const PAGE: u64 = 0x5000;

/// A machine with its devices set up and some requests ready to be offered.
struct Machine {
    guest: Guest,
    queues: [Driver; 6],
    in_flight: VecDeque<(u64, usize)>,
    /// Everything that came out: values read, vectors, outputs, what is waited for.
    seen: Vec<u8>,
}

impl Machine {
    fn new(features: u64, virtio_console: bool) -> Self {
        let mut guest = Guest::new();
        if virtio_console {
            let console_input = crate::ConsoleInput::Virtio;
            guest.devices = Devices::new(&crate::DevicesConfig { console_input, ..config() });
        }
        for (port, base, icw3) in [(0x20, 0x20, 4), (0xa0, 0x28, 2)] {
            for (port, value) in
                [(port, 0x11), (port + 1, base), (port + 1, icw3), (port + 1, 1), (port + 1, 0)]
            {
                guest.outb(port, value);
            }
        }
        guest.outl(EVENT_PAGE_PORT, (PAGE / PAGE_BYTES) as u32);
        guest.write_u64(PAGE + SHARED_WAKE_AT_NS, u64::MAX);
        let [rx, tx] = guest.start_net(1 << 32 | features);
        let blk = guest.start_blk(1 << 32 | features);
        for index in 0..16u16 {
            let buffer = 0x20_0000 + 0x1000 * u64::from(index);
            rx.set_descriptor(&guest.ram, index, buffer, 2048, WRITE, 0);
            tx.set_descriptor(&guest.ram, index, buffer, 100 + u32::from(index), 0, 0);
        }
        // Five disk requests of three descriptors, the last one a flush.
        for request in 0..5u16 {
            let header = 0x30_0000 + 0x2000 * u64::from(request);
            guest.poke(header, &[[0, 1, 0, 1, 4][usize::from(request)], 0, 0, 0, 0, 0, 0, 0, request as u8]);
            let direction = if request % 2 == 0 { WRITE } else { 0 };
            let first = 3 * request;
            blk.set_descriptor(&guest.ram, first, header, 16, NEXT, first + 1);
            blk.set_descriptor(&guest.ram, first + 1, header + 0x1000, 512, NEXT | direction, first + 2);
            blk.set_descriptor(&guest.ram, first + 2, header + 0x800, 1, WRITE, 0);
        }
        let rng = guest.start_rng(1 << 32 | features);
        let [typed, sent] = guest.start_console(1 << 32 | features);
        for index in 0..16u16 {
            let buffer = 0x38_0000 + 0x1000 * u64::from(index);
            rng.set_descriptor(&guest.ram, index, buffer, 5 * u32::from(index), WRITE, 0);
            typed.set_descriptor(&guest.ram, index, buffer, 3 * u32::from(index), WRITE, 0);
            sent.set_descriptor(&guest.ram, index, buffer, 7 * u32::from(index), 0, 0);
        }
        Self { guest, queues: [rx, tx, blk, rng, typed, sent], in_flight: VecDeque::new(), seen: Vec::new() }
    }

    fn step(&mut self, step: &Step) {
        let Guest { devices, ram } = &mut self.guest;
        let mut data = [0; 8];
        match step {
            Step::In(port, size) => {
                devices.pio_read(ram, *port, &mut data[..*size]);
                self.seen.extend(data);
            }
            Step::Out(port, data) => devices.pio_write(ram, *port, data),
            Step::Read(address, size) => {
                devices.mmio_read(ram, *address, &mut data[..*size]);
                self.seen.extend(data);
            }
            Step::Write(address, data) => devices.mmio_write(ram, *address, data),
            Step::Offer(queue, head) => self.queues[*queue].offer(ram, *head),
            Step::Poke(offset, value) => self.guest.write_u64(PAGE + offset, *value),
            Step::Frame(len, byte) => self.apply(Event::NetRx(vec![*byte; *len])),
            Step::Entropy(value) => {
                let event = Event::Trap { instruction: TrapKind::Random, value: *value };
                if self.guest.devices.accepts(&self.guest.ram, &event) {
                    self.apply(event);
                }
            }
            Step::PowerButton => self.apply(Event::PowerButton),
            Step::Console(bytes) => self.apply(Event::ConsoleRx(bytes.clone())),
            Step::Pass(ns) => {
                let now_ns = self.guest.devices.now_ns().saturating_add(*ns);
                self.apply(Event::Clock { now_ns });
            }
            Step::Complete(success) => {
                if let Some((request, len)) = self.in_flight.pop_front() {
                    let (status, len) =
                        if *success { (DiskStatus::Ok, len) } else { (DiskStatus::IoError, 0) };
                    self.apply(Event::DiskDone { request, status, data: vec![0xdd; len] });
                }
            }
            Step::Acknowledge => {
                if devices.interrupt_pending() {
                    self.seen.push(devices.acknowledge_interrupt());
                }
            }
        }
    }

    fn apply(&mut self, event: Event) {
        let accepted = self.guest.devices.accepts(&self.guest.ram, &event);
        self.seen.push(u8::from(accepted));
        self.guest.devices.apply(&self.guest.ram, &event).unwrap();
    }

    /// Notes everything that a step left behind.
    fn look(&mut self) {
        let Guest { devices, ram } = &mut self.guest;
        while let Some(output) = devices.take_output() {
            self.seen.extend(codec::encode(&output).unwrap());
            if let Output::Disk(request) = output {
                let len = if let DiskOp::Read { len, .. } = request.op { len as usize } else { 0 };
                self.in_flight.push_back((request.id, len));
            }
        }
        let summary = format!(
            "{} {:?} {:?} {} {:?}",
            devices.now_ns(),
            devices.waiting(ram),
            devices.next_deadline_ns(),
            devices.interrupt_pending(),
            devices.ended()
        );
        self.seen.extend(summary.bytes());
    }

    /// Moves to another host, through bytes. Memory is no part of the devices' state.
    fn migrate(&mut self) {
        let bytes = codec::encode(&self.guest.devices.save()).unwrap();
        let digest = self.guest.digest();
        let state: DevicesState = codec::decode(&bytes).unwrap();
        assert_eq!(state, self.guest.devices.save());
        self.guest.devices = Devices::restore(state).unwrap();
        assert_eq!(self.guest.digest(), digest, "restored exactly");
    }

    fn everything(&self) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        (self.seen.clone(), self.guest.digest(), self.guest.bytes(0, RAM_BYTES as usize))
    }
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![
        prop::sample::select(vec![0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x61, 0x70, 0x71, 0x60, 0x80]),
        0x40u16..0x44,
        0x3f8u16..0x400,
        0x600u16..0x60c,
        0x4c4eu16..0x4c5e,
        Just(EVENT_PORT),
    ]
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => any::<u8>().prop_map(|byte| vec![byte]),
        1 => any::<u16>().prop_map(|word| word.to_le_bytes().to_vec()),
        1 => any::<u32>().prop_map(|word| word.to_le_bytes().to_vec()),
        2 => (0u32..2).prop_map(|word| word.to_le_bytes().to_vec()),
    ]
}

fn address() -> impl Strategy<Value = u64> {
    let device =
        prop::sample::select(vec![VIRTIO_NET_BASE, VIRTIO_BLK_BASE, VIRTIO_RNG_BASE, VIRTIO_CONSOLE_BASE]);
    // Status is left out of most, or the devices would be reset most of the time.
    let register = prop_oneof![
        8 => prop::sample::select(vec![0x50u64, 0x60, 0x64]),
        2 => (0u64..0x48).prop_map(|word| word * 4),
        1 => 0u64..0x120,
    ];
    (device, register).prop_map(|(device, register)| device + register)
}

fn size() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![1, 1, 1, 2, 4, 4, 8])
}

fn step() -> impl Strategy<Value = Step> {
    let field = prop::sample::select(vec![SHARED_WAKE_AT_NS, SHARED_INPUTS_SEEN]);
    let value = prop_oneof![0u64..8, Just(u64::MAX), 0u64..10_000_000_000];
    let len = prop_oneof![0usize..80, 0usize..1600];
    let pass = prop_oneof![0u64..100_000, 0u64..2_000_000_000, Just(0)];
    prop_oneof![
        4 => (port(), size()).prop_map(|(port, size)| Step::In(port, size)),
        6 => (port(), data()).prop_map(|(port, data)| Step::Out(port, data)),
        1 => (address(), size()).prop_map(|(at, size)| Step::Read(at, size)),
        2 => (address(), 0u32..4).prop_map(|(at, value)| Step::Write(at, value.to_le_bytes().to_vec())),
        6 => (0usize..6, 0u16..16).prop_map(|(queue, head)| Step::Offer(queue, head)),
        2 => (field, value).prop_map(|(at, value)| Step::Poke(at, value)),
        2 => (len, any::<u8>()).prop_map(|(len, byte)| Step::Frame(len, byte)),
        1 => prop::collection::vec(any::<u8>(), 0..20).prop_map(Step::Console),
        2 => any::<u64>().prop_map(Step::Entropy),
        1 => Just(Step::PowerButton),
        3 => pass.prop_map(Step::Pass),
        2 => any::<bool>().prop_map(Step::Complete),
        2 => Just(Step::Acknowledge),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// The same steps give the same everything, also when the machine moves between hosts at every step that
    /// `moves` names, outputs not taken yet included.
    #[test]
    fn moved_and_unmoved_machines_stay_equal(
        steps in prop::collection::vec((step(), prop::bool::weighted(0.05)), 1..150),
        event_idx in any::<bool>(),
        virtio_console in any::<bool>(),
    ) {
        let features = if event_idx { 1 << 29 } else { 0 };
        let new = || Machine::new(features, virtio_console);
        let (mut unmoved, mut again, mut moved) = (new(), new(), new());
        for (step, moves) in &steps {
            for machine in [&mut unmoved, &mut again, &mut moved] {
                machine.step(step);
            }
            if *moves {
                moved.migrate();
            }
            for machine in [&mut unmoved, &mut again, &mut moved] {
                machine.look();
            }
        }
        let expected = unmoved.everything();
        prop_assert!(again.everything() == expected, "two runs differ");
        prop_assert!(moved.everything() == expected, "the moved machine differs");
    }
}

#[test]
fn another_version_is_refused() {
    let mut state = devices().save();
    assert_eq!(state.version(), STATE_VERSION);
    state.version += 1;
    assert_eq!(
        Devices::restore(state).unwrap_err(),
        RestoreError::Version { expected: STATE_VERSION, found: STATE_VERSION + 1 }
    );
}

#[test]
fn digest_tells_machines_apart() {
    let mut guest = Guest::new();
    let before = guest.digest();
    guest.outb(0x80, 1);
    assert_eq!(guest.digest(), before, "a POST code is nothing");
    guest.devices.apply(&guest.ram, &Event::Clock { now_ns: 1 }).unwrap();
    assert_ne!(guest.digest(), before);
    let other = Devices::new(&crate::DevicesConfig { mac: [2; 6], ..config() });
    let mut bytes = Vec::new();
    other.digest_bytes(&mut |part| bytes.extend_from_slice(part));
    assert_ne!(bytes, before);
}

#[test]
fn damaged_states_do_not_panic() {
    let mut machine = Machine::new(0, true);
    machine.step(&Step::Offer(2, 3));
    machine.step(&Step::Offer(3, 5));
    machine.step(&Step::Out(EVENT_PORT, vec![0; 4]));
    let bytes = codec::encode(&machine.guest.devices.save()).unwrap();
    let memory = ram();
    for at in 0..bytes.len() {
        for value in [0x00, 0x01, 0x7f, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            let Ok(state) = codec::decode::<DevicesState>(&damaged) else { continue };
            let Ok(mut devices) = Devices::restore(state) else { continue };
            let now_ns = devices.now_ns().saturating_add(3_000_000_000);
            let _ = devices.apply(&memory, &Event::Clock { now_ns });
            for port in (0x20..0x80).chain(0x3f8..0x400).chain(0x4c50..0x4c5c) {
                devices.pio_read(&memory, port, &mut [0; 4]);
                devices.pio_write(&memory, port, &[1, 0, 0, 0]);
            }
            while devices.entropy_wanted() > 0 {
                let event = Event::Trap { instruction: TrapKind::Random, value: 1 };
                let _ = devices.apply(&memory, &event);
            }
            let _ = devices.apply(&memory, &Event::ConsoleRx(vec![b'x'; 16]));
            devices.acknowledge_interrupt();
        }
    }
}
