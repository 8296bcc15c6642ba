//! The user-space network of a pair: an Ethernet switch that both monitors connect to, with a gateway that
//! forwards host TCP ports to the guest, and the monitors' own network backends.
//!
//! ```text
//!  redis-cli ──TCP──▶ forward ─▶ smoltcp 10.77.0.1 ─▶ switch ─▶ port ──stream──▶ primary's VMM ─▶ guest
//!                                                           └─▶ port ──stream──▶ backup's VMM (silent)
//! ```
//!
//! The switch is a pure state machine (`switch`), so is the memory of unacknowledged frames it keeps for a
//! failover (`switch::memory`). One thread with one epoll set (`reactor`) runs switch and gateway together: a
//! frame crosses both in one wake-up.
#![cfg_attr(
    not(test),
    warn(
        clippy::cast_lossless,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
    )
)]
#![deny(unsafe_code)]

pub mod backend;
mod clock;
mod control;
pub mod endpoint;
mod gateway;
mod options;
pub mod packet;
mod port;
mod reactor;
mod status;
pub mod stream;
pub mod switch;
pub mod wire;

pub use control::{Lan, LanControl, LanError, Ready, run};
pub use endpoint::{Endpoint, EndpointError, Forward};
pub use options::{
    DEFAULT_GATEWAY_IP, DEFAULT_GATEWAY_MAC, DEFAULT_GUEST_IP, DEFAULT_GUEST_MAC, DEFAULT_MAX_CONNECTIONS,
    DEFAULT_MAX_PORTS, LanOptions,
};
pub use packet::{Mac, gratuitous_arp};
pub use status::{GatewayStatus, LanStatus, PortStatus, SwitchStatus};

#[cfg(test)]
mod failover_tests;
