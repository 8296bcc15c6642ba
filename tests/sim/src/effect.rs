//! What a process does to the world around it. A driver lists effects in order; the world carries them out
//! one by one, and may stop the process between any two of them.

use ft::{HaltReason, Heartbeat};
use logchannel::{DiskRequest, Generation, Output, Seq};
use replay::small_machine::SmallMachine;

/// The machine as a new backup gets it.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The machine.
    pub machine: SmallMachine,
    /// The last entry contained in it.
    pub seq: Seq,
    /// The generation of the primary.
    pub generation: Generation,
    /// Requests in flight.
    pub outstanding: Vec<(Seq, Output)>,
}

/// One effect.
#[derive(Debug)]
pub enum Effect {
    /// The guest stands still: it was handed over.
    HandedOver,
    /// Send bytes on the logging channel.
    Bytes(Vec<u8>),
    /// Send the machine on the logging channel.
    Snapshot(Box<Snapshot>),
    /// Close the logging channel; `gently`, after what was sent.
    CloseChannel {
        /// Whether everything sent still arrives.
        gently: bool,
    },
    /// Send a heartbeat.
    Beat(Heartbeat),
    /// Ask for test-and-set.
    Claim {
        /// The generation believed to be current.
        expect: Generation,
    },
    /// This process goes live: what it puts out from here on follows entry `seq`.
    WentLive {
        /// The generation.
        generation: Generation,
        /// The entry.
        seq: Seq,
    },
    /// An output goes into the world.
    Release {
        /// Its entry.
        seq: Seq,
        /// The output.
        output: Output,
        /// Whether the process relied on holding its generation alone, and not on an ack.
        alone: bool,
        /// The generation of the process.
        generation: Generation,
    },
    /// Ask the disk server for the current generation.
    Query,
    /// Open a new connection to the disk server; the earlier one is given up.
    DiskConnect,
    /// Send a request to the disk server.
    Disk {
        /// Under this generation.
        generation: Generation,
        /// The request.
        request: DiskRequest,
    },
    /// The process stops for good.
    Halted(HaltReason),
}
