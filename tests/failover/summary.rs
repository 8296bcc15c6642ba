//! The table at the end: what was done how often, and what it cost.

use std::collections::BTreeMap;
use std::fmt;

use load::Report;
use serde_json::Value;

use crate::failovers::Kind;
use crate::guest_time::Found;
use crate::support::number;

/// One failover.
pub struct Row {
    kind: Kind,
    /// Longest time in which no client had an answer.
    pub stall_ms: Option<f64>,
    /// The fault did not meet what it was meant for, though all is well.
    pub missed: bool,
    /// From the fault until the primary was given up; until its backup held the generation, had executed
    /// every entry, and was live. `None` without a failover.
    steps_ms: Option<[f64; 4]>,
    entries_left: u64,
    answered: u64,
    outputs: u64,
    digests: u64,
    /// What a client was told of the guest's time, if one asked.
    pub guest_time: Option<Found>,
}

impl Row {
    /// Of what the clients saw, and the survivor's status.
    pub fn new(kind: Kind, report: &Report, fault_ns: u64, status: &Value) -> Self {
        let at = |step: &str| number(status, &format!("/failover/{step}_ns"));
        let ms = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
        let steps = status.get("failover").filter(|failover| !failover.is_null()).map(|_| {
            let [suspected, won, replayed, live] = ["suspected", "won", "replayed", "live"].map(at);
            [ms(fault_ns, suspected), ms(suspected, won), ms(won, replayed), ms(replayed, live)]
        });
        Self {
            kind,
            stall_ms: Some(report.stall_ms),
            missed: false,
            steps_ms: steps,
            entries_left: number(status, "/failover/entries_left"),
            answered: report.answered,
            outputs: number(status, "/backup/outputs"),
            digests: number(status, "/backup/digests"),
            guest_time: None,
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}{}, {} answers", self.kind, if self.missed { "*" } else { "" }, self.answered)?;
        if let Some(stall) = self.stall_ms {
            write!(f, ", stall {stall:.1} ms")?;
        }
        if let Some([detect, claim, replay, live]) = self.steps_ms {
            write!(f, ", failover {detect:.1} + {claim:.1} + {replay:.1} + {live:.1} ms")?;
        }
        if let Some(found) = self.guest_time {
            write!(f, ", the guest's time moved by {:.1} ms against the host's", found.drift_ms)?;
        }
        Ok(())
    }
}

/// All of them.
#[derive(Default)]
pub struct Summary(Vec<Row>);

impl Summary {
    /// One more.
    pub fn add(&mut self, row: Row) {
        self.0.push(row);
    }

    /// To standard output.
    pub fn print(&self, machine: &str) {
        let mut kinds: BTreeMap<Kind, Vec<&Row>> = BTreeMap::new();
        for row in &self.0 {
            kinds.entry(row.kind).or_default().push(row);
        }
        println!(
            "\n{machine}: ms, median / 99th percentile / largest   (* the fault came too early or too late \
             for its kind)"
        );
        println!(
            "{:<12} {:>5} {:>2} {:>25} {:>25} {:>22} {:>22} {:>22} {:>6}",
            "kind", "count", "*", "stall", "detect", "test-and-set", "replay", "go live", "left"
        );
        for (kind, rows) in &kinds {
            line(&format!("{kind:?}"), rows);
        }
        line("all", &self.0.iter().collect::<Vec<_>>());
        let sum = |of: fn(&Row) -> u64| self.0.iter().map(of).sum::<u64>();
        println!(
            "{} requests answered; {} outputs and {} digests compared by backups that went live, all equal",
            sum(|row| row.answered),
            sum(|row| row.outputs),
            sum(|row| row.digests)
        );
        let times: Vec<Found> = self.0.iter().filter_map(|row| row.guest_time).collect();
        if !times.is_empty() {
            println!(
                "asked {} times, the guest's time never went back; it moved against the host's by {} ms",
                times.iter().map(|found| found.answers).sum::<u64>(),
                distribution(times.iter().map(|found| found.drift_ms).collect()),
            );
        }
    }
}

fn line(name: &str, rows: &[&Row]) {
    let step =
        |index: usize| distribution(rows.iter().filter_map(|row| Some(row.steps_ms?[index])).collect());
    println!(
        "{name:<12} {:>5} {:>2} {:>25} {:>25} {:>22} {:>22} {:>22} {:>6}",
        rows.len(),
        rows.iter().filter(|row| row.missed).count(),
        distribution(rows.iter().filter_map(|row| row.stall_ms).collect()),
        step(0),
        step(1),
        step(2),
        step(3),
        rows.iter().map(|row| row.entries_left).max().unwrap_or(0),
    );
}

/// Median, 99th percentile (nearest rank) and largest.
fn distribution(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else { return "-".into() };
    let at =
        |quantile: f64| values[((values.len() as f64 * quantile).ceil() as usize).clamp(1, last + 1) - 1];
    format!("{:.1} / {:.1} / {:.1}", at(0.5), at(0.99), values[last])
}
