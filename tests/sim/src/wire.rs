//! Seam: the two ends of the logging channel, bytes in and bytes out, in the shape of `logchannel`'s
//! `Endpoint`, `Sender` and `Receiver`, which are to take this module's place. Frames and codec are the
//! production ones.

use logchannel::frame::{FrameError, FrameReader, FrameWriter, Protocol};
use logchannel::{Generation, LOG_VERSION, LogEntry, Seq, codec};
use serde::{Deserialize, Serialize};

const CHANNEL: Protocol =
    Protocol { name: "logging channel", magic: *b"LKLC", version: LOG_VERSION, max_payload: 8 << 20 };

const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const ENTRIES: u8 = 4;
const ACK: u8 = 5;
const GOODBYE: u8 = 6;

/// Where a log starts on a connection: the last entry that both ends have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogStart {
    /// Its number; 0 at boot.
    pub seq: Seq,
    /// Count of its position.
    pub count: u64,
}

/// What the backup has; cumulative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ack {
    /// It holds every entry up to this one.
    pub received: Seq,
    /// It executed every entry up to this one.
    pub executed: Seq,
}

/// A message of the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// Primary to backup, first: the generation it holds.
    Hello(Generation),
    /// Backup to primary: the answer.
    Welcome,
}

/// Why the channel cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// Not a frame of this channel, or damaged.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame, but no message.
    #[error(transparent)]
    Codec(#[from] codec::CodecError),
    /// A message that is not due, or says what cannot be.
    #[error("unexpected message of kind {0}")]
    Unexpected(u8),
}

/// One end of a new connection.
#[derive(Debug, Clone)]
pub struct Endpoint {
    writer: FrameWriter,
    reader: FrameReader,
}

impl Default for Endpoint {
    fn default() -> Self {
        Self { writer: FrameWriter::new(CHANNEL), reader: FrameReader::new(CHANNEL) }
    }
}

impl Endpoint {
    /// Appends the bytes of a message to `out`.
    pub fn send(&mut self, message: Message, out: &mut Vec<u8>) {
        match message {
            Message::Hello(generation) => self.writer.write(HELLO, &generation.to_le_bytes(), out),
            Message::Welcome => self.writer.write(WELCOME, &[], out),
        }
    }

