//! The server: accepts connections, gives each its thread, and stops in order.
//!
//! Accepting and signals live in tokio; a connection lives in a plain thread, because all it does is wait for
//! storage and for its socket, and a hand-over between threads costs more than a small write.

use std::collections::BTreeMap;
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::connection::{Connection, ConnectionError};
use crate::faults::Faults;
use crate::options::{Limits, Options};
use crate::protocol::PROTOCOL_VERSION;
use crate::seat::Number;
use crate::socket::Socket;
use crate::status::Status;
use crate::store::{Store, StoreError, StoreOptions};

/// How long requests in flight may take when the server stops.
pub(crate) const DRAIN: Duration = Duration::from_secs(5);
/// How long the last fdatasync may take.
pub(crate) const LAST_SYNC: Duration = Duration::from_secs(30);
/// Pause after a failed accept, which is mostly a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections beyond the limit that are told so; more are closed without a word.
const MAX_REFUSED: usize = 8;
const STACK_BYTES: usize = 512 << 10;

/// Why the server does not run, or did not stop in order.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The data directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// As it was given.
        address: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The process.
    #[error("cannot {action}: {source}")]
    Process {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Something was still being written when the time for stopping was over.
    #[error("stopped, but not all is durable: the storage did not answer within {} s", .0.as_secs())]
    NotDurable(Duration),
}

impl ServerError {
    /// The process's exit code: 3 the data directory is in use, 4 cannot listen, 5 the data directory cannot
    /// be used, 6 not everything could be made durable at the end, 1 anything else. (2 is a wrong command
    /// line.)
    pub fn exit_code(&self) -> u8 {
        match self {
            ServerError::Store(StoreError::InUse { .. } | StoreError::MachineRuns { .. }) => 3,
            ServerError::Listen { .. } => 4,
            ServerError::Store(StoreError::Disk { .. }) | ServerError::NotDurable(_) => 6,
            ServerError::Store(_) => 5,
            ServerError::Process { .. } => 1,
        }
    }
}

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) limits: Limits,
    pub(crate) faults: Arc<Faults>,
    pub(crate) closed_for_errors: AtomicU64,
    superseded: AtomicU64,
    accepted: AtomicU64,
    sockets: Mutex<BTreeMap<Number, Arc<Socket>>>,
}

impl Shared {
    pub(crate) fn new(store: Store, limits: Limits, faults: Arc<Faults>) -> Arc<Self> {
        Arc::new(Self {
            store,
            limits,
            faults,
            closed_for_errors: AtomicU64::new(0),
            superseded: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            sockets: Mutex::default(),
        })
    }

    fn sockets(&self) -> MutexGuard<'_, BTreeMap<Number, Arc<Socket>>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the connection `number`, which a newer one superseded, should it wait for requests.
    pub(crate) fn supersede(&self, number: Number) {
        self.superseded.fetch_add(1, Relaxed);
        if let Some(socket) = self.sockets().get(&number) {
            let _ = socket.shutdown(Shutdown::Read);
        }
    }

    pub(crate) fn status_json(&self) -> Vec<u8> {
        let (vm_count, vms) = self.store.statistics();
        let status = Status {
            protocol_version: PROTOCOL_VERSION,
            connections: self.sockets().len(),
            accepted: self.accepted.load(Relaxed),
            closed_for_errors: self.closed_for_errors.load(Relaxed),
            superseded: self.superseded.load(Relaxed),
            vm_count,
            vms,
        };
        serde_json::to_vec(&status).expect("a status has only maps, lists, strings and numbers")
    }
}

/// A server that listens, and serves once `serve` is called.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Server {
    /// Opens the data directory and the address. Blocks while it reads the directory.
    pub async fn bind(options: &Options) -> Result<Self, ServerError> {
        let faults = Arc::new(Faults::new(options.crash_at, options.fault.clone()));
        let grace = Duration::from_secs(options.grace.into());
        let store = StoreOptions { limits: options.limits, grace, machine: None };
        let store = Store::open(&options.data, store, Arc::clone(&faults))?;
        let listen = |source| ServerError::Listen { address: options.listen.clone(), source };
        let listener = TcpListener::bind(&options.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        Ok(Self { listener, address, shared: Shared::new(store, options.limits, faults) })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is ready; then lets requests in flight finish, closes all connections, and makes
    /// every write durable.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> Result<(), ServerError> {
        let (alive, mut all_gone) = mpsc::channel::<()>(1);
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => self.start(stream, peer, alive.clone()),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(self.listener);
        drop(alive);
        for how in [Shutdown::Read, Shutdown::Both] {
            self.shared.shut_down(how);
            if tokio::time::timeout(DRAIN, all_gone.recv()).await.is_ok() {
                break;
            }
        }
        last_sync(self.shared).await
    }

    fn start(&self, stream: tokio::net::TcpStream, peer: SocketAddr, alive: mpsc::Sender<()>) {
        match stream.into_std().and_then(|s| s.set_nonblocking(false).map(|()| s)) {
            Ok(stream) => self.shared.start(Socket::Tcp(stream), peer.to_string(), Some(alive)),
            Err(error) => tracing::warn!(%peer, %error, "connection lost at once"),
        }
    }
}

