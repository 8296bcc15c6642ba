//! A client that connects anew repeats its requests there: what the server still has of the old connection
//! must not be executed after them.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Server, Site, new_vm, until};
use disk_server::client::{AnswerReader, ClientError, DiskClient, DiskOutcome, RequestSender};
use logchannel::{DiskOp, DiskRequest};

const A: u128 = 0xaaaa;
const B: u128 = 0xbbbb;
const BYTES: u64 = 1 << 20;
/// As many as the server takes at a time, each of which takes milliseconds more: far longer than a reconnect.
const QUEUED: u64 = 256;

fn submit_writes(sender: &RequestSender, offset: u64, byte: u8) {
    for tag in 0..QUEUED {
        let op = DiskOp::Write { offset, data: vec![byte; 512], durable: false };
        sender.submit(tag, &DiskRequest { id: tag, op }, 1).unwrap();
    }
}

fn writes(server: &Server) -> u64 {
    server.client().status().unwrap().vms[0].disks.iter().map(|disk| disk.writes).sum()
}

/// How many writes are still answered, until the connection ends because a newer one superseded it, or has
/// answered all.
fn drain(mut answers: AnswerReader) -> u64 {
    for answered in 0..QUEUED {
        match answers.next_answer() {
            Ok(answer) => assert_eq!(answer.outcome, DiskOutcome::Done),
            Err(ClientError::Closed { reason, .. }) => {
                assert!(reason.contains("superseded: a newer connection"), "{reason}");
                return answered;
            }
            Err(error) => panic!("closed without a reason: {error}"),
        }
    }
    QUEUED
}

#[test]
fn a_write_queued_on_the_old_connection_is_not_executed_after_a_newer_one() {
    let site = Site::new();
    let server = site.start(&["--fault", "slow-write=vm"]);
    let mut client = server.client();
    let mut disk = new_vm(&mut client, "vm", BYTES, A).disk;
    for round in 1..=10u8 {
        let before = writes(&server);
        let (sender, answers) = client.split(disk).unwrap();
        // W1: queued, and one of them being executed at any moment.
        submit_writes(&sender, 0, 2 * round);
        until("the old connection writes", || writes(&server) > before + u64::from(round));
        client = server.client();
        disk = client.open("vm", "disk", None, A).unwrap().disk;
        let at_open = (writes(&server), std::fs::read(site.disk_file("vm", "disk")).unwrap());
        assert!(at_open.0 < before + QUEUED, "nothing was left in the queue: the test shows nothing");
        // W2
        client.write(disk, 1, 512, &[2 * round + 1; 512], false).unwrap();
        client.write(disk, 1, 0, &[2 * round + 1; 512], true).unwrap();
        let answered = drain(answers);
        let sectors = client.read(disk, 1, 0, 1024).unwrap();
        assert!(sectors == [2 * round + 1; 1024], "round {round}: W2 was acknowledged and is lost");
        assert_eq!(before + answered, at_open.0, "executed is what was answered");
        assert_eq!(writes(&server), at_open.0 + 2);
        assert!(at_open.1[..512] == [2 * round; 512], "W1 was there before");
    }
    assert_eq!(server.client().status().unwrap().superseded, 10);
}

#[test]
fn an_idle_connection_is_superseded_and_told() {
    let site = Site::new();
    let server = site.start(&[]);
    let mut old = server.client();
    let disk = new_vm(&mut old, "vm", BYTES, A).disk;
    // Opening again on the same connection changes nothing.
    assert_eq!(old.open("vm", "disk", None, A).unwrap().disk, disk);
    old.write(disk, 1, 0, &[1; 512], false).unwrap();
    let (_sender, answers) = old.split(disk).unwrap();
    let mut new = server.client();
    let disk = new.open("vm", "disk", None, A).unwrap().disk;
    assert_eq!(new.status().unwrap().superseded, 1);
    assert_eq!(drain(answers), 0);
    new.write(disk, 1, 0, &[2; 512], true).unwrap();
    until("the old one is gone", || server.client().status().unwrap().connections <= 2);
    assert!(new.open("vm", "disk", None, A).unwrap().state.holder_connected);
    let status = server.client().status().unwrap();
    assert_eq!((status.superseded, status.closed_for_errors), (1, 0));
}

