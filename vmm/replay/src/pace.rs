//! The pace at which a guest's position grows in host time: how far it may run until an instant of the host's
//! clock. An estimate; it decides only how often the recorder looks at that clock.

/// Fewest counts worth a look at the clock: some ten microseconds of a software engine.
const SHORTEST: u64 = 2_000;
/// What a guest is taken to do in 1024 ns before it was observed: little, so that it is looked after often.
const FIRST_RATE: u64 = 100;

/// The pace of one guest.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    /// Host time and position at the last look, if the guest has run since.
    looked: Option<(u64, u64)>,
    /// Counts in 1024 ns.
    rate: u64,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self { looked: None, rate: FIRST_RATE }
    }

    /// Takes note of where the guest is at `host_ns`; it goes on from there if it `runs`.
    pub(crate) fn look(&mut self, host_ns: u64, count: u64, runs: bool) {
        let (since_ns, since) = self.looked.unwrap_or((host_ns, count));
        let (passed_ns, ran) = (host_ns.saturating_sub(since_ns), count.saturating_sub(since));
        if !runs {
            self.looked = None;
        } else if self.looked.is_none() {
            self.looked = Some((host_ns, count));
        } else if ran >= SHORTEST && passed_ns > 0 {
            let now = u64::try_from(u128::from(ran) * 1024 / u128::from(passed_ns)).unwrap_or(u64::MAX);
            self.rate = (self.rate / 8 * 7).saturating_add(now / 8).max(1);
            self.looked = Some((host_ns, count));
        }
    }

    /// About how many counts the guest gets on in so much host time, and at least what a look is worth.
    pub(crate) fn counts_in(&self, host_ns: u64) -> u64 {
        let counts = u128::from(host_ns) * u128::from(self.rate) / 1024;
        u64::try_from(counts).unwrap_or(u64::MAX).max(SHORTEST)
    }
}
