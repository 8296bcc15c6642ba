//! Writes a recording: entries as they come, checkpoints as runs of changed pages.
//!
//! A page has changed when its xxh3-128 has: no engine needs to tell, and a state transfer may track pages at
//! the same time.

use std::io::{self, Write};

use logchannel::batch::BatchEncoder;
use logchannel::codec;
use logchannel::frame::{FrameWriter, HEADER_LEN};
use logchannel::{LogEntry, LogStart, Position};
use twox_hash::XxHash3_128;

use crate::boot::GuestImage;
use crate::memory::PAGE_BYTES;
use crate::recording::format::{
    BatchRef, CheckpointRef, FrameRef, Header, IMAGE_PIECE, ImageFile, ImageHead, Index, MAX_PAYLOAD,
    PAGES_PER_FRAME, PagesHead, RECORDING, RecordingError, StateHead, kind,
};

/// Encoded entries from which on they are written out without being asked.
const WRITE_BYTES: usize = 64 << 10;
/// A batch this short is not worth compressing.
const COMPRESS_FROM: usize = 256;
/// A checkpoint stands by itself when those since the last such have this many times the pages of RAM.
const WHOLE_AFTER: usize = 2;

/// The pages of a checkpoint, copied while the guest stood still.
#[derive(Debug)]
pub struct CheckpointPages {
    /// Whether it stands by itself.
    pub whole: bool,
    /// Page numbers, ascending.
    pub numbers: Vec<u32>,
    /// Their content, one after the other.
    pub content: Vec<u8>,
}

/// Finds out which pages changed from one checkpoint to the next.
#[derive(Debug, Default)]
pub struct PageTracker {
    hashes: Vec<u128>,
    since_whole: usize,
}

impl PageTracker {
    /// The pages that a checkpoint of `ram` needs.
    pub fn collect(&mut self, ram: &[u8]) -> CheckpointPages {
        let count = ram.len() / PAGE_BYTES;
        let whole = self.hashes.len() != count || self.since_whole >= WHOLE_AFTER * count;
        let zero = XxHash3_128::oneshot(&[0; PAGE_BYTES]);
        if whole {
            self.hashes = vec![zero; count];
            self.since_whole = 0;
        }
        let mut pages = CheckpointPages { whole, numbers: Vec::new(), content: Vec::new() };
        for (number, (page, known)) in ram.chunks_exact(PAGE_BYTES).zip(&mut self.hashes).enumerate() {
            let hash = XxHash3_128::oneshot(page);
            if hash != *known {
                *known = hash;
                pages.numbers.push(number as u32);
                pages.content.extend_from_slice(page);
            }
        }
        if !whole {
            self.since_whole += pages.numbers.len();
        }
        pages
    }
}

/// Bytes written, by what they are for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Everything.
    pub bytes: u64,
    /// Log entries.
    pub log_bytes: u64,
    /// Checkpoints.
    pub checkpoint_bytes: u64,
    /// How many checkpoints.
    pub checkpoints: u64,
}

/// Writes a recording to `inner`, which needs no buffer of its own.
#[derive(Debug)]
pub struct Writer<W: Write> {
    inner: W,
    frames: FrameWriter,
    number: u64,
    written: Written,
    encoder: BatchEncoder,
    index: Index,
    out: Vec<u8>,
}

fn io_error(source: io::Error) -> RecordingError {
    RecordingError::Io { doing: "write", source }
}

fn encode<T: serde::Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, RecordingError> {
    codec::encode(value).map_err(|source| RecordingError::Encode { what, source })
}

impl<W: Write> Writer<W> {
    /// Begins a recording of a run from its first entry on. The first thing it must be given is a checkpoint.
    pub fn new(inner: W, header: &Header) -> Result<Self, RecordingError> {
        Self::joining(inner, header, LogStart::default())
    }

    /// Begins a recording of a run of which `log` has passed.
    pub fn joining(inner: W, header: &Header, log: LogStart) -> Result<Self, RecordingError> {
        let mut writer = Self {
            inner,
            frames: FrameWriter::new(RECORDING),
            number: 0,
            written: Written::default(),
            encoder: BatchEncoder::new(log),
            index: Index::default(),
            out: Vec::new(),
        };
        writer.frame(kind::START, &encode("header", header)?)?;
        Ok(writer)
    }

    fn frame(&mut self, kind: u8, payload: &[u8]) -> Result<FrameRef, RecordingError> {
        let at = FrameRef { offset: self.written.bytes, number: self.number };
        self.out.clear();
        self.frames.write(kind, payload, &mut self.out);
        self.inner.write_all(&self.out).map_err(io_error)?;
        self.number += 1;
        self.written.bytes += self.out.len() as u64;
        Ok(at)
    }

    /// Takes one more entry. Panics if it is not the next, or its position lies before the last.
    pub fn append(&mut self, entry: &LogEntry) -> Result<(), RecordingError> {
        self.encoder.append(entry)?;
        if self.encoder.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }

