//! A whole pair on this machine, as the separate processes that it would be on three hosts: disk server,
//! network, primary, backup. For `demo`, `bench` and the tests.
//!
//! Everything lives in one directory: disks, control sockets, one log file per process. Dropping the cluster
//! ends its processes, and only those.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::io::clock::HostClock;
use crate::io::control;

/// Set for a process of a cluster that is to end with whoever started it.
pub const DIE_WITH_PARENT: &str = "LOCKSTEP_DIE_WITH_PARENT";

/// Longest wait for anything where the options do not say, generous for a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(2);
const LOCAL_HOST: &str = "127.0.0.1";
/// Of minikv, and of redis.
const REDIS_PORT: u16 = 6379;

/// Which process, by what it does at the moment: a backup that went live is the primary once the cluster was
/// told so (`Cluster::promote_backup`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// `lockstep disk-server`
    DiskServer,
    /// `lockstep lan`
    Lan,
    /// `lockstep backup`
    Backup,
    /// `lockstep primary`, or `lockstep run` when there is no backup.
    Primary,
}

impl Part {
    /// Its name in messages, and in the file names of the first process of the kind.
    pub fn name(self) -> &'static str {
        match self {
            Part::DiskServer => "disk-server",
            Part::Lan => "lan",
            Part::Backup => "backup",
            Part::Primary => "primary",
        }
    }
}

/// Asks the service behind a port of this host whether it answers; errors are no answer.
pub type Probe = fn(u16) -> std::io::Result<bool>;

/// What kind of cluster.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// The `lockstep` binary.
    pub program: PathBuf,
    /// Where everything is kept; it must exist.
    pub directory: PathBuf,
    /// With a backup.
    pub replicated: bool,
    /// Address of this machine at which everything listens: an IPv6 address in brackets. Then the network is
    /// reached by TCP, too.
    pub host: String,
    /// With a cable from the guest's network card to the network.
    pub networked: bool,
    /// Whether the processes end with the one that started them.
    pub die_with_parent: bool,
    /// More options for both halves.
    pub vm_options: Vec<String>,
    /// More options of the pair, for both halves.
    pub pair_options: Vec<String>,
    /// More options for the primary.
    pub primary_options: Vec<String>,
    /// Variables in the environment of backups that are started.
    pub backup_environment: Vec<(String, String)>,
    /// More options for the disk server.
    pub disk_options: Vec<String>,
    /// Seconds for which a holder may return. On one host, a lost connection is mostly a lost process.
    pub grace_s: u32,
    /// TCP port of the guest's service, which a port of this host reaches.
    pub guest_port: u16,
    /// Whether the service behind a port of this host answers.
    pub answers: Probe,
    /// Longest wait for anything; a guest's boot takes longest.
    pub patience: Duration,
}

impl ClusterOptions {
    /// A replicated minikv in `directory`, with everything as by default.
    pub fn new(program: impl Into<PathBuf>, directory: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            directory: directory.into(),
            replicated: true,
            host: LOCAL_HOST.into(),
            networked: true,
            die_with_parent: true,
            vm_options: Vec::new(),
            pair_options: Vec::new(),
            primary_options: Vec::new(),
            backup_environment: Vec::new(),
            disk_options: Vec::new(),
            grace_s: 1,
            guest_port: REDIS_PORT,
            answers: ping,
            patience: PATIENCE,
        }
    }
}

/// The processes.
pub struct Cluster {
    options: ClusterOptions,
    children: BTreeMap<Part, Child>,
    /// File names of processes that do not have those of their part's first process.
    names: BTreeMap<Part, String>,
    backups_started: u32,
    disk_address: String,
    backup_address: String,
    /// Where the network listens, if that is not a Unix socket.
    lan_address: Option<String>,
    port: u16,
}

