//! Who may run a virtual machine alone: the state machine of the test-and-set and of the fence.
//!
//! It is pure: no file, socket or clock. The server runs it between a lock and a durable record, the
//! simulator runs it between two steps.
//!
//! ```text
//!                claim(expect = g, c)             claim(expect = g, c')      → Lost
//!   (g, h) ────────────────────────────▶ (g+1, c)
//!      ▲            Grant                   │  ▲  claim(expect = g, c)       → Repeat (Won again)
//!      └── claim(expect ≠ g) → Lost         │  └──────────────┘
//!                                           └── claim(expect = g+1, any) → Grant (g+2, any)
//! ```
//!
//! Invariants: the generation never decreases; a generation, once granted, keeps its one holder; generation 0
//! was granted to nobody and admits nothing.

use logchannel::Generation;
use serde::{Deserialize, Serialize};

/// Who claims: a number that is unique for each start of each process, chosen by the claimant.
pub type Claimant = u128;

/// The state of one virtual machine: the current generation and the process that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Holding {
    /// How often the right to run the machine alone changed hands.
    pub generation: Generation,
    /// Who won this generation; nobody exactly when it is 0.
    pub holder: Option<Claimant>,
}

/// What becomes of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The claimant wins. This holding must be durable before the claimant hears of it.
    Grant(Holding),
    /// The claimant had won by the same claim already: it hears the same again, and nothing changes.
    Repeat(Holding),
    /// Another process went on alone before, or the claimant's knowledge is old: it must halt.
    Lost(Holding),
}

impl Decision {
    /// The state after this decision.
    pub fn holding(&self) -> Holding {
        match *self {
            Decision::Grant(holding) | Decision::Repeat(holding) | Decision::Lost(holding) => holding,
        }
    }

    /// Whether the claimant holds the generation it asked for.
    pub fn is_won(&self) -> bool {
        !matches!(self, Decision::Lost(_))
    }
}

/// Decides the claim of `claimant`, who believes that `expect` is the current generation.
pub fn decide(current: &Holding, expect: Generation, claimant: Claimant) -> Decision {
    let Some(next) = expect.checked_add(1) else { return Decision::Lost(*current) };
    if current.generation == expect {
        return Decision::Grant(Holding { generation: next, holder: Some(claimant) });
    }
    if current.generation == next && current.holder == Some(claimant) {
        return Decision::Repeat(*current);
    }
    Decision::Lost(*current)
}

/// Why a request that carries a generation is not executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another process holds a newer generation: whoever asks must halt.
    #[error("fenced: generation {} is current", .0.generation)]
    Fenced(Holding),
    /// Nobody was ever granted this generation: the asker is in error.
    #[error("generation {asked} was never granted (current: {current}): claim one by test-and-set first")]
    NeverGranted {
        /// What the request carried.
        asked: Generation,
        /// The current generation.
        current: Generation,
    },
}

/// Whether a request of `generation` may be executed while `current` holds.
pub fn admits(current: &Holding, generation: Generation) -> Result<(), Refusal> {
    match generation.cmp(&current.generation) {
        std::cmp::Ordering::Less => Err(Refusal::Fenced(*current)),
        std::cmp::Ordering::Equal if generation != 0 => Ok(()),
        _ => Err(Refusal::NeverGranted { asked: generation, current: current.generation }),
    }
}

#[cfg(test)]
#[path = "test_and_set_tests.rs"]
mod tests;
