//! A small deterministic machine with a key-value guest, for tests: of this crate, and of whole pairs in the
//! simulator. It has what a real machine has: work that takes a varying number of steps, network requests and
//! replies, a disk that it waits for, a clock with a deadline, a console, and an end.
//!
//! A request is answered exactly once per number: clients number their requests from 1, and a repeated one
//! gets the same reply, as TCP would have it. A change is on the disk before it is answered.

use std::collections::{BTreeMap, VecDeque};

use logchannel::{DiskOp, DiskRequest, DiskStatus, Event, MachineDigest, Output, Position};

use crate::machine::{Ending, Machine, Stop};

/// How many keys there are. Key k is stored in sector k of the disk.
pub const KEYS: u8 = 8;

/// Bytes of a sector.
pub const SECTOR: usize = 512;

const MAX_WAITING: usize = 8;
const MAX_STEPS_PER_RUN: u32 = 8;
const TICK_NS: u64 = 20_000_000;
const TICKS_PER_LINE: u64 = 8;

/// What a client asks of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Its value.
    Get,
    /// Change it to this value; the reply says the new value.
    Set(u64),
    /// Add one; the reply says the new value.
    Incr,
    /// Its value as it is on the disk.
    Load,
    /// Switch the machine off. Not replied to.
    PowerOff,
    /// Start it again, once its disk is idle. Not replied to.
    Reset,
}

/// A client's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Who asks.
    pub client: u32,
    /// Counts the client's requests, from 1.
    pub number: u32,
    /// Which key.
    pub key: u8,
    /// What.
    pub op: Op,
}

impl Request {
    /// The request as a frame.
    pub fn encode(&self) -> Vec<u8> {
        let (code, value) = match self.op {
            Op::Get => (0, 0),
            Op::Set(value) => (1, value),
            Op::Incr => (2, 0),
            Op::Load => (3, 0),
            Op::PowerOff => (4, 0),
            Op::Reset => (5, 0),
        };
        let mut bytes = Vec::with_capacity(18);
        bytes.extend_from_slice(&self.client.to_le_bytes());
        bytes.extend_from_slice(&self.number.to_le_bytes());
        bytes.extend_from_slice(&[code, self.key]);
        bytes.extend_from_slice(&u64::to_le_bytes(value));
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != 18 || bytes[9] >= KEYS {
            return None;
        }
        let op = match bytes[8] {
            0 => Op::Get,
            1 => Op::Set(word(bytes, 10)),
            2 => Op::Incr,
            3 => Op::Load,
            4 => Op::PowerOff,
            5 => Op::Reset,
            _ => return None,
        };
        let half = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        Some(Self { client: half(0), number: half(4), key: bytes[9], op })
    }
}

/// The guest's reply to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// To whom.
    pub client: u32,
    /// To which request.
    pub number: u32,
    /// The value; `None` when the disk failed.
    pub value: Option<u64>,
    /// Virtual time when the guest made the reply.
    pub now_ns: u64,
}

impl Reply {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(25);
        bytes.extend_from_slice(&self.client.to_le_bytes());
        bytes.extend_from_slice(&self.number.to_le_bytes());
        bytes.push(u8::from(self.value.is_some()));
        bytes.extend_from_slice(&self.value.unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(&self.now_ns.to_le_bytes());
        bytes
    }

    /// The reply in a frame.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != 25 {
            return None;
        }
        let half = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let value = (bytes[8] == 1).then(|| word(bytes, 9));
        Some(Self { client: half(0), number: half(4), value, now_ns: word(bytes, 17) })
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The value that a sector says its key has.
pub fn sector_value(sector: &[u8]) -> u64 {
    word(sector, 0)
}

#[derive(Debug, Clone)]
struct Session {
    number: u32,
    /// `None` while the request is being worked on.
    reply: Option<Vec<u8>>,
}

#[derive(Debug, Clone)]
struct InFlight {
    client: u32,
    number: u32,
    key: u8,
    /// What to reply, unless it is what the disk says.
    value: Option<u64>,
}

impl InFlight {
    /// Whose client was forgotten.
    const ABANDONED: Self = Self { client: u32::MAX, number: 0, key: 0, value: None };
}

