//! The messages of the logging channel. See the crate's README for the byte layout and who sends what when.

use serde::{Deserialize, Serialize};

use crate::LOG_VERSION;
use crate::batch::{self, BatchEncoder, BatchError, BatchHead, LogStart};
use crate::codec::{self, CodecError};
use crate::entry::{Generation, LogEntry, Seq};
use crate::frame::{FrameWriter, Protocol};
use crate::pair::{Mismatch, PairConfig, Policy};

/// The logging channel, as a protocol of frames.
pub const CHANNEL: Protocol = Protocol {
    name: "logging channel",
    magic: *b"LKLC",
    version: LOG_VERSION,
    max_payload: batch::MAX_PAYLOAD,
};

/// Longest payload of the messages that carry neither entries nor state, in bytes.
pub const MAX_CONTROL_LEN: usize = 64 << 10;

/// Who claims a generation: unique per start of a process.
pub type Claimant = u128;

/// The numbers of the messages in frames.
pub mod kind {
    /// `Message::Hello`
    pub const HELLO: u8 = 1;
    /// `Message::Welcome`
    pub const WELCOME: u8 = 2;
    /// `Message::Refuse`
    pub const REFUSE: u8 = 3;
    /// `Message::Entries`
    pub const ENTRIES: u8 = 4;
    /// `Message::Ack`
    pub const ACK: u8 = 5;
    /// `Message::Goodbye`
    pub const GOODBYE: u8 = 6;
    /// `Message::Preparing`
    pub const PREPARING: u8 = 9;
    /// `Message::Begin`
    pub const BEGIN: u8 = 10;
    /// `Message::Begun`
    pub const BEGUN: u8 = 11;
    /// `Message::AskDisk`
    pub const ASK_DISK: u8 = 7;
    /// `Message::DiskReach`
    pub const DISK_REACH: u8 = 8;
    /// `Message::Pages`
    pub const PAGES: u8 = 16;
    /// `Message::State`
    pub const STATE: u8 = 17;
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Primary to backup, first.
    Hello(Box<Hello>),
    /// Backup to primary: the answer to a Hello it agrees with.
    Welcome(Welcome),
    /// Backup to primary: the answer to a Hello or Begin it does not agree with. The connection ends.
    Refuse(Refusal),
    /// Primary to backup, between Welcome and Begin: it is still there, and not ready yet.
    Preparing,
    /// Primary to backup: it holds its generation, and its machine is about to run.
    Begin(Begin),
    /// Backup to primary: it follows. From here on silence means death.
    Begun,
    /// Primary to backup: log entries.
    Entries(Batch),
    /// Backup to primary: what it has.
    Ack(Ack),
    /// Either way: the sender ends the pair on purpose, and is not to be suspected dead.
    Goodbye {
        /// Why.
        reason: String,
    },
    /// Primary to backup: does it reach the disk server?
    AskDisk {
        /// Counts the questions.
        number: u64,
    },
    /// Backup to primary: the answer.
    DiskReach(DiskReach),
    /// Primary to backup, before the first entry: pages of guest memory.
    Pages(Pages),
    /// Primary to backup: the rest of the machine; entries follow.
    State(State),
}

/// What a primary says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Its machine.
    pub config: PairConfig,
    /// The times and the clock of the pair, which the backup adopts.
    pub policy: Policy,
    /// Its claimant.
    pub claimant: Claimant,
    /// UDP port on which it hears heartbeats.
    pub heartbeat_port: u16,
    /// The machine runs already: its state is transferred before the first entry.
    pub transfer: bool,
    /// The backup is to read the shared disk itself: of most reads the log has only `Event::DiskRead`.
    pub backup_reads: bool,
}

/// How a pair begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// The generation that the claimant of the Hello holds.
    pub generation: Generation,
}

/// Whether a backup reaches the disk server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReach {
    /// The question's number.
    pub number: u64,
    /// The disk server has answered it since it was asked.
    pub reaches: bool,
}

/// Consecutive pages of guest memory, of 4096 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pages {
    /// Number of the first page.
    pub first: u64,
    /// How many.
    pub count: u32,
    /// Their content, one LZ4 block.
    #[serde(with = "codec::bytes")]
    pub lz4: Vec<u8>,
}

/// Everything of a machine but its memory, as it was after entry `seq`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The last entry of the log so far.
    pub seq: Seq,
    /// Count of the machine's position.
    pub count: u64,
    /// What the machine's own codec made.
    #[serde(with = "codec::bytes")]
    pub machine: Vec<u8>,
}