#[test]
fn other_disks_other_claimants_and_connections_without_a_disk_are_unaffected() {
    let site = Site::new();
    let server = site.start(&[]);
    let mut first = server.client();
    let disk = new_vm(&mut first, "vm", BYTES, A).disk;
    let mut claims = server.client();
    claims.query("vm").unwrap();
    let mut second = server.client();
    let more = second.open("vm", "more", Some(BYTES), A).unwrap().disk;
    let mut third = server.client();
    let same = third.open("vm", "disk", None, B).unwrap().disk;
    first.write(disk, 1, 0, &[1; 512], true).unwrap();
    second.write(more, 1, 0, &[2; 512], true).unwrap();
    third.write(same, 1, 512, &[3; 512], true).unwrap();
    claims.test_and_set("vm", 0, A).unwrap();
    assert_eq!(server.client().status().unwrap().superseded, 0);
    // The same disk for another claimant on the same connection is another handle, with a fate of its own.
    let of_a = third.open("vm", "disk", None, A).unwrap().disk;
    assert_ne!(of_a, same);
    assert!(first.write(disk, 1, 0, &[4; 512], false).unwrap_err().is_unreachable());
    third.write(same, 1, 512, &[5; 512], false).unwrap();
    assert_eq!(third.read(of_a, 1, 0, 512).unwrap(), [1; 512]);
    second.read(more, 1, 0, 512).unwrap();
    claims.query("vm").unwrap();
}

/// An older connection comes back with an `Open` after a newer one had the disk.
#[test]
fn an_older_connection_cannot_take_the_disk_back() {
    let site = Site::new();
    let server = site.start(&[]);
    let mut older = server.client();
    older.query("vm").unwrap();
    let mut newer = server.client();
    let disk = new_vm(&mut newer, "vm", BYTES, A).disk;
    match older.open("vm", "disk", None, A) {
        Err(ClientError::Closed { reason, .. }) => assert!(reason.contains("superseded"), "{reason}"),
        other => panic!("not closed: {other:?}"),
    }
    newer.write(disk, 1, 0, &[1; 512], true).unwrap();
}

/// A write that hangs holds up its own repetition; but attempts to reconnect do not pile up behind it.
#[test]
fn reconnecting_to_a_disk_that_hangs_does_not_use_up_the_connections() {
    let site = Site::new();
    let mut server = site.start(&["--fault", "stall-write=vm", "--max-connections", "8"]);
    let mut client = server.client();
    let disk = new_vm(&mut client, "vm", BYTES, A).disk;
    let (sender, _answers) = client.split(disk).unwrap();
    let op = DiskOp::Write { offset: 0, data: vec![1; 512], durable: false };
    sender.submit(0, &DiskRequest { id: 0, op }, 1).unwrap();
    until("the write is being executed", || server.log().contains("a write stalls"));
    let mut watcher = server.client();
    for _ in 0..20 {
        let before = watcher.status().unwrap().superseded;
        // Gives up soon, as a client does after its deadline.
        let mut impatient = DiskClient::connect(&server.address, Duration::from_millis(20));
        let opened = impatient.as_mut().map(|client| client.open("vm", "disk", None, A));
        assert!(!matches!(opened, Ok(Ok(_))), "opened while an older write is being executed");
        until("the attempt arrived", || impatient.is_err() || watcher.status().unwrap().superseded > before);
    }
    // The one that hangs, the last that waits for it, and the watcher.
    until("the others are gone", || watcher.status().unwrap().connections <= 3);
    server.kill();
}
