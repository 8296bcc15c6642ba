//! Could one machine, serving one request after the other, have told the clients what they were told?
//!
//! Linearizability (Herlihy and Wing, 1990), decided exactly, in O(n log n), for the objects that the
//! workload uses:
//!
//! - **counter**: every answer to INCR names its place in the order, so only that order can be right;
//! - **registers** with unique writes: the zones of Gibbons and Korach (*Testing Shared Memories*, 1997). A
//!   write and the reads of its value are a cluster; between its earliest answer and its latest invocation
//!   the value must have been there. Such forward zones may not overlap, and no cluster that fits into a
//!   moment (backward zone) may lie inside one;
//! - **appends** to a key of one client: sequential, so each answer is known beforehand.
//!
//! Operations without answer may have happened at any time after they were sent, or never. The final reads
//! are reads after everything: an acknowledged write that is gone shows there at the latest.

use std::collections::BTreeMap;

use crate::history::{History, Operation, Request};

/// What one machine cannot have answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Two INCRs gave the same value: one of them was lost.
    #[error("two INCRs answered {value}: an acknowledged increment was lost")]
    CounterTwice {
        /// The value.
        value: u64,
    },
    /// A later INCR gave a smaller value.
    #[error(
        "INCR answered {value} at {answered_ns} ns, before a smaller value was asked for at {invoked_ns} ns"
    )]
    CounterOrder {
        /// The value.
        value: u64,
        /// When it was answered.
        answered_ns: u64,
        /// When the smaller value was asked for.
        invoked_ns: u64,
    },
    /// More increments are missing than went unanswered.
    #[error("the counter skipped {value}, which no unanswered INCR explains")]
    CounterGap {
        /// The first value without explanation.
        value: u64,
    },
    /// The counter ended below an acknowledged value.
    #[error("the counter ended at {found}, but {acknowledged} was acknowledged")]
    CounterLost {
        /// What the final read gave.
        found: u64,
        /// The largest value acknowledged.
        acknowledged: u64,
    },
    /// A value was read that nobody wrote, or before anybody asked to write it.
    #[error("key {key}: value {value} was read before it was written, or was never written")]
    FromTheFuture {
        /// The key.
        key: u32,
        /// The value.
        value: u64,
    },
    /// Two values were each there at the same time.
    #[error(
        "key {key}: values {first} and {second} were current at the same time: a write was lost or a \
         read is stale"
    )]
    Overlap {
        /// The key.
        key: u32,
        /// One value; 0 for none.
        first: u64,
        /// The other.
        second: u64,
    },
    /// An append answered another length than it must.
    #[error("client {client}: APPEND answered length {found}, {expected} was due")]
    Append {
        /// The client.
        client: u32,
        /// What was due.
        expected: u64,
        /// What came.
        found: u64,
    },
}

/// The judgement.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Operations judged.
    pub operations: usize,
    /// What is wrong; empty when one machine could have answered this.
    pub violations: Vec<Violation>,
}

impl Verdict {
    /// Whether nothing is wrong.
    pub fn is_linearizable(&self) -> bool {
        self.violations.is_empty()
    }
}

/// Judges a history.
pub fn check(history: &History) -> Verdict {
    let mut violations = Vec::new();
    check_counter(history, &mut violations);
    let mut keys: BTreeMap<u32, Vec<&Operation>> = BTreeMap::new();
    for operation in &history.operations {
        if let Request::Set { key, .. } | Request::Get { key } = operation.request {
            keys.entry(key).or_default().push(operation);
        }
    }
    let ended_ns =
        history.operations.iter().map(|o| o.answered_ns.unwrap_or(o.invoked_ns)).max().unwrap_or(0) + 1;
    for (key, operations) in keys {
        let last = history.final_values.get(key as usize).copied();
        check_register(key, &operations, last.map(|value| (value, ended_ns)), &mut violations);
    }
    check_appends(history, &mut violations);
    Verdict { operations: history.operations.len(), violations }
}

fn check_counter(history: &History, violations: &mut Vec<Violation>) {
    let increments = || history.operations.iter().filter(|o| o.request == Request::Increment);
    let mut answered: Vec<(u64, u64, u64)> =
        increments().filter_map(|o| o.answered_ns.map(|at| (o.result, o.invoked_ns, at))).collect();
    let mut pending: Vec<u64> =
        increments().filter(|o| o.answered_ns.is_none()).map(|o| o.invoked_ns).collect();
    answered.sort_unstable();
    pending.sort_unstable();
    for pair in answered.windows(2) {
        if pair[0].0 == pair[1].0 {
            return violations.push(Violation::CounterTwice { value: pair[0].0 });
        }
    }
    let mut latest_invoked = 0;
    for &(value, invoked_ns, answered_ns) in &answered {
        if answered_ns < latest_invoked {
            return violations.push(Violation::CounterOrder {
                value,
                answered_ns,
                invoked_ns: latest_invoked,
            });
        }
        latest_invoked = latest_invoked.max(invoked_ns);
    }
    let acknowledged = answered.last().map_or(0, |last| last.0);
    if let Some(found) = history.final_counter.filter(|found| *found < acknowledged) {
        return violations.push(Violation::CounterLost { found, acknowledged });
    }
    check_gaps(&answered, &pending, history.final_counter.unwrap_or(acknowledged), violations);
}

