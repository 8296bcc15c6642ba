//! Recordings by real processes: made, killed, replayed, verified, gone through forwards and backwards,
//! compared.
//!
//! ```text
//!   disk server, network, `lockstep run --record` or `primary --record` ── load ──▶ FILE
//!   FILE ──▶ `lockstep replay | verify | log | diverge`, and sessions in this process
//! ```
//!
//! LOCKSTEP_TEST_SCALE=10 makes the randomised tests so much longer, LOCKSTEP_TIER_STOPS=1000 those across
//! tiers.

mod backup;
#[path = "../pair/client.rs"]
#[allow(dead_code)]
mod client;
mod commands;
#[path = "../pair/crafted.rs"]
#[allow(dead_code)]
mod crafted;
mod crash;
#[path = "../pair/harness.rs"]
#[allow(dead_code)]
mod harness;
mod parting;
mod reboot;
mod recorded;
mod sessions;
mod tiers;
mod virtual_time;
