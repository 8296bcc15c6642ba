//! `lockstep bench recording`: redis on Linux under load, recorded; then the recording is replayed again and
//! again, and everything in it compared.
//!
//! ```text
//!   boot | SET, 50 connections | GET, 50 | SET, 1 | GET, 1 | idle | power-off     a recording without
//!          a quarter of the time each                                             later checkpoints
//!   replay 1 .. N of it, in this process: every output and digest compared, all to end in one state
//! ```
//!
//! What a request costs in the file is its growth over a load, divided by the answers. The busy time of the
//! recording is the CPU time of the machine's process, which stands still while the guest idles; a replay
//! does not idle.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use load::{Load, Pace};
use serde::Serialize;

use super::{cpu_ns, quantile, say};
use crate::cluster::{Cluster, ClusterOptions, Part};
use crate::io::clock::HostClock;
use crate::io::control;
use crate::recording::verify::{LastState, play, to_compare};
use crate::recording::{Recording, Session};

const GUEST: &str = "redis";
const VALUE_BYTES: usize = 16;
/// Percent of SETs and connections, one load after the other.
const LOADS: [(&str, u32, u32); 4] = [("SET", 100, 50), ("GET", 0, 50), ("SET", 100, 1), ("GET", 0, 1)];
/// The guest idles so long at the end, and a load settles so long: more than the recording's writer waits.
const IDLE: Duration = Duration::from_secs(5);
const SETTLE: Duration = Duration::from_millis(300);

/// Options of `lockstep bench recording`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of bench recording")]
pub struct RecordingArgs {
    /// Seconds of load, in four quarters.
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS")]
    pub load_seconds: f64,
    /// How many times it is replayed.
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub replays: u32,
    /// Leave the recording in this file, which must not exist.
    #[arg(long, value_name = "FILE")]
    pub keep: Option<PathBuf>,
}

/// One load.
#[derive(Debug, Clone, Serialize)]
struct Loaded {
    command: &'static str,
    connections: u32,
    answered: u64,
    requests_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    /// Bytes that the file grew by.
    file_bytes: u64,
    bytes_per_request: f64,
}

/// One replay.
#[derive(Debug, Clone, Serialize)]
struct Replayed {
    cpu_s: f64,
    wall_s: f64,
}

/// Everything.
#[derive(Debug, Clone, Default, Serialize)]
struct RecordingReport {
    loads: Vec<Loaded>,
    requests: u64,
    /// Entries, outputs and digests in the log.
    entries: u64,
    outputs: u64,
    digests: u64,
    /// Of the whole log, boot and idling included.
    log_bytes: u64,
    /// The log's growth over all loads, divided by their answers.
    bytes_per_request: f64,
    idle_bytes_per_s: f64,
    /// CPU seconds of the machine's process, and seconds by the clock.
    recorded_cpu_s: f64,
    recorded_wall_s: f64,
    replays: Vec<Replayed>,
    /// Median of the replays' CPU time, in CPU time of the recording; and of their time by the clock.
    replay_over_busy: f64,
    replay_wall_over_busy: f64,
    last: LastState,
}

