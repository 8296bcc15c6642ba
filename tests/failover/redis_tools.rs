//! Debian's own clients: redis-cli says what it says to Redis, redis-benchmark does not notice a failover.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};
use lockstep::cluster::{Cluster, Part};

use crate::machine::MINIKV_ON_KVM;
use crate::support::{case, in_directory, number, on, one_live_copy, shut_down, wait_alone};

/// Runs until the benchmark is disturbed in time.
const MAX_ATTEMPTS: u32 = 3;

/// Commands and what redis-cli prints for them.
const COMMANDS: [(&str, &str); 16] = [
    ("PING", "PONG"),
    ("SET greeting hello", "OK"),
    ("GET greeting", "hello"),
    ("APPEND greeting ,world", "11"),
    ("STRLEN greeting", "11"),
    ("GET greeting", "hello,world"),
    ("INCR n", "1"),
    ("INCRBY n 41", "42"),
    ("DECR n", "41"),
    ("EXISTS greeting n nothing", "2"),
    ("MSET a 1 b 2", "OK"),
    ("MGET a nothing b", "1\n\n2"),
    ("DEL a b nothing", "2"),
    ("DBSIZE", "2"),
    ("GET nothing", ""),
    ("INCR greeting", "ERR value is not an integer or out of range"),
];

/// Whether `tool` is there; says so loudly if not.
fn have(tool: &str, test: &str) -> bool {
    let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    if !found {
        eprintln!("SKIPPED {test}: no {tool} here: apt-get install redis-tools");
    }
    found
}

fn redis_cli(port: u16, command: &str) -> anyhow::Result<String> {
    let output =
        Command::new("redis-cli").args(["-p", &port.to_string()]).args(command.split(' ')).output()?;
    ensure!(output.status.success(), "redis-cli {command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim_end_matches('\n').to_string())
}

#[test]
fn redis_cli_is_answered_as_by_redis_before_and_after_a_failover() {
    const NAME: &str = "redis_cli_is_answered_as_by_redis_before_and_after_a_failover";
    if !have("redis-cli", NAME) {
        return;
    }
    case(NAME, &MINIKV_ON_KVM, |directory| {
        let mut cluster = Cluster::start(MINIKV_ON_KVM.options(directory), |_| {})?;
        for (command, expected) in COMMANDS {
            let found = redis_cli(cluster.port(), command)?;
            ensure!(found == expected, "{command}: {found:?}, not {expected:?}");
        }
        cluster.kill(Part::Primary)?;
        for (command, expected) in [("GET greeting", "hello,world"), ("GET n", "41"), ("DBSIZE", "2")] {
            let found = redis_cli(cluster.port(), command)?;
            ensure!(found == expected, "{command} after the failover: {found:?}, not {expected:?}");
        }
        one_live_copy(&mut cluster, Part::Backup, 2)?;
        shut_down(&mut cluster, Part::Backup, true)
    });
}

/// redis-benchmark under way, its output in a file.
struct Benchmark {
    child: Child,
    directory: std::path::PathBuf,
}

impl Benchmark {
    fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let directory = cluster.directory().to_path_buf();
        let child = Command::new("redis-benchmark")
            .args(["-p", &cluster.port().to_string()])
            .args(["-t", "set,get", "-n", "100000", "-c", "50", "-P", "16", "-q"])
            .stdin(Stdio::null())
            .stdout(File::create(directory.join("benchmark.out"))?)
            .stderr(File::create(directory.join("benchmark.err"))?)
            .spawn()?;
        Ok(Self { child, directory })
    }

    /// Waits for its normal end: exit code 0, both results, no error. The results.
    fn finish(mut self, cluster: &mut Cluster) -> anyhow::Result<Vec<String>> {
        let mut status = None;
        let waited = cluster.wait("redis-benchmark", |_| {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        });
        let out = std::fs::read_to_string(self.directory.join("benchmark.out"))?;
        let err = std::fs::read_to_string(self.directory.join("benchmark.err"))?;
        let said = format!("{}\n{err}", out.replace('\r', "\n"));
        waited.with_context(|| said.clone())?;
        let status = status.context("it ended")?;
        ensure!(status.success() && !said.to_lowercase().contains("error"), "{status}:\n{said}");
        let results: Vec<String> =
            said.lines().filter(|line| line.contains("requests per second")).map(str::to_string).collect();
        let of = |test: &str| results.iter().filter(|line| line.starts_with(test)).count();
        ensure!(of("SET: ") == 1 && of("GET: ") == 1, "not one result each:\n{said}");
        Ok(results)
    }
}

impl Drop for Benchmark {
    fn drop(&mut self) {
        // Not if it ended: it was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn redis_benchmark_runs_through_a_pair() {
    const NAME: &str = "redis_benchmark_runs_through_a_pair";
    if !have("redis-benchmark", NAME) {
        return;
    }
    case(NAME, &MINIKV_ON_KVM, |directory| {
        let mut cluster = Cluster::start(MINIKV_ON_KVM.options(directory), |_| {})?;
        let results = Benchmark::start(&cluster)?.finish(&mut cluster)?;
        println!("{}", results.join("\n"));
        shut_down(&mut cluster, Part::Primary, true)
    });
}

#[test]
fn redis_benchmark_does_not_notice_a_failover() {
    const NAME: &str = "redis_benchmark_does_not_notice_a_failover";
    if !have("redis-benchmark", NAME) {
        return;
    }
    // Early and late: its 200000 requests in batches of 16 are at least 12500 frames.
    on(&MINIKV_ON_KVM, NAME, || {
        for frames in [2000, 8000] {
            // A host that pauses this test for long enough lets the benchmark end first.
            let mut attempts = 0..MAX_ATTEMPTS;
            let killed = attempts.try_fold(false, |killed, _| match killed {
                true => Ok(true),
                false => in_directory(|directory| kill_in_the_middle(directory, frames)),
            })?;
            ensure!(killed, "redis-benchmark ended {MAX_ATTEMPTS} times before it could be disturbed");
        }
        Ok(())
    });
}

/// Whether the benchmark was still running when the primary was killed.
fn kill_in_the_middle(directory: &Path, frames: u64) -> anyhow::Result<bool> {
    let mut cluster = Cluster::start(MINIKV_ON_KVM.options(directory), |_| {})?;
    let mut benchmark = Benchmark::start(&cluster)?;
    cluster.wait("the middle of the benchmark", |cluster| {
        Ok(number(&cluster.status(Part::Primary)?, "/live/outside/frames") > frames)
    })?;
    cluster.kill(Part::Primary)?;
    let in_time = benchmark.child.try_wait()?.is_none();
    let results = benchmark.finish(&mut cluster)?;
    println!("killed after {frames} frames: {}", results.join("; "));
    wait_alone(&mut cluster, Part::Backup)?;
    one_live_copy(&mut cluster, Part::Backup, 2)?;
    shut_down(&mut cluster, Part::Backup, true)?;
    Ok(in_time)
}
