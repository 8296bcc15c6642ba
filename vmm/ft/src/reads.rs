//! Reads of the shared disk that a backup repeats, instead of getting their data in the log (the alternative
//! of Scales et al. 2010, section 4.2): which reads those are, and what the backup holds meanwhile.
//!
//! ```text
//!  primary   ReadTracker   DiskDone ──▶ DiskRead { offset, len, digest }, if no write was in flight that
//!                                       touches the sectors
//!  backup    Arrivals      DiskRead ──▶ read the sectors, compare the digest ──▶ DiskDone: held, acked
//! ```
//!
//! Why the backup finds the same bytes. Let entry `n` be the `DiskRead` of a read, and `m` the Output entry
//! of a write that touches its sectors.
//!
//! - `m > n`: the write waits for an ack of `m`. Acks are cumulative, so it waits until the backup has `n`'s
//!   data.
//! - The write completed, by the log, before the read was made: the read saw it.
//! - They were in flight together: nobody knows which came first. The data goes into the log.
//!
//! So nothing writes those sectors between the primary's read and the backup's. After the primary is lost
//! there is nothing to read: entries whose data is missing were not acked, and are dropped as if they had
//! been lost on the way.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use logchannel::{
    DiskOp, DiskRequest, DiskStatus, Event, Limits, LogEntry, Output, Position, Seq, data_digest,
};

/// The primary's side: follows the log and tells which reads a backup may repeat.
#[derive(Debug, Clone, Default)]
pub struct ReadTracker {
    reads: BTreeMap<u64, Read>,
    writes: BTreeMap<u64, Range<u64>>,
}

#[derive(Debug, Clone)]
struct Read {
    bytes: Range<u64>,
    /// No write that touches these bytes was in flight since the read was made.
    undisturbed: bool,
}

impl ReadTracker {
    /// Takes in a request that is made again by a copy that went live. Its data will go into the log.
    pub fn inherit(&mut self, request: &DiskRequest) {
        self.issued(request);
        if let Some(read) = self.reads.get_mut(&request.id) {
            read.undisturbed = false;
        }
    }

    /// Follows the log by one entry, with the output that it stands for. If the entry completes a read that a
    /// backup may repeat, where on the disk the data is.
    pub fn follow(&mut self, event: &Event, output: Option<&Output>) -> Option<u64> {
        if let Some(Output::Disk(request)) = output {
            self.issued(request);
        }
        let Event::DiskDone { request, status, data } = event else { return None };
        self.writes.remove(request);
        let read = self.reads.remove(request)?;
        let whole = *status == DiskStatus::Ok && data.len() as u64 == read.bytes.end - read.bytes.start;
        (read.undisturbed && whole).then_some(read.bytes.start)
    }

