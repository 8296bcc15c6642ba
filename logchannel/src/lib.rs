//! The logging channel: typed log entries, their encoding, framing, bounded buffers, acknowledgements and
//! heartbeats, between a primary and its backup.
//!
//! The parts below `frame` are pure (bytes in, bytes out) so that the simulator runs the same code as the
//! processes do.
#![forbid(unsafe_code)]

pub mod codec;
pub mod entry;
pub mod frame;
pub mod output;

pub use entry::{DiskStatus, Event, Generation, LogEntry, MachineDigest, Position, Seq};
pub use output::{DiskOp, DiskRequest, Output, OutputKind};

/// Version of the log: of the entries, of their encoding and of the messages that carry them. It is the
/// version in every frame of the logging channel and at the head of every recording.
pub const LOG_VERSION: u16 = 1;
