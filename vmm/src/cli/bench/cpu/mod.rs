//! `lockstep bench cpu`: the software CPU beside this host's own, and beside QEMU's two.
//!
//! The same nine kernels (guest-images/cpubench) run natively as a process, and as the first process of a
//! Linux guest: on the engine `soft` with virtual time, where a nanosecond of the guest is an instruction,
//! and in QEMU on the same kernel and initramfs. Each says when a kernel begins and ends; when the two lines
//! come, the CPU time of its process and the time are taken here, on the host. A checksum that differs is an
//! error.

mod images;
mod report;
mod systems;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;

use super::{BenchArgs, quantile, say};
use images::Images;
use report::{Boot, CpuReport, Host, Row};
use systems::{Kernel, System, Systems, Work};

/// Options of `lockstep bench cpu`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of bench cpu")]
pub struct CpuArgs {
    /// How many times everything runs, the systems in turn; medians count.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub repeat: u32,
    /// One fast kernel with a twentieth of its work, and no boot of its own: shows that it works.
    #[arg(long)]
    pub quick: bool,
    /// One kernel only, by name.
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

/// What was measured of one system.
#[derive(Debug, Default)]
struct Measured {
    /// By kernel.
    kernels: BTreeMap<String, Vec<Kernel>>,
    /// From the start of the process to the first line of user space, seconds: of the two guests.
    boots: [Vec<f64>; 2],
}

/// Runs the command.
pub fn run(bench: &BenchArgs) -> anyhow::Result<u8> {
    let args = &bench.cpu;
    ensure!(args.repeat >= 1, "--repeat 0 measures nothing");
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
    for round in 1..=args.repeat {
        for system in &who {
            say(&format!("round {round} of {}: {}", args.repeat, system.name()));
            one(&systems, *system, args.quick, measured.entry(*system).or_default())?;
        }
    }
    if !args.quick {
        say("counting the instructions of the boots");
    }
    let instructions = if args.quick { None } else { Some(systems.boot_instructions()?) };
    let report = judge(host, qemu, args.repeat, &measured, instructions)?;
    match bench.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => report.print(),
    }
    let missed = if bench.aims { report.missed() } else { Vec::new() };
    missed.iter().for_each(|aim| say(&format!("MISSED: {aim}")));
    Ok(u8::from(!missed.is_empty()))
}

/// One run of everything on one system.
fn one(systems: &Systems<'_>, system: System, quick: bool, into: &mut Measured) -> anyhow::Result<()> {
    let run = systems.kernels(system)?;
    for kernel in run.kernels {
        into.kernels.entry(kernel.name.clone()).or_default().push(kernel);
    }
    if system != System::Native {
        into.boots[0].push(run.boot_s);
        if !quick {
            into.boots[1].push(systems.boot(system)?);
        }
    }
    Ok(())
}

/// Compares the checksums, and makes the report.
fn judge(
    host: Host,
    qemu: Option<String>,
    repeat: u32,
    measured: &BTreeMap<System, Measured>,
    instructions: Option<[u64; 2]>,
) -> anyhow::Result<CpuReport> {
    let native = &measured[&System::Native].kernels;
    let mut rows = Vec::new();
    for name in systems::order(native.keys()) {
        let checksum = native[&name][0].checksum.clone();
        let mut row = Row { name: name.clone(), checksum: checksum.clone(), ..Row::default() };
        for (system, measured) in measured {
            let runs = measured.kernels.get(&name).map(Vec::as_slice).unwrap_or_default();
            ensure!(!runs.is_empty(), "{} did not run the kernel {name}", system.name());
            for run in runs {
                ensure!(
                    run.checksum == checksum,
                    "{name}: {} computed {}, this host's processor {checksum}: that is a bug",
                    system.name(),
                    run.checksum
                );
            }
            let median = |of: fn(&Kernel) -> f64| quantile(&runs.iter().map(of).collect::<Vec<_>>(), 0.5);
            row.set(*system, median(|run| run.seconds), median(|run| run.wall_s), runs[0].guest_ns);
        }
        rows.push(row);
    }
    let boot = |guest: usize| {
        let of = |system| {
            let runs = &measured.get(&system)?.boots[guest];
            (!runs.is_empty()).then(|| quantile(runs, 0.5))
        };
        let soft_s = of(System::Soft)?;
        Some(Boot {
            guest: systems::GUESTS[guest],
            soft_s,
            tcg_s: of(System::Tcg),
            record_s: of(System::Record),
            instructions: instructions.map(|instructions| instructions[guest]),
        })
    };
    let boots = (0..2).filter_map(boot).collect();
    Ok(CpuReport::new(host.end(), qemu, repeat, rows, boots))
}