/// Every value up to `last` was given to an answered INCR, or to one without answer that was sent before
/// every larger value was answered.
fn check_gaps(answered: &[(u64, u64, u64)], pending: &[u64], last: u64, violations: &mut Vec<Violation>) {
    let mut deadline = vec![u64::MAX; answered.len() + 1];
    for (index, entry) in answered.iter().enumerate().rev() {
        deadline[index] = deadline[index + 1].min(entry.2);
    }
    let (mut unexplained, mut value) = (pending.iter(), 1);
    for (index, deadline) in deadline.iter().enumerate() {
        let next = answered.get(index).map_or(last + 1, |entry| entry.0);
        while value < next {
            match unexplained.next() {
                Some(&invoked) if invoked <= *deadline => value += 1,
                _ => return violations.push(Violation::CounterGap { value }),
            }
        }
        value = next + 1;
    }
}

/// A write and the reads of its value.
#[derive(Debug, Clone, Copy)]
struct Cluster {
    value: u64,
    /// The earliest answer of any of them.
    first_answer: u64,
    /// The latest invocation of any of them.
    last_invocation: u64,
    written_ns: Option<u64>,
    read: bool,
    acknowledged: bool,
}

fn check_register(
    key: u32,
    operations: &[&Operation],
    last: Option<(u64, u64)>,
    violations: &mut Vec<Violation>,
) {
    // No value at all is a write that ended before time began.
    let nothing = Cluster {
        value: 0,
        first_answer: 0,
        last_invocation: 0,
        written_ns: Some(0),
        read: false,
        acknowledged: true,
    };
    let mut clusters = BTreeMap::from([(0, nothing)]);
    let mut first_read: BTreeMap<u64, u64> = BTreeMap::new();
    let of = |clusters: &mut BTreeMap<u64, Cluster>, value| -> Cluster {
        let new = Cluster {
            value,
            first_answer: u64::MAX,
            last_invocation: 0,
            written_ns: None,
            read: false,
            acknowledged: false,
        };
        *clusters.entry(value).or_insert(new)
    };
    let final_read = last.map(|(value, at)| (value, at, at + 1));
    let reads = operations.iter().filter_map(|o| match (&o.request, o.answered_ns) {
        (Request::Get { .. }, Some(at)) => Some((o.result, o.invoked_ns, at)),
        _ => None,
    });
    for (value, invoked, answered) in reads.chain(final_read) {
        let mut cluster = of(&mut clusters, value);
        cluster.read = true;
        cluster.first_answer = cluster.first_answer.min(answered);
        cluster.last_invocation = cluster.last_invocation.max(invoked);
        clusters.insert(value, cluster);
        let earliest = first_read.entry(value).or_insert(answered);
        *earliest = (*earliest).min(answered);
    }
    for operation in operations {
        let Request::Set { value, .. } = operation.request else { continue };
        let mut cluster = of(&mut clusters, value);
        cluster.written_ns = Some(operation.invoked_ns);
        cluster.acknowledged = operation.answered_ns.is_some();
        cluster.first_answer = cluster.first_answer.min(operation.answered_ns.unwrap_or(u64::MAX));
        cluster.last_invocation = cluster.last_invocation.max(operation.invoked_ns);
        clusters.insert(value, cluster);
    }
    for cluster in clusters.values().filter(|cluster| cluster.read) {
        let read = first_read.get(&cluster.value).copied().unwrap_or(u64::MAX);
        if cluster.written_ns.is_none_or(|written| read < written) {
            return violations.push(Violation::FromTheFuture { key, value: cluster.value });
        }
    }
    // A write without answer that nobody read may never have happened.
    let zones: Vec<Cluster> = clusters.into_values().filter(|c| c.acknowledged || c.read).collect();
    check_zones(key, zones, violations);
}

fn check_zones(key: u32, zones: Vec<Cluster>, violations: &mut Vec<Violation>) {
    let (mut forward, backward): (Vec<Cluster>, Vec<Cluster>) =
        zones.into_iter().partition(|zone| zone.first_answer < zone.last_invocation);
    forward.sort_by_key(|zone| zone.first_answer);
    for pair in forward.windows(2) {
        if pair[1].first_answer < pair[0].last_invocation {
            let (first, second) = (pair[0].value, pair[1].value);
            return violations.push(Violation::Overlap { key, first, second });
        }
    }
    for zone in backward {
        // Its whole extent is [last_invocation, first_answer]; forward zones do not overlap, so at most the
        // one that begins last before it can contain it.
        let after = forward.partition_point(|f| f.first_answer < zone.last_invocation);
        let Some(candidate) = after.checked_sub(1).map(|index| forward[index]) else { continue };
        if zone.first_answer < candidate.last_invocation {
            let (first, second) = (candidate.value, zone.value);
            return violations.push(Violation::Overlap { key, first, second });
        }
    }
}

fn check_appends(history: &History, violations: &mut Vec<Violation>) {
    let mut clients: BTreeMap<u32, Vec<&Operation>> = BTreeMap::new();
    for operation in history.operations.iter().filter(|o| matches!(o.request, Request::Append { .. })) {
        clients.entry(operation.client).or_default().push(operation);
    }
    for (client, mut operations) in clients {
        operations.sort_by_key(|o| o.invoked_ns);
        let (mut due, mut unanswered) = (0, 0);
        for operation in operations {
            let Request::Append { bytes } = operation.request else { continue };
            match operation.answered_ns {
                None => unanswered += u64::from(bytes),
                Some(_) => {
                    due += u64::from(bytes);
                    if operation.result != due {
                        let found = operation.result;
                        return violations.push(Violation::Append { client, expected: due, found });
                    }
                }
            }
        }
        let found = history.final_lengths.get(client as usize).copied();
        if let Some(found) = found.filter(|found| !(due..=due + unanswered).contains(found)) {
            return violations.push(Violation::Append { client, expected: due, found });
        }
    }
}

#[cfg(test)]
#[path = "checker_tests.rs"]
mod tests;
