//! Heartbeats: small datagrams both ways that say "alive". When to stop believing it is the protocol's affair
//! (`ft`).
//!
//! ```text
//!  0      4         6      7      8     16           24         40         48       52
//!  +------+---------+------+------+-----+------------+----------+----------+--------+
//!  | LKHB | version | role | zero | vm  | generation | claimant | sequence | CRC-32 |
//!  +------+---------+------+------+-----+------------+----------+----------+--------+
//!    4 B    u16       u8     u8     u64   u64          u128       u64        u32
//! ```
//!
//! All little endian. The CRC (IEEE) covers everything before it. A datagram of another length, or with
//! anything else in the fixed places, is no heartbeat.

use twox_hash::XxHash3_64;

use crate::LOG_VERSION;
use crate::entry::Generation;
use crate::message::Claimant;

/// Bytes of a heartbeat.
pub const HEARTBEAT_LEN: usize = 52;

const MAGIC: [u8; 4] = *b"LKHB";
const CRC_AT: usize = HEARTBEAT_LEN - 4;

/// Which half of the pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// It executes and talks to the world.
    Primary,
    /// It follows.
    Backup,
}

/// The number that stands for a virtual machine's name in heartbeats: xxh3-64.
pub fn vm_hash(name: &str) -> u64 {
    XxHash3_64::oneshot(name.as_bytes())
}

/// One heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// `vm_hash` of the machine's name.
    pub vm: u64,
    /// The generation that the sender lives in.
    pub generation: Generation,
    /// What the sender is.
    pub role: Role,
    /// Who the sender is.
    pub claimant: Claimant,
    /// Counts up with every heartbeat of this sender.
    pub sequence: u64,
}

/// Why a datagram is no heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeartbeatError {
    /// Its length.
    #[error("a datagram of {0} bytes is no heartbeat, which has {HEARTBEAT_LEN}")]
    Length(usize),
    /// Its first bytes.
    #[error("a datagram that begins with {0:02x?} is no heartbeat")]
    Magic([u8; 4]),
    /// Another version.
    #[error(
        "heartbeat version {found} from the peer, version {LOG_VERSION} here: run the same lockstep on both"
    )]
    Version {
        /// The version in the datagram.
        found: u16,
    },
    /// Changed on its way.
    #[error("damaged heartbeat: CRC {found:08x}, computed {computed:08x}")]
    Crc {
        /// CRC in the datagram.
        found: u32,
        /// CRC of what arrived.
        computed: u32,
    },
    /// A role that does not exist, or a byte set that must be zero.
    #[error("heartbeat with role {role} and reserved byte {zero}")]
    Fields {
        /// The role's byte.
        role: u8,
        /// The reserved byte.
        zero: u8,
    },
}

impl Heartbeat {
    /// The datagram.
    pub fn encode(&self) -> [u8; HEARTBEAT_LEN] {
        let mut bytes = [0; HEARTBEAT_LEN];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&LOG_VERSION.to_le_bytes());
        bytes[6] = match self.role {
            Role::Primary => 1,
            Role::Backup => 2,
        };
        bytes[8..16].copy_from_slice(&self.vm.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.generation.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.claimant.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.sequence.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The heartbeat in a datagram.
    pub fn decode(datagram: &[u8]) -> Result<Self, HeartbeatError> {
        let bytes: &[u8; HEARTBEAT_LEN] =
            datagram.try_into().map_err(|_| HeartbeatError::Length(datagram.len()))?;
        let magic = [bytes[0], bytes[1], bytes[2], bytes[3]];
        if magic != MAGIC {
            return Err(HeartbeatError::Magic(magic));
        }
        let version = u16::from_le_bytes([bytes[4], bytes[5]]);
        if version != LOG_VERSION {
            return Err(HeartbeatError::Version { found: version });
        }
        let found = u32::from_le_bytes(bytes[CRC_AT..].try_into().expect("four bytes"));
        let computed = crc32fast::hash(&bytes[..CRC_AT]);
        if found != computed {
            return Err(HeartbeatError::Crc { found, computed });
        }
        let role = match (bytes[6], bytes[7]) {
            (1, 0) => Role::Primary,
            (2, 0) => Role::Backup,
            (role, zero) => return Err(HeartbeatError::Fields { role, zero }),
        };
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        Ok(Self {
            vm: word(8),
            generation: word(16),
            role,
            claimant: u128::from_le_bytes(bytes[24..40].try_into().expect("sixteen bytes")),
            sequence: word(40),
        })
    }
}

#[cfg(test)]
#[path = "heartbeat_tests.rs"]
mod tests;
