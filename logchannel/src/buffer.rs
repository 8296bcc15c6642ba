//! The two bounded buffers of a channel: what the primary sent or will send and the backup has not
//! acknowledged, and what the backup received and has not executed.
//!
//! ```text
//!   acked        sent          appended
//!     |  in flight |  to be sent  |            SendBuffer:   acked <= sent <= appended
//!  ---+============+==============+
//!  ---+=====================+
//!     |  to be executed     |                  ReceiveQueue: taken <= received
//!   taken                received
//! ```
//!
//! Both bounds are marks, not walls: whoever fills a buffer looks at `is_full` before it makes more (the
//! primary before it lets the guest run on, the backup before it reads on). What one step makes beyond the
//! mark is still taken, because it cannot be given back: the outputs of one run of the guest, the entries of
//! one read.

use std::collections::VecDeque;

use crate::batch::{BatchEncoder, EntryError, LogStart};
use crate::entry::{EventKind, LogEntry, Seq};
use crate::frame::FrameWriter;
use crate::message::kind;

/// Where a buffer counts as full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From this many entries on.
    pub entries: usize,
    /// From this many bytes on.
    pub bytes: usize,
}

impl Default for Limits {
    /// 65,536 entries, 16 MiB.
    fn default() -> Self {
        Self { entries: 1 << 16, bytes: 16 << 20 }
    }
}

impl Limits {
    fn reached(&self, entries: usize, bytes: usize) -> bool {
        entries >= self.entries || bytes >= self.bytes
    }
}

/// Entries and bytes of one kind of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KindCount {
    /// How many entries.
    pub entries: u64,
    /// Their encoded bytes, without heads of batches and frames.
    pub bytes: u64,
}

/// What went into a log, since this end began.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogStats {
    kinds: [KindCount; EventKind::ALL.len()],
    /// Frames of entries.
    pub frames: u64,
    /// Bytes of those frames, headers and all.
    pub wire_bytes: u64,
}

impl LogStats {
    /// What one kind of event took.
    pub fn of(&self, kind: EventKind) -> KindCount {
        self.kinds[kind as usize]
    }

    /// Every kind that occurred, with what it took.
    pub fn by_kind(&self) -> impl Iterator<Item = (EventKind, KindCount)> {
        EventKind::ALL.into_iter().zip(self.kinds).filter(|(_, count)| count.entries > 0)
    }

    /// What all entries took together.
    pub fn total(&self) -> KindCount {
        let add = |sum: KindCount, one: &KindCount| KindCount {
            entries: sum.entries + one.entries,
            bytes: sum.bytes + one.bytes,
        };
        self.kinds.iter().fold(KindCount::default(), add)
    }

    pub(crate) fn count(&mut self, kind: EventKind, len: usize) {
        let count = &mut self.kinds[kind as usize];
        count.entries += 1;
        count.bytes += len as u64;
    }

    pub(crate) fn wrote(&mut self, frames: usize, bytes: usize) {
        self.frames += frames as u64;
        self.wire_bytes += bytes as u64;
    }
}

/// The primary's buffer: entries appended and not yet acknowledged. Those already written are kept as their
/// lengths only: TCP repeats lost bytes, and a new backup begins with a state transfer, not with old entries.
#[derive(Debug)]
pub struct SendBuffer {
    limits: Limits,
    encoder: BatchEncoder,
    /// Encoded length of every entry from `acked + 1` on.
    lengths: VecDeque<u32>,
    bytes: usize,
    acked: Seq,
    sent: Seq,
    stats: LogStats,
}

impl SendBuffer {
    /// An empty buffer; everything up to `start` counts as acknowledged.
    pub fn new(limits: Limits, start: LogStart) -> Self {
        Self {
            limits,
            encoder: BatchEncoder::new(start),
            lengths: VecDeque::new(),
            bytes: 0,
            acked: start.seq,
            sent: start.seq,
            stats: LogStats::default(),
        }
    }

    /// Takes one more entry. Panics if it is not the next, or its position lies before the last.
    pub fn append(&mut self, entry: &LogEntry) -> Result<(), EntryError> {
        let len = self.encoder.append(entry)?;
        self.lengths.push_back(u32::try_from(len).expect("MAX_ENCODED_LEN is far below 4 GiB"));
        self.bytes += len;
        self.stats.count(entry.event.kind(), len);
        Ok(())
    }

