//! The seeded simulator: whole pairs, their network, disk server, clients and clocks, in one thread and in
//! simulated time. The recorder, the replayer, the protocol, the channel and the test-and-set in it are the
//! production code.
//!
//! A run has a safety phase with faults and then a liveness phase without. Invariants are checked after every
//! event, client histories at the end. A seed determines a run completely.
#![forbid(unsafe_code)]

mod backup_driver;
pub mod bug;
mod carry;
pub mod client;
pub mod disk;
mod effect;
pub mod faults;
pub mod linear;
pub mod network;
pub mod oracle;
mod phases;
mod primary_driver;
mod process;
pub mod random;
pub mod wire;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use bug::Bug;
pub use world::{Outcome, Run, Stats, World};

/// Runs one seed to its end. An assertion that fails in production code is a violation like any other.
pub fn run(run: &Run) -> Outcome {
    let result = catch_unwind(AssertUnwindSafe(|| World::new(run).run()));
    result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
        let violation = Some(format!("panicked: {}", text.unwrap_or_else(|| "without a message".into())));
        Outcome { violation, trace: 0, stats: Stats::default() }
    })
}

/// The command that repeats a run.
pub fn repeat_command(run: &Run) -> String {
    let bug = run.bug.map(|bug| format!(" --bug {}", bug.name())).unwrap_or_default();
    let blind = if run.blind { " --blind" } else { "" };
    format!("cargo run --release -p lockstep-sim -- --seed {}{bug}{blind}", run.seed)
}
