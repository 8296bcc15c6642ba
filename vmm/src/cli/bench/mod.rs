//! `lockstep bench`: what replication costs, and what the software CPU does, side by side in one run.

mod aims;
pub mod cpu;
mod failover;
mod host;
pub mod programs;
mod ratio;
pub mod recording;
mod said;
pub mod servers;
mod service;

use std::net::TcpListener;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde::Serialize;
use serde_json::Value;

use crate::cluster::{Cluster, ClusterOptions, Part};
use crate::config::MINIKV;

/// The program that the software CPU is measured beside.
const QEMU: &str = "qemu-system-x86_64";
/// IPv4 and UDP headers of a heartbeat.
const DATAGRAM_OVERHEAD: f64 = 28.0;

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Everything about replication.
    All,
    /// Requests, latency, CPU and log, unreplicated against replicated; the idle log. Of minikv also half
    /// loads and exits per request; of Linux also native, recorded and QEMU's.
    Service,
    /// Kills and pauses of the primary.
    Failover,
    /// The software CPU beside the host's own and QEMU's: nine kernels, and boots. Not among `all`.
    Cpu,
    /// A JVM, gcc, openssl and sqlite in a guest, beside the host's own speed. Not among `all`.
    Programs,
    /// Redis under load, recorded: bytes of a request, and how long the replay takes. Not among `all`.
    Recording,
}

/// Options of `lockstep bench`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  lockstep bench                          # everything, about five minutes
  lockstep bench service --seconds 2
  lockstep bench service --guest redis --qemu --aims       # about eight minutes
  lockstep bench service --guest redis --against old/lockstep --aims
  lockstep bench failover --kills 50 --pauses 10 --json > failover.json
  lockstep bench failover --guest redis
  lockstep bench cpu --qemu --aims        # the software CPU, about six minutes; needs guest images
  lockstep bench programs --aims          # real programs beside this host; needs Debian
  lockstep bench recording                # a minute of redis, replayed five times: about six minutes

Numbers of a shared machine drift: read the ratios, and repeat. docs/performance.md explains each number.")]
pub struct BenchArgs {
    /// What to measure.
    #[arg(value_enum, default_value = "all")]
    pub what: What,
    /// The guest of `service` and `failover`.
    #[arg(long, default_value = MINIKV, value_parser = crate::cli::demo::GUESTS)]
    pub guest: String,
    /// Measure QEMU (qemu-system-x86_64) on the same images too: `cpu`, and `service` of Linux.
    #[arg(long)]
    pub qemu: bool,
    /// Exit with 1 when an aim of docs/performance.md is missed: `cpu`, `programs`, and `service` of Linux.
    #[arg(long)]
    pub aims: bool,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 1.0)]
    pub seconds: f64,
    /// Rounds of each measurement, all systems in turn; the median counts.
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
    /// Of `service` of Linux.
    #[command(flatten)]
    pub against: servers::against::AgainstArgs,
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
        return cpu::run(args);
    }
    if args.what == What::Programs {
        return programs::run(args);
    }
    if args.guest != MINIKV {
        ensure!(
            args.what != What::All,
            "which: lockstep bench service, or failover, --guest {}?",
            args.guest
        );
        crate::cli::guest::build_if_missing(&args.guest)?;
    }
    ensure!(
        args.against.against.is_none() || (args.what == What::Service && args.guest != MINIKV),
        "--against is of: lockstep bench service --guest redis"
    );
    if args.what == What::Service && args.guest != MINIKV {
        return servers::run(args);
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
    /// Starts one; `change` may have other options.
    fn start(change: impl FnOnce(&mut ClusterOptions)) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("lockstep-bench-").tempdir()?;
        let mut options = ClusterOptions::new(std::env::current_exe()?, directory.path());
        change(&mut options);
        Ok(Self { cluster: Cluster::start(options, |_| ())?, _directory: directory })
    }
}

/// A process that is ended when it is left.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// CPU time that a process has used, nanoseconds; of one that is gone, 0.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "a process id is an i32 of the kernel; 584 years"
)]
fn cpu_ns(pid: u32) -> u64 {
    let clock = clock_getcpuclockid(Pid::from_raw(pid as i32));
    clock.and_then(clock_gettime).map_or(0, |time| Duration::from(time).as_nanos() as u64)
}

/// A TCP port of loopback that nobody uses.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Bytes that the primary of a pair has logged.
fn log_bytes(cluster: &Cluster) -> anyhow::Result<u64> {
    let status = cluster.status(Part::Primary)?;
    status.pointer("/live/log_bytes").and_then(Value::as_u64).context("no log bytes in the status")
}

/// Heartbeats of both directions at the default interval.
fn heartbeat_bytes_per_s() -> f64 {
    const PER_S: f64 = 1000.0 / 50.0;
    2.0 * PER_S * (logchannel::heartbeat::HEARTBEAT_LEN as f64 + DATAGRAM_OVERHEAD)
}

/// A line of progress on standard error.
fn say(text: &str) {
    eprintln!("bench: {text}");
}

/// The value at a quantile of a few measurements.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index, as q is from 0 to 1")]
fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len => sorted[((len - 1) as f64 * q).round() as usize],
    }
}
