//! Seam: the test-and-set and the fence of the disk server, in the shape of `disk_server::test_and_set`,
//! which is to take this module's place.

use logchannel::Generation;

/// Who claims: unique for each start of a process.
pub type Claimant = u128;

/// The state of one virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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
    /// The claimant had won by the same claim already.
    Repeat(Holding),
    /// Another process went on alone before, or the claimant's knowledge is old.
    Lost(Holding),
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Another process holds a newer generation.
    Fenced(Holding),
    /// Nobody was ever granted this generation.
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
