//! kill -9 at named points and at random moments: nothing acknowledged is lost, generations never decrease,
//! winners stay winners.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{DEADLINE, Site, new_vm, until};
use disk_server::client::{Claim, ClientError, DiskClient, DiskOutcome};
use disk_server::test_and_set::Holding;
use logchannel::{DiskOp, DiskRequest};

const A: u128 = 0xaaaa;
const B: u128 = 0xbbbb;
const BYTES: u64 = 1 << 20;

#[test]
fn a_claim_survives_a_crash_at_every_point_of_its_record() {
    // Whether the claim is in force after the crash; nobody was answered, so both would be right.
    let points = [
        ("before-record", false),
        ("mid-record", false),
        ("before-publish", false),
        ("after-publish", true),
        ("after-record-before-answer", true),
    ];
    for (point, in_force) in points {
        let site = Site::new();
        let mut server = site.start(&[]);
        new_vm(&mut server.client(), "vm", BYTES, A);
        server.kill();

        let mut server = site.start(&["--crash-at", point]);
        let error = server.client().test_and_set("vm", 1, B).unwrap_err();
        assert!(error.is_unreachable(), "{point}: {error}");
        server.wait_for_crash();

        let server = site.start(&[]);
        let mut client = server.client();
        let expected = if in_force { (2, B) } else { (1, A) };
        let holding = Holding { generation: expected.0, holder: Some(expected.1) };
        assert_eq!(client.query("vm").unwrap().holding, holding, "{point}");
        // Asking again is right in either case, and decides for good.
        assert_eq!(client.test_and_set("vm", 1, B).unwrap(), Claim::Won(2), "{point}");
        assert_eq!(client.test_and_set("vm", 1, B).unwrap(), Claim::Won(2), "{point}");
        let lost = Claim::Lost(Holding { generation: 2, holder: Some(B) });
        assert_eq!(client.test_and_set("vm", 1, A).unwrap(), lost, "{point}");
    }
}

#[test]
fn the_same_winner_after_each_of_many_restarts() {
    let site = Site::new();
    for generation in 0..20u64 {
        let round = u128::from(generation);
        let mut server = site.start(&[]);
        let mut client = server.client();
        assert_eq!(client.query("vm").unwrap().holding.generation, generation);
        if generation > 0 {
            assert_eq!(client.test_and_set("vm", generation - 1, round).unwrap(), Claim::Won(generation));
        }
        assert_eq!(client.test_and_set("vm", generation, round + 1).unwrap(), Claim::Won(generation + 1));
        server.kill();
    }
}

#[test]
fn acknowledged_writes_survive_a_crash_at_every_point_of_a_write() {
    for point in ["mid-write:4", "before-sync:4", "before-answer-of-write:4"] {
        let site = Site::new();
        let mut server = site.start(&["--crash-at", point]);
        let mut client = server.client();
        let disk = new_vm(&mut client, "vm", BYTES, A).disk;
        let mut acknowledged = 0;
        let lost = loop {
            assert!(acknowledged < 100, "{point}: no crash");
            let data = [acknowledged as u8 + 1; 1024];
            match client.write(disk, 1, acknowledged * 1024, &data, true) {
                Ok(()) => acknowledged += 1,
                Err(error) => break error,
            }
        };
        assert!(lost.is_unreachable(), "{point}: {lost}");
        assert_eq!(acknowledged, 3);
        server.wait_for_crash();

        let server = site.start(&[]);
        let mut client = server.client();
        let disk = client.open("vm", "disk", None, A).unwrap().disk;
        for index in 0..acknowledged {
            let data = client.read(disk, 1, index * 1024, 1024).unwrap();
            assert_eq!(data, [index as u8 + 1; 1024], "{point}: write {index}");
        }
        // The write that was not acknowledged left each byte old or new; and it can be done again.
        let data = client.read(disk, 1, 3 * 1024, 1024).unwrap();
        assert!(data.iter().all(|byte| [0, 4].contains(byte)), "{point}");
        client.write(disk, 1, 3 * 1024, &[4; 1024], true).unwrap();
    }
}

#[test]
fn a_crash_while_a_vm_or_disk_is_new_leaves_it_usable() {
    let site = Site::new();
    let mut server = site.start(&["--crash-at", "before-record"]);
    let mut client = server.client();
    client.open("vm", "disk", Some(BYTES), A).unwrap();
    client.test_and_set("vm", 0, A).unwrap_err();
    server.wait_for_crash();
    let server = site.start(&[]);
    let mut client = server.client();
    assert_eq!(client.query("vm").unwrap().holding, Holding::default());
    assert_eq!(client.open("vm", "disk", Some(BYTES), A).unwrap().bytes, BYTES);
    assert_eq!(client.test_and_set("vm", 0, B).unwrap(), Claim::Won(1));
}

/// What one writer knows of its own sectors: the last value acknowledged, and those that may be there too.
#[derive(Default)]
struct Ledger {
    acknowledged: BTreeMap<u64, u32>,
    in_flight: BTreeMap<u64, Vec<u32>>,
}

const SECTORS: u64 = 64;
const IN_FLIGHT: u64 = 8;

fn sector(value: u32) -> Vec<u8> {
    value.to_le_bytes().repeat(128)
}

