//! Bytes from peers that are broken or hostile: a clear last word, the connection closed, nobody else
//! concerned, no panic (every server's log is checked for that when it ends).
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use common::{DEADLINE, Server, Site, new_vm, until};
use disk_server::client::{ClientError, DiskClient};
use disk_server::protocol::{
    self, ErrorCode, KIND_CLOSING, KIND_REQUEST, PROTOCOL, Purpose, Request, RequestBody,
};
use logchannel::frame::{FrameReader, FrameWriter, Protocol};
use proptest::prelude::*;

const A: u128 = 0xaaaa;
const B: u128 = 0xbbbb;
const BYTES: u64 = 4 << 20;

fn frame(writer: &mut FrameWriter, tag: u64, body: RequestBody, data: &[u8]) -> Vec<u8> {
    let (mut payload, mut out) = (Vec::new(), Vec::new());
    protocol::encode(&Request { tag, body }, data, &mut payload).unwrap();
    writer.write(KIND_REQUEST, &payload, &mut out);
    out
}

fn query() -> RequestBody {
    RequestBody::Query { vm: "vm".into() }
}

/// Sends bytes and returns the server's last word before it closes, if it says one.
fn last_word(server: &Server, bytes: &[u8]) -> Option<String> {
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    // The server may have closed before it has read all.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let mut reader = FrameReader::new(PROTOCOL);
    reader.push(&answer);
    let mut word = None;
    while let Some(frame) = reader.next_frame().unwrap() {
        assert_eq!(word, None, "something after the last word");
        if frame.kind == KIND_CLOSING {
            word = Some(String::from_utf8(frame.payload).unwrap());
        }
    }
    word
}

#[test]
fn broken_frames_get_a_clear_last_word() {
    let site = Site::new();
    let server = site.start(&[]);
    let mut bystander = server.client();
    let disk = new_vm(&mut bystander, "vm", BYTES, A).disk;
    let mut serve_bystander = || {
        bystander.write(disk, 1, 0, &[1; 512], true).unwrap();
        assert_eq!(bystander.read(disk, 1, 0, 512).unwrap(), [1; 512]);
    };
    let good = frame(&mut FrameWriter::new(PROTOCOL), 0, query(), &[]);
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        bytes
    };
    let other_version = Protocol { version: 9, ..PROTOCOL };
    let mut long = good[..24].to_vec();
    long[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut kind = Vec::new();
    FrameWriter::new(PROTOCOL).write(77, &[], &mut kind);
    let mut empty = Vec::new();
    FrameWriter::new(PROTOCOL).write(KIND_REQUEST, &[], &mut empty);
    let mut head = Vec::new();
    FrameWriter::new(PROTOCOL).write(KIND_REQUEST, &[255, 255, 1, 2, 3], &mut head);
    let mut nonsense = Vec::new();
    FrameWriter::new(PROTOCOL).write(KIND_REQUEST, &[3, 0, 1, 200, 3], &mut nonsense);
    let cases = [
        ("an HTTP request", b"GET / HTTP/1.1\r\nHost: disks\r\n\r\n".to_vec(), "not a disk protocol frame"),
        ("another version", frame(&mut FrameWriter::new(other_version), 0, query(), &[]), "version 9"),
        ("a replayed frame", [good.clone(), good.clone()].concat(), "frame 0 where frame 1 is due"),
        ("a damaged payload", changed(good.len() - 1, 0xff), "is damaged"),
        ("a damaged header", changed(6, 9), "is damaged"),
        ("a huge frame", long, "frame of 4294967295 bytes, 2097152 allowed"),
        ("an unknown kind", kind, "unexpected frame kind 77"),
        ("no message", empty, "message head"),
        ("a head beyond the payload", head, "message head of 65535 bytes"),
        ("an unknown request", nonsense, "message head: cannot decode"),
        (
            "data behind a query",
            frame(&mut FrameWriter::new(PROTOCOL), 0, query(), &[1; 100]),
            "100 bytes of data behind a message that takes none",
        ),
    ];
    for (what, bytes, expected) in cases {
        let word = last_word(&server, &bytes).unwrap_or_else(|| panic!("{what}: closed without a word"));
        assert!(word.contains(expected), "{what}: {word}");
        serve_bystander();
    }
    assert_eq!(last_word(&server, &good[..good.len() - 1]), None, "a truncated frame is an end");
    assert_eq!(last_word(&server, &[]), None);
    serve_bystander();
}

