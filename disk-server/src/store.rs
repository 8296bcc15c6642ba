//! The data directory: which VMs there are.
//!
//! ```text
//!   DIR/format                       "lockstep disk store 2\n": version of this layout
//!   DIR/lock                         locked (flock) while a server runs; holds its process id (lock.rs)
//!   DIR/locks/VM                     locked while a machine runs that keeps its disks itself
//!   DIR/new/                         VMs being created; emptied at the start
//!   DIR/vms/VM/generation            the generation record (record.rs)
//!   DIR/vms/VM/generation.next       scratch of the next one (record_file.rs)
//!   DIR/vms/VM/disks/DISK.img        a disk: its bytes, nothing else; sparse
//!   DIR/vms/VM/disks/DISK.state      whether it was filled (content.rs), and DISK.state.next, scratch
//!   DIR/vms/VM/disks/DISK.new        a disk being created
//! ```
//!
//! Version 1 had no `DISK.state`: it filled whatever began with zeros. A directory of version 1 becomes one
//! of version 2 when it is opened, so that no older server fills a disk of it again.
//!
//! A VM's directory appears under `vms` by a rename, with everything in it: a directory without a sound
//! record is damage, never a new VM, so a generation cannot fall back to 0.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use logchannel::Generation;

use crate::content::ContentError;
use crate::disk::{Disk, DiskError};
use crate::faults::Faults;
use crate::lock::Lock;
use crate::options::Limits;
use crate::protocol::{AnswerBody, ErrorCode, VmState, is_name};
use crate::status::{MAX_LISTED_DISKS, VmStatistics};
use crate::test_and_set::{Claimant, Decision, Holding, Refusal, decide};
use crate::vm::{ClaimRequest, Verdict, Vm};

const FORMAT: &str = "lockstep disk store 2\n";
/// Of the version before, which is upgraded.
const FORMAT_1: &str = "lockstep disk store 1\n";

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else uses the directory.
    #[error("data directory {path} is in use by {user}: stop it, or use another directory")]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Who, with the process id that it left.
        user: String,
    },
    /// The machine runs already, and keeps its disks there.
    #[error(
        "virtual machine {vm} runs already (process {process}), with its disks in {path}: \
         give this one another name (--vm) or another directory (--data)"
    )]
    MachineRuns {
        /// The VM's name.
        vm: String,
        /// The directory.
        path: PathBuf,
        /// The process id that the other one left.
        process: String,
    },
    /// A machine that keeps its disks itself finds that another copy had them from a disk server.
    #[error(
        "virtual machine {vm} was last run with a disk server on this directory, and that copy never said \
         that it has ended: start the disk server again and name it (--disk-server); \
         only if no other copy can be running, --take-over"
    )]
    HeldElsewhere {
        /// The VM's name.
        vm: String,
    },
    /// The holder of this generation said that it has ended.
    #[error("generation {generation} of VM {vm} was released by its holder: start the machine again")]
    Released {
        /// The VM's name.
        vm: String,
        /// The generation.
        generation: Generation,
    },
    /// Nobody can say whether the disk was filled.
    #[error(
        "disk {disk} of VM {vm}: the record of its state, {path}: {source}. If the disk holds what it \
         should, remove that file: the disk then counts as filled"
    )]
    DiskState {
        /// The VM's name.
        vm: String,
        /// The disk's name.
        disk: String,
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ContentError,
    },
    /// The directory was made by another version, or is no data directory.
    #[error(
        "{path} says {found:?}, this program knows {FORMAT:?}: \
         use a fresh directory, or the version that made it"
    )]
    Format {
        /// The file that says so.
        path: PathBuf,
        /// Its content, as far as it is text.
        found: String,
    },
    /// The file system failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// How it failed.
        #[source]
        source: std::io::Error,
    },
    /// A name that may not name anything.
    #[error("{name:?} cannot name a {what}: 1 to 64 of A-Z a-z 0-9 _ . - and no dot in front")]
    Name {
        /// What was to be named.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A limit of the server.
    #[error("limit reached: {limit} {what}")]
    Limit {
        /// What there are too many of.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// No such VM.
    #[error("no VM {vm}: open one of its disks with a size to create it")]
    NoVm {
        /// Its name.
        vm: String,
    },
    /// No such disk.
    #[error("VM {vm} has no disk {disk}: open it with a size to create it")]
    NoDisk {
        /// The VM's name.
        vm: String,
        /// The disk's name.
        disk: String,
    },
    /// The disk exists with another size.
    #[error(
        "disk {disk} has {bytes} bytes ({} MiB), and {asked} ({} MiB) were asked for: \
         a disk keeps the size it was made with (--disk-size)",
        bytes >> 20,
        asked >> 20
    )]
    Size {
        /// The disk's name.
        disk: String,
        /// Its size.
        bytes: u64,
        /// The size asked for.
        asked: u64,
    },
    /// No disk can have this size.
    #[error("a disk of {bytes} bytes: sizes are multiples of 512 up to {limit}")]
    DiskSize {
        /// The size asked for.
        bytes: u64,
        /// The largest size.
        limit: u64,
    },
    /// Something lies where a disk should.
    #[error("{path} is no disk: {bytes} bytes, or no regular file")]
    NotADisk {
        /// Where.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The VM's generation is unknown, so nothing may be done for it.
    #[error("VM {vm} is out of service: {reason}")]
    Damaged {
        /// The VM's name.
        vm: String,
        /// What is wrong.
        reason: String,
    },
    /// The asker's generation is not the current one.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The disk refused.
    #[error("{message}")]
    Disk {
        /// Kind of refusal.
        code: ErrorCode,
        /// What the disk says.
        message: String,
    },
}

