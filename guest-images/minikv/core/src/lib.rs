//! The part of `minikv` that is no kernel: the Redis protocol, the store, the commands and the log.
//!
//! Pure: no I/O, no clock, no randomness, nothing but `alloc`. The guest drives it with what its rings bring;
//! the host's tests drive the same code with a disk in memory that tears writes.
//!
//! ```text
//!  bytes ──▶ Client (resp::Parser) ──▶ Database::execute ──▶ Store
//!                 ▲                          │
//!                 │ replies, each held       ▼
//!                 │ until its mark       log::Journal ──▶ DiskWrite ──▶ the disk
//!                 └────── durable ◀──────────┘ ◀──────────── completion
//! ```
//!
//! Invariant: no reply leaves before every write executed earlier is durable, whoever asked for it. So
//! nobody, not even a reader on another connection, ever sees a state that a crash could take back.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "usize has 64 bits here; numbers of a client or of the disk are compared with limits first"
)]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod client;
mod commands;
pub mod config;
pub mod database;
pub mod glob;
pub mod log;
pub mod reply;
pub mod resp;
pub mod store;

pub use client::{Client, Progress};
pub use config::Config;
pub use database::{Database, Environment, Limits, Outcome, Session};
pub use log::{DiskWrite, Journal, Recovery, RecoveryError, Step};
pub use store::Store;
