//! What the programs took, for programs and for people.

use anyhow::ensure;
use serde::Serialize;

use super::Ran;
use crate::cli::bench::aims::{Aim, Bound, table};
use crate::cli::bench::host::Host;
use crate::cli::bench::quantile;
use crate::cli::bench::ratio::{Ratio, geometric_mean};

/// CPU time in the guest, in that of this host held to the same instructions, at most.
const AIM: f64 = 3.0;

/// Where a program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// On this host, with the guest's instructions only.
    Restricted,
    /// On this host.
    Native,
    /// In the guest.
    Guest,
}

impl Side {
    /// All, in the order of the first round.
    pub const ALL: [Side; 3] = [Side::Restricted, Side::Native, Side::Guest];

    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Side::Restricted => "native, x86-64-v2",
            Side::Native => "native",
            Side::Guest => "guest on soft",
        }
    }
}

/// One program: CPU seconds of each round, and what comes of them.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Row {
    name: &'static str,
    /// What it computed, everywhere.
    checksum: String,
    /// On this host with the guest's instructions only, by round.
    restricted_s: Vec<f64>,
    /// On this host, by round.
    native_s: Vec<f64>,
    /// In the guest, by round.
    soft_s: Vec<f64>,
    /// How many times as long it takes in the guest.
    soft_over_restricted: Option<Ratio>,
    /// The same of this host with all its instructions: not judged.
    soft_over_native: Option<Ratio>,
}

/// Everything.
#[derive(Debug, Clone, Serialize)]
pub struct ProgramsReport {
    host: Option<Host>,
    programs: Vec<Row>,
    /// Geometric mean of the medians.
    mean_over_restricted: Option<f64>,
    mean_over_native: Option<f64>,
    aims: Vec<Aim>,
}

impl ProgramsReport {
    /// Of programs that have not run yet.
    pub fn new(names: impl Iterator<Item = &'static str>) -> Self {
        let programs = names.map(|name| Row { name, ..Row::default() }).collect();
        Self { host: None, programs, mean_over_restricted: None, mean_over_native: None, aims: Vec::new() }
    }

    /// Adds a round of one side, in the order of the programs; all sides must have computed the same.
    pub fn add(&mut self, side: Side, ran: &[Ran]) -> anyhow::Result<()> {
        for (row, Ran { cpu_s, checksum }) in self.programs.iter_mut().zip(ran) {
            ensure!(!checksum.is_empty(), "{} said nothing: {}", row.name, side.name());
            if row.checksum.is_empty() {
                row.checksum.clone_from(checksum);
            }
            ensure!(
                row.checksum == *checksum,
                "{}: {} computed {checksum}, another side {}: that is a bug",
                row.name,
                side.name(),
                row.checksum
            );
            match side {
                Side::Restricted => row.restricted_s.push(*cpu_s),
                Side::Native => row.native_s.push(*cpu_s),
                Side::Guest => row.soft_s.push(*cpu_s),
            }
        }
        Ok(())
    }

    /// Computes the ratios.
    pub fn end(mut self, host: Host) -> Self {
        for row in &mut self.programs {
            row.soft_over_restricted = Ratio::of_pairs(&row.soft_s, &row.restricted_s);
            row.soft_over_native = Ratio::of_pairs(&row.soft_s, &row.native_s);
        }
        let aim = |row: &Row| {
            let measure = format!("{}: soft / native, x86-64-v2", row.name);
            Aim::new(measure, row.soft_over_restricted, Bound::AtMost(AIM))
        };
        let mean = |of: fn(&Row) -> Option<Ratio>| {
            let medians = self.programs.iter().map(|row| Some(of(row)?.median));
            geometric_mean(&medians.collect::<Option<Vec<f64>>>()?)
        };
        let means = (mean(|row| row.soft_over_restricted), mean(|row| row.soft_over_native));
        (self.mean_over_restricted, self.mean_over_native) = means;
        self.aims = self.programs.iter().map(aim).collect();
        self.host = Some(host);
        self
    }

    /// The aims.
    pub fn aims(&self) -> &[Aim] {
        &self.aims
    }

    /// For people.
    pub fn print(&self) {
        if let Some(host) = &self.host {
            println!("Programs on {}; CPU seconds, medians, checksums equal everywhere", host.cpu);
            println!("(load average {:.2} before, {:.2} after)", host.load_before, host.load_after);
        }
        println!(
            "\n{:10} {:>12} {:>9} {:>9} {:>13} {:>13}",
            "program", "native v2 s", "native s", "soft s", "soft/nat. v2", "soft/native"
        );
        let cell = |ratio: Option<f64>| ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.1}"));
        for row in &self.programs {
            let median = |seconds: &[f64]| quantile(seconds, 0.5);
            println!(
                "{:10} {:>12.3} {:>9.3} {:>9.3} {:>13} {:>13}",
                row.name,
                median(&row.restricted_s),
                median(&row.native_s),
                median(&row.soft_s),
                cell(row.soft_over_restricted.map(|ratio| ratio.median)),
                cell(row.soft_over_native.map(|ratio| ratio.median))
            );
        }
        let means = (cell(self.mean_over_restricted), cell(self.mean_over_native));
        println!("{:14} {:>42} {:>13}", "geometric mean", means.0, means.1);
        println!("\n{}", table(&self.aims));
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
