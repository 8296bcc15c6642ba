//! What a run looked like to its clients.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::checker::Verdict;
use crate::history::{Operation, Request};
use crate::workload::Outcome;

/// Latency of requests, microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Median.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p999_us: f64,
    /// Longest.
    pub max_us: f64,
}

impl Latency {
    /// Of a histogram of nanoseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Self { p50_us: at(0.5), p99_us: at(0.99), p999_us: at(0.999), max_us: histogram.max() as f64 / 1e3 }
    }
}

/// What the clients saw.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// Requests sent.
    pub requests: u64,
    /// Requests answered.
    pub answered: u64,
    /// Answered SETs, INCRs and APPENDs.
    pub writes: u64,
    /// Connections made.
    pub connections: u32,
    /// Connections that were there to the end.
    pub connections_kept: u32,
    /// Requests answered per second, over the whole run.
    pub requests_per_s: f64,
    /// Time from request to answer.
    pub latency: Latency,
    /// Longest time without any answer to anybody, milliseconds.
    pub stall_ms: f64,
    /// From the fault to the first answer to a request that was under way or sent after it, milliseconds.
    pub first_answer_ms: Option<f64>,
    /// From the fault until every connection had an answer again, milliseconds.
    pub all_answered_ms: Option<f64>,
    /// What is wrong, a line each.
    pub violations: Vec<String>,
    /// Acknowledged writes that are gone, or answers that no single machine gives.
    pub lost: usize,
}

impl Report {
    /// Of an outcome and its verdict; `fault_ns` is when the plug was pulled.
    #[allow(clippy::cast_possible_truncation, reason = "no more than there are connections")]
    pub fn new(outcome: &Outcome, verdict: &Verdict, fault_ns: Option<u64>) -> Self {
        let operations = &outcome.history.operations;
        let mut histogram = Histogram::<u64>::new(3).expect("three digits are possible");
        let mut answers: Vec<u64> = Vec::with_capacity(operations.len());
        for operation in operations {
            if let Some(at) = operation.answered_ns {
                let _ = histogram.record(at.saturating_sub(operation.invoked_ns).max(1));
                answers.push(at);
            }
        }
        answers.sort_unstable();
        let stall = answers.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
        let length_s = match (answers.first(), answers.last()) {
            (Some(first), Some(last)) => (last - first) as f64 / 1e9,
            _ => 0.0,
        };
        let writes = operations
            .iter()
            .filter(|o| o.answered_ns.is_some() && !matches!(o.request, Request::Get { .. }));
        let (first, all) =
            fault_ns.map_or((None, None), |fault| after_fault(operations, outcome.connections, fault));
        let mut violations = outcome.broken.clone();
        violations.extend(verdict.violations.iter().map(ToString::to_string));
        Self {
            requests: operations.len() as u64,
            answered: answers.len() as u64,
            writes: writes.count() as u64,
            connections: outcome.connections,
            connections_kept: outcome.connections.saturating_sub(outcome.broken.len() as u32),
            requests_per_s: if length_s > 0.0 { answers.len() as f64 / length_s } else { 0.0 },
            latency: Latency::of(&histogram),
            stall_ms: stall as f64 / 1e6,
            first_answer_ms: first,
            all_answered_ms: all,
            violations,
            lost: verdict.violations.len(),
        }
    }

    /// Whether the clients saw nothing wrong.
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }
}

/// How long after `fault` the first client, and the last of them, had an answer to a request that the old
/// primary cannot have answered: one sent after the fault, or under way across it with the longest wait.
fn after_fault(operations: &[Operation], clients: u32, fault: u64) -> (Option<f64>, Option<f64>) {
    let mut firsts = vec![u64::MAX; clients as usize];
    for operation in operations.iter().filter(|o| o.invoked_ns >= fault) {
        if let (Some(at), Some(first)) = (operation.answered_ns, firsts.get_mut(operation.client as usize)) {
            *first = (*first).min(at);
        }
    }
    // A client whose request was under way at the fault was answered before it could send the next one.
    for operation in operations.iter().filter(|o| o.invoked_ns < fault) {
        if let (Some(at), Some(first)) = (operation.answered_ns, firsts.get_mut(operation.client as usize))
            && at > fault
            && at.saturating_sub(fault) > 1_000_000
        {
            *first = (*first).min(at);
        }
    }
    let ms = |at: u64| (at - fault) as f64 / 1e6;
    let answered = firsts.iter().copied().filter(|at| *at != u64::MAX);
    (answered.clone().min().map(ms), answered.max().map(ms))
}
