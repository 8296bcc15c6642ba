//! One virtual disk: a sparse file, and the group commit of its durable writes.
//!
//! ```text
//!   writer 1   pwrite, ticket 1 ── leads: fdatasync up to 1 ──▶ synced = 1
//!   writer 2          pwrite, ticket 2 ── waits ─────────────────┴─ leads: fdatasync up to 3 ──▶ synced = 3
//!   writer 3             pwrite, ticket 3 ── waits ──────────────── waits ─────────────────────────┘
//! ```
//!
//! Invariant: `synced ≤ written`, and every write whose ticket is at most `synced` is on stable storage. A
//! failed fdatasync is never tried again: the kernel may have dropped the very pages it could not write, and
//! the next call would say all is well. The disk is out of service until the server restarts.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::clock;
use crate::content;
use crate::faults::{CrashPoint, Faults};
use crate::fill::{Fill, FillError};
use crate::protocol::{Content, ErrorCode, MAX_TRANSFER, SECTOR};
use crate::seat::{Number, Seats};
use crate::status::DiskStatistics;

/// Why a disk did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("offset {offset} + {len} bytes: the disk has {bytes} bytes")]
    Beyond { offset: u64, len: u64, bytes: u64 },
    #[error("offset {offset}, {len} bytes: both must be multiples of {SECTOR}")]
    Unaligned { offset: u64, len: u64 },
    #[error("{len} bytes at once: at most {MAX_TRANSFER}")]
    TooLong { len: u64 },
    #[error("disk {disk} of VM {vm}: cannot {action}: {source}")]
    Io { vm: String, disk: String, action: &'static str, source: std::io::Error },
    #[error("disk {disk} of VM {vm}: {source}")]
    Fill { vm: String, disk: String, source: FillError },
    #[error(
        "an image of {image} bytes is too long for disk {disk} of VM {vm}, which has {bytes}: \
         a disk's size is given when it is made (--disk-size)"
    )]
    ImageTooLong { vm: String, disk: String, image: u64, bytes: u64 },
    #[error("disk {disk} of VM {vm} failed ({reason}): check the storage, then restart the disk server")]
    Failed { vm: String, disk: String, reason: String },
}

impl DiskError {
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            DiskError::Beyond { .. }
            | DiskError::Unaligned { .. }
            | DiskError::TooLong { .. }
            | DiskError::ImageTooLong { .. } => ErrorCode::Invalid,
            DiskError::Fill { source: FillError::Clear(source) | FillError::Record(source), .. } => {
                crate::store::io_code(source)
            }
            DiskError::Fill { source: FillError::Unknown(_), .. } => ErrorCode::Failed,
            DiskError::Fill { .. } => ErrorCode::Conflict,
            DiskError::Io { source, .. } => crate::store::io_code(source),
            DiskError::Failed { .. } => ErrorCode::Failed,
        }
    }
}

/// Why a read or write was not executed.
enum RequestError {
    Io(std::io::Error),
    Fill(FillError),
}

impl From<std::io::Error> for RequestError {
    fn from(error: std::io::Error) -> Self {
        RequestError::Io(error)
    }
}

impl From<FillError> for RequestError {
    fn from(error: FillError) -> Self {
        RequestError::Fill(error)
    }
}

/// Why a filling did not end.
enum EndError {
    Disk(DiskError),
    Fill(FillError),
}

impl From<FillError> for EndError {
    fn from(error: FillError) -> Self {
        EndError::Fill(error)
    }
}

/// Names a moment in the order of a disk's writes: durable once `synced` reaches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

#[derive(Debug)]
struct Sync {
    written: u64,
    synced: u64,
    running: bool,
    failed: Option<String>,
}

#[derive(Debug, Default)]
struct Counters {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    commits: AtomicU64,
    syncs: AtomicU64,
    sync_ns: AtomicU64,
    sync_max_ns: AtomicU64,
}

