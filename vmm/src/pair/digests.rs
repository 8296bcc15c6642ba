//! When a digest of the machine is due in the log.
//!
//! At most one in a time, and none for a guest that stands still: an idle machine's log must not grow. A
//! guest that computes gets one also where nothing else enters the log, as it may be for as long as it likes
//! with a virtual clock: the entry takes the backup along, which runs no further than the last one it has.

use logchannel::{Position, Seq};

/// When the next digest is due.
#[derive(Debug, Clone)]
pub struct Digests {
    /// Time between two; 0 for none.
    every_ns: u64,
    next_ns: u64,
    /// The entry after the last digest, and where that one is.
    after: (Seq, Position),
}

impl Digests {
    /// One every `every_ns` from `now_ns` on, never if that is 0; the log goes on with entry `next_seq`, the
    /// guest from `at`.
    pub fn new(every_ns: u64, now_ns: u64, next_seq: Seq, at: Position) -> Self {
        Self { every_ns, next_ns: now_ns.saturating_add(every_ns), after: (next_seq, at) }
    }

    /// Whether one is due, with the next entry and the guest's position as they are now.
    pub fn is_due(&self, now_ns: u64, next_seq: Seq, at: Position) -> bool {
        self.every_ns > 0 && now_ns >= self.next_ns && (next_seq, at) != self.after
    }

    /// One was logged; the next entry is now `next_seq`.
    pub fn logged(&mut self, now_ns: u64, next_seq: Seq, at: Position) {
        self.next_ns = now_ns.saturating_add(self.every_ns);
        self.after = (next_seq, at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: u64 = 1_000;

    fn digests() -> Digests {
        Digests::new(EVERY, 500, 7, Position::at(40))
    }

    #[test]
    fn one_is_due_when_its_time_has_come_and_the_log_has_grown() {
        assert!(!digests().is_due(1_499, 8, Position::at(40)));
        assert!(digests().is_due(1_500, 8, Position::at(40)));
    }

    #[test]
    fn one_is_due_when_the_guest_got_on_without_an_entry() {
        assert!(digests().is_due(1_500, 7, Position::at(41)));
    }

    #[test]
    fn none_is_due_while_the_guest_stands_still_and_nothing_is_logged() {
        let mut digests = digests();
        assert!(!digests.is_due(u64::MAX, 7, Position::at(40)));
        digests.logged(2_000, 9, Position::at(60));
        assert!(!digests.is_due(u64::MAX, 9, Position::at(60)));
        assert!(!digests.is_due(2_999, 9, Position::at(61)));
        assert!(digests.is_due(3_000, 9, Position::at(61)));
    }

    #[test]
    fn none_is_ever_due_without_a_time_between_them() {
        assert!(!Digests::new(0, 0, 1, Position::at(0)).is_due(u64::MAX, 9, Position::at(9)));
    }
}
