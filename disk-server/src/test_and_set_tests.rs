//! Test-and-set and the fence as pure functions.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const A: Claimant = 0xa;
const B: Claimant = 0xb;

#[test]
fn first_claim_wins_and_is_idempotent() {
    let start = Holding::default();
    let won = Holding { generation: 1, holder: Some(A) };
    assert_eq!(decide(&start, 0, A), Decision::Grant(won));
    assert_eq!(decide(&won, 0, A), Decision::Repeat(won));
    assert_eq!(decide(&won, 0, B), Decision::Lost(won));
}

#[test]
fn claims_with_old_or_future_knowledge_lose() {
    let now = Holding { generation: 5, holder: Some(A) };
    assert_eq!(decide(&now, 3, A), Decision::Lost(now));
    assert_eq!(decide(&now, 6, A), Decision::Lost(now));
    assert_eq!(decide(&now, u64::MAX, A), Decision::Lost(now));
    assert!(decide(&now, 5, B).is_won());
}

#[test]
fn the_last_generation_cannot_wrap() {
    let end = Holding { generation: u64::MAX, holder: Some(A) };
    assert_eq!(decide(&end, u64::MAX, B), Decision::Lost(end));
    assert_eq!(decide(&end, u64::MAX - 1, A), Decision::Repeat(end));
}

#[test]
fn only_the_current_granted_generation_is_admitted() {
    let now = Holding { generation: 5, holder: Some(A) };
    assert_eq!(admits(&now, 5), Ok(()));
    assert_eq!(admits(&now, 4), Err(Refusal::Fenced(now)));
    assert_eq!(admits(&now, 6), Err(Refusal::NeverGranted { asked: 6, current: 5 }));
    let never = Holding::default();
    assert_eq!(admits(&never, 0), Err(Refusal::NeverGranted { asked: 0, current: 0 }));
}

proptest! {
    /// Any sequence of claims, some lost on their way to the record (a crash before it was durable), some
    /// answered twice: one holder per generation, no way back, winners stay winners.
    #[test]
    fn generations_have_one_holder(
        claims in prop::collection::vec((0u64..12, 1u128..5, any::<bool>()), 0..200)
    ) {
        let mut state = Holding::default();
        let mut holders = BTreeMap::new();
        for (expect, claimant, crash) in claims {
            let before = state;
            let decision = decide(&state, expect, claimant);
            if crash && matches!(decision, Decision::Grant(_)) {
                continue;
            }
            state = decision.holding();
            prop_assert!(state.generation >= before.generation);
            if decision.is_won() {
                prop_assert_eq!(state, Holding { generation: expect + 1, holder: Some(claimant) });
                prop_assert_eq!(*holders.entry(state.generation).or_insert(claimant), claimant);
                prop_assert_eq!(decide(&state, expect, claimant), Decision::Repeat(state));
                prop_assert!(admits(&state, expect).is_err());
            } else {
                prop_assert_eq!(state, before);
            }
        }
    }
}
