//! What every test here needs: a pair of real processes in a directory of its own, one test at a time, that
//! cleans up however the test ends, and whose logs hold no panic.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use disk_server::client::DiskClient;
use disk_server::protocol::VmState;
use lockstep::cluster::{Cluster, ClusterOptions, DIE_WITH_PARENT, Part};
use lockstep::io::clock::HostClock;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::client::Client;

/// The `lockstep` binary.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_lockstep");
/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Exit code of a copy that halted because another one is live.
pub const OTHER_LIVE: i32 = 3;
/// Exit code of a backup that diverged.
pub const DIVERGED: i32 = 4;
/// The machine's name.
pub const VM: &str = "vm0";

const LOOK_EVERY: Duration = Duration::from_millis(2);
const DISK_MIB: &str = "16";

/// Pairs run one after the other: a machine with two cores has no room for more.
static TURN: Mutex<()> = Mutex::new(());

/// By how much more is to be done than in CI: LOCKSTEP_TEST_SCALE.
pub fn scale() -> usize {
    match std::env::var("LOCKSTEP_TEST_SCALE") {
        Ok(text) => text.parse().expect("LOCKSTEP_TEST_SCALE is a number"),
        Err(_) => 1,
    }
}

/// Waits until `done`.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = HostClock.now_ns() + PATIENCE.as_nanos() as u64;
    while !done() {
        assert!(HostClock.now_ns() < end, "waited {} s for {what}", PATIENCE.as_secs());
        // tidy: allow(sleep) between two looks
        std::thread::sleep(LOOK_EVERY);
    }
}

/// A cluster under test.
pub struct Pair {
    cluster: Option<Cluster>,
    directory: Option<TempDir>,
    _turn: MutexGuard<'static, ()>,
}

impl Deref for Pair {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        self.cluster.as_ref().expect("it is there until it is dropped")
    }
}

impl DerefMut for Pair {
    fn deref_mut(&mut self) -> &mut Cluster {
        self.cluster.as_mut().expect("it is there until it is dropped")
    }
}

impl Pair {
    /// Disk server, network, backup and primary, and the guest answers. None where it wants a KVM that is not
    /// there.
    pub fn start(test: &str) -> Option<Self> {
        Self::start_with(test, |_| {})
    }

    /// The same, with other options.
    pub fn start_with(test: &str, change: impl FnOnce(&mut ClusterOptions)) -> Option<Self> {
        let mut pair = Self::services(test, change)?;
        pair.start_halves(|backup| backup.to_string());
        Some(pair)
    }

