//! The fault-tolerance protocol: who may let outputs go, when a peer is given up, who goes on alone.
//!
//! Sans-I/O: `step(now, event) -> actions`. No sockets, no threads, no clock of its own, so that the
//! simulator and the processes run the same code. Whoever drives it does what the actions say, in their
//! order, and tells what happened.
//!
//! ```text
//!            Primary                                        Backup
//!   Replicating ◀──joined── Alone ◀─────┐          Joining ──joined──▶ Following ──diverged──▶ Halted
//!        │ peer lost                    │                                  │ peer lost
//!        ▼                              │                                  ▼
//!     Claiming ──won──▶ go live ────────┤                              Claiming ──lost──▶ Halted
//!        │ lost                         │                                  │ won
//!        ▼                              │                                  ▼
//!      Halted                           └────into_primary──── Live ◀── Draining (the rest of the log)
//! ```
//!
//! Handing over, a primary on its way from Replicating to Claiming stands still: `hand_over`.
//!
//! Invariants (DESIGN 8), asserted in release builds: acked ≤ appended; released ≤ acked unless this process
//! holds the current generation alone; executed ≤ received; outputs go in order; halted is for good; a backup
//! that diverged, or never finished joining, does not go live.
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

pub mod backup;
pub mod claim;
pub mod config;
mod hand_over;
mod lag;
pub mod output_gate;
mod peer;
pub mod primary;
pub mod reads;

pub use backup::{Backup, BackupAction, BackupEvent, BackupState};
pub use claim::ClaimAnswer;
pub use config::Config;
pub use lag::{ExecutionLag, THROTTLE_PERIOD_NS};
pub use output_gate::OutputGate;
pub use peer::{Heartbeat, Suspicion};
pub use primary::{Primary, PrimaryAction, PrimaryEvent, PrimaryState};
pub use reads::{Arrivals, ReadLimits, ReadTracker};

use logchannel::{Generation, Output};

/// Why a process of a pair stopped for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HaltReason {
    /// The guest ended by itself or was powered off: the pair ends together.
    GuestEnded,
    /// Another process won the test-and-set.
    Lost {
        /// The generation there is now.
        generation: Generation,
        /// Who holds it.
        holder: u128,
    },
    /// The disk server refused a request of this process: a newer generation exists.
    Fenced {
        /// The generation there is now.
        generation: Generation,
    },
    /// The channel broke before the backup had a whole machine.
    NeverJoined,
    /// The backup did not take the path of the log.
    Diverged,
    /// The backup could not read from the shared disk what the log leaves out.
    CannotRead,
}

impl std::fmt::Display for HaltReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            HaltReason::GuestEnded => write!(f, "the guest ended"),
            HaltReason::Lost { generation, holder } => {
                write!(f, "{holder:032x} went live under generation {generation}")
            }
            HaltReason::Fenced { generation } => {
                write!(f, "the disk server refuses this copy: generation {generation} went live")
            }
            HaltReason::NeverJoined => write!(f, "the primary went away before the backup had joined"),
            HaltReason::Diverged => write!(f, "the backup diverged from the log"),
            HaltReason::CannotRead => {
                let why = "look at its way to the disk server";
                write!(f, "the backup cannot read the shared disk, as --backup-reads asks: {why}")
            }
        }
    }
}

/// What the protocol must know of an output; otherwise its content is opaque.
pub trait Content {
    /// The identity of the request, if this output asks for something that an input of the log completes (a
    /// disk request). A backup keeps such an output until that input: that it was released does not say that
    /// it took effect.
    fn request(&self) -> Option<u64>;

    /// Bytes of memory that holding it back takes.
    fn bytes(&self) -> usize;
}

impl Content for Output {
    fn request(&self) -> Option<u64> {
        match self {
            Output::Disk(request) => Some(request.id),
            Output::Net(_) | Output::Console(_) => None,
        }
    }

    fn bytes(&self) -> usize {
        self.len() + size_of::<Output>()
    }
}
