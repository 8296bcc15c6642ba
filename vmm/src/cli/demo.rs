//! `lockstep demo`: a pair on this machine, a checked load, the plug pulled, and what the clients saw.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use load::{Outcome, Progress, Report, Workload};
use nix::sys::signal::Signal;
use serde::Serialize;
use serde_json::Value;

use crate::cluster::{Cluster, ClusterOptions, Part};
use crate::config::MINIKV;
use crate::engine::EngineKind;
use crate::io::clock::{HostClock, wall_ns};

/// Guests that speak the Redis protocol, as the load does.
pub const GUESTS: [&str; 2] = [MINIKV, "redis"];
/// Something that must not happen happened.
const EXIT_VIOLATION: u8 = 7;

/// Options of `lockstep demo`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  lockstep demo
  lockstep demo --guest redis     # unmodified Linux and redis-server
  lockstep demo --clients 50 --seconds 20 --kill-after 5
  lockstep demo --json | jq .clients.stall_ms
  lockstep demo --keep            # then: redis-cli -p PORT, and kill -9 the primary yourself

Exit codes: 0 all is well, 7 a client saw what must not be (a lost write, a broken connection, a divergence),
1 anything else.")]
pub struct DemoArgs {
    /// Decides the load and the moment of the kill; without it, a new one each time, which is printed.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
    /// Seconds from the start of the load to SIGKILL; without it, a random moment in the middle of the run.
    #[arg(long, value_name = "SECONDS")]
    pub kill_after: Option<f64>,
    /// Client connections.
    #[arg(long, default_value_t = 16)]
    pub clients: u32,
    /// Seconds of load.
    #[arg(long, default_value_t = 6.0)]
    pub seconds: f64,
    /// Leave the pair running, without load or kill, and print how to connect.
    #[arg(long)]
    pub keep: bool,
    /// What happens to the primary: SIGKILL, or SIGSTOP (then it is given up for its silence).
    #[arg(long, default_value = "SIGKILL", value_name = "SIGNAL")]
    pub signal: Signal,
    /// The guest: minikv, which is embedded, or Debian's Linux with Debian's redis, which is built of
    /// packages the first time.
    #[arg(long, default_value = MINIKV, value_parser = GUESTS)]
    pub guest: String,
    /// Engine, as of `lockstep run`.
    #[arg(long, default_value = "auto", env = "LOCKSTEP_ENGINE", value_parser = EngineKind::CHOICES)]
    pub engine: String,
    /// Have the backup read the shared disk itself, as of `lockstep primary`.
    #[arg(long)]
    pub backup_reads: bool,
    /// Directory for disks, logs and control sockets; a temporary one without it.
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
}

impl DemoArgs {
    /// The defaults, without anything printed.
    pub fn quiet() -> Self {
        Self {
            seed: None,
            json: true,
            kill_after: None,
            clients: 16,
            seconds: 6.0,
            keep: false,
            signal: Signal::SIGKILL,
            guest: MINIKV.into(),
            engine: "auto".into(),
            backup_reads: false,
            directory: None,
        }
    }

    /// What both halves of the pair are told about the guest.
    pub fn vm_options(&self) -> Vec<String> {
        ["--guest", &self.guest, "--engine", &self.engine].map(String::from).to_vec()
    }

    /// What the primary alone is told.
    pub fn primary_options(&self) -> Vec<String> {
        if self.backup_reads { vec!["--backup-reads".into()] } else { Vec::new() }
    }
}

/// The steps of the failover, milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Failover {
    /// From SIGKILL until the backup gave the primary up.
    pub detect_ms: f64,
    /// Until it had won the test-and-set.
    pub test_and_set_ms: f64,
    /// Until it had executed every entry it held.
    pub replay_ms: f64,
    /// Until outputs went again.
    pub go_live_ms: f64,
    /// Entries it still had to execute when it gave the primary up.
    pub entries_left: u64,
}

/// Everything that the demo found.
#[derive(Debug, Clone, Serialize)]
pub struct DemoReport {
    /// Repeats the run's decisions.
    pub seed: u64,
    /// When the primary was killed, seconds after the load started.
    pub killed_after_s: f64,
    /// What the clients saw.
    pub clients: Report,
    /// The steps of the failover.
    pub failover: Failover,
    /// Generation after the failover.
    pub generation: u64,
    /// Log bandwidth under this load, Mbit/s.
    pub log_mbit_per_s: f64,
    /// Log bytes per request.
    pub log_bytes_per_request: f64,
    /// Largest execution lag of the backup that was seen, milliseconds.
    pub lag_max_ms: f64,
    /// Outputs whose digests the backup compared.
    pub outputs_compared: u64,
    /// Digests of the whole machine that the backup compared.
    pub digests_compared: u64,
    /// What must not be, a line each.
    pub violations: Vec<String>,
}

