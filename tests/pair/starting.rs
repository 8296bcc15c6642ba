//! Commands started again, by a supervisor or by hand: a live copy is left alone, a dead one replaced.

use lockstep::cluster::{ClusterOptions, Part};
use nix::sys::signal::Signal;

use crate::harness::{OTHER_LIVE, Pair, Process, wait_until};

/// Longer than any test.
const LONG_S: u32 = 3600;

fn alone(test: &str, grace_s: u32) -> Option<Pair> {
    let mut pair = Pair::services(test, |options: &mut ClusterOptions| {
        options.replicated = false;
        options.grace_s = grace_s;
    })?;
    pair.start_primary().unwrap();
    pair.wait_for_guest().unwrap();
    Some(pair)
}

/// One more start of the same machine.
fn again(pair: &Pair, name: &str, command: &[&str]) -> Process {
    let network = pair.network();
    let more = ["--disk-server", pair.disk_address(), "--net", &network, "--disk-size", "16"];
    pair.spawn(name, &[command, &more].concat())
}

/// The disk server was restarted and the live copy is not back yet.
#[test]
fn a_restarted_command_does_not_end_a_copy_that_is_briefly_not_connected() {
    let Some(mut pair) = alone("a_restarted_command", LONG_S) else { return };
    for (round, command) in [&["run"][..], &["primary", "--backup", "127.0.0.1:9"]].into_iter().enumerate() {
        pair.signal(Part::Primary, Signal::SIGSTOP).unwrap();
        let address = pair.disk_address().to_string();
        pair.kill(Part::DiskServer).unwrap();
        pair.start_disk_server(&address).unwrap();
        let mut second = again(&pair, &format!("second-{round}"), command);
        second.wait_for_line("may return: starting in");
        pair.signal(Part::Primary, Signal::SIGCONT).unwrap();
        assert_eq!(second.exit_code(), OTHER_LIVE, "{}", second.output());
        assert!(second.output().contains("vm0 is live elsewhere: generation 1"), "{}", second.output());
        pair.client().set("round", &round.to_string()).unwrap();
        assert_eq!(pair.holding().holding.generation, 1, "nothing was won");
    }
}

#[test]
fn a_machine_that_was_killed_is_started_again_after_a_while() {
    let Some(mut pair) = alone("a_machine_that_was_killed", 2) else { return };
    pair.client().set("key", "value").unwrap();
    pair.kill(Part::Primary).unwrap();
    let mut second = again(&pair, "second", &["run"]);
    second.wait_for_line("may return: starting in");
    let mut value = None;
    wait_until("the second to answer", || {
        let client = crate::client::Client::connect(pair.port());
        value = client.and_then(|mut client| client.get("key")).ok().flatten();
        value.is_some()
    });
    assert_eq!(value.as_deref(), Some("value"));
    assert!(second.runs());
}

#[test]
fn a_machine_that_ended_in_order_is_started_again_at_once() {
    let Some(mut pair) = alone("a_machine_that_ended_in_order", LONG_S) else { return };
    for generation in 1..=2 {
        match generation {
            1 => pair.client().shutdown().unwrap(),
            _ => pair.signal(Part::Primary, Signal::SIGTERM).unwrap(),
        }
        assert_eq!(pair.exit_code(Part::Primary), 0);
        let state = pair.holding();
        assert!(state.ended && state.holding.generation == generation, "{state:?}");
        pair.start_primary().unwrap();
        pair.wait_for_guest().unwrap();
        assert!(!pair.log_text(Part::Primary).contains("may return"));
    }
}

/// However long a start would wait: a half of a pair goes on at once. The old command finds it live.
#[test]
fn a_failover_does_not_wait() {
    let long = |options: &mut ClusterOptions| options.grace_s = LONG_S;
    let Some(mut pair) = Pair::start_with("a_failover_does_not_wait", long) else { return };
    pair.client().set("key", "value").unwrap();
    pair.kill(Part::Primary).unwrap();
    pair.assert_one_live(Part::Backup, 2);
    let backup = pair.backup_address().to_string();
    let mut stale = again(&pair, "stale", &["primary", "--backup", &backup]);
    assert_eq!(stale.exit_code(), OTHER_LIVE, "{}", stale.output());
    assert_eq!(pair.client().get("key").unwrap().as_deref(), Some("value"));
    assert_eq!(pair.holding().holding.generation, 2);
}

/// Each thing that can be wrong with a disk server says what it is.
#[test]
fn what_is_wrong_with_the_disk_is_said() {
    let Some(pair) = Pair::services("what_is_wrong_with_the_disk", |_| {}) else { return };
    let server = pair.disk_address().to_string();
    let mut made = pair.spawn("made", &["run", "--disk-server", &server, "--disk-size", "16"]);
    wait_until("the disk to be there", || pair.holding().holding.generation == 1);
    made.kill();
    let nobody = "--disk-server=127.0.0.1:9";
    let here = format!("--disk-server={server}");
    let cases: [(&str, &[&str], &[&str]); 6] = [
        ("nobody", &[nobody], &["no disk server answers at 127.0.0.1:9", "lockstep disk-server --data DIR"]),
        ("no-port", &["--disk-server=localhost"], &["\"localhost\" is no address", "HOST:PORT"]),
        ("vm-name", &[&here, "--vm=../x"], &["--vm \"../x\""]),
        ("disk-name", &[&here, "--disk=a/b"], &["--disk \"a/b\""]),
        ("size", &[&here, "--take-over", "--disk-size=17"], &["(16 MiB)", "(17 MiB)", "--disk-size"]),
        (
            "image",
            &[&here, "--take-over", "--disk-image=/dev/null"],
            &["/dev/null is neither a file nor a block device"],
        ),
    ];
    for (name, options, expected) in cases {
        let mut words = vec!["run"];
        if name == "image" {
            words.extend(["--disk-size", "16", "--disk", "other"]);
        }
        words.extend(options);
        let mut process = pair.spawn(name, &words);
        // An address is refused with the command line.
        let code = if name == "no-port" { 2 } else { 1 };
        assert_eq!(process.exit_code(), code, "{}", process.output());
        let said = process.output();
        assert!(expected.iter().all(|word| said.contains(word)), "{name}: {said}");
        assert_eq!(said.contains("lockstep disk-server --data"), name == "nobody", "{name}: {said}");
    }
}
