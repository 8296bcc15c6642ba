//! Redundancy comes back: a machine that runs alone gets a new backup by state transfer, while its clients go
//! on.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use load::Workload;
use lockstep::cluster::{Cluster, Part};
use lockstep::io::clock::HostClock;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::image;
use crate::load_run::{self, Running};
use crate::machine::{LINUX, MINIKV_ON_KVM, MINIKV_ON_SOFT, Machine};
use crate::proxy::{Act, Proxy};
use crate::support::{
    case, exit_code, generation, number, one_live_copy, shut_down, text, until, wait_alone, wait_replicating,
};

/// How often the live copy is killed after it got a new backup.
const ROUNDS: u64 = 3;
/// Digests of the whole machine that each backup compares before it is needed.
const DIGESTS: u64 = 3;
const CLIENTS: u32 = 6;
const KEYS: u32 = 8;
/// Bytes of a transfer after which something happens to it: far into its pages, far before its end.
const MIDDLE: u64 = 2 << 20;

fn start_load(cluster: &Cluster, seed: u64) -> anyhow::Result<Running> {
    let change = |workload| Workload { clients: CLIENTS, pipeline: 2, keys: KEYS, ..workload };
    Running::start(cluster, change, seed)
}

/// `lockstep replicate`, as a person would.
pub fn replicate(cluster: &Cluster, to: &str) -> anyhow::Result<()> {
    let socket = cluster.control(Part::Primary);
    let program = env!("CARGO_BIN_EXE_lockstep");
    let output = Command::new(program).arg("replicate").arg(socket).args(["--to", to]).output()?;
    ensure!(output.status.success(), "replicate: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The live copy dies, its backup is live under `generation`, and answers.
fn fail_over(cluster: &mut Cluster, load: &Running, generation: u64) -> anyhow::Result<()> {
    cluster.kill(Part::Primary)?;
    wait_alone(cluster, Part::Backup)?;
    one_live_copy(cluster, Part::Backup, generation)?;
    cluster.promote_backup()?;
    load.wait_answered(cluster, u64::from(CLIENTS) * 50)
}

fn finish(machine: &Machine, mut cluster: Cluster, load: Running, directory: &Path) -> anyhow::Result<()> {
    let outcome = load.finish()?;
    load_run::judge(&outcome, None)?;
    shut_down(&mut cluster, Part::Primary, false)?;
    machine.check_disk(directory, &image::expected(&outcome.history)?)
}

#[test]
fn a_new_backup_takes_over_round_after_round() {
    case("a_new_backup_takes_over_round_after_round", &MINIKV_ON_KVM, |directory| {
        rounds(&MINIKV_ON_KVM, directory, ROUNDS)
    });
}

#[test]
fn a_new_backup_of_minikv_on_soft_takes_over() {
    case("a_new_backup_of_minikv_on_soft_takes_over", &MINIKV_ON_SOFT, |directory| {
        rounds(&MINIKV_ON_SOFT, directory, 2)
    });
}

#[test]
fn a_new_backup_of_linux_takes_over() {
    case("a_new_backup_of_linux_takes_over", &LINUX, |directory| rounds(&LINUX, directory, 1));
}

/// A failover, then so many times a new backup and another failover, all under one load.
fn rounds(machine: &Machine, directory: &Path, rounds: u64) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(machine.options(directory), |_| {})?;
    let load = start_load(&cluster, 1)?;
    load.wait_answered(&mut cluster, u64::from(CLIENTS) * 50)?;
    wait_replicating(&mut cluster, DIGESTS)?;
    fail_over(&mut cluster, &load, 2)?;
    for round in 0..rounds {
        cluster.start_backup()?;
        replicate(&cluster, cluster.backup_address())?;
        let backup = wait_replicating(&mut cluster, DIGESTS)?;
        ensure!(number(&backup, "/backup/outputs") > 0, "it compared no outputs: {backup}");
        println!(
            "{} round {round}: {} outputs and {} digests compared",
            machine.name,
            number(&backup, "/backup/outputs"),
            number(&backup, "/backup/digests")
        );
        fail_over(&mut cluster, &load, 3 + round)?;
    }
    finish(machine, cluster, load, directory)
}

/// The primary dies; the backup goes live and gets a backup by state transfer.
pub fn replace_primary(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.kill(Part::Primary)?;
    wait_alone(cluster, Part::Backup)?;
    cluster.promote_backup()?;
    cluster.start_backup()?;
    replicate(cluster, cluster.backup_address())?;
    wait_replicating(cluster, 0)?;
    Ok(())
}

#[test]
fn a_new_backup_of_a_machine_without_work_lives_on_heartbeats() {
    case("a_new_backup_of_a_machine_without_work_lives_on_heartbeats", &MINIKV_ON_KVM, |directory| {
        let mut options = MINIKV_ON_KVM.options(directory);
        options.pair_options = vec!["--timeout-ms".into(), "1000".into()];
        let mut cluster = Cluster::start(options, |_| {})?;
        replace_primary(&mut cluster)?;
        // Three times the timeout: nothing but heartbeats says that the other half is there.
        let end = HostClock.now_ns() + 3_000_000_000;
        cluster.wait("the pair to outlast its timeout", |cluster| {
            let primary = cluster.status(Part::Primary)?;
            let backup = cluster.status(Part::Backup)?;
            let together = text(&primary, "/live/state") == "Replicating"
                && text(&backup, "/backup/state") == "Following";
            ensure!(together, "they lost each other: {primary}\n{backup}");
            Ok(HostClock.now_ns() >= end)
        })?;
        cluster.kill(Part::Primary)?;
        cluster.wait_for_guest()?;
        one_live_copy(&mut cluster, Part::Backup, 3)?;
        shut_down(&mut cluster, Part::Backup, true)
    });
}

/// A machine alone, whose memory holds much that does not compress, and its load.
fn alone(directory: &Path, seed: u64) -> anyhow::Result<(Cluster, Running, image::Contents)> {
    let mut cluster = Cluster::start(MINIKV_ON_KVM.options(directory), |_| {})?;
    let filling = load_run::fill(&cluster, seed)?;
    let load = start_load(&cluster, seed)?;
    load.wait_answered(&mut cluster, u64::from(CLIENTS) * 20)?;
    fail_over(&mut cluster, &load, 2)?;
    Ok((cluster, load, filling))
}

/// Begins a transfer to a new backup, in the middle of which `part` gets a signal. If it is one that stops
/// it, the way to the backup is blocked too, whatever the sockets' buffers could still take.
fn transfer(cluster: &mut Cluster, part: Part, signal: Signal) -> anyhow::Result<Proxy> {
    cluster.start_backup()?;
    let pid = Pid::from_raw(cluster.pid(part).context("it runs")? as i32);
    let act: Act = Box::new(move || kill(pid, signal).expect("a process of ours"));
    let proxy = Proxy::start(cluster.backup_address(), MIDDLE, signal == Signal::SIGSTOP, act)?;
    replicate(cluster, &proxy.address())?;
    until("the middle of the transfer", || Ok(proxy.acted()))?;
    Ok(proxy)
}

/// After a transfer that failed: the same machine, still alone, gets another backup, which takes over.
fn another_one(
    mut cluster: Cluster,
    load: Running,
    filling: image::Contents,
    directory: &Path,
) -> anyhow::Result<()> {
    wait_alone(&mut cluster, Part::Primary)?;
    one_live_copy(&mut cluster, Part::Primary, 2)?;
    load.wait_answered(&mut cluster, u64::from(CLIENTS) * 50)?;
    cluster.start_backup()?;
    replicate(&cluster, cluster.backup_address())?;
    wait_replicating(&mut cluster, DIGESTS)?;
    fail_over(&mut cluster, &load, 3)?;
    let outcome = load.finish()?;
    load_run::judge(&outcome, None)?;
    shut_down(&mut cluster, Part::Primary, false)?;
    let mut contents = image::expected(&outcome.history)?;
    contents.extend(filling);
    MINIKV_ON_KVM.check_disk(directory, &contents)
}

#[test]
fn a_backup_that_dies_in_the_middle_of_its_transfer_leaves_the_live_copy_alone() {
    case(
        "a_backup_that_dies_in_the_middle_of_its_transfer_leaves_the_live_copy_alone",
        &MINIKV_ON_KVM,
        |directory| {
            let (mut cluster, load, filling) = alone(directory, 2)?;
            transfer(&mut cluster, Part::Backup, Signal::SIGKILL)?;
            cluster.kill(Part::Backup)?;
            another_one(cluster, load, filling, directory)
        },
    );
}

#[test]
fn a_backup_that_hangs_in_the_middle_of_its_transfer_does_not_hang_the_live_copy() {
    case(
        "a_backup_that_hangs_in_the_middle_of_its_transfer_does_not_hang_the_live_copy",
        &MINIKV_ON_KVM,
        |directory| {
            let (mut cluster, load, filling) = alone(directory, 3)?;
            let mut proxy = transfer(&mut cluster, Part::Backup, Signal::SIGSTOP)?;
            load.wait_answered(&mut cluster, u64::from(CLIENTS) * 100)?;
            wait_alone(&mut cluster, Part::Primary)?;
            cluster.signal(Part::Backup, Signal::SIGCONT)?;
            proxy.release();
            let code = exit_code(&mut cluster, Part::Backup)?;
            ensure!(code == 1, "a backup without a machine ended with {code}");
            another_one(cluster, load, filling, directory)
        },
    );
}

#[test]
fn a_live_copy_that_dies_in_the_middle_of_a_transfer_leaves_no_copy_but_all_data() {
    case(
        "a_live_copy_that_dies_in_the_middle_of_a_transfer_leaves_no_copy_but_all_data",
        &MINIKV_ON_KVM,
        |directory| {
            let (mut cluster, load, filling) = alone(directory, 4)?;
            transfer(&mut cluster, Part::Primary, Signal::SIGKILL)?;
            cluster.kill(Part::Primary)?;
            let code = exit_code(&mut cluster, Part::Backup)?;
            ensure!(code == 1, "a backup without a machine ended with {code}");
            ensure!(generation(&cluster)? == 2, "somebody won generation {}", generation(&cluster)?);
            load.stop();
            cluster.start_backup()?;
            cluster.start_primary()?;
            cluster.wait_for_guest()?;
            ensure!(generation(&cluster)? == 3, "generation {} after the restart", generation(&cluster)?);
            let mut outcome = load.finish()?;
            load_run::read_again(&cluster, &mut outcome, KEYS)?;
            load_run::judge_cut_off(&outcome)?;
            shut_down(&mut cluster, Part::Primary, true)?;
            let mut contents = image::expected(&outcome.history)?;
            contents.extend(filling);
            MINIKV_ON_KVM.check_disk(directory, &contents)
        },
    );
}
