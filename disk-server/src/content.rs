//! Whether a disk holds something that must not be overwritten by an image, durably.
//!
//! ```text
//!            BeginFill              EndFill
//!     New ─────────────▶ Filling ─────────────▶ Filled        never filled again, whatever its bytes are
//!      │                  │   ▲                   ▲
//!      │                  └───┘ BeginFill: begun anew, the disk is empty again
//!      └──────────────────────────────────────────┘ the first write of a guest
//! ```
//!
//! `DISK.state` holds it, 16 bytes, replaced as a whole (record_file.rs):
//!
//! ```text
//!  0     4         6         8       12      16
//!  +-----+---------+---------+-------+-------+
//!  |LKDC | version | content | zero  | CRC-32|    little endian; content: 0 New, 1 Filling, 2 Filled
//!  +-----+---------+---------+-------+-------+
//! ```
//!
//! A disk without a record was made by an older version, or put there by a person: it is new only if nothing
//! was ever written to its sparse file.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

use crate::faults::{CrashPoint, Faults};
use crate::protocol::{Content, MAX_TRANSFER};
use crate::record_file::{self, ReplaceError, Step};

const MAGIC: [u8; 4] = *b"LKDC";
const VERSION: u16 = 1;
const LEN: usize = 16;
const CRC: usize = LEN - 4;

/// Why the state of a disk is unknown.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The file system failed.
    #[error("cannot read it: {0}")]
    Io(#[from] io::Error),
    /// Not what was written.
    #[error("it is damaged, or no record of a disk's state")]
    Damaged,
    /// Written by another version.
    #[error("it has version {0}, this program knows {VERSION}: run the version that wrote it")]
    Version(u16),
}

fn name(disk: &str) -> String {
    format!("{disk}.state")
}

fn encode(content: Content) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
    let code: u16 = match content {
        Content::New => 0,
        Content::Filling => 1,
        Content::Filled => 2,
    };
    bytes[6..8].copy_from_slice(&code.to_le_bytes());
    let sum = crc32fast::hash(&bytes[..CRC]);
    bytes[CRC..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Result<Content, ContentError> {
    let record: &[u8; LEN] = bytes.try_into().map_err(|_| ContentError::Damaged)?;
    let sum = u32::from_le_bytes(record[CRC..].try_into().expect("four bytes"));
    if record[..4] != MAGIC || sum != crc32fast::hash(&record[..CRC]) {
        return Err(ContentError::Damaged);
    }
    match u16::from_le_bytes([record[4], record[5]]) {
        VERSION => {}
        other => return Err(ContentError::Version(other)),
    }
    let known = [Content::New, Content::Filling, Content::Filled];
    known.into_iter().find(|content| encode(*content) == *record).ok_or(ContentError::Damaged)
}

/// Writes the record of a disk that is about to be made. The caller makes the directory durable.
pub(crate) fn create(dir: &Path, disk: &str) -> io::Result<()> {
    record_file::create(dir, &name(disk), &encode(Content::New))
}

/// What the disk in `file` holds. Without a record, one is made.
pub(crate) fn load(dir: &Path, disk: &str, file: &File) -> Result<Content, ContentError> {
    let recorded = match record_file::load(dir, &name(disk)) {
        Ok(bytes) => Some(decode(&bytes)?),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    let content = match recorded {
        Some(content @ (Content::Filling | Content::Filled)) => return Ok(content),
        // A person may have put an image in the place of a disk that was never used.
        Some(Content::New) if was_written(file)? && holds_data(file)? => Content::Filled,
        Some(Content::New) => return Ok(Content::New),
        None if was_written(file)? => Content::Filled,
        None => Content::New,
    };
    record_file::create(dir, &name(disk), &encode(content))?;
    File::open(dir)?.sync_all()?;
    tracing::info!(disk, ?content, "a disk without a record of its state");
    Ok(content)
}

/// Puts `content` into force. On `Ok` it is durable.
pub(crate) fn replace(dir: &Path, disk: &str, content: Content, faults: &Faults) -> Result<(), ReplaceError> {
    record_file::replace(dir, &name(disk), &encode(content), |step| {
        match step {
            Step::Begin => faults.reach(CrashPoint::BeforeContent),
            Step::Published => faults.reach(CrashPoint::AfterContent),
            Step::Write | Step::Written => {}
        }
        None
    })
}

/// Whether anything was ever written to a sparse file. Where the file system cannot say, the answer is yes.
fn was_written(file: &File) -> io::Result<bool> {
    match lseek(file, 0, Whence::SeekData) {
        Ok(_) => Ok(true),
        Err(Errno::ENXIO) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether any byte of a file is not zero.
fn holds_data(file: &File) -> io::Result<bool> {
    let mut part = vec![0; MAX_TRANSFER];
    let mut at = 0;
    loop {
        let count = file.read_at(&mut part, at)?;
        if count == 0 || part[..count].iter().any(|byte| *byte != 0) {
            return Ok(count != 0);
        }
        at += count as u64;
    }
}

/// Makes a file of `bytes` read as zeros.
pub(crate) fn clear(file: &File, bytes: u64) -> io::Result<()> {
    let whole = nix::libc::off_t::try_from(bytes).map_err(|_| ErrorKind::FileTooLarge)?;
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match fallocate(file, punch, 0, whole) {
        Ok(()) => Ok(()),
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => write_zeros(file, bytes),
        Err(error) => Err(error.into()),
    }
}

fn write_zeros(file: &File, bytes: u64) -> io::Result<()> {
    let zeros = vec![0; MAX_TRANSFER];
    let mut at = 0;
    while at < bytes {
        let count = usize::try_from(bytes - at).map_or(zeros.len(), |left| left.min(zeros.len()));
        file.write_all_at(&zeros[..count], at)?;
        at += count as u64;
    }
    Ok(())
}

#[cfg(test)]
#[path = "content_tests.rs"]
mod tests;
