//! What clients asked and were told, and when.

use serde::Serialize;

/// What was asked. Values written are unique in a history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Request {
    /// INCR of the shared counter.
    Increment,
    /// SET of shared key number `key`.
    Set {
        /// Which key.
        key: u32,
        /// What was written; never 0, which stands for no value.
        value: u64,
    },
    /// GET of shared key number `key`.
    Get {
        /// Which key.
        key: u32,
    },
    /// APPEND of `bytes` bytes to the client's own key.
    Append {
        /// How many.
        bytes: u32,
    },
}

/// One operation of one client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Operation {
    /// Which client.
    pub client: u32,
    /// What it asked.
    pub request: Request,
    /// When it sent the request, nanoseconds on the host's monotonic clock.
    pub invoked_ns: u64,
    /// When it had the answer.
    pub answered_ns: Option<u64>,
    /// The answer: the counter, the value read (0 for none), the length after an append; 0 for SET.
    pub result: u64,
}

/// All operations of a run, in no particular order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct History {
    /// The operations.
    pub operations: Vec<Operation>,
    /// The counter, read after everything ended, if it could be.
    pub final_counter: Option<u64>,
    /// The shared keys, read after everything ended (0 for no value); empty if they could not be.
    pub final_values: Vec<u64>,
    /// Lengths of the clients' own keys, read after everything ended; empty if they could not be.
    pub final_lengths: Vec<u64>,
}
