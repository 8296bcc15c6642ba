//! Saving, restoring and digesting the devices.
//!
//! The state is a tree of plain values. Its encoding by `logchannel::codec` is canonical, since nothing in it
//! has an order or a representation of its own choosing: equal states have equal bytes.

use logchannel::{Output, codec};
use serde::{Deserialize, Serialize};

use crate::machine::{Devices, Parts};

/// Version of `DevicesState`. Whoever changes what a device keeps changes this number.
pub const STATE_VERSION: u16 = 3;

/// The whole state of the devices, outputs not taken yet included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicesState {
    version: u16,
    parts: Parts,
    outputs: Vec<Output>,
}

impl DevicesState {
    /// The version of the program that saved it.
    pub fn version(&self) -> u16 {
        self.version
    }
}

/// A state that cannot be restored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Saved by another version.
    #[error(
        "device state of version {found}, this program has {expected}: run the same lockstep on both hosts"
    )]
    Version {
        /// `STATE_VERSION`.
        expected: u16,
        /// Version in the state.
        found: u16,
    },
    /// The parts contradict each other.
    #[error("device state is inconsistent: {0}")]
    Inconsistent(&'static str),
}

impl Devices {
    /// The state, from which `restore` makes equal devices.
    pub fn save(&self) -> DevicesState {
        DevicesState {
            version: STATE_VERSION,
            parts: self.parts.clone(),
            outputs: self.outputs.iter().cloned().collect(),
        }
    }

    /// Devices in the state given.
    pub fn restore(state: DevicesState) -> Result<Self, RestoreError> {
        if state.version != STATE_VERSION {
            return Err(RestoreError::Version { expected: STATE_VERSION, found: state.version });
        }
        if !state.parts.blk.consistent() {
            return Err(RestoreError::Inconsistent("the disk requests in flight do not add up"));
        }
        if !state.parts.rng.consistent() {
            return Err(RestoreError::Inconsistent("the entropy gathered is more than was asked for"));
        }
        Ok(Self::from_parts(state.parts, state.outputs.into()))
    }

    /// Gives the canonical bytes of the state to `sink`, for a digest. Outputs not taken yet are left out:
    /// each of them has its own digest in the log, and when they are taken is the machine's affair.
    pub fn digest_bytes(&self, sink: &mut impl FnMut(&[u8])) {
        let bytes = codec::encode(&self.parts).expect("the state is far below the codec's limit");
        sink(&bytes);
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
