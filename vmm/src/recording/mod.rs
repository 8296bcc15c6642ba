//! Recordings: the log of a run in a file, with the machine's whole state every now and then, and what one
//! does with it afterwards: replay it, go to any position of it forwards and backwards, verify it, compare
//! two.
//!
//! ```text
//!   Live ── entries, checkpoints ──▶ Sink ──thread──▶ Writer ──▶ FILE ──▶ Recording ─┬─▶ Session: replay,
//!                                                                                     │   verify, diverge
//!                                                                                     └─▶ log dump, log stat
//! ```
//!
//! A recording begins with a checkpoint of the machine before its first instruction, so it needs no guest
//! image. The bytes are in docs/recordings.md. Nothing here depends on an engine: whatever `assemble` can
//! restore, a session can replay.

pub mod against;
pub mod compare;
pub mod control;
pub mod disassemble;
pub mod diverge;
pub mod format;
pub mod kernel;
pub mod reader;
pub mod serve;
pub mod session;
pub mod sink;
pub mod snapshot;
pub mod verify;
pub mod writer;

pub use format::{Header, RecordingError};
pub use reader::Recording;
pub use session::{Arrival, Session, SessionError};
pub use sink::Sink;
