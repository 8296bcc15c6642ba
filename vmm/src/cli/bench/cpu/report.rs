//! What was found, for programs and for people.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Measured;
use super::systems::{GUESTS, Kernel, System, order};
use crate::cli::bench::aims::{Aim, table};
use crate::cli::bench::host::Host;
use crate::cli::bench::quantile;
use crate::cli::bench::ratio::{Ratio, geometric_mean};

/// All that was measured.
pub struct Run {
    /// The host.
    pub host: Host,
    /// Version of QEMU, if it was measured.
    pub qemu: Option<String>,
    /// How many rounds.
    pub rounds: u32,
    /// Whether all kernels ran with all their work, and the boots.
    pub whole: bool,
    /// Of the two boots.
    pub instructions: Option<[u64; 2]>,
    /// By system.
    pub measured: BTreeMap<System, Measured>,
}

/// One kernel on all systems. Seconds are of CPU time, of which others on the host take nothing away, and
/// medians of the rounds; a ratio is one of each round.
#[derive(Debug, Clone, Serialize)]
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
    /// Speed of `soft` in the host's own.
    pub native_over_soft: Option<Ratio>,
    /// How many times faster than QEMU `soft` is.
    pub tcg_over_soft: Option<Ratio>,
    /// How many times faster than QEMU that records `soft` is.
    pub record_over_soft: Option<Ratio>,
}

/// The boot of a guest by the clock, from the start of the process to the first line of user space.
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
    /// `soft` in QEMU's time.
    pub soft_over_tcg: Option<Ratio>,
    /// The same of CPU time, from which other programs of the host take nothing away.
    pub soft_over_tcg_cpu: Option<Ratio>,
    /// Instructions on `soft` until it had switched itself off, having done nothing else.
    pub instructions: Option<u64>,
}

/// Geometric means over the kernels.
#[derive(Debug, Clone, Serialize)]
pub struct Means {
    /// Million instructions per second on `soft`.
    pub soft_mips: f64,
    /// As in `Row`.
    pub native_over_soft: Option<Ratio>,
    /// As in `Row`.
    pub tcg_over_soft: Option<Ratio>,
    /// As in `Row`.
    pub record_over_soft: Option<Ratio>,
}

/// Everything.
#[derive(Debug, Clone, Serialize)]
pub struct CpuReport {
    host: Host,
    qemu: Option<String>,
    rounds: u32,
    whole: bool,
    kernels: Vec<Row>,
    means: Means,
    boots: Vec<Boot>,
    aims: Vec<Aim>,
}

/// A number, or a dash.
fn cell(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.decimals$}"))
}

/// A kernel's values on a system, one per round.
fn values(run: &Run, system: System, name: &str, of: fn(&Kernel) -> f64) -> Vec<f64> {
    let kernels = run.measured.get(&system).and_then(|measured| measured.kernels.get(name));
    kernels.map(|runs| runs.iter().map(of).collect()).unwrap_or_default()
}

fn some_median(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| quantile(values, 0.5))
}

impl Row {
    fn new(run: &Run, name: &str) -> Self {
        let seconds = |system| values(run, system, name, |kernel| kernel.seconds);
        let (native, soft) = (seconds(System::Native), seconds(System::Soft));
        let (tcg, record) = (seconds(System::Tcg), seconds(System::Record));
        let kernel = &run.measured[&System::Soft].kernels[name][0];
        let wall = run.measured.keys().map(|system| {
            (system.name(), quantile(&values(run, *system, name, |kernel| kernel.wall_s), 0.5))
        });
        let soft_s = quantile(&soft, 0.5);
        Self {
            name: name.into(),
            checksum: kernel.checksum.clone(),
            instructions: kernel.guest_ns,
            native_s: quantile(&native, 0.5),
            soft_s,
            tcg_s: some_median(&tcg),
            record_s: some_median(&record),
            wall_s: wall.collect(),
            soft_mips: kernel.guest_ns as f64 / soft_s / 1e6,
            native_over_soft: Ratio::of_pairs(&native, &soft),
            tcg_over_soft: Ratio::of_pairs(&tcg, &soft),
            record_over_soft: Ratio::of_pairs(&record, &soft),
        }
    }
}

