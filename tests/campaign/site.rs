//! Three hosts, what runs on them, and the operator's commands.
//!
//! ```text
//!   host A 10.99.0.1 ──┐                 ┌── host B 10.99.0.2      a half on each, which one changes
//!                      bridge (own namespace)
//!                      └── host C 10.99.0.3                        disk server, its data in a small tmpfs
//! ```
//!
//! The guests' network is a Unix socket, which every host reaches; clients come over loopback.

use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use disk_server::client::DiskClient;
use disk_server::protocol::VmState;
use lockstep::cluster::DIE_WITH_PARENT;
use lockstep::io::clock::HostClock;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::hosts::{Hosts, run};
use crate::kinds::Machine;

/// The `lockstep` binary that was built with the tests.
const BUILT: &str = env!("CARGO_BIN_EXE_lockstep");

/// The binary under campaign.
fn program() -> String {
    std::env::var("LOCKSTEP_CAMPAIGN_PROGRAM").unwrap_or_else(|_| BUILT.into())
}

/// The machine's name.
const VM: &str = "vm0";
/// Hosts of the halves.
pub const A: usize = 0;
/// The other one.
pub const B: usize = 1;
/// Host of the disk server.
pub const C: usize = 2;
/// Their addresses.
pub const ADDRESSES: [&str; 3] = ["10.99.0.1", "10.99.0.2", "10.99.0.3"];
const DISK_SERVER: &str = "10.99.0.3:7411";
/// Seconds for which a holder may return: longer than any of the cuts that a start meets here.
const GRACE_S: &str = "3";
/// Of the file system of the disks.
const DATA_MIB: u64 = 768;
/// Longest wait for anything, once nothing is broken.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `done` says what was waited for.
pub fn until<T>(what: &str, mut done: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let end = HostClock.now_ns() + PATIENCE.as_nanos() as u64;
    loop {
        if let Some(found) = done()? {
            return Ok(found);
        }
        ensure!(HostClock.now_ns() < end, "stuck: waited {} s for {what}", PATIENCE.as_secs());
        pause(Duration::from_millis(5));
    }
}

/// Waits for a moment of the plan.
pub fn pause(time: Duration) {
    // tidy: allow(sleep) a moment of the plan, or between two looks
    std::thread::sleep(time);
}

/// A file system in memory, unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(path: PathBuf) -> anyhow::Result<Self> {
        std::fs::create_dir(&path)?;
        run(&format!("mount -t tmpfs -o size={DATA_MIB}m lockstep-campaign {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = run(&format!("umount -l {}", self.0.display()));
    }
}

/// A process, ended when dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
    /// Of its log, what it had written when it was started.
    from: u64,
}