    /// Adds bytes as they arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.reader.push(bytes);
    }

    /// The next whole message, if it has arrived.
    pub fn next_message(&mut self) -> Result<Option<Message>, ChannelError> {
        let Some(frame) = self.reader.next_frame()? else { return Ok(None) };
        match (frame.kind, <[u8; 8]>::try_from(frame.payload.as_slice())) {
            (HELLO, Ok(bytes)) => Ok(Some(Message::Hello(u64::from_le_bytes(bytes)))),
            (WELCOME, _) => Ok(Some(Message::Welcome)),
            (kind, _) => Err(ChannelError::Unexpected(kind)),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Batch {
    first: Seq,
    released: Seq,
    entries: Vec<LogEntry>,
}

/// What a backup's bytes said.
#[derive(Debug, Default)]
pub struct FromBackup {
    /// The last ack among them.
    pub ack: Option<Ack>,
    /// The backup left the pair.
    pub goodbye: Option<String>,
}

/// The primary's end.
#[derive(Debug)]
pub struct Sender {
    endpoint: Endpoint,
    pending: Vec<LogEntry>,
    appended: Seq,
    sent: Seq,
    acked: Ack,
    told: Seq,
}

impl Sender {
    /// Takes over an endpoint whose handshake is done.
    pub fn new(endpoint: Endpoint, start: LogStart) -> Self {
        let acked = Ack { received: start.seq, executed: start.seq };
        let (appended, sent, told) = (start.seq, start.seq, start.seq);
        Self { endpoint, pending: Vec::new(), appended, sent, acked, told }
    }

    /// Takes one more entry.
    pub fn append(&mut self, entry: &LogEntry) {
        assert_eq!(entry.seq, self.appended + 1, "log entries are consecutive");
        self.appended = entry.seq;
        self.pending.push(entry.clone());
    }

    /// Writes what was appended since the last flush, with the news what was released.
    pub fn flush(&mut self, released: Seq, out: &mut Vec<u8>) {
        assert!(released <= self.acked.received, "entry {released} released, {} acked", self.acked.received);
        if !self.pending.is_empty() {
            self.write(released, out);
        }
    }

    /// As `flush`, but writes the news also when there is no entry.
    pub fn flush_released(&mut self, released: Seq, out: &mut Vec<u8>) {
        if released > self.told || !self.pending.is_empty() {
            self.write(released, out);
        }
    }

    fn write(&mut self, released: Seq, out: &mut Vec<u8>) {
        let entries = std::mem::take(&mut self.pending);
        let batch = Batch { first: self.sent + 1, released, entries };
        let payload = codec::encode(&batch).expect("entries that fit a frame");
        self.endpoint.writer.write(ENTRIES, &payload, out);
        self.sent = self.appended;
        self.told = released;
    }

    /// Takes bytes from the backup as they arrived.
    pub fn on_bytes(&mut self, bytes: &[u8]) -> Result<FromBackup, ChannelError> {
        self.endpoint.push(bytes);
        let mut from = FromBackup::default();
        while let Some(frame) = self.endpoint.reader.next_frame()? {
            match frame.kind {
                ACK => {
                    let ack: Ack = codec::decode(&frame.payload)?;
                    self.on_ack(ack)?;
                    from.ack = Some(ack);
                }
                GOODBYE => from.goodbye = Some(codec::decode(&frame.payload)?),
                kind => return Err(ChannelError::Unexpected(kind)),
            }
        }
        Ok(from)
    }

    /// Applies one ack.
    pub fn on_ack(&mut self, ack: Ack) -> Result<(), ChannelError> {
        let fits = ack.received <= self.sent && ack.executed <= ack.received;
        if !fits || ack.received < self.acked.received || ack.executed < self.acked.executed {
            return Err(ChannelError::Unexpected(ACK));
        }
        self.acked = ack;
        Ok(())
    }

    /// Appends the message that ends the pair on purpose.
    pub fn goodbye(&mut self, reason: &str, out: &mut Vec<u8>) {
        let payload = codec::encode(&reason).expect("a short text");
        self.endpoint.writer.write(GOODBYE, &payload, out);
    }

    /// The last entry flushed.
    pub fn sent(&self) -> Seq {
        self.sent
    }

    /// The last entry that the backup executed, as far as it told.
    pub fn executed(&self) -> Seq {
        self.acked.executed
    }
}

/// What a primary's bytes said, besides the entries.
#[derive(Debug, Default)]
pub struct FromPrimary {
    /// How many entries came.
    pub entries: usize,
    /// The primary ends the pair on purpose.
    pub goodbye: Option<String>,
}

/// The backup's end.
#[derive(Debug)]
pub struct Receiver {
    endpoint: Endpoint,
    received: Seq,
    released: Seq,
    acked: Ack,
}

impl Receiver {
    /// Takes over an endpoint whose handshake is done.
    pub fn new(endpoint: Endpoint, start: LogStart) -> Self {
        let acked = Ack { received: start.seq, executed: start.seq };
        Self { endpoint, received: start.seq, released: start.seq, acked }
    }

    /// Takes bytes as they arrived, and appends the entries in them to `into`.
    pub fn on_bytes(&mut self, bytes: &[u8], into: &mut Vec<LogEntry>) -> Result<FromPrimary, ChannelError> {
        self.endpoint.push(bytes);
        let before = into.len();
        let mut goodbye = None;
        while let Some(frame) = self.endpoint.reader.next_frame()? {
            match frame.kind {
                ENTRIES => {
                    let batch: Batch = codec::decode(&frame.payload)?;
                    let fits = batch.first == self.received + 1 && batch.released >= self.released;
                    if !fits || batch.released > self.acked.received {
                        return Err(ChannelError::Unexpected(ENTRIES));
                    }
                    self.received += batch.entries.len() as Seq;
                    self.released = batch.released;
                    into.extend(batch.entries);
                }
                GOODBYE => goodbye = Some(codec::decode(&frame.payload)?),
                kind => return Err(ChannelError::Unexpected(kind)),
            }
        }
        Ok(FromPrimary { entries: into.len() - before, goodbye })
    }

    /// Appends an ack of everything received, if it or `executed` is news.
    pub fn ack(&mut self, executed: Seq, out: &mut Vec<u8>) -> bool {
        let ack = Ack { received: self.received, executed };
        if ack == self.acked {
            return false;
        }
        self.acked = ack;
        let payload = codec::encode(&ack).expect("an ack is short");
        self.endpoint.writer.write(ACK, &payload, out);
        true
    }

    /// Appends the message that ends the pair on purpose.
    pub fn goodbye(&mut self, reason: &str, out: &mut Vec<u8>) {
        let payload = codec::encode(&reason).expect("a short text");
        self.endpoint.writer.write(GOODBYE, &payload, out);
    }

    /// The last entry received.
    pub fn received(&self) -> Seq {
        self.received
    }

    /// Every output up to this entry was released by the primary.
    pub fn released(&self) -> Seq {
        self.released
    }
}
