//! Client load for `lockstep demo`, `bench` and the tests: real TCP connections that speak the Redis
//! protocol, a history of what they were told, and the judgement whether one machine could have told them
//! that.
//!
//! ```text
//!   workload ──▶ history (invoked, answered, result) ──▶ checker ──▶ Verdict
//!   throughput ──▶ latency histogram                      report ──▶ what a person reads
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

pub mod checker;
pub mod client;
pub mod history;
pub mod random;
pub mod report;
pub mod resp;
pub mod throughput;
pub mod workload;

pub use checker::{Verdict, Violation, check};
pub use history::{History, Operation, Request};
pub use report::Report;
pub use throughput::{Load, Pace, Throughput};
pub use workload::{Outcome, Progress, Workload};
