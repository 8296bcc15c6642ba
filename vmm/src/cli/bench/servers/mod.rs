//! `lockstep bench service --guest redis`: an unmodified server under load, system by system.
//!
//! ```text
//!   round ──▶ for each system: start ──▶ idle ──▶ GET, SET × 1, 50 connections ──▶ end
//!                                               └▶ ours: 50 at half of what the unreplicated one answered
//! ```
//!
//! A system runs alone, and the rounds go through all of them in turn, so that what drifts on the host drifts
//! for all. The same client loads every one, over loopback. At saturation the processes of a pair share this
//! host's cores, which stand for three hosts; at half load a client sees what replication does to it.

pub mod against;
mod report;
mod systems;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use load::{Load, Pace, Throughput};

use super::{BenchArgs, say};
use crate::io::clock::HostClock;
use report::{Idle, Kind, Measured, Rounds, Servers};
use systems::{Server, System, available};

const VALUE_BYTES: usize = 16;
/// Before each measurement, so that connections and caches are warm: a part of its length.
const WARM_UP: f64 = 0.2;
/// What settles after a boot, and how long the idle log is watched.
const SETTLE: Duration = Duration::from_secs(3);
const IDLE: Duration = Duration::from_secs(5);

/// Measures, and prints.
pub fn run(args: &BenchArgs) -> anyhow::Result<u8> {
    if let Some(other) = &args.against.against {
        return against::run(args, other);
    }
    let all = System::OURS.into_iter().chain(if args.qemu { System::QEMUS.to_vec() } else { Vec::new() });
    let systems = available(all);
    let mut rounds: BTreeMap<System, Rounds> = BTreeMap::new();
    for round in 1..=args.rounds.max(1) {
        // Of this round's unreplicated guest, by command.
        let mut halves = BTreeMap::new();
        for system in &systems {
            say(&format!("round {round} of {}: {}", args.rounds.max(1), system.name()));
            one(*system, args, &mut halves, rounds.entry(*system).or_default())?;
        }
    }
    let servers = Servers::new(&args.guest, &rounds);
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&servers)?),
        false => servers.print(),
    }
    let missed = if args.aims { servers.missed() } else { Vec::new() };
    missed.iter().for_each(|aim| say(&format!("MISSED: {aim}")));
    Ok(u8::from(!missed.is_empty()))
}

/// One run of everything on one system.
fn one(
    system: System,
    args: &BenchArgs,
    halves: &mut BTreeMap<&'static str, f64>,
    into: &mut Rounds,
) -> anyhow::Result<()> {
    let server = Server::start(system, &args.guest)?;
    into.boots_s.push(server.boot_s);
    into.idle.push(idle(&server)?);
    for (command, set_percent) in [("GET", 0), ("SET", 100)] {
        let load = |connections, pace, length: f64| Load {
            address: SocketAddr::from(([127, 0, 0, 1], server.port)),
            connections,
            pipeline: 1,
            set_percent,
            value_bytes: VALUE_BYTES,
            duration: Duration::from_secs_f64(args.seconds * length),
            pace,
            seed: 1,
        };
        let mut most = 0.0;
        for connections in [1, 50] {
            load::throughput::run(&load(connections, Pace::Closed, WARM_UP))?;
            let measured = measure(&server, &load(connections, Pace::Closed, 1.0))?;
            most = measured.requests_per_s;
            let kind = Kind { command, connections, half: false };
            into.loads.entry(kind).or_default().push(measured);
        }
        if system == System::Unreplicated {
            halves.insert(command, most / 2.0);
        }
        if let (true, Some(&rate)) = (system.is_ours(), halves.get(command)) {
            let measured = measure(&server, &load(50, Pace::Open { rate }, 1.0))?;
            let kind = Kind { command, connections: 50, half: true };
            into.loads.entry(kind).or_default().push(measured);
        }
    }
    Ok(())
}

/// What the server uses and logs while nobody asks it anything.
fn idle(server: &Server) -> anyhow::Result<Idle> {
    std::thread::sleep(SETTLE);
    let (log, cpu_ns, start_ns) = (server.log_bytes()?, server.cpu_ns(), HostClock.now_ns());
    std::thread::sleep(IDLE);
    let seconds = (HostClock.now_ns() - start_ns) as f64 / 1e9;
    let bytes = server.log_bytes()?.zip(log).map(|(after, before)| (after - before) as f64);
    Ok(Idle {
        cpu: (server.cpu_ns() - cpu_ns) as f64 / 1e9 / seconds,
        log_mbit_per_s: bytes.map(|bytes| bytes * 8.0 / 1e6 / seconds),
    })
}

fn measure(server: &Server, load: &Load) -> anyhow::Result<Measured> {
    let (log, cpu_ns) = (server.log_bytes()?, server.cpu_ns());
    let Throughput { answered, errors, requests_per_s, latency } = load::throughput::run(load)?;
    let bytes = server.log_bytes()?.zip(log).map(|(after, before)| (after - before) as f64);
    let per_request = |total: f64| total / answered.max(1) as f64;
    Ok(Measured {
        requests_per_s,
        p50_us: latency.p50_us,
        p99_us: latency.p99_us,
        cpu_us_per_request: per_request((server.cpu_ns() - cpu_ns) as f64 / 1e3),
        log_bytes_per_request: bytes.map(per_request),
        errors,
    })
}
