//! The service bench: the same load on an unreplicated machine and on a pair, in turn.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::Context;
use load::{Load, Pace, Throughput};
use serde::Serialize;

use super::{Bench, BenchArgs, cpu_ns, heartbeat_bytes_per_s, log_bytes, quantile, say};
use crate::cli::doctor::Report;
use crate::cluster::Cluster;
use crate::io::clock::HostClock;

const VALUE_BYTES: usize = 16;

/// One measurement of one system.
#[derive(Debug, Clone, Default, Serialize)]
struct Measured {
    requests_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    /// CPU seconds per second of load, by process.
    cpu: BTreeMap<&'static str, f64>,
    log_bytes_per_request: f64,
    log_mbit_per_s: f64,
    errors: u64,
}

/// One kind of load on both systems.
#[derive(Debug, Clone, Serialize)]
struct Row {
    command: &'static str,
    connections: u32,
    pipeline: u32,
    /// `closed`, or requests per second offered.
    offered_per_s: Option<f64>,
    unreplicated: Measured,
    replicated: Measured,
    /// Replicated to unreplicated, answered requests per second.
    ratio: f64,
    /// Replicated less unreplicated, median latency.
    added_p50_us: f64,
}

/// Everything measured.
#[derive(Debug, Clone, Serialize)]
pub struct Service {
    saturation: Vec<Row>,
    half_load: Vec<Row>,
    loopback_p50_us: f64,
    idle_log_mbit_per_s: f64,
    idle_log_bytes: u64,
    idle_seconds: f64,
    exits_per_get: f64,
    exits_per_set: f64,
}

/// Measures.
pub fn measure(args: &BenchArgs) -> anyhow::Result<Service> {
    say("starting an unreplicated machine and a pair");
    let systems = [Bench::start(|options| options.replicated = false)?, Bench::start(|_| ())?];
    let (mut saturation, mut half_load) = (Vec::new(), Vec::new());
    for (command, set_percent) in [("GET", 0), ("SET", 100)] {
        for (connections, pipeline) in [(1, 1), (1, 16), (50, 1), (50, 16)] {
            let load = Load {
                address: SocketAddr::from(([127, 0, 0, 1], 0)),
                connections,
                pipeline,
                set_percent,
                value_bytes: VALUE_BYTES,
                duration: Duration::from_secs_f64(args.seconds),
                pace: Pace::Closed,
                seed: 1,
            };
            say(&format!("{command}, {connections} connections, pipeline {pipeline}"));
            let row = compare(&systems, command, &load, args.rounds)?;
            let rate = row.unreplicated.requests_per_s / 2.0;
            saturation.push(row);
            let load = Load { pace: Pace::Open { rate }, ..load };
            half_load.push(compare(&systems, command, &load, args.rounds)?);
        }
    }
    let pair = &systems[1].cluster;
    let exits_per_get = exits(pair, "GET bench:exits")?;
    let exits_per_set = exits(pair, "SET bench:exits 1")?;
    say("idle");
    let (idle_log_bytes, idle_seconds) = idle(pair)?;
    let heartbeats = heartbeat_bytes_per_s();
    Ok(Service {
        saturation,
        half_load,
        loopback_p50_us: loopback()?,
        idle_log_mbit_per_s: (idle_log_bytes as f64 / idle_seconds + heartbeats) * 8.0 / 1e6,
        idle_log_bytes,
        idle_seconds,
        exits_per_get,
        exits_per_set,
    })
}

fn compare(systems: &[Bench; 2], command: &'static str, load: &Load, rounds: u32) -> anyhow::Result<Row> {
    let mut measured: [Vec<Measured>; 2] = [Vec::new(), Vec::new()];
    for _ in 0..rounds.max(1) {
        for (system, measured) in systems.iter().zip(&mut measured) {
            measured.push(one(&system.cluster, load)?);
        }
    }
    let [unreplicated, replicated] = measured.map(|rounds| median(&rounds));
    Ok(Row {
        command,
        connections: load.connections,
        pipeline: load.pipeline,
        offered_per_s: match load.pace {
            Pace::Closed => None,
            Pace::Open { rate } => Some(rate),
        },
        ratio: replicated.requests_per_s / unreplicated.requests_per_s,
        added_p50_us: replicated.p50_us - unreplicated.p50_us,
        unreplicated,
        replicated,
    })
}