impl StoreError {
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        StoreError::Io { action, path: path.into(), source }
    }

    fn code(&self) -> ErrorCode {
        match self {
            StoreError::Name { .. } | StoreError::DiskSize { .. } => ErrorCode::Invalid,
            StoreError::NoVm { .. } | StoreError::NoDisk { .. } => ErrorCode::NotFound,
            StoreError::Size { .. } | StoreError::HeldElsewhere { .. } => ErrorCode::Conflict,
            StoreError::Limit { .. } => ErrorCode::Limit,
            StoreError::Refused(_) | StoreError::Released { .. } => ErrorCode::NeverGranted,
            StoreError::Disk { code, .. } => *code,
            StoreError::Io { source, .. } => io_code(source),
            StoreError::DiskState { source: ContentError::Io(source), .. } => io_code(source),
            StoreError::Damaged { .. }
            | StoreError::InUse { .. }
            | StoreError::MachineRuns { .. }
            | StoreError::DiskState { .. }
            | StoreError::Format { .. } => ErrorCode::Failed,
            StoreError::NotADisk { .. } => ErrorCode::Io,
        }
    }
}

impl From<DiskError> for StoreError {
    fn from(error: DiskError) -> Self {
        StoreError::Disk { code: error.code(), message: error.to_string() }
    }
}

impl From<StoreError> for AnswerBody {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Refused(refusal) => refusal.into(),
            other => AnswerBody::Refused { code: other.code(), message: other.to_string() },
        }
    }
}

/// How a failure of the file system is told to clients.
pub(crate) fn io_code(error: &std::io::Error) -> ErrorCode {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => ErrorCode::NoSpace,
        _ => ErrorCode::Io,
    }
}

/// How a data directory is opened.
#[derive(Debug, Clone)]
pub(crate) struct StoreOptions {
    pub(crate) limits: Limits,
    /// How long a holder that is not connected may return before a start may go on without it.
    pub(crate) grace: Duration,
    /// The only VM there is, for a machine that keeps its disks itself; a disk server has all.
    pub(crate) machine: Option<String>,
}

/// An open data directory, locked against others.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
    options: StoreOptions,
    faults: Arc<Faults>,
    lock: Lock,
    vms: Mutex<BTreeMap<String, Arc<Vm>>>,
    /// Held while a VM is created, so that `vms` is never locked during I/O.
    creating: Mutex<()>,
}

