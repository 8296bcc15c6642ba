//! The failover bench: how long a connected client waits when the primary dies or is paused.

use nix::sys::signal::Signal;
use serde::Serialize;

use super::{Bench, BenchArgs, quantile, say};
use crate::cli::demo::{DemoArgs, pull_the_plug};

/// One kind of failover.
#[derive(Debug, Clone, Serialize)]
struct Kind {
    count: usize,
    first_answer_p50_ms: f64,
    first_answer_p99_ms: f64,
    all_answered_p50_ms: f64,
    all_answered_p99_ms: f64,
    detect_p50_ms: f64,
    test_and_set_p50_ms: f64,
    replay_p50_ms: f64,
    go_live_p50_ms: f64,
    violations: usize,
}

/// Everything measured.
#[derive(Debug, Clone, Serialize)]
pub struct Failovers {
    guest: String,
    sigkill: Kind,
    sigstop: Kind,
    heartbeat_timeout_ms: u64,
}

/// Measures.
pub fn measure(args: &BenchArgs) -> anyhow::Result<Failovers> {
    Ok(Failovers {
        guest: args.guest.clone(),
        sigkill: kind(args, args.kills, Signal::SIGKILL)?,
        sigstop: kind(args, args.pauses, Signal::SIGSTOP)?,
        heartbeat_timeout_ms: 500,
    })
}

fn kind(bench: &BenchArgs, count: u32, signal: Signal) -> anyhow::Result<Kind> {
    let mut reports = Vec::new();
    for run in 1..=count {
        say(&format!("{signal} {run} of {count}"));
        let guest = bench.guest.clone();
        let args = DemoArgs { seconds: 2.0, signal, clients: 4, guest, ..DemoArgs::quiet() };
        let Bench { cluster, _directory } = Bench::start(|options| options.vm_options = args.vm_options())?;
        reports.push(pull_the_plug(&args, cluster, u64::from(run))?);
    }
    let column = |field: &dyn Fn(&crate::cli::demo::DemoReport) -> f64, q: f64| {
        quantile(&reports.iter().map(field).collect::<Vec<_>>(), q)
    };
    let first = |r: &crate::cli::demo::DemoReport| r.clients.first_answer_ms.unwrap_or(f64::INFINITY);
    let all = |r: &crate::cli::demo::DemoReport| r.clients.all_answered_ms.unwrap_or(f64::INFINITY);
    Ok(Kind {
        count: reports.len(),
        first_answer_p50_ms: column(&first, 0.5),
        first_answer_p99_ms: column(&first, 0.99),
        all_answered_p50_ms: column(&all, 0.5),
        all_answered_p99_ms: column(&all, 0.99),
        detect_p50_ms: column(&|r| r.failover.detect_ms, 0.5),
        test_and_set_p50_ms: column(&|r| r.failover.test_and_set_ms, 0.5),
        replay_p50_ms: column(&|r| r.failover.replay_ms, 0.5),
        go_live_p50_ms: column(&|r| r.failover.go_live_ms, 0.5),
        violations: reports.iter().map(|report| report.violations.len()).sum(),
    })
}

impl Failovers {
    /// For people.
    pub fn print(&self) {
        println!(
            "\nFailover of {}, from the signal to the first answer after it, on connections that stay",
            self.guest
        );
        for (name, kind) in [("SIGKILL", &self.sigkill), ("SIGSTOP", &self.sigstop)] {
            println!(
                "  {name} × {}: first answer p50 {:.1} ms p99 {:.1} ms; every connection p50 {:.1} ms \
                 p99 {:.1} ms; {} violations",
                kind.count,
                kind.first_answer_p50_ms,
                kind.first_answer_p99_ms,
                kind.all_answered_p50_ms,
                kind.all_answered_p99_ms,
                kind.violations
            );
            println!(
                "      detect {:.2} ms, test-and-set {:.2} ms, replay {:.2} ms, go live {:.2} ms (medians)",
                kind.detect_p50_ms, kind.test_and_set_p50_ms, kind.replay_p50_ms, kind.go_live_p50_ms
            );
        }
        println!(
            "  (a paused primary is given up after {} ms without heartbeats)",
            self.heartbeat_timeout_ms
        );
    }
}
