//! Linearizability of one key's history: is there an order of its operations, consistent with real time, in
//! which a register behaves as the clients saw it? (Herlihy and Wing 1990; the search is Wing and Gong's,
//! with the memory of visited states by Lowe.)

use std::collections::BTreeSet;

use replay::small_machine::Op;

/// One operation on a key, as its client saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// Who.
    pub client: u32,
    /// What.
    pub op: Op,
    /// When it was sent first.
    pub invoked: u64,
    /// When the reply came, and what it said; `None` if none came.
    pub replied: Option<(u64, u64)>,
}

/// Most operations per key.
pub const MAX_OPERATIONS: usize = 128;

/// Whether the register may have behaved so. Operations without reply may have happened or not.
pub fn is_linearizable(history: &[Operation]) -> bool {
    assert!(history.len() <= MAX_OPERATIONS, "a key's history is too long to check");
    let mut operations = history.to_vec();
    operations.sort_by_key(|operation| operation.invoked);
    let replied: u128 = mask(operations.iter().map(|operation| operation.replied.is_some()));
    let mut visited = BTreeSet::new();
    let mut stack = vec![(0u128, 0u64)];
    while let Some((done, value)) = stack.pop() {
        if done & replied == replied {
            return true;
        }
        // Only what was invoked before the first pending reply can come next.
        let pending = |i: &usize| done & (1 << i) == 0;
        let first_reply = (0..operations.len())
            .filter(pending)
            .filter_map(|i| operations[i].replied.map(|(at, _)| at))
            .min()
            .unwrap_or(u64::MAX);
        for i in (0..operations.len()).filter(pending) {
            if operations[i].invoked > first_reply {
                break;
            }
            if let Some(next) = apply(&operations[i], value) {
                let state = (done | 1 << i, next);
                if visited.insert(state) {
                    stack.push(state);
                }
            }
        }
    }
    false
}

fn mask(bits: impl Iterator<Item = bool>) -> u128 {
    bits.enumerate().fold(0, |mask, (i, bit)| mask | u128::from(bit) << i)
}

/// The register's value after the operation, if the reply fits.
fn apply(operation: &Operation, value: u64) -> Option<u64> {
    let next = match operation.op {
        Op::Get | Op::Load | Op::PowerOff | Op::Reset => value,
        Op::Set(new) => new,
        Op::Incr => value.wrapping_add(1),
    };
    operation.replied.is_none_or(|(_, seen)| seen == next).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(client: u32, op: Op, invoked: u64, replied: Option<(u64, u64)>) -> Operation {
        Operation { client, op, invoked, replied }
    }

    #[test]
    fn a_plain_history_is_linearizable() {
        let history = [
            operation(1, Op::Set(5), 0, Some((10, 5))),
            operation(2, Op::Incr, 20, Some((30, 6))),
            operation(1, Op::Get, 40, Some((50, 6))),
            operation(1, Op::Load, 60, Some((70, 6))),
        ];
        assert!(is_linearizable(&history));
    }

    #[test]
    fn a_lost_write_a_stale_read_and_a_double_increment_are_not() {
        let set = operation(1, Op::Set(5), 0, Some((10, 5)));
        assert!(!is_linearizable(&[set, operation(2, Op::Get, 20, Some((30, 0)))]));
        let later = operation(2, Op::Set(6), 20, Some((30, 6)));
        assert!(!is_linearizable(&[set, later, operation(3, Op::Load, 40, Some((50, 5)))]));
        assert!(!is_linearizable(&[operation(1, Op::Incr, 0, Some((10, 2)))]));
    }

    #[test]
    fn concurrent_operations_may_come_in_either_order() {
        let set = operation(1, Op::Set(5), 0, Some((100, 5)));
        assert!(is_linearizable(&[set, operation(2, Op::Get, 50, Some((60, 0)))]));
        assert!(is_linearizable(&[set, operation(2, Op::Get, 50, Some((60, 5)))]));
        let read_then_unread =
            [set, operation(2, Op::Get, 50, Some((60, 5))), operation(3, Op::Get, 70, Some((80, 0)))];
        assert!(!is_linearizable(&read_then_unread));
    }

    #[test]
    fn an_operation_without_reply_may_have_happened_or_not() {
        let set = operation(1, Op::Set(5), 0, None);
        for seen in [0, 5] {
            assert!(is_linearizable(&[set, operation(2, Op::Get, 50, Some((60, seen)))]));
        }
    }
}
