//! The monitors' network backends: where a guest's frames leave its VMM and come in.
//!
//! Blocking, for dedicated threads: one thread owns the `FrameReader` and waits in `read`, another owns the
//! `FrameWriter`, which never waits long. Both move many frames per system call where the medium allows.

mod stream;
mod tap;

use std::io;

use crate::endpoint::Endpoint;
use crate::stream::Stream;
use crate::wire::{FrameBatch, WireError};

/// What goes wrong with a backend. The connection cannot be used any further.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// It cannot be reached.
    #[error("cannot connect to the network {endpoint}: {source}; is `lockstep lan` running there?")]
    Connect {
        /// Where.
        endpoint: Endpoint,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// The TAP device cannot be opened.
    #[error("cannot open the TAP device {name}: {source}{hint}")]
    Tap {
        /// Its name.
        name: String,
        /// What the host says.
        #[source]
        source: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// There is no such TAP device.
    #[error(
        "there is no TAP device {name}: make it (ip tuntap add {name} mode tap), or let it be made with \
         tap:{name},create"
    )]
    NoTap {
        /// The name.
        name: String,
    },
    /// The other end is gone.
    #[error("the network closed the connection")]
    Closed,
    /// Reading or writing failed.
    #[error("the network connection failed: {0}")]
    Io(#[source] io::Error),
    /// The other end is no switch.
    #[error("not a network: {0}")]
    Wire(#[from] WireError),
}

/// A connection to a network.
#[derive(Debug)]
pub enum Connection {
    /// A port of a `lockstep lan` switch.
    Stream(Stream),
    /// A TAP device of this host.
    Tap(tap::Tap),
}

/// Waits for frames.
#[derive(Debug)]
pub struct FrameReader(ReaderKind);

#[derive(Debug)]
enum ReaderKind {
    Stream(stream::StreamReader),
    Tap(tap::TapReader),
}

/// Sends frames.
#[derive(Debug)]
pub struct FrameWriter {
    kind: WriterKind,
    sent: u64,
    dropped: u64,
}

#[derive(Debug)]
enum WriterKind {
    Stream(stream::StreamWriter),
    Tap(tap::TapWriter),
}

/// Ends a connection from another thread: the reader's `read` returns `BackendError::Closed`.
#[derive(Debug, Clone)]
pub struct Closer(CloserKind);

#[derive(Debug, Clone)]
enum CloserKind {
    Stream(std::sync::Arc<Stream>),
    Tap(tap::TapCloser),
}

impl Connection {
    /// Connects to a switch's port, or attaches to a TAP device.
    pub fn connect(endpoint: &Endpoint) -> Result<Self, BackendError> {
        match endpoint {
            Endpoint::Tap(name) => Ok(Self::Tap(tap::Tap::open(name, false)?)),
            Endpoint::NewTap(name) => Ok(Self::Tap(tap::Tap::open(name, true)?)),
            _ => stream::connect(endpoint)
                .map(Self::Stream)
                .map_err(|source| BackendError::Connect { endpoint: endpoint.clone(), source }),
        }
    }

    /// Its two directions, and what ends them.
    pub fn split(self) -> Result<(FrameReader, FrameWriter, Closer), BackendError> {
        let (reader, kind, closer) = match self {
            Connection::Stream(stream) => {
                let stream = std::sync::Arc::new(stream);
                (
                    ReaderKind::Stream(stream::StreamReader::new(stream.clone())),
                    WriterKind::Stream(stream::StreamWriter::new(stream.clone())),
                    CloserKind::Stream(stream),
                )
            }
            Connection::Tap(tap) => {
                let (reader, writer, closer) = tap.split().map_err(BackendError::Io)?;
                (ReaderKind::Tap(reader), WriterKind::Tap(writer), CloserKind::Tap(closer))
            }
        };
        Ok((FrameReader(reader), FrameWriter { kind, sent: 0, dropped: 0 }, Closer(closer)))
    }
}

impl FrameReader {
    /// Waits for at least one frame and appends all that have arrived, up to the size of a read, to `batch`.
    pub fn read(&mut self, batch: &mut FrameBatch) -> Result<(), BackendError> {
        match &mut self.0 {
            ReaderKind::Stream(reader) => reader.read(batch),
            ReaderKind::Tap(reader) => reader.read(batch),
        }
    }
}

impl FrameWriter {
    /// Sends the frames in order. Frames that the network does not take within a few milliseconds are
    /// dropped, and so are frames of impossible length; both are counted. Returns how many were sent.
    pub fn write(&mut self, frames: &[&[u8]]) -> Result<usize, BackendError> {
        let sent = match &mut self.kind {
            WriterKind::Stream(writer) => writer.write(frames)?,
            WriterKind::Tap(writer) => writer.write(frames)?,
        };
        self.sent += sent as u64;
        self.dropped += (frames.len() - sent) as u64;
        Ok(sent)
    }

    /// Frames sent since the connection was made.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Frames dropped since the connection was made.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

impl Closer {
    /// Ends the connection.
    pub fn close(&self) {
        match &self.0 {
            // An error means that it has ended already.
            CloserKind::Stream(stream) => drop(stream.shutdown()),
            CloserKind::Tap(closer) => closer.close(),
        }
    }
}

/// How long a writer waits for room, in milliseconds, before it drops frames. Once it has dropped it does not
/// wait again until there is room.
const PATIENCE_MS: u16 = 20;
