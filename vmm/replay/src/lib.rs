//! Record and replay: the one door through which anything that is not a function of the machine's own state
//! enters it, and the checks that a replica took the same path.
//!
//! ```text
//!  host inputs ──offer, clock──▶ Recorder<M> ──advance──▶ entries with their outputs      (primary, record)
//!  entries ──────push──────────▶ Replayer<M> ──advance──▶ executed entries, or Divergence (backup, replay)
//!                                     └──into_recorder──▶ Recorder<M>                     (going live)
//! ```
//!
//! Generic over `Machine`, so that the virtual machine monitor, the simulator and the tests of both run the
//! same recorder and replayer. Nothing here reads a clock, starts a thread or does I/O.
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

pub mod divergence;
pub mod machine;
mod pace;
pub mod record;
pub mod replay;
#[cfg(any(test, feature = "small-machine"))]
pub mod small_machine;

pub use divergence::{Difference, Divergence};
pub use machine::{Ending, Machine, Stop};
pub use record::{ClockPolicy, Offer, Recorded, Recorder};
pub use replay::{Progress, PushError, ReplayError, Replayer};

#[cfg(test)]
mod test_driver;
