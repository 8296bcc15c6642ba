//! `lockstep bench service --guest redis --against PATH`: this program beside another build of it.
//!
//! Both record a machine of their own, and both machines run all the time; one idles while the other one is
//! loaded. A pair is two loads on each, one right after the other; what is first in one pair is in the middle
//! of the next:
//!
//! ```text
//!   boot both │ this, other, other, this │ other, this, this, other │ ...     GET, 50 connections, warmed up
//! ```
//!
//! So what drifts on the host is in both sides of each pair, and a steady drift in equal parts. The ratio is
//! the median of the pairs', and its interval takes nothing for granted about how they are distributed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use load::{Load, Pace};
use serde::Serialize;

use super::report::Measured;
use super::systems::{Server, System};
use super::{VALUE_BYTES, WARM_UP, measure};
use crate::cli::bench::aims::{Aim, Bound, conclude, table};
use crate::cli::bench::host::Host;
use crate::cli::bench::ratio::Ratio;
use crate::cli::bench::{BenchArgs, quantile, say};

const CONNECTIONS: u32 = 50;
/// Requests per second, this program to the other: at least, where the other only interprets.
const AIM: f64 = 2.5;

/// Options of the comparison.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of bench service --guest redis")]
pub struct AgainstArgs {
    /// Measure this program beside another build of lockstep, both recording: GET, 50 connections, in pairs.
    #[arg(long, value_name = "PATH")]
    pub against: Option<PathBuf>,
    /// How many pairs; from 6 on, the interval holds the true ratio with a probability of 0.95 or more.
    #[arg(long, default_value_t = 12, value_name = "N")]
    pub pairs: u32,
}

/// One program.
#[derive(Debug, Clone, Serialize)]
struct Measurements {
    program: PathBuf,
    version: String,
    boot_s: f64,
    /// Medians.
    requests_per_s: f64,
    p50_us: f64,
    cpu_us_per_request: f64,
    log_bytes_per_request: f64,
    /// Of each pair.
    rounds: Vec<Measured>,
}

/// Both.
#[derive(Debug, Serialize)]
struct Against {
    host: Host,
    guest: String,
    seconds: f64,
    this: Measurements,
    other: Measurements,
    /// Requests per second, this to the other.
    rate: Option<Ratio>,
    /// CPU time of a request, the other's to this one's.
    cpu: Option<Ratio>,
    aims: Vec<Aim>,
}

/// Measures, and prints.
pub fn run(args: &BenchArgs, other: &Path) -> anyhow::Result<u8> {
    ensure!(args.against.pairs >= 1, "--pairs 0 measures nothing");
    let host = Host::new();
    let programs = [std::env::current_exe()?, other.to_path_buf()];
    let versions = [version(&programs[0])?, version(&programs[1])?];
    say("booting both");
    let start = |program: &PathBuf| {
        Server::start_program(program, System::Recorded, &args.guest)
            .with_context(|| format!("{} as the server", program.display()))
    };
    let servers = [start(&programs[0])?, start(&programs[1])?];
    let mut rounds: [Vec<Measured>; 2] = [Vec::new(), Vec::new()];
    for pair in 0..args.against.pairs {
        let order = if pair % 2 == 0 { [0, 1, 1, 0] } else { [1, 0, 0, 1] };
        let mut halves: [Vec<Measured>; 2] = [Vec::new(), Vec::new()];
        for which in order {
            halves[which].push(one(&servers[which], args.seconds / 2.0)?);
        }
        rounds.iter_mut().zip(&halves).for_each(|(rounds, halves)| rounds.push(mean(halves)));
        let rates = [0, 1].map(|which| rounds[which].last().map_or(0.0, |round| round.requests_per_s));
        let (count, all) = (pair + 1, args.against.pairs);
        say(&format!("pair {count} of {all}: {:.0} and {:.0} requests/s", rates[0], rates[1]));
    }
    let [this, other] = rounds;
    let report = Against::new(
        host.end(),
        args,
        Measurements::new(&programs[0], &versions[0], servers[0].boot_s, this),
        Measurements::new(&programs[1], &versions[1], servers[1].boot_s, other),
    );
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => report.print(),
    }
    Ok(if args.aims { conclude(&report.aims) } else { 0 })
}

