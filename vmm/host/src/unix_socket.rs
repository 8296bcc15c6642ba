//! Listening Unix sockets: of what may already be at the path, only a socket that no process serves is
//! replaced.
//!
//! ```text
//!  DIR/.PID.N  with its mode, listening ──link──▶ PATH       nothing was there
//!                                      └─rename─▶ PATH       a socket that refuses connections
//! ```
//!
//! The socket listens before it has its name, so whoever finds the name can connect, and of two processes
//! that start at once, which the directory's lock keeps apart, the second finds the first alive.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind as bind_to, connect, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};

/// Who may connect: the user that the process runs as.
const MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);
/// Longest path of a Unix socket, in bytes (unix(7): `sun_path` with its final zero).
const PATH_MAX: usize = 107;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// How often, and how far apart, the directory's lock is tried: it is held for microseconds.
const LOCK_TRIES: u32 = 200;
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Why a path cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// What is at the path is not a socket.
    #[error("{} is {what}, not a socket: it stays as it is; choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
    /// A process listens there.
    #[error("another process listens on {}", path.display())]
    Served {
        /// The path.
        path: PathBuf,
    },
    /// Longer than a socket's path may be.
    #[error("{}: the path of a Unix socket has at most {PATH_MAX} bytes", path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// The path ends in no name.
    #[error("{:?} names no file", path.display().to_string())]
    NoName {
        /// The path.
        path: PathBuf,
    },
    /// The host refuses.
    #[error("cannot listen on {}: {source}", path.display())]
    Host {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The file of a listening socket.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, if it still is the one that was made.
    pub fn remove(&self) {
        let found = std::fs::symlink_metadata(&self.path).ok().map(|found| identity(&found));
        if found.is_some() && found == self.identity {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Listens at `path`, which only this user may connect to. A socket there that no process serves is replaced;
/// anything else that is there stays, and is an error.
pub fn bind(path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
    let host = |source: io::Error| BindError::Host { path: path.to_owned(), source };
    if path.file_name().is_none() {
        return Err(BindError::NoName { path: path.to_owned() });
    }
    if path.as_os_str().len() > PATH_MAX {
        return Err(BindError::TooLong { path: path.to_owned() });
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let directory = File::open(directory).map_err(host)?;
    let temporary = temporary(&directory);
    let socket = listen_at(&temporary).map_err(|errno| host(errno.into()))?;
    let named = publish(&directory, &temporary, path);
    // After a link the temporary name is left over, after a rename it is gone.
    let _ = std::fs::remove_file(&temporary);
    named?;
    let identity = std::fs::symlink_metadata(path).ok().map(|found| identity(&found));
    Ok((UnixListener::from(socket), SocketFile { path: path.to_owned(), identity }))
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// A short name in an open directory, however long that directory's own path is.
fn temporary(directory: &File) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!(".{}.{}.socket", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name)
}

fn listen_at(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // The file gets the mode that the socket has when it is bound: there is no moment with a wider one.
    fchmod(&socket, MODE)?;
    bind_to(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    if let Err(errno) = listen(&socket, Backlog::new(BACKLOG)?) {
        let _ = std::fs::remove_file(path);
        return Err(errno);
    }
    Ok(socket)
}

/// Gives the socket its name.
fn publish(directory: &File, temporary: &Path, path: &Path) -> Result<(), BindError> {
    let host = |source: io::Error| BindError::Host { path: path.to_owned(), source };
    let _lock = directory.try_clone().ok().and_then(lock);
    match std::fs::hard_link(temporary, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => return result.map_err(host),
    }
    let found = std::fs::symlink_metadata(path).map_err(host)?;
    if !found.file_type().is_socket() {
        return Err(BindError::NotASocket { path: path.to_owned(), what: kind(&found) });
    }
    match try_connect(path) {
        Err(Errno::ECONNREFUSED) => std::fs::rename(temporary, path).map_err(host),
        // A queue of connections that is full is served as well.
        Ok(()) | Err(Errno::EAGAIN | Errno::EPROTOTYPE) => Err(BindError::Served { path: path.to_owned() }),
        Err(errno) => Err(host(errno.into())),
    }
}

/// One process at a time looks at what is at a path and replaces it. A lock that another program holds for
/// long is not waited for: it means something else.
fn lock(mut directory: File) -> Option<Flock<File>> {
    for _ in 0..LOCK_TRIES {
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Some(lock),
            Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) => directory = back,
            Err(_) => return None,
        }
        std::thread::sleep(LOCK_PAUSE);
    }
    None
}

fn try_connect(path: &Path) -> Result<(), Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)
}

fn kind(found: &Metadata) -> &'static str {
    let kind = found.file_type();
    match () {
        () if kind.is_dir() => "a directory",
        () if kind.is_symlink() => "a symbolic link",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_char_device() || kind.is_block_device() => "a device",
        () => "a file",
    }
}

#[cfg(test)]
#[path = "unix_socket_tests.rs"]
mod tests;
