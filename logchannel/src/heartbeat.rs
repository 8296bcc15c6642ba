//! Heartbeats: small datagrams both ways that say "alive", and the judgement when to stop believing it.
//!
//! ```text
//!  0      4         6      7      8     16           24         40         48         56         64       68
//!  +------+---------+------+------+-----+------------+----------+----------+----------+----------+--------+
//!  | LKHB | version | role | zero | vm  | generation | claimant | sequence | received | executed | CRC-32 |
//!  +------+---------+------+------+-----+------------+----------+----------+----------+----------+--------+
//!    4 B    u16       u8     u8     u64   u64          u128       u64        u64        u64        u32
//! ```
//!
//! All little endian. The CRC (IEEE) covers everything before it. A datagram of another length, or with
//! anything else in the fixed places, is no heartbeat.

use twox_hash::XxHash3_64;

use crate::LOG_VERSION;
use crate::entry::{Generation, Seq};
use crate::message::Claimant;

/// Bytes of a heartbeat.
pub const HEARTBEAT_LEN: usize = 68;

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
    /// Last entry received (backup) or appended (primary).
    pub received: Seq,
    /// Last entry executed.
    pub executed: Seq,
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
        bytes[48..56].copy_from_slice(&self.received.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.executed.to_le_bytes());
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
            received: word(48),
            executed: word(56),
        })
    }
}

/// Why a heartbeat says nothing about the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ignored {
    /// Of another virtual machine.
    #[error("it is of another virtual machine")]
    OtherVm,
    /// Our own, come back.
    #[error("it is our own")]
    Own,
    /// From somebody who is not the peer: a process that was, or wants to be.
    #[error("it is of a process that is not the peer")]
    Stranger,
    /// Of a generation that is past.
    #[error("it is of generation {0}, which is past")]
    OldGeneration(Generation),
    /// Repeated, or overtaken by a later one.
    #[error("it is a repeated or late one, number {0}")]
    OldSequence(u64),
}

/// Judges whether the peer is alive: from its heartbeats, and from the flow of the channel itself. Times are
/// nanoseconds on any clock that does not go back; the monitor itself reads none.
#[derive(Debug, Clone)]
pub struct PeerMonitor {
    vm: u64,
    own: Claimant,
    peer: Claimant,
    generation: Generation,
    timeout_ns: u64,
    last_heard_ns: u64,
    last_sequence: Option<u64>,
}

impl PeerMonitor {
    /// A monitor of `peer`, as the handshake named it, by `own`; the peer counts as heard at `now_ns`.
    pub fn new(
        vm: u64,
        generation: Generation,
        own: Claimant,
        peer: Claimant,
        timeout_ns: u64,
        now_ns: u64,
    ) -> Self {
        Self { vm, own, peer, generation, timeout_ns, last_heard_ns: now_ns, last_sequence: None }
    }

    /// Something came from the peer: entries or acks on the channel.
    pub fn heard(&mut self, now_ns: u64) {
        self.last_heard_ns = self.last_heard_ns.max(now_ns);
    }

    /// A heartbeat came. If it is the peer's latest, the peer counts as heard. A later generation in it is
    /// the caller's to act on: somebody went live.
    pub fn on_heartbeat(&mut self, heartbeat: &Heartbeat, now_ns: u64) -> Result<(), Ignored> {
        if heartbeat.vm != self.vm {
            return Err(Ignored::OtherVm);
        }
        if heartbeat.claimant == self.own {
            return Err(Ignored::Own);
        }
        if heartbeat.claimant != self.peer {
            return Err(Ignored::Stranger);
        }
        if heartbeat.generation < self.generation {
            return Err(Ignored::OldGeneration(heartbeat.generation));
        }
        if self.last_sequence.is_some_and(|last| heartbeat.sequence <= last) {
            return Err(Ignored::OldSequence(heartbeat.sequence));
        }
        self.last_sequence = Some(heartbeat.sequence);
        self.heard(now_ns);
        Ok(())
    }

    /// The generation that the pair lives in now; older heartbeats are ignored from here on. Panics if it
    /// goes back.
    pub fn set_generation(&mut self, generation: Generation) {
        assert!(self.generation <= generation, "generation goes back from {}", self.generation);
        self.generation = generation;
    }

    /// Whether nothing was heard of the peer for the timeout.
    pub fn suspect(&self, now_ns: u64) -> bool {
        now_ns >= self.deadline_ns()
    }

    /// When the peer becomes suspect if nothing more is heard of it.
    pub fn deadline_ns(&self) -> u64 {
        self.last_heard_ns.saturating_add(self.timeout_ns)
    }

    /// How long nothing was heard.
    pub fn silent_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.last_heard_ns)
    }
}

#[cfg(test)]
#[path = "heartbeat_tests.rs"]
mod tests;
