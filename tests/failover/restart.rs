//! Everything dies at once, disk server and all, and is started again on the same data: whatever was
//! acknowledged is there.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use load::Workload;
use load::random::Random;
use lockstep::cluster::{Cluster, Part};
use nix::sys::signal::Signal;

use crate::image;
use crate::load_run::{self, Running};
use crate::machine::{LINUX, MINIKV_ON_KVM, MINIKV_ON_SOFT, Machine};
use crate::support::{generation, in_directory, number, on, shut_down, wait_replicating};

const RUNS: u64 = 3;
const KEYS: u32 = 8;

#[test]
fn everything_killed_and_started_again_has_every_acknowledged_write() {
    restarts("everything_killed_and_started_again_has_every_acknowledged_write", &MINIKV_ON_KVM, RUNS);
}

#[test]
fn minikv_on_soft_killed_and_started_again_has_every_acknowledged_write() {
    restarts("minikv_on_soft_killed_and_started_again_has_every_acknowledged_write", &MINIKV_ON_SOFT, 1);
}

#[test]
fn linux_killed_and_started_again_has_every_acknowledged_write() {
    restarts("linux_killed_and_started_again_has_every_acknowledged_write", &LINUX, 1);
}

fn restarts(name: &str, machine: &Machine, runs: u64) {
    on(machine, name, || {
        (0..runs).try_for_each(|seed| in_directory(|directory| kill_everything(machine, directory, seed)))
    });
}

fn kill_everything(machine: &Machine, directory: &Path, seed: u64) -> anyhow::Result<()> {
    let mut random = Random::new(seed);
    let mut cluster = Cluster::start(machine.options(directory), |_| {})?;
    let change = |workload| Workload { clients: 8, pipeline: 1 + seed as u32, keys: KEYS, ..workload };
    let load = Running::start(&cluster, change, seed)?;
    load.wait_answered(&mut cluster, 500)?;
    // tidy: allow(sleep) a moment of the plan, or between two looks
    std::thread::sleep(Duration::from_millis(random.below(700)));
    // The first death must not be news to anybody who could still act on it.
    let mut parts = [Part::DiskServer, Part::Primary, Part::Backup];
    parts.rotate_left(random.below(3) as usize);
    parts.iter().try_for_each(|part| cluster.signal(*part, Signal::SIGKILL))?;
    parts.iter().try_for_each(|part| cluster.kill(*part))?;
    load.stop();
    cluster.start_disk_server("127.0.0.1:0")?;
    let before = generation(&cluster)?;
    ensure!((1..=2).contains(&before), "generation {before} after one start");
    cluster.start_backup()?;
    cluster.start_primary()?;
    cluster.wait_for_guest()?;
    let mut outcome = load.finish()?;
    load_run::read_again(&cluster, &mut outcome, KEYS)?;
    load_run::judge_cut_off(&outcome)?;
    wait_replicating(&mut cluster, 0)?;
    let status = cluster.status(Part::Primary)?;
    ensure!(number(&status, "/live/generation") == before + 1, "after generation {before}: {status}");
    shut_down(&mut cluster, Part::Primary, seed.is_multiple_of(2))?;
    machine.check_disk(directory, &image::expected(&outcome.history)?)
}
