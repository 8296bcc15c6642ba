//! A recording under gdb, forwards and backwards.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use lockstep::debug::paging;
use lockstep::debug::symbols::Symbols;
use lockstep::recording::{Arrival, Session};

use crate::support::{Debuggee, Gdb, gdb_or_skip, wait_until};

const INCR: &str = "minikv_core::commands::strings::incr";

/// The numbers that `monitor position` printed.
fn positions(output: &str) -> Vec<u64> {
    let lines = output.lines().filter_map(|line| line.strip_prefix("position "));
    lines.filter_map(|line| line.split(' ').next()?.parse().ok()).collect()
}

/// A replay that waits for a debugger in `directory`.
fn replay(directory: &Path, file: &Path, options: &[&str]) -> Child {
    let log = std::fs::File::create(directory.join("replay.log")).expect("a log");
    let socket = format!("unix:{}", directory.join("gdb.sock").display());
    let child = Command::new(env!("CARGO_BIN_EXE_lockstep"))
        .args(["replay", "--gdb", &socket])
        .arg(file)
        .args(options)
        .env(lockstep::cluster::DIE_WITH_PARENT, "1")
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log)
        .spawn()
        .expect("it starts");
    wait_until("the replay to wait for a debugger", || said(directory).contains("waiting for a debugger"));
    child
}

fn said(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("replay.log")).unwrap_or_default()
}

/// Waits for its end, which is to be a good one; what it said.
fn end(replay: &mut Child, directory: &Path) -> String {
    let mut status = None;
    wait_until("the replay to end", || {
        status = replay.try_wait().expect("a child can be asked");
        status.is_some()
    });
    assert!(status.expect("it ended").success(), "{}", said(directory));
    said(directory)
}

/// `--from` is where the debugger finds the guest and `--to` where it leaves it; between them all of the
/// recording is there, and symbols too, though nobody said of which file.
#[test]
fn a_debugger_comes_and_goes_where_the_replay_is_told() {
    if !gdb_or_skip("a debugger comes and goes where the replay is told") {
        return;
    }
    let (directory, file) = Debuggee::record("soft", |client| assert_eq!(client.ask("INCR n"), ":1"));
    let end_at = lockstep::recording::Recording::open(&file).expect("a recording").end().count;
    let (from, to) = (end_at / 2, end_at / 4 * 3);
    let words = [from.to_string(), to.to_string()];
    let control = directory.path().join("control.sock");
    let control_path = control.display().to_string();
    let options = ["--from", words[0].as_str(), "--to", words[1].as_str(), "--control", &control_path];
    let address = format!("monitor address {INCR}");
    let place = "monitor position";
    let mut commands = vec![place, "reverse-stepi", place, "stepi 3", place, address.as_str()];
    commands.extend(["reverse-continue", place, "continue", place, "reverse-stepi", place, "detach"]);
    let mut child = replay(directory.path(), &file, &options);
    wait_until("the replay to say where it is", || {
        let status = lockstep::io::control::ask(&control, "status").unwrap_or_default();
        let status: serde_json::Value = serde_json::from_str(&status).unwrap_or_default();
        status["role"] == "replay"
            && status["guest"]["position"] == from
            && status["guest"]["mips"].is_number()
    });
    let output = Gdb::start(directory.path(), &commands).finish();
    assert_eq!(positions(&output), [from, from - 1, from + 2, 0, to, to - 1], "{output}");
    let symbols = Symbols::of_file(guest_images::MINIKV).expect("symbols");
    let incr = symbols.address(INCR).expect("a function");
    assert!(output.contains(&format!("{incr:#x}")), "{output}");
    let said = end(&mut child, directory.path());
    assert!(said.contains(&format!("position {to} (instructions)")) && said.contains(": there"), "{said}");
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
    let mut replay = replay(directory.path(), &file, &[]);
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
    let said = end(&mut replay, directory.path());
    assert!(said.contains("end of the log") || said.contains("powered off"), "{said}\n{output}");
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

/// Positions from `from` on after which any of these places, of eight bytes each, has another content: by
/// single steps.
fn changes(file: &Path, from: u64, places: &[u64], count: usize) -> Vec<u64> {
    let mut session = Session::open(file).expect("a session");
    session.run_to(logchannel::Position::at(from)).expect("it gets there");
    let content = |session: &mut Session| {
        let cpu = session.machine_mut().cpu().expect("registers");
        let memory = session.machine().ram().map();
        let read = |place: &u64| {
            let mut bytes = vec![0; 8];
            let mapped = paging::read(&cpu, memory, *place, &mut bytes);
            bytes.truncate(mapped);
            bytes
        };
        places.iter().map(read).collect::<Vec<_>>()
    };
    let (mut found, mut last) = (Vec::new(), content(&mut session));
    while found.len() < count {
        assert_eq!(session.step(1).expect("a step"), Arrival::There, "{found:?}");
        let now = content(&mut session);
        if now != last {
            found.push(session.position().count);
            last = now;
        }
    }
    found
}

/// Watchpoints run at full speed between the stores that touch what they watch, and stop where single steps
/// see a change: forwards after it, backwards before.
#[test]
fn watchpoints_stop_where_single_steps_see_changes() {
    const FORWARDS: usize = 12;
    const BACKWARDS: usize = 5;
    if !gdb_or_skip("watchpoints stop where single steps see changes") {
        return;
    }
    let (directory, file) = Debuggee::record("soft", |client| {
        for n in 1..=3 {
            assert_eq!(client.ask("INCR n"), format!(":{n}"));
        }
    });
    let mut child = replay(directory.path(), &file, &[]);
    let symbols = Symbols::of_file(guest_images::MINIKV).expect("symbols");
    let stop = format!("break *{:#x}", symbols.address(INCR).expect("a function"));
    let place = "monitor position";
    let mut commands = vec![stop.as_str(), "continue", place, "delete", "set $top = $rsp"];
    commands.extend([
        "printf \"top %lx\\n\", $top",
        "watch *(long *)($top - 8)",
        "watch *(long *)($top - 300)",
    ]);
    (0..FORWARDS).for_each(|_| commands.extend(["continue", place]));
    (0..BACKWARDS).for_each(|_| commands.extend(["reverse-continue", place]));
    commands.push("detach");
    let output = Gdb::start(directory.path(), &commands).finish();
    end(&mut child, directory.path());
    let top = output.lines().find_map(|line| line.strip_prefix("top ")).expect("RSP");
    let top = u64::from_str_radix(top, 16).expect("a number");
    let at = positions(&output);
    assert_eq!(at.len(), 1 + FORWARDS + BACKWARDS, "{output}");
    let expected = changes(&file, at[0], &[top - 8, top - 300], FORWARDS);
    assert_eq!(at[1..=FORWARDS], expected, "forwards: {output}");
    let backwards: Vec<u64> = expected.iter().rev().take(BACKWARDS).map(|after| after - 1).collect();
    assert_eq!(at[1 + FORWARDS..], backwards, "backwards: {output}");
}
