//! The data set with its log, its limits and its counters; runs one command at a time.

use alloc::borrow::Cow;
use alloc::string::String;
use alloc::vec::Vec;

use crate::commands::{self, Call};
use crate::config::Config;
use crate::log::{DiskWrite, Journal, Op, Room, op_len};
use crate::reply;
use crate::resp::Request;
use crate::store::{OutOfMemory, Prepared, Store, cost};

/// Longest reply of one command, in bytes.
pub const MAX_REPLY_LEN: usize = 8 << 20;

/// What the host of this code knows and a command may ask for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Environment {
    /// Nanoseconds since power-on.
    pub now_ns: u64,
    /// Unix time at power-on, in nanoseconds.
    pub wall_base_ns: u64,
    /// COMMANDs given to the event port so far: the exits that the guest chose to make.
    pub exits: u64,
    /// Connections that are open.
    pub clients: usize,
    /// Bytes of the heap that are given out.
    pub heap_used: usize,
    /// Bytes of the heap.
    pub heap_len: usize,
}

/// Bounds of memory.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes that keys and values may take.
    pub max_memory: usize,
    /// Connections that are served at the same time.
    pub max_clients: usize,
}

/// What belongs to one connection and outlives a command.
#[derive(Debug, Default)]
pub struct Session {
    /// Number of the connection, from 1.
    pub id: u64,
    /// What CLIENT SETNAME said.
    pub name: Vec<u8>,
}

/// What becomes of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is answered.
    Done,
    /// It is answered, and the connection closes once the answer is out.
    Close,
    /// The log has no room now: nothing was done; try again when a write has completed.
    Blocked,
    /// The machine is to end, once everything is durable.
    Shutdown,
    /// The machine is to be reset at once, whatever is under way.
    Restart,
    /// Work of that many rounds is to be done before the answer.
    Spin(u64),
}

/// Why a command stops half-way, before it changed anything.
#[derive(Debug)]
pub(crate) enum Stop {
    Blocked,
    Error(Cow<'static, [u8]>),
}

impl From<&'static str> for Stop {
    fn from(text: &'static str) -> Self {
        Stop::Error(Cow::Borrowed(text.as_bytes()))
    }
}

impl From<String> for Stop {
    fn from(text: String) -> Self {
        Stop::Error(Cow::Owned(text.into_bytes()))
    }
}

impl From<OutOfMemory> for Stop {
    fn from(_: OutOfMemory) -> Self {
        OOM.into()
    }
}

const OOM: &str = "OOM command not allowed when used memory > 'maxmemory'.";
const DISK_FULL: &str = "MISCONF Errors writing to the AOF file: No space left on device";

/// Counters that INFO shows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stats {
    /// Commands answered.
    pub commands: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Connections refused because there were too many.
    pub rejected_connections: u64,
    /// Connections closed because the buffers of all together grew too large.
    pub evicted_clients: u64,
    /// Reads that found their key.
    pub hits: u64,
    /// Reads that did not.
    pub misses: u64,
    /// Disk writes that failed and were tried again.
    pub disk_retries: u64,
}

/// The data set.
#[derive(Debug)]
pub struct Database {
    pub(crate) store: Store,
    /// Without a disk there is no log.
    pub(crate) journal: Option<Journal>,
    pub(crate) limits: Limits,
    pub(crate) config: Config,
    /// Counters.
    pub stats: Stats,
    memory_low: bool,
}

impl Database {
    /// A data set as recovery left it.
    pub fn new(store: Store, journal: Option<Journal>, limits: Limits, config: Config) -> Self {
        Self { store, journal, limits, config, stats: Stats::default(), memory_low: false }
    }

    /// The keys and values.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Says whether the heap is nearly used up: then nothing that needs memory is executed.
    pub fn set_memory_low(&mut self, low: bool) {
        self.memory_low = low;
    }

    /// What must be durable before a reply that is given now may leave.
    pub fn mark(&self) -> u64 {
        self.journal.as_ref().map_or(0, Journal::mark)
    }

