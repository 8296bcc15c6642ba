//! Socket options that both ends set.

use std::io;
use std::net::TcpStream;

use nix::sys::socket::{setsockopt, sockopt};

/// No delay for small messages, and an end to connections whose peer's host is gone: within about 15 s for an
/// idle connection (keepalive), and within 10 s for one with data on its way.
pub(crate) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &5)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &3)?;
    setsockopt(stream, sockopt::TcpKeepCount, &3)?;
    setsockopt(stream, sockopt::TcpUserTimeout, &10_000)?;
    Ok(())
}