impl Process {
    /// What it has written.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(bytes.get(self.from as usize..).unwrap_or_default()).into_owned()
    }

    /// The end of its log.
    pub fn tail(&self) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().cast_signed()), signal)?)
    }

    /// Waits for a line with `prefix`; what follows it.
    fn wait_for_line(&mut self, prefix: &str) -> anyhow::Result<String> {
        until(prefix, || {
            let text = self.log();
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let found = whole.lines().find_map(|line| line.split_once(prefix));
            let ended = self.child.try_wait()?;
            ensure!(found.is_some() || ended.is_none(), "it ended ({ended:?}): {}", self.tail());
            Ok(found.map(|(_, rest)| rest.to_string()))
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Primary or backup, whichever it is at the moment.
pub struct Half {
    /// Its process.
    pub process: Process,
    /// In messages, and its log's.
    pub name: String,
    /// Where it runs.
    pub host: usize,
    /// Where it waits, or waited, for a primary.
    pub listen: Option<String>,
    /// How it was started.
    pub command: Vec<String>,
    /// Where the guest's console gets its input from.
    pub typed: Option<ChildStdin>,
    /// SIGSTOP was sent.
    pub stopped: bool,
    /// Somebody's command that was started again, and is none of the pair.
    pub stale: bool,
    pub(crate) control: PathBuf,
}

/// Everything.
pub struct Site {
    /// Disks, sockets, logs.
    pub directory: PathBuf,
    /// The namespaces.
    pub hosts: Hosts,
    /// The machine.
    pub machine: &'static Machine,
    /// Those that were started and have not been seen to end.
    pub halves: Vec<Half>,
    /// Host port of the guest's service.
    pub port: u16,
    /// Exit codes of halves that ended by themselves, since they were looked at last.
    pub ended: Vec<(String, Option<i32>)>,
    disk_server: Option<Process>,
    _lan: Process,
    queries: Option<DiskClient>,
    started: u32,
    // Unmounted last.
    _data: Tmpfs,
}

impl Site {
    /// Hosts, disk server and network; no half yet.
    pub fn new(machine: &'static Machine, directory: &Path) -> anyhow::Result<Self> {
        let hosts = hosts()?;
        let data = Tmpfs::mount(directory.join("data"))?;
        let network = format!("unix:{}", directory.join("lan.sock").display());
        let words = ["lan", "--listen", &network, "--forward", "127.0.0.1:0=10.77.0.2:6379"];
        let mut lan = spawn(directory, "lan", &[], &words.map(String::from), false)?.0;
        let forward = lan.wait_for_line("lan forwarding ")?;
        let address = forward.split('=').next().unwrap_or_default();
        let port = address.rsplit(':').next().unwrap_or_default().parse()?;
        let mut site = Self {
            directory: directory.into(),
            hosts,
            machine,
            halves: Vec::new(),
            port,
            ended: Vec::new(),
            disk_server: None,
            _lan: lan,
            queries: None,
            started: 0,
            _data: data,
        };
        site.start_disk_server()?;
        Ok(site)
    }

    /// Starts the disk server on host C, with the data that is there.
    pub fn start_disk_server(&mut self) -> anyhow::Result<()> {
        let data = self.data().join("disks").display().to_string();
        let words = ["disk-server", "--listen", DISK_SERVER, "--data", &data, "--grace", GRACE_S];
        let words = words.map(String::from);
        let mut process = spawn(&self.directory, "disk-server", &self.hosts.prefix(C), &words, false)?.0;
        process.wait_for_line("disk-server listening on ")?;
        self.disk_server = Some(process);
        Ok(())
    }

    /// The disk server, unless it was killed.
    pub fn disk_server(&mut self) -> &mut Option<Process> {
        &mut self.disk_server
    }

    /// The file system of the disks.
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn start(&mut self, host: usize, name: String, words: &[&str]) -> anyhow::Result<usize> {
        let control = self.directory.join(format!("{name}.sock"));
        let mut command: Vec<String> = words.iter().map(|word| word.to_string()).collect();
        let (socket, network) = (control.display(), self.directory.join("lan.sock"));
        let common = format!(
            "--disk-server {DISK_SERVER} --control {socket} --net unix:{} --guest {} --engine {} \
             --digest-ms 250 --console-input {}",
            network.display(),
            self.machine.guest,
            self.machine.engine,
            if self.machine.has_shell { "stdin" } else { "none" },
        );
        command.extend(common.split_whitespace().map(String::from));
        command.extend(self.machine.options.iter().map(|word| word.to_string()));
        if self.machine.has_shell {
            let line = guest_images::cache::Cache::new(None)?.find(self.machine.guest)?.manifest.command_line;
            command.extend(["--cmdline".into(), format!("{line} shell=1")]);
        }
        self.start_again(host, name, command, control)
    }

    /// Starts a command of before once more.
    pub fn start_again(
        &mut self,
        host: usize,
        name: String,
        command: Vec<String>,
        control: PathBuf,
    ) -> anyhow::Result<usize> {
        let (process, typed) =
            spawn(&self.directory, &name, &self.hosts.prefix(host), &command, self.machine.has_shell)?;
        let half =
            Half { process, name, host, listen: None, command, typed, stopped: false, stale: false, control };
        self.halves.push(half);
        Ok(self.halves.len() - 1)
    }

    /// Starts a backup on a host; which half it is.
    pub fn start_backup(&mut self, host: usize) -> anyhow::Result<usize> {
        self.started += 1;
        let (name, listen) =
            (format!("backup-{}", self.started), format!("{}:{}", ADDRESSES[host], 7700 + self.started));
        let reports = self.directory.display().to_string();
        let half = self.start(host, name, &["backup", "--listen", &listen, "--reports", &reports])?;
        self.wait_listening(half)?;
        Ok(half)
    }

    /// Waits until a backup listens.
    pub fn wait_listening(&mut self, half: usize) -> anyhow::Result<()> {
        let half = &mut self.halves[half];
        half.listen = Some(half.process.wait_for_line("backup listening on ")?);
        Ok(())
    }

    /// Starts backup and primary, and waits until the guest answers.
    pub fn start_pair(&mut self, primary: usize, backup: usize) -> anyhow::Result<()> {
        let half = self.start_backup(backup)?;
        let listen = self.halves[half].listen.clone().context("a backup listens")?;
        self.started += 1;
        let name = format!("primary-{}", self.started);
        self.start(primary, name, &["primary", "--backup", &listen])?;
        let port = self.port;
        until("the guest to answer", || {
            self.reap()?;
            // On a busy host the two may part while the guest boots; then it boots on in one of them.
            ensure!(!self.halves.is_empty(), "{:?} ended while the guest booted", self.ended);
            Ok(lockstep::cluster::ping(port).unwrap_or(false).then_some(()))
        })
    }

    /// `lockstep replicate`, as a process that goes on by itself.
    pub fn replicate(&self, live: usize, to: &str) -> anyhow::Result<Child> {
        let mut command = Command::new(program());
        command.arg("replicate").arg(&self.halves[live].control).args(["--to", to]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        Ok(command.spawn()?)
    }

    /// Ends a half as a power failure would, and forgets it.
    pub fn kill(&mut self, half: usize) -> anyhow::Result<Half> {
        let mut half = self.halves.remove(half);
        half.process.child.kill()?;
        half.process.child.wait()?;
        Ok(half)
    }

    /// Takes note of halves that ended.
    pub fn reap(&mut self) -> anyhow::Result<()> {
        let mut index = 0;
        while index < self.halves.len() {
            match self.halves[index].process.child.try_wait()? {
                Some(status) => {
                    let half = self.halves.remove(index);
                    if !half.stale {
                        self.ended.push((half.name.clone(), status.code()));
                    }
                }
                None => index += 1,
            }
        }
        Ok(())
    }

    /// What the disk server knows of the machine; `None` while it does not answer, or knows none.
    pub fn holding(&mut self) -> Option<VmState> {
        if self.queries.is_none() {
            let connect = || Ok(DiskClient::connect(DISK_SERVER, Duration::from_secs(2))?);
            self.queries = self.hosts.inside(C, connect).ok();
        }
        let state = self.queries.as_mut()?.query(VM).ok();
        if state.is_none() {
            self.queries = None;
        }
        state
    }

    /// The generation; 0 if nobody ever won one, or the disk server does not answer.
    pub fn generation(&mut self) -> u64 {
        self.holding().map_or(0, |state| state.holding.generation)
    }

    /// Whether any process panicked, or a backup diverged.
    pub fn complaint(&self) -> anyhow::Result<()> {
        for entry in std::fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with("divergence-") {
                bail!("a backup diverged: {name}");
            }
            if name.ends_with(".log") {
                let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
                if let Some(line) = text.lines().find(|line| line.contains("panicked")) {
                    bail!("{name}: {line}");
                }
            }
        }
        Ok(())
    }
}

fn hosts() -> anyhow::Result<Hosts> {
    let hosts = Hosts::new(&["a", "b", "c"])?;
    hosts.network("private")?;
    for (host, address) in ADDRESSES.iter().enumerate() {
        hosts.cable(host, "eth0", "private")?;
        hosts.ip(host, &format!("addr add {address}/24 dev eth0"))?;
        hosts.prepare_cuts(host, &ADDRESSES)?;
    }
    Ok(hosts)
}

fn spawn(
    directory: &Path,
    name: &str,
    prefix: &[&str],
    arguments: &[String],
    typed: bool,
) -> anyhow::Result<(Process, Option<ChildStdin>)> {
    let path = directory.join(format!("{name}.log"));
    let from = std::fs::metadata(&path).map_or(0, |data| data.len());
    let log = std::fs::OpenOptions::new().create(true).append(true).open(&path)?;
    let program = program();
    let words = prefix.iter().copied().chain([program.as_str()]);
    let words: Vec<&str> = words.chain(arguments.iter().map(String::as_str)).collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).env(DIE_WITH_PARENT, "1");
    command.stdin(if typed { Stdio::piped() } else { Stdio::null() });
    command.stdout(log.try_clone()?).stderr(log);
    let mut child = command.spawn().with_context(|| format!("cannot start {}", words.join(" ")))?;
    let typed = child.stdin.take();
    Ok((Process { child, log: path, from }, typed))
}
