//! The log in a file: a recording, which replays to the same run.
//!
//! ```text
//!  +----------------+-----------------+-----------------+-- ... --+-------------+
//!  | frame 0: Start | frame: Entries  | frame: Entries  |         | frame: End  |
//!  | PairConfig     | a batch         | a batch         |         | how many    |
//!  +----------------+-----------------+-----------------+-- ... --+-------------+
//! ```
//!
//! Frames and batches are those of the channel, under another magic. Recorders die with their hosts: a file
//! may end anywhere, and everything before its last whole frame is as good as ever.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::LOG_VERSION;
use crate::batch::{self, BatchEncoder, BatchError, EntryError, LogStart};
use crate::buffer::LogStats;
use crate::codec::{self, CodecError};
use crate::entry::{LogEntry, Seq};
use crate::frame::{FrameError, FrameReader, FrameWriter, HEADER_LEN, Protocol};
use crate::message::kind;
use crate::pair::PairConfig;

/// A recording, as a protocol of frames.
pub const RECORDING: Protocol =
    Protocol { name: "recording", magic: *b"LKLR", version: LOG_VERSION, max_payload: batch::MAX_PAYLOAD };

const START: u8 = 1;
const ENTRIES: u8 = kind::ENTRIES;
const END: u8 = 7;

/// Pending bytes from which on a writer writes.
const WRITE_BYTES: usize = 64 << 10;

/// What goes wrong with a recording.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be made.
    #[error("cannot create the recording {path}: {source}")]
    Create {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file cannot be opened.
    #[error("cannot open the recording {path}: {source}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file cannot be written or read further.
    #[error("cannot {doing} the recording: {source}")]
    Io {
        /// Which of the two.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Too much for the format.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// The configuration cannot be encoded.
    #[error("the machine's configuration: {0}")]
    Config(#[source] CodecError),
    /// Not a recording, or not even its first frame is whole.
    #[error("not a recording of lockstep: {0}")]
    NotARecording(String),
    /// A recording of another version.
    #[error(
        "a recording of log version {found}; this lockstep reads version {LOG_VERSION}: replay it with the \
         lockstep that made it"
    )]
    Version {
        /// The version in the file.
        found: u16,
    },
    /// The file ends within a frame, as when the recorder's host died. Everything before is usable.
    #[error(
        "the recording is torn off after entry {last}: {bytes} bytes from offset {offset} on are no whole \
         frame; replay can use what is before"
    )]
    Torn {
        /// The last whole entry.
        last: Seq,
        /// Where the torn frame begins.
        offset: u64,
        /// How long it is.
        bytes: u64,
    },
    /// The file was changed, and more follows.
    #[error("the recording is damaged at offset {offset}, after entry {last}: {source}")]
    Damaged {
        /// The last entry before.
        last: Seq,
        /// Where.
        offset: u64,
        /// How.
        #[source]
        source: DamageError,
    },
}

/// What is wrong with a frame in the middle of a recording.
#[derive(Debug, thiserror::Error)]
pub enum DamageError {
    /// The frame itself.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The batch in it.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The batch is not the next one.
    #[error(
        "entries from {found}, counted from position {found_base}, where entry {due} after position {base} \
         is due"
    )]
    Order {
        /// Sequence number due.
        due: Seq,
        /// Count of the entry before it.
        base: u64,
        /// Sequence number found.
        found: Seq,
        /// Count of the entry before that, as the file says.
        found_base: u64,
    },
    /// A frame that does not belong there.
    #[error("a frame of kind {0}, which does not belong there")]
    Kind(u8),
    /// The end's count.
    #[error("the end says {found} entries, {counted} were there")]
    End {
        /// What it says.
        found: u64,
        /// What was there.
        counted: u64,
    },
}

impl FileError {
    /// Whether the recording is sound up to where it ends early.
    pub fn is_torn(&self) -> bool {
        matches!(self, FileError::Torn { .. })
    }
}

/// Writes a recording.
#[derive(Debug)]
pub struct RecordingWriter<W: Write = File> {
    inner: W,
    frames: FrameWriter,
    encoder: BatchEncoder,
    out: Vec<u8>,
    stats: LogStats,
}

