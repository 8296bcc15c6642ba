//! How a pair forms, over real sockets, blocking. No thread is started here.
//!
//! ```text
//!   primary                                            backup
//!   dial(address)  ------------- TCP --------------->  Listener::accept() -> Incoming::receive()
//!   Connection::greet(hello) --- Hello ------------->  Incoming
//!   Welcomed       <------------ Welcome or Refuse --  Incoming::welcome() -> Reserved, or refuse()
//!     preparing()  ------------- Preparing --------->  Reserved::wait_for_begin()
//!     begin()      ------------- Begin ------------->
//!   Connection     <------------ Begun or Refuse ----  Reserved::begun() -> Connection, or refuse()
//! ```
//!
//! The primary holds no generation before it was welcomed: what it must win for the pair it wins between
//! Welcome and Begin, and says Preparing meanwhile, however long that takes. A backup whose primary says
//! nothing for a while is free again.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::address;
use crate::endpoint::ChannelError;
use crate::entry::Generation;
use crate::message::{Begin, Hello, Message, Refusal, Welcome};
use crate::tcp::{Connection, POLL, TcpError, broke, left, now};

/// How long to wait between two attempts to reach a backup.
const RETRY: Duration = Duration::from_millis(50);

/// How long one attempt may take: a host that is down does not answer at all.
const ATTEMPT: Duration = Duration::from_secs(2);

/// Connects to whatever listens at `address` (host:port). Tries again until `deadline` is over while nobody
/// listens there; a text that is no address, and a name that has none, are told at once.
pub fn dial(address: &str, deadline: Duration) -> Result<Connection, TcpError> {
    let start = now();
    let found = address::resolve(address)
        .map_err(|source| TcpError::Address { address: address.to_owned(), source })?;
    let fails = |source| TcpError::Connect { address: address.to_owned(), waited: deadline, source };
    loop {
        let source = match attempt(&found, left(start, deadline).unwrap_or(POLL)) {
            Ok(stream) => return Connection::new(stream, deadline).map_err(fails),
            Err(source) => source,
        };
        match left(start, deadline) {
            Some(left) => std::thread::sleep(left.min(RETRY)),
            None => return Err(fails(source)),
        }
    }
}

/// Connects to the backup at `address`, says hello and waits for its welcome.
pub fn connect(address: &str, hello: &Hello, deadline: Duration) -> Result<(Welcomed, Welcome), TcpError> {
    dial(address, deadline)?.greet(hello, deadline)
}

