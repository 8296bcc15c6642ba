//! A virtual machine's process: the pure protocol (`ft`), recorder or replayer, and the threads that join
//! them to sockets.
//!
//! ```text
//!                 net-rx ──┐                       ┌─ channel reader ── TCP ◀── primary
//!   disk-rx ───────────────┼──▶ vCPU loop          │        │ entries
//!   control socket ────────┘      │ entries        ▼        ▼
//!                                 ▼             Follower ──▶ vCPU loop (replay)
//!   ack reader ────────────▶ Leader ──▶ Egress     │ acks
//!   ticker, claims ────────▶  (ft::Primary)        └▶ (ft::Backup) ── go live ──▶ Leader
//! ```
//!
//! One lock per process holds the protocol's state, and nothing that can wait is done with it. Only the vCPU
//! thread writes log entries to the logging channel, so a full channel stalls the guest and nothing else.
//! Outputs that are let go are queued with the lock, and written without it.

mod answers;
pub mod awaited_end;
pub mod backup;
pub mod claims;
pub mod digests;
pub mod disk_health;
pub mod egress;
pub mod fetch;
pub mod follower;
pub mod generation;
mod greeting;
pub mod host;
pub mod leader;
pub mod live;
pub mod new_disk;
pub mod primary;
mod reception;
pub mod replication;
pub mod status;
pub mod tail;
pub mod threads;
pub mod transfer;
