//! A virtual machine's process: the pure protocol (`ft`), recorder or replayer, and the threads that join
//! them to sockets.
//!
//! ```text
//!                 net-rx ──┐                       ┌─ channel reader ── TCP ◀── primary
//!   disk-rx ───────────────┼──▶ vCPU loop          │        │ entries
//!   control socket ────────┘      │ entries        ▼        ▼
//!                                 ▼             Follower ──▶ vCPU loop (replay)
//!   ack reader ────────────▶ Leader ──▶ Outside    │ acks
//!   ticker, claims ────────▶  (ft::Primary)        └▶ (ft::Backup) ── go live ──▶ Leader
//! ```
//!
//! One lock per process holds the protocol's state. Only the vCPU thread writes log entries to the logging
//! channel, and it does so without the lock, so a full channel stalls the guest and nothing else. What is
//! written under the lock is small or bounded in time: acks, frames (dropped when the network is full), disk
//! requests (a deadline ends a connection that takes none), console bytes.

mod answers;
pub mod backup;
pub mod claims;
pub mod digests;
pub mod disk_health;
pub mod fetch;
pub mod follower;
pub mod generation;
mod greeting;
pub mod host;
pub mod leader;
pub mod live;
pub mod new_disk;
pub mod outside;
pub mod primary;
mod reception;
pub mod replication;
pub mod status;
pub mod threads;
pub mod transfer;
