//! Who may start a machine that another copy holds: nobody while that copy is there or may return.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Server, Site, until};
use disk_server::Embedded;
use disk_server::client::{Claim, ClientError, DiskClient, Start};
use disk_server::protocol::{ErrorCode, VmState};

const A: u128 = 0xaaaa;
const B: u128 = 0xbbbb;
const BYTES: u64 = 1 << 20;
/// Longer than any test.
const LONG: [&str; 2] = ["--grace", "3600"];

fn holder(server: &Server) -> DiskClient {
    let mut client = server.client();
    client.open("vm", "disk", Some(BYTES), A).unwrap();
    client
}

fn start(server: &Server, expect: u64) -> Start {
    server.client().start("vm", expect, B, false).unwrap()
}

fn held(start: Start) -> VmState {
    match start {
        Start::Held(state) => state,
        other => panic!("not held: {other:?}"),
    }
}

fn gone(server: &Server) {
    until("the holder is gone", || !server.client().query("vm").unwrap().holder_connected);
}

#[test]
fn a_start_waits_for_a_holder_that_is_connected_or_may_return() {
    let site = Site::new();
    let mut server = site.start(&LONG);
    let mut live = holder(&server);
    assert_eq!(live.start("vm", 0, A, false).unwrap(), Start::Won(1));
    let state = held(start(&server, 1));
    assert!(
        state.holder_connected && state.may_return_ms == 0 && state.holding.holder == Some(A),
        "{state:?}"
    );
    drop(live);
    gone(&server);
    let state = held(start(&server, 1));
    assert!(!state.holder_connected && state.may_return_ms > 3_000_000, "{state:?}");
    // It returns.
    let live = holder(&server);
    assert!(held(start(&server, 1)).holder_connected);
    drop(live);
    server.kill();
    // The server's memory of connections is gone, not the holder.
    let server = site.start(&LONG);
    assert!(held(start(&server, 1)).may_return_ms > 3_000_000);
    let mut live = holder(&server);
    let disk = live.open("vm", "disk", None, A).unwrap().disk;
    live.write(disk, 1, 0, &[1; 512], true).unwrap();
    assert_eq!(server.client().query("vm").unwrap().holding.generation, 1, "nothing was won");
}

#[test]
fn a_half_of_a_pair_and_a_person_do_not_wait() {
    let site = Site::new();
    let server = site.start(&LONG);
    let mut live = holder(&server);
    live.start("vm", 0, A, false).unwrap();
    assert_eq!(server.client().test_and_set("vm", 1, B).unwrap(), Claim::Won(2));
    // The claimant's own claim, repeated after a lost answer, is won again.
    assert_eq!(server.client().start("vm", 1, B, false).unwrap(), Start::Won(2));
    assert_eq!(server.client().start("vm", 2, A, true).unwrap(), Start::Won(3));
    assert!(matches!(start(&server, 1), Start::Lost(_)));
}

#[test]
fn a_start_wins_when_the_time_is_over() {
    let site = Site::new();
    let server = site.start(&["--grace", "1"]);
    holder(&server).start("vm", 0, A, false).unwrap();
    until("the start to win", || start(&server, 1) == Start::Won(2));
}

#[test]
fn a_holder_that_said_goodbye_is_not_waited_for_and_writes_no_more() {
    let site = Site::new();
    let mut server = site.start(&LONG);
    let mut live = holder(&server);
    live.start("vm", 0, A, false).unwrap();
    let disk = live.open("vm", "disk", None, A).unwrap().disk;
    live.write(disk, 1, 0, &[1; 512], true).unwrap();
    for (generation, claimant) in [(0, A), (1, B), (2, A)] {
        server.client().release("vm", generation, claimant).unwrap_err();
    }
    assert!(!server.client().query("vm").unwrap().ended, "only the holder can release");
    live.release("vm", 1, A).unwrap();
    live.release("vm", 1, A).unwrap();
    match live.write(disk, 1, 0, &[2; 512], true) {
        Err(ClientError::Refused { code: ErrorCode::NeverGranted, message }) => {
            assert!(message.contains("released"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    server.kill();
    let server = site.start(&LONG);
    assert!(server.client().query("vm").unwrap().ended);
    assert_eq!(start(&server, 1), Start::Won(2));
    assert!(!server.client().query("vm").unwrap().ended);
}

fn local(data: &std::path::Path, vm: &str) -> (Embedded, DiskClient) {
    let store = Embedded::open(data, vm).unwrap();
    let client = DiskClient::connect(store.address(), common::DEADLINE).unwrap();
    (store, client)
}

#[test]
fn machines_that_keep_their_disks_share_a_directory_and_no_name() {
    let site = Site::new();
    let (a, mut of_a) = local(&site.data(), "a");
    let (_b, mut of_b) = local(&site.data(), "b");
    for (client, vm) in [(&mut of_a, "a"), (&mut of_b, "b")] {
        let disk = client.open(vm, "disk", Some(BYTES), A).unwrap().disk;
        assert_eq!(client.start(vm, 0, A, false).unwrap(), Start::Won(1));
        client.write(disk, 1, 0, &[1; 512], true).unwrap();
    }
    of_a.open("b", "disk", Some(BYTES), A).unwrap_err();
    let again = Embedded::open(&site.data(), "a").unwrap_err();
    assert!(again.to_string().contains("a runs already (process"), "{again}");
    assert_eq!(again.exit_code(), 3);
    let server = std::process::Command::new(env!("CARGO_BIN_EXE_disk-server"));
    let mut server = server;
    let output = server.arg("--data").arg(site.data()).args(["--listen", "127.0.0.1:0"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3));
    assert!(said.contains("virtual machine a (process") && said.contains("virtual machine b"), "{said}");
    // One that ends without a word is not waited for: its process had the lock.
    drop((a, of_a));
    let (_a, mut of_a) = local(&site.data(), "a");
    assert_eq!(of_a.start("a", 1, B, false).unwrap(), Start::Won(2));
}

#[test]
fn a_directory_changes_hands_between_a_machine_and_a_disk_server() {
    let site = Site::new();
    let (store, mut client) = local(&site.data(), "vm");
    let disk = client.open("vm", "disk", Some(BYTES), A).unwrap().disk;
    client.start("vm", 0, A, false).unwrap();
    client.write(disk, 1, 512, &[7; 512], false).unwrap();
    drop((store, client));
    let mut server = site.start(&LONG);
    let refused = Embedded::open(&site.data(), "vm").unwrap_err().to_string();
    assert!(refused.contains("in use by a disk server (process"), "{refused}");
    let mut live = holder(&server);
    assert_eq!(live.start("vm", 1, A, false).unwrap(), Start::Won(2), "the first process is gone");
    let disk = live.open("vm", "disk", None, A).unwrap().disk;
    assert_eq!(live.read(disk, 2, 512, 512).unwrap(), [7; 512]);
    server.kill();
    // A copy that lost its disk server may still run: a machine with the directory to itself cannot tell.
    let (_store, mut client) = local(&site.data(), "vm");
    let refused = client.start("vm", 2, B, false).unwrap_err().to_string();
    assert!(refused.contains("start the disk server again"), "{refused}");
    assert_eq!(client.start("vm", 2, B, true).unwrap(), Start::Won(3));
}
