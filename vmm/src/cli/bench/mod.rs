//! `lockstep bench`: what replication costs, and what the software CPU does, side by side in one run.

pub mod cpu;
mod failover;
pub mod recording;
mod service;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde::Serialize;

use crate::cluster::{Cluster, ClusterOptions};

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Everything about replication.
    All,
    /// Requests, latency, CPU and log, unreplicated against replicated; the idle log; exits per request.
    Service,
    /// Kills and pauses of the primary.
    Failover,
    /// The software CPU beside the host's own and QEMU's: nine kernels, and boots. Not among `all`.
    Cpu,
    /// Redis under load, recorded: bytes of a request, and how long the replay takes. Not among `all`.
    Recording,
}

/// Options of `lockstep bench`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  lockstep bench                          # everything, about five minutes
  lockstep bench service --seconds 2
  lockstep bench failover --kills 50 --pauses 10 --json > failover.json
  lockstep bench cpu --qemu --repeat 3    # the software CPU, about six minutes; needs guest images
  lockstep bench recording                # a minute of redis, replayed five times: about six minutes

Numbers of a shared machine drift: read the ratios, and repeat. docs/performance.md explains each number.")]
pub struct BenchArgs {
    /// What to measure.
    #[arg(value_enum, default_value = "all")]
    pub what: What,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 1.0)]
    pub seconds: f64,
    /// Rounds of each measurement, unreplicated and replicated in turn; the median counts.
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    /// How many times the primary is killed.
    #[arg(long, default_value_t = 50)]
    pub kills: u32,
    /// How many times the primary is paused (SIGSTOP).
    #[arg(long, default_value_t = 10)]
    pub pauses: u32,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Of `cpu`.
    #[command(flatten)]
    pub cpu: cpu::CpuArgs,
    /// Of `recording`.
    #[command(flatten)]
    pub recording: recording::RecordingArgs,
}

#[derive(Debug, Serialize)]
struct Results {
    host: crate::cli::doctor::Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<service::Service>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failover: Option<failover::Failovers>,
}

/// Runs the command.
pub fn run(args: &BenchArgs) -> anyhow::Result<u8> {
    if args.what == What::Cpu {
        return cpu::run(&args.cpu, args.json);
    }
    if args.what == What::Recording {
        return recording::run(&args.recording, args.json);
    }
    let host = crate::cli::doctor::examine();
    let mut results = Results { host, service: None, failover: None };
    if args.what != What::Failover {
        results.service = Some(service::measure(args)?);
    }
    if args.what != What::Service {
        results.failover = Some(failover::measure(args)?);
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
        return Ok(0);
    }
    if let Some(service) = &results.service {
        service.print(&results.host);
    }
    if let Some(failover) = &results.failover {
        failover.print();
    }
    Ok(0)
}

/// A cluster in a directory of its own, which goes with it.
struct Bench {
    cluster: Cluster,
    _directory: tempfile::TempDir,
}

impl Bench {
    fn start(replicated: bool) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("lockstep-bench-").tempdir()?;
        let program: PathBuf = std::env::current_exe()?;
        let options = ClusterOptions { replicated, ..ClusterOptions::new(program, directory.path()) };
        Ok(Self { cluster: Cluster::start(options, |_| ())?, _directory: directory })
    }
}

/// A line of progress on standard error.
fn say(text: &str) {
    eprintln!("bench: {text}");
}

/// The value at a quantile of a few measurements.
fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len => sorted[((len - 1) as f64 * q).round() as usize],
    }
}

/// CPU time that a process has used; of one that is gone, 0.
fn cpu_ns(pid: u32) -> u64 {
    let clock = clock_getcpuclockid(Pid::from_raw(pid as i32));
    clock.and_then(clock_gettime).map_or(0, |time| Duration::from(time).as_nanos() as u64)
}
