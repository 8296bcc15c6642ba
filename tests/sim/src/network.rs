//! The simulated network: which nodes can reach each other, what datagrams suffer, and byte streams that
//! arrive in arbitrary portions and break at any byte.

use std::collections::VecDeque;

use crate::effect::Snapshot;
use crate::random::Random;

/// Simulated time in nanoseconds.
pub type Time = u64;

/// A place in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// One of the two hosts.
    Host(usize),
    /// The disk server.
    Disk,
    /// All clients.
    Clients,
}

impl Node {
    /// All of them.
    pub const ALL: [Node; 4] = [Node::Host(0), Node::Host(1), Node::Disk, Node::Clients];

    fn index(self) -> usize {
        match self {
            Node::Host(host) => host,
            Node::Disk => 2,
            Node::Clients => 3,
        }
    }
}

/// What a network does to datagrams, in permille and nanoseconds.
#[derive(Debug, Clone, Default)]
pub struct Weather {
    /// Lost.
    pub loss: u64,
    /// Delivered twice.
    pub repeated: u64,
    /// Delayed by much.
    pub late: u64,
    /// Usual delay, at least.
    pub delay_min_ns: Time,
    /// Usual delay, at most.
    pub delay_max_ns: Time,
    /// Delay of a late one, at most.
    pub late_max_ns: Time,
}

/// Links between nodes.
#[derive(Debug)]
pub struct Network {
    /// Until when nothing passes, from and to.
    blocked_until: [[Time; 4]; 4],
    /// What happens to datagrams.
    pub weather: Weather,
}

impl Network {
    /// A network in which everybody reaches everybody.
    pub fn new(weather: Weather) -> Self {
        Self { blocked_until: [[0; 4]; 4], weather }
    }

    /// Lets nothing pass from one node to another until then.
    pub fn block(&mut self, from: Node, to: Node, until: Time) {
        let blocked = &mut self.blocked_until[from.index()][to.index()];
        *blocked = (*blocked).max(until);
    }

    /// Ends all partitions and bad weather.
    pub fn heal(&mut self) {
        self.blocked_until = [[0; 4]; 4];
        self.weather.loss = 0;
        self.weather.repeated = 0;
        self.weather.late = 0;
    }

    /// Until when nothing passes; not later than now if something does.
    pub fn blocked_until(&self, from: Node, to: Node) -> Time {
        self.blocked_until[from.index()][to.index()]
    }

    /// Whether a packet passes now.
    pub fn passes(&self, from: Node, to: Node, now: Time) -> bool {
        now >= self.blocked_until(from, to)
    }

    /// A delay of something that is delivered.
    pub fn delay(&self, random: &mut Random) -> Time {
        let weather = &self.weather;
        if random.chance(weather.late) {
            return random.between(weather.delay_max_ns, weather.late_max_ns.max(weather.delay_max_ns));
        }
        random.between(weather.delay_min_ns, weather.delay_max_ns)
    }

    /// When a datagram sent now arrives: never, once or twice.
    pub fn datagram(&self, from: Node, to: Node, now: Time, random: &mut Random) -> [Option<Time>; 2] {
        if !self.passes(from, to, now) || random.chance(self.weather.loss) {
            return [None; 2];
        }
        let first = Some(now + self.delay(random));
        let second = random.chance(self.weather.repeated).then(|| now + self.delay(random));
        [first, second]
    }
}

/// What travels on a stream.
#[derive(Debug)]
pub enum Item {
    /// Bytes.
    Bytes(Vec<u8>),
    /// The last of a state transfer: it arrives or it does not.
    Snapshot(Box<Snapshot>),
}

