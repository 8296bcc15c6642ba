//! Makes recordings, and runs commands on them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use lockstep::cluster::Part;
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::client::Client;
use crate::harness::{PROGRAM, Pair};

/// Commands of the load.
const COMMANDS: usize = 600;

/// Starts an unreplicated machine that is recorded into `path`; None where there is no KVM.
pub fn start(test: &str, path: &Path, every: &str, engine: &str) -> Option<Pair> {
    start_with(test, path, every, &["--disk-size", "16", "--memory", "32", "--engine", engine])
}

/// The same of any machine.
pub fn start_with(test: &str, path: &Path, every: &str, machine: &[&str]) -> Option<Pair> {
    let record = path.display().to_string();
    let mut pair = Pair::services(test, |options| {
        options.replicated = false;
        let words = ["--record", &record, "--checkpoint-every", every, "--digest-ms", "50"];
        options.vm_options = words.iter().chain(machine).map(|word| word.to_string()).collect();
    })?;
    pair.start_primary().expect("the machine");
    pair.wait_for_guest().expect("the guest answers");
    Some(pair)
}

/// Whether an image of Linux is there; that it is not is said.
pub fn has_guest(name: &str) -> bool {
    let guests = String::from_utf8_lossy(&lockstep(&["guest", "list"]).stdout).into_owned();
    let has = guests.contains(name);
    if !has {
        eprintln!("SKIPPED Linux in a recording: no guest, make it with `lockstep guest build {name}`");
    }
    has
}

/// Writes and reads through a connection.
pub fn load(port: u16, commands: usize) {
    let mut client = Client::connect(port).expect("a connection");
    for number in 0..commands {
        let key = format!("key{}", number % 50);
        match number % 3 {
            0 => client.set(&key, &"x".repeat(number % 300)).expect("SET"),
            1 => drop(client.get(&key).expect("GET")),
            _ => drop(client.incr("count").expect("INCR")),
        }
    }
}

/// A recording of a machine whose power button was pressed under load, and whose guest obeyed.
pub fn switched_off(path: &Path, engine: &str) -> Option<()> {
    let mut pair = start("switched_off", path, "0.03", engine)?;
    load(pair.port(), COMMANDS / 10);
    let socket = pair.control(Part::Primary);
    let mut stop = pair.spawn("stop", &["stop", "--wait", "60", &socket.to_string_lossy()]);
    assert_eq!(stop.exit_code(), 0, "{}", stop.output());
    let status = pair.wait_for_end(Part::Primary).expect("it ends by itself");
    assert!(status.success(), "{status}: {}", pair.log_tail(Part::Primary));
    Some(())
}

type Made = Option<(TempDir, PathBuf)>;

fn made(engine: &str) -> Made {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("run.lkr");
    let mut pair = start("recordings", &path, "0.03", engine)?;
    load(pair.port(), COMMANDS);
    pair.signal(Part::Primary, Signal::SIGTERM).expect("SIGTERM");
    let status = pair.wait_for_end(Part::Primary).expect("it ends by itself");
    assert!(status.success(), "{status}: {}", pair.log_tail(Part::Primary));
    Some((directory, path))
}

/// A recording on KVM of a machine under load that was ended by a signal, made once for all tests that only
/// read it.
pub fn shared() -> Option<&'static Path> {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(|| made("kvm")).as_ref().map(|(_, path)| path.as_path())
}

/// The same on the software CPU.
pub fn shared_soft() -> Option<&'static Path> {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(|| made("soft")).as_ref().map(|(_, path)| path.as_path())
}

/// Runs a command on recordings.
pub fn lockstep(arguments: &[&str]) -> Output {
    let output = Command::new(PROGRAM).args(arguments).output().expect("the program runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!errors.contains("panicked"), "{arguments:?}: {errors}");
    assert!(
        output.status.code().is_some_and(|code| code != 101),
        "{arguments:?}: {} {errors}",
        output.status
    );
    output
}

/// Runs a command that must succeed; its standard output.
pub fn succeeds(arguments: &[&str]) -> String {
    let output = lockstep(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {} {errors}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The last line of what a command that must succeed says, as JSON.
pub fn json(arguments: &[&str]) -> Value {
    let text = succeeds(arguments);
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
}
