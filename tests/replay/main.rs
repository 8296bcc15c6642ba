//! Exact replay with the real machine: `Machine<AnyEngine>` recorded by `replay::Recorder`, replayed by
//! `replay::Replayer` in another virtual machine, everything compared. In process, without a socket.
//!
//! ```text
//!   seed ──▶ clients over smoltcp, disk, host clock, console ──inputs──▶ Recorder<Machine>
//!                  ▲                                                        │ log
//!                  └────────────────────outputs─────────────────────────────┤
//!                                                                           ▼
//!                                 faults planted in log or machine ──▶ Replayer<Machine> in another VM
//! ```
//!
//! A run is a function of its seed. `LOCKSTEP_REPLAY_RUNS=100` sets how many seeds and how many tries of each
//! kind of fault there are (25 without it), `LOCKSTEP_REPLAY_SEED=7` takes that seed alone, and
//! `LOCKSTEP_REPLAY_ENGINE=soft` that engine alone:
//!
//! ```text
//!   LOCKSTEP_REPLAY_RUNS=100 cargo test --release -p lockstep --test replay -- --nocapture
//! ```

mod client;
mod disk;
mod exits;
mod faults;
#[path = "../engine/guest.rs"]
#[allow(dead_code)]
mod guest;
mod history;
mod idle;
mod interrupt_guest;
mod interrupts;
mod machine;
mod measure;
mod peer;
mod recording;
mod replaying;
mod resets;
mod rng;
mod runs;
mod signals;
mod worker;
mod world;