fn attempt(addresses: &[SocketAddr], left: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(address, left.min(ATTEMPT)) {
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

impl Connection {
    /// Says hello to a backup and waits for its answer, at most `wait`.
    pub fn greet(mut self, hello: &Hello, wait: Duration) -> Result<(Welcomed, Welcome), TcpError> {
        let (start, peer) = (now(), self.peer());
        self.send(&Message::Hello(Box::new(hello.clone())))?;
        match self.receive("answer the greeting", start, wait)? {
            Message::Welcome(welcome) => Ok((Welcomed { connection: self }, welcome)),
            Message::Refuse(refusal) => Err(TcpError::Refused { peer, refusal: refusal.flipped() }),
            other => Err(unexpected(peer, &other, "Welcome or Refuse")),
        }
    }
}

fn unexpected(peer: SocketAddr, found: &Message, due: &'static str) -> TcpError {
    TcpError::Channel { peer, source: ChannelError::unexpected(found.kind(), due) }
}

/// A primary's connection to a backup that welcomed it, and waits for it to begin.
#[derive(Debug)]
pub struct Welcomed {
    connection: Connection,
}

impl Welcomed {
    /// Who welcomed.
    pub fn peer(&self) -> SocketAddr {
        self.connection.peer()
    }

    /// Has the backup wait on: to be said every second or so.
    pub fn preparing(&mut self) -> Result<(), TcpError> {
        self.connection.send(&Message::Preparing)
    }

    /// Begins the pair under `generation`, which the claimant of the Hello holds; waits for the backup's
    /// agreement, at most `wait`.
    pub fn begin(mut self, generation: Generation, wait: Duration) -> Result<Connection, TcpError> {
        let (start, peer) = (now(), self.peer());
        self.connection.send(&Message::Begin(Begin { generation }))?;
        match self.connection.receive("begin the pair", start, wait)? {
            Message::Begun => {
                self.connection.timeouts(None)?;
                Ok(self.connection)
            }
            Message::Refuse(refusal) => Err(TcpError::Refused { peer, refusal: refusal.flipped() }),
            other => Err(unexpected(peer, &other, "Begun or Refuse")),
        }
    }
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

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl Listener {
    /// Listens at `address` (host:port; port 0 takes any).
    pub fn bind(address: &str) -> Result<Self, TcpError> {
        let error = |source| TcpError::Bind { address: address.to_owned(), source };
        let found = address::resolve(address).map_err(error)?;
        let inner = TcpListener::bind(&found[..]).map_err(error)?;
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
        let stream = self.accept_stream(wait)?;
        Incoming::receive(stream, handshake)
    }

    /// Waits for a connection for `wait` (forever if `None`): for `Incoming::receive`, on any thread. An
    /// error other than `NoPrimary` is about the listener.
    pub fn accept_stream(&self, wait: Option<Duration>) -> Result<TcpStream, TcpError> {
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
    /// Waits for the Hello on a new connection, for `handshake`.
    pub fn receive(stream: TcpStream, handshake: Duration) -> Result<Self, TcpError> {
        let start = now();
        // It may be gone already.
        let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
        let gone = |source| broke(nobody, "accepting a primary", source);
        let mut connection = Connection::new(stream, handshake).map_err(gone)?;
        let peer = connection.peer();
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
            other => Err(unexpected(peer, &other, "Hello")),
        }
    }

    /// Who connected.
    pub fn peer(&self) -> SocketAddr {
        self.connection.peer()
    }

    /// This end's address: where heartbeats are to be heard.
    pub fn local_addr(&self) -> Result<SocketAddr, TcpError> {
        self.connection.local_addr()
    }

    /// Accepts the primary; it begins when it is ready.
    pub fn welcome(mut self, welcome: Welcome) -> Result<Reserved, TcpError> {
        self.connection.send(&Message::Welcome(welcome))?;
        Ok(Reserved { connection: self.connection, hello: self.hello })
    }

    /// Tells the primary why not, and ends the connection.
    pub fn refuse(mut self, refusal: Refusal) -> Result<(), TcpError> {
        self.connection.send(&Message::Refuse(refusal))
    }
}

/// A backup's connection to a primary that it welcomed.
#[derive(Debug)]
pub struct Reserved {
    connection: Connection,
    /// What the primary said.
    pub hello: Hello,
}

impl Reserved {
    /// Who was welcomed.
    pub fn peer(&self) -> SocketAddr {
        self.connection.peer()
    }

    /// Waits for the primary's next word: its generation, to be checked, once it begins; `None` while it is
    /// still preparing. An error if it goes away, or says nothing for `silence`.
    pub fn next_word(&mut self, silence: Duration) -> Result<Option<Generation>, TcpError> {
        match self.connection.receive("begin", now(), silence)? {
            Message::Preparing => Ok(None),
            Message::Begin(begin) => Ok(Some(begin.generation)),
            other => Err(unexpected(self.peer(), &other, "Preparing or Begin")),
        }
    }

    /// Waits until the primary begins; its generation, to be checked.
    pub fn wait_for_begin(&mut self, silence: Duration) -> Result<Generation, TcpError> {
        loop {
            if let Some(generation) = self.next_word(silence)? {
                return Ok(generation);
            }
        }
    }

    /// Agrees: from here on silence means death.
    pub fn begun(mut self) -> Result<Connection, TcpError> {
        self.connection.send(&Message::Begun)?;
        self.connection.timeouts(None)?;
        Ok(self.connection)
    }

    /// Tells the primary why not, and ends the connection.
    pub fn refuse(mut self, refusal: Refusal) -> Result<(), TcpError> {
        self.connection.send(&Message::Refuse(refusal))
    }
}
