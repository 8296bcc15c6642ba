//! The `lockstep` binary as a process, ended when dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use lockstep::cluster::DIE_WITH_PARENT;
use lockstep::io::clock::HostClock;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Waits until `done`.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = HostClock.now_ns() + PATIENCE.as_nanos() as u64;
    while !done() {
        assert!(HostClock.now_ns() < end, "waited {} s for {what}", PATIENCE.as_secs());
        // tidy: allow(sleep) between two looks
        std::thread::sleep(LOOK_EVERY);
    }
}

/// `lockstep` with these words.
pub fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep"));
    command.args(words).stdin(Stdio::null()).env(DIE_WITH_PARENT, "1").env_remove("LOCKSTEP_LOG");
    command
}

/// A process whose output goes to files.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it; its output is NAME.log in `directory`.
    pub fn start(directory: &Path, name: &str, mut command: Command) -> Self {
        let log = directory.join(format!("{name}.log"));
        let file = File::create(&log).expect("a log");
        command.stdout(file.try_clone().expect("a handle")).stderr(file);
        Self { child: command.spawn().expect("a process"), log }
    }

    /// What it has said so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).expect("a log")).into_owned()
    }

    /// Waits for a line with `prefix`; the rest of the line.
    pub fn wait_for(&mut self, prefix: &str) -> String {
        let mut rest = None;
        wait_until(prefix, || {
            let text = self.output();
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            rest = whole.lines().find_map(|line| line.split_once(prefix)).map(|(_, rest)| rest.to_owned());
            let ended = self.child.try_wait().expect("a child");
            assert!(rest.is_some() || ended.is_none(), "it ended ({ended:?}):\n{}", self.output());
            rest.is_some()
        });
        rest.expect("found")
    }

    /// Waits for its end.
    pub fn end(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("a process to end", || {
            status = self.child.try_wait().expect("a child");
            status.is_some()
        });
        status.expect("it ended")
    }

    /// Asks it to end as a terminal would.
    pub fn interrupt(&self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("a process of ours");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs to its end; exit code and what it said on standard error.
pub fn run(words: &[&str]) -> (i32, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut process = Process::start(directory.path(), "run", command(words));
    let status = process.end();
    (status.code().unwrap_or(-1), process.output())
}

/// A disk server in `directory`, and its address.
pub fn disk_server(directory: &Path) -> (Process, String) {
    let data = directory.join("disks").display().to_string();
    let words = ["disk-server", "--data", &data, "--listen", "127.0.0.1:0"];
    let mut server = Process::start(directory, "disk-server", command(&words));
    let address = server.wait_for("disk-server listening on ");
    (server, address)
}