impl RecordingWriter<File> {
    /// Makes a new file; one that exists is left alone, and that is an error.
    pub fn create(path: &Path, config: &PairConfig) -> Result<Self, FileError> {
        let error = |source| FileError::Create { path: path.to_owned(), source };
        // It holds what the guest's clients sent: its owner alone reads it.
        let file = File::options().write(true).create_new(true).mode(0o600).open(path);
        Self::new(file.map_err(error)?, config)
    }

    /// As `finish`, and waits until the file is on stable storage.
    pub fn finish_durably(self) -> Result<LogStats, FileError> {
        let (file, stats) = self.finish()?;
        file.sync_all().map_err(|source| FileError::Io { doing: "sync", source })?;
        Ok(stats)
    }
}

impl<W: Write> RecordingWriter<W> {
    /// Begins a recording in `inner`, which needs no buffer of its own.
    pub fn new(inner: W, config: &PairConfig) -> Result<Self, FileError> {
        let mut frames = FrameWriter::new(RECORDING);
        let mut out = Vec::new();
        let start = codec::encode(config).map_err(FileError::Config)?;
        frames.write(START, &start, &mut out);
        let encoder = BatchEncoder::new(LogStart::default());
        let mut writer = Self { inner, frames, encoder, out, stats: LogStats::default() };
        writer.write_out()?;
        Ok(writer)
    }

    /// Takes one more entry. Panics if it is not the next, or its position lies before the last.
    pub fn append(&mut self, entry: &LogEntry) -> Result<(), FileError> {
        let len = self.encoder.append(entry)?;
        self.stats.count(entry.event.kind(), len);
        if self.encoder.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }

    /// Writes out everything appended so far.
    pub fn flush(&mut self) -> Result<(), FileError> {
        let frames = self.encoder.flush(ENTRIES, 0, &mut self.frames, &mut self.out);
        self.stats.wrote(frames, self.out.len());
        self.write_out()
    }

    /// Writes out the rest and the mark of a whole recording. A writer that is dropped instead loses what
    /// was not flushed, and leaves the file without that mark.
    pub fn finish(mut self) -> Result<(W, LogStats), FileError> {
        self.flush()?;
        let entries = self.encoder.last().seq;
        self.frames.write(END, &entries.to_le_bytes(), &mut self.out);
        self.write_out()?;
        Ok((self.inner, self.stats))
    }

    /// Counts so far.
    pub fn stats(&self) -> &LogStats {
        &self.stats
    }

    fn write_out(&mut self) -> Result<(), FileError> {
        let written = self.inner.write_all(&self.out).and_then(|()| self.inner.flush());
        self.out.clear();
        written.map_err(|source| FileError::Io { doing: "write", source })
    }
}

/// Reads a recording: an iterator over its entries. After an error it yields nothing more.
#[derive(Debug)]
pub struct RecordingReader<R: Read = File> {
    inner: R,
    frames: FrameReader,
    config: PairConfig,
    batch: std::vec::IntoIter<LogEntry>,
    last: LogStart,
    /// Bytes read from the file.
    read: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    /// The end mark came, nothing may follow.
    Marked,
    Ended {
        whole: bool,
    },
}

impl RecordingReader<File> {
    /// Opens a file and reads its start.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let error = |source| FileError::Open { path: path.to_owned(), source };
        Self::new(File::open(path).map_err(error)?)
    }
}

impl<R: Read> RecordingReader<R> {
    /// Reads the start of a recording.
    pub fn new(inner: R) -> Result<Self, FileError> {
        let mut reader = Self {
            inner,
            frames: FrameReader::new(RECORDING),
            config: PairConfig::default(),
            batch: Vec::new().into_iter(),
            last: LogStart::default(),
            read: 0,
            state: State::Reading,
        };
        loop {
            match reader.frames.next_payload() {
                Ok(Some((START, payload))) => {
                    reader.config = codec::decode(payload)
                        .map_err(|error| FileError::NotARecording(format!("its start: {error}")))?;
                    return Ok(reader);
                }
                Ok(Some((kind, _))) => {
                    return Err(FileError::NotARecording(format!("it starts with a frame of kind {kind}")));
                }
                Ok(None) => {}
                Err(FrameError::Version { found, .. }) => return Err(FileError::Version { found }),
                Err(error) => return Err(FileError::NotARecording(error.to_string())),
            }
            if reader.read_more()? == 0 {
                return Err(FileError::NotARecording(format!("it ends after {} bytes", reader.read)));
            }
        }
    }

