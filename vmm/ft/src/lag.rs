//! Execution lag: how far the backup's execution is behind, and the loop that slows the primary for it.
//!
//! VMware slowed the primary's vCPU by a feedback loop as well (Scales et al. 2010, section 2.2 and 4.1).

use std::collections::VecDeque;

use logchannel::Seq;

/// How far execution is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExecutionLag {
    /// Entries not executed yet.
    pub entries: u64,
    /// Age of the oldest of them in nanoseconds, to a millisecond.
    pub ns: u64,
}

const SAMPLE_EVERY_NS: u64 = 1_000_000;

/// Measures execution lag. Remembers a time per millisecond in which entries were added, not per entry.
#[derive(Debug, Clone, Default)]
pub(crate) struct LagMeter {
    added: Seq,
    executed: Seq,
    /// First entry and time of each millisecond, oldest first.
    samples: VecDeque<(Seq, u64)>,
}

impl LagMeter {
    pub(crate) fn new(seq: Seq) -> Self {
        Self { added: seq, executed: seq, samples: VecDeque::new() }
    }

    /// Entries up to `seq` exist since `now_ns`.
    pub(crate) fn added(&mut self, seq: Seq, now_ns: u64) {
        if seq <= self.added {
            return;
        }
        let first = self.added + 1;
        self.added = seq;
        let recent = |&(_, at_ns): &(Seq, u64)| now_ns < at_ns.saturating_add(SAMPLE_EVERY_NS);
        if !self.samples.back().is_some_and(recent) {
            self.samples.push_back((first, now_ns));
        }
    }

    /// Entries up to `seq` were executed.
    pub(crate) fn executed(&mut self, seq: Seq) {
        self.executed = self.executed.max(seq.min(self.added));
        while self.samples.get(1).is_some_and(|&(first, _)| first <= self.executed + 1) {
            self.samples.pop_front();
        }
        if self.executed == self.added {
            self.samples.clear();
        }
    }

    pub(crate) fn lag(&self, now_ns: u64) -> ExecutionLag {
        let entries = self.added - self.executed;
        let oldest_ns = self.samples.front().map_or(now_ns, |&(_, at_ns)| at_ns);
        ExecutionLag { entries, ns: if entries == 0 { 0 } else { now_ns.saturating_sub(oldest_ns) } }
    }
}

/// Of every so many nanoseconds, the guest of a throttled primary stands still for a part.
pub const THROTTLE_PERIOD_NS: u64 = 10_000_000;

const CONTROL_EVERY_NS: u64 = 50_000_000;
const STEP_NS: u64 = THROTTLE_PERIOD_NS / 20;
const MAX_PAUSE_NS: u64 = THROTTLE_PERIOD_NS * 9 / 10;

/// The feedback loop: a longer pause while the lag is above its target, a shorter one when it is well below.
#[derive(Debug, Clone, Default)]
pub(crate) struct Throttle {
    pause_ns: u64,
    control_at_ns: u64,
}

impl Throttle {
    /// The new pause per period, when it changes.
    pub(crate) fn control(&mut self, lag_ns: u64, target_ns: u64, now_ns: u64) -> Option<u64> {
        if now_ns < self.control_at_ns {
            return None;
        }
        self.control_at_ns = now_ns.saturating_add(CONTROL_EVERY_NS);
        let before = self.pause_ns;
        if lag_ns > target_ns {
            self.pause_ns = (self.pause_ns + STEP_NS.max(self.pause_ns / 4)).min(MAX_PAUSE_NS);
        } else if lag_ns < target_ns / 2 {
            self.pause_ns = self.pause_ns.saturating_sub(STEP_NS);
        }
        (self.pause_ns != before).then_some(self.pause_ns)
    }

    /// The backup is gone: nothing to wait for.
    pub(crate) fn lift(&mut self) -> Option<u64> {
        let before = std::mem::take(self);
        (before.pause_ns != 0).then_some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_the_age_of_the_oldest_entry_not_executed() {
        const MS: u64 = 1_000_000;
        let mut meter = LagMeter::new(10);
        assert_eq!(meter.lag(5), ExecutionLag::default());
        meter.added(12, MS);
        meter.added(13, MS + 10);
        meter.added(20, 4 * MS);
        assert_eq!(meter.lag(5 * MS), ExecutionLag { entries: 10, ns: 4 * MS });
        meter.executed(13);
        assert_eq!(meter.lag(5 * MS), ExecutionLag { entries: 7, ns: MS });
        meter.executed(20);
        assert_eq!(meter.lag(9 * MS), ExecutionLag::default());
    }

    #[test]
    fn the_loop_slows_and_recovers_and_stays_in_bounds() {
        let (mut throttle, mut now, mut pause) = (Throttle::default(), 0, 0);
        for _ in 0..100 {
            pause = throttle.control(100, 50, now).unwrap_or(pause);
            now += CONTROL_EVERY_NS;
        }
        assert_eq!(pause, MAX_PAUSE_NS);
        for _ in 0..100 {
            pause = throttle.control(10, 50, now).unwrap_or(pause);
            now += CONTROL_EVERY_NS;
        }
        assert_eq!(pause, 0);
        assert_eq!(throttle.lift(), None);
    }
}