/// An open disk. All of it can be used from many threads.
#[derive(Debug)]
pub(crate) struct Disk {
    vm: String,
    name: String,
    file: File,
    bytes: u64,
    fill: Fill,
    faults: Arc<Faults>,
    sync: Mutex<Sync>,
    changed: Condvar,
    out_of_service: AtomicBool,
    counters: Counters,
    /// Whose connection may use it.
    pub(crate) seats: Seats,
}

impl Disk {
    /// The disk in `file`, whose size the caller has checked.
    pub(crate) fn new(vm: &str, name: &str, file: File, bytes: u64, fill: Fill, faults: Arc<Faults>) -> Self {
        // A server before this one may have answered writes that are still in the page cache only: the first
        // commit must sync even if nothing is written before it.
        let sync = Sync { written: 1, synced: 0, running: false, failed: None };
        Self {
            vm: vm.into(),
            name: name.into(),
            file,
            bytes,
            fill,
            faults,
            sync: Mutex::new(sync),
            changed: Condvar::new(),
            out_of_service: AtomicBool::new(false),
            counters: Counters::default(),
            seats: Seats::default(),
        }
    }

    /// The disk's size.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What the disk holds.
    pub(crate) fn content(&self) -> Content {
        self.fill.content()
    }

    /// Reads `len` bytes at `offset` for connection `who`.
    pub(crate) fn read(&self, who: Number, offset: u64, len: u32) -> Result<Vec<u8>, DiskError> {
        let len = u64::from(len);
        self.check(offset, len)?;
        self.in_service()?;
        let count = usize::try_from(len).expect("at most MAX_TRANSFER");
        let mut data = vec![0; count];
        self.told("read", self.fill.reading(who, || Ok(self.file.read_exact_at(&mut data, offset)?)))?;
        self.counters.reads.fetch_add(1, Relaxed);
        self.counters.read_bytes.fetch_add(len, Relaxed);
        Ok(data)
    }

    /// Writes `data` at `offset` for connection `who`. When it returns, every later read sees it, also of a
    /// server started after this one was killed; `commit` with the ticket makes it durable.
    pub(crate) fn write(&self, who: Number, offset: u64, data: &[u8]) -> Result<Ticket, DiskError> {
        let len = data.len() as u64;
        self.check(offset, len)?;
        self.in_service()?;
        let write = || {
            self.faults.delay_write(&self.vm);
            if self.faults.due(CrashPoint::MidWrite) {
                let _ = self.file.write_all_at(&data[..data.len() / 2], offset);
                std::process::abort();
            }
            Ok(self.file.write_all_at(data, offset)?)
        };
        self.told("write", self.fill.writing(who, write))?;
        self.counters.writes.fetch_add(1, Relaxed);
        self.counters.written_bytes.fetch_add(len, Relaxed);
        let mut sync = self.lock();
        sync.written += 1;
        Ok(Ticket(sync.written))
    }

    /// Connection `who` begins to fill the disk with `image` bytes: it is empty when this returns.
    pub(crate) fn begin_fill(&self, who: Number, image: u64) -> Result<(), DiskError> {
        if image > self.bytes {
            let (vm, disk) = (self.vm.clone(), self.name.clone());
            return Err(DiskError::ImageTooLong { vm, disk, image, bytes: self.bytes });
        }
        self.in_service()?;
        tracing::info!(vm = %self.vm, disk = %self.name, bytes = image, "the disk is being filled");
        self.fill
            .begin(who, || content::clear(&self.file, self.bytes))
            .map_err(|source| self.fill_error(source))
    }

    /// Connection `who` has filled the disk. When this returns, that is durable, and for good.
    pub(crate) fn end_fill(&self, who: Number) -> Result<(), DiskError> {
        self.fill.end(who, || self.commit(self.now()).map_err(EndError::Disk)).map_err(
            |error| match error {
                EndError::Disk(error) => error,
                EndError::Fill(error) => self.fill_error(error),
            },
        )?;
        tracing::info!(vm = %self.vm, disk = %self.name, "the disk is filled");
        Ok(())
    }

