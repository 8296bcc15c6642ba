//! What the server tells about itself. It travels as JSON, so fields can be added without a new protocol
//! version.

use serde::{Deserialize, Serialize};

/// Most VMs that one status lists, so that it fits into one frame.
pub(crate) const MAX_LISTED_DISKS: usize = 2000;

/// Statistics of the server since it started.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Status {
    /// Version of the disk protocol.
    pub protocol_version: u16,
    /// Connections now open.
    pub connections: usize,
    /// Connections accepted since the start.
    pub accepted: u64,
    /// Connections that were closed because of what they sent.
    pub closed_for_errors: u64,
    /// How often a claimant's newer connection superseded an older one.
    #[serde(default)]
    pub superseded: u64,
    /// How many VMs there are.
    pub vm_count: usize,
    /// The VMs, by name; with very many disks, only the first ones.
    pub vms: Vec<VmStatistics>,
}

/// Statistics of one VM.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VmStatistics {
    /// Its name.
    pub name: String,
    /// The current generation; absent while the VM is out of service or a claim is being made durable.
    pub generation: Option<u64>,
    /// The holder, in hexadecimal.
    pub holder: Option<String>,
    /// Whether the holder is connected.
    pub holder_connected: bool,
    /// Whether the holder has ended.
    #[serde(default)]
    pub ended: bool,
    /// Why the VM is out of service, if it is.
    pub damaged: Option<String>,
    /// Claims granted since the start.
    pub claims_won: u64,
    /// Claims lost since the start.
    pub claims_lost: u64,
    /// Requests refused as fenced since the start.
    pub fenced: u64,
    /// The disks opened since the start, by name.
    pub disks: Vec<DiskStatistics>,
}

/// Statistics of one disk.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DiskStatistics {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// What it holds: `New`, `Filling` or `Filled`.
    #[serde(default)]
    pub content: String,
    /// Reads executed.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes executed.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Durable writes and flushes answered: each had to wait for an fdatasync.
    pub commits: u64,
    /// fdatasync calls: fewer than commits when commits shared them.
    pub syncs: u64,
    /// Time spent in fdatasync, in nanoseconds.
    pub sync_ns: u64,
    /// The longest fdatasync, in nanoseconds.
    pub sync_max_ns: u64,
    /// Why the disk failed, if it did.
    pub failed: Option<String>,
}
