//! Machines without a backup keep their disks themselves: no other process is needed.

use std::path::Path;

use lockstep::io::control;
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{OTHER_LIVE, Process, wait_until};

fn run(directory: &Path, vm: &str, more: &[&str]) -> Process {
    let data = directory.join("data").display().to_string();
    let socket = directory.join(format!("{vm}.sock")).display().to_string();
    let words = ["run", "--vm", vm, "--data", &data, "--control", &socket, "--disk-size", "16"];
    Process::spawn(directory, vm, &[], &[&words[..], more].concat())
}

fn status(directory: &Path, vm: &str) -> Option<Value> {
    let answer = control::ask(&directory.join(format!("{vm}.sock")), "status").ok()?;
    serde_json::from_str(&answer).ok()
}

fn generation(directory: &Path, vm: &str) -> Option<u64> {
    status(directory, vm)?.pointer("/live/generation")?.as_u64()
}

fn wait_for(process: &mut Process, directory: &Path, vm: &str, expected: u64) {
    wait_until("the machine to run", || {
        assert!(process.runs(), "{}", process.output());
        generation(directory, vm) == Some(expected)
    });
}

#[test]
fn a_machine_needs_no_disk_server_and_is_started_once() {
    let directory = TempDir::new().unwrap();
    let mut first = run(directory.path(), "a", &[]);
    wait_for(&mut first, directory.path(), "a", 1);
    let mut other = run(directory.path(), "b", &[]);
    wait_for(&mut other, directory.path(), "b", 1);

    let data = directory.path().join("data").display().to_string();
    let again = ["run", "--vm", "a", "--data", &data, "--disk-size", "16"];
    let mut second = Process::spawn(directory.path(), "second", &[], &again);
    assert_eq!(second.exit_code(), OTHER_LIVE, "{}", second.output());
    assert!(second.output().contains("virtual machine a runs already (process"), "{}", second.output());
    assert_eq!(generation(directory.path(), "a"), Some(1));

    let refused = control::ask(&directory.path().join("a.sock"), "replicate 127.0.0.1:9").unwrap();
    assert!(
        refused.contains("keeps its disk itself") && refused.contains("lockstep disk-server"),
        "{refused}"
    );

    first.signal(Signal::SIGTERM);
    assert_eq!(first.exit_code(), 0, "{}", first.output());
    let mut first = run(directory.path(), "a", &[]);
    wait_for(&mut first, directory.path(), "a", 2);
    // Nobody else can have the directory: a killed one is not waited for.
    first.kill();
    let mut first = run(directory.path(), "a", &[]);
    wait_for(&mut first, directory.path(), "a", 3);
    assert!(!first.output().contains("may return"), "{}", first.output());
}

#[test]
fn the_directory_is_found_and_private() {
    use std::os::unix::fs::PermissionsExt;
    let directory = TempDir::new().unwrap();
    let home = format!("XDG_DATA_HOME={}", directory.path().display());
    let socket = directory.path().join("vm0.sock").display().to_string();
    let words = ["run", "--control", &socket, "--disk-size", "16"];
    let mut machine = Process::spawn(directory.path(), "vm0", &["env", &home], &words);
    wait_for(&mut machine, directory.path(), "vm0", 1);
    let data = directory.path().join("lockstep");
    assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
    let image = std::fs::metadata(data.join("vms/vm0/disks/disk0.img")).unwrap();
    assert_eq!((image.len(), image.permissions().mode() & 0o777), (16 << 20, 0o600));
}

/// Who stops a machine can start it again at once, and hears of nothing that went wrong.
#[test]
fn a_machine_that_was_stopped_can_be_started_at_once() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("a.sock").display().to_string();
    for generation in 1..=4 {
        let mut machine = run(directory.path(), "a", &[]);
        wait_for(&mut machine, directory.path(), "a", generation);
        let mut stop = Process::spawn(directory.path(), "stop", &[], &["stop", &socket]);
        assert_eq!(stop.exit_code(), 0, "{}", stop.output());
        assert!(!machine.runs(), "it was said to be off");
        assert!(!machine.output().contains("WARN"), "{}", machine.output());
    }
}
