//! What was found, for programs and for people.

use std::collections::BTreeMap;

use serde::Serialize;

use super::systems::System;

/// Million instructions per second, geometric mean of the kernels.
const AIM_MIPS: f64 = 150.0;
/// Boot to user space, seconds.
const AIM_BOOT_S: f64 = 4.0;
/// Random reads, times the speed of QEMU that records.
const AIM_RANDOM: f64 = 3.0;

/// The host during the measurement.
#[derive(Debug, Clone, Serialize)]
pub struct Host {
    /// Name of its processor.
    pub cpu: String,
    /// Load average over a minute before it: 0 on a quiet machine.
    pub load_before: f64,
    /// After it: one of this is the bench's own.
    pub load_after: f64,
}

fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(f64::NAN)
}

impl Host {
    /// Before.
    pub fn new() -> Self {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let cpu = name.map_or_else(|| "unknown".into(), |(_, name)| name.to_string());
        Self { cpu, load_before: load(), load_after: 0.0 }
    }

    /// After.
    pub fn end(self) -> Self {
        Self { load_after: load(), ..self }
    }
}

/// One kernel on all systems. Seconds are of CPU time, of which others on the host take nothing away.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// What it computed, everywhere.
    pub checksum: String,
    /// Instructions on `soft`, timer ticks included.
    pub instructions: u64,
    /// On this host's processor.
    pub native_s: f64,
    /// On `soft`.
    pub soft_s: f64,
    /// In QEMU.
    pub tcg_s: Option<f64>,
    /// In QEMU that records.
    pub record_s: Option<f64>,
    /// Seconds by the host's clock, by system.
    pub wall_s: BTreeMap<&'static str, f64>,
    /// Million instructions per second on `soft`.
    pub soft_mips: f64,
    /// How many times slower than native `soft` is.
    pub soft_over_native: f64,
    /// The same of QEMU that records.
    pub record_over_native: Option<f64>,
    /// How many times faster than QEMU `soft` is.
    pub tcg_over_soft: Option<f64>,
    /// How many times faster than QEMU that records `soft` is.
    pub record_over_soft: Option<f64>,
}

impl Row {
    /// What one system took.
    pub fn set(&mut self, system: System, seconds: f64, wall_s: f64, guest_ns: u64) {
        self.wall_s.insert(system.name(), wall_s);
        match system {
            System::Native => self.native_s = seconds,
            System::Soft => (self.soft_s, self.instructions) = (seconds, guest_ns),
            System::Tcg => self.tcg_s = Some(seconds),
            System::Record => self.record_s = Some(seconds),
        }
    }

    fn compare(&mut self) {
        self.soft_mips = self.instructions as f64 / self.soft_s / 1e6;
        self.soft_over_native = self.soft_s / self.native_s;
        self.record_over_native = self.record_s.map(|record| record / self.native_s);
        self.tcg_over_soft = self.tcg_s.map(|tcg| tcg / self.soft_s);
        self.record_over_soft = self.record_s.map(|record| record / self.soft_s);
    }
}

/// The boot of a guest, from the start of the process to the first line of user space.
#[derive(Debug, Clone, Serialize)]
pub struct Boot {
    /// Which.
    pub guest: &'static str,
    /// On `soft`.
    pub soft_s: f64,
    /// In QEMU.
    pub tcg_s: Option<f64>,
    /// In QEMU that records.
    pub record_s: Option<f64>,
    /// Instructions on `soft` until it had switched itself off, having done nothing else.
    pub instructions: Option<u64>,
}

/// Geometric means over the kernels.
#[derive(Debug, Clone, Serialize)]
pub struct Means {
    soft_mips: f64,
    soft_over_native: f64,
    record_over_native: Option<f64>,
    tcg_over_soft: Option<f64>,
    record_over_soft: Option<f64>,
}

/// Everything.
#[derive(Debug, Clone, Serialize)]
pub struct CpuReport {
    host: Host,
    qemu: Option<String>,
    rounds: u32,
    kernels: Vec<Row>,
    means: Means,
    boots: Vec<Boot>,
}