/// What the receiver of a stream gets.
#[derive(Debug)]
pub enum Arrival {
    /// Some bytes.
    Bytes(Vec<u8>),
    /// A machine.
    Snapshot(Box<Snapshot>),
    /// Nothing more: the connection is gone.
    Broken,
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub struct Stream {
    items: VecDeque<Item>,
    /// The sender can send no more.
    closed: bool,
    /// After the items, the receiver learns that the connection is gone.
    ends: bool,
    end_told: bool,
    /// A delivery is on its way.
    pub scheduled: bool,
}

impl Stream {
    /// Adds what the sender wrote. Portions of a receiver's reads have nothing to do with those of writes.
    pub fn send(&mut self, item: Item, random: &mut Random) {
        if self.closed {
            return;
        }
        if let (Item::Bytes(more), Some(Item::Bytes(bytes))) = (&item, self.items.back_mut())
            && random.chance(600)
        {
            bytes.extend_from_slice(more);
            return;
        }
        self.items.push_back(item);
    }

    /// Whether there is anything to deliver.
    pub fn is_due(&self) -> bool {
        !self.items.is_empty() || (self.ends && !self.end_told)
    }

    /// What arrives next.
    pub fn take(&mut self, random: &mut Random) -> Option<Arrival> {
        match self.items.pop_front() {
            Some(Item::Snapshot(snapshot)) => Some(Arrival::Snapshot(snapshot)),
            Some(Item::Bytes(mut bytes)) => {
                if bytes.len() > 1 && random.chance(150) {
                    let rest = bytes.split_off(random.between(1, bytes.len() as u64 - 1) as usize);
                    self.items.push_front(Item::Bytes(rest));
                }
                Some(Arrival::Bytes(bytes))
            }
            None if self.ends && !std::mem::replace(&mut self.end_told, true) => Some(Arrival::Broken),
            None => None,
        }
    }

    /// The sender closes; what it sent arrives, and then the receiver learns of it.
    pub fn close(&mut self) {
        self.closed = true;
        self.ends = true;
    }

    /// Breaks at any byte of what is on its way. The receiver learns of it only if it is `told`.
    pub fn break_off(&mut self, told: bool, random: &mut Random) {
        let keep = random.between(0, self.items.len() as u64) as usize;
        let cut = self.items.drain(keep..).next();
        if let Some(Item::Bytes(mut bytes)) = cut {
            bytes.truncate(random.below(bytes.len() as u64 + 1) as usize);
            if !bytes.is_empty() {
                self.items.push_back(Item::Bytes(bytes));
            }
        }
        self.closed = true;
        self.ends |= told;
    }

    /// Changes one bit of what is on its way, as a bad network card would. Whether there was one to change.
    pub fn damage(&mut self, random: &mut Random) -> bool {
        for item in &mut self.items {
            if let Item::Bytes(bytes) = item
                && !bytes.is_empty()
            {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] ^= 1 << random.below(8);
                return true;
            }
        }
        false
    }
}

/// A connection between a primary and its backup.
#[derive(Debug, Default)]
pub struct Connection {
    /// The process of each end: primary, backup.
    pub ends: [usize; 2],
    /// To the backup, to the primary.
    pub streams: [Stream; 2],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_delivers_every_byte_in_order_until_it_breaks() {
        for seed in 0..200 {
            let mut random = Random::new(seed);
            let mut stream = Stream::default();
            let sent: Vec<u8> = (0..=255).collect();
            for chunk in sent.chunks(7) {
                stream.send(Item::Bytes(chunk.to_vec()), &mut random);
            }
            match seed % 2 {
                0 => stream.close(),
                _ => stream.break_off(true, &mut random),
            }
            stream.send(Item::Bytes(vec![9]), &mut random);
            let mut got = Vec::new();
            loop {
                match stream.take(&mut random).expect("an end") {
                    Arrival::Bytes(bytes) => got.extend(bytes),
                    Arrival::Snapshot(_) => unreachable!("none was sent"),
                    Arrival::Broken => break,
                }
            }
            assert!(stream.take(&mut random).is_none(), "told once");
            assert_eq!(got, sent[..got.len()]);
            assert!(seed % 2 == 1 || got.len() == sent.len());
        }
    }
}
