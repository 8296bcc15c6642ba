//! A small record on disk that is replaced as a whole, durably: the generation of a VM, the state of a disk.
//!
//! ```text
//!   NAME        the record in force
//!   NAME.next   scratch: the record before it, or a half-written one after it; never read
//!
//!   replace:  write NAME.next ─ fdatasync ─ exchange the two names ─ fsync directory ─ (answer)
//! ```
//!
//! Both files exist from the beginning on, and replacing exchanges them (`renameat2`), so that it needs no
//! free space: a full file system must not keep a backup from going live. File systems that cannot exchange
//! get a plain rename, which only has to find room for the next scratch file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// Why a record was not replaced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplaceError {
    /// The old record is in force, now and after any restart.
    #[error("cannot write it: {0}")]
    Unchanged(io::Error),
    /// Nobody can say which record is in force after a power failure.
    #[error("cannot make it durable: {0}")]
    Uncertain(io::Error),
}

/// The steps of a replacement, in their order, for fault injection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing was written.
    Begin,
    /// The scratch file is about to be written.
    Write,
    /// The scratch file is durable.
    Written,
    /// The new record is in force, the directory not yet durable.
    Published,
}

fn scratch(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.next"))
}

/// Writes a first record and its scratch file; whatever was there under these names is gone. Who dies on the
/// way leaves a whole record, or none. The caller makes the directory durable.
pub(crate) fn create(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let write = |path: &Path| {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all_at(bytes, 0)?;
        file.sync_all()
    };
    let next = scratch(dir, name);
    write(&next)?;
    std::fs::rename(&next, dir.join(name))?;
    write(&next)
}

/// The record in force, made durable: a server before this one may have died between exchange and fsync.
pub(crate) fn load(dir: &Path, name: &str) -> io::Result<Vec<u8>> {
    let path = dir.join(name);
    let bytes = std::fs::read(&path)?;
    File::open(&path)?.sync_all()?;
    File::open(dir)?.sync_all()?;
    Ok(bytes)
}

/// Puts `bytes` into force. On `Ok` they are durable. `at` is called at each step; what it returns for
/// `Step::Write` is how many bytes are written before the process is to die, if it is.
pub(crate) fn replace(
    dir: &Path,
    name: &str,
    bytes: &[u8],
    mut at: impl FnMut(Step) -> Option<usize>,
) -> Result<(), ReplaceError> {
    at(Step::Begin);
    let next = scratch(dir, name);
    write_scratch(&next, bytes, at(Step::Write)).map_err(ReplaceError::Unchanged)?;
    at(Step::Written);
    let record = dir.join(name);
    match renameat2(AT_FDCWD, &next, AT_FDCWD, &record, RenameFlags::RENAME_EXCHANGE) {
        Ok(()) => {}
        // Without a scratch file there is nothing to exchange with; some file systems cannot exchange at all.
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::ENOENT) => {
            std::fs::rename(&next, &record).map_err(ReplaceError::Uncertain)?;
        }
        Err(error) => return Err(ReplaceError::Uncertain(error.into())),
    }
    at(Step::Published);
    let sync = || File::open(dir)?.sync_all();
    sync().map_err(ReplaceError::Uncertain)
}

fn write_scratch(path: &Path, bytes: &[u8], die_after: Option<usize>) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let len = bytes.len() as u64;
    if file.metadata()?.len() > len {
        file.set_len(len)?;
    }
    if let Some(count) = die_after {
        let _ = file.write_all_at(&bytes[..count.min(bytes.len())], 0);
        std::process::abort();
    }
    file.write_all_at(bytes, 0)?;
    file.sync_data()
}
