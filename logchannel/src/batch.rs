//! Batches: how runs of consecutive log entries become the payload of one frame, on the channel and in a
//! recording alike.
//!
//! ```text
//!  batch:  first seq | released | base count | entries | entry | entry | ...
//!          varint      varint     varint       varint
//!
//!  entry:  step        | point                          | event
//!          varint        only if the step's low bit is set bincode
//!          delta << 1    rip, rcx, registers: bincode
//!          | has point
//! ```
//!
//! Sequence numbers are implied: they count up from `first seq`. Counts are steps from the entry before, and
//! the first entry's from `base count`, the count of the last entry of the batch before. Varints are little
//! endian, seven bits a byte; bincode is `codec`. So an `Output` takes 11 or 12 bytes, and a `NetRx` at most
//! five more than its frame.

use crate::codec::{self, CodecError};
use crate::entry::{LogEntry, Point, Position, Seq};
use crate::frame::FrameWriter;

/// Most bytes of one encoded entry: it must fit a frame, with the batch's head.
pub const MAX_ENTRY_LEN: usize = MAX_PAYLOAD - MAX_HEAD_LEN;

/// Most entries in one batch; a peer cannot make this end allocate for more at once.
pub const MAX_BATCH_ENTRIES: usize = 1 << 16;

/// A batch is closed when another entry would take it past this, so that the peer can begin with the first
/// part. Only a single larger entry makes a larger batch.
pub const BATCH_LEN: usize = 256 << 10;

/// Longest payload of a frame that carries a batch.
pub const MAX_PAYLOAD: usize = 4 << 20;

const MAX_HEAD_LEN: usize = 40;

/// Where a log continues: what both ends know before its first entry on this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogStart {
    /// Sequence number of the last entry that both ends have; 0 at boot.
    pub seq: Seq,
    /// Count of that entry's position; 0 at boot.
    pub count: u64,
}

/// The head of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHead {
    /// Sequence number of the first entry, or of the next one if there is none.
    pub first: Seq,
    /// The primary has released every output up to this entry.
    pub released: Seq,
    /// Count of the position of the entry before the first.
    pub base: u64,
    /// How many entries follow.
    pub entries: usize,
}

/// An entry that fits no frame.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// It holds too much data.
    #[error(
        "entry {seq} ({kind}) takes {len} bytes, {limit} fit a frame: let the device make smaller requests"
    )]
    TooLong {
        /// The entry.
        seq: Seq,
        /// Its kind.
        kind: &'static str,
        /// Its encoded length.
        len: usize,
        /// `MAX_ENTRY_LEN`.
        limit: usize,
    },
    /// serde or bincode refused it.
    #[error("entry {seq}: {source}")]
    Codec {
        /// The entry.
        seq: Seq,
        /// Why.
        #[source]
        source: CodecError,
    },
}

/// Why a payload is no batch.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// The head is cut off or no head.
    #[error("a batch of log entries without a valid head ({0})")]
    Head(&'static str),
    /// It claims more entries than a batch may hold.
    #[error("a batch of {found} log entries, {limit} allowed")]
    TooMany {
        /// What it claims.
        found: u128,
        /// `MAX_BATCH_ENTRIES`.
        limit: usize,
    },
    /// Sequence numbers would run past 64 bits.
    #[error("a batch of {entries} log entries from {first}: sequence numbers overflow")]
    SeqOverflow {
        /// First sequence number.
        first: Seq,
        /// How many.
        entries: usize,
    },
    /// The primary reports outputs as released whose entries nobody can have acknowledged.
    #[error("released up to entry {released}, but the batch begins with entry {first}")]
    Released {
        /// The watermark.
        released: Seq,
        /// First sequence number.
        first: Seq,
    },
    /// The payload ends within an entry.
    #[error("the batch ends within entry {seq}")]
    CutOff {
        /// The entry.
        seq: Seq,
    },
    /// A position beyond 64 bits.
    #[error("entry {seq}: position {from} + {step} overflows")]
    CountOverflow {
        /// The entry.
        seq: Seq,
        /// Count of the entry before.
        from: u64,
        /// The step.
        step: u128,
    },
    /// The bytes of a point or an event are none.
    #[error("entry {seq}: {source}")]
    Entry {
        /// The entry.
        seq: Seq,
        /// Why.
        #[source]
        source: CodecError,
    },
    /// Bytes after the last entry.
    #[error("{bytes} bytes after the last of {entries} log entries")]
    Trailing {
        /// How many bytes.
        bytes: usize,
        /// How many entries there were.
        entries: usize,
    },
}