/// What cannot happen to this machine.
#[derive(Debug, thiserror::Error)]
pub enum SmallMachineError {
    /// The engine would have to apply an event that is no input of this machine.
    #[error("{0} is no input of this machine")]
    NoInput(&'static str),
}

/// The machine.
#[derive(Debug, Clone)]
pub struct SmallMachine {
    count: u64,
    /// A register that every step changes.
    mix: u64,
    now_ns: u64,
    wake_at_ns: u64,
    ticks: u64,
    values: [u64; KEYS as usize],
    sessions: BTreeMap<u32, Session>,
    waiting: VecDeque<Request>,
    current: Option<(Request, u32)>,
    in_flight: BTreeMap<u64, InFlight>,
    next_request: u64,
    outputs: VecDeque<Output>,
    idle: bool,
    ended: Option<Ending>,
    /// Held in reset until the disk is idle.
    held: bool,
    was_reset: bool,
    /// Where inputs arrived, and what was typed: interrupts leave such traces in a real guest.
    arrivals: u64,
    /// How long the last slice was to be: no state of the guest.
    pub(crate) last_slice: u64,
}

impl Default for SmallMachine {
    fn default() -> Self {
        Self::new()
    }
}

impl SmallMachine {
    /// The machine at power-on, with an empty disk.
    pub fn new() -> Self {
        Self {
            count: 0,
            mix: 0x9e37_79b9_7f4a_7c15,
            now_ns: 0,
            wake_at_ns: TICK_NS,
            ticks: 0,
            values: [0; KEYS as usize],
            sessions: BTreeMap::new(),
            waiting: VecDeque::new(),
            current: None,
            in_flight: BTreeMap::new(),
            next_request: 1,
            outputs: VecDeque::new(),
            idle: false,
            ended: None,
            held: false,
            was_reset: false,
            arrivals: 0,
            last_slice: 0,
        }
    }

    /// Values of all keys.
    pub fn values(&self) -> &[u64; KEYS as usize] {
        &self.values
    }

    /// Changes one bit of guest memory, as failing hardware would.
    pub fn flip_memory_bit(&mut self, bit: u32) {
        self.values[(bit / 64) as usize % KEYS as usize] ^= 1 << (bit % 64);
    }

    /// Changes one bit of a register, as failing hardware would.
    pub fn flip_register_bit(&mut self, bit: u32) {
        self.mix ^= 1 << (bit % 64);
    }

    fn step(&mut self) {
        self.count += 1;
        self.mix = (self.mix ^ self.count).rotate_left(23).wrapping_mul(0xd6e8_feb8_6659_fd93);
        if self.now_ns >= self.wake_at_ns {
            return self.tick();
        }
        match self.current.take() {
            Some((request, 0)) => self.handle(request),
            Some((request, steps)) => self.current = Some((request, steps - 1)),
            None => self.take_request(),
        }
    }

    fn tick(&mut self) {
        self.ticks += 1;
        self.wake_at_ns = self.now_ns + TICK_NS;
        if self.ticks.is_multiple_of(TICKS_PER_LINE) {
            let line = format!("{} ticks at {} ns\n", self.ticks, self.now_ns);
            self.outputs.push_back(Output::Console(line.into_bytes()));
        }
    }

    /// A key with a disk request in flight is left alone until that is done.
    fn take_request(&mut self) {
        let key_is_free = |request: &&Request| self.in_flight.values().all(|f| f.key != request.key);
        match self.waiting.front().filter(key_is_free) {
            Some(&request) => {
                self.waiting.pop_front();
                self.current = Some((request, (self.mix % 4) as u32));
            }
            None => self.idle = true,
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "a sector")]
    fn handle(&mut self, request: Request) {
        let Request { client, number, key, op } = request;
        if let Some(session) = self.sessions.get(&client)
            && number <= session.number
        {
            if let (true, Some(reply)) = (number == session.number, &session.reply) {
                self.outputs.push_back(Output::Net(reply.clone()));
            }
            return;
        }
        self.sessions.insert(client, Session { number, reply: None });
        let slot = &mut self.values[key as usize];
        match op {
            Op::Get => {
                let value = *slot;
                self.reply(client, number, Some(value));
            }
            Op::Set(value) => {
                *slot = value;
                self.store(client, number, key, value);
            }
            Op::Incr => {
                *slot = slot.wrapping_add(1);
                let value = *slot;
                self.store(client, number, key, value);
            }
            Op::Load => {
                let op = DiskOp::Read { offset: u64::from(key) * SECTOR as u64, len: SECTOR as u32 };
                self.request(op, InFlight { client, number, key, value: None });
            }
            Op::PowerOff => self.ended = Some(Ending::PowerOff(0)),
            Op::Reset => self.reset(),
        }
    }

    /// Clients and their requests are forgotten, and the values with them: tests do not ask for them again.
    fn reset(&mut self) {
        let in_flight = self.in_flight.keys().map(|id| (*id, InFlight::ABANDONED)).collect();
        let outputs = std::mem::take(&mut self.outputs);
        *self = Self {
            count: self.count,
            now_ns: self.now_ns,
            wake_at_ns: self.now_ns + TICK_NS,
            in_flight,
            next_request: self.next_request,
            outputs,
            was_reset: true,
            ..Self::new()
        };
        self.held = !self.in_flight.is_empty();
    }

    fn store(&mut self, client: u32, number: u32, key: u8, value: u64) {
        let mut data = vec![0; SECTOR];
        data[..8].copy_from_slice(&value.to_le_bytes());
        data[8..12].copy_from_slice(&client.to_le_bytes());
        data[12..16].copy_from_slice(&number.to_le_bytes());
        let op = DiskOp::Write { offset: u64::from(key) * SECTOR as u64, data, durable: true };
        self.request(op, InFlight { client, number, key, value: Some(value) });
    }