fn mean(rows: &[Row], of: impl Fn(&Row) -> Option<f64>) -> Option<f64> {
    let logarithms = rows.iter().map(|row| of(row).map(f64::ln)).collect::<Option<Vec<_>>>()?;
    Some((logarithms.iter().sum::<f64>() / logarithms.len() as f64).exp())
}

/// A number, or a dash.
fn cell(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.decimals$}"))
}

impl CpuReport {
    /// Computes the ratios.
    pub fn new(host: Host, qemu: Option<String>, rounds: u32, mut rows: Vec<Row>, boots: Vec<Boot>) -> Self {
        rows.iter_mut().for_each(Row::compare);
        let means = Means {
            soft_mips: mean(&rows, |row| Some(row.soft_mips)).unwrap_or(f64::NAN),
            soft_over_native: mean(&rows, |row| Some(row.soft_over_native)).unwrap_or(f64::NAN),
            record_over_native: mean(&rows, |row| row.record_over_native),
            tcg_over_soft: mean(&rows, |row| row.tcg_over_soft),
            record_over_soft: mean(&rows, |row| row.record_over_soft),
        };
        Self { host, qemu, rounds, kernels: rows, means, boots }
    }

    /// The aims that these numbers miss, among those that were measured.
    pub fn missed(&self) -> Vec<String> {
        let mut missed = Vec::new();
        let mips = self.means.soft_mips;
        if mips < AIM_MIPS {
            missed.push(format!("geometric mean {mips:.0} million instructions/s, aim {AIM_MIPS}"));
        }
        for boot in self.boots.iter().filter(|boot| boot.soft_s > AIM_BOOT_S) {
            missed.push(format!("boot of {} {:.2} s, aim {AIM_BOOT_S}", boot.guest, boot.soft_s));
        }
        let random = self.kernels.iter().find(|row| row.name == "random-reads");
        if let Some(ratio) = random.and_then(|row| row.record_over_soft).filter(|ratio| *ratio < AIM_RANDOM) {
            missed.push(format!("random reads {ratio:.2} times as fast as QEMU record, aim {AIM_RANDOM}"));
        }
        missed
    }

    /// For people.
    pub fn print(&self) {
        let Self { host, kernels, means, boots, .. } = self;
        println!(
            "Software CPU on {}; medians of {} rounds, checksums equal everywhere",
            host.cpu, self.rounds
        );
        println!("(CPU seconds; load average {:.2} before, {:.2} after)", host.load_before, host.load_after);
        if let Some(qemu) = &self.qemu {
            println!("{qemu}: TCG, and recording with -icount shift=3");
        }
        println!(
            "\n{:16} {:>9} {:>8} {:>8} {:>8} {:>8} {:>6} {:>8} {:>9} {:>9}",
            "kernel",
            "M instr",
            "native s",
            "soft s",
            "TCG s",
            "record s",
            "MIPS",
            "soft/nat",
            "TCG/soft",
            "rec/soft"
        );
        for row in kernels {
            println!(
                "{:16} {:>9.0} {:>8.3} {:>8.3} {:>8} {:>8} {:>6.0} {:>8.1} {:>9} {:>9}",
                row.name,
                row.instructions as f64 / 1e6,
                row.native_s,
                row.soft_s,
                cell(row.tcg_s, 3),
                cell(row.record_s, 3),
                row.soft_mips,
                row.soft_over_native,
                cell(row.tcg_over_soft, 2),
                cell(row.record_over_soft, 2)
            );
        }
        println!(
            "{:16} {:>53.0} {:>8.1} {:>9} {:>9}",
            "geometric mean",
            means.soft_mips,
            means.soft_over_native,
            cell(means.tcg_over_soft, 2),
            cell(means.record_over_soft, 2)
        );
        println!("\nBoot to user space, from the start of the process, by the clock");
        for boot in boots {
            let count = boot.instructions.map_or_else(String::new, |count| {
                format!(", {:.0} M instructions to the power-off after it", count as f64 / 1e6)
            });
            println!(
                "  {:10} soft {:.2} s, TCG {} s, record {} s{count}",
                boot.guest,
                boot.soft_s,
                cell(boot.tcg_s, 2),
                cell(boot.record_s, 2)
            );
        }
    }
}
