//! Who holds the generation, and what those who do not can still do: nothing.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Site, new_vm, until};
use disk_server::client::{Claim, ClientError, DiskOutcome};
use disk_server::protocol::{
    self, Answer, AnswerBody, ErrorCode, KIND_REQUEST, PROTOCOL, Purpose, Request, RequestBody,
};
use disk_server::test_and_set::Holding;
use logchannel::frame::{FrameReader, FrameWriter};
use logchannel::{DiskOp, DiskRequest};

const A: u128 = 0xaaaa;
const B: u128 = 0xbbbb;
const BYTES: u64 = 1 << 20;
/// Claimants of connections that only write: each its own, or the newest would supersede the others.
const OLD_WRITERS: u128 = 0xcccc_0000;

#[test]
fn of_two_claimants_at_once_exactly_one_wins_a_thousand_times() {
    let site = Site::new();
    let server = site.start(&[]);
    let barrier = Barrier::new(2);
    let contend = |claimant: u128| {
        let mut client = server.client();
        (0..1000u64)
            .map(|generation| {
                barrier.wait();
                client.test_and_set("vm", generation, claimant).unwrap()
            })
            .collect::<Vec<_>>()
    };
    let (of_a, of_b) = std::thread::scope(|scope| {
        let a = scope.spawn(|| contend(A));
        let b = scope.spawn(|| contend(B));
        (a.join().unwrap(), b.join().unwrap())
    });
    for (expect, verdicts) in of_a.into_iter().zip(of_b).enumerate() {
        let generation = expect as u64 + 1;
        let lost_to = |holder| Claim::Lost(Holding { generation, holder: Some(holder) });
        let won = Claim::Won(generation);
        let one = verdicts == (won, lost_to(A)) || verdicts == (lost_to(B), won);
        assert!(one, "generation {generation}: {verdicts:?}");
    }
}

#[test]
fn after_a_claim_is_answered_no_old_write_changes_the_disk() {
    race(&[], 40, 30);
}

/// The same with writes that take their time after their generation was checked: a fence that let go of them
/// early would be seen almost every time.
#[test]
fn after_a_claim_is_answered_no_slow_old_write_changes_the_disk() {
    race(&["--fault", "slow-write=vm"], 10, 3);
}

fn race(more: &[&str], generations: u64, head_start: u64) {
    let site = Site::new();
    let server = site.start(more);
    let mut opener = server.client();
    new_vm(&mut opener, "vm", BYTES, 1);
    let file = site.disk_file("vm", "disk");
    for generation in 1..=generations {
        let written = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let old: Vec<_> = (0..3u64)
                .map(|writer| {
                    let (server, written) = (&server, &written);
                    scope.spawn(move || hammer(server, generation, writer, written))
                })
                .collect();
            until("the old writers write", || written.load(Ordering::Relaxed) >= head_start);
            let mut claimant = server.client();
            let claim = claimant.test_and_set("vm", generation, u128::from(generation) + 1).unwrap();
            assert_eq!(claim, Claim::Won(generation + 1));
            // From here on, the file is still.
            let at_answer = std::fs::read(&file).unwrap();
            for writer in old {
                assert_eq!(writer.join().unwrap().generation, generation + 1);
            }
            assert!(
                std::fs::read(&file).unwrap() == at_answer,
                "generation {generation}: written after the fence"
            );
        });
    }
}

/// Keeps writes of `generation` in flight until they are fenced, and a few more after that.
fn hammer(server: &common::Server, generation: u64, writer: u64, written: &AtomicU64) -> Holding {
    let mut client = server.client();
    let disk = client.open("vm", "disk", None, OLD_WRITERS + u128::from(writer)).unwrap().disk;
    let (sender, mut reader) = client.split(disk).unwrap();
    let mut tag = 0;
    let mut submit = || {
        tag += 1;
        let offset = (writer * 256 + tag % 256) * 1024;
        let data = (generation * 1_000_000 + tag).to_le_bytes().repeat(128);
        let op = DiskOp::Write { offset, data, durable: tag % 16 == 0 };
        sender.submit(tag, &DiskRequest { id: tag, op }, generation).unwrap();
    };
    (0..16).for_each(|_| submit());
    let mut fenced = None;
    let mut after = 0;
    while after < 200 {
        match reader.next_answer().unwrap().outcome {
            DiskOutcome::Done => {
                written.fetch_add(1, Ordering::Relaxed);
            }
            DiskOutcome::Fenced(holding) => {
                assert_eq!(*fenced.get_or_insert(holding), holding);
                after += 1;
            }
            other => panic!("{other:?}"),
        }
        submit();
    }
    fenced.unwrap()
}

