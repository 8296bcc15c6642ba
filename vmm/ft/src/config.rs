//! Times and limits of the protocol.

const MS: u64 = 1_000_000;

/// Times and limits of the protocol. Both ends of a pair have the primary's times; nothing depends on it but
/// when they give each other up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Who this process is, to the disk server: unique for each start of a process.
    pub claimant: u128,
    /// How often a heartbeat is sent.
    pub heartbeat_every_ns: u64,
    /// How long nothing at all (heartbeat, entry, ack) may come from the peer before it is given up.
    pub suspect_after_ns: u64,
    /// How long an entry may stay without ack, heartbeats or not, before the backup is given up.
    pub ack_timeout_ns: u64,
    /// How long a backup may be unable to read from the shared disk before it leaves the pair. Below the
    /// primary's `ack_timeout_ns`, so that it can say why.
    pub read_timeout_ns: u64,
    /// How long the disk server may not answer a primary before it asks whether its backup reaches it; and
    /// how long a backup tries, before it says that it does not.
    pub disk_timeout_ns: u64,
    /// How long to wait for the answer of the disk server before asking again.
    pub claim_retry_ns: u64,
    /// The guest stalls while this many entries wait for their ack.
    pub max_unacked_entries: usize,
    /// The guest stalls while entries of this many bytes wait for their ack.
    pub max_unacked_bytes: usize,
    /// The guest stalls while outputs of this many bytes wait for their release.
    pub max_gated_bytes: usize,
    /// The guest stalls while the backup has this many entries not executed yet.
    pub max_unexecuted_entries: u64,
    /// Execution lag above which the primary's guest is slowed.
    pub lag_target_ns: u64,
    /// A backup gives up a primary that lets it keep outputs of more than this many bytes.
    pub max_kept_bytes: usize,
}

impl Config {
    /// The usual times and limits. `claimant` must be unique for each start of a process.
    pub fn new(claimant: u128) -> Self {
        Self {
            claimant,
            heartbeat_every_ns: 20 * MS,
            suspect_after_ns: 250 * MS,
            ack_timeout_ns: 2_000 * MS,
            read_timeout_ns: 1_000 * MS,
            disk_timeout_ns: 1_000 * MS,
            claim_retry_ns: 100 * MS,
            max_unacked_entries: 16_384,
            max_unacked_bytes: 32 << 20,
            max_gated_bytes: 32 << 20,
            max_unexecuted_entries: 1 << 18,
            lag_target_ns: 50 * MS,
            max_kept_bytes: 256 << 20,
        }
    }
}
