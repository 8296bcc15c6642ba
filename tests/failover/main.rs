//! Failovers of whole pairs: the real processes, a checked load, and the plug pulled at random moments.
//!
//! ```text
//!   failovers    each kind of fault at a random moment; then linearizable answers, every connection kept,
//!                one live copy, and the disk's image equal to what the clients read last
//!   redundancy   a new backup by state transfer, again and again; transfers that are cut off or hang
//!   redis_tools  Debian's redis-cli and redis-benchmark, across a failover
//!   restart      everything killed at once and started again on the same disk
//! ```
//!
//! Twenty failovers by default, about a minute. Two hundred:
//!
//! ```text
//!   LOCKSTEP_FAILOVERS=200 cargo test --release -p lockstep --test failover -- --nocapture
//! ```
//!
//! `LOCKSTEP_FAILOVER_SEED` sets the first seed; a failure prints the line that repeats it, and keeps the
//! directory with the disk and the logs. Clusters run one at a time. Without /dev/kvm everything is skipped.

mod aof;
mod failovers;
mod guest_time;
mod image;
mod load_run;
mod machine;
mod proxy;
mod redis_tools;
mod redundancy;
mod restart;
mod spin;
mod summary;
mod support;
