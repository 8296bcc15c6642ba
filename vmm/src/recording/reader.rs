//! Reads a recording: opens it by its index, or when it has none from its beginning, and hands out batches
//! and checkpoints by number.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use logchannel::batch::{self, LogStart};
use logchannel::frame::{FrameError, FrameReader, HEADER_LEN};
use logchannel::{LOG_VERSION, LogEntry, Position, Seq, codec};

use crate::boot::GuestImage;
use crate::machine::MachineState;
use crate::memory::{PAGE_BYTES, Ram};
use crate::recording::format::{
    BatchRef, CheckpointRef, Damage, END_LEN, FrameRef, Header, IMAGE_PIECE, ImageFile, ImageHead, Index,
    MAX_PAYLOAD, PagesHead, RECORDING, RecordingError, StateHead, kind,
};

/// How the file ends.
#[derive(Debug)]
pub enum Tail {
    /// As its writer finished it.
    Whole,
    /// Between two frames or within one, as when its writer was killed; how many bytes are no whole frame.
    Torn {
        /// Bytes after the last whole frame.
        bytes: u64,
    },
    /// With something that no writer wrote: everything before it is sound.
    Damaged(RecordingError),
}

/// A recording that was opened.
#[derive(Debug)]
pub struct Recording {
    file: File,
    path: PathBuf,
    bytes: u64,
    header: Header,
    index: Index,
    tail: Tail,
}

/// One frame that was read: kind, payload.
type RawFrame = (u8, Vec<u8>);