impl Store {
    /// Opens the directory, and makes it if it is not there.
    pub(crate) fn open(root: &Path, options: StoreOptions, faults: Arc<Faults>) -> Result<Self, StoreError> {
        if let Some(vm) = options.machine.as_ref().filter(|vm| !is_name(vm)) {
            return Err(StoreError::Name { what: "VM", name: vm.clone() });
        }
        if !root.exists() {
            make_dir(root)?;
            root.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), sync_dir)?;
        }
        let lock = match &options.machine {
            None => Lock::whole(root)?,
            Some(vm) => Lock::machine(root, vm)?,
        };
        check_format(root)?;
        let fresh = root.join("new");
        if options.machine.is_none() {
            match std::fs::remove_dir_all(&fresh) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(StoreError::io("remove", &fresh, error));
                }
                _ => {}
            }
        }
        make_dir(&fresh)?;
        let dir = root.join("vms");
        make_dir(&dir)?;
        sync_dir(&dir)?;
        sync_dir(root)?;
        let mut vms = BTreeMap::new();
        for name in names(&dir)? {
            if options.machine.as_ref().is_none_or(|machine| *machine == name) {
                let vm = Vm::load(dir.join(&name), &name, options.grace, Arc::clone(&faults));
                vms.insert(name, Arc::new(vm));
            }
        }
        tracing::info!(path = %root.display(), vms = vms.len(), "data directory open");
        let vms = Mutex::new(vms);
        Ok(Self { root: root.into(), options, faults, lock, vms, creating: Mutex::new(()) })
    }

    /// Opens a disk; with `create_bytes` it (and its VM) is created first if it does not exist.
    pub(crate) fn open_disk(
        &self,
        vm: &str,
        disk: &str,
        create_bytes: Option<u64>,
    ) -> Result<(Arc<Vm>, Arc<Disk>), StoreError> {
        if !is_name(disk) {
            return Err(StoreError::Name { what: "disk", name: disk.into() });
        }
        let vm = match (self.find(vm)?, create_bytes) {
            (Some(found), _) => found,
            (None, Some(_)) => self.create(vm)?,
            (None, None) => return Err(StoreError::NoVm { vm: vm.into() }),
        };
        vm.state()?;
        let disk = vm.open_disk(disk, create_bytes, &self.options.limits)?;
        Ok((vm, disk))
    }

    /// The test-and-set. Also the VM, unless there is none: a lost claim does not create it.
    pub(crate) fn claim(
        &self,
        vm: &str,
        request: ClaimRequest,
    ) -> Result<(Verdict, Option<Arc<Vm>>), StoreError> {
        let vm = match self.find(vm)? {
            Some(found) => found,
            None => match decide(&Holding::default(), request.expect, request.claimant) {
                Decision::Grant(_) => self.create(vm)?,
                lost => return Ok((Verdict::Decided(lost), None)),
            },
        };
        Ok((vm.claim(request)?, Some(vm)))
    }

    /// The holder of a VM's generation has ended.
    pub(crate) fn release(
        &self,
        vm: &str,
        generation: Generation,
        claimant: Claimant,
    ) -> Result<(), StoreError> {
        let found = self.find(vm)?.ok_or_else(|| StoreError::NoVm { vm: vm.into() })?;
        found.release(generation, claimant)
    }

    /// The state of a VM; one that never was has generation 0.
    pub(crate) fn query(&self, vm: &str) -> Result<VmState, StoreError> {
        self.find(vm)?.map_or(Ok(VmState::default()), |vm| vm.state())
    }

    /// Makes everything written durable, disk by disk; the first failure is returned after all were tried.
    pub(crate) fn sync_all(&self) -> Result<(), StoreError> {
        let disks = self.all().into_iter().flat_map(|vm| vm.disks());
        let results: Vec<_> = disks.map(|disk| disk.commit(disk.now())).collect();
        results.into_iter().collect::<Result<(), _>>().map_err(StoreError::from)
    }

    /// Gives the directory up. Nothing may be asked of it any more.
    pub(crate) fn unlock(&self) {
        self.lock.release();
    }

    /// How many VMs there are, and the statistics of the first ones.
    pub(crate) fn statistics(&self) -> (usize, Vec<VmStatistics>) {
        let vms = self.all();
        let mut listed = 0;
        let statistics = vms.iter().map(|vm| vm.statistics()).take_while(|vm| {
            listed += 1 + vm.disks.len();
            listed <= MAX_LISTED_DISKS
        });
        (vms.len(), statistics.collect())
    }

    fn all(&self) -> Vec<Arc<Vm>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn find(&self, name: &str) -> Result<Option<Arc<Vm>>, StoreError> {
        if !is_name(name) {
            return Err(StoreError::Name { what: "VM", name: name.into() });
        }
        match &self.options.machine {
            Some(machine) if machine != name => Err(StoreError::NoVm { vm: name.into() }),
            _ => Ok(self.vms.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()),
        }
    }

    fn create(&self, name: &str) -> Result<Arc<Vm>, StoreError> {
        let _creating = self.creating.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(vm) = self.find(name)? {
            return Ok(vm);
        }
        if self.vms.lock().unwrap_or_else(PoisonError::into_inner).len() >= self.options.limits.max_vms {
            return Err(StoreError::Limit { what: "VMs", limit: self.options.limits.max_vms });
        }
        let fresh = self.root.join("new").join(name);
        let parent = self.root.join("vms");
        let dir = parent.join(name);
        let publish = || {
            if fresh.exists() {
                std::fs::remove_dir_all(&fresh)?;
            }
            DirBuilder::new().mode(0o700).create(&fresh)?;
            Vm::create_files(&fresh, name)?;
            std::fs::rename(&fresh, &dir)?;
            File::open(&parent)?.sync_all()
        };
        publish().map_err(|error| StoreError::io("create", &dir, error))?;
        let vm = Arc::new(Vm::load(dir, name, self.options.grace, Arc::clone(&self.faults)));
        tracing::info!(vm = name, "new VM");
        let mut vms = self.vms.lock().unwrap_or_else(PoisonError::into_inner);
        vms.insert(name.into(), Arc::clone(&vm));
        Ok(vm)
    }
}

