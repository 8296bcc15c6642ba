//! `lockstep bench cpu`: the software CPU beside this host's own, and beside QEMU's two.
//!
//! The same nine kernels (guest-images/cpubench) run natively as a process, and as the first process of a
//! Linux guest: on the engine `soft` with virtual time, where a nanosecond of the guest is an instruction,
//! and in QEMU on the same kernel and initramfs. Each says when a kernel begins and ends; when the two lines
//! come, the CPU time of its process and the time are taken here, on the host. A checksum that differs is an
//! error.
//!
//! ```text
//!   round 1: kernels on native, soft, TCG, record; boots on soft, TCG, record
//!   round 2: the same from the last to the first       ... ratios within each round, medians over the rounds
//! ```

mod aims;
mod images;
mod report;
mod systems;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;

use super::aims::conclude;
use super::host::Host;
use super::{BenchArgs, say};
use images::Images;
use report::{CpuReport, Run};
use systems::{Kernel, System, Systems, Work};

/// Options of `lockstep bench cpu`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of bench cpu and bench programs")]
pub struct CpuArgs {
    /// One round of a part of the work, and no boot of its own: shows that it works.
    #[arg(long)]
    pub quick: bool,
    /// One kernel of `cpu` only, by name.
    #[arg(long, value_name = "KERNEL")]
    pub only: Option<String>,
    /// Directory of guest images; $XDG_CACHE_HOME/lockstep or ~/.cache/lockstep without it.
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
}

impl CpuArgs {
    fn work(&self) -> Work {
        match (&self.only, self.quick) {
            (only, false) => Work { scale: 1, only: only.clone() },
            (None, true) => Work { scale: 20, only: Some("integer".into()) },
            (only, true) => Work { scale: 20, only: only.clone() },
        }
    }
}

/// What was measured of one system, in the order of the rounds.
#[derive(Debug, Default)]
struct Measured {
    /// By kernel.
    kernels: BTreeMap<String, Vec<Kernel>>,
    /// From the start of the process to the first line of user space, seconds by the clock and of CPU time,
    /// of the two guests.
    boots: [Vec<(f64, f64)>; 2],
}

/// Runs the command.
pub fn run(bench: &BenchArgs) -> anyhow::Result<u8> {
    let args = &bench.cpu;
    let rounds = if args.quick { 1 } else { bench.rounds };
    ensure!(rounds >= 1, "--rounds 0 measures nothing");
    let images = Images::new(args.cache.as_deref(), !args.quick)?;
    let host = Host::new();
    let systems = Systems::new(&images, args.work())?;
    let qemu = bench.qemu.then(systems::qemu_version).flatten();
    if bench.qemu && qemu.is_none() {
        say("SKIPPED QEMU: there is no qemu-system-x86_64 here (Debian's package qemu-system-x86)");
    }
    let mut who = vec![System::Native, System::Soft];
    if qemu.is_some() {
        who.extend([System::Tcg, System::Record]);
    }
    let mut measured: BTreeMap<System, Measured> = BTreeMap::new();
    for round in 1..=rounds {
        say(&format!("round {round} of {rounds}"));
        one(&systems, &who, args.quick, &mut measured)?;
        // What is first in one round is last in the next: nobody always has the caches or the boost.
        who.reverse();
    }
    if !args.quick {
        say("counting the instructions of the boots");
    }
    let instructions = if args.quick { None } else { Some(systems.boot_instructions()?) };
    check(&measured)?;
    let whole = !args.quick && args.only.is_none();
    let run = Run { host: host.end(), qemu, rounds, whole, instructions, measured };
    let report = CpuReport::new(&run, bench.qemu);
    match bench.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => report.print(),
    }
    Ok(if bench.aims { conclude(report.aims()) } else { 0 })
}

/// One round.
fn one(
    systems: &Systems<'_>,
    who: &[System],
    quick: bool,
    into: &mut BTreeMap<System, Measured>,
) -> anyhow::Result<()> {
    for system in who {
        say(&format!("  kernels: {}", system.name()));
        let run = systems.kernels(*system)?;
        let measured = into.entry(*system).or_default();
        for kernel in run.kernels {
            measured.kernels.entry(kernel.name.clone()).or_default().push(kernel);
        }
        if *system != System::Native {
            measured.boots[0].push(run.boot_s);
        }
    }
    for system in who.iter().filter(|system| !quick && **system != System::Native) {
        say(&format!("  boot: {}", system.name()));
        let boot_s = systems.boot(*system)?;
        into.entry(*system).or_default().boots[1].push(boot_s);
    }
    Ok(())
}

/// Compares what the systems computed with what this host's processor did, in all rounds.
fn check(measured: &BTreeMap<System, Measured>) -> anyhow::Result<()> {
    for (name, native) in &measured[&System::Native].kernels {
        let checksum = &native[0].checksum;
        for (system, measured) in measured {
            let runs = measured.kernels.get(name).map(Vec::as_slice).unwrap_or_default();
            ensure!(runs.len() == native.len(), "{} did not run the kernel {name}", system.name());
            for run in runs {
                ensure!(
                    run.checksum == *checksum,
                    "{name}: {} computed {}, this host's processor {checksum}: that is a bug",
                    system.name(),
                    run.checksum
                );
            }
        }
    }
    Ok(())
}