/// What a backup says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Its claimant.
    pub claimant: Claimant,
    /// UDP port on which it hears heartbeats.
    pub heartbeat_port: u16,
}

/// Why a backup does not take a primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The machines differ. As the sender sees it: `ours` is the backup's.
    Mismatch(Mismatch),
    /// Anything else, for people: what and what to do.
    Other(String),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::Mismatch(mismatch) => write!(f, "{mismatch}"),
            Refusal::Other(reason) => f.write_str(reason),
        }
    }
}

impl Refusal {
    /// The refusal as its receiver sees it.
    pub fn flipped(self) -> Self {
        match self {
            Refusal::Mismatch(mismatch) => Refusal::Mismatch(mismatch.flipped()),
            other => other,
        }
    }

    fn printable(self) -> Self {
        match self {
            Refusal::Mismatch(Mismatch { field, ours, theirs }) => {
                Refusal::Mismatch(Mismatch { field, ours: printable(&ours), theirs: printable(&theirs) })
            }
            Refusal::Other(reason) => Refusal::Other(printable(&reason)),
        }
    }
}

/// A peer's text, made fit to be shown: it cannot steer a terminal, forge a line of a log, or fill one.
fn printable(text: &str) -> String {
    const MOST: usize = 4000;
    text.chars().take(MOST).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Consecutive log entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Sequence number of the first entry, or of the next one if there is none.
    pub first: Seq,
    /// The primary has released every output up to this entry.
    pub released: Seq,
    /// Count of the position of the entry before the first.
    pub base: u64,
    /// The entries.
    pub entries: Vec<LogEntry>,
}

/// What the backup has; cumulative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ack {
    /// It holds every entry up to this one.
    pub received: Seq,
    /// It executed every entry up to this one.
    pub executed: Seq,
}

/// Why a frame is no message. The connection cannot be used any further.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// A kind that this version does not know.
    #[error("logging channel message of unknown kind {0}: run the same lockstep on both")]
    UnknownKind(u8),
    /// A control message that is too long.
    #[error("{name} message of {found} bytes, {limit} allowed")]
    TooLong {
        /// The message.
        name: &'static str,
        /// `MAX_CONTROL_LEN`.
        limit: usize,
        /// Its length.
        found: usize,
    },
    /// Its bytes are no such message.
    #[error("{name} message: {source}")]
    Codec {
        /// The message.
        name: &'static str,
        /// Why.
        #[source]
        source: CodecError,
    },
    /// Its bytes are no batch of entries.
    #[error("Entries message: {0}")]
    Batch(#[from] BatchError),
}

/// The name of a kind of message, for people.
pub fn kind_name(kind: u8) -> &'static str {
    match kind {
        kind::HELLO => "Hello",
        kind::WELCOME => "Welcome",
        kind::REFUSE => "Refuse",
        kind::ENTRIES => "Entries",
        kind::ACK => "Ack",
        kind::GOODBYE => "Goodbye",
        kind::PREPARING => "Preparing",
        kind::BEGIN => "Begin",
        kind::BEGUN => "Begun",
        kind::ASK_DISK => "AskDisk",
        kind::DISK_REACH => "DiskReach",
        kind::PAGES => "Pages",
        kind::STATE => "State",
        _ => "unknown",
    }
}

impl Message {
    /// The message's number in frames.
    pub fn kind(&self) -> u8 {
        match self {
            Message::Hello(_) => kind::HELLO,
            Message::Welcome(_) => kind::WELCOME,
            Message::Refuse(_) => kind::REFUSE,
            Message::Preparing => kind::PREPARING,
            Message::Begin(_) => kind::BEGIN,
            Message::Begun => kind::BEGUN,
            Message::Entries(_) => kind::ENTRIES,
            Message::Ack(_) => kind::ACK,
            Message::Goodbye { .. } => kind::GOODBYE,
            Message::AskDisk { .. } => kind::ASK_DISK,
            Message::DiskReach(_) => kind::DISK_REACH,
            Message::Pages(_) => kind::PAGES,
            Message::State(_) => kind::STATE,
        }
    }

