//! A machine under a debugger, gdb with a script, a client of the guest.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep::cluster::{Cluster, ClusterOptions, Part};
use lockstep::io::clock::HostClock;
use tempfile::TempDir;

/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// One machine at a time: a small host has no room for more.
static TURN: Mutex<()> = Mutex::new(());

/// Waits until `done`.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = HostClock.now_ns() + PATIENCE.as_nanos() as u64;
    while !done() {
        assert!(HostClock.now_ns() < end, "waited {} s for {what}", PATIENCE.as_secs());
        // tidy: allow(sleep) between two looks
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Whether gdb is there; says so loudly if not.
pub fn gdb_or_skip(test: &str) -> bool {
    let found = Command::new("gdb").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    if !found {
        eprintln!("SKIPPED {test}: no gdb here: apt-get install gdb");
    }
    found
}

/// Disk server, network and a machine that waits for a debugger.
pub struct Debuggee {
    pub cluster: Cluster,
    directory: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Debuggee {
    /// Starts one with `options` besides `--gdb`.
    pub fn start(options: &[&str]) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = TempDir::new().expect("a directory");
        std::fs::write(directory.path().join("minikv.elf"), guest_images::MINIKV).expect("the guest's image");
        let mut cluster_options = ClusterOptions::new(env!("CARGO_BIN_EXE_lockstep"), directory.path());
        cluster_options.replicated = false;
        let socket = format!("unix:{}", directory.path().join("gdb.sock").display());
        let small: &[&str] = if options.contains(&"--guest") { &[] } else { &["--memory", "32"] };
        let words = ["--disk-size", "16", "--gdb", &socket];
        cluster_options.vm_options =
            words.iter().chain(small).chain(options).map(|word| word.to_string()).collect();
        let mut cluster = Cluster::start_services(cluster_options, |_| {}).expect("disk server and network");
        cluster.start_primary().expect("the machine");
        let log = cluster.log(Part::Primary);
        let ready = || std::fs::read_to_string(&log).unwrap_or_default().contains("waiting for a debugger");
        cluster.wait("the machine to wait for a debugger", |_| Ok(ready())).expect("it waits");
        Self { cluster, directory, _turn: turn }
    }

    /// Runs a machine of its own that records itself, and ends it when `clients` is through; the recording.
    pub fn record(engine: &str, clients: impl FnOnce(&mut Client)) -> (TempDir, PathBuf) {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = TempDir::new().expect("a directory");
        std::fs::write(directory.path().join("minikv.elf"), guest_images::MINIKV).expect("the guest's image");
        let file = directory.path().join("run.lkr");
        let mut options = ClusterOptions::new(env!("CARGO_BIN_EXE_lockstep"), directory.path());
        options.replicated = false;
        let path = file.display().to_string();
        let words = ["--disk-size", "16", "--memory", "32", "--engine", engine, "--record", &path];
        options.vm_options = words.iter().map(|word| word.to_string()).collect();
        let mut cluster = Cluster::start(options, |_| {}).expect("a machine");
        clients(&mut Client::connect(cluster.port()));
        let asked = lockstep::io::control::ask(&cluster.control(Part::Primary), "shutdown");
        assert_eq!(asked.expect("it takes a request").trim(), "{}");
        cluster.wait_for_end(Part::Primary).expect("it ends");
        (directory, file)
    }

    /// Starts gdb with these commands, after those that connect it.
    pub fn gdb(&self, commands: &[&str]) -> Gdb {
        Gdb::start(self.directory.path(), commands)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.cluster.log(Part::Primary)).unwrap_or_default()
    }

    /// A connection to the guest, once it answers.
    pub fn client(&mut self) -> Client {
        self.cluster.wait_for_guest().expect("the guest answers");
        Client::connect(self.cluster.port())
    }
}

impl Drop for Debuggee {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- machine\n{}", self.log());
        }
        assert!(!self.log().contains("panicked"), "{}", self.log());
    }
}

/// gdb at work, its output in a file.
pub struct Gdb {
    child: Child,
    output: PathBuf,
}

impl Gdb {
    /// Starts it on the socket and the image in `directory`.
    pub fn start(directory: &Path, commands: &[&str]) -> Self {
        let script = directory.join("script.gdb");
        let mut text = String::from(
            "set pagination off\nset remotetimeout 60\nset confirm off\nset height 0\n\
             set architecture i386:x86-64\n",
        );
        text += &format!("target remote {}\n", directory.join("gdb.sock").display());
        commands.iter().for_each(|command| text += &format!("{command}\n"));
        std::fs::write(&script, text).expect("a script");
        let output = directory.join("gdb.out");
        let file = std::fs::File::create(&output).expect("a file");
        let child = Command::new("gdb")
            .args(["-nx", "-batch", "-x"])
            .arg(&script)
            .arg(directory.join("minikv.elf"))
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file)
            .env("LC_ALL", "C")
            .env("DEBUGINFOD_URLS", "")
            .spawn()
            .expect("gdb starts");
        Self { child, output }
    }

    /// What it printed so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// Waits until it has printed `text`.
    pub fn wait_for(&mut self, text: &str) {
        wait_until(text, || {
            let ended = self.child.try_wait().expect("a child can be asked").is_some();
            let found = self.output().contains(text);
            assert!(found || !ended, "gdb ended without {text:?}:\n{}", self.output());
            found
        });
    }

    /// Sends it a Ctrl-C.
    pub fn interrupt(&self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it is there");
    }

    /// Waits for its end; all it printed.
    pub fn finish(mut self) -> String {
        wait_until("gdb to end", || self.child.try_wait().expect("a child can be asked").is_some());
        self.output()
    }
}

impl Drop for Gdb {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- gdb\n{}", self.output());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One connection to the guest, one command at a time.
pub struct Client(BufReader<TcpStream>);

impl Client {
    pub fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self(BufReader::new(stream))
    }

    /// Sends a command; the first line of its answer.
    pub fn ask(&mut self, command: &str) -> String {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes()).expect("it takes a command");
        let mut line = String::new();
        self.0.read_line(&mut line).expect("it answers");
        line.trim_end().to_string()
    }
}