impl Cluster {
    /// Starts all processes and waits until the guest answers. `progress` is told each step.
    pub fn start(options: ClusterOptions, mut progress: impl FnMut(&str)) -> anyhow::Result<Self> {
        let mut cluster = Self::start_services(options, &mut progress)?;
        if cluster.options.replicated {
            progress("backup");
            cluster.start_backup()?;
        }
        progress("primary");
        cluster.start_primary()?;
        progress("guest");
        cluster.wait_for_guest()?;
        Ok(cluster)
    }

    /// Starts the disk server and the network only: the halves are the caller's to start.
    pub fn start_services(options: ClusterOptions, mut progress: impl FnMut(&str)) -> anyhow::Result<Self> {
        let mut cluster = Self {
            options,
            children: BTreeMap::new(),
            names: BTreeMap::new(),
            backups_started: 0,
            disk_address: String::new(),
            backup_address: String::new(),
            lan_address: None,
            port: 0,
        };
        progress("disk server");
        cluster.start_disk_server(&format!("{}:0", cluster.options.host))?;
        progress("network");
        cluster.start_lan()?;
        Ok(cluster)
    }

    fn spawn(&mut self, part: Part, arguments: &[String]) -> anyhow::Result<()> {
        let log = host::files::append(&self.log(part))?;
        let mut command = Command::new(&self.options.program);
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        if self.options.die_with_parent {
            command.env(DIE_WITH_PARENT, "1");
        }
        if part == Part::Backup {
            command.envs(self.options.backup_environment.iter().cloned());
        }
        let child = command.spawn().with_context(|| {
            format!("cannot start {} {}", self.options.program.display(), arguments.join(" "))
        })?;
        self.children.insert(part, child);
        Ok(())
    }

    /// Starts the disk server on `listen`, with the data that is there.
    pub fn start_disk_server(&mut self, listen: &str) -> anyhow::Result<()> {
        let from = self.log_len(Part::DiskServer);
        let data = self.options.directory.join("disks").display().to_string();
        let grace = self.options.grace_s.to_string();
        let mut arguments = words(&["disk-server", "--listen", listen, "--data", &data, "--grace", &grace]);
        arguments.extend(self.options.disk_options.iter().cloned());
        self.spawn(Part::DiskServer, &arguments)?;
        self.disk_address = self.wait_for_line(Part::DiskServer, from, "disk-server listening on ")?;
        Ok(())
    }

    /// Starts the network, at the same address each time; the port for clients is another.
    pub fn start_lan(&mut self) -> anyhow::Result<()> {
        let from = self.log_len(Part::Lan);
        // Every address of this machine reaches the guest where the others are not IPv4's.
        let any = if self.options.host == LOCAL_HOST { LOCAL_HOST } else { "[::]" };
        let forward = format!("{any}:0=10.77.0.2:{}", self.options.guest_port);
        self.spawn(Part::Lan, &words(&["lan", "--listen", &self.lan_endpoint(), "--forward", &forward]))?;
        if self.options.host != LOCAL_HOST {
            self.lan_address = Some(self.wait_for_line(Part::Lan, from, "lan listening on ")?);
        }
        let line = self.wait_for_line(Part::Lan, from, "lan forwarding ")?;
        let address = line.split('=').next().unwrap_or_default();
        let port = address.rsplit(':').next().and_then(|port| port.parse().ok());
        self.port = port.with_context(|| format!("no port in {line:?}"))?;
        Ok(())
    }

    fn lan_endpoint(&self) -> String {
        match (&self.lan_address, &*self.options.host) {
            (Some(address), _) => address.clone(),
            (None, LOCAL_HOST) => format!("unix:{}", self.options.directory.join("lan.sock").display()),
            (None, host) => format!("tcp:{host}:0"),
        }
    }

    fn vm_arguments(&self, part: Part) -> Vec<String> {
        let control = self.control(part).display().to_string();
        let mut arguments = words(&["--disk-server", &self.disk_address, "--control", &control]);
        if self.options.networked {
            arguments.extend(words(&["--net", &self.lan_endpoint()]));
        }
        arguments.extend(self.options.vm_options.iter().cloned());
        if self.options.replicated {
            arguments.extend(self.options.pair_options.iter().cloned());
        }
        arguments
    }

