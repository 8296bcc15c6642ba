//! Whole pairs of real processes under faults: at any time at most one copy is live, and what clients were
//! told stays true.
//!
//! Each test starts disk server, network, backup and primary from the built binary, on loopback or in network
//! namespaces of its own, breaks something, and then looks at the exit codes, at the disk server's record, at
//! the disk's image and at what clients saw. Tests that start pairs run one after the other. They skip loudly
//! where there is no usable /dev/kvm (and the one with namespaces where there is no root).
//!
//! LOCKSTEP_TEST_SCALE=N repeats what is repeated N times as often (default 1: about two minutes on two
//! cores), for longer runs:
//!
//!     LOCKSTEP_TEST_SCALE=20 cargo test --release -p lockstep --test pair -- --nocapture
#![allow(clippy::unwrap_used)]

mod channel;
mod client;
mod console;
mod control;
mod crafted;
mod disk;
mod failover;
mod families;
mod filling;
mod harness;
mod hostile_backup;
mod hostile_primary;
mod hostile_services;
mod lifecycle;
mod load;
mod mismatch;
mod namespaces;
mod own_disk;
mod reads;
mod reboot;
mod relay;
mod stalled_disk;
mod start;
mod starting;
mod strangers;
mod tiers;
