//! The control socket: hostile and slow clients, `replicate`, and what `status` says from the first moment
//! on.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use lockstep::cluster::{ClusterOptions, Part};
use lockstep::io::control::ask;
use nix::pty::{Winsize, openpty};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{PROGRAM, Pair, wait_until};

fn unreplicated(options: &mut ClusterOptions) {
    options.replicated = false;
}

fn alone(test: &str) -> Option<Pair> {
    let mut pair = Pair::services(test, unreplicated)?;
    pair.start_primary().unwrap();
    pair.wait_for_guest().unwrap();
    pair.wait_for_state(Part::Primary, "Alone");
    Some(pair)
}

/// The error that a request is answered with.
fn error(socket: &Path, request: &str) -> String {
    let answer = ask(socket, request).unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{request:?}: {answer:?}"));
    answer["error"].as_str().unwrap_or_else(|| panic!("{request:?}: {answer}")).to_string()
}

fn raw(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn requests_that_are_none_are_answered_with_an_error() {
    let Some(mut pair) = alone("requests_that_are_none") else { return };
    let socket = pair.control(Part::Primary);
    for (request, said) in [
        ("replicate", "needs the address"),
        ("replicate ", "needs the address"),
        ("replicate nonsense", "has no port"),
        ("replicate 127.0.0.1:0", "port 0"),
        ("replicate ::1:7700", "brackets"),
        ("replicate no-such-host.invalid:7700", "cannot reach a backup"),
        ("replicate 127.0.0.1:1 now", "no number"),
        ("", "unknown request"),
        ("bogus", "unknown request"),
        ("status now", "unknown request"),
        ("shutdown please", "unknown request"),
    ] {
        let told = error(&socket, request);
        assert!(told.contains(said), "{request:?}: {told}");
    }
    assert!(raw(&socket, &[0xff, 0xfe, b'\n']).contains("not UTF-8"));
    assert!(raw(&socket, &[b'x'; 256]).contains("at most 255 bytes"));
    assert!(raw(&socket, &[[b'x'; 255].as_slice(), b"\n"].concat()).contains("unknown request"));
    raw(&socket, &vec![b'\n'; 1 << 16]);
    raw(&socket, &vec![b'y'; 1 << 20]);
    assert!(raw(&socket, b"status").contains("\"role\""), "an end is as good as a new line");
    pair.wait_for_state(Part::Primary, "Alone");
}

/// Clients that say nothing take no more than their places, and give them up.
#[test]
fn silent_clients_do_not_keep_others_out() {
    let Some(pair) = alone("silent_clients") else { return };
    let socket = pair.control(Part::Primary);
    let some: Vec<UnixStream> = (0..20).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    assert!(ask(&socket, "status").unwrap().contains("\"role\""));
    let more: Vec<UnixStream> = (0..40).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    wait_until("the silent ones to lose their places", || {
        ask(&socket, "status").is_ok_and(|answer| answer.contains("\"role\""))
    });
    drop((some, more));
}

#[test]
fn replication_is_one_at_a_time_and_never_holds_status_up() {
    let Some(mut pair) = alone("replication_is_one_at_a_time") else { return };
    let socket = pair.control(Part::Primary);
    // Takes connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = silent.local_addr().unwrap().to_string();
    let mut slow = UnixStream::connect(&socket).unwrap();
    writeln!(slow, "replicate {to}").unwrap();
    let state = |pair: &Pair| pair.status(Part::Primary).unwrap()["replication"]["state"].clone();
    wait_until("the attempt to be under way", || state(&pair) == "connecting");
    let second = error(&socket, "replicate 127.0.0.1:1");
    assert!(second.contains(&format!("being replicated to {to} already")), "{second}");
    assert_eq!(state(&pair), "connecting", "neither status nor the second waited for the first");
    let mut answer = String::new();
    BufReader::new(slow).read_line(&mut answer).unwrap();
    assert!(answer.contains("did not answer the greeting"), "{answer}");
    assert_eq!(state(&pair), "failed");

    let mut bad = pair.spawn("bad", &["replicate", socket.to_str().unwrap(), "--to", "nonsense"]);
    assert_eq!(bad.exit_code(), 2, "{}", bad.output());
    assert!(bad.output().contains("it has no port"), "{}", bad.output());

    pair.start_backup().unwrap();
    let words = ["replicate", socket.to_str().unwrap(), "--to", pair.backup_address(), "--wait"];
    let mut good = pair.spawn("good", &words);
    assert_eq!(good.exit_code(), 0, "{}", good.output());
    let status = pair.status(Part::Primary).unwrap();
    assert_eq!(
        (&status["live"]["state"], &status["replication"]["state"]),
        (&"Replicating".into(), &"done".into())
    );
    assert_eq!(status["failover_possible"], true, "{status}");
    let has_one = error(&socket, &format!("replicate {to}"));
    let of_backup = format!("has a backup already, asked to at {}", pair.backup_address());
    assert!(has_one.contains(&of_backup), "{has_one}");
    assert_eq!(state(&pair), "done", "a refusal is no attempt");
    pair.wait_for_state(Part::Backup, "Following");
    pair.kill(Part::Primary).unwrap();
    pair.wait_for_state(Part::Backup, "Alone");
}

/// A backup answers before anybody connects, and says what it waits for.
#[test]
fn status_tells_a_waiting_backup_and_a_silent_disk_server() {
    let Some(mut pair) = Pair::services("status_tells", |_| {}) else { return };
    pair.start_backup().unwrap();
    let status = pair.status(Part::Backup).unwrap();
    assert_eq!((&status["role"], &status["backup"]["state"]), (&"backup".into(), &"Waiting".into()));
    assert_eq!(status["failover_possible"], false, "{status}");
    assert!(status.get("guest").is_none(), "{status}");
    let told = error(&pair.control(Part::Backup), "replicate 127.0.0.1:1");
    assert!(told.contains("no live copy runs"), "{told}");
    pair.start_primary().unwrap();
    pair.wait_for_guest().unwrap();
    pair.wait_for_state(Part::Primary, "Replicating");
    let both = [Part::Primary, Part::Backup];
    for part in both {
        wait_until("the guest to be somewhere", || {
            pair.status(part).unwrap()["guest"]["position"].as_u64().is_some_and(|position| position > 0)
        });
        let guest = &pair.status(part).unwrap()["guest"];
        assert!(guest["per_second"].is_number(), "{guest}");
        assert_eq!(guest["mips"].is_number(), guest["clock"] == "instructions", "{guest}");
        assert_eq!(guest["translator"].is_object(), guest["clock"] == "instructions", "{guest}");
    }
    let say = |pair: &Pair, answers: bool| {
        both.iter().all(|part| {
            let status = pair.status(*part).unwrap();
            status["disk_server"]["answers"] == answers && status["failover_possible"] == answers
        })
    };
    wait_until("both to see the disk server", || say(&pair, true));
    pair.signal(Part::DiskServer, Signal::SIGSTOP).unwrap();
    wait_until("both to miss the disk server", || say(&pair, false));
    for part in both {
        let status = pair.status(part).unwrap();
        let of = |name: &str| status["disk_server"][name].clone();
        assert_eq!(of("address"), pair.disk_address());
        assert!(
            of("silent_s").as_f64().unwrap() > 0.0 && of("silent_since").as_u64().unwrap() > 0,
            "{status}"
        );
        let socket = pair.control(part);
        let mut text = pair.spawn("text", &["status", socket.to_str().unwrap()]);
        assert_eq!(text.exit_code(), 0);
        assert!(text.output().contains("no failover is possible until it answers"), "{}", text.output());
    }
    pair.signal(Part::DiskServer, Signal::SIGCONT).unwrap();
    wait_until("both to see the disk server again", || say(&pair, true));
    for part in both {
        assert!(pair.status(part).unwrap()["disk_server"].get("silent_since").is_none());
    }
}

/// What `lockstep status` draws on a terminal of 80 columns until it has drawn `times`.
fn on_a_terminal(socket: &Path, times: usize, environment: &[(&str, &str)]) -> String {
    let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = openpty(&size, None).expect("a terminal");
    let mut command = Command::new(PROGRAM);
    command.args(["status", "--watch", "1"]).arg(socket).env("TERM", "xterm").env_remove("NO_COLOR");
    command.envs(environment.iter().copied()).stdin(Stdio::null()).stdout(terminal.slave);
    let mut child = command.spawn().expect("a child");
    drop(command);
    let (mut text, mut chunk) = (String::new(), [0; 4096]);
    let mut master = std::fs::File::from(terminal.master);
    while text.matches("\x1b[J").count() < times {
        let count = master.read(&mut chunk).expect("what it draws");
        text += &String::from_utf8_lossy(&chunk[..count]);
        assert!(text.lines().count() < 60 * times, "it scrolls: {text:?}");
    }
    let _ = child.kill();
    let _ = child.wait();
    text
}

#[test]
fn status_redraws_in_place_on_a_terminal() {
    let Some(pair) = alone("status_redraws_in_place") else { return };
    let socket = pair.control(Part::Primary);
    for (environment, colours) in [(&[][..], true), (&[("NO_COLOR", "1")][..], false)] {
        let text = on_a_terminal(&socket, 3, environment);
        let views: Vec<&str> = text.split("\x1b[J").collect();
        let lines = views[0].matches("\r\n").count();
        assert!(lines > 3, "{text:?}");
        // Up by as many lines as were drawn.
        assert!(views[1].starts_with(&format!("\x1b[{lines}A\r")), "{text:?}");
        assert_eq!(text.contains("\x1b[33m"), colours, "{text:?}");
        for line in views[0].split("\r\n") {
            let bare = ["\x1b[K", "\x1b[33m", "\x1b[0m"]
                .iter()
                .fold(line.to_string(), |l, code| l.replace(code, ""));
            assert!(bare.chars().count() <= 80, "{bare}");
        }
    }
    // To a pipe it appends, without a colour.
    let mut plain = pair.spawn("plain", &["status", socket.to_str().unwrap()]);
    assert_eq!(plain.exit_code(), 0);
    assert!(plain.output().contains("Alone generation 1") && !plain.output().contains('\x1b'));
}
