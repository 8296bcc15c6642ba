//! `lockstep bench programs`: what real programs take in a guest on the engine `soft`, beside the CPU time of
//! this host's own.
//!
//! A JVM, a C compiler, openssl and sqlite of Debian run in the guest `programs`, and the same files as
//! processes of this host: held to the instructions that the guest's processor has (`x86-64-v2`), and with
//! all that this one's has. The first is judged; the second is what a user gives up besides.
//!
//! ```text
//!   round 1: native v2, native, guest (one boot, each program warmed up once)
//!   round 2: guest, native, native v2          ... ratios within each round, medians over the rounds
//! ```

mod guest;
mod native;
mod report;

use std::path::Path;

use anyhow::{Context, ensure};
use guest_images::cache::{Cache, Guest};
use guest_images::recipe::build;

use super::aims::conclude;
use super::host::Host;
use super::{BenchArgs, say};
pub use native::Tree;
use report::{ProgramsReport, Side};

/// The guest.
pub const GUEST: &str = "programs";

/// As large as the image of its disk, MiB.
pub const DISK_SIZE: &str = "384";

/// A program, and how much work it is given, in its least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Program {
    name: &'static str,
    scale: u32,
}

/// About half a second each on a host of 2025.
const PROGRAMS: [Program; 4] = [
    Program { name: "java", scale: 20 },
    Program { name: "gcc", scale: 20 },
    Program { name: "openssl", scale: 60 },
    Program { name: "sqlite", scale: 60 },
];
/// Those that start fast, with little work.
const QUICK: [Program; 2] = [Program { name: "openssl", scale: 3 }, Program { name: "sqlite", scale: 3 }];

/// One run of one program.
#[derive(Debug, Clone, PartialEq)]
pub struct Ran {
    /// CPU time.
    pub cpu_s: f64,
    /// Of what it computed.
    pub checksum: String,
}

/// The last line of what the script says.
fn checksum(output: &str) -> String {
    output.lines().last().unwrap_or_default().trim().to_string()
}

/// Runs the command.
pub fn run(bench: &BenchArgs) -> anyhow::Result<u8> {
    let quick = bench.cpu.quick;
    let rounds = if quick { 1 } else { bench.rounds };
    ensure!(rounds >= 1, "--rounds 0 measures nothing");
    let programs = if quick { QUICK.as_slice() } else { PROGRAMS.as_slice() };
    let cache = bench.cpu.cache.as_deref();
    let guest = image(cache)?;
    let tree = Tree::new(&guest)?;
    let host = Host::new();
    let mut report = ProgramsReport::new(programs.iter().map(|program| program.name));
    let mut sides = Side::ALL;
    for round in 1..=rounds {
        say(&format!("round {round} of {rounds}"));
        for side in sides {
            say(&format!("  {}", side.name()));
            report.add(side, &one(side, &guest, cache, &tree, programs)?)?;
        }
        // What is first in one round is last in the next: nobody always has the caches or the boost.
        sides.reverse();
    }
    let report = report.end(host.end());
    match bench.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => report.print(),
    }
    Ok(if bench.aims { conclude(report.aims()) } else { 0 })
}

/// All programs on one side, once.
fn one(
    side: Side,
    guest: &Guest,
    cache: Option<&Path>,
    tree: &Tree,
    programs: &[Program],
) -> anyhow::Result<Vec<Ran>> {
    let native = |restricted| {
        programs.iter().map(|program| tree.run(program.name, program.scale, restricted)).collect()
    };
    match side {
        Side::Restricted => native(true),
        Side::Native => native(false),
        Side::Guest => {
            let data = tempfile::Builder::new().prefix("lockstep-bench-").tempdir()?;
            guest::run(guest, cache, data.path(), programs)
        }
    }
}

/// The image, made if it is missing or older than this program's recipes.
pub fn image(cache: Option<&Path>) -> anyhow::Result<Guest> {
    let images = Cache::new(cache)?;
    match images.find(GUEST) {
        Ok(guest) if !guest.is_outdated() => Ok(guest),
        _ => {
            say(&format!("building the guest image {GUEST} of Debian packages (once)"));
            build(&images, GUEST, &mut |text| say(text))
                .with_context(|| format!("cannot build the guest image {GUEST}"))
        }
    }
}
