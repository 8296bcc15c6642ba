//! Handing over: a primary that the disk server does not answer asks whether its backup reaches it, and if so
//! stops its guest and lets the backup go on.
//!
//! ```text
//!   primary                                   backup
//!     │ no answer for the timeout               │
//!     ├── AskDisk ─────────────────────────────▶│ asks the disk server
//!     │◀───────────────────────── DiskReach ────┤
//!     │ still no answer, a suspicion's time on  │
//!     ├── Entries … HandOver (E, the last) ────▶│ executes to E, closes the channel, claims
//!     │ silence                                 │
//!     └ claims too: only the winner goes on after E
//! ```

use logchannel::Seq;

/// What a primary knows of the way to the disk server, its own and its backup's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Inquiry {
    /// Nothing is to be asked.
    #[default]
    Idle,
    /// Asked.
    Asked { number: u64, at_ns: u64 },
    /// The backup reaches it.
    Reaches { since_ns: u64 },
}

/// A primary on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// The guest is to be stopped.
    Requested,
    /// `HandOver` was appended.
    After {
        /// As this entry.
        last: Seq,
        /// When the backup got on last.
        progress_ns: u64,
        /// It has closed the channel: nothing more is to be sent.
        closed: bool,
    },
}

impl Leaving {
    /// Whether the guest stands still.
    pub(crate) fn is_stopped(self) -> bool {
        matches!(self, Leaving::After { .. })
    }
}

#[cfg(test)]
#[path = "hand_over_tests.rs"]
mod tests;
