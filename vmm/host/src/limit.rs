//! How often a place in the program may speak: a burst, then so many lines a second. What is left out is
//! counted, and told with the next line or by the periodic report.

use std::collections::BTreeMap;

/// Lines that a place may write at once.
pub const BURST: u64 = 40;
/// Lines a second that it may write for long.
pub const PER_SECOND: u64 = 2;
/// Places that are told apart; all others share one allowance. There are fewer in the program's text, but
/// records of foreign crates may name places of their own making.
const PLACES: usize = 4096;
const LINE_NS: u64 = 1_000_000_000 / PER_SECOND;

/// What becomes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is written, and so many before it were not.
    Write {
        /// How many.
        left_out: u64,
    },
    /// It is left out and counted.
    LeaveOut,
}

#[derive(Debug, Default)]
struct Place {
    /// When everything that was written is paid for, nanoseconds.
    paid_ns: u64,
    left_out: u64,
    name: String,
}

/// The places and what each may still write.
#[derive(Debug, Default)]
pub struct Limiter {
    places: BTreeMap<u64, Place>,
}

impl Limiter {
    /// One without places.
    pub const fn new() -> Self {
        Self { places: BTreeMap::new() }
    }

    /// Whether the place with this key, whose `name` is for people, may write a line now.
    pub fn admit(&mut self, key: u64, now_ns: u64, name: impl FnOnce() -> String) -> Verdict {
        let known = self.places.contains_key(&key) || self.places.len() < PLACES;
        let (key, named) = if known { (key, None) } else { (0, Some("elsewhere".to_owned())) };
        let place = self.places.entry(key).or_default();
        let paid_ns = place.paid_ns.max(now_ns) + LINE_NS;
        if paid_ns > now_ns + BURST * LINE_NS {
            if place.name.is_empty() {
                place.name = named.unwrap_or_else(name);
            }
            place.left_out += 1;
            return Verdict::LeaveOut;
        }
        place.paid_ns = paid_ns;
        Verdict::Write { left_out: std::mem::take(&mut place.left_out) }
    }

    /// Names of the places whose lines were left out since they were last told of, and how many.
    pub fn take_left_out(&mut self) -> Vec<(String, u64)> {
        let silent = self.places.values_mut().filter(|place| place.left_out > 0);
        silent.map(|place| (place.name.clone(), std::mem::take(&mut place.left_out))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    #[test]
    fn a_burst_passes_then_so_many_a_second_and_every_line_is_accounted_for() {
        let mut limiter = Limiter::new();
        let (mut written, mut told, asked) = (0, 0, 100_000);
        for step in 0..asked {
            // Ten seconds, ten thousand lines each.
            if let Verdict::Write { left_out } = limiter.admit(1, step * SECOND_NS / 10_000, || "one".into())
            {
                written += 1;
                told += left_out;
            }
        }
        assert!((BURST..=BURST + 10 * PER_SECOND).contains(&written), "{written}");
        let rest = limiter.take_left_out();
        assert_eq!(rest.len(), 1);
        assert_eq!(rest[0].0, "one");
        assert_eq!(written + told + rest[0].1, asked);
        assert!(limiter.take_left_out().is_empty());
    }

    #[test]
    fn places_do_not_pay_for_each_other() {
        let mut limiter = Limiter::new();
        for _ in 0..2 * BURST {
            limiter.admit(1, 0, || "one".into());
        }
        assert_eq!(limiter.admit(1, 0, || "one".into()), Verdict::LeaveOut);
        assert_eq!(limiter.admit(2, 0, || "two".into()), Verdict::Write { left_out: 0 });
        let after_all = 2 * BURST * LINE_NS;
        assert_eq!(limiter.admit(1, after_all, || "one".into()), Verdict::Write { left_out: BURST + 1 });
    }

    #[test]
    fn invented_places_share_one_allowance() {
        let mut limiter = Limiter::new();
        let mut count = || {
            let keys = 1..100_000u64;
            keys.filter(|&key| limiter.admit(key, 0, String::new) != Verdict::LeaveOut).count()
        };
        assert!(count() <= PLACES + usize::try_from(BURST).unwrap());
        assert!(limiter.places.len() <= PLACES + 1);
    }
}