/// Runs the command.
pub fn run(args: &RecordingArgs, json: bool) -> anyhow::Result<u8> {
    ensure!((0.4..=1e5).contains(&args.load_seconds), "--load-seconds: 0.4 to 100000");
    ensure!(args.replays >= 1, "--replays 0 shows nothing");
    crate::cli::guest::build_if_missing(GUEST)?;
    let directory = tempfile::Builder::new().prefix("lockstep-bench-").tempdir()?;
    let path = args.keep.clone().unwrap_or_else(|| directory.path().join("redis.lkr"));
    let mut report = record(args, directory.path(), &path)?;
    count(&path, &mut report)?;
    let mut ends = Vec::new();
    for number in 1..=args.replays {
        say(&format!("replay {number} of {}", args.replays));
        let (cpu_ns_before, started_ns) = (cpu_ns(std::process::id()), HostClock.now_ns());
        ends.push(play(&mut Session::open(&path)?)?);
        report.replays.push(Replayed {
            cpu_s: seconds(cpu_ns(std::process::id()) - cpu_ns_before),
            wall_s: seconds(HostClock.now_ns() - started_ns),
        });
    }
    report.last = ends[0];
    ensure!(ends.iter().all(|end| *end == report.last), "the replays end in different states: {ends:?}");
    let median = |of: fn(&Replayed) -> f64| quantile(&report.replays.iter().map(of).collect::<Vec<_>>(), 0.5);
    report.replay_over_busy = median(|replay| replay.cpu_s) / report.recorded_cpu_s;
    report.replay_wall_over_busy = median(|replay| replay.wall_s) / report.recorded_cpu_s;
    match json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => report.print(),
    }
    Ok(0)
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// Boots the guest, loads it, and powers it off.
fn record(args: &RecordingArgs, directory: &Path, path: &Path) -> anyhow::Result<RecordingReport> {
    say("booting redis, recorded");
    let mut options = ClusterOptions::new(std::env::current_exe()?, directory);
    options.replicated = false;
    // Later checkpoints would be in the file's growth; the first is needed.
    let file = path.display().to_string();
    let words = ["--guest", GUEST, "--engine", "soft", "--record", &file, "--checkpoint-every", "0"];
    options.vm_options = words.map(String::from).to_vec();
    options.patience = Duration::from_secs(300);
    let started_ns = HostClock.now_ns();
    let mut cluster = Cluster::start(options, |_| ())?;
    let mut loads = Vec::new();
    for (command, set_percent, connections) in LOADS {
        say(&format!("{command}, {connections} connections"));
        let load = Load {
            address: SocketAddr::from(([127, 0, 0, 1], cluster.port())),
            connections,
            pipeline: 1,
            set_percent,
            value_bytes: VALUE_BYTES,
            duration: Duration::from_secs_f64(args.load_seconds / LOADS.len() as f64),
            pace: Pace::Closed,
            seed: 1,
        };
        loads.push(one(command, &load, path)?);
    }
    say("idle");
    let (before, idle_from_ns) = (file_bytes(path)?, HostClock.now_ns());
    std::thread::sleep(IDLE);
    let idle_bytes_per_s = (file_bytes(path)? - before) as f64 / seconds(HostClock.now_ns() - idle_from_ns);
    let pid = cluster.pid(Part::Primary).context("the machine runs")?;
    let (cpu, ended_ns) = (cpu_ns(pid), HostClock.now_ns());
    control::ask(&cluster.control(Part::Primary), "shutdown")?;
    let status = cluster.wait_for_end(Part::Primary)?;
    ensure!(status.success(), "the machine ended with {status}:\n{}", cluster.log_tail(Part::Primary));
    let sum = |of: fn(&Loaded) -> u64| loads.iter().map(of).sum::<u64>();
    let requests = sum(|load| load.answered);
    Ok(RecordingReport {
        requests,
        bytes_per_request: sum(|load| load.file_bytes) as f64 / requests as f64,
        loads,
        idle_bytes_per_s,
        recorded_cpu_s: seconds(cpu),
        recorded_wall_s: seconds(ended_ns - started_ns),
        ..RecordingReport::default()
    })
}

fn one(command: &'static str, load: &Load, path: &Path) -> anyhow::Result<Loaded> {
    let before = file_bytes(path)?;
    let done = load::throughput::run(load)?;
    ensure!(done.errors == 0 && done.answered > 0, "{} of {} answers are errors", done.errors, done.answered);
    std::thread::sleep(SETTLE);
    let file_bytes = file_bytes(path)? - before;
    Ok(Loaded {
        command,
        connections: load.connections,
        answered: done.answered,
        requests_per_s: done.requests_per_s,
        p50_us: done.latency.p50_us,
        p99_us: done.latency.p99_us,
        file_bytes,
        bytes_per_request: file_bytes as f64 / done.answered as f64,
    })
}

fn file_bytes(path: &Path) -> anyhow::Result<u64> {
    Ok(std::fs::metadata(path).with_context(|| format!("{}", path.display()))?.len())
}

/// What is in the log.
fn count(path: &Path, report: &mut RecordingReport) -> anyhow::Result<()> {
    let recording = Recording::open(path)?;
    report.entries = recording.last_seq();
    report.log_bytes = recording.log_bytes()?;
    (report.outputs, report.digests) = to_compare(&recording)?;
    Ok(())
}

impl RecordingReport {
    /// For people.
    fn print(&self) {
        println!(
            "{:<4} {:>5} {:>9} {:>9} {:>9} {:>9} {:>12}",
            "", "conns", "requests", "req/s", "p50 µs", "p99 µs", "bytes/request"
        );
        for load in &self.loads {
            println!(
                "{:<4} {:>5} {:>9} {:>9.0} {:>9.0} {:>9.0} {:>12.1}",
                load.command,
                load.connections,
                load.answered,
                load.requests_per_s,
                load.p50_us,
                load.p99_us,
                load.bytes_per_request
            );
        }
        println!(
            "\n{:.1} bytes a request, idle {:.0} bytes/s\n\
             the log, with boot: {} bytes, {} entries, {} outputs, {} digests",
            self.bytes_per_request,
            self.idle_bytes_per_s,
            self.log_bytes,
            self.entries,
            self.outputs,
            self.digests
        );
        println!(
            "recorded in {:.1} s, of which the machine was busy {:.1} s (CPU time)",
            self.recorded_wall_s, self.recorded_cpu_s
        );
        for (number, replay) in self.replays.iter().enumerate() {
            println!("replay {}: {:.1} s CPU, {:.1} s", number + 1, replay.cpu_s, replay.wall_s);
        }
        println!(
            "every output and digest equal in {} of {0}, all ended at position {} in one state\n\
             a replay takes {:.2} of the recording's busy time in CPU time, {:.2} by the clock",
            self.replays.len(),
            self.last.position,
            self.replay_over_busy,
            self.replay_wall_over_busy
        );
    }
}
