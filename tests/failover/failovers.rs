//! Failovers at random moments, each from a seed: what is done to which half, when, and under which load.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, ensure};
use load::client::Client;
use load::random::Random;
use load::resp::Reply;
use load::{Report, Workload};
use lockstep::cluster::{Cluster, Part};
use lockstep::io::clock::{HostClock, wall_ns};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::guest_time::Watch;
use crate::image;
use crate::load_run::{self, Running, call};
use crate::machine::{Guest, LINUX, LINUX_READS, MINIKV_ON_KVM, MINIKV_ON_SOFT, Machine};
use crate::spin::Spinner;
use crate::summary::{Row, Summary};
use crate::support::{exit_code, generation, in_directory, number, on, one_live_copy, shut_down, wait_alone};

/// After so many failures the rest is not tried.
const MAX_FAILURES: usize = 5;
/// Exit code of a copy that another one replaced.
const EXIT_OTHER_LIVE: i32 = 3;
/// Connections that idle across a fault.
const IDLE_CLIENTS: usize = 4;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// SIGKILL of the primary under load.
    KillPrimary,
    /// SIGKILL of the backup under load: the primary goes on alone.
    KillBackup,
    /// SIGSTOP of the primary under load, and SIGCONT once the backup is live.
    StopPrimary,
    /// SIGSTOP of the backup under load, and SIGCONT once the primary is alone.
    StopBackup,
    /// SIGKILL of the primary before the guest serves.
    Boot,
    /// SIGKILL of the primary while a connection computes.
    Spin,
    /// SIGKILL of the primary while nobody asks anything.
    Idle,
}

impl FromStr for Kind {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let kinds = MINIKV_ON_SOFT.kinds.iter();
        kinds.copied().find(|kind| format!("{kind:?}").eq_ignore_ascii_case(name)).ok_or(())
    }
}

/// One failover, decided.
struct Plan {
    machine: &'static Machine,
    seed: u64,
    kind: Kind,
    clients: u32,
    pipeline: u32,
    random: Random,
}

impl Plan {
    fn new(machine: &'static Machine, seed: u64, kind: Kind) -> Self {
        let mut random = Random::new(seed);
        let (clients, pipeline) = (2 + random.below(11) as u32, 1 + random.below(4) as u32);
        Self { machine, seed, kind, clients, pipeline, random }
    }

    fn up_to(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.random.below(1 << 20) as f64 / f64::from(1 << 20))
    }
}

/// The value of an environment variable.
pub fn variable<T: FromStr>(name: &str, what: &str) -> Option<T> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value}: {what} is needed")))
}

#[test]
fn failovers_of_minikv_on_kvm() {
    failovers(&MINIKV_ON_KVM);
}

#[test]
fn failovers_of_minikv_on_soft() {
    failovers(&MINIKV_ON_SOFT);
}

#[test]
fn failovers_of_linux() {
    failovers(&LINUX);
}

#[test]
fn failovers_of_reading_linux() {
    failovers(&LINUX_READS);
}

fn failovers(machine: &'static Machine) {
    on(machine, &format!("failovers_of_{}", machine.name), || {
        let count = variable("LOCKSTEP_FAILOVERS", "a number").unwrap_or(machine.count);
        let only: Option<Kind> = variable("LOCKSTEP_FAILOVER_KIND", "one of the kinds in failovers.rs");
        // Consecutive starts take the kinds in turn, whatever the clock says.
        let turns = machine.kinds.len() as u64;
        let first: u64 = variable("LOCKSTEP_FAILOVER_SEED", "a number")
            .unwrap_or_else(|| wall_ns() / 1_000_000 % 1_000_000_000 / turns * turns);
        let (mut summary, mut failures) = (Summary::default(), Vec::new());
        for seed in first..first + count {
            let kind = only.unwrap_or(machine.kinds[(seed % turns) as usize]);
            match in_directory(|directory| fail_over(Plan::new(machine, seed, kind), directory)) {
                Ok(row) => {
                    println!("{} seed {seed}: {row}", machine.name);
                    summary.add(row);
                }
                Err(error) => {
                    let again = repeat(machine, seed, only);
                    eprintln!("\nFAILED {kind:?}, seed {seed}: {error:#}\nrepeat it with\n\n    {again}\n");
                    failures.push(seed);
                    if failures.len() >= MAX_FAILURES {
                        break;
                    }
                }
            }
        }
        summary.print(machine.name);
        ensure!(failures.is_empty(), "failed: seeds {failures:?}");
        Ok(())
    });
}

