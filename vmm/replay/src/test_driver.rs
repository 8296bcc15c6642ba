//! Drives the small machine for the tests here: a host with a disk, a clock and a stream of requests.

use std::collections::VecDeque;

use logchannel::{DiskOp, DiskStatus, Event, LogEntry, Output};

use crate::machine::Stop;
use crate::record::{ClockPolicy, Offer, Recorded, Recorder};
use crate::small_machine::{KEYS, Op, Request, SECTOR, SmallMachine};

/// splitmix64
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// A host around a recorder.
pub(crate) struct Host {
    pub(crate) recorder: Recorder<SmallMachine>,
    pub(crate) log: Vec<Recorded>,
    pub(crate) host_ns: u64,
    random: Random,
    disk: Vec<u8>,
    inputs: VecDeque<Event>,
    seen: usize,
    number: u32,
}

impl Host {
    pub(crate) fn new(seed: u64, policy: ClockPolicy) -> Self {
        Self::around(Recorder::new(SmallMachine::new(), policy, 5_000), seed)
    }

    pub(crate) fn around(recorder: Recorder<SmallMachine>, seed: u64) -> Self {
        Self {
            recorder,
            log: Vec::new(),
            host_ns: 5_000,
            random: Random(seed),
            disk: vec![0; SECTOR * KEYS as usize],
            inputs: VecDeque::new(),
            seen: 0,
            number: 0,
        }
    }

    fn request(&mut self) {
        self.number += 1;
        let op = match self.random.below(4) {
            0 => Op::Get,
            1 => Op::Set(self.random.next()),
            2 => Op::Incr,
            _ => Op::Load,
        };
        let key = self.random.below(u64::from(KEYS)) as u8;
        let client = self.random.below(3) as u32;
        self.inputs.push_back(Event::NetRx(Request { client, number: self.number, key, op }.encode()));
    }

    /// Has the guest reset its machine, sometime.
    pub(crate) fn ask_for_reset(&mut self) {
        self.number += 1;
        let request = Request { client: 9, number: self.number, key: 0, op: Op::Reset };
        self.inputs.push_back(Event::NetRx(request.encode()));
    }

    fn serve_disk(&mut self) {
        for recorded in &self.log[self.seen..] {
            let Some(Output::Disk(request)) = &recorded.output else { continue };
            let data = match &request.op {
                DiskOp::Read { offset, len } => self.disk[*offset as usize..][..*len as usize].to_vec(),
                DiskOp::Write { offset, data, .. } => {
                    self.disk[*offset as usize..][..data.len()].copy_from_slice(data);
                    Vec::new()
                }
                DiskOp::Flush => Vec::new(),
            };
            let done = Event::DiskDone { request: request.id, status: DiskStatus::Ok, data };
            self.inputs.push_back(done);
        }
        self.seen = self.log.len();
    }

    /// One turn of the host's loop.
    pub(crate) fn turn(&mut self) {
        self.host_ns += self.random.below(400_000);
        if self.random.below(4) == 0 && self.inputs.len() < 4 {
            self.request();
        }
        if self.random.below(64) == 0 {
            self.inputs.push_back(Event::ConsoleRx(vec![b'x', self.random.next() as u8]));
        }
        self.serve_disk();
        let log = &mut self.log;
        let stop = self.recorder.advance(log).expect("runs");
        assert!(!matches!(stop, Stop::Ended(_)));
        self.recorder.clock(self.host_ns, log).expect("takes the time");
        while let Some(input) = self.inputs.pop_front() {
            if let Offer::Refused(input) = self.recorder.offer(input, log).expect("takes input") {
                self.inputs.push_front(input);
                break;
            }
        }
        if self.random.below(16) == 0 {
            self.recorder.digest(log).expect("digests");
        }
    }
}

/// A log of this many turns.
pub(crate) fn record(seed: u64, turns: usize) -> Vec<Recorded> {
    let mut host = Host::new(seed, ClockPolicy::default());
    (0..turns).for_each(|_| host.turn());
    let Host { mut recorder, mut log, .. } = host;
    recorder.digest(&mut log).expect("digests");
    log
}

/// The same of a guest that resets its machine now and then.
pub(crate) fn record_with_resets(seed: u64, turns: usize) -> Vec<Recorded> {
    let mut host = Host::new(seed, ClockPolicy::default());
    for turn in 0..turns {
        if turn % 50 == 49 {
            host.ask_for_reset();
        }
        host.turn();
    }
    host.log
}

pub(crate) fn entries(log: &[Recorded]) -> Vec<LogEntry> {
    log.iter().map(|recorded| recorded.entry.clone()).collect()
}