#[test]
fn every_kind_of_request_is_fenced() {
    let site = Site::new();
    let server = site.start(&[]);
    let mut old = server.client();
    let disk = new_vm(&mut old, "vm", BYTES, A).disk;
    old.write(disk, 1, 0, &[1; 512], true).unwrap();
    let mut new = server.client();
    assert_eq!(new.test_and_set("vm", 1, B).unwrap(), Claim::Won(2));
    let holding = Holding { generation: 2, holder: Some(B) };
    let fenced = |result: Result<(), ClientError>| match result {
        Err(ClientError::Fenced(by)) => assert_eq!(by, holding),
        other => panic!("not fenced: {other:?}"),
    };
    fenced(old.read(disk, 1, 0, 512).map(drop));
    fenced(old.write(disk, 1, 0, &[2; 512], false));
    fenced(old.write(disk, 1, 0, &[2; 512], true));
    fenced(old.flush(disk, 1));
    // On the new holder's own connection too: the generation counts, not the connection.
    let disk = new.open("vm", "disk", None, B).unwrap().disk;
    fenced(new.write(disk, 1, 0, &[2; 512], true));
    assert_eq!(new.read(disk, 2, 0, 512).unwrap(), [1; 512]);
    let statistics = server.client().status().unwrap();
    assert_eq!(statistics.vms[0].fenced, 5);
}

/// One segment brings a read and the claim that fences it: both are executed before either is answered.
#[test]
fn what_was_read_before_a_claim_is_not_told_after_it() {
    let site = Site::new();
    let server = site.start(&[]);
    let claim = |expect, claimant| RequestBody::TestAndSet {
        vm: "vm".into(),
        expect,
        claimant,
        purpose: Purpose::Failover,
    };
    let requests = [
        RequestBody::Open { vm: "vm".into(), disk: "disk".into(), create_bytes: Some(BYTES), claimant: A },
        claim(0, A),
        RequestBody::Read { disk: 0, generation: 1, offset: 0, len: 512 },
        claim(1, B),
    ];
    let (mut writer, mut payload, mut bytes) = (FrameWriter::new(PROTOCOL), Vec::new(), Vec::new());
    for (tag, body) in (0..).zip(requests) {
        protocol::encode(&Request { tag, body }, &[], &mut payload).unwrap();
        writer.write(KIND_REQUEST, &payload, &mut bytes);
    }
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.write_all(&bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    let mut reader = FrameReader::new(PROTOCOL);
    reader.push(&received);
    let answers = std::iter::from_fn(|| reader.next_frame().unwrap());
    let bodies: Vec<_> =
        answers.map(|frame| protocol::decode::<Answer>(&frame.payload).unwrap().0.body).collect();
    let fenced = AnswerBody::Fenced(Holding { generation: 2, holder: Some(B) });
    assert_eq!(bodies[1..], [AnswerBody::Won { generation: 1 }, fenced, AnswerBody::Won { generation: 2 }]);
}

#[test]
fn generations_that_nobody_was_granted_are_refused() {
    let site = Site::new();
    let server = site.start(&[]);
    let mut client = server.client();
    let disk = client.open("vm", "disk", Some(BYTES), A).unwrap().disk;
    for generation in [0, 1, u64::MAX] {
        match client.write(disk, generation, 0, &[1; 512], true) {
            Err(ClientError::Refused { code: ErrorCode::NeverGranted, .. }) => {}
            other => panic!("generation {generation}: {other:?}"),
        }
    }
    assert_eq!(client.test_and_set("vm", 0, A).unwrap(), Claim::Won(1));
    assert!(matches!(client.read(disk, 0, 0, 512), Err(ClientError::Fenced(_))));
    client.write(disk, 1, 0, &[1; 512], true).unwrap();
}

#[test]
fn whether_the_holder_is_connected() {
    let site = Site::new();
    let server = site.start(&[]);
    let mut holder = server.client();
    assert!(!holder.open("vm", "disk", Some(BYTES), A).unwrap().state.holder_connected);
    holder.test_and_set("vm", 0, A).unwrap();
    let mut other = server.client();
    assert!(other.open("vm", "disk", None, B).unwrap().state.holder_connected);
    let mut second = server.client();
    second.open("vm", "second", Some(BYTES), A).unwrap();
    drop(holder);
    until("one connection gone", || server.client().status().unwrap().connections <= 3);
    assert!(other.query("vm").unwrap().holder_connected, "the holder has one more");
    drop(second);
    until("the holder is gone", || !other.query("vm").unwrap().holder_connected);
    assert_eq!(other.query("vm").unwrap().holding, Holding { generation: 1, holder: Some(A) });
}