    /// Disk server and network only.
    pub fn services(test: &str, change: impl FnOnce(&mut ClusterOptions)) -> Option<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = TempDir::new().expect("a directory");
        let mut options = ClusterOptions::new(PROGRAM, directory.path());
        options.vm_options = vec!["--disk-size".into(), DISK_MIB.into()];
        change(&mut options);
        if options.vm_options.iter().any(|option| option == "kvm") && !lockstep::engine::kvm::usable() {
            eprintln!("SKIPPED {test}: no usable KVM on this machine");
            return None;
        }
        let mut pair = Self { cluster: None, directory: Some(directory), _turn: turn };
        pair.cluster = Some(Cluster::start_services(options, |_| {}).expect("disk server and network"));
        Some(pair)
    }

    /// Starts the halves; the primary reaches the backup at what `through` makes of its address.
    pub fn start_halves(&mut self, through: impl FnOnce(&str) -> String) {
        self.start_backup().expect("the backup");
        let address = through(self.backup_address());
        self.reach_backup_at(address);
        self.start_primary().expect("the primary");
        self.wait_for_guest().expect("the guest answers");
        self.wait_for_state(Part::Primary, "Replicating");
    }

    /// A connection to the guest.
    pub fn client(&self) -> Client {
        Client::connect(self.port()).expect("a connection to the guest")
    }

    /// Where the protocol is in a process: as a live copy, else as a backup.
    pub fn state(&self, part: Part) -> Option<String> {
        let status = self.status(part).ok()?;
        let of = |path: &str| status.pointer(path).and_then(Value::as_str).map(str::to_string);
        of("/live/state").or_else(|| of("/backup/state"))
    }

    /// Waits until a process is in this state, and has not ended.
    pub fn wait_for_state(&mut self, part: Part, state: &str) {
        let cluster = self.cluster.as_mut().expect("a cluster");
        let mut last = None;
        let what = format!("{} to be {state}", part.name());
        let end = HostClock.now_ns() + PATIENCE.as_nanos() as u64;
        loop {
            if let Ok(Some(status)) = cluster.ended(part) {
                panic!("{} ended ({status}) instead of {state}:\n{}", part.name(), cluster.log_tail(part));
            }
            if let Ok(status) = cluster.status(part) {
                let of = |path: &str| status.pointer(path).and_then(Value::as_str).map(str::to_string);
                last = of("/live/state").or_else(|| of("/backup/state"));
            }
            if last.as_deref().is_some_and(|last| last.starts_with(state)) {
                return;
            }
            assert!(HostClock.now_ns() < end, "waited for {what}, it is {last:?}");
            // tidy: allow(sleep) between two looks
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits for a process to end by itself, whatever else ends meanwhile; its exit code.
    pub fn exit_code(&mut self, part: Part) -> i32 {
        wait_until(&format!("{} to end", part.name()), || self.has_ended(part));
        let status = self.wait_for_end(part).expect("it ended");
        status.code().unwrap_or_else(|| panic!("{}: {status}\n{}", part.name(), self.log_tail(part)))
    }

    /// Whether a process ended by itself.
    pub fn has_ended(&mut self, part: Part) -> bool {
        self.ended(part).expect("a child can be asked").is_some()
    }

    /// Waits until one of the halves ends because the other one went on; who is left.
    pub fn wait_for_the_loser(&mut self) -> Part {
        wait_until("one half to end", || self.has_ended(Part::Primary) || self.has_ended(Part::Backup));
        let (loser, winner) = match self.has_ended(Part::Primary) {
            true => (Part::Primary, Part::Backup),
            false => (Part::Backup, Part::Primary),
        };
        let code = self.exit_code(loser);
        assert_eq!(code, OTHER_LIVE, "{}'s exit code:\n{}", loser.name(), self.log_tail(loser));
        winner
    }

    /// What the disk server knows of the machine.
    pub fn holding(&self) -> VmState {
        let mut client = DiskClient::connect(self.disk_address(), PATIENCE).expect("the disk server");
        client.query(VM).expect("the machine's state")
    }

    /// `part` is live alone under `generation`, nobody else is, and the disk server agrees.
    pub fn assert_one_live(&mut self, part: Part, generation: u64) {
        self.wait_for_state(part, "Alone");
        let status = self.status(part).expect("its status");
        assert_eq!(status["live"]["generation"], generation, "{status}");
        let state = self.holding();
        assert_eq!(state.holding.generation, generation);
        assert!(state.holder_connected, "whoever holds generation {generation} is the copy that runs");
        assert!(!self.has_ended(part));
        let other = if part == Part::Primary { Part::Backup } else { Part::Primary };
        if self.pid(other).is_some() {
            assert!(self.has_ended(other), "{} still runs", other.name());
        }
    }

    /// The disk as the disk server's file system has it.
    pub fn disk_image(&self) -> Vec<u8> {
        let path = self.directory().join(format!("disks/vms/{VM}/disks/disk0.img"));
        std::fs::read(path).expect("the disk's image")
    }

    /// A process' whole log.
    pub fn log_text(&self, part: Part) -> String {
        std::fs::read_to_string(self.log(part)).unwrap_or_default()
    }

    /// Powers everything off and starts a single machine from the disk alone.
    pub fn reboot_from_disk(&mut self) {
        for part in [Part::Primary, Part::Backup] {
            if self.pid(part).is_some() {
                self.kill(part).expect("it can be killed");
            }
        }
        wait_until("the disk server to see that nobody is left", || !self.holding().holder_connected);
        self.options_mut().replicated = false;
        self.start_primary().expect("a machine");
        self.wait_for_guest().expect("the guest answers");
    }

    /// Starts one more process of ours in the cluster's directory.
    pub fn spawn(&self, name: &str, arguments: &[&str]) -> Process {
        Process::spawn(self.directory(), name, &[], arguments)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        drop(self.cluster.take());
        let Some(directory) = self.directory.take() else { return };
        let logs = logs(directory.path());
        if std::thread::panicking() {
            for (name, text) in &logs {
                eprintln!("---- {name}\n{text}");
            }
            return;
        }
        for (name, text) in &logs {
            assert!(!text.contains("panicked"), "{name} has a panic:\n{text}");
        }
    }
}

fn logs(directory: &Path) -> Vec<(String, String)> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let logs = entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "log"));
    logs.map(|entry| {
        let text = std::fs::read(entry.path()).unwrap_or_default();
        (entry.file_name().to_string_lossy().into_owned(), String::from_utf8_lossy(&text).into_owned())
    })
    .collect()
}