/// Runs the command.
pub fn run(args: &DemoArgs) -> anyhow::Result<u8> {
    crate::cli::guest::build_if_missing(&args.guest)?;
    let temporary = match &args.directory {
        None => Some(tempfile::Builder::new().prefix("lockstep-").tempdir()?),
        Some(directory) => {
            host::files::create_dir_all(directory)?;
            None
        }
    };
    let directory = match (&temporary, &args.directory) {
        (Some(temporary), _) => temporary.path().to_path_buf(),
        (None, Some(directory)) => directory.canonicalize()?,
        (None, None) => unreachable!("one of them is there"),
    };
    let mut options = ClusterOptions::new(std::env::current_exe()?, &directory);
    options.die_with_parent = !args.keep;
    options.vm_options = args.vm_options();
    options.primary_options = args.primary_options();
    let say = |text: &str| {
        if !args.json {
            println!("{text}");
        }
    };
    say("A replicated pair on this machine, as four processes: disk server, network, backup, primary.");
    let cluster = Cluster::start(options, |step| say(&format!("  starting {step}")))?;
    if args.keep {
        if let Some(temporary) = temporary {
            let _ = temporary.keep();
        }
        return keep(cluster);
    }
    let seed = args.seed.unwrap_or_else(|| wall_ns() / 1000 % 1_000_000_000);
    let report = pull_the_plug(args, cluster, seed)?;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => print(&report),
    }
    Ok(if report.violations.is_empty() { 0 } else { EXIT_VIOLATION })
}

fn keep(cluster: Cluster) -> anyhow::Result<u8> {
    let (port, directory) = (cluster.port(), cluster.directory().display().to_string());
    let processes = cluster.keep();
    println!("\nThe pair is running. Connect with\n\n    redis-cli -p {port}\n");
    println!(
        "watch it with\n\n    lockstep status --watch 1 {directory}/primary.sock {directory}/backup.sock\n"
    );
    for (name, pid) in &processes {
        match *name {
            "primary" => println!("pull the plug with                  kill -9 {pid}"),
            _ => println!("the {name:<12} is process        {pid}"),
        }
    }
    let pids: Vec<String> = processes.iter().map(|(_, pid)| pid.to_string()).collect();
    println!("\nEnd everything with\n\n    kill {}; rm -r {directory}", pids.join(" "));
    Ok(0)
}

/// Loads the pair, kills the primary, goes on, and judges.
pub fn pull_the_plug(args: &DemoArgs, mut cluster: Cluster, seed: u64) -> anyhow::Result<DemoReport> {
    let length = Duration::from_secs_f64(args.seconds.clamp(0.5, 3600.0));
    let kill_after = match args.kill_after {
        Some(seconds) => Duration::from_secs_f64(seconds.clamp(0.0, length.as_secs_f64())),
        // Somewhere in the middle half.
        None => length.mul_f64(0.25 + 0.5 * (load::random::Random::new(seed).below(1000) as f64 / 1000.0)),
    };
    let address = SocketAddr::from(([127, 0, 0, 1], cluster.port()));
    let log_bytes_at_boot = number(&cluster.status(Part::Primary)?, "/live/log_bytes");
    let workload = Workload { clients: args.clients, ..Workload::new(address, seed) };
    let progress = Arc::new(Progress::default());
    let of_load = progress.clone();
    let running = std::thread::Builder::new()
        .name("load".into())
        .spawn(move || load::workload::run(&workload, &of_load))?;
    let bar = progress_bar(args.json, length);
    let mut lag_max_ns = 0;
    let started_ns = HostClock.now_ns();
    bar.set_message("loading");
    let before = watch(&cluster, Part::Primary, started_ns, kill_after, &progress, &bar, &mut lag_max_ns);
    let fault_ns = HostClock.now_ns();
    let answered_before = progress.answered.load(Ordering::Relaxed);
    match args.signal {
        Signal::SIGKILL => cluster.kill(Part::Primary)?,
        signal => cluster.signal(Part::Primary, signal)?,
    }
    bar.set_message("primary killed");
    watch(&cluster, Part::Backup, started_ns, length, &progress, &bar, &mut lag_max_ns);
    progress.stop.store(true, Ordering::Relaxed);
    let outcome = running.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
    bar.finish_and_clear();
    let after = cluster.status(Part::Backup)?;
    Ok(judge(
        seed,
        &outcome,
        fault_ns,
        started_ns,
        before.as_ref(),
        log_bytes_at_boot,
        answered_before,
        &after,
        lag_max_ns,
        &mut cluster,
    ))
}

#[allow(clippy::cast_possible_truncation, reason = "milliseconds of a demonstration")]
fn progress_bar(quiet: bool, length: Duration) -> ProgressBar {
    let style = ProgressStyle::with_template("  {bar:30} {elapsed:>4} {pos:>9} requests  {msg}");
    let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(length.as_millis() as u64), target);
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Follows the run until `until` after its start. The last status seen.
fn watch(
    cluster: &Cluster,
    part: Part,
    started_ns: u64,
    until: Duration,
    progress: &Progress,
    bar: &ProgressBar,
    lag_max_ns: &mut u64,
) -> Option<Value> {
    const LOOK_EVERY: Duration = Duration::from_millis(100);
    let mut last = None;
    loop {
        let left = until.saturating_sub(Duration::from_nanos(HostClock.now_ns() - started_ns));
        if left.is_zero() {
            return last;
        }
        std::thread::sleep(left.min(LOOK_EVERY));
        bar.set_position((HostClock.now_ns() - started_ns) / 1_000_000);
        bar.set_message(format!("{} answered", progress.answered.load(Ordering::Relaxed)));
        if let Ok(status) = cluster.status(part) {
            *lag_max_ns = (*lag_max_ns).max(number(&status, "/live/lag_ns"));
            last = Some(status);
        }
    }
}

