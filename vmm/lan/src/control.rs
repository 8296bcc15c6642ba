//! Starting, asking and stopping a network.

use std::io;
use std::net::TcpListener;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::endpoint::{Endpoint, Forward};
use crate::options::LanOptions;
use crate::reactor::{Command, Reactor};
use crate::status::LanStatus;
use crate::stream::Listener;

/// Why a network does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum LanError {
    /// An endpoint cannot be listened on.
    #[error("cannot listen on {endpoint}: {source}")]
    Listen {
        /// The endpoint.
        endpoint: Endpoint,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// A forward's host port cannot be listened on.
    #[error("cannot forward {forward}: {source}")]
    Forward {
        /// The forward.
        forward: Forward,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// The options contradict each other.
    #[error("{0}")]
    Options(String),
    /// The host refused what the network needs.
    #[error("the network cannot run: {0}")]
    Host(#[source] io::Error),
    /// The network is not running any more.
    #[error("the network has stopped")]
    Stopped,
}

impl From<Errno> for LanError {
    fn from(errno: Errno) -> Self {
        LanError::Host(errno.into())
    }
}

/// A network that accepts connections: where, and how to ask it.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Where monitors connect, with the ports it got.
    pub listen: Vec<Endpoint>,
    /// The forwards, with the ports they got.
    pub forwards: Vec<Forward>,
    /// Asks it.
    pub control: LanControl,
}

/// Asks a running network, from any thread.
#[derive(Debug, Clone)]
pub struct LanControl {
    commands: mpsc::Sender<Command>,
    wake: Arc<EventFd>,
}

impl LanControl {
    /// What it counted so far. Waits for the network thread's next turn (microseconds).
    pub fn status(&self) -> Result<LanStatus, LanError> {
        let (answer, answers) = mpsc::channel();
        self.tell(Command::Status(answer))?;
        answers.recv().map_err(|_| LanError::Stopped)
    }

    /// Asks it to stop: all connections end.
    pub fn stop(&self) -> Result<(), LanError> {
        self.tell(Command::Stop)
    }

    fn tell(&self, command: Command) -> Result<(), LanError> {
        self.commands.send(command).map_err(|_| LanError::Stopped)?;
        self.wake.write(1)?;
        Ok(())
    }
}

/// A running network. Stops when dropped.
#[derive(Debug)]
pub struct Lan {
    ready: Ready,
    thread: Option<JoinHandle<Result<LanStatus, Errno>>>,
    ended: Option<tokio::sync::oneshot::Receiver<()>>,
}

fn check(options: &LanOptions) -> Result<(), LanError> {
    let LanOptions { gateway_ip, prefix_len, .. } = *options;
    if !(8..=30).contains(&prefix_len) {
        return Err(LanError::Options(format!("a prefix of {prefix_len} bits: give 8 to 30")));
    }
    if options.gateway_mac.is_multicast() {
        return Err(LanError::Options(format!(
            "{} is a group address: give a station's",
            options.gateway_mac
        )));
    }
    let network = |ip: std::net::Ipv4Addr| ip.to_bits() >> (32 - u32::from(prefix_len));
    for forward in &options.forwards {
        let ip = *forward.target.ip();
        if network(ip) != network(gateway_ip) || ip == gateway_ip {
            return Err(LanError::Options(format!(
                "cannot forward {forward}: the guest must be in the network {gateway_ip}/{prefix_len}"
            )));
        }
    }
    Ok(())
}

fn bind_forward(forward: Forward) -> io::Result<(TcpListener, Forward)> {
    let listener = TcpListener::bind(forward.listen)?;
    listener.set_nonblocking(true)?;
    let listen = listener.local_addr()?;
    Ok((listener, Forward { listen, ..forward }))
}

/// A number that differs from start to start, for smoltcp's sequence numbers and first port.
fn seed() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0u8)
}

impl Lan {
    /// Binds everything and starts the network's thread.
    pub fn start(options: LanOptions) -> Result<Self, LanError> {
        check(&options)?;
        let (mut listeners, mut listen) = (Vec::new(), Vec::new());
        for endpoint in &options.listen {
            let (listener, actual) = Listener::bind(endpoint)
                .map_err(|source| LanError::Listen { endpoint: endpoint.clone(), source })?;
            listeners.push(listener);
            listen.push(actual);
        }
        let mut bound = Vec::new();
        for &forward in &options.forwards {
            bound.push(bind_forward(forward).map_err(|source| LanError::Forward { forward, source })?);
        }
        let forwards = bound.iter().map(|(_, forward)| *forward).collect();
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let (commands, receiver) = mpsc::channel();
        let reactor = Reactor::new(options, listeners, bound, receiver, wake.clone(), seed())?;
        let (end, ended) = tokio::sync::oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("lan".to_owned())
            .spawn(move || {
                let result = reactor.run();
                drop(end);
                result
            })
            .map_err(LanError::Host)?;
        let ready = Ready { listen, forwards, control: LanControl { commands, wake } };
        Ok(Self { ready, thread: Some(thread), ended: Some(ended) })
    }

    /// Its addresses, and how to ask it.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Waits until the network ends by itself or by `LanControl::stop`.
    pub async fn ended(&mut self) {
        if let Some(ended) = &mut self.ended {
            let _ = ended.await;
            self.ended = None;
        }
    }

    /// Stops it. Returns what it counted.
    pub fn stop(mut self) -> Result<LanStatus, LanError> {
        self.join()
    }

    fn join(&mut self) -> Result<LanStatus, LanError> {
        let Some(thread) = self.thread.take() else { return Err(LanError::Stopped) };
        // When it ended already there is nobody to tell.
        let _ = self.ready.control.stop();
        match thread.join() {
            Ok(result) => Ok(result?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        if self.thread.is_some() && !std::thread::panicking() {
            let _ = self.join();
        }
    }
}

/// Runs a network until `shutdown` completes. `ready` is called once it accepts connections. Returns what it
/// counted.
pub async fn run(
    options: LanOptions,
    ready: impl FnOnce(&Ready),
    shutdown: impl Future<Output = ()>,
) -> Result<LanStatus, LanError> {
    let mut lan = Lan::start(options)?;
    ready(lan.ready());
    tokio::select! {
        () = shutdown => {}
        () = lan.ended() => {}
    }
    lan.stop()
}