    /// Writes out every entry appended so far.
    pub fn flush(&mut self) -> Result<(), RecordingError> {
        if self.encoder.is_empty() {
            return Ok(());
        }
        let before = self.written.bytes;
        let last_count = self.encoder.last().count;
        let mut first = self.index.last_seq() + 1;
        // The encoder writes frames of its own: their payloads are what is wanted.
        let mut framed = Vec::new();
        self.encoder.flush(kind::ENTRIES, 0, &mut FrameWriter::new(RECORDING), &mut framed);
        let mut rest = framed.as_slice();
        while let Some((header, after)) = rest.split_first_chunk::<HEADER_LEN>() {
            let len = u32::from_le_bytes(header[16..20].try_into().expect("four bytes")) as usize;
            let (payload, after) = after.split_at(len);
            rest = after;
            let frame = self.batch(payload)?;
            let mut decoded = Vec::new();
            // Entries of a batch are known only to the encoder; most flushes make one batch.
            let (entries, count) = match rest.is_empty() {
                true => ((self.encoder.last().seq + 1 - first) as u32, last_count),
                false => {
                    let (_, end) = logchannel::batch::decode(payload, &mut decoded).expect("just encoded");
                    (decoded.len() as u32, end.count)
                }
            };
            self.index.batches.push(BatchRef { frame, first, entries, last_count: count });
            first += u64::from(entries);
        }
        self.written.log_bytes += self.written.bytes - before;
        self.inner.flush().map_err(io_error)
    }

    fn batch(&mut self, payload: &[u8]) -> Result<FrameRef, RecordingError> {
        if payload.len() >= COMPRESS_FROM {
            let mut packed = (payload.len() as u32).to_le_bytes().to_vec();
            packed.extend_from_slice(&lz4_flex::compress(payload));
            if packed.len() < payload.len() * 9 / 10 {
                return self.frame(kind::ENTRIES_LZ4, &packed);
            }
        }
        self.frame(kind::ENTRIES, payload)
    }

    /// Writes the guest's files: what a replay of a reset needs.
    pub fn image(&mut self, image: &GuestImage) -> Result<(), RecordingError> {
        self.flush()?;
        let kernel = image.kernel.chunks(IMAGE_PIECE).map(|piece| (ImageFile::Kernel, piece));
        let initrd = image.initrd.iter().flat_map(|initrd| initrd.chunks(IMAGE_PIECE));
        for (file, piece) in kernel.chain(initrd.map(|piece| (ImageFile::Initrd, piece))) {
            let mut payload = encode("image", &ImageHead { file, len: piece.len() as u32 })?;
            payload.extend_from_slice(&lz4_flex::compress(piece));
            let frame = self.frame(kind::IMAGE, &payload)?;
            self.index.image.push(frame);
        }
        self.inner.flush().map_err(io_error)
    }

    /// Writes a checkpoint of the machine as it is after the last entry appended; `state` is an encoded
    /// `MachineState` at `at`.
    pub fn checkpoint(
        &mut self,
        pages: &CheckpointPages,
        (at, state): (Position, &[u8]),
        now_ns: u64,
    ) -> Result<(), RecordingError> {
        self.flush()?;
        let before = self.written.bytes;
        let mut frames = Vec::new();
        let chunks = pages.content.chunks(PAGES_PER_FRAME * PAGE_BYTES);
        for (numbers, content) in pages.numbers.chunks(PAGES_PER_FRAME).zip(chunks) {
            let mut payload = encode("pages", &PagesHead { runs: runs(numbers) })?;
            payload.extend_from_slice(&lz4_flex::compress(content));
            frames.push(self.frame(kind::PAGES, &payload)?);
        }
        let head = StateHead {
            seq: self.encoder.last().seq,
            at,
            now_ns,
            whole: pages.whole,
            state_len: state.len() as u32,
        };
        let mut payload = encode("checkpoint", &head)?;
        payload.extend_from_slice(&lz4_flex::compress(state));
        let frame = self.frame(kind::STATE, &payload)?;
        let StateHead { seq, at, now_ns, whole, .. } = head;
        self.index.checkpoints.push(CheckpointRef { seq, at, now_ns, whole, pages: frames, state: frame });
        self.written.checkpoint_bytes += self.written.bytes - before;
        self.written.checkpoints += 1;
        self.inner.flush().map_err(io_error)
    }

    /// Writes out the rest, the index, and the mark of a whole recording.
    pub fn finish(mut self) -> Result<(W, Written), RecordingError> {
        self.flush()?;
        let index = codec::encode(&self.index).ok().filter(|index| index.len() <= MAX_PAYLOAD);
        // One so long that its index fits no frame is read from its beginning.
        let at = index.map(|index| self.frame(kind::INDEX, &index)).transpose()?;
        let mut end = self.index.last_seq().to_le_bytes().to_vec();
        end.extend_from_slice(&at.map_or(0, |at| at.offset).to_le_bytes());
        end.extend_from_slice(&at.map_or(0, |at| at.number).to_le_bytes());
        self.frame(kind::END, &end)?;
        self.inner.flush().map_err(io_error)?;
        Ok((self.inner, self.written))
    }

    /// Bytes so far.
    pub fn written(&self) -> Written {
        self.written
    }
}

/// Ascending page numbers as runs.
fn runs(numbers: &[u32]) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == number => *count += 1,
            _ => runs.push((number, 1)),
        }
    }
    runs
}
