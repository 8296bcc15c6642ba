//! What a process says of itself: one JSON object per question on its control socket.

use logchannel::Policy;
use serde::Serialize;

use crate::meter::GuestStatus;
use crate::pair::disk_health::DiskServerStatus;
use crate::pair::follower::{FailoverTimes, FollowerStatus};
use crate::pair::leader::LeaderStatus;
use crate::pair::replication::ReplicationStatus;

/// The answer of the control socket.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// `primary`, `backup`, or `run` (unreplicated).
    pub role: &'static str,
    /// The machine's name.
    pub vm: String,
    /// The process.
    pub pid: u32,
    /// Engine and clock.
    pub engine: String,
    /// Seconds since this process started.
    pub uptime_s: f64,
    /// Where the guest is and how fast it gets on, once there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestStatus>,
    /// Times and clock; of a pair, the primary's.
    pub policy: Policy,
    /// What a process that is to be a live copy does before it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub starting: Option<String>,
    /// The live copy's numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub live: Option<LeaderStatus>,
    /// The backup's numbers, from the first moment; after a failover, as they were last. Its state is
    /// `Waiting` until a primary connects, `Reserved` until that begins, `Joining` until it has the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<FollowerStatus>,
    /// The steps of the failover in which this process went live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover: Option<FailoverTimes>,
    /// The last attempt to get a backup by `lockstep replicate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication: Option<ReplicationStatus>,
    /// The disk server as this process sees it.
    pub disk_server: DiskServerStatus,
    /// The pair is redundant, and the disk server there that decides a failover.
    pub failover_possible: bool,
}

impl Status {
    /// Whether this half has another one.
    pub fn is_redundant(&self) -> bool {
        match (&self.live, &self.backup) {
            (Some(live), _) => live.state == "Replicating",
            (None, Some(backup)) => backup.state == "Following",
            (None, None) => false,
        }
    }
}