/// A process of ours outside the cluster; ended when dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `lockstep` with `arguments`, behind `prefix`; its output goes to `name`.log in `directory`.
    pub fn spawn(directory: &Path, name: &str, prefix: &[&str], arguments: &[&str]) -> Self {
        Self::spawn_to(directory, name, prefix, arguments, None)
    }

    /// The same, with another standard output if there is one.
    pub fn spawn_to(
        directory: &Path,
        name: &str,
        prefix: &[&str],
        arguments: &[&str],
        stdout: Option<Stdio>,
    ) -> Self {
        let log = directory.join(format!("{name}.log"));
        let file = std::fs::File::create(&log).expect("a log file");
        let words: Vec<&str> =
            prefix.iter().copied().chain([PROGRAM]).chain(arguments.iter().copied()).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).env(DIE_WITH_PARENT, "1");
        let stdout = stdout.unwrap_or_else(|| file.try_clone().expect("a second handle").into());
        command.stdout(stdout).stderr(file);
        let child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", words.join(" ")));
        Self { child, log }
    }

    /// Its output so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for a line that contains `prefix`; what follows it.
    pub fn wait_for_line(&mut self, prefix: &str) -> String {
        let mut found = None;
        wait_until(prefix, || {
            let text = self.output();
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            found = whole.lines().find_map(|line| line.split_once(prefix)).map(|(_, rest)| rest.to_string());
            let ended = self.child.try_wait().expect("a child can be asked");
            assert!(found.is_some() || ended.is_none(), "it ended ({ended:?}):\n{}", self.output());
            found.is_some()
        });
        found.expect("a line was found")
    }

    /// Waits for it to end by itself; its exit code.
    pub fn exit_code(&mut self) -> i32 {
        let mut status = None;
        wait_until("a process to end", || {
            status = self.child.try_wait().expect("a child can be asked");
            status.is_some()
        });
        let status = status.expect("it ended");
        status.code().unwrap_or_else(|| panic!("{status}:\n{}", self.output()))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().expect("a process id"));
        kill(pid, signal).expect("a child can be signalled");
    }

    /// kill -9, and waits for the end.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().expect("a child can be waited for");
    }

    /// Whether it runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("a child can be asked").is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// UDP ports that a process has open.
pub fn udp_ports(pid: u32) -> Vec<u16> {
    let sockets: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("a process of ours")
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter_map(|link| {
            let link = link.to_string_lossy().into_owned();
            link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')).map(str::to_string)
        })
        .collect();
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/udp")).expect("a table of sockets");
    let lines = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ours = lines.filter(|words| words.get(9).is_some_and(|inode| sockets.iter().any(|own| own == inode)));
    ours.filter_map(|words| words[1].split_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok()))
        .collect()
}
