//! What `lockstep lan` is told, with defaults that fit the machine model.

use std::net::Ipv4Addr;

use crate::endpoint::{Endpoint, Forward};
use crate::packet::Mac;
use crate::switch::SwitchLimits;

/// Address of the gateway in the guests' network, a /24.
pub const DEFAULT_GATEWAY_IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// MAC of the gateway.
pub const DEFAULT_GATEWAY_MAC: Mac = Mac([0x52, 0x4c, 0x4b, 0, 0, 1]);
/// Address that a guest has unless told otherwise.
pub const DEFAULT_GUEST_IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// Most ports of a switch at once.
pub const DEFAULT_MAX_PORTS: usize = 64;
/// Most forwarded connections at once.
pub const DEFAULT_MAX_CONNECTIONS: usize = 1024;
/// MAC that a guest has unless told otherwise.
pub const DEFAULT_GUEST_MAC: Mac = Mac([0x52, 0x4c, 0x4b, 0, 0, 2]);

/// A switch with a gateway.
#[derive(Debug, Clone)]
pub struct LanOptions {
    /// Where monitors connect. TCP port 0 takes a free one; a Unix socket is created, and replaced if nobody
    /// listens on it.
    pub listen: Vec<Endpoint>,
    /// Host TCP ports that lead to guests.
    pub forwards: Vec<Forward>,
    /// The gateway's address.
    pub gateway_ip: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix_len: u8,
    /// The gateway's MAC.
    pub gateway_mac: Mac,
    /// Most ports (connected monitors) at once; more are refused.
    pub max_ports: usize,
    /// Most forwarded connections at once; more are reset.
    pub max_connections: usize,
    /// Most bytes that wait for one port's peer to read; frames beyond are dropped and counted.
    pub port_queue_bytes: usize,
    /// How long a connection to a guest may take, in milliseconds, before the host's client is turned away.
    pub connect_timeout_ms: u64,
    /// Limits of the switch.
    pub switch: SwitchLimits,
}

impl Default for LanOptions {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            forwards: Vec::new(),
            gateway_ip: DEFAULT_GATEWAY_IP,
            prefix_len: 24,
            gateway_mac: DEFAULT_GATEWAY_MAC,
            max_ports: DEFAULT_MAX_PORTS,
            max_connections: DEFAULT_MAX_CONNECTIONS,
            port_queue_bytes: 8 << 20,
            connect_timeout_ms: 10_000,
            switch: SwitchLimits::default(),
        }
    }
}