    fn told<T>(&self, action: &'static str, result: Result<T, RequestError>) -> Result<T, DiskError> {
        result.map_err(|error| match error {
            RequestError::Io(source) => self.io(action, source),
            RequestError::Fill(source) => self.fill_error(source),
        })
    }

    fn fill_error(&self, source: FillError) -> DiskError {
        DiskError::Fill { vm: self.vm.clone(), disk: self.name.clone(), source }
    }

    /// The moment after all writes that have returned.
    pub(crate) fn now(&self) -> Ticket {
        Ticket(self.lock().written)
    }

    /// Returns when everything up to `ticket` is on stable storage. Callers share fdatasync calls: one of
    /// them makes the call for all writes that returned before it, the others wait.
    pub(crate) fn commit(&self, ticket: Ticket) -> Result<(), DiskError> {
        self.counters.commits.fetch_add(1, Relaxed);
        let mut sync = self.lock();
        loop {
            assert!(sync.synced <= sync.written && ticket.0 <= sync.written, "a ticket from the future");
            if ticket.0 <= sync.synced {
                return Ok(());
            }
            if let Some(reason) = &sync.failed {
                return Err(self.failed(reason.clone()));
            }
            if sync.running {
                sync = self.changed.wait(sync).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            sync.running = true;
            let target = sync.written;
            drop(sync);
            let result = self.sync_file();
            sync = self.lock();
            sync.running = false;
            match result {
                Ok(()) => sync.synced = target,
                Err(error) => {
                    let (vm, disk) = (&self.vm, &self.name);
                    tracing::error!(vm, disk, %error, "fdatasync failed: disk out of service");
                    self.out_of_service.store(true, Relaxed);
                    sync.failed = Some(error.to_string());
                }
            }
            self.changed.notify_all();
        }
    }

    fn sync_file(&self) -> std::io::Result<()> {
        self.faults.reach(CrashPoint::BeforeSync);
        self.faults.on_sync(&self.vm)?;
        let begin = clock::now();
        let result = self.file.sync_data();
        let took_ns = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.counters.syncs.fetch_add(1, Relaxed);
        self.counters.sync_ns.fetch_add(took_ns, Relaxed);
        self.counters.sync_max_ns.fetch_max(took_ns, Relaxed);
        result
    }

    /// Its counters.
    pub(crate) fn statistics(&self) -> DiskStatistics {
        let counters = &self.counters;
        DiskStatistics {
            name: self.name.clone(),
            bytes: self.bytes,
            content: format!("{:?}", self.content()),
            reads: counters.reads.load(Relaxed),
            read_bytes: counters.read_bytes.load(Relaxed),
            writes: counters.writes.load(Relaxed),
            written_bytes: counters.written_bytes.load(Relaxed),
            commits: counters.commits.load(Relaxed),
            syncs: counters.syncs.load(Relaxed),
            sync_ns: counters.sync_ns.load(Relaxed),
            sync_max_ns: counters.sync_max_ns.load(Relaxed),
            failed: self.lock().failed.clone(),
        }
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        if !offset.is_multiple_of(SECTOR) || !len.is_multiple_of(SECTOR) {
            return Err(DiskError::Unaligned { offset, len });
        }
        if len > MAX_TRANSFER as u64 {
            return Err(DiskError::TooLong { len });
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(DiskError::Beyond { offset, len, bytes: self.bytes }),
        }
    }

    fn in_service(&self) -> Result<(), DiskError> {
        if !self.out_of_service.load(Relaxed) {
            return Ok(());
        }
        let reason = self.lock().failed.clone().unwrap_or_default();
        Err(self.failed(reason))
    }

    fn failed(&self, reason: String) -> DiskError {
        DiskError::Failed { vm: self.vm.clone(), disk: self.name.clone(), reason }
    }

    fn io(&self, action: &'static str, source: std::io::Error) -> DiskError {
        DiskError::Io { vm: self.vm.clone(), disk: self.name.clone(), action, source }
    }

    fn lock(&self) -> MutexGuard<'_, Sync> {
        self.sync.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
