//! The channel over real sockets, blocking, for threads of their own: on the path of an ack a blocked thread
//! wakes faster than an asynchronous task. No thread is started here.
//!
//! ```text
//!   Connection::split()                              Connection::split()
//!     Endpoint -> Sender                               Endpoint -> Receiver
//!     ChannelWriter: entries ----------------------->  ChannelReader
//!     ChannelReader <------------------------- acks :  ChannelWriter
//! ```
//!
//! `handshake` makes the connections.
//!
//! Writing blocks while the peer does not read: that is the back-pressure. `Closer` ends both directions from
//! another thread, so that a blocked one comes back.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};

use crate::endpoint::{ChannelError, Endpoint};
use crate::frame::HEADER_LEN;
pub use crate::handshake::{Incoming, Listener, Reserved, Welcomed, connect, dial};
use crate::message::{MAX_CONTROL_LEN, Message, MessageError, Refusal};

/// Shortest timeout of a socket, and how often a listener with a deadline looks for a connection.
pub(crate) const POLL: Duration = Duration::from_millis(2);

/// What goes wrong between processes.
#[derive(Debug, thiserror::Error)]
pub enum TcpError {
    /// The backup cannot be reached.
    #[error("no backup answers at {address} (tried for {waited:?}): start it first, or check the address")]
    Connect {
        /// Where.
        address: String,
        /// For how long.
        waited: Duration,
        /// What the last attempt met.
        #[source]
        source: io::Error,
    },
    /// What is given is no address, or a name that has none.
    #[error("cannot reach a backup at {address:?}")]
    Address {
        /// What was given.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Cannot listen there.
    #[error("cannot listen at {address}: choose another address or port")]
    Bind {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody connected in time.
    #[error("no primary connected within {waited:?}")]
    NoPrimary {
        /// How long.
        waited: Duration,
    },
    /// The peer does not finish the handshake.
    #[error("{peer} did not {missing} within {waited:?}: is it a lockstep, and not busy with another pair?")]
    Handshake {
        /// Who.
        peer: SocketAddr,
        /// What it did not do.
        missing: &'static str,
        /// How long it had.
        waited: Duration,
    },
    /// The backup says no.
    #[error("backup at {peer} refused the pair: {refusal}")]
    Refused {
        /// Who.
        peer: SocketAddr,
        /// Why, as seen from here.
        refusal: Refusal,
    },
    /// The peer's bytes are wrong.
    #[error("{peer}: {source}")]
    Channel {
        /// Who.
        peer: SocketAddr,
        /// What is wrong.
        #[source]
        source: ChannelError,
    },
    /// A message of ours cannot be sent.
    #[error("cannot send to {peer}: {source}")]
    Message {
        /// To whom.
        peer: SocketAddr,
        /// Why.
        #[source]
        source: MessageError,
    },
    /// The peer ended the connection, or its process ended.
    #[error("{peer} closed the channel")]
    Closed {
        /// Who.
        peer: SocketAddr,
    },
    /// The connection broke.
    #[error("the channel to {peer} broke while {doing}: {source}")]
    Io {
        /// Who.
        peer: SocketAddr,
        /// What was tried.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The host's monotonic clock, for deadlines of the handshake only.
#[allow(clippy::disallowed_methods)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Time left until `waited` after `start`.
pub(crate) fn left(start: Instant, wait: Duration) -> Option<Duration> {
    wait.checked_sub(now().saturating_duration_since(start)).filter(|left| !left.is_zero())
}

/// A connection between a primary and its backup.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    endpoint: Endpoint,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, timeout: Duration) -> io::Result<Self> {
        let peer = stream.peer_addr()?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout.max(POLL)))?;
        stream.set_write_timeout(Some(timeout.max(POLL)))?;
        Ok(Self { stream, peer, endpoint: Endpoint::new() })
    }

    /// Who is at the other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// This end's address, with the interface of a link-local one.
    pub fn local_addr(&self) -> Result<SocketAddr, TcpError> {
        self.stream.local_addr().map_err(|source| broke(self.peer, "asking for its address", source))
    }

    /// The three parts: the protocol's state for a `Sender` or `Receiver`, and the two directions of the
    /// socket.
    pub fn split(self) -> Result<(Endpoint, ChannelWriter, ChannelReader), TcpError> {
        let Self { stream, peer, endpoint } = self;
        let other = clone(&stream, peer)?;
        Ok((endpoint, ChannelWriter { stream, peer }, ChannelReader { stream: other, peer }))
    }

    pub(crate) fn send(&mut self, message: &Message) -> Result<(), TcpError> {
        let peer = self.peer;
        let mut out = Vec::new();
        self.endpoint.send(message, &mut out).map_err(|source| TcpError::Message { peer, source })?;
        self.stream.write_all(&out).map_err(|source| broke(peer, "greeting", source))
    }

