//! The generation record of one VM on disk: read at the start, replaced as a whole at each won claim.

use std::io;
use std::path::{Path, PathBuf};

use crate::faults::{CrashPoint, Faults};
use crate::record::{self, Ownership, RECORD_LEN, RecordError};
use crate::record_file::{self, ReplaceError, Step};

const RECORD: &str = "generation";

/// Why a VM's record cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("cannot read the generation record {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("generation record {path}: {source}")]
    Record { path: PathBuf, source: RecordError },
}

/// Writes the files of a VM that was never held into its new directory. The caller makes the directory
/// durable.
pub(crate) fn create(dir: &Path, vm: &str) -> io::Result<()> {
    record_file::create(dir, RECORD, &record::encode(vm, &Ownership::default()))
}

/// The record in force, made durable.
pub(crate) fn load(dir: &Path, vm: &str) -> Result<Ownership, LoadError> {
    let path = dir.join(RECORD);
    let bytes =
        record_file::load(dir, RECORD).map_err(|source| LoadError::Io { path: path.clone(), source })?;
    record::decode(vm, &bytes).map_err(|source| LoadError::Record { path, source })
}

/// Puts `ownership` into force. On `Ok` it is durable.
pub(crate) fn replace(
    dir: &Path,
    vm: &str,
    ownership: &Ownership,
    faults: &Faults,
) -> Result<(), ReplaceError> {
    record_file::replace(dir, RECORD, &record::encode(vm, ownership), |step| {
        match step {
            Step::Begin => faults.reach(CrashPoint::BeforeRecord),
            Step::Write => return faults.due(CrashPoint::MidRecord).then_some(RECORD_LEN / 2),
            Step::Written => faults.reach(CrashPoint::BeforePublish),
            Step::Published => faults.reach(CrashPoint::AfterPublish),
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Tenure;
    use crate::test_and_set::Holding;

    fn held(generation: u64) -> Ownership {
        let holding = Holding { generation, holder: Some(u128::from(generation) * 3) };
        Ownership { holding, tenure: Tenure::MayReturn }
    }

    #[test]
    fn replaces_and_loads() {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path(), "vm").unwrap();
        assert_eq!(load(dir.path(), "vm").unwrap(), Ownership::default());
        for generation in 1..5 {
            replace(dir.path(), "vm", &held(generation), &Faults::default()).unwrap();
            assert_eq!(load(dir.path(), "vm").unwrap(), held(generation));
        }
    }

    #[test]
    fn the_scratch_file_may_hold_anything_or_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = dir.path().join("generation.next");
        create(dir.path(), "vm").unwrap();
        replace(dir.path(), "vm", &held(1), &Faults::default()).unwrap();
        std::fs::write(&scratch, [0xff; 1000]).unwrap();
        assert_eq!(load(dir.path(), "vm").unwrap(), held(1));
        replace(dir.path(), "vm", &held(2), &Faults::default()).unwrap();
        assert_eq!(load(dir.path(), "vm").unwrap(), held(2));
        std::fs::remove_file(&scratch).unwrap();
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
