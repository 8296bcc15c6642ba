//! The claim: asking the disk server, by test-and-set, for the right to go on alone.
//!
//! A claim is asked again until it is answered: the answer is durable before it is sent, and a repeat by the
//! same claimant gets the same answer. Answers may be lost, repeated and late, so an answer names the claim
//! it belongs to, and only a definite one counts.

use logchannel::Generation;

/// What the disk server answered, or that it did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimAnswer {
    /// The claimant holds `generation` now.
    Won {
        /// The generation won.
        generation: Generation,
    },
    /// Somebody else holds the generation.
    Lost {
        /// The generation there is now.
        generation: Generation,
        /// Who holds it.
        holder: u128,
    },
    /// No answer: the server cannot be reached. It may have recorded the claim all the same.
    Unreachable,
}

/// What an answer means for a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Open,
    Won(Generation),
    Lost { generation: Generation, holder: u128 },
}

/// A claim in progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    expect: Generation,
    claimant: u128,
    ask_at_ns: u64,
}

impl Claim {
    /// A claim on the generation after `expect`, to be asked at once.
    pub(crate) fn new(expect: Generation, claimant: u128, now_ns: u64) -> Self {
        Self { expect, claimant, ask_at_ns: now_ns }
    }

    /// When to ask next.
    pub(crate) fn ask_at_ns(&self) -> u64 {
        self.ask_at_ns
    }

    /// Whether to ask now: `(expect, claimant)`.
    pub(crate) fn due(&mut self, now_ns: u64, retry_ns: u64) -> Option<(Generation, u128)> {
        if now_ns < self.ask_at_ns {
            return None;
        }
        self.ask_at_ns = now_ns.saturating_add(retry_ns.max(1));
        Some((self.expect, self.claimant))
    }

    /// What the answer to a claim with `expect` means for this one.
    pub(crate) fn judge(&self, expect: Generation, answer: ClaimAnswer) -> Verdict {
        if expect != self.expect {
            return Verdict::Open;
        }
        match answer {
            ClaimAnswer::Won { generation } if generation == expect + 1 => Verdict::Won(generation),
            ClaimAnswer::Lost { generation, holder } if generation > expect => {
                Verdict::Lost { generation, holder }
            }
            ClaimAnswer::Unreachable => Verdict::Open,
            ClaimAnswer::Won { .. } | ClaimAnswer::Lost { .. } => {
                tracing::error!(expect, ?answer, "the disk server answers what cannot be: asking again");
                Verdict::Open
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_definite_answer_to_this_claim_counts() {
        let claim = Claim::new(7, 42, 0);
        assert_eq!(claim.judge(7, ClaimAnswer::Won { generation: 8 }), Verdict::Won(8));
        assert_eq!(
            claim.judge(7, ClaimAnswer::Lost { generation: 9, holder: 3 }),
            Verdict::Lost { generation: 9, holder: 3 }
        );
        for (expect, answer) in [
            (7, ClaimAnswer::Unreachable),
            (7, ClaimAnswer::Won { generation: 7 }),
            (7, ClaimAnswer::Lost { generation: 7, holder: 3 }),
            (6, ClaimAnswer::Won { generation: 7 }),
            (6, ClaimAnswer::Lost { generation: 7, holder: 3 }),
        ] {
            assert_eq!(claim.judge(expect, answer), Verdict::Open, "{expect} {answer:?}");
        }
    }

    #[test]
    fn it_is_asked_again_after_the_retry_time() {
        let mut claim = Claim::new(1, 9, 100);
        assert_eq!(claim.due(100, 50), Some((1, 9)));
        assert_eq!(claim.due(149, 50), None);
        assert_eq!(claim.due(150, 50), Some((1, 9)));
    }
}