#[test]
fn what_came_before_a_broken_frame_is_executed_and_answered() {
    let site = Site::new();
    let server = site.start(&[]);
    let mut writer = FrameWriter::new(PROTOCOL);
    let claim =
        RequestBody::TestAndSet { vm: "vm".into(), expect: 0, claimant: A, purpose: Purpose::Failover };
    let mut bytes = frame(&mut writer, 5, claim, &[]);
    bytes.extend_from_slice(b"garbage that is at least one header long");
    assert!(last_word(&server, &bytes).unwrap().contains("not a disk protocol frame"));
    assert_eq!(server.client().query("vm").unwrap().holding.generation, 1);
}

#[test]
fn requests_beyond_the_limits_are_refused_and_the_connection_lives() {
    let site = Site::new();
    let server = site.start(&["--max-disk-bytes", "8388608"]);
    let mut client = server.client();
    let disk = new_vm(&mut client, "vm", BYTES, A).disk;
    let invalid = |result: Result<(), ClientError>, code| match result {
        Err(ClientError::Refused { code: found, message }) => {
            assert_eq!(found, code, "{message}");
            assert!(!message.is_empty());
        }
        other => panic!("not refused: {other:?}"),
    };
    let writes: [(u64, usize); 6] =
        [(1, 512), (0, 511), (BYTES, 512), (BYTES - 512, 1024), (u64::MAX - 511, 512), (!511, 1 << 20)];
    for (offset, len) in writes {
        invalid(client.write(disk, 1, offset, &vec![1; len], false), ErrorCode::Invalid);
        invalid(client.read(disk, 1, offset, len as u32).map(drop), ErrorCode::Invalid);
    }
    invalid(client.read(disk, 1, 0, (1 << 20) + 512).map(drop), ErrorCode::Invalid);
    invalid(client.read(disk, 1, 0, u32::MAX).map(drop), ErrorCode::Invalid);
    invalid(client.read(7, 1, 0, 512).map(drop), ErrorCode::NotFound);
    invalid(client.flush(u32::MAX, 1), ErrorCode::NotFound);
    for bytes in [0, 100, 8388608 + 512, !511] {
        invalid(client.open("vm", "new", Some(bytes), A).map(drop), ErrorCode::Invalid);
    }
    invalid(client.open("vm", "disk", Some(512), A).map(drop), ErrorCode::Conflict);
    invalid(client.open("vm", "none", None, A).map(drop), ErrorCode::NotFound);
    invalid(client.open("none", "none", None, A).map(drop), ErrorCode::NotFound);
    client.write(disk, 1, BYTES - (1 << 20), &vec![3; 1 << 20], true).unwrap();
    assert_eq!(client.read(disk, 1, BYTES - (1 << 20), 1 << 20).unwrap(), vec![3; 1 << 20]);
}

#[test]
fn a_write_larger_than_allowed_is_refused_by_the_server_too() {
    let site = Site::new();
    let server = site.start(&[]);
    let mut client = server.client();
    new_vm(&mut client, "vm", BYTES, A);
    let mut writer = FrameWriter::new(PROTOCOL);
    let open = RequestBody::Open { vm: "vm".into(), disk: "disk".into(), create_bytes: None, claimant: B };
    let mut bytes = frame(&mut writer, 0, open, &[]);
    let write = RequestBody::Write { disk: 0, generation: 1, offset: 0, durable: true };
    bytes.extend(frame(&mut writer, 1, write, &vec![9; (1 << 20) + 512]));
    assert_eq!(last_word(&server, &bytes), None);
    let disk = client.open("vm", "disk", None, A).unwrap().disk;
    assert_eq!(client.read(disk, 1, 0, 512).unwrap(), [0; 512]);
}

