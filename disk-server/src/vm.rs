//! One VM: its fence, its disks, and who is connected.
//!
//! The fence is a reader-writer lock around the holding. A write holds it shared from the check of its
//! generation until its bytes are in the file; a claim holds it alone from the decision until the record is
//! durable. So when a claim is answered, every write of an older generation is finished, and none can begin
//! any more. Nothing is shared between VMs: one that waits for its storage delays no other.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use logchannel::Generation;

use crate::disk::Disk;
use crate::disk_file;
use crate::faults::{CrashPoint, Faults};
use crate::generation_file;
use crate::options::Limits;
use crate::presence::Presence;
use crate::protocol::{Purpose, VmState, is_name};
use crate::record::{Ownership, Tenure};
use crate::record_file::ReplaceError;
use crate::status::VmStatistics;
use crate::store::StoreError;
use crate::test_and_set::{Claimant, Decision, Refusal, admits, decide};

const DISKS: &str = "disks";

/// A claim, and from where it comes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClaimRequest {
    pub(crate) expect: Generation,
    pub(crate) claimant: Claimant,
    pub(crate) purpose: Purpose,
    /// Whether the claimant is the process that has the directory open: its holding ends with the process.
    pub(crate) local: bool,
}

/// What becomes of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The test-and-set decided.
    Decided(Decision),
    /// A start must wait: the holder is there, or may return.
    Held(VmState),
}

#[derive(Debug)]
struct Fence {
    ownership: Ownership,
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
    presence: Presence,
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

    /// The VM in `dir`. If its record is damaged it exists, but refuses everything. A holder that is not
    /// connected may return for `grace`, also after this start.
    pub(crate) fn load(dir: PathBuf, name: &str, grace: Duration, faults: Arc<Faults>) -> Self {
        let fence = match generation_file::load(&dir, name) {
            Ok(mut ownership) => {
                if ownership.tenure == Tenure::Local {
                    // Its process had the directory's lock, which is ours now.
                    ownership.tenure = Tenure::Released;
                }
                Fence { ownership, damaged: None }
            }
            Err(error) => {
                tracing::error!(vm = name, %error, "VM out of service");
                Fence { ownership: Ownership::default(), damaged: Some(error.to_string()) }
            }
        };
        let presence = Presence::new(fence.ownership.holding.holder, grace);
        Self {
            name: name.into(),
            dir,
            faults,
            fence: RwLock::new(fence),
            disks: Mutex::default(),
            presence,
            claims_won: AtomicU64::new(0),
            claims_lost: AtomicU64::new(0),
            fenced: AtomicU64::new(0),
        }
    }

    /// The test-and-set. A grant is durable when this returns.
    pub(crate) fn claim(&self, request: ClaimRequest) -> Result<Verdict, StoreError> {
        let ClaimRequest { expect, claimant, purpose, local } = request;
        let mut fence = self.fence.write().map_err(|_| self.poisoned())?;
        let before = self.sound(&fence)?;
        let decision = decide(&before.holding, expect, claimant);
        match decision {
            Decision::Grant(next) => {
                assert!(next.generation > before.holding.generation, "a generation never decreases");
                if purpose == Purpose::Start && before.holding.holder != Some(claimant) {
                    let state = self.describe(&before);
                    if state.holder_connected || state.may_return_ms > 0 {
                        tracing::info!(vm = %self.name, ?state, "a start must wait");
                        return Ok(Verdict::Held(state));
                    }
                    if local && !state.ended && state.holding.holder.is_some() {
                        return Err(StoreError::HeldElsewhere { vm: self.name.clone() });
                    }
                }
                let tenure = if local { Tenure::Local } else { Tenure::MayReturn };
                self.store(&mut fence, Ownership { holding: next, tenure })?;
                self.presence.set_holder(claimant);
                tracing::info!(vm = %self.name, generation = next.generation, ?purpose, "generation granted");
                self.faults.reach(CrashPoint::AfterRecord);
                self.claims_won.fetch_add(1, Relaxed);
            }
            Decision::Repeat(_) => {}
            Decision::Lost(holding) => {
                tracing::info!(vm = %self.name, expect, generation = holding.generation, "claim lost");
                self.claims_lost.fetch_add(1, Relaxed);
            }
        }
        Ok(Verdict::Decided(decision))
    }

