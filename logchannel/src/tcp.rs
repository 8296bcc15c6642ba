//! The channel over real sockets, blocking, for threads of their own: on the path of an ack a blocked thread
//! wakes faster than an asynchronous task. No thread is started here.
//!
//! ```text
//!   primary                                         backup
//!   connect(address, hello) -- TCP, Hello -------->  Listener::accept() -> Incoming
//!                           <-- Welcome or Refuse -  Incoming::welcome() or refuse()
//!   Connection::split()                              Connection::split()
//!     Endpoint -> Sender                               Endpoint -> Receiver
//!     ChannelWriter: entries ----------------------->  ChannelReader
//!     ChannelReader <------------------------- acks :  ChannelWriter
//! ```
//!
//! Writing blocks while the peer does not read: that is the back-pressure. `Closer` ends both directions from
//! another thread, so that a blocked one comes back.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};

use crate::endpoint::{ChannelError, Endpoint};
use crate::message::{Hello, Message, MessageError, Refusal, Welcome};

/// How long to wait between two attempts to reach a backup.
const RETRY: Duration = Duration::from_millis(50);

/// How long one attempt may take: a host that is down does not answer at all.
const ATTEMPT: Duration = Duration::from_secs(2);

/// How often a listener with a deadline looks for a connection.
const POLL: Duration = Duration::from_millis(2);

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
fn now() -> Instant {
    Instant::now()
}

/// Time left until `waited` after `start`.
fn left(start: Instant, wait: Duration) -> Option<Duration> {
    wait.checked_sub(now().saturating_duration_since(start)).filter(|left| !left.is_zero())
}

/// Connects to the backup at `address` (host:port), says hello and waits for its welcome. Tries again until
/// `deadline` is over while nobody listens there; a refusal is final.
pub fn connect(address: &str, hello: &Hello, deadline: Duration) -> Result<(Connection, Welcome), TcpError> {
    let start = now();
    let stream = loop {
        let source = match attempt(address, left(start, deadline).unwrap_or(POLL)) {
            Ok(stream) => break stream,
            Err(source) => source,
        };
        match left(start, deadline) {
            Some(left) => std::thread::sleep(left.min(RETRY)),
            None => return Err(TcpError::Connect { address: address.to_owned(), waited: deadline, source }),
        }
    };
    let mut connection = Connection::new(stream, deadline).map_err(|source| TcpError::Connect {
        address: address.to_owned(),
        waited: deadline,
        source,
    })?;
    connection.send(&Message::Hello(Box::new(hello.clone())))?;
    let peer = connection.peer;
    match connection.receive("answer the greeting", start, deadline)? {
        Message::Welcome(welcome) => {
            connection.timeouts(None)?;
            Ok((connection, welcome))
        }
        Message::Refuse(refusal) => Err(TcpError::Refused { peer, refusal: refusal.flipped() }),
        other => Err(TcpError::Channel {
            peer,
            source: ChannelError::unexpected(other.kind(), "Welcome or Refuse"),
        }),
    }
}

