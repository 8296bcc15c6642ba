//! The command line: exit codes, help, one server per data directory.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::{Command, Output};

use common::Site;

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_disk-server")).args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn help_has_examples_and_hides_fault_injection() {
    let output = run(&["--help"]);
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(
        help.contains("Examples:") && help.contains("Exit codes:") && help.contains("--listen"),
        "{help}"
    );
    assert!(!help.contains("crash-at") && !help.contains("--fault"), "{help}");
}

#[test]
fn wrong_command_lines_exit_with_2() {
    assert_eq!(run(&[]).status.code(), Some(2));
    let output = run(&["--data", "x", "--crash-at", "nowhere"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("before-record"), "it names the points: {}", stderr(&output));
}

#[test]
fn a_second_server_on_the_directory_exits_with_3() {
    let site = Site::new();
    let mut first = site.start(&[]);
    let data = site.data();
    let second = run(&["--data", data.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    assert_eq!(second.status.code(), Some(3));
    let message = stderr(&second);
    assert!(message.contains("in use") && message.contains(&first.pid().to_string()), "{message}");
    first.kill();
    site.start(&[]);
}

#[test]
fn an_address_in_use_exits_with_4() {
    let site = Site::new();
    let first = site.start(&[]);
    let other = Site::new();
    let second = run(&["--data", other.data().to_str().unwrap(), "--listen", &first.address]);
    assert_eq!(second.status.code(), Some(4));
    assert!(stderr(&second).contains(&first.address));
}

#[test]
fn a_foreign_directory_exits_with_5() {
    let site = Site::new();
    std::fs::create_dir_all(site.data().join("vms")).unwrap();
    let output = run(&["--data", site.data().to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(5));
}

#[test]
fn json_logs_are_json() {
    let site = Site::new();
    let mut server = site.start(&["--json"]);
    server.client().open("vm", "disk", Some(512), 1).unwrap();
    assert_eq!(server.terminate().code(), Some(0));
    let log = server.log();
    assert!(log.lines().count() >= 2);
    for line in log.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
}

#[test]
fn a_damaged_record_is_reported_by_file() {
    let site = Site::new();
    let mut server = site.start(&[]);
    let mut client = server.client();
    for vm in ["bad", "good"] {
        client.open(vm, "disk", Some(512), 1).unwrap();
        client.test_and_set(vm, 0, 1).unwrap();
    }
    server.kill();
    let record = site.data().join("vms/bad/generation");
    let bytes = std::fs::read(&record).unwrap();
    std::fs::write(&record, &bytes[..100]).unwrap();
    let server = site.start(&[]);
    let mut client = server.client();
    let error = client.test_and_set("bad", 1, 2).unwrap_err().to_string();
    assert!(error.contains("vms/bad/generation") && error.contains("100 bytes"), "{error}");
    assert_eq!(client.query("good").unwrap().holding.generation, 1);
    assert!(client.status().unwrap().vms[0].damaged.is_some());
}