    /// The holder has ended. Durable when this returns.
    pub(crate) fn release(&self, generation: Generation, claimant: Claimant) -> Result<(), StoreError> {
        let mut fence = self.fence.write().map_err(|_| self.poisoned())?;
        let Ownership { holding, tenure } = self.sound(&fence)?;
        admits(&holding, generation)?;
        if holding.holder != Some(claimant) {
            return Err(Refusal::NeverGranted { asked: generation, current: holding.generation }.into());
        }
        if tenure != Tenure::Released {
            self.store(&mut fence, Ownership { holding, tenure: Tenure::Released })?;
            tracing::info!(vm = %self.name, generation, "generation released");
        }
        Ok(())
    }

    fn store(&self, fence: &mut Fence, next: Ownership) -> Result<(), StoreError> {
        match generation_file::replace(&self.dir, &self.name, &next, &self.faults) {
            Ok(()) => {
                fence.ownership = next;
                Ok(())
            }
            Err(ReplaceError::Unchanged(source)) => {
                Err(StoreError::io("write the generation record in", &self.dir, source))
            }
            Err(error @ ReplaceError::Uncertain(_)) => {
                tracing::error!(vm = %self.name, %error, "VM out of service until restart");
                let record = "the generation record";
                fence.damaged =
                    Some(format!("{record}: {error}; check the storage, then restart the disk server"));
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
        let Ownership { holding, tenure } = self.sound(&fence)?;
        if let Err(refusal) = admits(&holding, generation) {
            self.fenced.fetch_add(1, Relaxed);
            return Err(refusal.into());
        }
        if tenure == Tenure::Released {
            return Err(StoreError::Released { vm: self.name.clone(), generation });
        }
        action()
    }

    /// Generation, holder, and whether the holder is there or may return.
    pub(crate) fn state(&self) -> Result<VmState, StoreError> {
        let fence = self.fence.read().map_err(|_| self.poisoned())?;
        Ok(self.describe(&self.sound(&fence)?))
    }

    fn describe(&self, ownership: &Ownership) -> VmState {
        let Ownership { holding, tenure } = *ownership;
        let ended = holding.holder.is_some() && tenure == Tenure::Released;
        let (holder_connected, may_return) = self.presence.holder();
        let may_return_ms = match ended {
            true => 0,
            // Rounded up: 0 says that it may not.
            false => u64::try_from(may_return.as_micros().div_ceil(1000)).unwrap_or(u64::MAX),
        };
        VmState { holding, holder_connected: holder_connected && !ended, ended, may_return_ms }
    }

    /// Notes that one more connection belongs to `claimant`.
    pub(crate) fn connect(&self, claimant: Claimant) {
        self.presence.connect(claimant);
    }

    /// Takes back one `connect`.
    pub(crate) fn disconnect(&self, claimant: Claimant) {
        self.presence.disconnect(claimant);
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
                let place = disk_file::Place { vm: &self.name, dir: self.dir.join(DISKS), disk: name };
                let disk = place.open(create_bytes, limits, &self.faults)?;
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

    /// The disks opened since the start.
    pub(crate) fn disks(&self) -> Vec<Arc<Disk>> {
        lock(&self.disks).values().cloned().collect()
    }

    /// Its counters. Does not wait for a claim that is being made durable.
    pub(crate) fn statistics(&self) -> VmStatistics {
        let (state, damaged) = match self.fence.try_read() {
            Ok(fence) => (Some(self.describe(&fence.ownership)), fence.damaged.clone()),
            Err(_) => (None, None),
        };
        let state = state.filter(|_| damaged.is_none());
        let known = state.map(|state| state.holding);
        VmStatistics {
            name: self.name.clone(),
            generation: known.map(|holding| holding.generation),
            holder: known.and_then(|holding| holding.holder).map(|holder| format!("{holder:032x}")),
            holder_connected: state.is_some_and(|state| state.holder_connected),
            ended: state.is_some_and(|state| state.ended),
            damaged,
            claims_won: self.claims_won.load(Relaxed),
            claims_lost: self.claims_lost.load(Relaxed),
            fenced: self.fenced.load(Relaxed),
            disks: self.disks().iter().map(|disk| disk.statistics()).collect(),
        }
    }

    fn sound(&self, fence: &Fence) -> Result<Ownership, StoreError> {
        match &fence.damaged {
            None => Ok(fence.ownership),
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
        let vm = Vm::load(dir.path().into(), "vm", Duration::ZERO, Arc::default());
        let purpose = Purpose::Failover;
        vm.claim(ClaimRequest { expect: 0, claimant: 7, purpose, local: false }).unwrap();
        let inside = vm.fenced(1, || Ok(vm.fence.try_write().is_err())).unwrap();
        assert!(inside && vm.fence.try_write().is_ok());
    }
}