    /// How far the log is durable: replies with a mark up to this may leave.
    pub fn durable(&self) -> u64 {
        self.journal.as_ref().map_or(u64::MAX, Journal::durable_seq)
    }

    /// Whether everything is durable and nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.journal.as_ref().is_none_or(Journal::is_idle)
    }

    /// The next write of the log, if one is due; `None` while one is under way.
    pub fn next_write(&mut self) -> Option<DiskWrite> {
        self.journal.as_mut()?.next_write(&self.store)
    }

    /// The write under way is durable.
    pub fn write_done(&mut self, write: DiskWrite) {
        self.journal.as_mut().expect("a write comes from a log").write_done(write);
    }

    /// Runs one command; its answer is appended to `out`, but for `Blocked`, `Shutdown`, `Restart`, `Spin`.
    pub fn execute(
        &mut self,
        request: Request<'_>,
        session: &mut Session,
        env: &Environment,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let before = out.len();
        let mut call = Call { db: self, request, session, env, out };
        match commands::dispatch(&mut call) {
            Ok(outcome) => {
                self.stats.commands += 1;
                outcome
            }
            Err(Stop::Blocked) => {
                out.truncate(before);
                Outcome::Blocked
            }
            Err(Stop::Error(text)) => {
                self.stats.commands += 1;
                out.truncate(before);
                reply::error(out, &text);
                Outcome::Done
            }
        }
    }

    /// Carries out changes, all or none, and logs them as one.
    pub(crate) fn write(&mut self, ops: &[Op<'_>]) -> Result<(), Stop> {
        let growth = self.growth(ops);
        if growth.memory > 0
            && (self.memory_low || self.store.used_memory() + growth.memory > self.limits.max_memory)
        {
            return Err(OOM.into());
        }
        if let Some(journal) = &mut self.journal {
            let len = ops.iter().map(Op::len).sum();
            let live = self.store.content_len() + self.store.len() * op_len(0, 0) + growth.content;
            match journal.room(len, growth.sets.then_some(live as u64)) {
                Room::Now => {}
                Room::Later => return Err(Stop::Blocked),
                Room::Never => return Err(DISK_FULL.into()),
            }
        }
        // From here on, nothing but the last append may fail for want of memory, and it is alone.
        let mut prepared = Vec::new();
        prepared.try_reserve_exact(ops.len()).map_err(|_| OutOfMemory)?;
        for op in ops {
            if let Op::Set(key, value) = op {
                prepared.push(Prepared::new(key, value)?);
            }
        }
        for op in ops {
            match op {
                Op::Append(key, tail) => {
                    assert_eq!(ops.len(), 1, "an append is alone");
                    self.store.append(key, tail)?;
                }
                Op::Delete(key) => {
                    self.store.remove(key);
                }
                Op::Clear => self.store.clear(),
                Op::Set(..) => {}
            }
            if let Some(journal) = &mut self.journal {
                journal.append(op);
            }
        }
        for item in prepared {
            self.store.insert(item);
        }
        Ok(())
    }

    /// What changes add to memory and to the log's live set, at most.
    fn growth(&self, ops: &[Op<'_>]) -> Growth {
        let mut growth = Growth { memory: 0, content: 0, sets: false };
        for op in ops {
            let (key, new_len) = match op {
                Op::Set(key, value) => (key, value.len()),
                Op::Append(key, tail) => (key, self.store.get(key).map_or(0, <[u8]>::len) + tail.len()),
                Op::Delete(_) | Op::Clear => continue,
            };
            growth.sets = true;
            growth.memory += cost(key.len(), new_len);
            growth.content += op_len(key.len(), new_len);
            // What is replaced counts only where it cannot be counted twice.
            if ops.len() == 1
                && let Some(old) = self.store.get(key)
            {
                growth.memory = growth.memory.saturating_sub(cost(key.len(), old.len()));
                growth.content = growth.content.saturating_sub(op_len(key.len(), old.len()));
            }
        }
        growth
    }
}

struct Growth {
    memory: usize,
    content: usize,
    sets: bool,
}
