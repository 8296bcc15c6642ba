//! Who uses a data directory: one disk server, or machines that keep their disks themselves, one each.
//!
//! ```text
//!   DIR/lock        a disk server holds it alone; machines share it
//!   DIR/locks/VM    a machine holds it alone
//! ```
//!
//! Locks are `flock`s: they end with their process. A file holds the process id of whoever locked it alone
//! last, for messages only.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::store::{StoreError, make_dir};

/// What is locked.
#[derive(Debug)]
pub(crate) struct Lock {
    files: Vec<File>,
}

impl Lock {
    /// Unlocks, whoever else still has the files open.
    pub(crate) fn release(&self) {
        for file in &self.files {
            let _ = file.unlock();
        }
    }

    /// For a disk server: the whole directory.
    pub(crate) fn whole(root: &Path) -> Result<Self, StoreError> {
        let path = root.join("lock");
        let file = open(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { files: vec![owned(file)] }),
            Err(TryLockError::WouldBlock) => {
                let users = machines(root);
                let user = if users.is_empty() {
                    format!("another disk server (process {})", process(file))
                } else {
                    users.join(" and ")
                };
                Err(StoreError::InUse { path: root.into(), user })
            }
            Err(TryLockError::Error(error)) => Err(StoreError::io("lock", &path, error)),
        }
    }

    /// For a machine that keeps its disks itself: only what belongs to `vm`.
    pub(crate) fn machine(root: &Path, vm: &str) -> Result<Self, StoreError> {
        let path = root.join("lock");
        let shared = open(&path)?;
        match shared.try_lock_shared() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let user = format!("a disk server (process {})", process(shared));
                return Err(StoreError::InUse { path: root.into(), user });
            }
            Err(TryLockError::Error(error)) => return Err(StoreError::io("lock", &path, error)),
        }
        let locks = root.join("locks");
        make_dir(&locks)?;
        let path = locks.join(vm);
        let own = open(&path)?;
        match own.try_lock() {
            Ok(()) => Ok(Self { files: vec![shared, owned(own)] }),
            Err(TryLockError::WouldBlock) => {
                Err(StoreError::MachineRuns { vm: vm.into(), path: root.into(), process: process(own) })
            }
            Err(TryLockError::Error(error)) => Err(StoreError::io("lock", &path, error)),
        }
    }
}

fn open(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map_err(|error| StoreError::io("open", path, error))
}

/// Notes whose the file is. A full file system must not keep a server from starting.
fn owned(mut file: File) -> File {
    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    file
}

fn process(file: File) -> String {
    let mut process = String::new();
    let _ = file.take(20).read_to_string(&mut process);
    process.trim().into()
}

/// The machines that hold their locks now.
fn machines(root: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(root.join("locks")) else { return Vec::new() };
    let running = entries.flatten().filter_map(|entry| {
        let file = File::open(entry.path()).ok()?;
        let vm = entry.file_name().into_string().ok()?;
        matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
            .then(|| format!("virtual machine {vm} (process {})", process(file)))
    });
    running.collect()
}
