//! The disk server: the virtual disks that a primary and its backup share, with fenced writes, and the
//! durable test-and-set that lets only one of them go on alone (DESIGN section 5).
//!
//! ```text
//!                    ┌────────────────────────── disk server ──────────────────────────┐
//!  primary ──TCP──▶  │ connection (one thread) ─┐                                      │
//!                    │                          ├─▶ Vm: fence ─▶ Disk ─▶ pwrite        │
//!  backup  ──TCP──▶  │ connection (one thread) ─┘    │            └───▶ shared fdatasync│
//!                    │                               └─▶ generation file               │
//!                    └─────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Invariants, each argued in the crate's README and held by a test in `tests/`:
//!
//! - one generation of a VM has one holder, and its generation never decreases, also across restarts;
//! - a write of an older generation is finished before the test-and-set that fences it is answered, or it is
//!   refused: it is never executed afterwards;
//! - once a claimant's newer connection has opened a disk, nothing of its older ones is executed on it;
//! - a disk is filled with an image at most once, and never once a guest has written to it;
//! - while the holder of a generation is connected or may return, no start takes it away;
//! - a write acknowledged as durable is on stable storage; any acknowledged write survives the server's
//!   death;
//! - no bytes of a peer make the server panic, hold unbounded memory or touch a file outside its directory.
#![forbid(unsafe_code)]
#![warn(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss
)]

pub mod client;
mod clock;
mod connection;
mod content;
mod disk;
mod disk_file;
mod embedded;
mod faults;
mod fill;
mod generation_file;
mod lock;
mod options;
mod presence;
pub mod protocol;
pub mod record;
mod record_file;
mod seat;
mod server;
mod socket;
mod status;
mod store;
pub mod test_and_set;
mod vm;

pub use embedded::Embedded;
pub use faults::{CrashAt, CrashPoint, Fault, Faults};
pub use options::{DEFAULT_GRACE_S, DEFAULT_LISTEN, Limits, Options};
pub use server::{Server, ServerError, run};
pub use status::{DiskStatistics, Status, VmStatistics};
pub use store::StoreError;