impl Means {
    fn new(run: &Run, rows: &[Row]) -> Self {
        // The mean of each round, then the median of the rounds, as everywhere.
        let mean = |above: System| {
            let round = |round: usize| {
                let of = |row: &Row| {
                    let seconds =
                        |system| values(run, system, &row.name, |kernel| kernel.seconds).get(round).copied();
                    Some(seconds(above)? / seconds(System::Soft)?)
                };
                geometric_mean(&rows.iter().map(of).collect::<Option<Vec<f64>>>()?)
            };
            Ratio::of((0..run.rounds as usize).map_while(round))
        };
        let mips: Vec<f64> = rows.iter().map(|row| row.soft_mips).collect();
        Self {
            soft_mips: geometric_mean(&mips).unwrap_or(f64::NAN),
            native_over_soft: mean(System::Native),
            tcg_over_soft: mean(System::Tcg),
            record_over_soft: mean(System::Record),
        }
    }
}

impl Boot {
    fn new(run: &Run, guest: usize) -> Option<Self> {
        let boots = |system| {
            let measured = run.measured.get(&system);
            let boots = measured.map(|measured| measured.boots[guest].as_slice()).unwrap_or_default();
            boots.iter().copied().unzip()
        };
        let (soft, soft_cpu): (Vec<f64>, Vec<f64>) = boots(System::Soft);
        let (tcg, tcg_cpu): (Vec<f64>, Vec<f64>) = boots(System::Tcg);
        let (record, _): (Vec<f64>, Vec<f64>) = boots(System::Record);
        Some(Self {
            guest: GUESTS[guest],
            soft_s: some_median(&soft)?,
            tcg_s: some_median(&tcg),
            record_s: some_median(&record),
            soft_over_tcg: Ratio::of_pairs(&soft, &tcg),
            soft_over_tcg_cpu: Ratio::of_pairs(&soft_cpu, &tcg_cpu),
            instructions: run.instructions.map(|instructions| instructions[guest]),
        })
    }
}

impl CpuReport {
    /// Computes the ratios. `qemu` says that QEMU was asked for: aims about it count although it is missing.
    pub fn new(run: &Run, qemu: bool) -> Self {
        let names = order(run.measured[&System::Native].kernels.keys());
        let kernels: Vec<Row> = names.iter().map(|name| Row::new(run, name)).collect();
        let means = Means::new(run, &kernels);
        let boots: Vec<Boot> = (0..GUESTS.len()).filter_map(|guest| Boot::new(run, guest)).collect();
        let aims = super::aims::aims(&kernels, &means, &boots, run.whole, qemu);
        Self {
            host: run.host.clone(),
            qemu: run.qemu.clone(),
            rounds: run.rounds,
            whole: run.whole,
            kernels,
            means,
            boots,
            aims,
        }
    }

    /// The aims, of what was asked to be measured.
    pub fn aims(&self) -> &[Aim] {
        &self.aims
    }

    /// For people.
    pub fn print(&self) {
        let Self { host, means, .. } = self;
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
            "nat/soft",
            "TCG/soft",
            "rec/soft"
        );
        let ratios = |native: Option<Ratio>, tcg: Option<Ratio>, record: Option<Ratio>| {
            let [native, tcg, record] = [native, tcg, record].map(|ratio| ratio.map(|ratio| ratio.median));
            format!("{:>8} {:>9} {:>9}", cell(native, 2), cell(tcg, 2), cell(record, 2))
        };
        for row in &self.kernels {
            println!(
                "{:16} {:>9.0} {:>8.3} {:>8.3} {:>8} {:>8} {:>6.0} {}",
                row.name,
                row.instructions as f64 / 1e6,
                row.native_s,
                row.soft_s,
                cell(row.tcg_s, 3),
                cell(row.record_s, 3),
                row.soft_mips,
                ratios(row.native_over_soft, row.tcg_over_soft, row.record_over_soft)
            );
        }
        let means =
            (means.soft_mips, ratios(means.native_over_soft, means.tcg_over_soft, means.record_over_soft));
        println!("{:16} {:>53.0} {}", "geometric mean", means.0, means.1);
        self.print_boots();
        println!("\n{}", table(&self.aims));
    }

    fn print_boots(&self) {
        println!("\nBoot to user space, from the start of the process, by the clock");
        for boot in &self.boots {
            let count = boot.instructions.map_or_else(String::new, |count| {
                format!(", {:.0} M instructions to the power-off after it", count as f64 / 1e6)
            });
            let cpu = boot
                .soft_over_tcg_cpu
                .map_or_else(String::new, |ratio| format!("; CPU time, soft / TCG: {:.2}", ratio.median));
            println!(
                "  {:10} soft {:.2} s, TCG {} s, record {} s{count}{cpu}",
                boot.guest,
                boot.soft_s,
                cell(boot.tcg_s, 2),
                cell(boot.record_s, 2)
            );
        }
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