fn median(rounds: &[Measured]) -> Measured {
    let of = |field: fn(&Measured) -> f64| quantile(&rounds.iter().map(field).collect::<Vec<_>>(), 0.5);
    let names = rounds.first().map(|round| round.cpu.keys().copied().collect::<Vec<_>>()).unwrap_or_default();
    let cpu = |name: &str| {
        quantile(&rounds.iter().map(|r| r.cpu.get(name).copied().unwrap_or(0.0)).collect::<Vec<_>>(), 0.5)
    };
    Measured {
        requests_per_s: of(|m| m.requests_per_s),
        p50_us: of(|m| m.p50_us),
        p99_us: of(|m| m.p99_us),
        cpu: names.into_iter().map(|name| (name, cpu(name))).collect(),
        log_bytes_per_request: of(|m| m.log_bytes_per_request),
        log_mbit_per_s: of(|m| m.log_mbit_per_s),
        errors: rounds.iter().map(|round| round.errors).sum(),
    }
}

fn one(cluster: &Cluster, load: &Load) -> anyhow::Result<Measured> {
    let load = Load { address: SocketAddr::from(([127, 0, 0, 1], cluster.port())), ..load.clone() };
    let (cpu_before, log_before, start) = (cpu(cluster), log_bytes(cluster)?, HostClock.now_ns());
    let Throughput { answered, errors, requests_per_s, latency } = load::throughput::run(&load)?;
    let seconds = (HostClock.now_ns() - start) as f64 / 1e9;
    let log = (log_bytes(cluster)? - log_before) as f64;
    let cpu = cpu(cluster)
        .into_iter()
        .map(|(name, after)| (name, (after - cpu_before.get(name).copied().unwrap_or(0.0)) / seconds))
        .collect();
    Ok(Measured {
        requests_per_s,
        p50_us: latency.p50_us,
        p99_us: latency.p99_us,
        cpu,
        log_bytes_per_request: log / answered.max(1) as f64,
        log_mbit_per_s: log * 8.0 / 1e6 / seconds,
        errors,
    })
}

/// CPU seconds that each process used so far.
fn cpu(cluster: &Cluster) -> BTreeMap<&'static str, f64> {
    let parts = cluster.parts().into_iter();
    parts.filter_map(|part| Some((part.name(), cpu_ns(cluster.pid(part)?) as f64 / 1e9))).collect()
}

/// Exits per request of one idle connection, as the guest counts them.
fn exits(cluster: &Cluster, command: &str) -> anyhow::Result<f64> {
    const REQUESTS: u32 = 200;
    let mut stream = TcpStream::connect(("127.0.0.1", cluster.port()))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let before = guest_exits(&mut stream)?;
    for _ in 0..REQUESTS {
        ask(&mut stream, command)?;
        // The next request is not to meet the work of this one: its ACK in particular.
        std::thread::sleep(Duration::from_millis(2));
    }
    // Reading the count is a request too.
    Ok((guest_exits(&mut stream)? - before).saturating_sub(1) as f64 / f64::from(REQUESTS))
}

fn guest_exits(stream: &mut TcpStream) -> anyhow::Result<u64> {
    let info = ask(stream, "INFO")?;
    let line = info.lines().find_map(|line| line.strip_prefix("exits:"));
    line.and_then(|count| count.trim().parse().ok()).context("the guest's INFO has no exits")
}

fn ask(stream: &mut TcpStream, command: &str) -> anyhow::Result<String> {
    let mut words = Vec::new();
    load::resp::command(&command.split(' ').map(str::as_bytes).collect::<Vec<_>>(), &mut words);
    stream.write_all(&words)?;
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        if let Some((reply, _)) = load::resp::parse(&bytes)? {
            return Ok(match reply {
                load::resp::Reply::Bulk(Some(text)) => String::from_utf8_lossy(&text).into_owned(),
                other => format!("{other:?}"),
            });
        }
        let count = stream.read(&mut buffer)?;
        anyhow::ensure!(count > 0, "the guest closed the connection");
        bytes.extend_from_slice(&buffer[..count]);
    }
}

