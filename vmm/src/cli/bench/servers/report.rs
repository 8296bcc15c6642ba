//! What the servers did: medians of the rounds, the ratios that matter, and the aims.

use std::collections::BTreeMap;

use serde::Serialize;

use super::systems::System;
use crate::cli::bench::{heartbeat_bytes_per_s, quantile};

/// Replicated to unreplicated at 50 connections and half load, at least.
const AIM_REPLICATED: f64 = 0.90;
/// Replicated to QEMU that records, one connection, at least.
const AIM_OVER_RECORD: f64 = 5.0;
/// An idle pair's log, at most.
const AIM_IDLE_MBIT_PER_S: f64 = 0.05;

/// A kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Kind {
    pub command: &'static str,
    pub connections: u32,
    /// Half of what the unreplicated guest answers is asked, however fast answers come; else as much as goes.
    pub half: bool,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}{}", self.command, self.connections, if self.half { " at half load" } else { "" })
    }
}

/// One measurement of one load.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Measured {
    pub requests_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// CPU time of all processes of the system, microseconds.
    pub cpu_us_per_request: f64,
    /// Of systems that keep a log.
    pub log_bytes_per_request: Option<f64>,
    pub errors: u64,
}

/// A server that nobody asks anything.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Idle {
    /// CPU seconds per second, all processes of the system.
    pub cpu: f64,
    /// Of systems that keep a log, heartbeats left out.
    pub log_mbit_per_s: Option<f64>,
}

/// All rounds of one system.
#[derive(Debug, Default)]
pub struct Rounds {
    pub loads: BTreeMap<Kind, Vec<Measured>>,
    pub idle: Vec<Idle>,
    /// Start to first answer, seconds.
    pub boots_s: Vec<f64>,
}

/// One load on one system.
#[derive(Debug, Clone, Serialize)]
struct Row {
    #[serde(flatten)]
    kind: Kind,
    system: System,
    #[serde(flatten)]
    measured: Measured,
}

/// One system without a load.
#[derive(Debug, Clone, Serialize)]
struct Rest {
    system: System,
    boot_s: f64,
    #[serde(flatten)]
    idle: Idle,
}

/// Everything measured; medians.
#[derive(Debug, Serialize)]
pub struct Servers {
    guest: String,
    loads: Vec<Row>,
    rest: Vec<Rest>,
    /// Answered requests, replicated to unreplicated, by load.
    replicated_over_unreplicated: BTreeMap<String, f64>,
    /// Answered requests, replicated to QEMU that records, by load.
    replicated_over_qemu_record: BTreeMap<String, f64>,
    /// Of an idle pair, with heartbeats.
    idle_mbit_per_s: Option<f64>,
}

fn median<T>(rounds: &[T], of: impl Fn(&T) -> f64) -> f64 {
    quantile(&rounds.iter().map(of).collect::<Vec<_>>(), 0.5)
}

fn median_of_some<T>(rounds: &[T], of: impl Fn(&T) -> Option<f64>) -> Option<f64> {
    let some: Vec<f64> = rounds.iter().filter_map(of).collect();
    (!some.is_empty()).then(|| quantile(&some, 0.5))
}

impl Servers {
    /// Of all rounds.
    pub fn new(guest: &str, rounds: &BTreeMap<System, Rounds>) -> Self {
        let (mut loads, mut rest) = (Vec::new(), Vec::new());
        for (system, rounds) in rounds {
            for (kind, measured) in &rounds.loads {
                let measured = Measured {
                    requests_per_s: median(measured, |m| m.requests_per_s),
                    p50_us: median(measured, |m| m.p50_us),
                    p99_us: median(measured, |m| m.p99_us),
                    cpu_us_per_request: median(measured, |m| m.cpu_us_per_request),
                    log_bytes_per_request: median_of_some(measured, |m| m.log_bytes_per_request),
                    errors: measured.iter().map(|m| m.errors).sum(),
                };
                loads.push(Row { kind: *kind, system: *system, measured });
            }
            let idle = Idle {
                cpu: median(&rounds.idle, |idle| idle.cpu),
                log_mbit_per_s: median_of_some(&rounds.idle, |idle| idle.log_mbit_per_s),
            };
            rest.push(Rest { system: *system, boot_s: median(&rounds.boots_s, |s| *s), idle });
        }
        loads.sort_by_key(|row| (row.kind, row.system));
        let idle = rest.iter().find(|rest| rest.system == System::Replicated);
        let heartbeats = heartbeat_bytes_per_s() * 8.0 / 1e6;
        Self {
            guest: guest.into(),
            replicated_over_unreplicated: ratios(&loads, System::Unreplicated),
            replicated_over_qemu_record: ratios(&loads, System::QemuRecord),
            idle_mbit_per_s: idle.and_then(|rest| rest.idle.log_mbit_per_s).map(|log| log + heartbeats),
            loads,
            rest,
        }
    }

