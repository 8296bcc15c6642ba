//! The way to a debugger: one listening socket, one connection at a time. A thread of its own reads, so that
//! a Ctrl-C arrives while the guest runs; what is written goes out on the thread that runs the guest.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::Sender;
use gdbstub::conn::Connection;

use crate::engine::Kick;

/// Longest that a debugger may leave its answers unread.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time between two kicks of a guest that has not noticed: one may come at an unlucky moment.
const KICK_AGAIN: Duration = Duration::from_millis(2);
const READ_BYTES: usize = 4096;

/// Where a debugger finds us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `host:port`.
    Tcp(String),
    /// `unix:PATH`.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.is_empty() {
                false => Ok(Address::Unix(path.into())),
                true => Err("unix: needs a path, as unix:/run/gdb.sock".into()),
            };
        }
        let port = text.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
        match port.map(str::parse::<u16>) {
            Some(Ok(_)) => Ok(Address::Tcp(text.into())),
            _ => Err(format!("{text:?} is neither HOST:PORT, as 127.0.0.1:1234, nor unix:PATH")),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp(address) => f.write_str(address),
            // As GDB takes it.
            Address::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// What arrives from debuggers.
pub enum Message {
    /// One connected; where to answer it.
    Connected(Wire),
    /// It sent this.
    Bytes(Vec<u8>),
    /// It is gone.
    Closed,
}

/// The writing half of a connection.
pub struct Wire {
    stream: Box<dyn Write + Send>,
    buffer: Vec<u8>,
}

impl Connection for Wire {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.buffer.push(byte);
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let sent = self.stream.write_all(&self.buffer);
        self.buffer.clear();
        sent
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = self.flush();
    }
}

/// What stops or wakes the thread that runs the guest.
#[derive(Clone, Default)]
pub struct Kicks(Arc<Mutex<Vec<Kick>>>);

impl Kicks {
    /// One more way.
    pub fn add(&self, kick: Kick) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(kick);
    }

    fn kick(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|kick| kick());
    }
}

type Streams = (Box<dyn Read + Send>, Box<dyn Write + Send>);

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn accept(&self) -> io::Result<Streams> {
        match self {
            Listener::Tcp(listener) => {
                let stream: TcpStream = listener.accept()?.0;
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok((Box::new(stream.try_clone()?), Box::new(stream)))
            }
            Listener::Unix(listener) => {
                let stream: UnixStream = listener.accept()?.0;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok((Box::new(stream.try_clone()?), Box::new(stream)))
            }
        }
    }
}

/// Listens at `address` from now on; the address as it was bound. Everything that arrives goes to `queue`,
/// and the guest is kicked until it was taken out of there.
pub fn listen(address: &Address, queue: Sender<Message>, kicks: Kicks) -> io::Result<Address> {
    let (listener, bound) = match address {
        Address::Tcp(name) => {
            let listener = TcpListener::bind(name)?;
            let bound = Address::Tcp(listener.local_addr()?.to_string());
            (Listener::Tcp(listener), bound)
        }
        Address::Unix(path) => {
            let (listener, _) = host::unix_socket::bind(path).map_err(io::Error::other)?;
            (Listener::Unix(listener), address.clone())
        }
    };
    std::thread::Builder::new().name("gdb".into()).spawn(move || serve(&listener, &queue, &kicks))?;
    Ok(bound)
}

fn serve(listener: &Listener, queue: &Sender<Message>, kicks: &Kicks) {
    loop {
        let (mut reader, stream) = match listener.accept() {
            Ok(streams) => streams,
            Err(error) => {
                tracing::warn!(%error, "a debugger could not connect");
                std::thread::sleep(KICK_AGAIN);
                continue;
            }
        };
        let wire = Wire { stream, buffer: Vec::new() };
        if !pass(queue, kicks, Message::Connected(wire)) {
            return;
        }
        let mut bytes = [0; READ_BYTES];
        loop {
            let message = match reader.read(&mut bytes) {
                Ok(0) => Message::Closed,
                Ok(len) => Message::Bytes(bytes[..len].to_vec()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => Message::Closed,
            };
            let closed = matches!(message, Message::Closed);
            if !pass(queue, kicks, message) {
                return;
            }
            if closed {
                break;
            }
        }
    }
}

/// Hands a message to the thread that runs the guest. Whether that is still there.
fn pass(queue: &Sender<Message>, kicks: &Kicks, message: Message) -> bool {
    if queue.send(message).is_err() {
        return false;
    }
    while !queue.is_empty() {
        kicks.kick();
        std::thread::sleep(KICK_AGAIN);
    }
    true
}