    /// The recorded machine.
    pub fn config(&self) -> &PairConfig {
        &self.config
    }

    /// Sequence number of the last entry read from the file so far.
    pub fn last(&self) -> Seq {
        self.last.seq
    }

    /// Whether the recording was finished, not just cut off between two frames. Known after the last entry.
    pub fn is_whole(&self) -> bool {
        self.state == State::Ended { whole: true }
    }

    fn read_more(&mut self) -> Result<usize, FileError> {
        let mut buffer = [0; WRITE_BYTES];
        let len = self.read_into(&mut buffer)?;
        self.frames.push(&buffer[..len]);
        Ok(len)
    }

    fn read_into(&mut self, buffer: &mut [u8]) -> Result<usize, FileError> {
        loop {
            match self.inner.read(buffer) {
                Ok(len) => {
                    self.read += len as u64;
                    return Ok(len);
                }
                Err(source) if source.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(FileError::Io { doing: "read", source }),
            }
        }
    }

    /// Reads on until there is a batch, or the end.
    fn advance(&mut self) -> Result<(), FileError> {
        let offset = self.read - self.frames.buffered().len() as u64;
        let last = self.last.seq;
        let damaged = |source: DamageError| FileError::Damaged { last, offset, source };
        match self.frames.next_payload() {
            Ok(None) => {
                if self.read_more()? > 0 {
                    return Ok(());
                }
                let bytes = self.frames.buffered().len() as u64;
                if bytes > 0 {
                    return Err(FileError::Torn { last, offset, bytes });
                }
                self.state = State::Ended { whole: self.state == State::Marked };
                Ok(())
            }
            Ok(Some((ENTRIES, payload))) if self.state == State::Reading => {
                let mut entries = Vec::new();
                let (head, end) = batch::decode(payload, &mut entries).map_err(|e| damaged(e.into()))?;
                let LogStart { seq, count } = self.last;
                if head.first != seq + 1 || head.base != count {
                    let (found, found_base) = (head.first, head.base);
                    return Err(damaged(DamageError::Order { due: seq + 1, base: count, found, found_base }));
                }
                self.last = end;
                self.batch = entries.into_iter();
                Ok(())
            }
            Ok(Some((END, payload))) if self.state == State::Reading => {
                let found = payload.try_into().map_or(u64::MAX, u64::from_le_bytes);
                if found != last {
                    return Err(damaged(DamageError::End { found, counted: last }));
                }
                self.state = State::Marked;
                Ok(())
            }
            Ok(Some((kind, _))) => Err(damaged(DamageError::Kind(kind))),
            Err(error) => match self.torn_bytes(&error)? {
                Some(bytes) => Err(FileError::Torn { last, offset, bytes }),
                None => Err(damaged(error.into())),
            },
        }
    }

    /// Whether a bad frame is just the last one, half written: a file system may have made the file longer
    /// before it wrote the bytes. Then nothing but zeros follows.
    fn torn_bytes(&mut self, error: &FrameError) -> Result<Option<u64>, FileError> {
        let frame = self.frames.buffered();
        let mut bytes = frame.len() as u64;
        let sound = match error {
            FrameError::Crc { .. } => {
                let length = u32::from_le_bytes(frame[16..20].try_into().expect("four bytes")) as usize;
                HEADER_LEN + length
            }
            // A header cut off anywhere lacks its last field, the checksum.
            _ => HEADER_LEN - 4,
        };
        let mut zero = frame[sound..].iter().all(|&byte| byte == 0);
        let mut buffer = [0; WRITE_BYTES];
        while zero {
            let len = self.read_into(&mut buffer)?;
            if len == 0 {
                break;
            }
            zero = buffer[..len].iter().all(|&byte| byte == 0);
            bytes += len as u64;
        }
        Ok(zero.then_some(bytes))
    }
}

impl<R: Read> Iterator for RecordingReader<R> {
    type Item = Result<LogEntry, FileError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.batch.next() {
                return Some(Ok(entry));
            }
            if matches!(self.state, State::Ended { .. }) {
                return None;
            }
            if let Err(error) = self.advance() {
                self.state = State::Ended { whole: false };
                return Some(Err(error));
            }
        }
    }
}
