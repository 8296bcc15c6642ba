//! A switch's port over a stream socket.

use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, sendmsg};

use super::{BackendError, PATIENCE_MS};
use crate::endpoint::Endpoint;
use crate::stream::Stream;
use crate::wire::{FrameBatch, FrameDecoder, PREFIX_LEN, is_frame_len};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Frames sent by one system call: two slices each, 1024 are allowed.
const FRAMES_PER_CALL: usize = 256;

/// Connects to a switch.
pub(super) fn connect(endpoint: &Endpoint) -> io::Result<Stream> {
    match endpoint {
        Endpoint::Tcp(address) => Stream::tcp(TcpStream::connect_timeout(address, CONNECT_TIMEOUT)?),
        Endpoint::Unix(path) => Stream::unix(UnixStream::connect(path)?),
        Endpoint::Tap(_) | Endpoint::NewTap(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}

#[derive(Debug)]
pub(super) struct StreamReader {
    stream: Arc<Stream>,
    decoder: FrameDecoder,
}

impl StreamReader {
    pub(super) fn new(stream: Arc<Stream>) -> Self {
        Self { stream, decoder: FrameDecoder::new() }
    }

    pub(super) fn read(&mut self, batch: &mut FrameBatch) -> Result<(), BackendError> {
        let before = batch.len();
        loop {
            while let Some(frame) = self.decoder.next_frame()? {
                batch.push(frame);
            }
            if batch.len() > before {
                return Ok(());
            }
            match self.stream.read(self.decoder.space()) {
                Ok(0) => return Err(BackendError::Closed),
                Ok(count) => self.decoder.filled(count),
                Err(error) => return Err(BackendError::Io(error)),
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct StreamWriter {
    stream: Arc<Stream>,
    /// The rest of a frame whose beginning was sent: it must go first, or the stream loses its framing.
    rest: Vec<u8>,
    /// The last write found no room.
    full: bool,
}

impl StreamWriter {
    pub(super) fn new(stream: Arc<Stream>) -> Self {
        Self { stream, rest: Vec::new(), full: false }
    }

    /// How many frames were sent, or begun and kept: the beginning of `frames` without those of impossible
    /// length.
    pub(super) fn write(&mut self, frames: &[&[u8]]) -> Result<usize, BackendError> {
        let possible: Vec<&[u8]> = frames.iter().copied().filter(|f| is_frame_len(f.len())).collect();
        let mut sent = 0;
        while sent < possible.len() || !self.rest.is_empty() {
            let chunk = &possible[sent..possible.len().min(sent + FRAMES_PER_CALL)];
            match self.write_once(chunk) {
                Ok(count) => {
                    self.full = false;
                    sent += count;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if self.full || !self.wait()? => {
                    self.full = true;
                    break;
                }
                Err(Errno::EAGAIN) => {}
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(BackendError::Closed),
                Err(errno) => return Err(BackendError::Io(errno.into())),
            }
        }
        Ok(sent)
    }

    /// One system call: the rest, then as many of `frames` as there is room for. A frame that is sent in part
    /// counts as sent, its rest is kept.
    #[allow(clippy::cast_possible_truncation, reason = "a frame is at most 1518 bytes")]
    fn write_once(&mut self, frames: &[&[u8]]) -> Result<usize, Errno> {
        let prefixes: Vec<[u8; PREFIX_LEN]> = frames.iter().map(|f| (f.len() as u32).to_be_bytes()).collect();
        let mut slices = Vec::with_capacity(1 + 2 * frames.len());
        slices.push(IoSlice::new(&self.rest));
        for (prefix, frame) in prefixes.iter().zip(frames) {
            slices.extend([IoSlice::new(prefix), IoSlice::new(frame)]);
        }
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let mut written = sendmsg::<()>(self.stream.as_raw_fd(), &slices, &[], flags, None)?;
        if written < self.rest.len() {
            self.rest.drain(..written);
            return Ok(0);
        }
        written -= self.rest.len();
        self.rest.clear();
        for (index, (prefix, frame)) in prefixes.iter().zip(frames).enumerate() {
            if written < PREFIX_LEN + frame.len() {
                if written == 0 {
                    return Ok(index);
                }
                self.rest.extend_from_slice(&prefix[written.min(PREFIX_LEN)..]);
                self.rest.extend_from_slice(&frame[written.saturating_sub(PREFIX_LEN)..]);
                return Ok(index + 1);
            }
            written -= PREFIX_LEN + frame.len();
        }
        Ok(frames.len())
    }

    /// Waits a little for room; whether there is some.
    fn wait(&self) -> Result<bool, BackendError> {
        let mut set = [PollFd::new(self.stream.as_fd(), PollFlags::POLLOUT)];
        match poll(&mut set, PollTimeout::from(PATIENCE_MS)) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(true),
            Err(errno) => Err(BackendError::Io(errno.into())),
        }
    }
}
