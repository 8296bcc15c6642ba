//! The append-only log on the disk.
//!
//! ```text
//!  sector 0          superblock copy 0
//!  sector 8          superblock copy 1
//!  sector 16         half 0: batch, batch, batch, …
//!  sector 16 + H     half 1: batch, batch, batch, …
//! ```
//!
//! One half is active: its batches, in order, make the data set. A batch is what one disk write carries: all
//! commands that were executed while the write before it was under way. It is valid as a whole or not at all,
//! begins at a sector of its own and is padded to whole sectors, so a torn write never touches what was
//! acknowledged. When the active half is full, the live set is written to the other one, then a superblock
//! that names it (compaction); the two superblocks take turns, so one of them is always whole.
//!
//! A batch belongs to the log if its CRC holds, its sequence number is the next one, and its epoch is not
//! lower than that of the batch before it. The epoch counts boots, and is durable before the boot's first
//! batch: what a torn write of an earlier boot left behind can thus never continue a later boot's log.

mod format;
mod journal;
mod recovery;

pub use format::{BATCH_HEADER_LEN, LOG_FORMAT_VERSION, MAX_BATCH_LEN, Op, SECTOR_LEN, crc32, op_len};
pub use journal::{DiskWrite, Journal, Room};
pub use recovery::{Recovery, RecoveryError, Step};

/// Sectors before the first half.
const AREA_START: u64 = 16;
/// Where the two copies of the superblock are.
const SUPERBLOCK_SECTORS: [u64; 2] = [0, 8];
/// A half is a multiple of this many sectors (4 KiB).
const HALF_ALIGN: u64 = 8;
/// The smallest disk that is worth using, in sectors (1 MiB).
pub const MIN_DISK_SECTORS: u64 = 2048;
