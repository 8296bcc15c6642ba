//! One VM: its fence, its disks, and who is connected.
//!
//! The fence is a reader-writer lock around the holding. A write holds it shared from the check of its
//! generation until its bytes are in the file; a claim holds it alone from the decision until the record is
//! durable. So when a claim is answered, every write of an older generation is finished, and none can begin
//! any more. Nothing is shared between VMs: one that waits for its storage delays no other.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use logchannel::Generation;

use crate::disk::Disk;
use crate::faults::{CrashPoint, Faults};
use crate::generation_file::{self, ReplaceError};
use crate::options::Limits;
use crate::protocol::{SECTOR, VmState, is_name};
use crate::status::VmStatistics;
use crate::store::StoreError;
use crate::test_and_set::{Claimant, Decision, Holding, admits, decide};

const DISKS: &str = "disks";

#[derive(Debug)]
struct Fence {
    holding: Holding,
    /// Why nothing can be said about the generation, if so.
    damaged: Option<String>,
}

/// One VM's state.
#[derive(Debug)]
pub(crate) struct Vm {
    name: String,
    dir: PathBuf,
    faults: Arc<Faults>,
    fence: RwLock<Fence>,
    disks: Mutex<BTreeMap<String, Arc<Disk>>>,
    connected: Mutex<BTreeMap<Claimant, usize>>,
    claims_won: AtomicU64,
    claims_lost: AtomicU64,
    fenced: AtomicU64,
}

impl Vm {
    /// Writes the files of a new VM into the fresh directory `dir`. The caller publishes the directory.
    pub(crate) fn create_files(dir: &Path, name: &str) -> std::io::Result<()> {
        generation_file::create(dir, name)?;
        DirBuilder::new().mode(0o700).create(dir.join(DISKS))?;
        File::open(dir)?.sync_all()
    }

    /// The VM in `dir`. If its record is damaged it exists, but refuses everything.
    pub(crate) fn load(dir: PathBuf, name: &str, faults: Arc<Faults>) -> Self {
        let fence = match generation_file::load(&dir, name) {
            Ok(holding) => Fence { holding, damaged: None },
            Err(error) => {
                tracing::error!(vm = name, %error, "VM out of service");
                Fence { holding: Holding::default(), damaged: Some(error.to_string()) }
            }
        };
        Self {
            name: name.into(),
            dir,
            faults,
            fence: RwLock::new(fence),
            disks: Mutex::default(),
            connected: Mutex::default(),
            claims_won: AtomicU64::new(0),
            claims_lost: AtomicU64::new(0),
            fenced: AtomicU64::new(0),
        }
    }

    /// The test-and-set. A grant is durable when this returns.
    pub(crate) fn claim(&self, expect: Generation, claimant: Claimant) -> Result<Decision, StoreError> {
        let mut fence = self.fence.write().map_err(|_| self.poisoned())?;
        let before = self.sound(&fence)?;
        let decision = decide(&before, expect, claimant);
        match decision {
            Decision::Grant(next) => {
                assert!(next.generation > before.generation, "a generation never decreases");
                self.store(&mut fence, next)?;
                tracing::info!(vm = %self.name, generation = next.generation, "generation granted");
                self.faults.reach(CrashPoint::AfterRecord);
                self.claims_won.fetch_add(1, Relaxed);
            }
            Decision::Repeat(_) => {}
            Decision::Lost(holding) => {
                tracing::info!(vm = %self.name, expect, generation = holding.generation, "claim lost");
                self.claims_lost.fetch_add(1, Relaxed);
            }
        }
        Ok(decision)
    }

    fn store(&self, fence: &mut Fence, next: Holding) -> Result<(), StoreError> {
        match generation_file::replace(&self.dir, &self.name, &next, &self.faults) {
            Ok(()) => {
                fence.holding = next;
                Ok(())
            }
            Err(ReplaceError::Unchanged(source)) => {
                Err(StoreError::io("write the generation record in", &self.dir, source))
            }
            Err(error @ ReplaceError::Uncertain(_)) => {
                tracing::error!(vm = %self.name, %error, "VM out of service until restart");
                fence.damaged = Some(format!("{error}; check the storage, then restart the disk server"));
                self.sound(fence).map(|_| ())
            }
        }
    }

    /// Runs `action` if `generation` is current, and keeps it current until `action` returns.
    pub(crate) fn fenced<T>(
        &self,
        generation: Generation,
        action: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let fence = self.fence.read().map_err(|_| self.poisoned())?;
        let holding = self.sound(&fence)?;
        if let Err(refusal) = admits(&holding, generation) {
            self.fenced.fetch_add(1, Relaxed);
            return Err(refusal.into());
        }
        action()
    }

    /// Generation, holder, and whether the holder is connected.
    pub(crate) fn state(&self) -> Result<VmState, StoreError> {
        let fence = self.fence.read().map_err(|_| self.poisoned())?;
        let holding = self.sound(&fence)?;
        drop(fence);
        Ok(VmState { holding, holder_connected: self.is_connected(&holding) })
    }

    fn is_connected(&self, holding: &Holding) -> bool {
        holding.holder.is_some_and(|holder| lock(&self.connected).contains_key(&holder))
    }

    /// Notes that one more connection belongs to `claimant`.
    pub(crate) fn connect(&self, claimant: Claimant) {
        *lock(&self.connected).entry(claimant).or_insert(0) += 1;
    }