    fn request(&mut self, op: DiskOp, in_flight: InFlight) {
        let id = self.next_request;
        self.next_request += 1;
        self.in_flight.insert(id, in_flight);
        self.outputs.push_back(Output::Disk(DiskRequest { id, op }));
    }

    fn reply(&mut self, client: u32, number: u32, value: Option<u64>) {
        self.now_ns += 1;
        let bytes = Reply { client, number, value, now_ns: self.now_ns }.encode();
        self.sessions.insert(client, Session { number, reply: Some(bytes.clone()) });
        self.outputs.push_back(Output::Net(bytes));
    }
}

impl Machine for SmallMachine {
    type Error = SmallMachineError;

    fn position(&self) -> Position {
        Position::at(self.count)
    }

    fn run(&mut self, until: Option<Position>) -> Result<Stop, Self::Error> {
        for _ in 0..MAX_STEPS_PER_RUN {
            if let Some(ending) = &self.ended {
                return Ok(Stop::Ended(ending.clone()));
            }
            if self.held {
                return Ok(Stop::Waiting { deadline_ns: None });
            }
            if self.idle {
                return Ok(Stop::Waiting { deadline_ns: Some(self.wake_at_ns) });
            }
            if until.is_some_and(|until| self.count >= until.count) {
                break;
            }
            self.step();
            if !self.outputs.is_empty() || self.was_reset {
                break;
            }
        }
        Ok(match &self.ended {
            Some(ending) => Stop::Ended(ending.clone()),
            None if self.held => Stop::Waiting { deadline_ns: None },
            None if self.idle => Stop::Waiting { deadline_ns: Some(self.wake_at_ns) },
            None => Stop::Ready,
        })
    }

    fn run_slice(&mut self, most: u64) -> Result<Stop, Self::Error> {
        self.last_slice = most;
        self.run(None)
    }

    fn next_deadline_ns(&self) -> Option<u64> {
        (!self.held).then_some(self.wake_at_ns)
    }

    fn accepts(&self, input: &Event) -> bool {
        match input {
            Event::NetRx(frame) => frame.len() <= 64 && self.waiting.len() < MAX_WAITING,
            Event::DiskDone { request, .. } => self.in_flight.contains_key(request),
            Event::ConsoleRx(_) | Event::Clock { .. } => true,
            _ => false,
        }
    }

    fn apply(&mut self, input: &Event) -> Result<(), Self::Error> {
        match input {
            Event::NetRx(frame) => self.waiting.extend(Request::decode(frame)),
            Event::ConsoleRx(bytes) => {
                let add = |sum: u64, byte: &u8| sum.wrapping_mul(31).wrapping_add(u64::from(*byte));
                self.arrivals = bytes.iter().fold(self.arrivals, add);
            }
            Event::DiskDone { request, status, data } => {
                let done = self.in_flight.remove(request);
                self.held &= !self.in_flight.is_empty();
                if let Some(InFlight { client, number, value, .. }) = done
                    && client != u32::MAX
                {
                    let read = || (data.len() >= 8).then(|| sector_value(data));
                    let value = if *status == DiskStatus::Ok { value.or_else(read) } else { None };
                    self.reply(client, number, value);
                }
            }
            Event::Clock { now_ns } => self.now_ns = *now_ns,
            other => return Err(SmallMachineError::NoInput(other.name())),
        }
        self.idle = false;
        self.arrivals = self.arrivals.rotate_left(9) ^ self.count;
        Ok(())
    }

    fn take_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn take_reset(&mut self) -> bool {
        std::mem::take(&mut self.was_reset)
    }

    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    fn digest(&mut self) -> Result<MachineDigest, Self::Error> {
        let mut registers = Fold::default();
        registers.add(&[self.count, self.mix, u64::from(self.idle), u64::from(self.held), self.arrivals]);
        if let Some((request, steps)) = &self.current {
            registers.add(&[u64::from(request.client), u64::from(request.number), u64::from(*steps)]);
        }
        let mut devices = Fold::default();
        devices.add(&[self.now_ns, self.wake_at_ns, self.ticks, self.next_request]);
        for (id, f) in &self.in_flight {
            devices.add(&[*id, u64::from(f.client), u64::from(f.number), f.value.unwrap_or(u64::MAX)]);
        }
        for request in &self.waiting {
            devices.add(&[u64::from(request.client), u64::from(request.number)]);
        }
        let mut memory = Fold::default();
        memory.add(&self.values);
        for (client, session) in &self.sessions {
            let done = session.reply.is_some();
            memory.add(&[u64::from(*client), u64::from(session.number), u64::from(done)]);
        }
        Ok(MachineDigest { registers: registers.0, devices: devices.0, memory: memory.0 })
    }
}

/// A running digest of words.
struct Fold(u64);

impl Default for Fold {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fold {
    fn add(&mut self, words: &[u64]) {
        for word in words {
            self.0 = (self.0 ^ word).wrapping_mul(0x9fb2_1c65_1e98_df25);
            self.0 ^= self.0 >> 32;
        }
    }
}
