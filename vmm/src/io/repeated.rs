//! Things that go on and on, as a server that cannot be reached and is tried every 20 ms: said once, then
//! once a minute with a count.

use crate::io::clock::HostClock;

const AGAIN_AFTER_NS: u64 = 60_000_000_000;

/// One thing that may happen again and again.
#[derive(Debug, Default)]
pub struct Repeated {
    said_ns: Option<u64>,
    times: u64,
}

impl Repeated {
    /// It happened. When it is to be said: how often it has happened since it was said last, at least 1.
    pub fn happened(&mut self) -> Option<u64> {
        self.happened_at(HostClock.now_ns())
    }

    fn happened_at(&mut self, now_ns: u64) -> Option<u64> {
        self.times += 1;
        if self.said_ns.is_some_and(|said_ns| now_ns.saturating_sub(said_ns) < AGAIN_AFTER_NS) {
            return None;
        }
        self.said_ns = Some(now_ns);
        Some(std::mem::take(&mut self.times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_is_said_once_and_then_once_a_minute_with_a_count() {
        let mut thing = Repeated::default();
        assert_eq!(thing.happened_at(5), Some(1));
        // Ten times a second for two minutes.
        let said: Vec<(u64, u64)> = (1..=1200)
            .filter_map(|tenth| Some((tenth, thing.happened_at(5 + tenth * 100_000_000)?)))
            .collect();
        assert_eq!(said, [(600, 600), (1200, 600)]);
        // Long after, it is news.
        assert_eq!(thing.happened_at(1_000_000_000_000), Some(1));
    }
}
