//! Heartbeats over a real socket.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::heartbeat::{HEARTBEAT_LEN, Heartbeat};

/// What goes wrong with the heartbeat socket.
#[derive(Debug, thiserror::Error)]
pub enum UdpError {
    /// Cannot hear heartbeats there.
    #[error("cannot hear heartbeats at {address}: choose another address or port")]
    Bind {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A heartbeat could not be sent. The next one may: the caller goes on.
    #[error("cannot send a heartbeat to {to}: {source}")]
    Send {
        /// To whom.
        to: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nothing can be received.
    #[error("cannot receive heartbeats: {source}")]
    Receive {
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The host's monotonic clock, for the time to wait for a datagram only.
#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

/// Sends and receives heartbeats. Sending and receiving may happen on two threads: both take `&self`.
#[derive(Debug)]
pub struct HeartbeatSocket {
    socket: UdpSocket,
    address: SocketAddr,
}

impl HeartbeatSocket {
    /// Opens the socket at `address` (host:port; port 0 takes any).
    pub fn bind(address: &str) -> Result<Self, UdpError> {
        let error = |source| UdpError::Bind { address: address.to_owned(), source };
        let socket = UdpSocket::bind(address).map_err(error)?;
        let address = socket.local_addr().map_err(error)?;
        Ok(Self { socket, address })
    }

    /// Opens the socket at the address `local` of a channel, on any port: heartbeats take the channel's way,
    /// of its family and on its interface.
    pub fn beside(local: SocketAddr) -> Result<Self, UdpError> {
        let mut address = local;
        address.set_port(0);
        let error = |source| UdpError::Bind { address: address.to_string(), source };
        let socket = UdpSocket::bind(address).map_err(error)?;
        let address = socket.local_addr().map_err(error)?;
        Ok(Self { socket, address })
    }

    /// Where it hears; its port goes into `Hello` or `Welcome`.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Sends one heartbeat. Never blocks for long: a datagram that finds no room is lost, as any may be.
    pub fn send(&self, heartbeat: &Heartbeat, to: SocketAddr) -> Result<(), UdpError> {
        match self.socket.send_to(&heartbeat.encode(), to) {
            Ok(_) => Ok(()),
            Err(source) => Err(UdpError::Send { to, source }),
        }
    }

    /// Waits for the next heartbeat, at most `timeout`. Datagrams that are none are passed over.
    pub fn receive(&self, timeout: Duration) -> Result<Option<Heartbeat>, UdpError> {
        let start = now();
        // One more byte than a heartbeat has: a longer datagram must not pass for one.
        let mut buffer = [0; HEARTBEAT_LEN + 1];
        loop {
            let left = timeout.saturating_sub(now().saturating_duration_since(start));
            let wait = left.max(Duration::from_micros(1));
            self.socket.set_read_timeout(Some(wait)).map_err(|source| UdpError::Receive { source })?;
            match self.socket.recv_from(&mut buffer) {
                Ok((len, from)) => match Heartbeat::decode(&buffer[..len]) {
                    Ok(heartbeat) => return Ok(Some(heartbeat)),
                    Err(error) => tracing::debug!(%from, %error, "not a heartbeat"),
                },
                Err(source) => match source.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {}
                    // Nobody listened where an earlier heartbeat went.
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionRefused => {}
                    _ => return Err(UdpError::Receive { source }),
                },
            }
            if left.is_zero() {
                return Ok(None);
            }
        }
    }
}