/// Log bytes of an idle pair, and over how many seconds.
fn idle(cluster: &Cluster) -> anyhow::Result<(u64, f64)> {
    const LENGTH: Duration = Duration::from_secs(5);
    // What the load left behind settles first: connections close, digests are taken.
    std::thread::sleep(Duration::from_secs(3));
    let (before, start) = (log_bytes(cluster)?, HostClock.now_ns());
    std::thread::sleep(LENGTH);
    Ok((log_bytes(cluster)? - before, (HostClock.now_ns() - start) as f64 / 1e9))
}

/// Median round trip of a small message over loopback TCP between two threads.
fn loopback() -> anyhow::Result<f64> {
    const ROUNDS: usize = 2000;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let echo = std::thread::Builder::new().spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut buffer = [0; 64];
        while stream.read_exact(&mut buffer).is_ok() {
            stream.write_all(&buffer)?;
        }
        Ok(())
    })?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let (mut buffer, mut times) = ([0; 64], Vec::new());
    for _ in 0..ROUNDS {
        let start = HostClock.now_ns();
        stream.write_all(&buffer)?;
        stream.read_exact(&mut buffer)?;
        times.push((HostClock.now_ns() - start) as f64 / 1e3);
    }
    drop(stream);
    echo.join().map_err(|_| anyhow::anyhow!("the echo panicked"))??;
    Ok(quantile(&times, 0.5))
}

impl Service {
    /// For people.
    pub fn print(&self, host: &Report) {
        let us = |value: Option<f64>| value.map_or("-".into(), |us| format!("{us:.1}"));
        println!(
            "exit cost: PIO {} µs, HLT {} µs; loopback round trip p50 {:.1} µs",
            us(host.pio_exit_us),
            us(host.hlt_exit_us),
            self.loopback_p50_us
        );
        println!("\nSaturation (closed loop)");
        print_rows(&self.saturation);
        println!("\nHalf the unreplicated maximum (open loop)");
        print_rows(&self.half_load);
        println!("\nexits per idle GET {:.2}, per idle SET {:.2}", self.exits_per_get, self.exits_per_set);
        println!(
            "idle: {} log bytes in {:.1} s; with heartbeats {:.4} Mbit/s",
            self.idle_log_bytes, self.idle_seconds, self.idle_log_mbit_per_s
        );
    }
}

fn print_rows(rows: &[Row]) {
    println!(
        "  {:<4} {:>5} {:>4} | {:^29} | {:^29} | {:>5} {:>9} | {:>7} {:>7} | CPU/s: alone, primary, backup",
        "", "conns", "pipe", "unreplicated", "replicated", "ratio", "added p50", "log B/r", "Mbit/s"
    );
    println!(
        "{:17} | {:>9} {:>9} {:>9} | {:>9} {:>9} {:>9} |",
        "", "req/s", "p50 µs", "p99 µs", "req/s", "p50 µs", "p99 µs"
    );
    for row in rows {
        let (u, r) = (&row.unreplicated, &row.replicated);
        let system = |m: &Measured| format!("{:>9.0} {:>9.0} {:>9.0}", m.requests_per_s, m.p50_us, m.p99_us);
        let cpu = |m: &Measured, name: &str| m.cpu.get(name).copied().unwrap_or(0.0);
        println!(
            "  {:<4} {:>5} {:>4} | {} | {} | {:>5.2} {:>6.0} µs | {:>7.0} {:>7.2} | {:.2}, {:.2}, {:.2}",
            row.command,
            row.connections,
            row.pipeline,
            system(u),
            system(r),
            row.ratio,
            row.added_p50_us,
            r.log_bytes_per_request,
            r.log_mbit_per_s,
            cpu(u, "primary"),
            cpu(r, "primary"),
            cpu(r, "backup"),
        );
    }
}