    /// Takes back one `connect`.
    pub(crate) fn disconnect(&self, claimant: Claimant) {
        let mut connected = lock(&self.connected);
        match connected.get_mut(&claimant) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(connected.remove(&claimant)),
        }
    }

    /// Opens a disk, and creates it first if `create_bytes` is given and it does not exist.
    pub(crate) fn open_disk(
        &self,
        name: &str,
        create_bytes: Option<u64>,
        limits: &Limits,
    ) -> Result<Arc<Disk>, StoreError> {
        if !is_name(name) {
            return Err(StoreError::Name { what: "disk", name: name.into() });
        }
        let mut disks = lock(&self.disks);
        let disk = match disks.get(name) {
            Some(disk) => Arc::clone(disk),
            None => {
                let (file, bytes) = self.open_file(name, create_bytes, limits)?;
                let disk = Arc::new(Disk::new(&self.name, name, file, bytes, Arc::clone(&self.faults)));
                disks.insert(name.into(), Arc::clone(&disk));
                disk
            }
        };
        match create_bytes {
            Some(asked) if asked != disk.bytes() => {
                Err(StoreError::Size { disk: name.into(), bytes: disk.bytes(), asked })
            }
            _ => Ok(disk),
        }
    }

    fn open_file(
        &self,
        name: &str,
        create_bytes: Option<u64>,
        limits: &Limits,
    ) -> Result<(File, u64), StoreError> {
        let path = self.dir.join(DISKS).join(format!("{name}.img"));
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => match create_bytes {
                Some(bytes) => self.create_file(&path, bytes, limits)?,
                None => return Err(StoreError::NoDisk { vm: self.name.clone(), disk: name.into() }),
            },
            Err(error) => return Err(StoreError::io("open", &path, error)),
        };
        let metadata = file.metadata().map_err(|error| StoreError::io("examine", &path, error))?;
        if !metadata.is_file() || !metadata.len().is_multiple_of(SECTOR) || metadata.len() == 0 {
            return Err(StoreError::NotADisk { path, bytes: metadata.len() });
        }
        Ok((file, metadata.len()))
    }

    /// A new disk appears under its name only when it has its size, durably.
    fn create_file(&self, path: &Path, bytes: u64, limits: &Limits) -> Result<File, StoreError> {
        if bytes == 0 || !bytes.is_multiple_of(SECTOR) || bytes > limits.max_disk_bytes {
            return Err(StoreError::DiskSize { bytes, limit: limits.max_disk_bytes });
        }
        let dir = self.dir.join(DISKS);
        let create = || {
            let images = |entry: &std::io::Result<std::fs::DirEntry>| {
                entry.as_ref().is_ok_and(|entry| entry.path().extension().is_some_and(|e| e == "img"))
            };
            if std::fs::read_dir(&dir)?.filter(images).count() >= limits.max_disks {
                return Ok(None);
            }
            let unfinished = path.with_extension("new");
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(true).mode(0o600);
            let file = options.open(&unfinished)?;
            file.set_len(bytes)?;
            file.sync_all()?;
            std::fs::rename(&unfinished, path)?;
            File::open(&dir)?.sync_all()?;
            Ok(Some(file))
        };
        let file = create().map_err(|error| StoreError::io("create", path, error))?;
        tracing::info!(vm = %self.name, path = %path.display(), bytes, created = file.is_some(), "new disk");
        file.ok_or(StoreError::Limit { what: "disks of this VM", limit: limits.max_disks })
    }

    /// The disks opened since the start.
    pub(crate) fn disks(&self) -> Vec<Arc<Disk>> {
        lock(&self.disks).values().cloned().collect()
    }

    /// Its counters. Does not wait for a claim that is being made durable.
    pub(crate) fn statistics(&self) -> VmStatistics {
        let (holding, damaged) = match self.fence.try_read() {
            Ok(fence) => (Some(fence.holding), fence.damaged.clone()),
            Err(_) => (None, None),
        };
        let known = holding.filter(|_| damaged.is_none());
        VmStatistics {
            name: self.name.clone(),
            generation: known.map(|holding| holding.generation),
            holder: known.and_then(|holding| holding.holder).map(|holder| format!("{holder:032x}")),
            holder_connected: known.is_some_and(|holding| self.is_connected(&holding)),
            damaged,
            claims_won: self.claims_won.load(Relaxed),
            claims_lost: self.claims_lost.load(Relaxed),
            fenced: self.fenced.load(Relaxed),
            disks: self.disks().iter().map(|disk| disk.statistics()).collect(),
        }
    }

    fn sound(&self, fence: &Fence) -> Result<Holding, StoreError> {
        match &fence.damaged {
            None => Ok(fence.holding),
            Some(reason) => Err(StoreError::Damaged { vm: self.name.clone(), reason: reason.clone() }),
        }
    }

    /// A thread panicked inside the fence: what it had written is unknown.
    fn poisoned(&self) -> StoreError {
        let reason = "a request failed halfway; restart the disk server".into();
        StoreError::Damaged { vm: self.name.clone(), reason }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_claim_is_decided_while_a_request_is_inside_the_fence() {
        let dir = tempfile::tempdir().unwrap();
        Vm::create_files(dir.path(), "vm").unwrap();
        let vm = Vm::load(dir.path().into(), "vm", Arc::default());
        vm.claim(0, 7).unwrap();
        let inside = vm.fenced(1, || Ok(vm.fence.try_write().is_err())).unwrap();
        assert!(inside && vm.fence.try_write().is_ok());
    }
}