fn repeat(machine: &Machine, seed: u64, only: Option<Kind>) -> String {
    let only = only.map(|kind| format!("LOCKSTEP_FAILOVER_KIND={kind:?} ")).unwrap_or_default();
    format!(
        "{only}LOCKSTEP_FAILOVER_SEED={seed} LOCKSTEP_FAILOVERS=1 cargo test --release -p lockstep \
         --test failover failovers_of_{} -- --nocapture",
        machine.name
    )
}

fn fail_over(plan: Plan, directory: &Path) -> anyhow::Result<Row> {
    match plan.kind {
        Kind::Boot => during_boot(plan, directory),
        Kind::Idle => while_idle(plan, directory),
        _ => under_load(plan, directory),
    }
}

fn start_load(cluster: &Cluster, plan: &Plan) -> anyhow::Result<Running> {
    let change = |workload| Workload { clients: plan.clients, pipeline: plan.pipeline, ..workload };
    Running::start(cluster, change, plan.seed)
}

/// What followed the fault, and who is live now.
struct Fault {
    at_ns: u64,
    survivor: Part,
    status: Value,
}

/// Kinds that are a fault in the middle of a load.
fn under_load(mut plan: Plan, directory: &Path) -> anyhow::Result<Row> {
    let mut cluster = Cluster::start(plan.machine.options(directory), |_| {})?;
    let load = start_load(&cluster, &plan)?;
    load.wait_answered(&mut cluster, u64::from(plan.clients) * 10)?;
    let watch = match plan.machine.guest {
        Guest::Redis => Some(Watch::start(&cluster)?),
        _ => None,
    };
    let spinner = match plan.kind {
        Kind::Spin => Some(Spinner::start(&cluster, plan.machine.guest)?),
        _ => None,
    };
    let most = if spinner.is_some() { Duration::from_millis(300) } else { Duration::from_secs(1) };
    // tidy: allow(sleep) a moment of the plan, or between two looks
    std::thread::sleep(plan.up_to(most));
    let fault = pull(&mut plan, &mut cluster)?;
    load.wait_answered(&mut cluster, u64::from(plan.clients) * 20)?;
    let spin = spinner.map(Spinner::finish).transpose()?;
    // tidy: allow(sleep) a moment of the plan, or between two looks
    std::thread::sleep(plan.up_to(Duration::from_millis(500)));
    let guest_time = watch.map(Watch::finish).transpose()?;
    let outcome = load.finish()?;
    let report = load_run::judge(&outcome, Some(fault.at_ns))?;
    let mut row = Row::new(plan.kind, &report, fault.at_ns, &fault.status);
    row.guest_time = guest_time;
    if let Some(ended_ns) = spin {
        row.missed = ended_ns < fault.at_ns;
    }
    conclude(plan, cluster, fault.survivor, 2, &image::expected(&outcome.history)?)?;
    Ok(row)
}

