//! What is reported when a replica did not take the path of the log.
//!
//! A divergence is a mistake of ours, of the hardware or of the log, never of the guest. The replica stops at
//! once: it never goes live (DESIGN 3 and 8).

use logchannel::{LogEntry, MachineDigest, OutputKind, Position, Seq};
use serde::{Deserialize, Serialize};

/// What differs. `expected` is what the log says, `found` what this machine did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Difference {
    /// An entry is missing or repeated.
    Sequence {
        /// The number that was due.
        expected: Seq,
        /// The number of the entry.
        found: Seq,
    },
    /// An entry lies before the entry that precedes it.
    PositionDecreases {
        /// Position of the entry before.
        previous: Position,
        /// Position of the entry.
        found: Position,
    },
    /// The guest is past the entry's position, or never comes to it.
    PositionPassed {
        /// The entry's position.
        expected: Position,
        /// Where the guest is.
        found: Position,
    },
    /// The guest waits, while the log says that it ran on.
    Waits {
        /// Where the log says it ran to.
        expected: Position,
        /// Where it waits.
        found: Position,
        /// What it waits for, besides inputs: virtual time in nanoseconds.
        deadline_ns: Option<u64>,
    },
    /// The guest ended, while the log says that it went on.
    Ended {
        /// Where the log says it was.
        expected: Position,
        /// Where it ended.
        found: Position,
        /// How it ended, in words.
        ending: String,
    },
    /// The guest made another output than the log says.
    Output {
        /// Kind in the entry.
        expected: OutputKind,
        /// Digest in the entry.
        expected_digest: [u8; 8],
        /// Kind of the output made.
        found: OutputKind,
        /// Digest of the output made.
        found_digest: [u8; 8],
    },
    /// The log has an output that the guest did not make.
    OutputMissing {
        /// Kind in the entry.
        expected: OutputKind,
        /// Digest in the entry.
        expected_digest: [u8; 8],
    },
    /// The guest made an output that the log does not have.
    OutputNotLogged {
        /// What the log has instead: the kind of its next event.
        expected: String,
        /// Kind of the output made.
        found: OutputKind,
        /// Digest of the output made.
        found_digest: [u8; 8],
    },
    /// The log says that the guest reset its machine, which it did not.
    ResetMissing,
    /// The guest reset its machine, and the log does not say so.
    ResetNotLogged {
        /// What the log has instead: the kind of its next event.
        expected: String,
    },
    /// The state of the machine differs.
    State {
        /// Fingerprint in the entry.
        expected: MachineDigest,
        /// Fingerprint of this machine.
        found: MachineDigest,
    },
    /// The guest has no room for an input that it had room for when it was recorded.
    InputRefused {
        /// The kind of the event.
        event: String,
    },
    /// The shared disk does not have what the primary read there.
    DiskData {
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        len: u32,
        /// Digest in the entry.
        expected: [u8; 8],
        /// Digest of what is there.
        found: [u8; 8],
    },
    /// A `Clock` entry would set the virtual clock back.
    ClockBackwards {
        /// Nanoseconds in the entry.
        expected: u64,
        /// The virtual clock here.
        found: u64,
    },
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hex = |digest: &[u8; 8]| format!("{:016x}", u64::from_le_bytes(*digest));
        match self {
            Difference::Sequence { expected, found } => {
                write!(f, "log entry {found} where entry {expected} is due")
            }
            Difference::PositionDecreases { previous, found } => {
                write!(f, "the entry lies at {found}, the one before it at {previous}")
            }
            Difference::PositionPassed { expected, found } => {
                write!(f, "the entry lies at {expected}, the guest is at {found}")
            }
            Difference::Waits { expected, found, deadline_ns } => {
                write!(f, "the guest waits at {found}, the log says that it ran to {expected}")?;
                match deadline_ns {
                    Some(ns) => write!(f, " (it waits for input or for {ns} ns)"),
                    None => write!(f, " (it waits for input)"),
                }
            }
            Difference::Ended { expected, found, ending } => {
                write!(f, "the guest ended at {found} ({ending}), the log says that it was at {expected}")
            }
            Difference::Output { expected, expected_digest, found, found_digest } => write!(
                f,
                "output {found:?} {}, the log has {expected:?} {}",
                hex(found_digest),
                hex(expected_digest)
            ),
            Difference::OutputMissing { expected, expected_digest } => {
                write!(f, "no output, the log has {expected:?} {}", hex(expected_digest))
            }
            Difference::OutputNotLogged { expected, found, found_digest } => {
                write!(f, "output {found:?} {}, the log has {expected} instead", hex(found_digest))
            }
            Difference::ResetMissing => write!(f, "no reset of the machine, the log has one"),
            Difference::ResetNotLogged { expected } => {
                write!(f, "the guest reset its machine, the log has {expected} instead")
            }
            Difference::State { expected, found } => {
                write!(f, "state of the machine: {found}, the log has {expected}; differing:")?;
                let parts = [
                    ("registers", expected.registers == found.registers),
                    ("devices", expected.devices == found.devices),
                    ("memory", expected.memory == found.memory),
                ];
                parts.iter().filter(|(_, same)| !same).try_for_each(|(name, _)| write!(f, " {name}"))
            }
            Difference::DiskData { offset, len, expected, found } => write!(
                f,
                "{len} bytes at {offset} of the disk are {} here, the log has {}",
                hex(found),
                hex(expected)
            ),
            Difference::InputRefused { event } => write!(f, "the guest has no room for this {event}"),
            Difference::ClockBackwards { expected, found } => {
                write!(f, "the log sets the clock to {expected} ns, it is at {found} ns")
            }
        }
    }
}

/// The report of a divergence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Divergence {
    /// The entry at which it was found.
    pub seq: Seq,
    /// Where the guest was when it was found. It went astray here or earlier: after the last state digest
    /// that agreed, which is `agreed`.
    pub at: Position,
    /// What differs.
    pub difference: Difference,
    /// The last entry whose `Digest` agreed: 0 if none did yet.
    pub agreed: Seq,
    /// The last entries executed, oldest first.
    pub recent: Vec<LogEntry>,
    /// What the caller adds: register and page differences.
    pub notes: Vec<String>,
    /// The command that replays the log up to here, which the caller fills in.
    pub replay_command: Option<String>,
}

impl std::fmt::Display for Divergence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "diverged at entry {}, position {}: {}", self.seq, self.at, self.difference)?;
        match self.agreed {
            0 => write!(f, "\n  no state digest was compared before")?,
            seq => write!(f, "\n  the state agreed last at entry {seq}")?,
        }
        for note in &self.notes {
            write!(f, "\n  {note}")?;
        }
        if !self.recent.is_empty() {
            write!(f, "\n  the entries before:")?;
        }
        for entry in &self.recent {
            write!(f, "\n    {} at {}: {}", entry.seq, entry.at, entry.event.name())?;
        }
        match &self.replay_command {
            Some(command) => write!(f, "\n  replay with: {command}"),
            None => Ok(()),
        }
    }
}
