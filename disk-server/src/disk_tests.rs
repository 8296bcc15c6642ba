//! A disk: reads, writes, group commit, failures.

use super::*;
use crate::faults::Fault;

const BYTES: u64 = 8 << 20;

fn disk_in(file: File, faults: Faults) -> Disk {
    let fill = Fill::new("unused".into(), "disk", Content::Filled, Arc::default());
    Disk::new("vm", "disk", file, BYTES, fill, Arc::new(faults))
}

fn disk_with(faults: Faults) -> Disk {
    let file = tempfile::tempfile().unwrap();
    file.set_len(BYTES).unwrap();
    disk_in(file, faults)
}

fn disk() -> Disk {
    disk_with(Faults::default())
}

#[test]
fn reads_what_was_written() {
    let disk = disk();
    disk.write(1, BYTES - 1024, &[7; 1024]).unwrap();
    assert_eq!(disk.read(1, BYTES - 1024, 1024).unwrap(), [7; 1024]);
    assert_eq!(disk.read(1, 0, 512).unwrap(), [0; 512]);
    assert!(disk.read(1, BYTES, 0).unwrap().is_empty());
}

#[test]
fn bounds() {
    let disk = disk();
    let refused =
        [(1, 512), (0, 511), (BYTES, 512), (BYTES - 512, 1024), (u64::MAX - 511, 512), (u64::MAX, 512)];
    for (offset, len) in refused {
        assert_eq!(disk.read(1, offset, len).unwrap_err().code(), ErrorCode::Invalid, "{offset} {len}");
        assert_eq!(disk.write(1, offset, &vec![1; len as usize]).unwrap_err().code(), ErrorCode::Invalid);
    }
    let long = u32::try_from(MAX_TRANSFER).unwrap() + 512;
    assert!(matches!(disk.read(1, 0, long), Err(DiskError::TooLong { .. })));
    assert!(matches!(disk.read(1, 0, !511), Err(DiskError::TooLong { .. })));
    assert!(matches!(disk.write(1, 0, &vec![0; long as usize]), Err(DiskError::TooLong { .. })));
}

#[test]
fn first_commit_syncs_and_an_idle_one_does_not() {
    let disk = disk();
    disk.commit(disk.now()).unwrap();
    assert_eq!(disk.statistics().syncs, 1);
    disk.commit(disk.now()).unwrap();
    assert_eq!(disk.statistics().syncs, 1);
    let ticket = disk.write(1, 0, &[1; 512]).unwrap();
    disk.write(1, 512, &[1; 512]).unwrap();
    disk.commit(ticket).unwrap();
    disk.commit(disk.now()).unwrap();
    assert_eq!(disk.statistics().syncs, 2, "one fdatasync covers both writes");
}

#[test]
fn a_failed_fdatasync_stays_failed() {
    let disk = disk_with(Faults::new(None, vec![Fault::FailSync("vm".into())]));
    let ticket = disk.write(1, 0, &[1; 512]).unwrap();
    for _ in 0..2 {
        assert_eq!(disk.commit(ticket).unwrap_err().code(), ErrorCode::Failed);
    }
    assert_eq!(disk.statistics().syncs, 0, "it was tried once, and never again");
    assert_eq!(disk.write(1, 0, &[1; 512]).unwrap_err().code(), ErrorCode::Failed);
    assert_eq!(disk.read(1, 0, 512).unwrap_err().code(), ErrorCode::Failed);
    assert!(disk.statistics().failed.is_some());
}

#[test]
fn a_real_failing_fdatasync_fails_the_disk() {
    // The kernel refuses fdatasync on a character device.
    let file = File::options().write(true).open("/dev/null").unwrap();
    let disk = disk_in(file, Faults::default());
    let ticket = disk.write(1, 0, &[1; 512]).unwrap();
    assert_eq!(disk.commit(ticket).unwrap_err().code(), ErrorCode::Failed);
    assert_eq!(disk.write(1, 0, &[1; 512]).unwrap_err().code(), ErrorCode::Failed);
}

#[test]
fn a_full_file_system_is_said_and_does_not_fail_the_disk() {
    let file = File::options().read(true).write(true).open("/dev/full").unwrap();
    let disk = disk_in(file, Faults::default());
    assert_eq!(disk.write(1, 0, &[1; 512]).unwrap_err().code(), ErrorCode::NoSpace);
    assert_eq!(disk.read(1, 0, 512).unwrap(), [0; 512]);
}

#[test]
fn commits_of_many_threads_share_fdatasyncs() {
    let disk = disk();
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let disk = &disk;
            scope.spawn(move || {
                for round in 0..50 {
                    let ticket = disk.write(1, thread * 4096, &[round; 512]).unwrap();
                    disk.commit(ticket).unwrap();
                }
            });
        }
    });
    let statistics = disk.statistics();
    assert_eq!((statistics.writes, statistics.commits), (400, 400));
    assert!((1..=400).contains(&statistics.syncs));
}