/// Entries of one log, encoded and waiting to become frames. Every entry is encoded once, when it is
/// appended.
#[derive(Debug)]
pub struct BatchEncoder {
    body: Vec<u8>,
    open: Vec<Open>,
    last: LogStart,
}

/// A batch not yet written: where it begins in the body, what its head will say.
#[derive(Debug)]
struct Open {
    start: usize,
    first: Seq,
    base: u64,
    entries: usize,
}

impl BatchEncoder {
    /// An encoder whose first entry follows `start`.
    pub fn new(start: LogStart) -> Self {
        Self { body: Vec::new(), open: Vec::new(), last: start }
    }

    /// The last entry appended.
    pub fn last(&self) -> LogStart {
        self.last
    }

    /// Bytes waiting, heads not counted.
    pub fn len(&self) -> usize {
        self.body.len()
    }

    /// Whether no entry waits.
    pub fn is_empty(&self) -> bool {
        self.body.is_empty()
    }

    /// Encodes one more entry; its length in bytes. After an error the encoder is as before.
    ///
    /// Panics if the entry's sequence number is not the next, or its position lies before the last.
    pub fn append(&mut self, entry: &LogEntry) -> Result<usize, EntryError> {
        let LogEntry { seq, at, event } = entry;
        assert_eq!(Some(*seq), self.last.seq.checked_add(1), "log entries are consecutive");
        assert!(at.count >= self.last.count, "positions never decrease: {} then {at}", self.last.count);
        let start = self.body.len();
        let step = u128::from(at.count - self.last.count) << 1 | u128::from(at.point.is_some());
        codec::put_varint(step, &mut self.body);
        let point = at.point.map_or(Ok(()), |point| codec::encode_into(&point, &mut self.body));
        if let Err(source) = point.and_then(|()| codec::encode_into(event, &mut self.body)) {
            self.body.truncate(start);
            return Err(EntryError::Codec { seq: *seq, source });
        }
        let len = self.body.len() - start;
        if len > MAX_ENTRY_LEN {
            self.body.truncate(start);
            return Err(EntryError::TooLong { seq: *seq, kind: event.name(), len, limit: MAX_ENTRY_LEN });
        }
        match self.open.last_mut() {
            Some(open) if open.entries < MAX_BATCH_ENTRIES && start + len - open.start <= BATCH_LEN => {
                open.entries += 1;
            }
            _ => self.open.push(Open { start, first: *seq, base: self.last.count, entries: 1 }),
        }
        self.last = LogStart { seq: *seq, count: at.count };
        Ok(len)
    }

    /// Writes everything that waits as frames of `kind`; how many frames.
    pub fn flush(&mut self, kind: u8, released: Seq, writer: &mut FrameWriter, out: &mut Vec<u8>) -> usize {
        let mut end = self.body.len();
        let frames = self.open.len();
        out.reserve(end + frames * (MAX_HEAD_LEN + crate::frame::HEADER_LEN));
        for i in 0..frames {
            let open = &self.open[i];
            end = self.open.get(i + 1).map_or(self.body.len(), |next| next.start);
            let head = BatchHead { first: open.first, released, base: open.base, entries: open.entries };
            writer.write_with(kind, out, |out| {
                head.encode(out);
                out.extend_from_slice(&self.body[open.start..end]);
            });
        }
        debug_assert_eq!(end, self.body.len());
        self.body.clear();
        self.open.clear();
        frames
    }

