//! What a process says of itself: one JSON object per question on its control socket.

use serde::Serialize;

use crate::pair::follower::{FailoverTimes, FollowerStatus};
use crate::pair::leader::LeaderStatus;

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
    /// The live copy's numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub live: Option<LeaderStatus>,
    /// The backup's numbers; after a failover, as they were last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<FollowerStatus>,
    /// The steps of the failover in which this process went live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover: Option<FailoverTimes>,
}