    /// Appends the message's frame to `out`. After an error, `out` and `writer` are as before.
    ///
    /// Panics if the entries of a batch are not consecutive, or do not fit one frame: a `Sender` splits.
    pub fn write(&self, writer: &mut FrameWriter, out: &mut Vec<u8>) -> Result<(), MessageError> {
        match self {
            Message::Hello(hello) => write_control(kind::HELLO, hello, writer, out),
            Message::Welcome(welcome) => write_control(kind::WELCOME, welcome, writer, out),
            Message::Refuse(refusal) => write_control(kind::REFUSE, refusal, writer, out),
            Message::Preparing => write_control(kind::PREPARING, &(), writer, out),
            Message::Begin(begin) => write_control(kind::BEGIN, begin, writer, out),
            Message::Begun => write_control(kind::BEGUN, &(), writer, out),
            Message::Ack(ack) => write_control(kind::ACK, ack, writer, out),
            Message::Goodbye { reason } => write_control(kind::GOODBYE, reason, writer, out),
            Message::AskDisk { number } => write_control(kind::ASK_DISK, number, writer, out),
            Message::DiskReach(reach) => write_control(kind::DISK_REACH, reach, writer, out),
            Message::Pages(pages) => write_control(kind::PAGES, pages, writer, out),
            Message::State(state) => write_control(kind::STATE, state, writer, out),
            Message::Entries(batch) => {
                write_batch(batch, writer, out);
                Ok(())
            }
        }
    }

    /// The message in a frame.
    pub fn decode(kind: u8, payload: &[u8]) -> Result<Self, MessageError> {
        match kind {
            kind::HELLO => decode_control(kind, payload).map(Message::Hello),
            kind::WELCOME => decode_control(kind, payload).map(Message::Welcome),
            kind::REFUSE => decode_control(kind, payload).map(Refusal::printable).map(Message::Refuse),
            kind::PREPARING => decode_control(kind, payload).map(|()| Message::Preparing),
            kind::BEGIN => decode_control(kind, payload).map(Message::Begin),
            kind::BEGUN => decode_control(kind, payload).map(|()| Message::Begun),
            kind::ACK => decode_control(kind, payload).map(Message::Ack),
            kind::GOODBYE => decode_control(kind, payload)
                .map(|reason: String| Message::Goodbye { reason: printable(&reason) }),
            kind::ASK_DISK => decode_control(kind, payload).map(|number| Message::AskDisk { number }),
            kind::DISK_REACH => decode_control(kind, payload).map(Message::DiskReach),
            kind::PAGES => decode_control(kind, payload).map(Message::Pages),
            kind::STATE => decode_control(kind, payload).map(Message::State),
            kind::ENTRIES => {
                let mut entries = Vec::new();
                let (BatchHead { first, released, base, .. }, _) = batch::decode(payload, &mut entries)?;
                Ok(Message::Entries(Batch { first, released, base, entries }))
            }
            other => Err(MessageError::UnknownKind(other)),
        }
    }
}

/// Longest payload of a message of this kind.
fn limit(kind: u8) -> usize {
    match kind {
        kind::PAGES | kind::STATE => batch::MAX_PAYLOAD,
        _ => MAX_CONTROL_LEN,
    }
}

fn write_control<T: Serialize>(
    kind: u8,
    value: &T,
    writer: &mut FrameWriter,
    out: &mut Vec<u8>,
) -> Result<(), MessageError> {
    let name = kind_name(kind);
    let payload = codec::encode(value).map_err(|source| MessageError::Codec { name, source })?;
    let limit = limit(kind);
    if payload.len() > limit {
        return Err(MessageError::TooLong { name, limit, found: payload.len() });
    }
    writer.write(kind, &payload, out);
    Ok(())
}

pub(crate) fn decode_control<T: serde::de::DeserializeOwned>(
    kind: u8,
    payload: &[u8],
) -> Result<T, MessageError> {
    let name = kind_name(kind);
    let limit = limit(kind);
    if payload.len() > limit {
        return Err(MessageError::TooLong { name, limit, found: payload.len() });
    }
    codec::decode(payload).map_err(|source| MessageError::Codec { name, source })
}

fn write_batch(batch: &Batch, writer: &mut FrameWriter, out: &mut Vec<u8>) {
    assert!(batch.first > 0 && batch.released < batch.first, "a batch as a primary would send it");
    let mut encoder = BatchEncoder::new(LogStart { seq: batch.first - 1, count: batch.base });
    if batch.entries.is_empty() {
        return encoder.flush_released(kind::ENTRIES, batch.released, writer, out);
    }
    for entry in &batch.entries {
        encoder.append(entry).expect("entries that fit a frame");
    }
    let frames = encoder.flush(kind::ENTRIES, batch.released, writer, out);
    assert_eq!(frames, 1, "a batch that fits a frame");
}