    /// Writes a batch without entries, which only reports `released`. Panics if entries wait.
    pub fn flush_released(&self, kind: u8, released: Seq, writer: &mut FrameWriter, out: &mut Vec<u8>) {
        assert!(self.is_empty(), "waiting entries carry the watermark");
        let first = self.last.seq.checked_add(1).expect("fewer than 2^64 entries");
        let head = BatchHead { first, released, base: self.last.count, entries: 0 };
        writer.write_with(kind, out, |out| head.encode(out));
    }
}

impl BatchHead {
    /// Appends the head's encoding.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        for value in [self.first, self.released, self.base, self.entries as u64] {
            codec::put_varint(value.into(), out);
        }
    }

    /// Takes a head from the start of `bytes`.
    fn decode(bytes: &mut &[u8]) -> Result<Self, BatchError> {
        let mut take = |what| {
            let value = codec::take_varint(bytes).ok_or(BatchError::Head(what))?;
            u64::try_from(value).map_err(|_| BatchError::Head(what))
        };
        let first = take("first sequence number")?;
        let released = take("released watermark")?;
        let base = take("base count")?;
        let found = take("number of entries")?;
        if first == 0 {
            return Err(BatchError::Head("sequence numbers begin at 1"));
        }
        let entries = usize::try_from(found).unwrap_or(usize::MAX);
        if entries > MAX_BATCH_ENTRIES {
            return Err(BatchError::TooMany { found: found.into(), limit: MAX_BATCH_ENTRIES });
        }
        if first.checked_add(found).is_none() {
            return Err(BatchError::SeqOverflow { first, entries });
        }
        if released >= first {
            return Err(BatchError::Released { released, first });
        }
        Ok(Self { first, released, base, entries })
    }

    /// The last entry of the batch, or the one before it if it has none, given the last position's count.
    fn end(&self, count: u64) -> LogStart {
        LogStart { seq: self.first - 1 + self.entries as u64, count }
    }
}

/// Decodes a batch and appends its entries to `into`: its head, and its last entry. After an error `into` is
/// as before.
pub fn decode(payload: &[u8], into: &mut Vec<LogEntry>) -> Result<(BatchHead, LogStart), BatchError> {
    let mut rest = payload;
    let head = BatchHead::decode(&mut rest)?;
    let before = into.len();
    match decode_entries(&head, rest, into) {
        Ok(count) => Ok((head, head.end(count))),
        Err(error) => {
            into.truncate(before);
            Err(error)
        }
    }
}

fn decode_entries(head: &BatchHead, mut rest: &[u8], into: &mut Vec<LogEntry>) -> Result<u64, BatchError> {
    // An entry takes two bytes at least: a payload cannot make us reserve for more entries than it may hold.
    into.reserve(head.entries.min(rest.len() / 2));
    let mut count = head.base;
    for i in 0..head.entries {
        let seq = head.first + i as u64;
        if rest.is_empty() {
            return Err(BatchError::CutOff { seq });
        }
        let step = codec::take_varint(&mut rest).ok_or(BatchError::CutOff { seq })?;
        let delta = step >> 1;
        count = u64::try_from(u128::from(count) + delta).map_err(|_| BatchError::CountOverflow {
            seq,
            from: count,
            step: delta,
        })?;
        let entry = |source| BatchError::Entry { seq, source };
        let mut point = None;
        if step & 1 == 1 {
            let (found, after) = codec::decode_prefix::<Point>(rest).map_err(entry)?;
            point = Some(found);
            rest = after;
        }
        let (event, after) = codec::decode_prefix(rest).map_err(entry)?;
        rest = after;
        into.push(LogEntry { seq, at: Position { count, point }, event });
    }
    match rest.len() {
        0 => Ok(count),
        bytes => Err(BatchError::Trailing { bytes, entries: head.entries }),
    }
}