fn version(program: &Path) -> anyhow::Result<String> {
    let output = std::process::Command::new(program).arg("--version").output();
    let output = output.with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(output.status.success(), "{} --version ended with {}", program.display(), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// A load after a warm-up.
fn one(server: &Server, seconds: f64) -> anyhow::Result<Measured> {
    let load = |length: f64| Load {
        address: SocketAddr::from(([127, 0, 0, 1], server.port)),
        connections: CONNECTIONS,
        pipeline: 1,
        set_percent: 0,
        value_bytes: VALUE_BYTES,
        duration: Duration::from_secs_f64(seconds * length),
        pace: Pace::Closed,
        seed: 1,
    };
    load::throughput::run(&load(WARM_UP))?;
    let measured = measure(server, &load(1.0))?;
    ensure!(measured.errors == 0, "{} of the answers are errors", measured.errors);
    Ok(measured)
}

/// Of loads of one length.
fn mean(halves: &[Measured]) -> Measured {
    let of = |of: fn(&Measured) -> f64| halves.iter().map(of).sum::<f64>() / halves.len() as f64;
    let answered: f64 = halves.iter().map(|half| half.requests_per_s).sum();
    // What each request cost: those of the faster half weigh more.
    let per_request = |cost: fn(&Measured) -> f64| {
        halves.iter().map(|half| cost(half) * half.requests_per_s).sum::<f64>() / answered
    };
    Measured {
        requests_per_s: of(|half| half.requests_per_s),
        p50_us: of(|half| half.p50_us),
        p99_us: of(|half| half.p99_us),
        cpu_us_per_request: per_request(|half| half.cpu_us_per_request),
        log_bytes_per_request: Some(per_request(|half| half.log_bytes_per_request.unwrap_or(f64::NAN))),
        errors: halves.iter().map(|half| half.errors).sum(),
    }
}

impl Measurements {
    fn new(program: &Path, version: &str, boot_s: f64, rounds: Vec<Measured>) -> Self {
        let median = |of: fn(&Measured) -> f64| quantile(&rounds.iter().map(of).collect::<Vec<_>>(), 0.5);
        Self {
            program: program.to_path_buf(),
            version: version.into(),
            boot_s,
            requests_per_s: median(|round| round.requests_per_s),
            p50_us: median(|round| round.p50_us),
            cpu_us_per_request: median(|round| round.cpu_us_per_request),
            log_bytes_per_request: median(|round| round.log_bytes_per_request.unwrap_or(f64::NAN)),
            rounds,
        }
    }

    fn values(&self, of: fn(&Measured) -> f64) -> Vec<f64> {
        self.rounds.iter().map(of).collect()
    }
}

impl Against {
    fn new(host: Host, args: &BenchArgs, this: Measurements, other: Measurements) -> Self {
        let rate = |side: &Measurements| side.values(|round| round.requests_per_s);
        let cpu = |side: &Measurements| side.values(|round| round.cpu_us_per_request);
        let rates = Ratio::of_pairs(&rate(&this), &rate(&other));
        let measure = format!("{} GET 50, recorded: this / other, requests/s", args.guest);
        Self {
            host,
            guest: args.guest.clone(),
            seconds: args.seconds,
            rate: rates,
            cpu: Ratio::of_pairs(&cpu(&other), &cpu(&this)),
            aims: vec![Aim::new(measure, rates, Bound::AtLeast(AIM))],
            this,
            other,
        }
    }

    fn print(&self) {
        println!("{}, GET, {CONNECTIONS} connections, recorded, on {}", self.guest, self.host.cpu);
        println!(
            "({} pairs of {} s each; load average {:.2} before, {:.2} after)\n",
            self.this.rounds.len(),
            self.seconds,
            self.host.load_before,
            self.host.load_after
        );
        println!(
            "{:8} {:>9} {:>9} {:>11} {:>10} {:>8}",
            "", "req/s", "p50 µs", "CPU µs/req", "log B/req", "boot s"
        );
        for (name, side) in [("this", &self.this), ("other", &self.other)] {
            println!(
                "{name:8} {:>9.0} {:>9.0} {:>11.1} {:>10.1} {:>8.2}   {}, {}",
                side.requests_per_s,
                side.p50_us,
                side.cpu_us_per_request,
                side.log_bytes_per_request,
                side.boot_s,
                side.program.display(),
                side.version
            );
        }
        if let Some((rate, cpu)) = self.rate.zip(self.cpu) {
            println!("\nthis / other, requests/s: {rate}; other / this, CPU time of a request: {cpu}");
            println!("(medians of the pairs; the intervals hold with {:.1} %)", rate.confidence * 100.0);
        }
        println!("\n{}", table(&self.aims));
    }
}

#[cfg(test)]
#[path = "against_tests.rs"]
mod tests;
