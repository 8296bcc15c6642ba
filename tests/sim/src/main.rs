//! `lockstep-sim`: runs seeds until one violates an invariant.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use clap::Parser;
use lockstep_sim::{Bug, Outcome, Run, Stats, repeat_command, run};

/// Runs simulated pairs under faults, and checks that nothing is lost, nothing happens twice, and no two
/// copies run.
#[derive(Debug, Parser)]
struct Options {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Run only this seed, and tell what happens in it.
    #[arg(long)]
    seed: Option<u64>,
    /// Plant a mistake.
    #[arg(long)]
    bug: Option<Bug>,
    /// Judge only by what clients, console and disk saw, not by looking into the processes.
    #[arg(long)]
    blind: bool,
    /// How many seeds at a time; all cores if not given.
    #[arg(long)]
    threads: Option<usize>,
}

impl Options {
    fn run(&self, seed: u64) -> Run {
        Run { seed, bug: self.bug, narrate: false, blind: self.blind }
    }
}

#[derive(Default)]
struct Totals {
    runs: u64,
    stats: Stats,
}

impl Totals {
    fn add(&mut self, stats: &Stats) {
        self.runs += 1;
        let (sum, one) = (&mut self.stats, stats);
        sum.events += one.events;
        sum.simulated_ns += one.simulated_ns;
        sum.answered += one.answered;
        sum.joined += one.joined;
        sum.took_over += one.took_over;
        sum.went_alone += one.went_alone;
        sum.handed_over += one.handed_over;
        sum.lost += one.lost;
        sum.fenced += one.fenced;
        sum.disk_reads += one.disk_reads;
        sum.cannot_read += one.cannot_read;
        sum.diverged += one.diverged;
        sum.undetected += one.undetected;
        sum.crashes += one.crashes;
        sum.pauses += one.pauses;
        sum.ended += one.ended;
        sum.machines_lost += one.machines_lost;
    }

    fn print(&self, seconds: f64) {
        let s = &self.stats;
        println!(
            "{} seeds in {seconds:.1} s ({:.0}/s), {:.1} h simulated, {} events, {} requests answered",
            self.runs,
            self.runs as f64 / seconds,
            s.simulated_ns as f64 / 3.6e12,
            s.events,
            s.answered
        );
        let counts = [
            ("backups joined", s.joined),
            ("took over", s.took_over),
            ("primaries went on alone", s.went_alone),
            ("handed over", s.handed_over),
            ("processes lost the test-and-set", s.lost),
            ("were fenced", s.fenced),
            ("disk reads by backups", s.disk_reads),
            ("backups could not read", s.cannot_read),
            ("diverged", s.diverged),
            ("went live before a flipped bit was found", s.undetected),
            ("killed", s.crashes),
            ("paused", s.pauses),
            ("guests ended", s.ended),
            ("machines lost", s.machines_lost),
        ];
        println!("{}", counts.map(|(what, count)| format!("{count} {what}")).join(", "));
    }
}

#[allow(clippy::disallowed_methods)]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

fn report(run: &Run, outcome: &Outcome) -> ExitCode {
    let seed = run.seed;
    match &outcome.violation {
        None => {
            println!("seed {seed}: no violation, trace {:016x}", outcome.trace);
            ExitCode::SUCCESS
        }
        Some(violation) => {
            println!("seed {seed}: VIOLATION {violation}");
            println!("repeat with: {}", repeat_command(run));
            ExitCode::FAILURE
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    std::panic::set_hook(Box::new(|_| {}));
    if let Some(seed) = options.seed {
        let one = Run { narrate: true, ..options.run(seed) };
        return report(&one, &run(&one));
    }
    let threads = options.threads.or_else(|| std::thread::available_parallelism().ok().map(|n| n.get()));
    let (next, stop) = (AtomicU64::new(options.from), AtomicBool::new(false));
    let end = options.from.saturating_add(options.seeds);
    let totals = Mutex::new(Totals::default());
    let first: Mutex<Option<(u64, Outcome)>> = Mutex::new(None);
    let started = now();
    std::thread::scope(|scope| {
        for _ in 0..threads.unwrap_or(1).max(1) {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= end {
                        break;
                    }
                    let outcome = run(&options.run(seed));
                    let mut totals = totals.lock().expect("no panic while held");
                    totals.add(&outcome.stats);
                    if totals.runs.is_multiple_of(10_000) {
                        let rate = totals.runs as f64 / started.elapsed().as_secs_f64();
                        eprintln!("{} of {} seeds, {rate:.0}/s", totals.runs, options.seeds);
                    }
                    drop(totals);
                    if outcome.violation.is_some() {
                        stop.store(true, Relaxed);
                        let mut first = first.lock().expect("no panic while held");
                        if first.as_ref().is_none_or(|(found, _)| seed < *found) {
                            *first = Some((seed, outcome));
                        }
                    }
                }
            });
        }
    });
    totals.into_inner().expect("no panic while held").print(started.elapsed().as_secs_f64());
    match first.into_inner().expect("no panic while held") {
        Some((seed, outcome)) => report(&options.run(seed), &outcome),
        None => {
            println!("no violation");
            ExitCode::SUCCESS
        }
    }
}
