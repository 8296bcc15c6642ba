//! One forwarded connection: a host client's socket joined to a smoltcp socket.
//!
//! ```text
//!  host socket ──read──▶ smoltcp send buffer ──▶ guest      read only while the send buffer has room
//!  host socket ◀─write── smoltcp receive buffer ◀── guest   full, it closes the guest's window
//!  EOF ⇔ FIN, RST ⇔ RST, each direction by itself
//! ```

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddrV4, TcpStream};

use nix::sys::epoll::EpollFlags;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, State};
use smoltcp::time::Duration;

use crate::stream::{is_not_now, reset_on_close};

/// Bytes of each smoltcp buffer: the largest window without scaling.
pub(super) const BUFFER_LEN: usize = 65535;
/// A host client that has ended its direction keeps the connection as long as the guest answers.
const CLOSING_KEEP_ALIVE: Duration = Duration::from_secs(10);
const CLOSING_TIMEOUT: Duration = Duration::from_secs(60);

/// What became of a connection after `Connection::pump`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It goes on.
    Open,
    /// Both directions ended in order.
    Finished,
    /// One side reset it.
    Reset,
    /// The guest refused it or did not answer.
    Refused,
}

/// Bytes moved by one `Connection::pump`.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Moved {
    pub(super) to_guest: usize,
    pub(super) to_host: usize,
    /// smoltcp has something to send because of it.
    pub(super) poll: bool,
}

/// A host client's connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) host: TcpStream,
    pub(super) handle: SocketHandle,
    pub(super) port: u16,
    pub(super) target: SocketAddrV4,
    /// smoltcp's socket never left SYN-SENT.
    pub(super) connecting: bool,
    /// The host client ended its direction.
    pub(super) host_ended: bool,
    /// The guest ended its direction.
    guest_fin: bool,
    /// The host client has all that the guest sent, and was told that no more comes.
    guest_ended: bool,
    /// The host socket may hold bytes.
    readable: bool,
    /// Both directions of the host socket have ended: what it holds is all there will be.
    hung_up: bool,
    /// The host socket had no room.
    blocked: bool,
    /// The last bytes of the guest, when smoltcp's socket will not keep them.
    tail: Vec<u8>,
    /// What epoll watches; `None` when the host socket is not in the set any more.
    pub(super) interest: Option<EpollFlags>,
    /// On the gateway's list of connections to serve.
    pub(super) dirty: bool,
}

impl Connection {
    /// A connection whose smoltcp socket was just told to connect.
    pub(super) fn new(host: TcpStream, handle: SocketHandle, port: u16, target: SocketAddrV4) -> Self {
        Self {
            host,
            handle,
            port,
            target,
            connecting: true,
            host_ended: false,
            guest_fin: false,
            guest_ended: false,
            readable: false,
            hung_up: false,
            blocked: false,
            tail: Vec::new(),
            interest: None,
            dirty: false,
        }
    }

    /// The host socket reported something; an error ends the connection by a reset.
    pub(super) fn host_event(&mut self, events: EpollFlags) -> io::Result<()> {
        if events.contains(EpollFlags::EPOLLERR) {
            return Err(self.host.take_error()?.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()));
        }
        if events.contains(EpollFlags::EPOLLHUP) {
            if !self.guest_ended {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            self.hung_up = true;
        }
        self.readable |= events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP);
        self.blocked &= !events.contains(EpollFlags::EPOLLOUT);
        Ok(())
    }

    /// Moves what can be moved, both ways.
    pub(super) fn pump(&mut self, socket: &mut Socket<'_>, moved: &mut Moved) -> Outcome {
        if self.connecting {
            match socket.state() {
                State::SynSent | State::SynReceived => return Outcome::Open,
                State::Closed => return Outcome::Refused,
                _ => {
                    self.connecting = false;
                    socket.set_timeout(None);
                }
            }
        }
        if self.pump_to_host(socket, moved).is_err() || self.pump_to_guest(socket, moved).is_err() {
            return Outcome::Reset;
        }
        match socket.state() {
            State::Closed if !(self.guest_fin && self.host_ended) => Outcome::Reset,
            State::Closed | State::TimeWait if self.guest_ended => Outcome::Finished,
            _ => Outcome::Open,
        }
    }

    fn pump_to_host(&mut self, socket: &mut Socket<'_>, moved: &mut Moved) -> io::Result<()> {
        let before = moved.to_host;
        self.write_tail(moved)?;
        while !self.blocked && socket.can_recv() {
            let host = &mut self.host;
            let result = socket.recv(|bytes| match host.write(bytes) {
                Ok(count) => (count, Ok(count)),
                Err(error) => (0, Err(error)),
            });
            match result.map_err(io::Error::other)? {
                Ok(count) => moved.to_host += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_not_now(&error) => self.blocked = true,
                Err(error) => return Err(error),
            }
        }
        // Enough was taken out of the receive buffer that the guest should hear of the window.
        moved.poll |= moved.to_host - before >= BUFFER_LEN / 4;
        let state = socket.state();
        self.guest_fin |=
            matches!(state, State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
        if self.guest_fin && matches!(state, State::TimeWait | State::Closed) {
            self.keep_tail(socket)?;
        }
        if self.guest_fin && !self.guest_ended && !socket.can_recv() && self.tail.is_empty() {
            self.guest_ended = true;
            self.host.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }

    /// smoltcp forgets a socket's unread bytes when TIME-WAIT is over, however slowly the host client reads.
    fn keep_tail(&mut self, socket: &mut Socket<'_>) -> io::Result<()> {
        while socket.can_recv() {
            let tail = &mut self.tail;
            let taken = socket.recv(|bytes| {
                tail.extend_from_slice(bytes);
                (bytes.len(), ())
            });
            taken.map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn write_tail(&mut self, moved: &mut Moved) -> io::Result<()> {
        while !self.blocked && !self.tail.is_empty() {
            match self.host.write(&self.tail) {
                Ok(count) => {
                    moved.to_host += count;
                    self.tail.drain(..count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_not_now(&error) => self.blocked = true,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn pump_to_guest(&mut self, socket: &mut Socket<'_>, moved: &mut Moved) -> io::Result<()> {
        while self.readable && !self.host_ended && socket.can_send() {
            let host = &mut self.host;
            let result = socket.send(|space| match host.read(space) {
                Ok(count) => (count, Ok((count, count == space.len()))),
                Err(error) => (0, Err(error)),
            });
            match result.map_err(io::Error::other)? {
                Ok((0, _)) => {
                    self.host_ended = true;
                    socket.set_keep_alive(Some(CLOSING_KEEP_ALIVE));
                    socket.set_timeout(Some(CLOSING_TIMEOUT));
                    socket.close();
                    moved.poll = true;
                }
                Ok((count, filled)) => {
                    moved.to_guest += count;
                    moved.poll = true;
                    // A short read took all there was: epoll tells when there is more.
                    self.readable = filled || self.hung_up;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_not_now(&error) => self.readable = false,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What epoll should watch now.
    pub(super) fn wanted(&self, socket: &Socket<'_>) -> Option<EpollFlags> {
        if self.hung_up || (self.host_ended && self.guest_ended) {
            return None;
        }
        let mut wanted = EpollFlags::empty();
        wanted.set(EpollFlags::EPOLLIN, !self.connecting && !self.host_ended && socket.can_send());
        wanted.set(EpollFlags::EPOLLOUT, self.blocked);
        Some(wanted)
    }

    /// Makes the closing of the host socket a reset.
    pub(super) fn reset_host(&self) {
        reset_on_close(&self.host);
    }
}