/// Writes until the server dies; each write has its own value, several are in flight.
fn load(address: &str, vm: &str, durable: bool, progress: &AtomicU64, (ledger, next): &mut (Ledger, u32)) {
    let Ok(mut client) = DiskClient::connect(address, DEADLINE) else { return };
    let Ok(opened) = client.open(vm, "disk", Some(SECTORS * 512), A) else { return };
    if client.test_and_set(vm, 0, A).is_err() {
        return;
    }
    let (sender, mut reader) = client.split(opened.disk).unwrap();
    let mut waiting = 0;
    loop {
        while waiting < IN_FLIGHT {
            *next += 1;
            let place = u64::from(*next).wrapping_mul(0x9e37_79b9) % SECTORS;
            ledger.in_flight.entry(place).or_default().push(*next);
            let op = DiskOp::Write { offset: place * 512, data: sector(*next), durable };
            if sender.submit(u64::from(*next), &DiskRequest { id: u64::from(*next), op }, 1).is_err() {
                return;
            }
            waiting += 1;
        }
        let Ok(answer) = reader.next_answer() else { return };
        assert_eq!(answer.outcome, DiskOutcome::Done);
        waiting -= 1;
        progress.fetch_add(1, Ordering::Relaxed);
        // Writes of one connection are executed in order, so this one replaced all that were sent before it.
        let value = answer.tag as u32;
        let place = u64::from(value).wrapping_mul(0x9e37_79b9) % SECTORS;
        let last = ledger.acknowledged.entry(place).or_insert(0);
        *last = value.max(*last);
        ledger.in_flight.entry(place).or_default().retain(|other| *other > value);
    }
}

/// Every sector holds the value acknowledged last, or one sent after it.
fn check(client: &mut DiskClient, vm: &str, ledger: &mut Ledger) {
    let Ok(opened) = client.open(vm, "disk", None, A) else {
        return assert!(ledger.acknowledged.is_empty(), "{vm}: the disk is gone");
    };
    if client.query(vm).unwrap().holding.generation == 0 {
        return assert!(ledger.acknowledged.is_empty(), "{vm}: the generation is gone");
    }
    for place in 0..SECTORS {
        let data = client.read(opened.disk, 1, place * 512, 512).unwrap();
        let value = u32::from_le_bytes(data[..4].try_into().unwrap());
        assert_eq!(data, sector(value), "{vm}: sector {place} is torn");
        let acknowledged = ledger.acknowledged.get(&place).copied().unwrap_or(0);
        let in_flight = ledger.in_flight.remove(&place).unwrap_or_default();
        assert!(
            value == acknowledged || in_flight.contains(&value),
            "{vm}: sector {place} holds {value}; {acknowledged} acknowledged, {in_flight:?} in flight"
        );
        ledger.acknowledged.insert(place, value);
    }
}

/// Claims until the server dies. Each generation won is noted; it must not be won by another later.
fn claim(address: &str, claimant: u128, won: &mut BTreeMap<u64, u128>) {
    let Ok(mut client) = DiskClient::connect(address, DEADLINE) else { return };
    loop {
        let Ok(state) = client.query("claims") else { return };
        match client.test_and_set("claims", state.holding.generation, claimant) {
            Ok(Claim::Won(generation)) => assert_eq!(*won.entry(generation).or_insert(claimant), claimant),
            Ok(Claim::Lost(holding)) => assert!(holding.generation > state.holding.generation),
            Err(error) => return assert!(error.is_unreachable(), "{error}"),
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_killed_at_random_under_load() {
    let site = Site::new();
    let mut ledgers: Vec<_> = (0..4).map(|_| (Ledger::default(), 0u32)).collect();
    let mut claims = [BTreeMap::new(), BTreeMap::new()];
    let mut last_generation = 0;
    for round in 0..25u64 {
        let mut server = site.start(&[]);
        let address = server.address.clone();
        let progress = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for (index, writer) in ledgers.iter_mut().enumerate() {
                let (address, progress) = (&address, &progress);
                let vm = format!("vm-{}", index);
                scope.spawn(move || load(address, &vm, index % 2 == 0, progress, writer));
            }
            for (index, won) in claims.iter_mut().enumerate() {
                let address = &address;
                // A claimant is a process: each round has new ones.
                scope.spawn(move || claim(address, u128::from(round) * 2 + index as u128, won));
            }
            let moment = round * round * 997 % 2500;
            until("the load progresses", || progress.load(Ordering::Relaxed) >= moment);
            server.kill();
        });
        let server = site.start(&[]);
        let mut client = server.client();
        for (index, (ledger, _)) in ledgers.iter_mut().enumerate() {
            check(&mut client, &format!("vm-{index}"), ledger);
        }
        let holding = client.query("claims").unwrap().holding;
        let newest = claims.iter().filter_map(|won| won.last_key_value()).max();
        let (generation, holder) = newest.map_or((0, 0), |(g, c)| (*g, *c));
        assert!(holding.generation >= generation.max(last_generation), "a generation was forgotten");
        if holding.generation == generation && generation > 0 {
            assert_eq!(holding.holder, Some(holder));
        }
        last_generation = holding.generation;
    }
    let doubly = claims[0].keys().find(|generation| claims[1].contains_key(generation));
    assert_eq!(doubly, None, "a generation was won twice");
    assert!(ledgers.iter().all(|(ledger, _)| !ledger.acknowledged.is_empty()), "no load");
}

#[test]
fn an_orderly_stop_answers_and_exits_with_0() {
    let site = Site::new();
    let mut server = site.start(&[]);
    let mut client = server.client();
    let disk = new_vm(&mut client, "vm", BYTES, A).disk;
    client.write(disk, 1, 0, &[5; 512], false).unwrap();
    let status = server.terminate();
    assert_eq!(status.code(), Some(0));
    assert!(matches!(client.query("vm"), Err(ClientError::Unreachable { .. })));
    let server = site.start(&[]);
    let mut client = server.client();
    let disk = client.open("vm", "disk", None, A).unwrap().disk;
    assert_eq!(client.read(disk, 1, 0, 512).unwrap(), [5; 512]);
}
