//! Starts and kills real servers.
#![allow(dead_code, reason = "each test program uses some of it")]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use disk_server::client::{Claim, DiskClient};
use disk_server::protocol::Opened;

/// Generous: nothing here is about speed.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A data directory whose servers come and go.
pub struct Site {
    dir: tempfile::TempDir,
    starts: std::cell::Cell<u32>,
}

impl Site {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), starts: std::cell::Cell::new(0) }
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn disk_file(&self, vm: &str, disk: &str) -> PathBuf {
        self.data().join(format!("vms/{vm}/disks/{disk}.img"))
    }

    /// Starts a server with more arguments and waits until it listens.
    pub fn start(&self, more: &[&str]) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_disk-server"));
        command.arg("--data").arg(self.data()).args(["--listen", "127.0.0.1:0"]).args(more);
        self.launch(command)
    }

    /// Starts `command`, which must become a server.
    pub fn launch(&self, mut command: Command) -> Server {
        self.starts.set(self.starts.get() + 1);
        let log = self.dir.path().join(format!("log-{}", self.starts.get()));
        command.env("RUST_LOG", "info").env("RUST_BACKTRACE", "1").stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(File::create(&log).unwrap());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Some(address) = line.trim().strip_prefix("disk-server listening on ") else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("no server: {line:?}\n{}", read(&log));
        };
        Server { child, address: address.to_string(), log }
    }
}

/// A running server; killed when dropped, and checked for panics.
pub struct Server {
    child: Child,
    pub address: String,
    log: PathBuf,
}

impl Server {
    pub fn client(&self) -> DiskClient {
        DiskClient::connect(&self.address, DEADLINE).unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// kill -9, and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
        self.check_log();
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self) -> ExitStatus {
        let pid = nix::unistd::Pid::from_raw(self.pid() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.wait()
    }

    pub fn wait(&mut self) -> ExitStatus {
        let status = self.child.wait().unwrap();
        self.check_log();
        status
    }

    /// Waits for the end that `--crash-at` brings.
    pub fn wait_for_crash(&mut self) {
        assert_eq!(self.wait().signal(), Some(6), "the server aborts itself\n{}", self.log());
    }

    pub fn log(&self) -> String {
        read(&self.log)
    }

    fn check_log(&self) {
        let log = self.log();
        assert!(!log.contains("panicked"), "the server panicked:\n{log}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !std::thread::panicking() {
            self.check_log();
        }
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Waits until `ready`.
pub fn until(what: &str, mut ready: impl FnMut() -> bool) {
    for _ in 0..60_000 {
        if ready() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1)); // tidy: allow(sleep) between two looks
    }
    panic!("waited in vain: {what}");
}

/// Creates the disk `disk` of `vm` and claims generation 1 of it.
pub fn new_vm(client: &mut DiskClient, vm: &str, bytes: u64, claimant: u128) -> Opened {
    let opened = client.open(vm, "disk", Some(bytes), claimant).unwrap();
    assert_eq!(client.test_and_set(vm, 0, claimant).unwrap(), Claim::Won(1));
    opened
}
