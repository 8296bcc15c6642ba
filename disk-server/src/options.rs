//! What the disk server is told when it starts.

use std::path::PathBuf;

use crate::faults::{CrashAt, Fault};

/// Where the disk server listens unless it is told otherwise.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7411";

/// Seconds for which a holder may return, unless told otherwise.
pub const DEFAULT_GRACE_S: u32 = 10;

/// Options of `disk-server` and of `lockstep disk-server`.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Directory of the disks and of the VMs' generations; created if it is not there.
    #[arg(long, value_name = "DIR", env = "LOCKSTEP_DISK_DATA")]
    pub data: PathBuf,

    /// Address to listen on. Port 0 takes any free port; the line on standard output says which. The protocol
    /// has no passwords: listen where only the VMs' hosts can connect.
    #[arg(long, value_name = "HOST:PORT", default_value = DEFAULT_LISTEN)]
    pub listen: String,

    /// Seconds for which the holder of a machine may return after this server has started, and after its last
    /// connection has ended, before another copy may be started. The halves of a pair do not wait.
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_GRACE_S)]
    pub grace: u32,

    /// What clients may use up.
    #[command(flatten)]
    pub limits: Limits,

    /// Abort at a named point, for fault-injection tests: POINT or POINT:N (the N-th passage).
    #[arg(long, value_name = "POINT[:N]", hide = true)]
    pub crash_at: Option<CrashAt>,

    /// Make a VM's disks fail, for fault-injection tests: KIND is slow-write, stall-write, stall-sync
    /// or fail-sync.
    #[arg(long, value_name = "KIND=VM", hide = true)]
    pub fault: Vec<Fault>,
}

impl Options {
    /// Options with default limits and no faults.
    pub fn new(listen: impl Into<String>, data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            listen: listen.into(),
            grace: DEFAULT_GRACE_S,
            limits: Limits::default(),
            crash_at: None,
            fault: Vec::new(),
        }
    }
}

/// Bounds on what clients may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct Limits {
    /// Most connections at once; each has a thread and holds at most a few MiB.
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_connections)]
    pub max_connections: usize,

    /// Most requests of one connection between two of its answers; more wait in the socket.
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_in_flight)]
    pub max_in_flight: usize,

    /// Most VMs in the data directory.
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_vms)]
    pub max_vms: usize,

    /// Most disks of one VM.
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_disks)]
    pub max_disks: usize,

    /// Largest disk, in bytes. Disks are sparse files: what was never written takes no space.
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().max_disk_bytes)]
    pub max_disk_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 256,
            max_in_flight: 256,
            max_vms: 1024,
            max_disks: 16,
            max_disk_bytes: 4 << 40,
        }
    }
}
