//! Something between a live copy and its new backup: passes a number of bytes on, then does a thing to one of
//! them, and goes on passing or keeps everything from then on.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, channel};

use nix::sys::socket::{setsockopt, sockopt};

/// What happens in the middle.
pub type Act = Box<dyn FnOnce() + Send>;

/// Bytes that may wait in a socket of the proxy, so that a peer soon notices when nothing is passed on.
const SOCKET_BYTES: usize = 64 << 10;

/// A proxy for one connection.
pub struct Proxy {
    address: SocketAddr,
    acted: Receiver<()>,
    /// Dropped to pass on what was kept.
    hold: Option<Sender<()>>,
}

impl Proxy {
    /// A proxy to `target` that calls `act` once it has passed on `after` bytes. If it is to `hold`, it then
    /// reads no more until it is dropped.
    pub fn start(target: &str, after: u64, hold: bool, act: Act) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        // Connections inherit it.
        setsockopt(&listener.as_fd(), sockopt::RcvBuf, &SOCKET_BYTES)?;
        let address = listener.local_addr()?;
        let (say, acted) = channel();
        let (keep, held) = channel();
        let target = target.to_string();
        std::thread::Builder::new().name("proxy".into()).spawn(move || {
            let acted = move || {
                act();
                let _ = say.send(());
                // Returns when the other end is dropped.
                let _ = held.recv();
            };
            if let Err(error) = pass(&listener, &target, after, acted) {
                eprintln!("proxy to {target}: {error}");
            }
        })?;
        Ok(Self { address, acted, hold: hold.then_some(keep) })
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Whether it has acted since the last question.
    pub fn acted(&self) -> bool {
        self.acted.try_recv().is_ok()
    }

    /// Passes on what was kept, and the end of the connection if there is one.
    pub fn release(&mut self) {
        self.hold = None;
    }
}

fn pass(listener: &TcpListener, target: &str, mut left: u64, act: impl FnOnce()) -> std::io::Result<()> {
    let (from, _) = listener.accept()?;
    let to = TcpStream::connect(target)?;
    let (back_from, back_to) = (to.try_clone()?, from.try_clone()?);
    std::thread::Builder::new().name("proxy-back".into()).spawn(move || forward(back_from, back_to))?;
    let (mut reading, mut writing) = (from.try_clone()?, to.try_clone()?);
    let mut buffer = [0; 4096];
    while left > 0 {
        let most = buffer.len().min(left as usize);
        let count = reading.read(&mut buffer[..most])?;
        if count == 0 {
            return Ok(());
        }
        writing.write_all(&buffer[..count])?;
        left -= count as u64;
    }
    act();
    forward(from, to);
    Ok(())
}

/// Until one end is gone; then the other learns of it.
fn forward(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