#[test]
fn names_that_are_paths_are_refused_and_touch_nothing() {
    let site = Site::new();
    let server = site.start(&[]);
    let mut client = server.client();
    let long = "x".repeat(65);
    let names =
        ["", ".", "..", "../../escape", "/tmp/escape", "a/b", "a\\b", "a\0b", ".hidden", "ä", "\n", &long];
    for name in names {
        let refused = |result: Result<(), ClientError>| {
            let invalid = matches!(result, Err(ClientError::Refused { code: ErrorCode::Invalid, .. }));
            assert!(invalid, "{name:?}: {result:?}");
        };
        refused(client.open(name, "disk", Some(512), A).map(drop));
        refused(client.open("vm", name, Some(512), A).map(drop));
        refused(client.test_and_set(name, 0, A).map(drop));
        refused(client.query(name).map(drop));
    }
    assert_eq!(client.status().unwrap().vm_count, 0);
    let vms = std::fs::read_dir(site.data().join("vms")).unwrap().count();
    assert_eq!(vms, 0);
}

#[test]
fn too_many_connections_are_told_so_and_places_are_given_back() {
    let site = Site::new();
    let server = site.start(&["--max-connections", "3"]);
    let mut clients: Vec<_> = (0..3).map(|_| server.client()).collect();
    for client in &mut clients {
        client.query("vm").unwrap();
    }
    let error = server.client().query("vm").unwrap_err();
    assert!(
        matches!(&error, ClientError::Closed { reason, .. } if reason.contains("3 connections")),
        "{error}"
    );
    for client in &mut clients {
        client.query("vm").unwrap();
    }
    clients.pop();
    until("a place is free", || server.client().query("vm").is_ok());
}

#[test]
fn a_client_that_reads_no_answers_is_held_back_and_harms_nobody() {
    let site = Site::new();
    let server = site.start(&[]);
    let mut client = server.client();
    new_vm(&mut client, "vm", BYTES, A);
    let mut greedy = DiskClient::connect(&server.address, std::time::Duration::from_secs(1)).unwrap();
    let disk = greedy.open("vm", "disk", None, B).unwrap().disk;
    let (sender, reader) = greedy.split(disk).unwrap();
    let op = logchannel::DiskOp::Read { offset: 0, len: 1 << 20 };
    let request = logchannel::DiskRequest { id: 0, op };
    // 1 MiB of answer for each small request: the socket fills in the end, which is the bound.
    let held_back = (0..10_000_000).find_map(|tag| sender.submit(tag, &request, 1).err());
    assert!(held_back.unwrap().is_unreachable());
    let memory = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let peak = memory.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    let kib: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < 128 << 10, "the server's memory is bounded: {peak}");
    client.query("vm").unwrap();
    drop((sender, reader));
}

#[test]
fn random_bytes_and_random_frames_never_stop_the_server() {
    let site = Site::new();
    let server = site.start(&[]);
    let mut client = server.client();
    new_vm(&mut client, "vm", BYTES, A);
    let bytes = prop::collection::vec(any::<u8>(), 0..300);
    let frames = prop::collection::vec((0u8..4, bytes.clone()), 1..6);
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(bytes in bytes, frames in frames)| {
        let mut sent = Vec::new();
        let mut writer = FrameWriter::new(PROTOCOL);
        for (kind, payload) in &frames {
            writer.write(*kind, payload, &mut sent);
        }
        sent.extend(&bytes);
        last_word(&server, &sent);
        last_word(&server, &bytes);
    });
    assert_eq!(client.query("vm").unwrap().holding.generation, 1);
}