fn number(value: &Value, path: &str) -> u64 {
    value.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

#[allow(clippy::too_many_arguments)]
fn judge(
    seed: u64,
    outcome: &Outcome,
    fault_ns: u64,
    started_ns: u64,
    before: Option<&Value>,
    log_bytes_at_boot: u64,
    answered_before: u64,
    after: &Value,
    lag_max_ns: u64,
    cluster: &mut Cluster,
) -> DemoReport {
    let clients = Report::new(outcome, &load::check(&outcome.history), Some(fault_ns));
    let mut violations = clients.violations.clone();
    let generation = number(after, "/live/generation");
    if generation != 2 || after.get("failover").is_none_or(Value::is_null) {
        violations.push(format!("the backup did not go live under generation 2: {after}"));
    }
    if clients.answered == 0 || number(after, "/backup/outputs") == 0 {
        violations.push("nothing was served or compared: this run shows nothing".into());
    }
    if let Ok(Some(status)) = cluster.ended(Part::Backup) {
        violations.push(format!("the live copy ended: {status}\n{}", cluster.log_tail(Part::Backup)));
    }
    let at = |step: &str| number(after, &format!("/failover/{step}"));
    let ms = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
    let log_bytes = before.map_or(0, |status| number(status, "/live/log_bytes"));
    let log_bytes = log_bytes.saturating_sub(log_bytes_at_boot) as f64;
    let seconds = (fault_ns - started_ns) as f64 / 1e9;
    DemoReport {
        seed,
        killed_after_s: seconds,
        failover: Failover {
            detect_ms: ms(fault_ns, at("suspected_ns")),
            test_and_set_ms: ms(at("suspected_ns"), at("won_ns")),
            replay_ms: ms(at("won_ns"), at("replayed_ns")),
            go_live_ms: ms(at("replayed_ns"), at("live_ns")),
            entries_left: at("entries_left"),
        },
        generation,
        log_mbit_per_s: log_bytes * 8.0 / 1e6 / seconds.max(1e-3),
        log_bytes_per_request: log_bytes / (answered_before.max(1)) as f64,
        lag_max_ms: lag_max_ns as f64 / 1e6,
        outputs_compared: number(after, "/backup/outputs"),
        digests_compared: number(after, "/backup/digests"),
        clients,
        violations,
    }
}

fn print(report: &DemoReport) {
    let DemoReport { clients, failover, .. } = report;
    println!("\nSIGKILL of the primary {:.2} s into the load. What the clients saw:", report.killed_after_s);
    println!("  connections kept           {} of {}", clients.connections_kept, clients.connections);
    println!(
        "  requests answered          {} of {} ({:.0}/s)",
        clients.answered, clients.requests, clients.requests_per_s
    );
    println!("  writes acknowledged        {}", clients.writes);
    println!("  acknowledged writes lost   {}", clients.lost);
    println!("  longest stall              {:.1} ms", clients.stall_ms);
    println!(
        "  latency                    p50 {:.0} µs, p99 {:.0} µs",
        clients.latency.p50_us, clients.latency.p99_us
    );
    println!("\nThe failover:");
    println!("  detect                     {:.2} ms", failover.detect_ms);
    println!(
        "  test-and-set               {:.2} ms  (generation {})",
        failover.test_and_set_ms, report.generation
    );
    println!(
        "  replay                     {:.2} ms  ({} entries left)",
        failover.replay_ms, failover.entries_left
    );
    println!("  go live                    {:.2} ms", failover.go_live_ms);
    if let (Some(first), Some(all)) = (clients.first_answer_ms, clients.all_answered_ms) {
        println!("  first answer after SIGKILL {first:.1} ms, every connection {all:.1} ms");
    }
    println!("\nThe pair before it:");
    println!(
        "  log                        {:.2} Mbit/s, {:.0} bytes a request",
        report.log_mbit_per_s, report.log_bytes_per_request
    );
    println!("  largest execution lag      {:.2} ms", report.lag_max_ms);
    println!(
        "  compared by the backup     {} outputs, {} whole-machine digests, all equal",
        report.outputs_compared, report.digests_compared
    );
    if report.violations.is_empty() {
        println!(
            "\nAll is well. Repeat this run's decisions with --seed {}; look around with --keep.",
            report.seed
        );
    } else {
        println!("\nVIOLATIONS (seed {}):", report.seed);
        report.violations.iter().for_each(|violation| println!("  - {violation}"));
    }
}
