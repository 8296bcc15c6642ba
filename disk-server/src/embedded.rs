//! A store within the process of the one machine that uses it: no other process, no port.
//!
//! It is the same server with the same fence and the same files. Its connections are socket pairs, to be had
//! by `DiskClient::connect` under the store's address, in this process only.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use crate::clock;
use crate::options::Limits;
use crate::server::{DRAIN, LAST_SYNC, ServerError, Shared};
use crate::socket::Socket;
use crate::store::{Store, StoreOptions};

const PREFIX: &str = "in-process:";
const LOOK_EVERY: Duration = Duration::from_millis(1);

static SERVERS: Mutex<BTreeMap<String, Arc<Shared>>> = Mutex::new(BTreeMap::new());
static STARTED: AtomicU64 = AtomicU64::new(0);

fn servers() -> MutexGuard<'static, BTreeMap<String, Arc<Shared>>> {
    SERVERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The disks of one machine, kept by its own process. Dropping it makes everything durable.
#[derive(Debug)]
pub struct Embedded {
    address: String,
    shared: Arc<Shared>,
}

impl Embedded {
    /// Opens the directory `data` for the machine `vm`, and makes it if it is not there. Other machines may
    /// have it open too; a disk server, or another process of the same machine, may not.
    pub fn open(data: &Path, vm: &str) -> Result<Self, ServerError> {
        let limits = Limits::default();
        // What held the machine before is gone, or out of reach: there is nobody to wait for.
        let options = StoreOptions { limits, grace: Duration::ZERO, machine: Some(vm.into()) };
        let store = Store::open(data, options, Arc::default())?;
        let shared = Shared::new(store, limits, Arc::default());
        let address = format!("{PREFIX}{}", STARTED.fetch_add(1, Relaxed));
        servers().insert(address.clone(), Arc::clone(&shared));
        Ok(Self { address, shared })
    }

    /// What `DiskClient::connect` takes.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether `address` is that of a store within a process.
    pub fn is_address(address: &str) -> bool {
        address.starts_with(PREFIX)
    }
}

/// A connection to the store at `address`, if that is one of this process.
pub(crate) fn connect(address: &str) -> Option<io::Result<Socket>> {
    if !Embedded::is_address(address) {
        return None;
    }
    let Some(shared) = servers().get(address).cloned() else {
        return Some(Err(io::Error::new(ErrorKind::NotConnected, "the store of this process is closed")));
    };
    Some(UnixStream::pair().map(|(ours, theirs)| {
        shared.start(Socket::Local(theirs), address.into(), None);
        Socket::Local(ours)
    }))
}

impl Drop for Embedded {
    fn drop(&mut self) {
        servers().remove(&self.address);
        let end = clock::now() + DRAIN;
        let (mut how, mut drained) = (Shutdown::Read, true);
        while !self.shared.shut_down(how) {
            if clock::now() >= end {
                if how == Shutdown::Both {
                    drained = false;
                    break;
                }
                how = Shutdown::Both;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        let (done, result) = mpsc::channel();
        let shared = Arc::clone(&self.shared);
        let sync = move || drop(done.send(shared.store.sync_all()));
        let thread = std::thread::Builder::new().name("last-sync".into()).spawn(sync);
        match thread.map(|_| result.recv_timeout(LAST_SYNC)) {
            // A request that still hangs keeps the lock until the process is gone.
            Ok(Ok(Ok(()))) if drained => self.shared.store.unlock(),
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::error!(%error, "not all of the disk is durable"),
            Ok(Err(_)) => tracing::error!("not all of the disk is durable: the storage does not answer"),
            Err(error) => tracing::error!(%error, "not all of the disk is durable"),
        }
    }
}
