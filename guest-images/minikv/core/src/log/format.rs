//! Bytes of superblocks and batches. Everything is little endian.
//!
//! ```text
//!  superblock   0 magic "MINIKVLG"   8 version u32    12 CRC-32 of the rest u32
//!  (one sector) 16 serial u64        24 epoch u32     28 active half u32
//!               32 sectors of a half u64              40 first sequence of the active half u64
//!               48 epoch in which the active half began u32          52 disk id u32      56.. zero
//!
//!  batch        0 length of the operations u32        4 CRC-32 of bytes 8.., xor the disk id u32
//!               8 sequence u64       16 epoch u32     20 number of operations u32
//!               24 operations, then zeros up to a whole sector
//!
//!  operation    kind u8, then   1 set: key length u32, value length u32, key, value
//!                               2 delete: key length u32, key
//!                               3 clear
//!                               4 append: as set
//! ```

use alloc::vec::Vec;

/// Version of all of it; a disk of another version is refused.
pub const LOG_FORMAT_VERSION: u32 = 1;
/// Bytes of a sector.
pub const SECTOR_LEN: usize = 512;
/// Bytes of a batch's header.
pub const BATCH_HEADER_LEN: usize = 24;
/// Longest batch, header and padding included.
pub const MAX_BATCH_LEN: usize = 2 << 20;

const MAGIC: [u8; 8] = *b"MINIKVLG";

/// Slicing-by-8 tables of the IEEE CRC-32.
static CRC_TABLES: [[u32; 256]; 8] = crc_tables();

const fn crc_tables() -> [[u32; 256]; 8] {
    let mut tables = [[0u32; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ 0xedb8_8320 } else { value >> 1 };
            bit += 1;
        }
        tables[0][byte] = value;
        byte += 1;
    }
    let mut byte = 0;
    while byte < 256 {
        let mut table = 1;
        while table < 8 {
            let before = tables[table - 1][byte];
            tables[table][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            table += 1;
        }
        byte += 1;
    }
    tables
}

/// The IEEE CRC-32 of `bytes` (0xcbf4_3926 for "123456789").
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let word = u64::from_le_bytes(word.try_into().expect("eight bytes")) ^ u64::from(crc);
        crc = 0;
        for (index, table) in CRC_TABLES.iter().rev().enumerate() {
            crc ^= table[(word >> (8 * index)) as usize & 0xff];
        }
    }
    for &byte in words.remainder() {
        crc = (crc >> 8) ^ CRC_TABLES[0][((crc ^ u32::from(byte)) & 0xff) as usize];
    }
    !crc
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// What a superblock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Superblock {
    /// Counts superblocks written; the valid copy with the higher one holds.
    pub serial: u64,
    /// Counts boots.
    pub epoch: u32,
    /// The active half, 0 or 1.
    pub active: u32,
    /// Sectors of a half.
    pub half_sectors: u64,
    /// Sequence of the active half's first batch.
    pub first_seq: u64,
    /// Epoch in which the active half began.
    pub base_epoch: u32,
    /// Given when the disk was formatted: tells its batches from those of what was there before.
    pub disk_id: u32,
}

/// What a sector that should hold a superblock holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Valid(Superblock),
    /// Nothing but zeros.
    Empty,
    /// It begins like a superblock, but its CRC or its values are wrong.
    Damaged,
    /// A superblock of this other version.
    Version(u32),
    /// Something that is not ours.
    Foreign,
}

impl Superblock {
    /// The sector that holds it.
    pub fn encode(&self) -> [u8; SECTOR_LEN] {
        let mut sector = [0u8; SECTOR_LEN];
        sector[..8].copy_from_slice(&MAGIC);
        sector[8..12].copy_from_slice(&LOG_FORMAT_VERSION.to_le_bytes());
        sector[16..24].copy_from_slice(&self.serial.to_le_bytes());
        sector[24..28].copy_from_slice(&self.epoch.to_le_bytes());
        sector[28..32].copy_from_slice(&self.active.to_le_bytes());
        sector[32..40].copy_from_slice(&self.half_sectors.to_le_bytes());
        sector[40..48].copy_from_slice(&self.first_seq.to_le_bytes());
        sector[48..52].copy_from_slice(&self.base_epoch.to_le_bytes());
        sector[52..56].copy_from_slice(&self.disk_id.to_le_bytes());
        let crc = crc32(&sector[16..]);
        sector[12..16].copy_from_slice(&crc.to_le_bytes());
        sector
    }

