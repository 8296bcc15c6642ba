//! Debian's own clients: redis-cli says what it says to Redis, redis-benchmark does not notice a failover.

use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use lockstep::cluster::{Cluster, Part};

use crate::failovers::variable;
use crate::machine::{LINUX, MINIKV_ON_KVM, Machine};
use crate::support::{case, number, on, one_live_copy, shut_down, wait_alone};
use crate::tools::{Tool, have, until_disturbed};

/// Debian's package of both.
const REDIS_TOOLS: &str = "redis-tools";

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

fn redis_cli(port: u16, command: &str) -> anyhow::Result<String> {
    let output =
        Command::new("redis-cli").args(["-p", &port.to_string()]).args(command.split(' ')).output()?;
    ensure!(output.status.success(), "redis-cli {command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim_end_matches('\n').to_string())
}

#[test]
fn redis_cli_is_answered_as_by_redis_before_and_after_a_failover() {
    const NAME: &str = "redis_cli_is_answered_as_by_redis_before_and_after_a_failover";
    if !have("redis-cli", REDIS_TOOLS, NAME) {
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

/// redis-benchmark under way.
struct Benchmark {
    tool: Tool,
    results: &'static [&'static str],
}

/// What it is asked to do: requests of each kind, and the kinds as it names them.
struct Task {
    arguments: Vec<String>,
    results: &'static [&'static str],
}

impl Task {
    /// Batches of 16, as fast as it goes.
    fn batches() -> Self {
        let arguments = ["-t", "set,get", "-n", "100000", "-c", "50", "-P", "16"];
        Self { arguments: arguments.map(String::from).to_vec(), results: &["SET: ", "GET: "] }
    }

    /// So many requests of each kind, one by one on each connection.
    fn single(requests: u64) -> Self {
        let arguments = ["-t", "set,get,incr,lpush", "-n", &requests.to_string(), "-c", "50"];
        let results = &["SET: ", "GET: ", "INCR: ", "LPUSH: "];
        Self { arguments: arguments.map(String::from).to_vec(), results }
    }
}

impl Benchmark {
    fn start(cluster: &Cluster, task: &Task) -> anyhow::Result<Self> {
        let mut arguments = ["-p", &cluster.port().to_string(), "-q"].map(String::from).to_vec();
        arguments.extend(task.arguments.iter().cloned());
        let tool = Tool::start(cluster, "benchmark", "redis-benchmark", &arguments)?;
        Ok(Self { tool, results: task.results })
    }

    /// Waits for its normal end, with every result. The results.
    fn finish(self, cluster: &mut Cluster) -> anyhow::Result<Vec<String>> {
        let said = self.tool.finish(cluster)?;
        let results: Vec<String> =
            said.lines().filter(|line| line.contains("requests per second")).map(str::to_string).collect();
        let of = |test: &str| results.iter().filter(|line| line.starts_with(test)).count();
        ensure!(self.results.iter().all(|test| of(test) == 1), "not one result each:\n{said}");
        Ok(results)
    }
}

#[test]
fn redis_benchmark_runs_through_a_pair() {
    const NAME: &str = "redis_benchmark_runs_through_a_pair";
    if !have("redis-benchmark", REDIS_TOOLS, NAME) {
        return;
    }
    case(NAME, &MINIKV_ON_KVM, |directory| {
        let mut cluster = Cluster::start(MINIKV_ON_KVM.options(directory), |_| {})?;
        let results = Benchmark::start(&cluster, &Task::batches())?.finish(&mut cluster)?;
        println!("{}", results.join("\n"));
        shut_down(&mut cluster, Part::Primary, true)
    });
}

#[test]
fn redis_benchmark_does_not_notice_a_failover() {
    const NAME: &str = "redis_benchmark_does_not_notice_a_failover";
    if !have("redis-benchmark", REDIS_TOOLS, NAME) {
        return;
    }
    // Early and late: its 200000 requests in batches of 16 are at least 12500 frames.
    on(&MINIKV_ON_KVM, NAME, || {
        for frames in [2000, 8000] {
            kill_one_in_the_middle(&MINIKV_ON_KVM, &Task::batches(), frames)?;
        }
        Ok(())
    });
}

#[test]
fn redis_benchmark_of_linux_does_not_notice_a_failover() {
    const NAME: &str = "redis_benchmark_of_linux_does_not_notice_a_failover";
    if !have("redis-benchmark", REDIS_TOOLS, NAME) {
        return;
    }
    let requests = variable("LOCKSTEP_BENCHMARK_REQUESTS", "a number").unwrap_or(1000);
    // Four kinds of requests, an answer in a frame each: half of them is in the middle.
    on(&LINUX, NAME, || kill_one_in_the_middle(&LINUX, &Task::single(requests), requests * 2));
}

fn kill_one_in_the_middle(machine: &Machine, task: &Task, frames: u64) -> anyhow::Result<()> {
    until_disturbed(|directory| kill_in_the_middle(machine, task, directory, frames))
}

/// Whether the benchmark was still running when the primary was killed.
fn kill_in_the_middle(machine: &Machine, task: &Task, directory: &Path, frames: u64) -> anyhow::Result<bool> {
    let mut cluster = Cluster::start(machine.options(directory), |_| {})?;
    let mut benchmark = Benchmark::start(&cluster, task)?;
    cluster.wait("the middle of the benchmark", |cluster| {
        Ok(number(&cluster.status(Part::Primary)?, "/live/egress/frames") > frames)
    })?;
    cluster.kill(Part::Primary)?;
    let in_time = benchmark.tool.runs()?;
    let results = benchmark.finish(&mut cluster)?;
    println!("{} killed after {frames} frames: {}", machine.name, results.join("; "));
    wait_alone(&mut cluster, Part::Backup)?;
    one_live_copy(&mut cluster, Part::Backup, 2)?;
    shut_down(&mut cluster, Part::Backup, true)?;
    Ok(in_time)
}
