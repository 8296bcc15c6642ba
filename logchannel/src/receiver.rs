//! The backup's end of the channel, bytes in and bytes out: it knows no socket, thread or clock.
//!
//! ```text
//!  reader:  on_bytes(bytes from the primary) ---> entries, released()
//!           ack(executed) ---> bytes to the primary, at once: acks are for receipt, not for execution
//! ```

use crate::batch::{self, LogStart};
use crate::endpoint::{ChannelError, Endpoint};
use crate::entry::{LogEntry, Seq};
use crate::frame::{FrameReader, FrameWriter};
use crate::message::{Ack, DiskReach, Message, MessageError, decode_control, kind};

/// What a primary's bytes said, besides the entries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FromPrimary {
    /// How many entries came.
    pub entries: usize,
    /// The primary ends the pair on purpose, and why.
    pub goodbye: Option<String>,
    /// It asks whether this backup reaches the disk server: the number of the last such question.
    pub ask_disk: Option<u64>,
}

/// The backup's end of the channel.
#[derive(Debug)]
pub struct Receiver {
    reader: FrameReader,
    writer: FrameWriter,
    last: LogStart,
    acked: Ack,
    released: Seq,
}

impl Receiver {
    /// Takes over an endpoint whose handshake is done. This backup has, and executed, everything up to
    /// `start`.
    pub fn new(endpoint: Endpoint, start: LogStart) -> Self {
        let acked = Ack { received: start.seq, executed: start.seq };
        Self { reader: endpoint.reader, writer: endpoint.writer, last: start, acked, released: start.seq }
    }

    /// Takes bytes as they arrived, and appends the entries in them to `into`.
    ///
    /// After an error the connection cannot be used any further; entries of batches before the bad one are in
    /// `into`, and are as good as any.
    pub fn on_bytes(&mut self, bytes: &[u8], into: &mut Vec<LogEntry>) -> Result<FromPrimary, ChannelError> {
        self.reader.push(bytes);
        let before = into.len();
        let (mut goodbye, mut ask_disk) = (None, None);
        while let Some((kind, payload)) = self.reader.next_payload()? {
            match kind {
                kind::ENTRIES => {
                    let start = into.len();
                    let (head, end) = batch::decode(payload, into)?;
                    if let Err(error) = check_batch(self.last, self.released, self.acked, &head) {
                        into.truncate(start);
                        return Err(error);
                    }
                    self.released = head.released;
                    self.last = end;
                }
                kind::GOODBYE => {
                    if let Message::Goodbye { reason } = Message::decode(kind, payload)? {
                        goodbye = Some(reason);
                    }
                }
                kind::ASK_DISK => ask_disk = Some(decode_control(kind, payload)?),
                other => {
                    Message::decode(other, payload)?;
                    return Err(ChannelError::unexpected(other, "Entries"));
                }
            }
        }
        Ok(FromPrimary { entries: into.len() - before, goodbye, ask_disk })
    }

    /// Appends to `out` an ack of everything received, if it or `executed` is news to the primary; whether
    /// it was.
    ///
    /// Panics if `executed` goes back or passes what was received.
    pub fn ack(&mut self, executed: Seq, out: &mut Vec<u8>) -> bool {
        self.ack_up_to(self.last.seq, executed, out)
    }

    /// As `ack`, but only of the entries up to `received`: the one after it still waits for what belongs to
    /// it. Panics also if `received` goes back or passes what came.
    pub fn ack_up_to(&mut self, received: Seq, executed: Seq, out: &mut Vec<u8>) -> bool {
        let ack = Ack { received, executed };
        assert!(self.acked.received <= received, "received goes back from {}", self.acked.received);
        assert!(received <= self.last.seq, "acks {received}, {} came", self.last.seq);
        assert!(self.acked.executed <= executed, "executed goes back from {}", self.acked.executed);
        assert!(executed <= ack.received, "executed {executed} of {} received", ack.received);
        if ack == self.acked {
            return false;
        }
        Message::Ack(ack).write(&mut self.writer, out).expect("an ack is short");
        self.acked = ack;
        true
    }

    /// Appends the message that ends the pair on purpose.
    pub fn goodbye(&mut self, reason: &str, out: &mut Vec<u8>) -> Result<(), MessageError> {
        Message::Goodbye { reason: reason.to_owned() }.write(&mut self.writer, out)
    }

    /// Appends the answer to a question about the disk server.
    pub fn disk_reach(&mut self, reach: DiskReach, out: &mut Vec<u8>) {
        Message::DiskReach(reach).write(&mut self.writer, out).expect("an answer is short");
    }

    /// The last entry that came.
    pub fn received(&self) -> Seq {
        self.last.seq
    }

    /// The last ack written.
    pub fn acked(&self) -> Ack {
        self.acked
    }

    /// Every output up to this entry was released by the primary: it need not be kept.
    pub fn released(&self) -> Seq {
        self.released
    }
}

fn check_batch(
    last: LogStart,
    released: Seq,
    acked: Ack,
    head: &batch::BatchHead,
) -> Result<(), ChannelError> {
    let due = last.seq + 1;
    if head.first != due {
        return Err(ChannelError::Seq { due, found: head.first });
    }
    if head.base != last.count {
        return Err(ChannelError::Base { seq: due, due: last.count, found: head.base });
    }
    if head.released < released {
        let what = "the primary's released watermark";
        return Err(ChannelError::Backwards { what, from: released, to: head.released });
    }
    if head.released > acked.received {
        return Err(ChannelError::ReleasedUnacked { released: head.released, acked: acked.received });
    }
    Ok(())
}