/// The names of the VMs whose directories are in `dir`.
fn names(dir: &Path) -> Result<Vec<String>, StoreError> {
    let list = |error| StoreError::io("list", dir, error);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(list)? {
        let entry = entry.map_err(list)?;
        match entry.file_name().into_string() {
            Ok(name) if is_name(&name) => names.push(name),
            _ => tracing::warn!(path = %entry.path().display(), "ignored: not the directory of a VM"),
        }
    }
    Ok(names)
}

pub(crate) fn make_dir(path: &Path) -> Result<(), StoreError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| StoreError::io("create directory", path, error))
}

fn sync_dir(path: &Path) -> Result<(), StoreError> {
    let sync = || File::open(path)?.sync_all();
    sync().map_err(|error| StoreError::io("make durable", path, error))
}

fn check_format(root: &Path) -> Result<(), StoreError> {
    let path = root.join("format");
    match std::fs::read(&path) {
        Ok(bytes) if bytes == FORMAT.as_bytes() => Ok(()),
        Ok(bytes) if bytes == FORMAT_1.as_bytes() => {
            tracing::info!(path = %root.display(), "data directory of version 1: from now on version 2");
            write_format(root, &path)
        }
        Ok(bytes) => {
            let found = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
            Err(StoreError::Format { path, found })
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if root.join("vms").exists() {
                return Err(StoreError::Format { path, found: "nothing (the file is missing)".into() });
            }
            write_format(root, &path)
        }
        Err(error) => Err(StoreError::io("read", &path, error)),
    }
}

fn write_format(root: &Path, path: &Path) -> Result<(), StoreError> {
    // Machines that share the directory may do this at the same time.
    let unfinished = root.join(format!("format.new.{}", std::process::id()));
    let write = || {
        host::files::write(&unfinished, FORMAT)?;
        File::open(&unfinished)?.sync_all()?;
        std::fs::rename(&unfinished, path)?;
        File::open(root)?.sync_all()
    };
    write().map_err(|error| StoreError::io("write", path, error))
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
