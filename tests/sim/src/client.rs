//! A client: sends one request at a time, repeats it until it is answered, and remembers what it saw.

use replay::small_machine::{Op, Reply, Request};

use crate::linear::Operation;
use crate::network::Time;
use crate::random::Random;

/// Keys that clients use: few, so that they meet.
pub const KEYS_USED: u8 = 3;

/// Most requests of one client.
pub const MAX_REQUESTS: usize = 36;

#[derive(Debug, Clone, Copy)]
struct Pending {
    request: Request,
    invoked: Time,
}

/// One client.
#[derive(Debug)]
pub struct Client {
    id: u32,
    next_number: u32,
    pending: Option<Pending>,
    history: Vec<(u8, Operation)>,
    /// Requests to send before anything else.
    script: Vec<(u8, Op)>,
    /// Sends requests of its own choice.
    pub eager: bool,
    last_reply_ns: u64,
}

impl Client {
    /// Client number `id`.
    pub fn new(id: u32) -> Self {
        Self {
            id,
            next_number: 1,
            pending: None,
            history: Vec::new(),
            script: Vec::new(),
            eager: true,
            last_reply_ns: 0,
        }
    }

    /// Asks for all keys, from memory and from disk, after what is pending.
    pub fn read_everything(&mut self) {
        self.script = (0..KEYS_USED).flat_map(|key| [(key, Op::Load), (key, Op::Get)]).collect();
    }

    /// Asks the guest to switch itself off.
    pub fn power_off(&mut self) {
        self.script = vec![(0, Op::PowerOff)];
    }

    /// Whether it waits for nothing and has nothing left to send.
    pub fn is_done(&self) -> bool {
        self.pending.is_none() && self.script.is_empty() && !self.is_eager()
    }

    fn is_eager(&self) -> bool {
        self.eager && self.history.len() < MAX_REQUESTS
    }

    /// The frame to send now: the pending request again, or a new one.
    pub fn frame(&mut self, now: Time, random: &mut Random) -> Option<Vec<u8>> {
        if self.pending.is_none() {
            let (key, op) = match self.script.pop() {
                Some(next) => next,
                None if self.is_eager() => self.choose(random),
                None => return None,
            };
            let request = Request { client: self.id, number: self.next_number, key, op };
            self.next_number += 1;
            self.pending = Some(Pending { request, invoked: now });
        }
        self.pending.map(|pending| pending.request.encode())
    }

    fn choose(&self, random: &mut Random) -> (u8, Op) {
        let op = match random.below(8) {
            0 | 1 => Op::Get,
            2 | 3 => Op::Set(random.any()),
            4..=6 => Op::Incr,
            _ => Op::Load,
        };
        (random.below(u64::from(KEYS_USED)) as u8, op)
    }

    /// A reply came. Whether it answers the pending request; an error is a violation.
    pub fn reply(&mut self, now: Time, reply: &Reply) -> Result<bool, String> {
        let Some(Pending { request, invoked }) = self.pending else { return Ok(false) };
        if reply.client != self.id {
            return Err(format!("client {} got the reply of client {}", self.id, reply.client));
        }
        if reply.number > request.number {
            return Err(format!("client {} got a reply to request {}", self.id, reply.number));
        }
        if reply.number < request.number {
            return Ok(false);
        }
        let value = reply.value.ok_or_else(|| format!("client {}: the guest saw a disk error", self.id))?;
        if reply.now_ns <= self.last_reply_ns {
            return Err(format!("guest time went back from {} to {}", self.last_reply_ns, reply.now_ns));
        }
        self.last_reply_ns = reply.now_ns;
        let Request { client, key, op, .. } = request;
        self.history.push((key, Operation { client, op, invoked, replied: Some((now, value)) }));
        self.pending = None;
        Ok(true)
    }

    /// Its operations on a key, the pending one included.
    pub fn operations(&self, key: u8) -> impl Iterator<Item = Operation> + '_ {
        let pending = self.pending.iter().map(|p| {
            let Request { client, key, op, .. } = p.request;
            (key, Operation { client, op, invoked: p.invoked, replied: None })
        });
        self.history.iter().copied().chain(pending).filter(move |(k, _)| *k == key).map(|(_, o)| o)
    }

    /// How many requests were answered.
    pub fn answered(&self) -> usize {
        self.history.len()
    }
}
