//! One connection: requests in, replies out, each held until what was written before it is durable.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::database::{Database, Environment, Outcome, Session};
use crate::reply;
use crate::resp::Parser;

/// No further command is executed while this many bytes of replies wait.
const MAX_WAITING_LEN: usize = 64 << 10;
/// Capacity above which an emptied buffer is given back.
const KEEP_CAPACITY: usize = 64 << 10;
/// Rounds of DEBUG SPIN between two looks at the network: about a millisecond.
const SPIN_SLICE: u64 = 100_000;

/// Why `Client::run` came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Every request that arrived whole is executed.
    Idle,
    /// The budget is spent; there may be more to do.
    More,
    /// The log has no room until a write completes.
    Blocked,
    /// Its replies have to leave first.
    Full,
    /// DEBUG SPIN is at work: call `spin`.
    Spinning,
    /// The machine is to end.
    Shutdown,
    /// The machine is to be reset.
    Restart,
}

#[derive(Debug, Clone, Copy)]
struct Spin {
    rounds: u64,
    state: u64,
}

/// A connection.
#[derive(Debug, Default)]
pub struct Client {
    parser: Parser,
    session: Session,
    /// Replies; those before `sent` are gone.
    out: Vec<u8>,
    sent: usize,
    /// Up to where in `out` which mark holds; both rise.
    marks: VecDeque<(usize, u64)>,
    spin: Option<Spin>,
    closing: bool,
}

impl Client {
    /// A new connection with this number.
    pub fn new(id: u64) -> Self {
        Self { session: Session { id, ..Session::default() }, ..Self::default() }
    }

    /// How many bytes it would take now.
    pub fn room(&self) -> usize {
        if self.closing { 0 } else { self.parser.room() }
    }

    /// Adds bytes as they arrived, at most `room()`. False if there is no memory for them.
    pub fn feed(&mut self, bytes: &[u8]) -> bool {
        self.parser.feed(bytes)
    }

    /// Executes requests until none is left or `budget` is spent: a command costs one, and one for each KiB
    /// that it reads or answers.
    pub fn run(&mut self, db: &mut Database, env: &Environment, budget: &mut usize) -> Progress {
        loop {
            if self.closing {
                return Progress::Idle;
            }
            if self.spin.is_some() {
                return Progress::Spinning;
            }
            if self.waiting() > MAX_WAITING_LEN {
                return Progress::Full;
            }
            if *budget == 0 {
                return Progress::More;
            }
            let before = self.out.len();
            let outcome = match self.parser.request() {
                Ok(None) => return Progress::Idle,
                Ok(Some(request)) => {
                    *budget = budget.saturating_sub(1 + request.weight() / 1024);
                    db.execute(request, &mut self.session, env, &mut self.out)
                }
                Err(error) => {
                    let mut text = Vec::from(*b"ERR ");
                    text.extend_from_slice(error.0.as_bytes());
                    reply::error(&mut self.out, &text);
                    self.closing = true;
                    self.hold(db.mark());
                    return Progress::Idle;
                }
            };
            *budget = budget.saturating_sub((self.out.len() - before) / 1024);
            match outcome {
                Outcome::Blocked => return Progress::Blocked,
                Outcome::Shutdown => {
                    self.closing = true;
                    return Progress::Shutdown;
                }
                Outcome::Restart => return Progress::Restart,
                Outcome::Done => {}
                Outcome::Close => self.closing = true,
                Outcome::Spin(rounds) => self.spin = Some(Spin { rounds, state: rounds }),
            }
            self.parser.consume();
            self.hold(db.mark());
        }
    }

    /// Lets what is new in `out` leave only when `mark` is durable.
    fn hold(&mut self, mark: u64) {
        match self.marks.back_mut() {
            Some((end, last)) if *last == mark => *end = self.out.len(),
            _ => self.marks.push_back((self.out.len(), mark)),
        }
    }

    /// One slice of DEBUG SPIN's work, and its answer at the end.
    pub fn spin(&mut self, db: &Database) {
        let Some(mut spin) = self.spin.take() else { return };
        let rounds = spin.rounds.min(SPIN_SLICE);
        for _ in 0..rounds {
            // splitmix64: each round needs the one before it.
            spin.state = spin.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            spin.state = (spin.state ^ (spin.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            spin.state = (spin.state ^ (spin.state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            spin.state ^= spin.state >> 31;
        }
        spin.rounds -= rounds;
        if spin.rounds > 0 {
            self.spin = Some(spin);
            return;
        }
        reply::integer(&mut self.out, (spin.state >> 1) as i64);
        self.hold(db.mark());
    }

    /// Whether DEBUG SPIN is at work.
    pub fn is_spinning(&self) -> bool {
        self.spin.is_some()
    }

    /// Bytes of replies that have not left.
    pub fn waiting(&self) -> usize {
        self.out.len() - self.sent
    }

    /// The bytes that may leave, when the log is durable up to `durable`.
    pub fn ready(&self, durable: u64) -> &[u8] {
        let ends = self.marks.iter().take_while(|&&(_, mark)| mark <= durable).map(|&(end, _)| end);
        &self.out[self.sent..ends.last().unwrap_or(self.sent)]
    }

    /// The first `count` bytes of what may leave have left.
    pub fn sent(&mut self, count: usize) {
        self.sent += count;
        assert!(self.sent <= self.out.len(), "no more than there was");
        while self.marks.front().is_some_and(|&(end, _)| end <= self.sent) {
            self.marks.pop_front();
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
            if self.out.capacity() > KEEP_CAPACITY {
                self.out = Vec::new();
            }
        } else if self.sent > KEEP_CAPACITY && self.sent > self.out.len() / 2 {
            self.out.drain(..self.sent);
            for (end, _) in &mut self.marks {
                *end -= self.sent;
            }
            self.sent = 0;
        }
    }

    /// Whether the connection is to be closed: it asked for it, or broke the protocol, and every reply has
    /// left.
    pub fn is_done(&self) -> bool {
        self.closing && self.waiting() == 0
    }

    /// The peer will send nothing more: close once every reply has left.
    pub fn finish(&mut self) {
        self.closing = true;
    }

    /// Bytes of memory it holds.
    pub fn memory(&self) -> usize {
        self.parser.memory() + self.out.capacity() + self.marks.capacity() * 16
    }
}