/// Does to the pair what the plan says, and waits for the survivor to be live alone.
fn pull(plan: &mut Plan, cluster: &mut Cluster) -> anyhow::Result<Fault> {
    let (victim, survivor) = match plan.kind {
        Kind::KillBackup | Kind::StopBackup => (Part::Backup, Part::Primary),
        _ => (Part::Primary, Part::Backup),
    };
    let stop = matches!(plan.kind, Kind::StopPrimary | Kind::StopBackup);
    let at_ns = HostClock.now_ns();
    match stop {
        true => cluster.signal(victim, Signal::SIGSTOP)?,
        false => cluster.kill(victim)?,
    }
    let status = wait_alone(cluster, survivor)?;
    if stop {
        // tidy: allow(sleep) a moment of the plan, or between two looks
        std::thread::sleep(plan.up_to(Duration::from_millis(300)));
        cluster.signal(victim, Signal::SIGCONT)?;
        let code = exit_code(cluster, victim)?;
        ensure!(
            code == EXIT_OTHER_LIVE,
            "{} went on with exit code {code} after its pause:\n{}",
            victim.name(),
            cluster.log_tail(victim)
        );
    }
    if survivor == Part::Backup {
        plan.machine.check_consoles(&cluster.log_text(Part::Primary), &cluster.log_text(Part::Backup))?;
        ensure!(!status["failover"].is_null(), "no failover: {status}");
        ensure!(number(&status, "/backup/outputs") > 0, "the backup compared nothing: {status}");
    }
    Ok(Fault { at_ns, survivor, status })
}

/// One live copy, a clean end, and on the disk exactly what was read last.
fn conclude(
    plan: Plan,
    mut cluster: Cluster,
    survivor: Part,
    generation: u64,
    contents: &image::Contents,
) -> anyhow::Result<()> {
    one_live_copy(&mut cluster, survivor, generation)?;
    end(plan, cluster, survivor, contents)
}

fn end(plan: Plan, mut cluster: Cluster, live: Part, contents: &image::Contents) -> anyhow::Result<()> {
    shut_down(&mut cluster, live, plan.seed.is_multiple_of(2))?;
    for part in [Part::DiskServer, Part::Lan] {
        ensure!(cluster.ended(part)?.is_none(), "{} ended:\n{}", part.name(), cluster.log_tail(part));
    }
    plan.machine.check_disk(cluster.directory(), contents)
}

/// The primary is killed before the guest serves: before it has won a generation, before it has met the
/// backup, or while the guest boots. Either the backup boots on, or nobody is live and a new primary starts.
fn during_boot(mut plan: Plan, directory: &Path) -> anyhow::Result<Row> {
    let mut cluster = Cluster::start_services(plan.machine.options(directory), |_| {})?;
    cluster.start_backup()?;
    cluster.start_primary()?;
    let moments = plan.machine.boot_moments;
    let (line, most_ms) = moments[plan.random.below(moments.len() as u64) as usize];
    if let Some(line) = line {
        let log = cluster.log(Part::Primary);
        cluster.wait(&format!("the primary to say {line:?}"), |_| {
            Ok(std::fs::read_to_string(&log).unwrap_or_default().contains(line))
        })?;
    }
    // tidy: allow(sleep) a moment of the plan, or between two looks
    std::thread::sleep(plan.up_to(Duration::from_millis(most_ms)));
    let at_ns = HostClock.now_ns();
    cluster.kill(Part::Primary)?;
    let told = cluster.log_text(Part::Primary);
    let joined = has_joined(&mut cluster)?;
    let before = generation(&cluster)?;
    ensure!(before <= 2, "generation {before} after one start");
    if !joined {
        ensure!(before < 2, "generation {before}, but nobody but the primary was there");
        cluster.start_primary()?;
    }
    cluster.wait_for_guest()?;
    if joined {
        plan.machine.check_consoles(&told, &cluster.log_text(Part::Backup))?;
    }
    let live = if joined { Part::Backup } else { Part::Primary };
    let status = cluster.status(live)?;
    let due = if joined { 2 } else { before + 1 };
    let found = number(&status, "/live/generation");
    ensure!(found == due, "generation {found} after the boot, {due} is due: {status}");
    let load = start_load(&cluster, &plan)?;
    load.wait_answered(&mut cluster, u64::from(plan.clients) * 20)?;
    let outcome = load.finish()?;
    let report = load_run::judge(&outcome, None)?;
    let mut row = Row::new(plan.kind, &report, at_ns, &status);
    // The clients came later: what they saw says nothing about the fault.
    row.stall_ms = None;
    row.missed = !joined || plan.machine.serves(&told);
    let contents = image::expected(&outcome.history)?;
    match joined {
        true => conclude(plan, cluster, live, due, &contents)?,
        false => end(plan, cluster, live, &contents)?,
    }
    Ok(row)
}

