//! What every test here needs: one cluster at a time, in a directory that a failure keeps, and what must hold
//! of any run.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use disk_server::client::DiskClient;
use lockstep::cluster::{Cluster, Part};
use lockstep::io::clock::HostClock;
use lockstep::io::control;
use serde_json::Value;

use crate::machine::Machine;

/// The machine's name at the disk server, as by default.
const VM: &str = "vm0";

/// Whole pairs compete for the processors: one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Longest wait of this module's own, and least of a cluster's.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a test with a directory of its own, if this host can run the machine.
pub fn case(name: &str, machine: &Machine, body: impl FnOnce(&Path) -> anyhow::Result<()>) {
    on(machine, name, || in_directory(body));
}

/// Runs a test if this host can run the machine.
pub fn on(machine: &Machine, name: &str, body: impl FnOnce() -> anyhow::Result<()>) {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(why) = machine.absent() {
        eprintln!("SKIPPED {name}: {why}");
        return;
    }
    if let Err(error) = body() {
        panic!("{name}: {error:#}");
    }
}

/// Runs `body` in a new directory, which is kept unless all is well.
pub fn in_directory<T>(body: impl FnOnce(&Path) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let directory = Kept(Some(tempfile::Builder::new().prefix("lockstep-failover-").tempdir()?));
    let path = directory.path().to_path_buf();
    let result = body(&path).and_then(|found| no_complaints(&path).map(|()| found));
    if result.is_ok() {
        directory.remove();
    }
    result.with_context(|| format!("disk and logs are in {}", path.display()))
}

/// A directory that stays, also after a panic, unless it is removed.
struct Kept(Option<tempfile::TempDir>);

impl Kept {
    fn path(&self) -> &Path {
        self.0.as_ref().expect("not removed yet").path()
    }

    fn remove(mut self) {
        self.0 = None;
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(directory) = self.0.take() {
            let _ = directory.keep();
        }
    }
}

/// No process panicked, diverged, or logged an error of the protocol.
fn no_complaints(directory: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        ensure!(!name.starts_with("divergence-"), "a backup diverged: {name}");
        if !name.ends_with(".log") {
            continue;
        }
        let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
        let bad = text
            .lines()
            .find(|line| line.contains("panicked") || line.contains(" ERROR ") || line.contains("diverged"));
        ensure!(bad.is_none(), "{name}: {}", bad.unwrap_or_default());
    }
    Ok(())
}

/// The number at `path` of a status, 0 if there is none.
pub fn number(value: &Value, path: &str) -> u64 {
    value.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

/// The text at `path` of a status.
pub fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// Waits until a process' status is as `wanted`; returns it.
pub fn wait_for_status(
    cluster: &mut Cluster,
    part: Part,
    what: &str,
    wanted: impl Fn(&Value) -> bool,
) -> anyhow::Result<Value> {
    let (mut found, mut last) = (None, Value::Null);
    let waited = cluster.wait(what, |cluster| {
        if let Ok(status) = cluster.status(part) {
            found = wanted(&status).then(|| status.clone());
            last = status;
        }
        Ok(found.is_some())
    });
    waited.with_context(|| format!("{}'s last status: {last}", part.name()))?;
    found.context("a status was found")
}

/// Waits until this process is live alone.
pub fn wait_alone(cluster: &mut Cluster, part: Part) -> anyhow::Result<Value> {
    wait_for_status(cluster, part, "a copy to be live alone", |status| text(status, "/live/state") == "Alone")
}

/// Waits until the primary replicates and its backup has compared `digests` digests of the whole machine. The
/// backup's status.
pub fn wait_replicating(cluster: &mut Cluster, digests: u64) -> anyhow::Result<Value> {
    wait_for_status(cluster, Part::Primary, "the primary to replicate", |status| {
        text(status, "/live/state") == "Replicating"
    })?;
    wait_for_status(cluster, Part::Backup, "the backup to compare digests", |status| {
        text(status, "/backup/state") == "Following" && number(status, "/backup/digests") >= digests
    })
}

/// Exactly one copy is live: `part`, under `generation`, and the disk server says so too.
pub fn one_live_copy(cluster: &mut Cluster, part: Part, generation: u64) -> anyhow::Result<()> {
    let status = cluster.status(part)?;
    let state = text(&status, "/live/state");
    ensure!(state == "Alone", "{} is {state:?}, not live alone", part.name());
    let found = number(&status, "/live/generation");
    ensure!(found == generation, "{} holds generation {found}, not {generation}", part.name());
    for other in [Part::Primary, Part::Backup].into_iter().filter(|other| *other != part) {
        ensure!(cluster.pid(other).is_none(), "{} runs beside the live copy", other.name());
    }
    let state = DiskClient::connect(cluster.disk_address(), Duration::from_secs(10))?.query(VM)?;
    ensure!(
        state.holding.generation == generation && state.holder_connected,
        "the disk server knows {state:?}, not generation {generation} with its holder connected"
    );
    Ok(())
}

/// Generation of the machine at the disk server; 0 if nobody ever won one.
pub fn generation(cluster: &Cluster) -> anyhow::Result<u64> {
    let mut client = DiskClient::connect(cluster.disk_address(), Duration::from_secs(10))?;
    Ok(client.query(VM).map_or(0, |state| state.holding.generation))
}

/// Powers the machine off, by the control socket or by the guest's own SHUTDOWN, and waits for all of it to
/// end with exit code 0. The disk server and the network go on.
pub fn shut_down(cluster: &mut Cluster, part: Part, by_guest: bool) -> anyhow::Result<()> {
    match by_guest {
        true => {
            use std::io::Write;
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", cluster.port()))?;
            stream.write_all(b"*1\r\n$8\r\nSHUTDOWN\r\n")?;
        }
        false => drop(control::ask(&cluster.control(part), "shutdown")?),
    }
    // Both halves end at the same time.
    let halves = [Part::Primary, Part::Backup].into_iter().filter(|half| cluster.pid(*half).is_some());
    let halves: Vec<Part> = halves.collect();
    until("the pair to end", || {
        halves.iter().try_fold(true, |all, half| Ok(all & cluster.ended(*half)?.is_some()))
    })?;
    for half in halves {
        let code = exit_code(cluster, half)?;
        ensure!(code == 0, "{} ended with {code}:\n{}", half.name(), cluster.log_tail(half));
    }
    Ok(())
}

/// Waits until `done`, whatever processes end meanwhile.
pub fn until(what: &str, mut done: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let end = HostClock.now_ns() + PATIENCE.as_nanos() as u64;
    while !done()? {
        ensure!(HostClock.now_ns() < end, "waited {} s for {what}", PATIENCE.as_secs());
        // tidy: allow(sleep) a moment of the plan, or between two looks
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// A child process' exit code, once it ended.
pub fn exit_code(cluster: &mut Cluster, part: Part) -> anyhow::Result<i32> {
    let tail = |cluster: &Cluster| cluster.log_tail(part);
    let status = cluster.wait_for_end(part)?;
    status.code().with_context(|| format!("{} ended with {status}:\n{}", part.name(), tail(cluster)))
}
