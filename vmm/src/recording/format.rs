//! What a recording file is made of.
//!
//! ```text
//!  +-------+-------------------+----------------+-- ... --+------------------+-- ... --+-------+-----+
//!  | START | PAGES ... STATE   | ENTRIES        |         | PAGES ... STATE  |         | INDEX | END |
//!  | Header| checkpoint 0      | a batch        |         | checkpoint n     |         |       |     |
//!  +-------+-------------------+----------------+-- ... --+------------------+-- ... --+-------+-----+
//! ```
//!
//! Frames are the logging channel's under another magic, batches the logging channel's too. A checkpoint is
//! the state after the last entry before it; its pages are those that changed since the checkpoint before,
//! or, in one that stands by itself, all that are not zero. It counts only once its STATE is there.
//!
//! A guest that resets its machine is loaded again: before the entry of the first reset come the guest's
//! files, in IMAGE frames. Most recordings have none.

use std::io;
use std::path::PathBuf;

use devices::DevicesConfig;
use logchannel::batch::{BatchError, EntryError};
use logchannel::codec::CodecError;
use logchannel::frame::{FrameError, Protocol};
use logchannel::pair::PairConfig;
use logchannel::{LOG_VERSION, Position, Seq};
use replay::ClockPolicy;
use serde::{Deserialize, Serialize};

use crate::config::VmConfig;

/// Version of the file format; the log's own version is in `Header`.
pub const RECORDING_VERSION: u16 = 3;

/// Longest payload of a frame.
pub const MAX_PAYLOAD: usize = 16 << 20;

/// Recordings, as a protocol of frames.
pub const RECORDING: Protocol =
    Protocol { name: "recording", magic: *b"LKRC", version: RECORDING_VERSION, max_payload: MAX_PAYLOAD };

/// Most pages in one frame.
pub const PAGES_PER_FRAME: usize = 256;

/// Kinds of frames.
pub mod kind {
    /// `Header`
    pub const START: u8 = 1;
    /// A batch of entries.
    pub const ENTRIES: u8 = 2;
    /// Its length as `u32`, then a batch of entries as an LZ4 block.
    pub const ENTRIES_LZ4: u8 = 3;
    /// `PagesHead`, then the pages one after the other as an LZ4 block.
    pub const PAGES: u8 = 4;
    /// `StateHead`, then an encoded `MachineState` as an LZ4 block.
    pub const STATE: u8 = 5;
    /// `Index`
    pub const INDEX: u8 = 6;
    /// `End`
    pub const END: u8 = 7;
    /// `ImageHead`, then a piece of one of the guest's files as an LZ4 block.
    pub const IMAGE: u8 = 8;
}

/// Bytes of the payload of END: three u64.
pub const END_LEN: usize = 24;

/// What was recorded, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// `logchannel::LOG_VERSION` of whoever wrote it.
    pub log_version: u16,
    /// The lockstep that wrote it.
    pub lockstep: String,
    /// The machine, as in the handshake of a pair.
    pub machine: PairConfig,
    /// What its devices were made with.
    pub devices: DevicesConfig,
    /// The guest's files, for people: path and BLAKE3. Replaying needs none of them.
    pub files: Vec<(String, [u8; 32])>,
    /// Whether the guest's time was virtual.
    pub virtual_clock: bool,
    /// Virtual time between checkpoints, nanoseconds; 0 for none but the first.
    pub checkpoint_every_ns: u64,
}

impl Header {
    /// The header of a recording of this machine, from its first instruction on.
    pub fn new(config: &VmConfig, checkpoint_every_ns: u64) -> Self {
        let image =
            config.args.kernel.as_ref().map_or("minikv (embedded)".into(), |path| path.display().to_string());
        Self {
            log_version: LOG_VERSION,
            lockstep: env!("CARGO_PKG_VERSION").into(),
            machine: config.pair(),
            devices: config.devices(),
            files: vec![(image, *blake3::hash(&config.image).as_bytes())],
            virtual_clock: config.clock == ClockPolicy::Virtual,
            checkpoint_every_ns,
        }
    }
}

/// Which pages a PAGES frame holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PagesHead {
    /// First page and number of pages of each run, ascending.
    pub runs: Vec<(u32, u32)>,
}

impl PagesHead {
    /// How many pages it names; `None` if they are more than a frame may hold, none at all, out of order or
    /// not all among the first `limit`.
    pub fn pages(&self, limit: usize) -> Option<usize> {
        let (mut total, mut next) = (0usize, 0u64);
        for &(first, count) in &self.runs {
            let end = u64::from(first) + u64::from(count);
            if count == 0 || u64::from(first) < next || end > limit as u64 {
                return None;
            }
            (total, next) = (total + count as usize, end);
        }
        (1..=PAGES_PER_FRAME).contains(&total).then_some(total)
    }
}

/// Most bytes of a guest's file in one IMAGE frame.
pub const IMAGE_PIECE: usize = 8 << 20;

/// Which of the guest's files it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageFile {
    /// The kernel.
    Kernel,
    /// The initial RAM disk.
    Initrd,
}

