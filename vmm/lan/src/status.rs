//! What `lockstep lan` reports of itself. Counters count from its start.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::packet::Mac;

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LanStatus {
    /// The ports, in the order in which they connected.
    pub ports: Vec<PortStatus>,
    /// The switch.
    pub switch: SwitchStatus,
    /// The gateway.
    pub gateway: GatewayStatus,
}

/// One port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    /// The peer's address.
    pub peer: String,
    /// Stations learned there.
    pub stations: Vec<Mac>,
    /// Frames received from the peer.
    pub frames_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Frames queued for the peer.
    pub frames_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// Frames dropped because the peer does not read fast enough.
    pub dropped: u64,
    /// Bytes that wait for the peer to read.
    pub queued_bytes: u64,
}

/// The switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchStatus {
    /// Stations whose port went away, still known.
    pub orphans: Vec<Mac>,
    /// Frames forwarded to one port.
    pub forwarded: u64,
    /// Frames flooded to all ports.
    pub flooded: u64,
    /// Frames for a station whose port went away.
    pub held: u64,
    /// Frames not forwarded: forged or for the port they came from.
    pub filtered: u64,
    /// Stations that moved to another port.
    pub moves: u64,
    /// Frames of a station from a port that it had left for a newer one: forwarded, nothing learned.
    pub outdated: u64,
    /// Frames delivered again, or made up, for a station that moved.
    pub redelivered: u64,
    /// Frames kept for a failover and given up because a limit was reached.
    pub forgotten: u64,
    /// Ports closed because the peer sent something other than frames.
    pub garbage: u64,
    /// Peers refused because all ports were in use.
    pub refused: u64,
}

/// The gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayStatus {
    /// Forwarded connections now.
    pub open: u64,
    /// Connections accepted from host clients.
    pub accepted: u64,
    /// Host clients that were reset: all connections were in use, or the host had nothing left for more.
    #[serde(default)]
    pub refused: u64,
    /// Connections that the guest refused or did not answer.
    pub failed: u64,
    /// Connections that ended by a reset of either side.
    pub reset: u64,
    /// Connections begun anew because their guest moved while they were being made.
    pub restarted: u64,
    /// Bytes from host clients to guests.
    pub bytes_to_guest: u64,
    /// Bytes from guests to host clients.
    pub bytes_to_host: u64,
}

impl fmt::Display for LanStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for port in &self.ports {
            let stations: Vec<String> = port.stations.iter().map(Mac::to_string).collect();
            writeln!(
                f,
                "port {}: {} in, {} out, {} dropped; {}",
                port.peer,
                port.frames_in,
                port.frames_out,
                port.dropped,
                if stations.is_empty() { "no station".to_owned() } else { stations.join(" ") }
            )?;
        }
        let SwitchStatus { forwarded, flooded, held, moves, redelivered, .. } = self.switch;
        writeln!(
            f,
            "switch: {forwarded} forwarded, {flooded} flooded, {held} held, {moves} moves, {redelivered} \
             redelivered"
        )?;
        let GatewayStatus { open, accepted, refused, failed, reset, bytes_to_guest, bytes_to_host, .. } =
            self.gateway;
        write!(
            f,
            "gateway: {open} connections open of {accepted} accepted, {refused} refused, {failed} failed, \
             {reset} reset; {bytes_to_guest} bytes to guests, {bytes_to_host} bytes from guests"
        )
    }
}
