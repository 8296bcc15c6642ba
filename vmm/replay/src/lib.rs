//! Record and replay: the one door through which anything that is not a function of the machine's own state
//! enters it, and the checks that a replica took the same path.
//!
//! Generic over `Machine`, so that the virtual machine monitor, the simulator and the tests of both run the
//! same recorder and replayer.
#![forbid(unsafe_code)]

pub mod machine;

pub use machine::{Ending, Machine, Stop};