/// What an IMAGE frame holds: the pieces of a file come in order, all of the kernel first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageHead {
    /// Of which file.
    pub file: ImageFile,
    /// How many bytes, `IMAGE_PIECE` at most.
    pub len: u32,
}

/// What a STATE frame says of its checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateHead {
    /// The last entry before it.
    pub seq: Seq,
    /// Where it is.
    pub at: Position,
    /// Virtual time there.
    pub now_ns: u64,
    /// Whether it stands by itself.
    pub whole: bool,
    /// Length of the encoded machine state.
    pub state_len: u32,
}

/// Where a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameRef {
    /// Offset in the file.
    pub offset: u64,
    /// Its number.
    pub number: u64,
}

/// A batch of entries in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchRef {
    /// Where.
    pub frame: FrameRef,
    /// Its first entry.
    pub first: Seq,
    /// How many.
    pub entries: u32,
    /// Count of its last entry's position.
    pub last_count: u64,
}

/// A checkpoint in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRef {
    /// The last entry before it.
    pub seq: Seq,
    /// Where it is.
    pub at: Position,
    /// Virtual time there.
    pub now_ns: u64,
    /// Whether it stands by itself.
    pub whole: bool,
    /// Its pages.
    pub pages: Vec<FrameRef>,
    /// Its state.
    pub state: FrameRef,
}

/// Everything in the file but its start: lets a reader begin anywhere at once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// Batches, in order.
    pub batches: Vec<BatchRef>,
    /// Checkpoints, in order; the first is before the first entry.
    pub checkpoints: Vec<CheckpointRef>,
    /// The guest's files, in order; none if the guest was never reset.
    pub image: Vec<FrameRef>,
}

impl Index {
    /// The last entry; if there is none, the one before the first.
    pub fn last_seq(&self) -> Seq {
        let before = self.checkpoints.first().map_or(0, |first| first.seq);
        self.batches.last().map_or(before, |batch| batch.first + u64::from(batch.entries) - 1)
    }

    /// Whether numbers and positions ascend as they must, and every reference is inside `file_len`.
    pub fn is_sound(&self, file_len: u64) -> bool {
        let Some(start) = self.checkpoints.first() else { return false };
        let Some(mut next) = start.seq.checked_add(1) else { return false };
        let mut count = start.at.count;
        for batch in &self.batches {
            if batch.first != next || batch.entries == 0 || batch.last_count < count {
                return false;
            }
            let Some(after) = next.checked_add(u64::from(batch.entries)) else { return false };
            (next, count) = (after, batch.last_count);
        }
        let ascending = self
            .checkpoints
            .windows(2)
            .all(|pair| pair[0].seq <= pair[1].seq && pair[0].at.count <= pair[1].at.count);
        let frames = self.checkpoints.iter().flat_map(|c| c.pages.iter().chain([&c.state]));
        let mut frames = frames.chain(self.batches.iter().map(|batch| &batch.frame)).chain(&self.image);
        let last = self.checkpoints.last().is_some_and(|last| last.seq < next);
        start.whole && last && ascending && frames.all(|frame| frame.offset < file_len)
    }
}

/// What can be wrong with a recording.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
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
    /// It cannot be written or read further.
    #[error("cannot {doing} the recording: {source}")]
    Io {
        /// Which of the two.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An entry too large for the format.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// Something of ours cannot be encoded.
    #[error("the recording's {what}: {source}")]
    Encode {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: CodecError,
    },
    /// Not a recording, or not even its beginning is whole.
    #[error("{path} is no recording of lockstep, or its beginning was never written: {why}")]
    NotARecording {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A recording of another version.
    #[error(
        "{path} is a recording of format {found}; this lockstep reads format {RECORDING_VERSION}: replay it \
         with the lockstep that made it"
    )]
    Version {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u16,
    },
    /// A recording of another log.
    #[error(
        "{path} is a recording of log version {found}; this lockstep reads log version {LOG_VERSION}: \
         replay it with the lockstep that made it"
    )]
    LogVersion {
        /// Which file.
        path: PathBuf,
        /// Its log's version.
        found: u16,
    },
    /// Something in it is not what was written.
    #[error("the recording is damaged at offset {offset}, after entry {last}: {source}")]
    Damaged {
        /// Where.
        offset: u64,
        /// The last sound entry before.
        last: Seq,
        /// How.
        #[source]
        source: Damage,
    },
    /// The writing thread is gone.
    #[error("the recording was given up: its file could not be written")]
    GivenUp,
}

/// How a frame is damaged.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// The frame itself.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The batch in it.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// Its content.
    #[error("{what}: {source}")]
    Content {
        /// What it should be.
        what: &'static str,
        /// Why it is not.
        #[source]
        source: CodecError,
    },
    /// An LZ4 block.
    #[error("{0}: a damaged LZ4 block")]
    Lz4(&'static str),
    /// The batch is not the next one.
    #[error("entries from {found} where entry {due} is due")]
    Order {
        /// The number due.
        due: Seq,
        /// The number found.
        found: Seq,
    },
    /// Something that does not fit what is before.
    #[error("{0}")]
    Misplaced(&'static str),
    /// The frame ends after the file.
    #[error("the file ends within a frame")]
    CutOff,
}
