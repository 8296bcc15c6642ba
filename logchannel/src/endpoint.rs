//! One end of a logging channel: messages to bytes, bytes to messages, and everything that can be wrong with
//! a peer. `Sender` and `Receiver` take an endpoint over once the handshake is done.

use crate::batch::BatchError;
use crate::entry::Seq;
use crate::frame::{FrameError, FrameReader, FrameWriter};
use crate::message::{Ack, CHANNEL, Message, MessageError, kind_name};

/// Why the channel cannot go on: what the peer sent. Close the connection.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// Not a frame of this channel, or damaged.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame, but no message.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A message that is not due.
    #[error("the peer sent {found} where {due} is due")]
    Unexpected {
        /// The message.
        found: &'static str,
        /// What would have been right.
        due: &'static str,
    },
    /// Entries are missing, or come again.
    #[error("log entries from {found} where entry {due} is due: entries are {}", gap(found, due))]
    Seq {
        /// The sequence number due.
        due: Seq,
        /// The sequence number found.
        found: Seq,
    },
    /// A batch does not continue where the one before ended.
    #[error("entry {seq} is counted from position {found}, but the entry before is at {due}")]
    Base {
        /// The first entry of the batch.
        seq: Seq,
        /// Where the entry before is.
        due: u64,
        /// Where the batch says it is.
        found: u64,
    },
    /// The primary released outputs that this backup had not acknowledged: the Output Rule was broken.
    #[error("the primary released outputs up to entry {released}, but only {acked} was acknowledged")]
    ReleasedUnacked {
        /// Its watermark.
        released: Seq,
        /// What this end acknowledged.
        acked: Seq,
    },
    /// A watermark went backwards.
    #[error("{what} went back from {from} to {to}")]
    Backwards {
        /// Which one.
        what: &'static str,
        /// Its value before.
        from: Seq,
        /// Its value in the message.
        to: Seq,
    },
    /// The backup acknowledges what was not sent.
    #[error("the backup acknowledged entry {received}, but only {sent} was sent")]
    AckedUnsent {
        /// What it says to have.
        received: Seq,
        /// What was sent.
        sent: Seq,
    },
    /// The backup executed what it did not receive.
    #[error("the backup executed entry {executed}, but received only {received}")]
    ExecutedUnreceived {
        /// What it says to have executed.
        executed: Seq,
        /// What it says to have received.
        received: Seq,
    },
}

fn gap(found: &Seq, due: &Seq) -> &'static str {
    if found > due { "missing" } else { "repeated" }
}

impl From<BatchError> for ChannelError {
    fn from(error: BatchError) -> Self {
        ChannelError::Message(error.into())
    }
}

impl ChannelError {
    /// Whether the peer speaks another version of the channel.
    pub fn is_version(&self) -> bool {
        matches!(self, ChannelError::Frame(FrameError::Version { .. }))
    }

    pub(crate) fn unexpected(kind: u8, due: &'static str) -> Self {
        ChannelError::Unexpected { found: kind_name(kind), due }
    }

    /// Checks that an ack only goes forward from `before`.
    pub(crate) fn check_ack(before: Ack, ack: Ack) -> Result<(), Self> {
        let Ack { received, executed } = ack;
        if executed > received {
            return Err(ChannelError::ExecutedUnreceived { executed, received });
        }
        if received < before.received {
            let (what, from) = ("the backup's received watermark", before.received);
            return Err(ChannelError::Backwards { what, from, to: received });
        }
        if executed < before.executed {
            let (what, from) = ("the backup's executed watermark", before.executed);
            return Err(ChannelError::Backwards { what, from, to: executed });
        }
        Ok(())
    }
}

/// One end of a channel.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub(crate) writer: FrameWriter,
    pub(crate) reader: FrameReader,
}

impl Default for Endpoint {
    fn default() -> Self {
        Self::new()
    }
}

impl Endpoint {
    /// An end of a new connection.
    pub fn new() -> Self {
        Self { writer: FrameWriter::new(CHANNEL), reader: FrameReader::new(CHANNEL) }
    }

    /// Appends the bytes of a message to `out`. An error means that a text in it is too long.
    pub fn send(&mut self, message: &Message, out: &mut Vec<u8>) -> Result<(), MessageError> {
        message.write(&mut self.writer, out)
    }

    /// Adds bytes as they arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.reader.push(bytes);
    }

    /// The next whole message, if it has arrived.
    pub fn next_message(&mut self) -> Result<Option<Message>, ChannelError> {
        match self.reader.next_payload()? {
            None => Ok(None),
            Some((kind, payload)) => Ok(Some(Message::decode(kind, payload)?)),
        }
    }
}
