//! The primary's end of the channel, bytes in and bytes out: it knows no socket, thread or clock.
//!
//! ```text
//!  vCPU:  append(entry) ... flush(released) ---> bytes to the backup
//!         is_full()? then wait for acks
//!  acks:  on_bytes(bytes from the backup) ---> acked(), executed()
//! ```
//!
//! There is no timer: `flush` is called when something waits for an ack (after an output), when the guest
//! waits, and when `should_flush` says that a batch is large enough.

use crate::batch::{EntryError, LogStart};
use crate::buffer::{Limits, LogStats, SendBuffer};
use crate::endpoint::{ChannelError, Endpoint};
use crate::entry::{LogEntry, Seq};
use crate::frame::{FrameReader, FrameWriter};
use crate::message::{Ack, DiskReach, Message, MessageError, decode_control, kind};

/// Pending bytes from which on `should_flush` says so.
pub const FLUSH_BYTES: usize = 32 << 10;

/// What a backup's bytes said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FromBackup {
    /// The last ack among them.
    pub ack: Option<Ack>,
    /// The backup ends the pair on purpose, and why.
    pub goodbye: Option<String>,
    /// The last answer to `Sender::ask_disk`.
    pub disk_reach: Option<DiskReach>,
}

/// Reads what a backup sends. Apart from the `Sender`, so that a thread of its own can wait for acks.
#[derive(Debug)]
pub struct AckReader {
    reader: FrameReader,
    last: Ack,
}

impl AckReader {
    /// Takes bytes as they arrived. After an error the connection cannot be used any further.
    pub fn on_bytes(&mut self, bytes: &[u8]) -> Result<FromBackup, ChannelError> {
        self.reader.push(bytes);
        let mut from = FromBackup::default();
        while let Some((kind, payload)) = self.reader.next_payload()? {
            match kind {
                kind::ACK => {
                    let ack: Ack = decode_control(kind, payload)?;
                    ChannelError::check_ack(self.last, ack)?;
                    self.last = ack;
                    from.ack = Some(ack);
                }
                kind::GOODBYE => {
                    if let Message::Goodbye { reason } = Message::decode(kind, payload)? {
                        from.goodbye = Some(reason);
                    }
                }
                kind::DISK_REACH => from.disk_reach = Some(decode_control(kind, payload)?),
                other => {
                    Message::decode(other, payload)?;
                    return Err(ChannelError::unexpected(other, "Ack"));
                }
            }
        }
        Ok(from)
    }
}

/// The primary's end of the channel.
#[derive(Debug)]
pub struct Sender {
    writer: FrameWriter,
    acks: Option<AckReader>,
    buffer: SendBuffer,
    executed: Seq,
    released: Seq,
    /// What of `released` the backup was told.
    told: Seq,
}

impl Sender {
    /// Takes over an endpoint whose handshake is done. The backup has everything up to `start`.
    pub fn new(endpoint: Endpoint, limits: Limits, start: LogStart) -> Self {
        let last = Ack { received: start.seq, executed: start.seq };
        Self {
            writer: endpoint.writer,
            acks: Some(AckReader { reader: endpoint.reader, last }),
            buffer: SendBuffer::new(limits, start),
            executed: start.seq,
            released: start.seq,
            told: start.seq,
        }
    }

    /// Takes one more entry. Panics if it is not the next, or its position lies before the last: both are
    /// the recorder's word. An error means that the entry is too large for the channel; nothing was taken.
    pub fn append(&mut self, entry: &LogEntry) -> Result<(), EntryError> {
        self.buffer.append(entry)
    }

    /// Appends to `out` the frames of everything that was appended since the last flush, with the news that
    /// every output up to entry `released` was released; how many bytes. With no entry appended it writes
    /// nothing.
    ///
    /// Panics if `released` goes back or was not acknowledged (the Output Rule).
    pub fn flush(&mut self, released: Seq, out: &mut Vec<u8>) -> usize {
        let (before, acked) = (self.released, self.acked());
        assert!(before <= released, "released goes back from {before} to {released}");
        assert!(released <= acked, "entry {released} released, {acked} acknowledged: the Output Rule");
        self.released = released;
        let before = out.len();
        if self.buffer.flush(released, &mut self.writer, out) > 0 {
            self.told = released;
        }
        out.len() - before
    }

    /// As `flush`, but with no entry appended it writes a frame that reports `released`, if that is news to
    /// the backup. For a guest that is idle: the backup then needs to keep no outputs.
    pub fn flush_released(&mut self, released: Seq, out: &mut Vec<u8>) -> usize {
        let written = self.flush(released, out);
        if written > 0 || released == self.told {
            return written;
        }
        let before = out.len();
        self.buffer.flush_released(released, &mut self.writer, out);
        self.told = released;
        out.len() - before
    }

    /// Takes bytes from the backup as they arrived, and applies its acks. Panics after `take_acks`.
    pub fn on_bytes(&mut self, bytes: &[u8]) -> Result<FromBackup, ChannelError> {
        let acks = self.acks.as_mut().expect("the ack reader was taken away");
        let from = acks.on_bytes(bytes)?;
        if let Some(ack) = from.ack {
            self.on_ack(ack)?;
        }
        Ok(from)
    }

    /// Takes the part that reads acks away, for a thread of its own; what it reads comes back through
    /// `on_ack`. Panics when called twice.
    pub fn take_acks(&mut self) -> AckReader {
        self.acks.take().expect("the ack reader was taken before")
    }

    /// Applies one ack.
    pub fn on_ack(&mut self, ack: Ack) -> Result<(), ChannelError> {
        ChannelError::check_ack(Ack { received: self.acked(), executed: self.executed }, ack)?;
        let Ack { received, executed } = ack;
        if received > self.buffer.sent() {
            return Err(ChannelError::AckedUnsent { received, sent: self.buffer.sent() });
        }
        self.buffer.ack(received);
        self.executed = executed;
        Ok(())
    }

    /// Appends the message that ends the pair on purpose. Entries not flushed stay unsent.
    pub fn goodbye(&mut self, reason: &str, out: &mut Vec<u8>) -> Result<(), MessageError> {
        Message::Goodbye { reason: reason.to_owned() }.write(&mut self.writer, out)
    }

    /// Appends the question whether the backup reaches the disk server.
    pub fn ask_disk(&mut self, number: u64, out: &mut Vec<u8>) {
        Message::AskDisk { number }.write(&mut self.writer, out).expect("a question is short");
    }

    /// Whether enough waits for a `flush` to be worth its system call.
    pub fn should_flush(&self) -> bool {
        self.buffer.pending_bytes() >= FLUSH_BYTES
    }

    /// Whether the primary must stop its guest until the backup acknowledges more.
    pub fn is_full(&self) -> bool {
        self.buffer.is_full()
    }

    /// The last entry that the backup has.
    pub fn acked(&self) -> Seq {
        self.buffer.acked()
    }

    /// The last entry that the backup executed, as far as it told.
    pub fn executed(&self) -> Seq {
        self.executed
    }

    /// The last entry flushed.
    pub fn sent(&self) -> Seq {
        self.buffer.sent()
    }

    /// The buffer, to look at.
    pub fn buffer(&self) -> &SendBuffer {
        &self.buffer
    }

    /// Counts since the sender was made.
    pub fn stats(&self) -> &LogStats {
        self.buffer.stats()
    }
}
