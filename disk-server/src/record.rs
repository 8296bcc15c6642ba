//! The durable record of a holding, as bytes.
//!
//! ```text
//!  0     4        6      8            16        32        33              97        124     128
//!  +-----+--------+------+------------+---------+---------+---------------+---------+-------+
//!  |LKGR | version|tenure| generation | holder  | name len| VM name       | zero    | CRC-32|
//!  +-----+--------+------+------------+---------+---------+---------------+---------+-------+
//!   4 B    u16      u16    u64          u128      u8        64 B            27 B      u32     little endian
//! ```
//!
//! The tenure is 0 for generation 0, 1 for a holder that may return, 2 for one that ended with the process
//! that had the directory open, 3 for one that said that it has ended. Version 1 knows 0 and 1 only, and is
//! read as such.
//!
//! The CRC (IEEE) covers everything before it. The name ties the record to its directory: a record copied to
//! another VM is refused, as is any other change of its bytes.

use crate::test_and_set::Holding;

/// Bytes of a record: less than a sector, so that no sane disk tears it.
pub const RECORD_LEN: usize = 128;

/// Version of the record's layout.
pub const RECORD_VERSION: u16 = 2;

/// The oldest version that is read.
const OLDEST_VERSION: u16 = 1;

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

/// What the holder of a generation may still do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tenure {
    /// It may run, wherever it is: a start waits for it.
    #[default]
    MayReturn,
    /// It was the process that had the directory open, and ended with it.
    Local,
    /// It said that it has ended: nothing is admitted under its generation any more.
    Released,
}

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ownership {
    /// Generation and holder.
    pub holding: Holding,
    /// What the holder may still do. Means nothing in generation 0.
    pub tenure: Tenure,
}

impl Ownership {
    fn code(&self) -> u16 {
        match (self.holding.holder, self.tenure) {
            (None, _) => 0,
            (Some(_), Tenure::MayReturn) => 1,
            (Some(_), Tenure::Local) => 2,
            (Some(_), Tenure::Released) => 3,
        }
    }
}

/// The record of `vm`. Panics if the name is longer than 64 bytes: names are validated at the door.
pub fn encode(vm: &str, ownership: &Ownership) -> [u8; RECORD_LEN] {
    encode_version(vm, ownership, RECORD_VERSION)
}

fn encode_version(vm: &str, ownership: &Ownership, version: u16) -> [u8; RECORD_LEN] {
    assert!(vm.len() <= NAME_MAX, "VM name too long for a record");
    let holding = &ownership.holding;
    assert_eq!(holding.holder.is_none(), holding.generation == 0, "only generation 0 has no holder");
    let mut bytes = [0; RECORD_LEN];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..6].copy_from_slice(&version.to_le_bytes());
    bytes[6..8].copy_from_slice(&ownership.code().to_le_bytes());
    bytes[8..16].copy_from_slice(&holding.generation.to_le_bytes());
    bytes[16..32].copy_from_slice(&holding.holder.unwrap_or(0).to_le_bytes());
    bytes[32] = u8::try_from(vm.len()).expect("at most 64");
    bytes[NAME..NAME + vm.len()].copy_from_slice(vm.as_bytes());
    let sum = crc32fast::hash(&bytes[..CRC]);
    bytes[CRC..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// What the record of `vm` says.
pub fn decode(vm: &str, bytes: &[u8]) -> Result<Ownership, RecordError> {
    let record: &[u8; RECORD_LEN] = bytes.try_into().map_err(|_| RecordError::Length(bytes.len()))?;
    let magic = [record[0], record[1], record[2], record[3]];
    if magic != MAGIC {
        return Err(RecordError::Magic(magic));
    }
    let version = u16::from_le_bytes([record[4], record[5]]);
    if !(OLDEST_VERSION..=RECORD_VERSION).contains(&version) {
        return Err(RecordError::Version(version));
    }
    let found = u32::from_le_bytes(record[CRC..].try_into().expect("four bytes"));
    let computed = crc32fast::hash(&record[..CRC]);
    if found != computed {
        return Err(RecordError::Crc { found, computed });
    }
    let generation = u64::from_le_bytes(record[8..16].try_into().expect("eight bytes"));
    let claimant = u128::from_le_bytes(record[16..32].try_into().expect("sixteen bytes"));
    let code = u16::from_le_bytes([record[6], record[7]]);
    let tenure = match code {
        2 if version > OLDEST_VERSION => Tenure::Local,
        3 if version > OLDEST_VERSION => Tenure::Released,
        _ => Tenure::MayReturn,
    };
    let holding = Holding { generation, holder: (code != 0).then_some(claimant) };
    let sound = holding.holder.is_none() == (generation == 0);
    let ownership = Ownership { holding, tenure };
    // Encoding again compares the name, the code and the padding in one go.
    if !sound || vm.len() > NAME_MAX || encode_version(vm, &ownership, version) != *record {
        return Err(RecordError::Foreign);
    }
    Ok(ownership)
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