fn attempt(address: &str, left: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left.min(ATTEMPT)) {
            // TCP connects a port of this host that nobody listens on with itself, if the two ends' ports
            // meet.
            Ok(stream) if stream.local_addr()? == stream.peer_addr()? => {
                last = io::Error::new(io::ErrorKind::ConnectionRefused, "nobody listens there");
            }
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Where a backup waits for its primary.
#[derive(Debug)]
pub struct Listener {
    inner: TcpListener,
    address: SocketAddr,
}

/// A connection whose primary said hello and waits for the answer.
#[derive(Debug)]
pub struct Incoming {
    connection: Connection,
    /// What it said.
    pub hello: Hello,
}

impl Listener {
    /// Listens at `address` (host:port; port 0 takes any).
    pub fn bind(address: &str) -> Result<Self, TcpError> {
        let error = |source| TcpError::Bind { address: address.to_owned(), source };
        let inner = TcpListener::bind(address).map_err(error)?;
        let address = inner.local_addr().map_err(error)?;
        Ok(Self { inner, address })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Waits for a connection for `wait` (forever if `None`), then for its Hello for `handshake`. An error
    /// other than `NoPrimary` is about one connection: the caller may go on accepting.
    pub fn accept(&self, wait: Option<Duration>, handshake: Duration) -> Result<Incoming, TcpError> {
        let stream = self.wait(wait)?;
        let start = now();
        // It may be gone already.
        let gone = |source| broke(self.address, "accepting a primary", source);
        let mut connection = Connection::new(stream, handshake).map_err(gone)?;
        let peer = connection.peer;
        let message = match connection.receive("say hello", start, handshake) {
            Err(error) => {
                // A primary of another version sees ours in any frame of ours, and can tell its user.
                if matches!(&error, TcpError::Channel { source, .. } if source.is_version()) {
                    let _ = connection.send(&Message::Refuse(Refusal::Other(error.to_string())));
                }
                return Err(error);
            }
            Ok(message) => message,
        };
        match message {
            Message::Hello(hello) => Ok(Incoming { connection, hello: *hello }),
            other => Err(TcpError::Channel { peer, source: ChannelError::unexpected(other.kind(), "Hello") }),
        }
    }

    fn wait(&self, wait: Option<Duration>) -> Result<TcpStream, TcpError> {
        let start = now();
        let error = |source| TcpError::Io { peer: self.address, doing: "waiting for a primary", source };
        self.inner.set_nonblocking(wait.is_some()).map_err(error)?;
        loop {
            match self.inner.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).map_err(error)?;
                    return Ok(stream);
                }
                Err(source) if source.kind() == io::ErrorKind::WouldBlock => {}
                Err(source) if source.kind() == io::ErrorKind::Interrupted => {}
                Err(source) if source.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(source) => return Err(error(source)),
            }
            if let Some(waited) = wait {
                let left = left(start, waited).ok_or(TcpError::NoPrimary { waited })?;
                std::thread::sleep(left.min(POLL));
            }
        }
    }
}

impl Incoming {
    /// Who connected.
    pub fn peer(&self) -> SocketAddr {
        self.connection.peer
    }

    /// Accepts the primary.
    pub fn welcome(mut self, welcome: Welcome) -> Result<Connection, TcpError> {
        self.connection.send(&Message::Welcome(welcome))?;
        self.connection.timeouts(None)?;
        Ok(self.connection)
    }

    /// Tells the primary why not, and ends the connection.
    pub fn refuse(mut self, refusal: Refusal) -> Result<(), TcpError> {
        self.connection.send(&Message::Refuse(refusal))
    }
}

/// A connection between a primary and its backup.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    endpoint: Endpoint,
}

impl Connection {
    fn new(stream: TcpStream, timeout: Duration) -> io::Result<Self> {
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

    /// The three parts: the protocol's state for a `Sender` or `Receiver`, and the two directions of the
    /// socket.
    pub fn split(self) -> Result<(Endpoint, ChannelWriter, ChannelReader), TcpError> {
        let Self { stream, peer, endpoint } = self;
        let other = clone(&stream, peer)?;
        Ok((endpoint, ChannelWriter { stream, peer }, ChannelReader { stream: other, peer }))
    }

    fn send(&mut self, message: &Message) -> Result<(), TcpError> {
        let peer = self.peer;
        let mut out = Vec::new();
        self.endpoint.send(message, &mut out).map_err(|source| TcpError::Message { peer, source })?;
        self.stream.write_all(&out).map_err(|source| broke(peer, "greeting", source))
    }

    fn receive(
        &mut self,
        missing: &'static str,
        start: Instant,
        wait: Duration,
    ) -> Result<Message, TcpError> {
        let peer = self.peer;
        let late = TcpError::Handshake { peer, missing, waited: wait };
        let mut buffer = [0; 4096];
        loop {
            let next = self.endpoint.next_message();
            if let Some(message) = next.map_err(|source| TcpError::Channel { peer, source })? {
                return Ok(message);
            }
            let Some(left) = left(start, wait) else { return Err(late) };
            self.timeouts(Some(left))?;
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(TcpError::Closed { peer }),
                Ok(len) => self.endpoint.push(&buffer[..len]),
                Err(source) if is_timeout(&source) || source.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(broke(peer, "greeting", source)),
            }
        }
    }

    fn timeouts(&self, timeout: Option<Duration>) -> Result<(), TcpError> {
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

fn broke(peer: SocketAddr, doing: &'static str, source: io::Error) -> TcpError {
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
