//! The ends of the logging channel, and the messages of its handshake as simulated processes send them. Which
//! machines may pair is not simulated: both are the small machine.

use logchannel::{Claimant, Generation, Hello, Message, PairConfig, Welcome};

/// What a primary says first.
pub fn hello(generation: Generation, claimant: Claimant) -> Message {
    let config = PairConfig::default();
    Message::Hello(Box::new(Hello { config, generation, claimant, heartbeat_port: 0, transfer: true }))
}

/// What a backup answers.
pub fn welcome(claimant: Claimant) -> Message {
    Message::Welcome(Welcome { claimant, heartbeat_port: 0 })
}