    fn issued(&mut self, request: &DiskRequest) {
        match &request.op {
            DiskOp::Read { offset, len } => {
                let bytes = *offset..offset.saturating_add(u64::from(*len));
                let undisturbed = !self.writes.values().any(|write| overlap(write, &bytes));
                self.reads.insert(request.id, Read { bytes, undisturbed });
            }
            DiskOp::Write { offset, data, .. } => {
                let bytes = *offset..offset.saturating_add(data.len() as u64);
                for read in self.reads.values_mut() {
                    read.undisturbed &= !overlap(&read.bytes, &bytes);
                }
                self.writes.insert(request.id, bytes);
            }
            DiskOp::Flush => {}
        }
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// The entry as a backup gets it that reads the data at `offset` itself; other entries as they are.
pub fn without_data(entry: &LogEntry, offset: u64) -> LogEntry {
    let LogEntry { seq, at, event } = entry;
    let event = match event {
        Event::DiskDone { request, data, .. } => {
            let (request, len) = (*request, u32::try_from(data.len()).expect("it fits a frame"));
            Event::DiskRead { request, offset, len, digest: data_digest(data) }
        }
        other => other.clone(),
    };
    LogEntry { seq: *seq, at: *at, event }
}

/// What of a right primary can wait for its data at once: as much as its machine can have in flight. An
/// output that was made after a `DiskRead` is let go only with that entry acked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimits {
    /// Reads.
    pub requests: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// More is to be read than a machine can have in flight: the primary misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{requests} reads of {bytes} bytes are to be repeated at once, more than a machine has in flight")]
pub struct TooManyReads {
    /// How many.
    pub requests: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// The disk does not have what the log says of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("entry {seq}: {len} bytes at {offset} of the disk are not those that the primary read")]
pub struct WrongData {
    /// The entry.
    pub seq: Seq,
    /// Its position.
    pub at: Position,
    /// Where on the disk.
    pub offset: u64,
    /// How many bytes.
    pub len: u32,
    /// `data_digest` in the entry.
    pub expected: [u8; 8],
    /// `data_digest` of what was read.
    pub found: [u8; 8],
}

/// The backup's side: entries that arrived and are not all held yet, because data of a read is missing.
#[derive(Debug)]
pub struct Arrivals {
    limits: ReadLimits,
    /// With the host's time when each arrived.
    entries: VecDeque<(LogEntry, u64)>,
    /// The reads to make, by their entry, which is also their `id`.
    wanted: BTreeMap<Seq, DiskRequest>,
    wanted_bytes: u64,
    bytes: usize,
}

impl Arrivals {
    /// Nothing.
    pub fn new(limits: ReadLimits) -> Self {
        Self { limits, entries: VecDeque::new(), wanted: BTreeMap::new(), wanted_bytes: 0, bytes: 0 }
    }

    /// Takes consecutive entries that arrived at `now_ns`; which of them wait for data from the disk.
    pub fn add(&mut self, entries: &mut Vec<LogEntry>, now_ns: u64) -> Result<Vec<Seq>, TooManyReads> {
        let mut reads = Vec::new();
        for entry in entries.drain(..) {
            self.bytes += held(&entry);
            if let Event::DiskRead { offset, len, .. } = entry.event {
                let op = DiskOp::Read { offset, len };
                self.wanted.insert(entry.seq, DiskRequest { id: entry.seq, op });
                self.wanted_bytes += u64::from(len);
                reads.push(entry.seq);
            }
            self.entries.push_back((entry, now_ns));
        }
        let (requests, bytes) = (self.wanted.len(), self.wanted_bytes);
        match requests > self.limits.requests || bytes > self.limits.bytes {
            true => Err(TooManyReads { requests, bytes }),
            false => Ok(reads),
        }
    }

    /// The reads to make.
    pub fn wanted(&self) -> impl Iterator<Item = &DiskRequest> {
        self.wanted.values()
    }

    /// The read to make for this entry, unless its data is here.
    pub fn wanted_for(&self, seq: Seq) -> Option<&DiskRequest> {
        self.wanted.get(&seq)
    }

    /// Gives an entry the data that was read for it; whether it waited for some.
    #[allow(clippy::cast_possible_truncation, reason = "an index into what is held")]
    pub fn data(&mut self, seq: Seq, data: Vec<u8>) -> Result<bool, WrongData> {
        if self.wanted.remove(&seq).is_none() {
            return Ok(false);
        }
        let first = self.entries.front().map_or(seq, |(entry, _)| entry.seq);
        let (entry, _) = &mut self.entries[(seq - first) as usize];
        let Event::DiskRead { request, offset, len, digest } = entry.event else {
            unreachable!("only these are wanted")
        };
        self.wanted_bytes -= u64::from(len);
        let found = data_digest(&data);
        if data.len() != len as usize || found != digest {
            return Err(WrongData { seq, at: entry.at, offset, len, expected: digest, found });
        }
        entry.event = Event::DiskDone { request, status: DiskStatus::Ok, data };
        Ok(true)
    }

    /// The next entry of those up to `held`, and when it arrived.
    ///
    /// Panics if its data is missing: the protocol does not count such an entry as held.
    pub fn next(&mut self, held_up_to: Seq) -> Option<(LogEntry, u64)> {
        self.entries.front().filter(|(entry, _)| entry.seq <= held_up_to)?;
        let (entry, at_ns) = self.entries.pop_front()?;
        assert!(!self.wanted.contains_key(&entry.seq), "entry {} is without its data", entry.seq);
        self.bytes -= held(&entry);
        Some((entry, at_ns))
    }

    /// Drops everything: what was not held is lost.
    pub fn clear(&mut self) {
        *self = Self::new(self.limits);
    }

    /// Whether no more should be read from the channel.
    pub fn is_full(&self, limits: &Limits) -> bool {
        self.entries.len() >= limits.entries || self.bytes >= limits.bytes
    }
}

/// Memory that an entry takes, with the data that it waits for.
fn held(entry: &LogEntry) -> usize {
    let to_come = match entry.event {
        Event::DiskRead { len, .. } => len as usize,
        _ => 0,
    };
    size_of::<LogEntry>() + entry.event.data_len() + to_come
}

#[cfg(test)]
#[path = "reads_tests.rs"]
mod tests;
