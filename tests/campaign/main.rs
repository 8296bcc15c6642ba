//! A campaign of failovers: one machine after the other as a pair on hosts of its own (network namespaces),
//! one fault after the other under a checked load, and after each the pair gets its redundancy back, as an
//! operator would see to it.
//!
//! After each round: exactly one live copy, every acknowledged write there, nothing done twice, connections
//! kept where the service did not end, answers within 60 s of the fault's end, redundancy. The kinds of
//! faults are in `kinds.rs`. By default ten rounds of minikv on the fastest engine, less than a minute. A
//! long one:
//!
//! ```text
//!   LOCKSTEP_CAMPAIGN_FAILOVERS=500 cargo test --release -p lockstep --test campaign -- --nocapture
//! ```
//!
//! | variable: LOCKSTEP_CAMPAIGN_… | |
//! |---|---|
//! | `FAILOVERS` | until there were so many: minikv on the fastest engine and on `soft`, redis, in turn |
//! | `ROUNDS` | so many rounds |
//! | `SEED` | the first seed; consecutive seeds take the kinds in turn |
//! | `KIND` | that kind alone |
//! | `WITHOUT` | kinds that are left out, with commas between |
//! | `MACHINE` | that machine alone: `minikv`, `soft`, `redis` |
//! | `PROGRAM` | another build of `lockstep` |
//!
//! A round that fails says how to repeat it, and its directory with the logs is kept. It needs root, for the
//! namespaces and for the small file system of the disks, and iproute2.

mod clients;
mod faults;
#[path = "../hosts/mod.rs"]
mod hosts;
mod kinds;
mod looking;
mod round;
mod site;
mod summary;

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, ensure};
use lockstep::io::clock::{HostClock, wall_ns};
use tempfile::TempDir;

use crate::clients::Ledger;
use crate::kinds::{Kind, MINIKV, Machine, Plan, TURNS};
use crate::site::{A, B, Site};
use crate::summary::Summary;

/// Rounds of a short campaign.
const SHORT: u64 = 10;
/// After so many failed rounds the rest is not tried.
const MAX_FAILURES: usize = 20;

/// The value of an environment variable.
fn variable<T: FromStr>(name: &str, what: &str) -> Option<T> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value}: {what} is needed")))
}

fn without() -> Vec<Kind> {
    let names: String = variable("LOCKSTEP_CAMPAIGN_WITHOUT", "kinds").unwrap_or_default();
    let names = names.split(',').filter(|name| !name.is_empty());
    names.map(|name| name.parse().unwrap_or_else(|()| panic!("{name:?} is no kind of kinds.rs"))).collect()
}

/// What was asked for.
struct Asked {
    failovers: Option<u64>,
    rounds: Option<u64>,
    first: u64,
    kind: Option<Kind>,
    without: Vec<Kind>,
    machine: Option<&'static Machine>,
}

impl Asked {
    fn of_environment() -> Self {
        let turns = TURNS.len() as u64;
        let seed = variable("LOCKSTEP_CAMPAIGN_SEED", "a number");
        Self {
            failovers: variable("LOCKSTEP_CAMPAIGN_FAILOVERS", "a number"),
            rounds: variable("LOCKSTEP_CAMPAIGN_ROUNDS", "a number"),
            first: seed.unwrap_or_else(|| wall_ns() / 1_000_000 % 1_000_000_000 / turns * turns),
            kind: variable("LOCKSTEP_CAMPAIGN_KIND", "one of the kinds in kinds.rs"),
            without: without(),
            machine: variable("LOCKSTEP_CAMPAIGN_MACHINE", "minikv, soft or redis"),
        }
    }

    fn machine(&self, seed: u64) -> &'static Machine {
        match self.failovers {
            _ if self.machine.is_some() => self.machine.unwrap_or(&MINIKV),
            Some(_) => Machine::of(seed),
            None => &MINIKV,
        }
    }

    fn kind(&self, seed: u64) -> Kind {
        self.kind.unwrap_or(TURNS[(seed % TURNS.len() as u64) as usize])
    }

    fn is_done(&self, rounds: u64, failovers: u64) -> bool {
        match (self.rounds, self.failovers) {
            (Some(most), _) => rounds >= most,
            (None, Some(most)) => failovers >= most || rounds >= 20 * most,
            (None, None) => rounds >= SHORT,
        }
    }

    fn again(&self, machine: &Machine, seed: u64) -> String {
        let kind = self.kind(seed);
        format!(
            "LOCKSTEP_CAMPAIGN_KIND={kind:?} LOCKSTEP_CAMPAIGN_SEED={seed} LOCKSTEP_CAMPAIGN_MACHINE={} \
             LOCKSTEP_CAMPAIGN_ROUNDS=1 cargo test --release -p lockstep --test campaign -- --nocapture",
            machine.name
        )
    }
}

