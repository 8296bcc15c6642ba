//! The generation record of one VM on disk: read at the start, replaced as a whole at each won claim.
//!
//! ```text
//!   generation       the record in force
//!   generation.next  scratch: the record before it, or a half-written one after it; never read
//!
//!   replace:  write generation.next ─ fdatasync ─ exchange the two names ─ fsync directory ─ (answer)
//! ```
//!
//! Both files exist from the VM's creation on, and replacing exchanges them (`renameat2`), so that a claim
//! needs no free space: a full file system must not keep a backup from going live. File systems that cannot
//! exchange get a plain rename, which only has to find room for the next scratch file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::faults::{CrashPoint, Faults};
use crate::record::{self, RECORD_LEN, RecordError};
use crate::test_and_set::Holding;

const RECORD: &str = "generation";
const SCRATCH: &str = "generation.next";

/// Why a VM's record cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("cannot read the generation record {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("generation record {path}: {source}")]
    Record { path: PathBuf, source: RecordError },
}

/// Why a record was not replaced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplaceError {
    /// The old record is in force, now and after any restart.
    #[error("cannot write the generation record: {0}")]
    Unchanged(io::Error),
    /// Nobody can say which record is in force after a power failure.
    #[error("cannot make the generation record durable: {0}")]
    Uncertain(io::Error),
}

/// Writes the files of a VM that was never held into its new directory. The caller makes the directory
/// durable.
pub(crate) fn create(dir: &Path, vm: &str) -> io::Result<()> {
    let bytes = record::encode(vm, &Holding::default());
    for name in [RECORD, SCRATCH] {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(dir.join(name))?;
        file.write_all_at(&bytes, 0)?;
        file.sync_all()?;
    }
    Ok(())
}

/// The record in force, made durable: a server before this one may have died between exchange and fsync.
pub(crate) fn load(dir: &Path, vm: &str) -> Result<Holding, LoadError> {
    let path = dir.join(RECORD);
    let read = || {
        let bytes = std::fs::read(&path)?;
        File::open(&path)?.sync_all()?;
        File::open(dir)?.sync_all()?;
        Ok(bytes)
    };
    let bytes = read().map_err(|source| LoadError::Io { path: path.clone(), source })?;
    record::decode(vm, &bytes).map_err(|source| LoadError::Record { path, source })
}

/// Puts `holding` into force. On `Ok` it is durable.
pub(crate) fn replace(dir: &Path, vm: &str, holding: &Holding, faults: &Faults) -> Result<(), ReplaceError> {
    let bytes = record::encode(vm, holding);
    faults.reach(CrashPoint::BeforeRecord);
    write_scratch(dir, &bytes, faults).map_err(ReplaceError::Unchanged)?;
    faults.reach(CrashPoint::BeforePublish);
    let (scratch, record) = (dir.join(SCRATCH), dir.join(RECORD));
    match renameat2(AT_FDCWD, &scratch, AT_FDCWD, &record, RenameFlags::RENAME_EXCHANGE) {
        Ok(()) => {}
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            std::fs::rename(&scratch, &record).map_err(ReplaceError::Uncertain)?;
        }
        Err(error) => return Err(ReplaceError::Uncertain(error.into())),
    }
    faults.reach(CrashPoint::AfterPublish);
    let sync = || File::open(dir)?.sync_all();
    sync().map_err(ReplaceError::Uncertain)
}

fn write_scratch(dir: &Path, bytes: &[u8; RECORD_LEN], faults: &Faults) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(dir.join(SCRATCH))?;
    if file.metadata()?.len() > RECORD_LEN as u64 {
        file.set_len(RECORD_LEN as u64)?;
    }
    if faults.due(CrashPoint::MidRecord) {
        let _ = file.write_all_at(&bytes[..RECORD_LEN / 2], 0);
        std::process::abort();
    }
    file.write_all_at(bytes, 0)?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(generation: u64) -> Holding {
        Holding { generation, holder: Some(u128::from(generation) * 3) }
    }

    #[test]
    fn replaces_and_loads() {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path(), "vm").unwrap();
        assert_eq!(load(dir.path(), "vm").unwrap(), Holding::default());
        for generation in 1..5 {
            replace(dir.path(), "vm", &held(generation), &Faults::default()).unwrap();
            assert_eq!(load(dir.path(), "vm").unwrap(), held(generation));
        }
    }

    #[test]
    fn the_scratch_file_may_hold_anything_or_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path(), "vm").unwrap();
        replace(dir.path(), "vm", &held(1), &Faults::default()).unwrap();
        std::fs::write(dir.path().join(SCRATCH), [0xff; 1000]).unwrap();
        assert_eq!(load(dir.path(), "vm").unwrap(), held(1));
        replace(dir.path(), "vm", &held(2), &Faults::default()).unwrap();
        assert_eq!(load(dir.path(), "vm").unwrap(), held(2));
        std::fs::remove_file(dir.path().join(SCRATCH)).unwrap();
        replace(dir.path(), "vm", &held(3), &Faults::default()).unwrap();
        assert_eq!(load(dir.path(), "vm").unwrap(), held(3));
    }

    #[test]
    fn a_damaged_or_missing_record_is_never_taken_for_a_new_vm() {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path(), "vm").unwrap();
        replace(dir.path(), "vm", &held(1), &Faults::default()).unwrap();
        let path = dir.path().join(RECORD);
        std::fs::write(&path, &record::encode("vm", &held(1))[..64]).unwrap();
        assert!(matches!(load(dir.path(), "vm"), Err(LoadError::Record { .. })));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(load(dir.path(), "vm"), Err(LoadError::Io { .. })));
    }

    #[test]
    fn without_a_directory_the_old_record_stays() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        let result = replace(&gone, "vm", &held(1), &Faults::default());
        assert!(matches!(result, Err(ReplaceError::Unchanged(_))));
    }
}