    /// Aims that were not reached.
    pub fn missed(&self) -> Vec<String> {
        let mut missed = Vec::new();
        let mut least = |what: &str, ratio: Option<&f64>, aim: f64| {
            if let Some(ratio) = ratio.filter(|ratio| **ratio < aim) {
                missed.push(format!("{what}: {ratio:.2}, at least {aim}"));
            }
        };
        for command in ["GET", "SET"] {
            let kind = Kind { command, connections: 50, half: true }.to_string();
            let ratio = self.replicated_over_unreplicated.get(&kind);
            least(&format!("{kind}, replicated to unreplicated"), ratio, AIM_REPLICATED);
            let kind = Kind { command, connections: 1, half: false }.to_string();
            let ratio = self.replicated_over_qemu_record.get(&kind);
            least(&format!("{kind}, replicated to QEMU record"), ratio, AIM_OVER_RECORD);
        }
        if let Some(idle) = self.idle_mbit_per_s.filter(|idle| *idle > AIM_IDLE_MBIT_PER_S) {
            missed.push(format!("the idle log: {idle:.3} Mbit/s, at most {AIM_IDLE_MBIT_PER_S}"));
        }
        missed
    }

    /// For people.
    pub fn print(&self) {
        println!("{} under load, each request answered before the next one of its connection", self.guest);
        println!(
            "  {:<20} {:<13} {:>9} {:>9} {:>9} {:>11} {:>11}",
            "command, connections", "", "req/s", "p50 µs", "p99 µs", "CPU µs/req", "log B/req"
        );
        let mut last = None;
        for Row { kind, system, measured: m } in &self.loads {
            let name = if last == Some(kind) { String::new() } else { kind.to_string() };
            last = Some(kind);
            let log = m.log_bytes_per_request.map_or("-".into(), |bytes| format!("{bytes:.0}"));
            println!(
                "  {name:<20} {:<13} {:>9.0} {:>9.0} {:>9.0} {:>11.1} {log:>11}",
                system.name(),
                m.requests_per_s,
                m.p50_us,
                m.p99_us,
                m.cpu_us_per_request
            );
            if m.errors > 0 {
                println!("  {:<20} {} error replies", "", m.errors);
            }
        }
        println!("\n  {:<13} {:>8} {:>10} {:>14}", "", "boot s", "idle CPU", "idle Mbit/s");
        for Rest { system, boot_s, idle } in &self.rest {
            let log = idle.log_mbit_per_s.map_or("-".into(), |log| format!("{log:.4}"));
            println!("  {:<13} {boot_s:>8.2} {:>8.1} % {log:>14}", system.name(), idle.cpu * 100.0);
        }
        for (name, ratios) in [
            ("replicated to unreplicated", &self.replicated_over_unreplicated),
            ("replicated to QEMU record", &self.replicated_over_qemu_record),
        ] {
            if !ratios.is_empty() {
                let ratios: Vec<String> = ratios.iter().map(|(load, x)| format!("{load}: {x:.2}")).collect();
                println!("\n{name}, requests per second: {}", ratios.join(", "));
            }
        }
        if let Some(idle) = self.idle_mbit_per_s {
            println!("\nidle pair with heartbeats: {idle:.4} Mbit/s");
        }
    }
}

/// Answered requests of the pair to those of `other`, by load.
fn ratios(loads: &[Row], other: System) -> BTreeMap<String, f64> {
    let find = |kind: Kind, system: System| loads.iter().find(|row| (row.kind, row.system) == (kind, system));
    let of_pair = loads.iter().filter(|row| row.system == System::Replicated);
    of_pair
        .filter_map(|row| {
            let other = find(row.kind, other)?;
            Some((row.kind.to_string(), row.measured.requests_per_s / other.measured.requests_per_s))
        })
        .collect()
}
