//! A byte stream over TCP or a Unix socket, as the switch and its clients use it.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use host::unix_socket::{self, SocketFile};
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};

use crate::endpoint::Endpoint;

/// A connected stream socket.
#[derive(Debug)]
pub enum Stream {
    /// Over TCP, without Nagle's algorithm.
    Tcp(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

/// Bytes that the kernel is asked to hold for a Unix stream: its default is small for a burst of frames.
const UNIX_BUFFER_LEN: usize = 1 << 20;
/// How long a peer that acknowledges nothing is believed to be alive, in milliseconds.
const TCP_USER_TIMEOUT_MS: u32 = 30_000;

impl Stream {
    /// Takes over an accepted or connected TCP stream.
    pub fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        setsockopt(&stream, sockopt::KeepAlive, &true)?;
        setsockopt(&stream, sockopt::TcpUserTimeout, &TCP_USER_TIMEOUT_MS)?;
        Ok(Self::Tcp(stream))
    }

    /// Takes over an accepted or connected Unix stream.
    pub fn unix(stream: UnixStream) -> io::Result<Self> {
        setsockopt(&stream, sockopt::SndBuf, &UNIX_BUFFER_LEN)?;
        Ok(Self::Unix(stream))
    }

    /// Closes it so that the peer gets a reset, where there is such a thing.
    pub(crate) fn reset(self) {
        if let Stream::Tcp(stream) = &self {
            reset_on_close(stream);
        }
    }

    /// Reads what is there without waiting. `Ok(0)`: the peer will send no more.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?)
    }

    /// Reads what is there, waits until there is something.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match recv(self.as_raw_fd(), buffer, MsgFlags::empty()) {
                Err(nix::errno::Errno::EINTR) => {}
                result => return Ok(result?),
            }
        }
    }

    /// Writes what there is room for, without waiting.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?)
    }

    /// Ends both directions: whoever waits in `read` returns.
    pub fn shutdown(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Both),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// Makes the closing of a TCP socket a reset: its peer learns at once that nothing comes of the connection.
pub(crate) fn reset_on_close(socket: &impl AsFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    if let Err(error) = setsockopt(socket, sockopt::Linger, &linger) {
        tracing::debug!(%error, "cannot make the close a reset");
    }
}

/// Whether the error says that this process or this host has no descriptor left.
pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Whether the error only says "not now".
pub(crate) fn is_not_now(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// A listening stream socket, non-blocking; it removes its Unix path when dropped.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

impl Listener {
    /// Listens. Returns the listener and the endpoint with the port it got.
    pub(crate) fn bind(endpoint: &Endpoint) -> io::Result<(Self, Endpoint)> {
        match endpoint {
            Endpoint::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                let actual = listener.local_addr()?;
                Ok((Self::Tcp(listener), Endpoint::Tcp(actual)))
            }
            Endpoint::Unix(path) => {
                let (listener, file) = unix_socket::bind(path).map_err(io::Error::other)?;
                listener.set_nonblocking(true)?;
                Ok((Self::Unix(listener, file), endpoint.clone()))
            }
            Endpoint::Tap(_) | Endpoint::NewTap(_) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a switch cannot listen on a TAP device: give tcp:ADDRESS:PORT or unix:PATH",
            )),
        }
    }

    /// The next connection and its peer's name.
    pub(crate) fn accept(&self) -> io::Result<(Stream, String)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                Ok((Stream::tcp(stream)?, format!("tcp:{peer}")))
            }
            Listener::Unix(listener, file) => {
                let (stream, _) = listener.accept()?;
                Ok((Stream::unix(stream)?, format!("unix:{}", file.path().display())))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Tcp(listener) => listener.as_fd(),
            Listener::Unix(listener, _) => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, file) = self {
            file.remove();
        }
    }
}
