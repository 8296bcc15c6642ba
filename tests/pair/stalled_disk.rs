//! A disk server that takes no requests any more, with as much in flight as a guest can have: the guest's
//! writes wait, and nothing else does.

use std::thread::JoinHandle;
use std::time::Duration;

use lockstep::io::clock::HostClock;
use nix::sys::signal::Signal;

use crate::client::Client;
use crate::harness::{Pair, wait_until};
use crate::namespaces::{FarPair, Hosts, holding, state};

/// Writers, each of a value as large as the guest takes.
const WRITERS: usize = 12;
const VALUE_BYTES: usize = 1 << 20;
/// Requests in flight of a guest that waits for room.
const MANY: u64 = 4;
/// Longer than any timeout of the protocol, and than a write may find no room.
const STALL: Duration = Duration::from_secs(6);

fn value(writer: usize) -> String {
    let letter = char::from(b'a' + u8::try_from(writer).expect("few writers"));
    letter.to_string().repeat(VALUE_BYTES)
}

fn write(port: u16) -> Vec<JoinHandle<()>> {
    let write = move |writer: usize| {
        let mut client = Client::connect(port).expect("a connection to the guest");
        client.set(&format!("large{writer}"), &value(writer)).expect("the write is done at last");
    };
    let start = |writer| std::thread::Builder::new().spawn(move || write(writer)).expect("a thread");
    (0..WRITERS).map(start).collect()
}

/// Both halves go on as they are for as long as the stall takes, and say so.
fn nothing_changes(pair: &Pair, far: &mut FarPair) {
    let since_ns = HostClock.now_ns();
    while u128::from(HostClock.now_ns() - since_ns) < STALL.as_nanos() {
        let (primary, backup) =
            (state(pair.directory(), "far-primary"), state(pair.directory(), "far-backup"));
        assert_eq!(primary["live"]["state"], "Replicating", "{primary}\n{}", far.primary.output());
        assert_eq!(backup["backup"]["state"], "Following", "{backup}\n{}", far.backup.output());
        // tidy: allow(sleep) between two looks
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_disk_server_that_stalls_with_much_in_flight_is_no_failover() {
    let test = "a_disk_server_that_stalls";
    let Some(pair) = Pair::services(test, |_| {}) else { return };
    let Some(hosts) = Hosts::new(test) else { return };
    // What is in flight fits no socket's buffer.
    [0, 1, 2].into_iter().for_each(|host| hosts.small_buffers(host));
    let mut far = FarPair::start(&pair, &hosts);
    let in_flight = || state(pair.directory(), "far-primary")["live"]["disk_in_flight"].as_u64();
    // Stopped, then cut off from both halves.
    for round in [0, 1] {
        match round {
            0 => far.disks.signal(Signal::SIGSTOP),
            _ => [0, 1].into_iter().for_each(|host| hosts.disk_link(host, false)),
        }
        let writers = write(pair.port());
        wait_until("much to be in flight", || in_flight() >= Some(MANY));
        nothing_changes(&pair, &mut far);
        for name in ["far-primary", "far-backup"] {
            wait_until("each half to say so", || {
                state(pair.directory(), name)["disk_server"]["answers"] == false
            });
        }
        match round {
            0 => far.disks.signal(Signal::SIGCONT),
            _ => [0, 1].into_iter().for_each(|host| hosts.disk_link(host, true)),
        }
        writers.into_iter().for_each(|writer| writer.join().expect("no panic"));
        let mut client = pair.client();
        for writer in 0..WRITERS {
            let found = client.get(&format!("large{writer}")).unwrap();
            assert!(found.as_deref() == Some(&value(writer)), "large{writer} is not what was written");
        }
        assert_eq!(holding(&hosts).holding.generation, 1);
    }
}
