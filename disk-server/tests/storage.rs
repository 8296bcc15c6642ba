//! Many VMs and disks, ordering, group commit, and storage that is full, slow or failing.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;

use common::{Site, new_vm};
use disk_server::client::{Claim, ClientError, DiskOutcome};
use disk_server::protocol::ErrorCode;
use logchannel::{DiskOp, DiskRequest};

const A: u128 = 0xaaaa;
const B: u128 = 0xbbbb;
const BYTES: u64 = 1 << 20;

fn refused<T: std::fmt::Debug>(result: Result<T, ClientError>) -> ErrorCode {
    match result {
        Err(ClientError::Refused { code, message }) => {
            assert!(!message.is_empty());
            code
        }
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn many_vms_and_disks_do_not_mix() {
    let site = Site::new();
    let mut server = site.start(&[]);
    std::thread::scope(|scope| {
        for vm in 0..20u64 {
            let server = &server;
            scope.spawn(move || {
                let name = format!("vm-{vm}");
                let mut client = server.client();
                for _ in 0..=vm {
                    let generation = client.query(&name).unwrap().holding.generation;
                    assert_eq!(
                        client.test_and_set(&name, generation, A).unwrap(),
                        Claim::Won(generation + 1)
                    );
                }
                for disk in 0..10u64 {
                    let opened =
                        client.open(&name, &format!("d{disk}"), Some(BYTES + disk * 512), A).unwrap();
                    let data = (vm * 100 + disk).to_le_bytes().repeat(64);
                    client.write(opened.disk, vm + 1, disk * 512, &data, disk % 2 == 0).unwrap();
                }
            });
        }
    });
    server.kill();
    let server = site.start(&[]);
    let mut client = server.client();
    assert_eq!(client.status().unwrap().vm_count, 20);
    for vm in 0..20u64 {
        // Handles are bounded per connection.
        let mut client = server.client();
        let name = format!("vm-{vm}");
        for disk in 0..10u64 {
            let opened = client.open(&name, &format!("d{disk}"), None, B).unwrap();
            assert_eq!(opened.bytes, BYTES + disk * 512);
            assert_eq!(opened.state.holding.generation, vm + 1);
            let data = client.read(opened.disk, vm + 1, disk * 512, 512).unwrap();
            assert_eq!(data, (vm * 100 + disk).to_le_bytes().repeat(64));
        }
    }
    let handles: Result<Vec<_>, _> = (0..20)
        .flat_map(|vm| (0..10).map(move |disk| (format!("vm-{vm}"), format!("d{disk}"))))
        .map(|(vm, disk)| client.open(&vm, &disk, None, B))
        .collect();
    assert_eq!(refused(handles), ErrorCode::Limit);
}

#[test]
fn limits_on_vms_and_disks() {
    let site = Site::new();
    let server = site.start(&["--max-vms", "2", "--max-disks", "1"]);
    let mut client = server.client();
    client.open("a", "one", Some(BYTES), A).unwrap();
    assert_eq!(refused(client.open("a", "two", Some(BYTES), A)), ErrorCode::Limit);
    client.test_and_set("b", 0, A).unwrap();
    assert_eq!(refused(client.open("c", "one", Some(BYTES), A)), ErrorCode::Limit);
    assert_eq!(refused(client.test_and_set("c", 0, A)), ErrorCode::Limit);
    assert_eq!(client.test_and_set("a", 0, A).unwrap(), Claim::Won(1));
}

#[test]
fn pipelined_requests_are_executed_in_order() {
    let site = Site::new();
    // Batches as small as they get must be no different.
    for more in [&[][..], &["--max-in-flight", "1"]] {
        let server = site.start(more);
        let mut client = server.client();
        let disk = client.open("vm", "disk", Some(BYTES), A).unwrap().disk;
        let generation = client.query("vm").unwrap().holding.generation + 1;
        client.test_and_set("vm", generation - 1, A).unwrap();
        let (sender, mut reader) = client.split(disk).unwrap();
        let submitter = std::thread::scope(|scope| {
            let submitter = scope.spawn(|| {
                for n in 0..500u64 {
                    let durable = n % 7 == 0;
                    let data = n.to_le_bytes().repeat(1024);
                    let write = DiskOp::Write { offset: 4096, data, durable };
                    sender.submit(2 * n, &DiskRequest { id: 0, op: write }, generation)?;
                    let read = match n % 10 {
                        9 => DiskOp::Flush,
                        _ => DiskOp::Read { offset: 8192, len: 512 },
                    };
                    sender.submit(2 * n + 1, &DiskRequest { id: 0, op: read }, generation)?;
                }
                Ok::<(), ClientError>(())
            });
            let mut seen = std::collections::BTreeSet::new();
            while seen.len() < 1000 {
                let answer = reader.next_answer().unwrap();
                assert!(seen.insert(answer.tag), "answered twice");
                match answer.outcome {
                    DiskOutcome::Done => assert!(answer.tag % 2 == 0 || answer.tag / 2 % 10 == 9),
                    DiskOutcome::Data(data) => assert_eq!(data, (answer.tag / 2).to_le_bytes().repeat(64)),
                    other => panic!("{other:?}"),
                }
            }
            submitter.join().unwrap()
        });
        submitter.unwrap();
        sender.close();
        assert!(reader.next_answer().unwrap_err().is_unreachable());
    }
}

#[test]
fn writes_in_flight_share_fdatasyncs() {
    let site = Site::new();
    let server = site.start(&[]);
    let mut client = server.client();
    let disk = new_vm(&mut client, "vm", BYTES, A).disk;
    let (sender, mut reader) = client.split(disk).unwrap();
    let write = |tag: u64| {
        let op = DiskOp::Write { offset: tag * 512, data: vec![1; 512], durable: true };
        sender.submit(tag, &DiskRequest { id: tag, op }, 1).unwrap();
    };
    (0..1000).for_each(write);
    (0..1000).for_each(|_| assert_eq!(reader.next_answer().unwrap().outcome, DiskOutcome::Done));
    let status = server.client().status().unwrap();
    let disk = &status.vms[0].disks[0];
    assert_eq!((disk.writes, disk.commits), (1000, 1000));
    assert!(disk.syncs < 1000, "{} fdatasyncs for 1000 durable writes", disk.syncs);
}

#[test]
fn a_slow_disk_delays_its_own_vm_only() {
    let site = Site::new();
    let mut server = site.start(&["--fault", "stall-write=stuck", "--fault", "stall-sync=lazy"]);
    let mut stuck = server.client();
    let disk = new_vm(&mut stuck, "stuck", BYTES, A).disk;
    let (stuck, _stuck_answers) = stuck.split(disk).unwrap();
    let op = DiskOp::Write { offset: 0, data: vec![1; 512], durable: false };
    stuck.submit(0, &DiskRequest { id: 0, op }, 1).unwrap();
    let mut lazy = server.client();
    let disk = new_vm(&mut lazy, "lazy", BYTES, A).disk;
    let (lazy, _lazy_answers) = lazy.split(disk).unwrap();
    lazy.submit(0, &DiskRequest { id: 0, op: DiskOp::Flush }, 1).unwrap();

    let mut other = server.client();
    let disk = new_vm(&mut other, "other", BYTES, A).disk;
    for n in 0..200 {
        other.write(disk, 1, n * 512, &[2; 512], n % 2 == 0).unwrap();
    }
    // A VM whose fdatasync never ends can still change hands: its writes are in the file.
    assert_eq!(other.test_and_set("lazy", 1, B).unwrap(), Claim::Won(2));
    assert_eq!(other.status().unwrap().vm_count, 3);
    server.kill();
}

#[test]
fn a_failed_fdatasync_takes_the_disk_out_of_service() {
    let site = Site::new();
    let mut server = site.start(&["--fault", "fail-sync=bad"]);
    let mut client = server.client();
    let bad = new_vm(&mut client, "bad", BYTES, A).disk;
    let good = new_vm(&mut client, "good", BYTES, A).disk;
    client.write(bad, 1, 0, &[1; 512], false).unwrap();
    for _ in 0..2 {
        assert_eq!(refused(client.write(bad, 1, 0, &[1; 512], true)), ErrorCode::Failed);
        assert_eq!(refused(client.flush(bad, 1)), ErrorCode::Failed);
        assert_eq!(refused(client.write(bad, 1, 0, &[1; 512], false)), ErrorCode::Failed);
    }
    // Opening it again, from elsewhere too, does not make it well.
    let mut elsewhere = server.client();
    let again = elsewhere.open("bad", "disk", None, B).unwrap().disk;
    assert_eq!(refused(elsewhere.write(again, 1, 0, &[1; 512], true)), ErrorCode::Failed);
    client.write(good, 1, 0, &[1; 512], true).unwrap();
    assert_eq!(client.test_and_set("bad", 1, B).unwrap(), Claim::Won(2));
    assert_eq!(server.terminate().code(), Some(6), "not everything is durable: {}", server.log());
    let server = site.start(&[]);
    let mut client = server.client();
    let disk = client.open("bad", "disk", None, B).unwrap().disk;
    client.write(disk, 2, 0, &[1; 512], true).unwrap();
}

/// A small file system for the server alone, where user namespaces allow it.
fn on_a_small_file_system(site: &Site) -> Option<Command> {
    let probe = Command::new("unshare").args(["-Urm", "mount", "-t", "tmpfs", "none", "/mnt"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: a full file system (no unprivileged mounts here)");
        return None;
    }
    std::fs::create_dir_all(site.data()).unwrap();
    let script = "mount -t tmpfs -o size=256k none \"$1\" && exec \"$2\" --data \"$1\" --listen 127.0.0.1:0";
    let mut command = Command::new("unshare");
    command.args(["-Urm", "sh", "-c", script, "sh"]).arg(site.data()).arg(env!("CARGO_BIN_EXE_disk-server"));
    Some(command)
}

#[test]
fn a_full_file_system_is_said_and_does_not_stop_a_failover() {
    let site = Site::new();
    let Some(command) = on_a_small_file_system(&site) else { return };
    let server = site.launch(command);
    let mut client = server.client();
    let full = new_vm(&mut client, "full", BYTES, A).disk;
    let other = new_vm(&mut client, "other", BYTES, A).disk;
    client.write(other, 1, 0, &[7; 4096], true).unwrap();
    let mut written = 0;
    let code = loop {
        match client.write(full, 1, written * 4096, &[1; 4096], false) {
            Ok(()) => written += 1,
            Err(ClientError::Refused { code, message }) => {
                assert!(message.contains("No space left"), "{message}");
                break code;
            }
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(code, ErrorCode::NoSpace);
    assert!(written > 0);
    // What has its place already goes on, the other VM too; and the pair can change hands.
    client.write(full, 1, 0, &[2; 4096], true).unwrap();
    client.write(other, 1, 0, &[8; 4096], true).unwrap();
    assert_eq!(client.read(other, 1, 0, 4096).unwrap(), [8; 4096]);
    for generation in 1..10 {
        assert_eq!(client.test_and_set("full", generation, B).unwrap(), Claim::Won(generation + 1));
    }
    assert_eq!(refused(client.open("new", "disk", Some(BYTES), A)), ErrorCode::NoSpace);
}