    /// Starts a backup; each has files of its own.
    pub fn start_backup(&mut self) -> anyhow::Result<()> {
        self.backups_started += 1;
        if self.backups_started > 1 {
            self.names.insert(Part::Backup, format!("{}-{}", Part::Backup.name(), self.backups_started));
        }
        let from = self.log_len(Part::Backup);
        let reports = self.options.directory.display().to_string();
        let listen = format!("{}:0", self.options.host);
        let mut arguments = words(&["backup", "--listen", &listen, "--reports", &reports]);
        arguments.extend(self.vm_arguments(Part::Backup));
        self.spawn(Part::Backup, &arguments)?;
        self.backup_address = self.wait_for_line(Part::Backup, from, "backup listening on ")?;
        Ok(())
    }

    /// Starts the primary, or the unreplicated machine.
    pub fn start_primary(&mut self) -> anyhow::Result<()> {
        let mut arguments = match self.options.replicated {
            true => words(&["primary", "--backup", &self.backup_address]),
            false => words(&["run"]),
        };
        if self.options.replicated {
            arguments.extend(self.options.primary_options.iter().cloned());
        }
        self.names.remove(&Part::Primary);
        arguments.extend(self.vm_arguments(Part::Primary));
        self.spawn(Part::Primary, &arguments)
    }

    /// The backup went live in the place of a primary that is gone: it is the primary from here on, so that
    /// another backup may be started.
    pub fn promote_backup(&mut self) -> anyhow::Result<()> {
        ensure!(!self.children.contains_key(&Part::Primary), "the primary has not ended");
        let child = self.children.remove(&Part::Backup).context("there is no backup")?;
        self.children.insert(Part::Primary, child);
        let name = self.names.remove(&Part::Backup).unwrap_or_else(|| Part::Backup.name().into());
        self.names.insert(Part::Primary, name);
        Ok(())
    }

    /// Waits until the guest's service answers.
    pub fn wait_for_guest(&mut self) -> anyhow::Result<()> {
        let (port, answers) = (self.port, self.options.answers);
        self.wait("the guest to answer", |_| Ok(answers(port).unwrap_or(false)))
    }