/// A machine under campaign, and what it must still know at its end.
struct Theatre {
    // Dropped before its directory.
    site: Site,
    ledger: Ledger,
    directory: TempDir,
}

impl Theatre {
    fn new(machine: &'static Machine) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("lockstep-campaign-").tempdir()?;
        let mut site = Site::new(machine, directory.path())?;
        site.start_pair(A, B)?;
        clients::fill(site.port)?;
        site.protect()?;
        Ok(Self { site, ledger: Ledger::default(), directory })
    }

    /// Whatever was noted is there, also when the machine has booted from its disk.
    fn end(mut self) -> anyhow::Result<()> {
        self.ledger.check(self.site.port)?;
        self.site.cold_start(&mut Plan::new(0, Kind::KillBoth))?;
        self.ledger.check(self.site.port)?;
        self.site.complaint()
    }

    /// Ends the processes and keeps the logs.
    fn keep(self) -> PathBuf {
        drop(self.site);
        self.directory.keep()
    }
}

/// Why there is no campaign here, if so.
fn absent() -> Option<String> {
    let hosts = hosts::Hosts::new(&["a"]).err();
    let tool = hosts::run("mount --version").err();
    hosts.or(tool).map(|error| format!("{error:#}"))
}

#[test]
fn campaign() {
    if let Some(why) = absent() {
        eprintln!("SKIPPED campaign: {why}");
        return;
    }
    let asked = Asked::of_environment();
    let mut summary = Summary::default();
    let started_ns = HostClock.now_ns();
    let result = rounds(&asked, &mut summary);
    summary.print();
    println!("{:.0} s", (HostClock.now_ns() - started_ns) as f64 / 1e9);
    if let Err(error) = result {
        panic!("{error:#}");
    }
}

fn rounds(asked: &Asked, summary: &mut Summary) -> anyhow::Result<()> {
    let mut theatre: Option<Theatre> = None;
    let (mut seed, mut rounds) = (asked.first, 0);
    let mut skipped = 0u64;
    while !asked.is_done(rounds, summary.failovers()) && summary.failed() < MAX_FAILURES {
        let (machine, kind) = (asked.machine(seed), asked.kind(seed));
        if machine.can(kind) && !asked.without.contains(&kind) {
            if theatre.as_ref().is_some_and(|theatre| !std::ptr::eq(theatre.site.machine, machine)) {
                theatre.take().map_or(Ok(()), Theatre::end)?;
            }
            let mut now = match theatre.take() {
                Some(now) => now,
                None => start(machine)?,
            };
            let mut plan = Plan::new(seed, kind);
            match round::round(&mut plan, &mut now.site, &mut now.ledger) {
                Ok(row) => {
                    println!("{} seed {seed}: {row}", machine.name);
                    summary.add(row);
                    theatre = Some(now);
                }
                Err(error) => {
                    summary.fail(kind, &error);
                    let (again, kept) = (asked.again(machine, seed), now.keep());
                    let kept = kept.display();
                    println!(
                        "FAILED {} seed {seed}: {error:#}\nlogs are in {kept}; repeat it with\n    {again}\n",
                        machine.name
                    );
                }
            }
            rounds += 1;
        } else {
            skipped += 1;
            ensure!(asked.kind.is_none(), "{kind:?} cannot be done to {} in this build", machine.name);
        }
        seed += 1;
    }
    if skipped > 0 {
        println!("{skipped} rounds left out: not possible with the machine or this build, or not wanted");
    }
    theatre.map_or(Ok(()), Theatre::end)?;
    ensure!(summary.failed() == 0, "{} rounds failed", summary.failed());
    Ok(())
}

fn start(machine: &'static Machine) -> anyhow::Result<Theatre> {
    lockstep::cli::guest::build_if_missing(machine.guest)?;
    Theatre::new(machine).with_context(|| format!("{} does not start", machine.name))
}