    /// The next message of the handshake, `wait` after `start` at the latest. It is short: a peer may not
    /// have this end buffer more.
    pub(crate) fn receive(
        &mut self,
        missing: &'static str,
        start: Instant,
        wait: Duration,
    ) -> Result<Message, TcpError> {
        let peer = self.peer;
        let late = TcpError::Handshake { peer, missing, waited: wait };
        let (mut buffer, mut pushed) = ([0; 4096], 0);
        loop {
            let next = self.endpoint.next_message();
            if let Some(message) = next.map_err(|source| TcpError::Channel { peer, source })? {
                return Ok(message);
            }
            if pushed > MAX_CONTROL_LEN + HEADER_LEN {
                let (name, limit) = ("handshake", MAX_CONTROL_LEN);
                let source = ChannelError::Message(MessageError::TooLong { name, limit, found: pushed });
                return Err(TcpError::Channel { peer, source });
            }
            let Some(left) = left(start, wait) else { return Err(late) };
            self.timeouts(Some(left))?;
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(TcpError::Closed { peer }),
                Ok(len) => {
                    pushed += len;
                    self.endpoint.push(&buffer[..len]);
                }
                Err(source) if is_timeout(&source) || source.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(broke(peer, "greeting", source)),
            }
        }
    }

    pub(crate) fn timeouts(&self, timeout: Option<Duration>) -> Result<(), TcpError> {
        let set = self.stream.set_read_timeout(timeout).and_then(|()| self.stream.set_write_timeout(timeout));
        set.map_err(|source| broke(self.peer, "setting a timeout", source))
    }
}

/// The direction to the peer.
#[derive(Debug)]
pub struct ChannelWriter {
    stream: TcpStream,
    peer: SocketAddr,
}

impl ChannelWriter {
    /// Writes all bytes; blocks while the kernel's buffer is full, that is, while the peer does not read.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<(), TcpError> {
        self.stream.write_all(bytes).map_err(|source| broke(self.peer, "writing", source))
    }

    /// Writes what the kernel's buffer has room for, without waiting; how many bytes that were.
    pub fn write_now(&mut self, bytes: &[u8]) -> Result<usize, TcpError> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let mut written = 0;
        while written < bytes.len() {
            match send(self.stream.as_raw_fd(), &bytes[written..], flags) {
                Ok(count) => written += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(errno) => return Err(broke(self.peer, "writing", errno.into())),
            }
        }
        Ok(written)
    }

    /// How long a write may find no room before it fails; for ever (`None`) at first.
    pub fn set_patience(&self, patience: Option<Duration>) -> Result<(), TcpError> {
        let set = self.stream.set_write_timeout(patience);
        set.map_err(|source| broke(self.peer, "setting a timeout", source))
    }

    /// A handle that ends the connection from elsewhere.
    pub fn closer(&self) -> Result<Closer, TcpError> {
        Ok(Closer { stream: clone(&self.stream, self.peer)? })
    }
}

/// The direction from the peer.
#[derive(Debug)]
pub struct ChannelReader {
    stream: TcpStream,
    peer: SocketAddr,
}

impl ChannelReader {
    /// Waits for bytes; how many came, at least one. `TcpError::Closed` when the peer ended the connection.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TcpError> {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return Err(TcpError::Closed { peer: self.peer }),
                Ok(len) => return Ok(len),
                Err(source) if source.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(broke(self.peer, "reading", source)),
            }
        }
    }

    /// How long a read may find nothing before it fails; for ever (`None`) at first.
    pub fn set_patience(&self, patience: Option<Duration>) -> Result<(), TcpError> {
        let set = self.stream.set_read_timeout(patience);
        set.map_err(|source| broke(self.peer, "setting a timeout", source))
    }

    /// A handle that ends the connection from elsewhere.
    pub fn closer(&self) -> Result<Closer, TcpError> {
        Ok(Closer { stream: clone(&self.stream, self.peer)? })
    }
}

/// Ends a connection from another thread: a blocked read or write there comes back with an error.
#[derive(Debug)]
pub struct Closer {
    stream: TcpStream,
}

impl Closer {
    /// Ends both directions. Ending an ended connection is fine.
    pub fn close(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn clone(stream: &TcpStream, peer: SocketAddr) -> Result<TcpStream, TcpError> {
    stream.try_clone().map_err(|source| broke(peer, "sharing the socket", source))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

pub(crate) fn broke(peer: SocketAddr, doing: &'static str, source: io::Error) -> TcpError {
    match source.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
            TcpError::Closed { peer }
        }
        _ if is_timeout(&source) => {
            let source = io::Error::new(io::ErrorKind::TimedOut, "nothing moved in the time allowed");
            TcpError::Io { peer, doing, source }
        }
        _ => TcpError::Io { peer, doing, source },
    }
}
