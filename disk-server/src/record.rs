//! The durable record of a holding, as bytes.
//!
//! ```text
//!  0     4        6      8            16        32        33              97        124     128
//!  +-----+--------+------+------------+---------+---------+---------------+---------+-------+
//!  |LKGR | version| held | generation | holder  | name len| VM name       | zero    | CRC-32|
//!  +-----+--------+------+------------+---------+---------+---------------+---------+-------+
//!   4 B    u16      u16    u64          u128      u8        64 B            27 B      u32     little endian
//! ```
//!
//! The CRC (IEEE) covers everything before it. The name ties the record to its directory: a record copied to
//! another VM is refused, as is any other change of its bytes.

use crate::test_and_set::Holding;

/// Bytes of a record: less than a sector, so that no sane disk tears it.
pub const RECORD_LEN: usize = 128;

/// Version of the record's layout.
pub const RECORD_VERSION: u16 = 1;

const MAGIC: [u8; 4] = *b"LKGR";
const NAME: usize = 33;
const NAME_MAX: usize = 64;
const CRC: usize = RECORD_LEN - 4;

/// Why bytes are not the record of a VM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Cut short, or longer than a record.
    #[error("it has {0} bytes, a generation record has {RECORD_LEN}")]
    Length(usize),
    /// Something else altogether.
    #[error("it is no generation record: it begins with {0:02x?}")]
    Magic([u8; 4]),
    /// Written by another version.
    #[error("it has record version {0}, this program knows {RECORD_VERSION}: run the version that wrote it")]
    Version(u16),
    /// Torn or damaged.
    #[error("it is torn or damaged: CRC {found:08x}, computed {computed:08x}")]
    Crc {
        /// CRC in the record.
        found: u32,
        /// CRC of its bytes.
        computed: u32,
    },
    /// Sound, but of another VM, or not as any version writes it.
    #[error("it is sound but not the record of this VM")]
    Foreign,
}

/// The record of `vm`. Panics if the name is longer than 64 bytes: names are validated at the door.
pub fn encode(vm: &str, holding: &Holding) -> [u8; RECORD_LEN] {
    assert!(vm.len() <= NAME_MAX, "VM name too long for a record");
    assert_eq!(holding.holder.is_none(), holding.generation == 0, "only generation 0 has no holder");
    let mut bytes = [0; RECORD_LEN];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..6].copy_from_slice(&RECORD_VERSION.to_le_bytes());
    bytes[6..8].copy_from_slice(&u16::from(holding.holder.is_some()).to_le_bytes());
    bytes[8..16].copy_from_slice(&holding.generation.to_le_bytes());
    bytes[16..32].copy_from_slice(&holding.holder.unwrap_or(0).to_le_bytes());
    bytes[32] = vm.len() as u8;
    bytes[NAME..NAME + vm.len()].copy_from_slice(vm.as_bytes());
    let sum = crc32fast::hash(&bytes[..CRC]);
    bytes[CRC..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// The holding in the record of `vm`.
pub fn decode(vm: &str, bytes: &[u8]) -> Result<Holding, RecordError> {
    let record: &[u8; RECORD_LEN] = bytes.try_into().map_err(|_| RecordError::Length(bytes.len()))?;
    let magic = [record[0], record[1], record[2], record[3]];
    if magic != MAGIC {
        return Err(RecordError::Magic(magic));
    }
    let version = u16::from_le_bytes([record[4], record[5]]);
    if version != RECORD_VERSION {
        return Err(RecordError::Version(version));
    }
    let found = u32::from_le_bytes(record[CRC..].try_into().expect("four bytes"));
    let computed = crc32fast::hash(&record[..CRC]);
    if found != computed {
        return Err(RecordError::Crc { found, computed });
    }
    let generation = u64::from_le_bytes(record[8..16].try_into().expect("eight bytes"));
    let claimant = u128::from_le_bytes(record[16..32].try_into().expect("sixteen bytes"));
    let holding = Holding { generation, holder: (record[6] != 0).then_some(claimant) };
    let sound = holding.holder.is_none() == (generation == 0);
    // Encoding again compares the name, the flag and the padding in one go.
    if !sound || vm.len() > NAME_MAX || encode(vm, &holding) != *record {
        return Err(RecordError::Foreign);
    }
    Ok(holding)
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
