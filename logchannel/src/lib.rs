//! The logging channel: typed log entries, their encoding, framing, bounded buffers, acknowledgements and
//! heartbeats, between a primary and its backup; and the same log in a file.
//!
//! ```text
//!   entry, output      what is logged, what is held back
//!   codec, frame       values to bytes, bytes to frames
//!   batch, message     runs of entries, and the other messages, as payloads of frames
//!   pair               what both machines must have in common
//!   endpoint           messages over one connection, and what can be wrong with a peer
//!   sender, receiver   the two ends, over the bounded buffers in `buffer`
//!   heartbeat          datagrams, and when to suspect the peer
//!   ------------------ everything above is pure: bytes in, bytes out; the simulator runs the same code
//!   address, handshake, tcp, udp     sockets, and how a pair forms
//!   file               recordings
//! ```
#![cfg_attr(
    not(test),
    warn(
        clippy::cast_lossless,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
    )
)]
#![forbid(unsafe_code)]

pub mod address;
pub mod batch;
pub mod buffer;
pub mod codec;
pub mod endpoint;
pub mod entry;
pub mod file;
pub mod frame;
pub mod handshake;
pub mod heartbeat;
pub mod message;
pub mod output;
pub mod pair;
pub mod receiver;
pub mod sender;
pub mod tcp;
pub mod udp;

pub use batch::LogStart;
pub use buffer::{Limits, LogStats, ReceiveQueue, SendBuffer};
pub use endpoint::{ChannelError, Endpoint};
pub use entry::{
    DiskStatus, Event, EventKind, Generation, LogEntry, MachineDigest, Position, Seq, TrapKind, data_digest,
};
pub use heartbeat::{Heartbeat, Role};
pub use message::{Ack, Claimant, Hello, Message, Refusal, Welcome};
pub use output::{DiskOp, DiskRequest, Output, OutputKind};
pub use pair::{Mismatch, OnReset, PairConfig, Policy};
pub use receiver::Receiver;
pub use sender::{AckReader, Sender};

/// Version of the log: of the entries, of their encoding and of the messages that carry them. It is the
/// version in every frame of the logging channel and at the head of every recording.
pub const LOG_VERSION: u16 = 3;
