//! A recording under gdb, forwards and backwards.

use std::process::{Command, Stdio};

use lockstep::debug::symbols::Symbols;

use crate::support::{Debuggee, Gdb, gdb_or_skip, wait_until};

const INCR: &str = "minikv_core::commands::strings::incr";

/// The numbers that `monitor position` printed.
fn positions(output: &str) -> Vec<u64> {
    let lines = output.lines().filter_map(|line| line.strip_prefix("position "));
    lines.filter_map(|line| line.split(' ').next()?.parse().ok()).collect()
}

#[test]
fn gdb_goes_back_to_where_it_was() {
    if !gdb_or_skip("gdb goes back to where it was") {
        return;
    }
    let (directory, file) = Debuggee::record("soft", |client| {
        for n in 1..=3 {
            assert_eq!(client.ask("INCR n"), format!(":{n}"));
        }
    });
    let log = std::fs::File::create(directory.path().join("replay.log")).expect("a log");
    let socket = format!("unix:{}", directory.path().join("gdb.sock").display());
    let mut replay = Command::new(env!("CARGO_BIN_EXE_lockstep"))
        .args(["replay", "--gdb", &socket])
        .arg(&file)
        .env(lockstep::cluster::DIE_WITH_PARENT, "1")
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log)
        .spawn()
        .expect("it starts");
    let said = || std::fs::read_to_string(directory.path().join("replay.log")).unwrap_or_default();
    wait_until("the replay to wait for a debugger", || said().contains("waiting for a debugger"));
    let symbols = Symbols::of_file(guest_images::MINIKV).expect("symbols");
    let incr = symbols.address(INCR).expect("a function");
    let stop = format!("break *{incr:#x}");
    let where_are_we = ["monitor position", "info registers rip rbx rsp"];
    let mut commands = vec![stop.as_str(), "continue"];
    commands.extend(where_are_we);
    commands.push("continue");
    commands.extend(where_are_we);
    commands.push("stepi 7");
    commands.push("monitor position");
    commands.push("reverse-stepi");
    commands.push("monitor position");
    // Back over the steps to the second call, then to the first, then to the beginning.
    commands.push("reverse-continue");
    commands.extend(where_are_we);
    commands.push("reverse-continue");
    commands.extend(where_are_we);
    commands.push("reverse-continue");
    commands.push("monitor position");
    // And on to the second again, the third, the end.
    commands.extend(["continue", "continue"]);
    commands.extend(where_are_we);
    commands.extend(["continue", "continue", "monitor position", "detach"]);
    let output = Gdb::start(directory.path(), &commands).finish();
    let mut status = None;
    wait_until("the replay to end", || {
        status = replay.try_wait().expect("a child can be asked");
        status.is_some()
    });
    assert!(status.expect("it ended").success(), "{}\n{output}", said());
    let at = positions(&output);
    assert_eq!(at.len(), 9, "{output}");
    let (first, second) = (at[0], at[1]);
    assert!(first < second, "{output}");
    assert_eq!(at[2..], [second + 7, second + 6, second, first, 0, second, at[8]], "{output}");
    assert!(at[8] > second, "{output}");
    let registers: Vec<String> = output
        .lines()
        .filter(|line| ["rip ", "rbx ", "rsp "].iter().any(|name| line.starts_with(name)))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let groups: Vec<&[String]> = registers.chunks(3).collect();
    assert_eq!(groups.len(), 5, "{output}");
    assert_eq!((groups[2], groups[3], groups[4]), (groups[1], groups[0], groups[1]), "{output}");
    assert!(output.contains("No more reverse-execution history"), "{output}");
}