    /// Writes what was appended since the last flush as frames; how many.
    pub fn flush(&mut self, released: Seq, writer: &mut FrameWriter, out: &mut Vec<u8>) -> usize {
        let before = out.len();
        let frames = self.encoder.flush(kind::ENTRIES, released, writer, out);
        self.sent = self.encoder.last().seq;
        self.stats.wrote(frames, out.len() - before);
        frames
    }

    /// Writes a frame without entries that reports `released`. Panics if entries wait for `flush`.
    pub fn flush_released(&mut self, released: Seq, writer: &mut FrameWriter, out: &mut Vec<u8>) {
        let before = out.len();
        self.encoder.flush_released(kind::ENTRIES, released, writer, out);
        self.stats.wrote(1, out.len() - before);
    }

    /// Drops what the backup has. Panics unless acked <= `seq` <= sent: the `Sender` checks a peer's acks.
    pub fn ack(&mut self, seq: Seq) {
        assert!(self.acked <= seq && seq <= self.sent, "ack {seq} outside {}..={}", self.acked, self.sent);
        let acked = usize::try_from(seq - self.acked).expect("no more than are held");
        self.bytes -= self.lengths.drain(..acked).map(|len| len as usize).sum::<usize>();
        self.acked = seq;
    }

    /// Whether the primary must stop its guest until the backup acknowledges more.
    pub fn is_full(&self) -> bool {
        self.limits.reached(self.lengths.len(), self.bytes)
    }

    /// Entries not yet acknowledged.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether everything is acknowledged.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Encoded bytes not yet acknowledged.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Encoded bytes not yet flushed.
    pub fn pending_bytes(&self) -> usize {
        self.encoder.len()
    }

    /// The last entry that the backup has.
    pub fn acked(&self) -> Seq {
        self.acked
    }

    /// The last entry flushed.
    pub fn sent(&self) -> Seq {
        self.sent
    }

    /// The last entry appended.
    pub fn appended(&self) -> Seq {
        self.encoder.last().seq
    }

    /// Counts since the buffer was made.
    pub fn stats(&self) -> &LogStats {
        &self.stats
    }
}

/// The backup's queue: entries received and not yet taken for execution.
#[derive(Debug)]
pub struct ReceiveQueue {
    limits: Limits,
    entries: VecDeque<LogEntry>,
    bytes: usize,
    received: Seq,
}

impl ReceiveQueue {
    /// An empty queue whose first entry follows `start`.
    pub fn new(limits: Limits, start: LogStart) -> Self {
        Self { limits, entries: VecDeque::new(), bytes: 0, received: start.seq }
    }

    /// Takes one more entry. Panics on a gap or a repeat: the `Receiver` checks a peer's entries.
    pub fn push(&mut self, entry: LogEntry) {
        assert_eq!(Some(entry.seq), self.received.checked_add(1), "received entries are consecutive");
        self.received = entry.seq;
        self.bytes += held(&entry);
        self.entries.push_back(entry);
    }

    /// Takes every entry out of `entries`, which keeps its memory.
    pub fn push_all(&mut self, entries: &mut Vec<LogEntry>) {
        entries.drain(..).for_each(|entry| self.push(entry));
    }

    /// The next entry to execute.
    pub fn front(&self) -> Option<&LogEntry> {
        self.entries.front()
    }

    /// Takes the next entry to execute.
    pub fn pop(&mut self) -> Option<LogEntry> {
        let entry = self.entries.pop_front()?;
        self.bytes -= held(&entry);
        Some(entry)
    }

    /// Whether the backup must stop reading until it executed more. TCP then pushes back on the primary.
    pub fn is_full(&self) -> bool {
        self.limits.reached(self.entries.len(), self.bytes)
    }

    /// Entries to execute.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is nothing to execute.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of memory that the entries hold.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The last entry received.
    pub fn received(&self) -> Seq {
        self.received
    }

    /// The last entry taken.
    pub fn taken(&self) -> Seq {
        self.received - self.entries.len() as Seq
    }
}

fn held(entry: &LogEntry) -> usize {
    size_of::<LogEntry>() + entry.event.data_len()
}