    /// Waits until `done`, and for no process to have ended meanwhile that should run.
    #[allow(clippy::cast_possible_truncation, reason = "minutes")]
    pub fn wait(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Self) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let patience = self.options.patience;
        let end = HostClock.now_ns() + patience.as_nanos() as u64;
        loop {
            if done(self)? {
                return Ok(());
            }
            for part in self.parts() {
                if let Some(status) = self.ended(part)? {
                    bail!("{} ended ({status}) while waiting for {what}:{}", part.name(), self.tails(part));
                }
            }
            ensure!(HostClock.now_ns() < end, "waited {} s for {what}", patience.as_secs());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "the length of a log file")]
    fn wait_for_line(&mut self, part: Part, from: u64, prefix: &str) -> anyhow::Result<String> {
        let mut found = None;
        let path = self.log(part);
        self.wait(&format!("{} to start", part.name()), |_| {
            let text = std::fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(text.get(from as usize..).unwrap_or_default()).into_owned();
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            found = whole.lines().find_map(|line| line.split_once(prefix)).map(|(_, rest)| rest.to_string());
            Ok(found.is_some())
        })?;
        found.context("a line was found")
    }

    /// Host port that reaches the guest's service.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Address of the disk server.
    pub fn disk_address(&self) -> &str {
        &self.disk_address
    }

    /// Address on which the backup waits, or waited.
    pub fn backup_address(&self) -> &str {
        &self.backup_address
    }

    /// Tells the next primary another address for the backup: of something that stands between the two.
    pub fn reach_backup_at(&mut self, address: impl Into<String>) {
        self.backup_address = address.into();
    }

    /// Where the network is.
    pub fn network(&self) -> String {
        self.lan_endpoint()
    }

    /// Where everything is kept.
    pub fn directory(&self) -> &Path {
        &self.options.directory
    }

    /// The options, to change before starting a part anew.
    pub fn options_mut(&mut self) -> &mut ClusterOptions {
        &mut self.options
    }

    /// A process' log file.
    pub fn log(&self, part: Part) -> PathBuf {
        self.options.directory.join(format!("{}.log", self.file_name(part)))
    }

    fn file_name(&self, part: Part) -> &str {
        self.names.get(&part).map_or(part.name(), String::as_str)
    }

    fn log_len(&self, part: Part) -> u64 {
        std::fs::metadata(self.log(part)).map_or(0, |data| data.len())
    }

    /// A process' log, what it printed: of a machine, its console too.
    pub fn log_text(&self, part: Part) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log(part)).unwrap_or_default()).into_owned()
    }

    /// The end of a process' log, for messages.
    pub fn log_tail(&self, part: Part) -> String {
        let text = self.log_text(part);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// The ends of a process' log and of the other half's, which may have had a hand in it.
    fn tails(&self, part: Part) -> String {
        let halves = [Part::Primary, Part::Backup].into_iter().filter(|half| *half != part);
        let told = std::iter::once(part).chain(halves.filter(|half| self.children.contains_key(half)));
        told.map(|part| format!("\n{}:\n{}", part.name(), self.log_tail(part))).collect()
    }

    /// A process' control socket.
    pub fn control(&self, part: Part) -> PathBuf {
        self.options.directory.join(format!("{}.sock", self.file_name(part)))
    }

    /// Process id.
    pub fn pid(&self, part: Part) -> Option<u32> {
        self.children.get(&part).map(Child::id)
    }

    /// What a process says of itself.
    pub fn status(&self, part: Part) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&control::ask(&self.control(part), "status")?)?)
    }

    /// Sends a signal to a process.
    #[allow(clippy::cast_possible_wrap, reason = "a process id is an i32 of the kernel")]
    pub fn signal(&self, part: Part, signal: Signal) -> anyhow::Result<()> {
        let pid = self.pid(part).with_context(|| format!("{} is not running", part.name()))?;
        kill(Pid::from_raw(pid as i32), signal).with_context(|| format!("cannot signal {}", part.name()))
    }

    /// Ends a process as a power failure would (SIGKILL), and forgets it.
    pub fn kill(&mut self, part: Part) -> anyhow::Result<()> {
        self.signal(part, Signal::SIGKILL)?;
        if let Some(mut child) = self.children.remove(&part) {
            child.wait()?;
        }
        Ok(())
    }

    /// The processes that were started and not forgotten.
    pub fn parts(&self) -> Vec<Part> {
        self.children.keys().copied().collect()
    }

    /// Whether a process ended by itself.
    pub fn ended(&mut self, part: Part) -> anyhow::Result<Option<ExitStatus>> {
        Ok(match self.children.get_mut(&part) {
            Some(child) => child.try_wait()?,
            None => None,
        })
    }

    /// Waits until a process ended by itself, and forgets it.
    pub fn wait_for_end(&mut self, part: Part) -> anyhow::Result<ExitStatus> {
        let mut child =
            self.children.remove(&part).with_context(|| format!("{} is not running", part.name()))?;
        let mut status = None;
        let waited = self.wait(&format!("{} to end", part.name()), |_| {
            status = child.try_wait()?;
            Ok(status.is_some())
        });
        if let Err(error) = waited {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        status.context("it ended")
    }

    /// Leaves the processes running: whoever called ends them. Their names and process ids.
    pub fn keep(mut self) -> Vec<(&'static str, u32)> {
        std::mem::take(&mut self.children)
            .into_iter()
            .map(|(part, child)| (part.name(), child.id()))
            .collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.children.values_mut() {
            // A child that ended by itself is not signalled: it was waited for, or is a zombie of ours.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| word.to_string()).collect()
}

/// Whether the guest behind `port` answers a PING.
pub fn ping(port: u16) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    stream.write_all(b"*1\r\n$4\r\nPING\r\n")?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer)?;
    Ok(&answer == b"+PONG\r\n")
}
