//! The table at the end.

use std::collections::BTreeMap;
use std::fmt;

use crate::kinds::Kind;

/// One round.
pub struct Row {
    /// What was done.
    pub kind: Kind,
    /// Writes that were acknowledged.
    pub writes: u64,
    /// Longest time without an answer to anybody, if the service went on.
    pub stall_ms: Option<f64>,
    /// Copies that went on alone, or live.
    pub failovers: u64,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {} failovers, {} writes", self.kind, self.failovers, self.writes)?;
        match self.stall_ms {
            Some(stall) => write!(f, ", stall {stall:.0} ms"),
            None => write!(f, ", started again"),
        }
    }
}

/// How a round failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// An acknowledged write is gone.
    Lost,
    /// Something was done twice.
    Double,
    /// No answer, or no end.
    Stuck,
    /// No redundancy, though it could be had.
    Unprotected,
    /// The service ended, connections were lost, or anything else.
    Other,
}

impl Failure {
    /// Of an error.
    pub fn of(error: &anyhow::Error) -> Self {
        let text = format!("{error:#}");
        let has = |words: &str| text.contains(words);
        match () {
            () if has("unprotected") => Failure::Unprotected,
            () if has("of the writes 0 lost") || has("two live copies") => Failure::Double,
            () if has("of the writes") || has("lost: what round") => Failure::Lost,
            () if has("stuck") => Failure::Stuck,
            () => Failure::Other,
        }
    }
}

/// All rounds.
#[derive(Default)]
pub struct Summary {
    rows: Vec<Row>,
    failures: Vec<(Kind, Failure)>,
}

impl Summary {
    /// A round that was as it should be.
    pub fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// A round that was not.
    pub fn fail(&mut self, kind: Kind, error: &anyhow::Error) {
        self.failures.push((kind, Failure::of(error)));
    }

    /// Failovers so far.
    pub fn failovers(&self) -> u64 {
        self.rows.iter().map(|row| row.failovers).sum()
    }

    /// Rounds that failed so far.
    pub fn failed(&self) -> usize {
        self.failures.len()
    }

    /// To standard output.
    pub fn print(&self) {
        let mut kinds: BTreeMap<Kind, Vec<&Row>> = BTreeMap::new();
        for (kind, _) in &self.failures {
            kinds.entry(*kind).or_default();
        }
        for row in &self.rows {
            kinds.entry(row.kind).or_default().push(row);
        }
        println!(
            "\n{:<18} {:>6} {:>9} {:>8} {:>24} {:>8} {:>5} {:>6} {:>5} {:>11} {:>5}",
            "kind",
            "rounds",
            "failovers",
            "needless",
            "stall p50/p99/max ms",
            "writes",
            "lost",
            "double",
            "stuck",
            "unprotected",
            "other"
        );
        for (kind, rows) in &kinds {
            self.line(&format!("{kind:?}"), rows, |of| of == *kind);
        }
        self.line("all", &self.rows.iter().collect::<Vec<_>>(), |_| true);
    }

    fn line(&self, name: &str, rows: &[&Row], of: impl Fn(Kind) -> bool) {
        let failures: Vec<Failure> =
            self.failures.iter().filter(|(kind, _)| of(*kind)).map(|(_, failure)| *failure).collect();
        let failed = |what: Failure| failures.iter().filter(|failure| **failure == what).count();
        println!(
            "{name:<18} {:>6} {:>9} {:>8} {:>24} {:>8} {:>5} {:>6} {:>5} {:>11} {:>5}",
            rows.len() + failures.len(),
            rows.iter().map(|row| row.failovers).sum::<u64>(),
            rows.iter().filter(|row| row.kind.needs_no_failover()).map(|row| row.failovers).sum::<u64>(),
            distribution(rows.iter().filter_map(|row| row.stall_ms).collect()),
            rows.iter().map(|row| row.writes).sum::<u64>(),
            failed(Failure::Lost),
            failed(Failure::Double),
            failed(Failure::Stuck),
            failed(Failure::Unprotected),
            failed(Failure::Other),
        );
    }
}

/// Median, 99th percentile (nearest rank) and largest.
fn distribution(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else { return "-".into() };
    let at =
        |quantile: f64| values[((values.len() as f64 * quantile).ceil() as usize).clamp(1, last + 1) - 1];
    format!("{:.0} / {:.0} / {:.0}", at(0.5), at(0.99), values[last])
}
