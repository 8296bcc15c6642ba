//! A port of the switch: one connected peer, with a bounded queue of bytes that it has not read yet.

use std::io;

use crate::stream::{Stream, is_not_now};
use crate::wire::{FrameDecoder, PREFIX_LEN};

/// A connected peer.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) stream: Stream,
    pub(crate) peer: String,
    pub(crate) decoder: FrameDecoder,
    queue: Vec<u8>,
    /// How much of `queue` is written already.
    written: usize,
    limit: usize,
    /// Whether the reactor waits for room to write.
    pub(crate) waiting: bool,
    /// Whether the port is on the reactor's list of ports to flush.
    pub(crate) dirty: bool,
    pub(crate) frames_in: u64,
    pub(crate) bytes_in: u64,
    pub(crate) frames_out: u64,
    pub(crate) bytes_out: u64,
    pub(crate) dropped: u64,
}

/// Bytes of queue that are kept allocated while it is empty.
const IDLE_QUEUE_LEN: usize = 256 << 10;

impl Port {
    /// A port whose queue holds at most `limit` bytes.
    pub(crate) fn new(stream: Stream, peer: String, limit: usize) -> Self {
        Self {
            stream,
            peer,
            decoder: FrameDecoder::new(),
            queue: Vec::new(),
            written: 0,
            limit,
            waiting: false,
            dirty: false,
            frames_in: 0,
            bytes_in: 0,
            frames_out: 0,
            bytes_out: 0,
            dropped: 0,
        }
    }

    /// Bytes that wait for the peer.
    pub(crate) fn queued(&self) -> usize {
        self.queue.len() - self.written
    }

    /// Queues a frame; drops it when the queue is full.
    #[allow(clippy::cast_possible_truncation, reason = "a frame is at most 1518 bytes")]
    pub(crate) fn send(&mut self, frame: &[u8]) {
        if self.queued() + PREFIX_LEN + frame.len() > self.limit {
            self.dropped += 1;
            return;
        }
        self.queue.extend_from_slice(&(frame.len() as u32).to_be_bytes());
        self.queue.extend_from_slice(frame);
        self.frames_out += 1;
        self.bytes_out += frame.len() as u64;
    }

    /// Writes what the kernel takes. An error means that the peer is gone.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while self.queued() > 0 {
            match self.stream.try_write(&self.queue[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if is_not_now(&error) => break,
                Err(error) => return Err(error),
            }
        }
        if self.queued() == 0 {
            self.queue.clear();
            self.queue.shrink_to(IDLE_QUEUE_LEN);
            self.written = 0;
        } else if self.written > self.limit / 2 {
            self.queue.drain(..self.written);
            self.written = 0;
        }
        Ok(())
    }
}