impl Shared {
    /// Serves a connection, in a thread of its own.
    pub(crate) fn start(self: &Arc<Self>, stream: Socket, peer: String, alive: Option<mpsc::Sender<()>>) {
        let id = self.accepted.fetch_add(1, Relaxed);
        let stream = Arc::new(stream);
        let mut sockets = self.sockets();
        let limit = self.limits.max_connections;
        let full = sockets.len() >= limit;
        if sockets.len() >= limit.saturating_add(MAX_REFUSED) {
            return tracing::warn!(%peer, limit, "too many connections");
        }
        sockets.insert(id, Arc::clone(&stream));
        drop(sockets);
        let entry = Entry { shared: Arc::clone(self), id, _alive: alive };
        let thread = std::thread::Builder::new().name(format!("disk-{id}")).stack_size(STACK_BYTES);
        if let Err(error) = thread.spawn(move || entry.run(&stream, &peer, full)) {
            tracing::warn!(%error, "no thread for a connection");
        }
    }

    /// Lets no connection go on; whether there are none left.
    pub(crate) fn shut_down(&self, how: Shutdown) -> bool {
        let sockets = self.sockets();
        for socket in sockets.values() {
            let _ = socket.shutdown(how);
        }
        sockets.is_empty()
    }
}

/// A connection's place among the server's sockets; given back when its thread ends, however it ends.
struct Entry {
    shared: Arc<Shared>,
    id: Number,
    _alive: Option<mpsc::Sender<()>>,
}

impl Entry {
    fn run(self, stream: &Socket, peer: &str, full: bool) {
        tracing::debug!(peer, "connected");
        let mut connection = Connection::new(&self.shared, stream, self.id);
        if full {
            let error = ConnectionError::Full(self.shared.limits.max_connections);
            tracing::warn!(peer, %error, "connection refused");
            return connection.refuse(&error);
        }
        match connection.serve() {
            Ok(()) => tracing::debug!(peer, "disconnected"),
            Err(error) => tracing::warn!(peer, %error, "connection closed"),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.shared.sockets().remove(&self.id);
    }
}

/// Syncs in a thread of its own, so that storage that hangs cannot keep the process from ending.
async fn last_sync(shared: Arc<Shared>) -> Result<(), ServerError> {
    let (done, result) = oneshot::channel();
    let body = move || drop(done.send(shared.store.sync_all()));
    let thread = std::thread::Builder::new().name("last-sync".into()).spawn(body);
    thread.map_err(|source| ServerError::Process { action: "start a thread", source })?;
    match tokio::time::timeout(LAST_SYNC, result).await {
        Ok(Ok(result)) => Ok(result?),
        _ => Err(ServerError::NotDurable(LAST_SYNC)),
    }
}

/// Runs the server until SIGTERM or SIGINT. Prints `disk-server listening on HOST:PORT` on standard output
/// once it can be connected to.
pub async fn run(options: Options) -> Result<(), ServerError> {
    let catch =
        |kind| signal(kind).map_err(|source| ServerError::Process { action: "catch signals", source });
    let (mut terminate, mut interrupt) = (catch(SignalKind::terminate())?, catch(SignalKind::interrupt())?);
    let server = Server::bind(&options).await?;
    announce(server.local_addr()).map_err(|source| ServerError::Process { action: "print", source })?;
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
    };
    server.serve(stop).await
}

fn announce(address: SocketAddr) -> std::io::Result<()> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    writeln!(out, "disk-server listening on {address}")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_on_any_runtime_and_has_distinct_exit_codes() {
        fn is_send<T: Send>(_: &T) {}
        is_send(&run(Options::new("127.0.0.1:0", "unused")));
        let io = || std::io::Error::from(std::io::ErrorKind::Other);
        let errors = [
            ServerError::Process { action: "try", source: io() },
            ServerError::Store(StoreError::InUse { path: "x".into(), user: "y".into() }),
            ServerError::Listen { address: "x".into(), source: io() },
            ServerError::Store(StoreError::io("try", "x".as_ref(), io())),
            ServerError::NotDurable(LAST_SYNC),
        ];
        assert_eq!(errors.map(|error| error.exit_code()), [1, 3, 4, 5, 6]);
    }
}
