//! The ends of the logging channel, and the messages of its handshake as simulated processes send them. Which
//! machines may pair is not simulated: both are the small machine.

use logchannel::{Claimant, Hello, Message, PairConfig, Policy, Welcome};

/// What a primary says first.
pub fn hello(claimant: Claimant, backup_reads: bool) -> Message {
    let (config, policy, heartbeat_port) = (PairConfig::default(), Policy::default(), 0);
    let hello = Hello { config, policy, claimant, heartbeat_port, transfer: true, backup_reads };
    Message::Hello(Box::new(hello))
}

/// What a backup answers.
pub fn welcome(claimant: Claimant) -> Message {
    Message::Welcome(Welcome { claimant, heartbeat_port: 0 })
}