impl Recording {
    /// Opens a file.
    pub fn open(path: &Path) -> Result<Self, RecordingError> {
        let failed = |source| RecordingError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let header = read_header(&file, bytes, path)?;
        let mut recording = Self {
            file,
            path: path.to_owned(),
            bytes,
            header,
            index: Index::default(),
            tail: Tail::Torn { bytes: 0 },
        };
        match recording.indexed() {
            Some(index) => (recording.index, recording.tail) = (index, Tail::Whole),
            None => recording.scan()?,
        }
        if recording.index.checkpoints.is_empty() {
            return Err(RecordingError::NotARecording {
                path: path.to_owned(),
                why: "it ends before the machine's first state".into(),
            });
        }
        Ok(recording)
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What was recorded.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// How it ends.
    pub fn tail(&self) -> &Tail {
        &self.tail
    }

    /// The last entry; if there is none, the one before the first.
    pub fn last_seq(&self) -> Seq {
        self.index.last_seq()
    }

    /// Where the last entry is.
    pub fn end(&self) -> Position {
        let first = self.index.checkpoints.first().map_or(0, |first| first.at.count);
        Position::at(self.index.batches.last().map_or(first, |batch| batch.last_count))
    }

    /// Batches of entries, in order.
    pub fn batches(&self) -> &[BatchRef] {
        &self.index.batches
    }

    /// How many bytes of the file are batches of entries, their frames included.
    pub fn log_bytes(&self) -> Result<u64, RecordingError> {
        self.index.batches.iter().try_fold(0, |sum, batch| {
            let payload = self.frame(batch.frame, batch.first - 1)?.1;
            Ok(sum + (HEADER_LEN + payload.len()) as u64)
        })
    }

    /// Checkpoints, in order: the first is before the first entry.
    pub fn checkpoints(&self) -> &[CheckpointRef] {
        &self.index.checkpoints
    }

    /// The batch that holds entry `seq`, or the one after which it would come.
    pub fn batch_of(&self, seq: Seq) -> usize {
        self.index.batches.partition_point(|batch| batch.first + u64::from(batch.entries) <= seq)
    }

    /// Reads a batch.
    pub fn entries(&self, batch: usize) -> Result<Vec<LogEntry>, RecordingError> {
        let found = self.index.batches[batch];
        let (kind, payload) = self.frame(found.frame, found.first - 1)?;
        let at = |source| damaged(found.frame, found.first - 1, source);
        let (first, entries, _) = decode_batch(kind, &payload).map_err(at)?;
        if first != found.first || entries.len() != found.entries as usize {
            return Err(at(Damage::Order { due: found.first, found: first }));
        }
        let before = match batch {
            0 => self.index.checkpoints[0].at.count,
            batch => self.index.batches[batch - 1].last_count,
        };
        if entries.first().is_some_and(|entry| entry.at.count < before) {
            return Err(at(Damage::Misplaced("entries from before the last position")));
        }
        Ok(entries)
    }

    /// The last entry that lies before a position; the one before the first, if none does.
    pub fn last_before(&self, at: Position) -> Result<Seq, RecordingError> {
        let batch = self.index.batches.partition_point(|batch| batch.last_count < at.count);
        let Some(found) = self.index.batches.get(batch) else { return Ok(self.last_seq()) };
        let entries = self.entries(batch)?;
        let before = entries.partition_point(|entry| entry.at.count < at.count);
        Ok(found.first - 1 + before as u64)
    }

    /// Where an entry lies; `None` for one that it does not have.
    pub fn position_of(&self, seq: Seq) -> Result<Option<Position>, RecordingError> {
        let batch = self.batch_of(seq);
        if batch >= self.index.batches.len() {
            return Ok(None);
        }
        let found = self.entries(batch)?.into_iter().find(|entry| entry.seq == seq);
        Ok(found.map(|entry| entry.at))
    }

    /// All entries, in order.
    pub fn log(&self) -> impl Iterator<Item = Result<LogEntry, RecordingError>> {
        (0..self.index.batches.len()).flat_map(|batch| match self.entries(batch) {
            Ok(entries) => entries.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(error) => vec![Err(error)],
        })
    }

    /// Reads a checkpoint's state.
    pub fn state(&self, checkpoint: usize) -> Result<MachineState, RecordingError> {
        let found = &self.index.checkpoints[checkpoint];
        let (kind, payload) = self.frame(found.state, found.seq)?;
        let at = |source| damaged(found.state, found.seq, source);
        if kind != kind::STATE {
            return Err(at(Damage::Misplaced("no state where the checkpoint's should be")));
        }
        let (_, state) = decode_state(&payload).map_err(at)?;
        if state.at != found.at {
            return Err(at(Damage::Misplaced("a state that is not the checkpoint's")));
        }
        Ok(state)
    }

    /// Makes `ram` what it was at a checkpoint.
    pub fn load_memory(&self, checkpoint: usize, ram: &mut Ram) -> Result<(), RecordingError> {
        let first = self.index.checkpoints[..=checkpoint].iter().rposition(|c| c.whole).unwrap_or(0);
        ram.clear();
        for found in &self.index.checkpoints[first..=checkpoint] {
            for frame in &found.pages {
                let (kind, payload) = self.frame(*frame, found.seq)?;
                let at = |source| damaged(*frame, found.seq, source);
                if kind != kind::PAGES {
                    return Err(at(Damage::Misplaced("no pages where a checkpoint's should be")));
                }
                store_pages(&payload, ram).map_err(at)?;
            }
        }
        Ok(())
    }

    /// Reads the frame at a reference and checks that it is that frame.
    /// The guest's files; `None` if they are not there, or not whole.
    pub fn image(&self) -> Result<Option<GuestImage>, RecordingError> {
        let machine = &self.header.machine;
        let (mut kernel, mut initrd) = (Vec::new(), Vec::new());
        for &at in &self.index.image {
            let damaged = |source| damaged(at, self.last_seq(), source);
            let (kind::IMAGE, payload) = self.frame(at, self.last_seq())? else {
                return Err(damaged(Damage::Misplaced("another frame where a file of the guest is due")));
            };
            let (head, block) = decode_image(&payload).map_err(damaged)?;
            let file = if head.file == ImageFile::Kernel { &mut kernel } else { &mut initrd };
            let piece = lz4_flex::decompress(block, head.len as usize);
            file.extend(piece.map_err(|_| damaged(Damage::Lz4("a file of the guest")))?);
            if (kernel.len() + initrd.len()) as u64 > machine.memory_bytes {
                return Err(damaged(Damage::Misplaced("files of the guest that exceed its memory")));
            }
        }
        let initrd = (!initrd.is_empty()).then(|| initrd.into());
        let image = GuestImage { kernel: kernel.into(), initrd, command_line: machine.command_line.clone() };
        Ok((image.digest() == machine.image_digest).then_some(image))
    }

    fn frame(&self, at: FrameRef, last: Seq) -> Result<RawFrame, RecordingError> {
        match read_frame(&self.file, self.bytes, at).map_err(read_error)? {
            Ok((kind, payload, _)) => Ok((kind, payload)),
            Err(source) => Err(damaged(at, last, source)),
        }
    }

    /// The index, if the file has a sound one at its end.
    fn indexed(&self) -> Option<Index> {
        let end_bytes = (HEADER_LEN + END_LEN) as u64;
        let mut end = [0; HEADER_LEN + END_LEN];
        let offset = self.bytes.checked_sub(end_bytes)?;
        self.file.read_exact_at(&mut end, offset).ok()?;
        let number = u64::from_le_bytes(end[8..16].try_into().expect("eight bytes"));
        let mut frames = FrameReader::starting_at(RECORDING, number);
        frames.push(&end);
        let (kind::END, payload) = frames.next_payload().ok()?? else { return None };
        let word =
            |i: usize| payload.get(8 * i..8 * i + 8).map(|w| u64::from_le_bytes(w.try_into().expect("8")));
        let (last, at) = (word(0)?, FrameRef { offset: word(1)?, number: word(2)? });
        let (kind::INDEX, payload, _) = read_frame(&self.file, offset, at).ok()?.ok()? else { return None };
        let index: Index = codec::decode(&payload).ok()?;
        (index.is_sound(offset) && index.last_seq() == last).then_some(index)
    }

    /// Goes through the whole file.
    fn scan(&mut self) -> Result<(), RecordingError> {
        let mut at = FrameRef { offset: 0, number: 0 };
        let mut log = LogStart::default();
        let mut pages = Vec::new();
        loop {
            if at.offset == self.bytes {
                self.tail = Tail::Torn { bytes: 0 };
                return Ok(());
            }
            let read = read_frame(&self.file, self.bytes, at).map_err(read_error)?;
            let taken = read.and_then(|(kind, payload, len)| {
                let end = kind == kind::END;
                self.take(at, kind, &payload, &mut log, &mut pages)?;
                Ok((len, end))
            });
            match taken {
                Ok((len, false)) => at = FrameRef { offset: at.offset + len, number: at.number + 1 },
                Ok((len, true)) => {
                    let after = self.bytes - at.offset - len;
                    let only_zeros = || self.is_zero_from(at.offset + len).map_err(read_error);
                    self.tail = match after {
                        0 => Tail::Whole,
                        bytes if only_zeros()? => Tail::Torn { bytes },
                        _ => Tail::Damaged(damaged(at, log.seq, Damage::Misplaced("bytes after the end"))),
                    };
                    return Ok(());
                }
                Err(damage) => {
                    let bytes = self.bytes - at.offset;
                    self.tail = match self.is_torn(&damage, at.offset).map_err(read_error)? {
                        true => Tail::Torn { bytes },
                        false => Tail::Damaged(damaged(at, log.seq, damage)),
                    };
                    return Ok(());
                }
            }
        }
    }

    /// Notes one frame of a scan in the index.
    fn take(
        &mut self,
        at: FrameRef,
        kind: u8,
        payload: &[u8],
        log: &mut LogStart,
        pages: &mut Vec<FrameRef>,
    ) -> Result<(), Damage> {
        if !pages.is_empty() && !matches!(kind, kind::PAGES | kind::STATE) {
            return Err(Damage::Misplaced("a checkpoint that does not end"));
        }
        match kind {
            kind::START if at.number == 0 => {}
            kind::ENTRIES | kind::ENTRIES_LZ4 => {
                let (first, entries, end) = decode_batch(kind, payload)?;
                if first != log.seq + 1 || end.count < log.count || entries.is_empty() {
                    return Err(Damage::Order { due: log.seq + 1, found: first });
                }
                let entries = entries.len() as u32;
                self.index.batches.push(BatchRef { frame: at, first, entries, last_count: end.count });
                *log = end;
            }
            kind::IMAGE => {
                decode_image(payload)?;
                self.index.image.push(at);
            }
            kind::PAGES => pages.push(at),
            kind::STATE => {
                // Its state is judged when it is wanted: another lockstep's may be another type.
                let (head, _) = decode_state_head(payload)?;
                let first = self.index.checkpoints.is_empty();
                let before = self.index.checkpoints.last().map_or(0, |before| before.at.count);
                if first && log.seq == 0 && head.seq < Seq::MAX {
                    // A run that was joined on its way has its log from there on.
                    *log = LogStart { seq: head.seq, count: head.at.count };
                }
                if head.seq != log.seq || head.at.count < before || (first && !head.whole) {
                    return Err(Damage::Misplaced("a checkpoint at another place than it says"));
                }
                let StateHead { seq, at: position, now_ns, whole, .. } = head;
                let pages = std::mem::take(pages);
                let found = CheckpointRef { seq, at: position, now_ns, whole, pages, state: at };
                self.index.checkpoints.push(found);
            }
            kind::INDEX | kind::END => {}
            _ => return Err(Damage::Misplaced("a frame of unknown kind")),
        }
        Ok(())
    }

    /// Whether a bad frame is just the last one, half written: a file system may have made the file longer
    /// before it wrote the bytes, and then nothing but zeros follows.
    fn is_torn(&self, damage: &Damage, offset: u64) -> io::Result<bool> {
        if let Damage::CutOff = damage {
            return Ok(true);
        }
        let sound = match damage {
            Damage::Frame(FrameError::Crc { .. }) => {
                let mut header = [0; HEADER_LEN];
                self.file.read_exact_at(&mut header, offset)?;
                let len = u32::from_le_bytes(header[16..20].try_into().expect("four bytes"));
                HEADER_LEN as u64 + u64::from(len)
            }
            // A header cut off anywhere lacks its last field, the checksum.
            Damage::Frame(_) => HEADER_LEN as u64 - 4,
            _ => return Ok(false),
        };
        self.is_zero_from(offset + sound)
    }

    fn is_zero_from(&self, mut at: u64) -> io::Result<bool> {
        let mut buffer = vec![0; 64 << 10];
        while at < self.bytes {
            let len = self.file.read_at(&mut buffer, at)?;
            if len == 0 || buffer[..len].iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += len as u64;
        }
        Ok(true)
    }
}

fn damaged(at: FrameRef, last: Seq, source: Damage) -> RecordingError {
    RecordingError::Damaged { offset: at.offset, last, source }
}

fn read_error(source: io::Error) -> RecordingError {
    RecordingError::Io { doing: "read", source }
}

/// Reads one frame that ends before `end`: kind, payload, length of the whole.
#[allow(clippy::type_complexity)]
fn read_frame(file: &File, end: u64, at: FrameRef) -> io::Result<Result<(u8, Vec<u8>, u64), Damage>> {
    let mut header = [0; HEADER_LEN];
    let left = end.saturating_sub(at.offset);
    if left < HEADER_LEN as u64 {
        return Ok(Err(Damage::CutOff));
    }
    file.read_exact_at(&mut header, at.offset)?;
    let mut frames = FrameReader::starting_at(RECORDING, at.number);
    frames.push(&header);
    // Judges the header, which has no more than its own bytes here.
    if let Err(error) = frames.next_payload() {
        return Ok(Err(error.into()));
    }
    let len = u32::from_le_bytes(header[16..20].try_into().expect("four bytes")) as usize;
    debug_assert!(len <= MAX_PAYLOAD);
    if left < (HEADER_LEN + len) as u64 {
        return Ok(Err(Damage::CutOff));
    }
    let mut payload = vec![0; len];
    file.read_exact_at(&mut payload, at.offset + HEADER_LEN as u64)?;
    let mut frames = FrameReader::starting_at(RECORDING, at.number);
    frames.push(&header);
    frames.push(&payload);
    match frames.next_payload() {
        Ok(Some((kind, _))) => Ok(Ok((kind, payload, (HEADER_LEN + len) as u64))),
        Ok(None) => Ok(Err(Damage::CutOff)),
        Err(error) => Ok(Err(error.into())),
    }
}

fn read_header(file: &File, bytes: u64, path: &Path) -> Result<Header, RecordingError> {
    let none = |why: String| RecordingError::NotARecording { path: path.to_owned(), why };
    let start = FrameRef { offset: 0, number: 0 };
    let payload = match read_frame(file, bytes, start).map_err(read_error)? {
        Ok((kind::START, payload, _)) => payload,
        Ok((kind, ..)) => return Err(none(format!("it starts with a frame of kind {kind}"))),
        Err(Damage::Frame(FrameError::Version { found, .. })) => {
            return Err(RecordingError::Version { path: path.to_owned(), found });
        }
        Err(damage) => return Err(none(damage.to_string())),
    };
    // The log's version comes first, so that it can be told whatever follows it.
    let (found_log, _) = codec::decode_prefix::<u16>(&payload).map_err(|error| none(error.to_string()))?;
    if found_log != LOG_VERSION {
        return Err(RecordingError::LogVersion { path: path.to_owned(), found: found_log });
    }
    codec::decode(&payload).map_err(|error| none(format!("its header: {error}")))
}

fn decode_batch(kind: u8, payload: &[u8]) -> Result<(Seq, Vec<LogEntry>, LogStart), Damage> {
    let unpacked;
    let payload = match kind {
        kind::ENTRIES => payload,
        kind::ENTRIES_LZ4 => {
            let lz4 = Damage::Lz4("entries");
            let Some((len, block)) = payload.split_first_chunk::<4>() else { return Err(lz4) };
            let len = u32::from_le_bytes(*len) as usize;
            if len > batch::MAX_PAYLOAD {
                return Err(lz4);
            }
            unpacked = lz4_flex::decompress(block, len).map_err(|_| lz4)?;
            &unpacked
        }
        _ => return Err(Damage::Misplaced("no entries where a batch should be")),
    };
    let mut entries = Vec::new();
    let (head, end) = batch::decode(payload, &mut entries)?;
    Ok((head.first, entries, end))
}

/// The head of an IMAGE frame, and its block.
fn decode_image(payload: &[u8]) -> Result<(ImageHead, &[u8]), Damage> {
    let content = |source| Damage::Content { what: "a file of the guest", source };
    let (head, rest) = codec::decode_prefix::<ImageHead>(payload).map_err(content)?;
    if head.len as usize > IMAGE_PIECE {
        return Err(Damage::Misplaced("a piece of a file of the guest that is too long"));
    }
    Ok((head, rest))
}

fn decode_state_head(payload: &[u8]) -> Result<(StateHead, &[u8]), Damage> {
    codec::decode_prefix(payload).map_err(|source| Damage::Content { what: "a checkpoint", source })
}

fn decode_state(payload: &[u8]) -> Result<(StateHead, MachineState), Damage> {
    let (head, block) = decode_state_head(payload)?;
    let len = head.state_len as usize;
    if len > codec::MAX_ENCODED_LEN {
        return Err(Damage::Lz4("a machine state"));
    }
    let encoded = lz4_flex::decompress(block, len).map_err(|_| Damage::Lz4("a machine state"))?;
    let decoded = codec::decode(&encoded);
    let state: MachineState =
        decoded.map_err(|source| Damage::Content { what: "a machine state", source })?;
    if state.at != head.at {
        return Err(Damage::Misplaced("a checkpoint at another place than it says"));
    }
    Ok((head, state))
}

fn store_pages(payload: &[u8], ram: &mut Ram) -> Result<(), Damage> {
    let (head, block) = codec::decode_prefix::<PagesHead>(payload)
        .map_err(|source| Damage::Content { what: "pages", source })?;
    let Some(pages) = head.pages(ram.pages()) else {
        return Err(Damage::Misplaced("pages that this machine does not have"));
    };
    let bytes = pages * PAGE_BYTES;
    let content = lz4_flex::decompress(block, bytes).map_err(|_| Damage::Lz4("pages"))?;
    if content.len() != bytes {
        return Err(Damage::Lz4("pages"));
    }
    let mut rest = content.as_slice();
    for (first, count) in head.runs {
        let (run, after) = rest.split_at(count as usize * PAGE_BYTES);
        ram.write(first as usize * PAGE_BYTES, run);
        rest = after;
    }
    Ok(())
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
