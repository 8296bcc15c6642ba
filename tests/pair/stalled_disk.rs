//! A disk server that takes no requests any more, with as much in flight as a guest can have: the guest's
//! writes wait, and nothing else does.

use lockstep::cluster::Part;
use lockstep::io::clock::HostClock;
use nix::sys::signal::Signal;

use crate::client::Client;
use crate::harness::{Pair, wait_until};

/// Writers, each of a value as large as the guest takes.
const WRITERS: usize = 12;
const VALUE_BYTES: usize = 1 << 20;
/// What a guest has in flight that waits for room, about.
const MANY: u64 = 4;
/// Longer than any timeout of the protocol: four times --timeout-ms, and what a socket may have waited.
const STALL_NS: u64 = 6_000_000_000;

fn write(port: u16, writer: usize) -> String {
    let mut client = Client::connect(port).expect("a connection to the guest");
    let key = format!("large{writer}");
    client.set(&key, &value(writer)).expect("the write is done at last");
    key
}

fn value(writer: usize) -> String {
    let letter = char::from(b'a' + u8::try_from(writer).expect("few writers"));
    letter.to_string().repeat(VALUE_BYTES)
}

#[test]
fn a_stalled_disk_server_with_much_in_flight_is_no_failover() {
    let Some(mut pair) = Pair::start_with("a_stalled_disk_server", |options| {
        options.vm_options = ["--disk-size", "64", "--memory", "128"].map(String::from).into();
    }) else {
        return;
    };
    pair.signal(Part::DiskServer, Signal::SIGSTOP).unwrap();
    let port = pair.port();
    let writers: Vec<_> =
        (0..WRITERS).map(|writer| std::thread::spawn(move || write(port, writer))).collect();
    let clock = HostClock;
    let in_flight = |pair: &Pair| {
        let status = pair.status(Part::Primary).ok()?;
        status.pointer("/live/disk_in_flight")?.as_u64()
    };
    wait_until("much to be in flight", || in_flight(&pair) >= Some(MANY));
    let since = clock.now_ns();
    while clock.now_ns() - since < STALL_NS {
        for (part, wanted) in [(Part::Primary, "Replicating"), (Part::Backup, "Following")] {
            let state = pair.state(part);
            assert_eq!(state.as_deref(), Some(wanted), "{}: {}", part.name(), pair.log_tail(part));
        }
        // tidy: allow(sleep) between two looks
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    pair.signal(Part::DiskServer, Signal::SIGCONT).unwrap();
    let keys: Vec<String> = writers.into_iter().map(|writer| writer.join().expect("no panic")).collect();
    let mut client = pair.client();
    for (writer, key) in keys.iter().enumerate() {
        assert!(client.get(key).unwrap().as_deref() == Some(&value(writer)), "{key} is not what was written");
    }
    pair.wait_for_state(Part::Primary, "Replicating");
    pair.wait_for_state(Part::Backup, "Following");
    assert_eq!(pair.holding().holding.generation, 1);
    // The log of a stall is short, however long it lasts.
    for part in [Part::Primary, Part::Backup] {
        let lines = pair.log_text(part).lines().filter(|line| line.contains("WARN")).count();
        assert!(lines < 20, "{lines} warnings of {}:\n{}", part.name(), pair.log_tail(part));
    }
}