    /// Judges a sector.
    pub fn decode(sector: &[u8]) -> Found {
        if sector.iter().all(|&byte| byte == 0) {
            return Found::Empty;
        }
        if sector[..8] != MAGIC {
            // The first bytes of a torn first write.
            let written = sector.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            let ours = written < 8 && sector[..written] == MAGIC[..written];
            return if ours { Found::Damaged } else { Found::Foreign };
        }
        if u32_at(sector, 12) != crc32(&sector[16..]) {
            return Found::Damaged;
        }
        let version = u32_at(sector, 8);
        if version != LOG_FORMAT_VERSION {
            return Found::Version(version);
        }
        let found = Self {
            serial: u64_at(sector, 16),
            epoch: u32_at(sector, 24),
            active: u32_at(sector, 28),
            half_sectors: u64_at(sector, 32),
            first_seq: u64_at(sector, 40),
            base_epoch: u32_at(sector, 48),
            disk_id: u32_at(sector, 52),
        };
        let sane = found.active <= 1 && found.half_sectors > 0 && found.base_epoch <= found.epoch;
        if sane { Found::Valid(found) } else { Found::Damaged }
    }
}

/// One change of the data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op<'a> {
    /// The key has this value now.
    Set(&'a [u8], &'a [u8]),
    /// The key is gone.
    Delete(&'a [u8]),
    /// All keys are gone.
    Clear,
    /// This was added to the key's value.
    Append(&'a [u8], &'a [u8]),
}

/// Bytes of an operation with a key and a value of these lengths, at most.
pub const fn op_len(key_len: usize, value_len: usize) -> usize {
    9 + key_len + value_len
}

impl<'a> Op<'a> {
    /// Bytes of its encoding, at most.
    pub fn len(&self) -> usize {
        match self {
            Op::Set(key, value) | Op::Append(key, value) => op_len(key.len(), value.len()),
            Op::Delete(key) => op_len(key.len(), 0),
            Op::Clear => 1,
        }
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Appends its encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (kind, parts): (u8, &[&[u8]]) = match self {
            Op::Set(key, value) => (1, &[key, value]),
            Op::Delete(key) => (2, &[key]),
            Op::Clear => (3, &[]),
            Op::Append(key, value) => (4, &[key, value]),
        };
        out.push(kind);
        for part in parts {
            out.extend_from_slice(&(part.len() as u32).to_le_bytes());
        }
        for part in parts {
            out.extend_from_slice(part);
        }
    }

    /// Decodes the operation at the head of `bytes`; returns it and what follows.
    pub fn decode(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (&kind, bytes) = bytes.split_first()?;
        let count = match kind {
            1 | 4 => 2,
            2 => 1,
            3 => return Some((Op::Clear, bytes)),
            _ => return None,
        };
        let (lengths, content) = bytes.split_at_checked(4 * count)?;
        let (key, rest) = content.split_at_checked(u32_at(lengths, 0) as usize)?;
        if count == 1 {
            return Some((Op::Delete(key), rest));
        }
        let (value, rest) = rest.split_at_checked(u32_at(lengths, 4) as usize)?;
        Some((if kind == 1 { Op::Set(key, value) } else { Op::Append(key, value) }, rest))
    }
}

/// Fills in the header of a batch whose operations follow it in `batch`, and pads it to whole sectors.
pub(super) fn seal_batch(batch: &mut Vec<u8>, superblock: &Superblock, seq: u64, ops: u32) {
    let len = batch.len() - BATCH_HEADER_LEN;
    batch[..4].copy_from_slice(&(len as u32).to_le_bytes());
    batch[8..16].copy_from_slice(&seq.to_le_bytes());
    batch[16..20].copy_from_slice(&superblock.epoch.to_le_bytes());
    batch[20..24].copy_from_slice(&ops.to_le_bytes());
    let crc = crc32(&batch[8..]) ^ superblock.disk_id;
    batch[4..8].copy_from_slice(&crc.to_le_bytes());
    batch.resize(batch.len().next_multiple_of(SECTOR_LEN), 0);
}

/// What the header of a batch says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchHeader {
    /// Bytes of the operations.
    pub len: usize,
    pub crc: u32,
    pub seq: u64,
    pub epoch: u32,
    pub ops: u32,
}

impl BatchHeader {
    /// Reads the header at the head of a sector.
    pub fn decode(bytes: &[u8]) -> Self {
        Self {
            len: u32_at(bytes, 0) as usize,
            crc: u32_at(bytes, 4),
            seq: u64_at(bytes, 8),
            epoch: u32_at(bytes, 16),
            ops: u32_at(bytes, 20),
        }
    }

    /// Bytes of the batch, padding included.
    pub fn padded_len(&self) -> usize {
        (BATCH_HEADER_LEN + self.len).next_multiple_of(SECTOR_LEN)
    }

    /// Whether `batch`, which begins with this header and is whole, is what was written to this disk.
    pub fn matches(&self, batch: &[u8], disk_id: u32) -> bool {
        crc32(&batch[8..BATCH_HEADER_LEN + self.len]) ^ disk_id == self.crc
    }
}