/// Longest that a backup takes to load its guest, once its primary has begun.
const LOADING_TAKES_NS: u64 = 5_000_000_000;

/// Whether the backup has met a primary that is dead now. Once a connection of ours was refused, that one's
/// was taken before, if it was there; one that has begun is followed when the guest is loaded.
fn has_joined(cluster: &mut Cluster) -> anyhow::Result<bool> {
    let address = cluster.backup_address().to_string();
    let Ok(ours) = TcpStream::connect(&address) else { return Ok(true) };
    let name = ours.local_addr()?.to_string();
    drop(ours);
    let log = cluster.log(Part::Backup);
    let (mut joined, mut refused_ns) = (None, None);
    cluster.wait("the backup to refuse a connection or to follow", |_| {
        let (text, now_ns) = (std::fs::read_to_string(&log).unwrap_or_default(), HostClock.now_ns());
        if text.contains("following vm0") {
            joined = Some(true);
        } else if text.contains(&name) && now_ns - *refused_ns.get_or_insert(now_ns) > LOADING_TAKES_NS {
            joined = Some(false);
        }
        Ok(joined.is_some())
    })?;
    joined.context("one of them")
}

/// Connections that were made before the fault, and idle across it, go on after it.
fn while_idle(mut plan: Plan, directory: &Path) -> anyhow::Result<Row> {
    let mut cluster = Cluster::start(plan.machine.options(directory), |_| {})?;
    let address = SocketAddr::from(([127, 0, 0, 1], cluster.port()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let key = |index: usize| format!("idle:{index}").into_bytes();
    let mut clients = runtime.block_on(async {
        let mut clients = Vec::new();
        for index in 0..IDLE_CLIENTS {
            let mut client = Client::connect(address).await?;
            let reply = call(&mut client, &[b"SET", &key(index), b"before"]).await?;
            ensure!(reply == Reply::Simple("OK".into()), "SET answered {reply:?}");
            clients.push(client);
        }
        Ok(clients)
    })?;
    wait_idle(&mut cluster)?;
    // tidy: allow(sleep) a moment of the plan, or between two looks
    std::thread::sleep(plan.up_to(Duration::from_millis(300)));
    let at_ns = HostClock.now_ns();
    cluster.kill(Part::Primary)?;
    let mut contents = BTreeMap::new();
    runtime.block_on(async {
        for (index, client) in clients.iter_mut().enumerate() {
            let reply = call(client, &[b"GETSET", &key(index), b"after"]).await?;
            ensure!(reply == Reply::Bulk(Some(b"before".to_vec())), "GETSET answered {reply:?}");
            contents.insert(key(index), b"after".to_vec());
        }
        Ok(())
    })?;
    let stall_ns = HostClock.now_ns() - at_ns;
    let status = wait_alone(&mut cluster, Part::Backup)?;
    let load = start_load(&cluster, &plan)?;
    load.wait_answered(&mut cluster, u64::from(plan.clients) * 20)?;
    let outcome = load.finish()?;
    let report = Report { stall_ms: stall_ns as f64 / 1e6, ..load_run::judge(&outcome, None)? };
    let row = Row::new(plan.kind, &report, at_ns, &status);
    contents.extend(image::expected(&outcome.history)?);
    conclude(plan, cluster, Part::Backup, 2, &contents)?;
    Ok(row)
}

/// Waits until the guest has sent nothing for a while.
fn wait_idle(cluster: &mut Cluster) -> anyhow::Result<()> {
    const LONG_ENOUGH_NS: u64 = 100_000_000;
    let (mut last, mut since_ns) = (0, 0);
    cluster.wait("the guest to idle", |cluster| {
        let frames = number(&cluster.status(Part::Primary)?, "/live/egress/frames");
        ensure!(frames > 0, "a guest that serves has sent frames");
        if frames != last {
            (last, since_ns) = (frames, HostClock.now_ns());
        }
        Ok(HostClock.now_ns() - since_ns > LONG_ENOUGH_NS)
    })
}
