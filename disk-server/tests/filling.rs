//! A disk is filled with an image exactly once: also when somebody dies on the way, and whatever the bytes of
//! the image are.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{Server, Site};
use disk_server::client::{Claim, ClientError, DiskClient};
use disk_server::protocol::{Content, ErrorCode, Opened};

const A: u128 = 0xaaaa;
const B: u128 = 0xbbbb;
const BYTES: u64 = 4 << 20;
const PART: usize = 64 << 10;

fn code<T: std::fmt::Debug>(result: Result<T, ClientError>) -> ErrorCode {
    match result {
        Err(ClientError::Refused { code, .. }) => code,
        other => panic!("not refused: {other:?}"),
    }
}

/// An image that no other number has.
fn image(number: u8, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| if at % 7 == 0 { number } else { number ^ u8::try_from(at % 251).unwrap() }).collect()
}

/// What `lockstep` does at a start: opens the disk, wins the next generation, fills the disk if it must.
fn fill(server: &Server, claimant: u128, image: &[u8]) -> Result<Opened, ClientError> {
    let mut client = DiskClient::connect(&server.address, common::DEADLINE)?;
    let mut opened = client.open("vm", "disk", Some(BYTES), claimant)?;
    let Claim::Won(generation) = client.test_and_set("vm", opened.state.holding.generation, claimant)? else {
        panic!("nobody else claims");
    };
    opened.state.holding.generation = generation;
    if opened.content == Content::Filled {
        return Ok(opened);
    }
    client.begin_fill(opened.disk, generation, image.len() as u64)?;
    for (part, data) in (0..).zip(image.chunks(PART)) {
        client.write(opened.disk, generation, part * PART as u64, data, false)?;
    }
    client.end_fill(opened.disk, generation)?;
    Ok(opened)
}

fn assert_holds(site: &Site, image: &[u8]) {
    let disk = std::fs::read(site.disk_file("vm", "disk")).unwrap();
    assert_eq!(disk.len() as u64, BYTES);
    let (begin, rest) = disk.split_at(image.len());
    assert!(begin == image, "the image is not on the disk");
    assert!(rest.iter().all(|byte| *byte == 0), "something is behind the image");
}

#[test]
fn a_filled_disk_is_never_filled_again_whatever_its_bytes_are() {
    for first in [vec![0; 1 << 20], image(1, 512), image(2, 4 << 20)] {
        let site = Site::new();
        let mut server = site.start(&[]);
        assert_eq!(fill(&server, A, &first).unwrap().content, Content::New);
        for claimant in 1..4 {
            let opened = fill(&server, claimant, &image(9, 1 << 20)).unwrap();
            assert_eq!(opened.content, Content::Filled);
            let mut client = server.client();
            let disk = client.open("vm", "disk", None, claimant).unwrap().disk;
            let generation = opened.state.holding.generation;
            assert_eq!(code(client.begin_fill(disk, generation, 512)), ErrorCode::Conflict);
            server.kill();
            server = site.start(&[]);
        }
        assert_holds(&site, &first);
    }
}

#[test]
fn what_a_guest_wrote_to_a_new_disk_is_never_filled_over() {
    for byte in [0, 7] {
        let site = Site::new();
        let mut server = site.start(&[]);
        let mut client = server.client();
        let disk = common::new_vm(&mut client, "vm", BYTES, A).disk;
        client.read(disk, 1, 0, 512).unwrap();
        assert_eq!(client.open("vm", "disk", None, A).unwrap().content, Content::New);
        client.write(disk, 1, 4096, &[byte; 512], false).unwrap();
        assert_eq!(code(client.begin_fill(disk, 1, 512)), ErrorCode::Conflict);
        server.kill();
        let server = site.start(&[]);
        assert_eq!(fill(&server, B, &image(1, 4096)).unwrap().content, Content::Filled);
        let disk = std::fs::read(site.disk_file("vm", "disk")).unwrap();
        assert_eq!(disk[4096..4608], [byte; 512]);
    }
}

#[test]
fn an_image_that_does_not_fit_is_refused_with_both_sizes() {
    let site = Site::new();
    let server = site.start(&[]);
    let mut client = server.client();
    let disk = common::new_vm(&mut client, "vm", BYTES, A).disk;
    let error = client.begin_fill(disk, 1, BYTES + 512).unwrap_err().to_string();
    assert!(error.contains("4194816 bytes") && error.contains("has 4194304"), "{error}");
    assert_eq!(client.open("vm", "disk", None, A).unwrap().content, Content::New);
}

/// The server dies at each point; the next start fills with another, shorter image: nothing of the first is
/// left.
#[test]
fn a_filling_that_was_cut_short_is_begun_anew_by_whoever_comes() {
    let points = [
        ("before-content:1", Content::New),
        ("after-content:1", Content::Filling),
        ("mid-write:3", Content::Filling),
        ("before-sync:1", Content::Filling),
        ("before-content:2", Content::Filling),
        ("after-content:2", Content::Filled),
    ];
    for (point, content) in points {
        let site = Site::new();
        let mut server = site.start(&["--crash-at", point]);
        let first = image(1, 1 << 20);
        assert!(fill(&server, A, &first).unwrap_err().is_unreachable(), "{point}");
        server.wait_for_crash();
        let server = site.start(&[]);
        let mut client = server.client();
        let opened = client.open("vm", "disk", None, A).unwrap();
        assert_eq!(opened.content, content, "{point}");
        if content == Content::Filling {
            // The machine that was not told of the image may not run on half of it.
            assert_eq!(code(client.read(opened.disk, 1, 0, 512)), ErrorCode::Conflict);
            assert_eq!(code(client.write(opened.disk, 1, 0, &[1; 512], true)), ErrorCode::Conflict);
            assert_eq!(code(client.end_fill(opened.disk, 1)), ErrorCode::Conflict);
        }
        let second = image(2, 8192);
        fill(&server, B, &second).unwrap();
        assert_holds(&site, if content == Content::Filled { &first } else { &second });
    }
}

#[test]
fn of_two_that_fill_only_the_later_one_may() {
    let site = Site::new();
    let server = site.start(&[]);
    let mut first = server.client();
    let disk = common::new_vm(&mut first, "vm", BYTES, A).disk;
    first.begin_fill(disk, 1, BYTES).unwrap();
    first.write(disk, 1, 1 << 20, &[1; 4096], false).unwrap();
    // Another process under the same generation.
    let mut second = server.client();
    let other = second.open("vm", "disk", None, B).unwrap();
    assert_eq!(other.content, Content::Filling);
    assert_eq!(code(second.write(other.disk, 1, 0, &[2; 512], false)), ErrorCode::Conflict);
    second.begin_fill(other.disk, 1, 512).unwrap();
    assert_eq!(code(first.write(disk, 1, 0, &[1; 512], false)), ErrorCode::Conflict);
    assert_eq!(code(first.end_fill(disk, 1)), ErrorCode::Conflict);
    // One of a newer generation: the fence is what refuses the others.
    fill(&server, 3, &image(3, 512)).unwrap();
    assert!(matches!(second.end_fill(other.disk, 1), Err(ClientError::Fenced(_))));
    assert_holds(&site, &image(3, 512));
}

/// kill -9 of the server at random moments of a filling. LOCKSTEP_FILL_KILLS says how many.
#[test]
fn killed_at_random_moments_a_disk_is_filled_exactly_once() {
    let kills: u64 = std::env::var("LOCKSTEP_FILL_KILLS").map_or(12, |text| text.parse().expect("a number"));
    let (mut cut, mut number) = (0, 0u8);
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    while cut < kills {
        let site = Site::new();
        let mut filled: Option<Vec<u8>> = None;
        while filled.is_none() {
            let mut server = site.start(&[]);
            number = number.wrapping_add(1);
            let image = image(number, usize::from(number % 8 + 1) * (PART * 8 - 512));
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let moment = std::time::Duration::from_micros((seed >> 33) % 12_000);
            let outcome = std::thread::scope(|scope| {
                let filler = scope.spawn(|| fill(&server, u128::from(number), &image));
                std::thread::sleep(moment); // tidy: allow(sleep) a moment of the plan
                let pid = nix::unistd::Pid::from_raw(server.pid().try_into().unwrap());
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
                filler.join().unwrap()
            });
            server.kill();
            let whole = content(&site.data()) == Some(2);
            assert!(whole || outcome.is_err(), "told that it is filled, and it is not: {outcome:?}");
            if whole {
                filled = Some(image);
            } else {
                cut += 1;
            }
        }
        let server = site.start(&[]);
        assert_eq!(fill(&server, B, &image(99, 4096)).unwrap().content, Content::Filled);
        assert_holds(&site, &filled.unwrap());
    }
    println!("{cut} fillings cut short");
}

/// The state in the record, as it lies on the disk.
fn content(data: &Path) -> Option<u8> {
    std::fs::read(data.join("vms/vm/disks/disk.state")).ok()?.get(6).copied()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

/// A directory of version 1 has no record of what was filled: only what was never written to may be.
#[test]
fn disks_of_an_older_version_are_kept() {
    let site = Site::new();
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/store-1"), &site.data());
    let fresh = site.disk_file("db1", "fresh");
    std::fs::File::create(&fresh).unwrap().set_len(1 << 20).unwrap();
    let before = std::fs::read(site.disk_file("db1", "disk0")).unwrap();
    for _ in 0..2 {
        let mut server = site.start(&["--grace", "0"]);
        let mut client = server.client();
        let opened = client.open("db1", "disk0", Some(4096), A).unwrap();
        let generation = opened.state.holding.generation;
        assert!(generation >= 7 && !opened.state.ended);
        client.test_and_set("db1", generation, A).unwrap();
        assert_eq!(opened.content, Content::Filled);
        assert_eq!(code(client.begin_fill(opened.disk, generation + 1, 512)), ErrorCode::Conflict);
        let opened = client.open("db1", "fresh", None, A).unwrap();
        assert_eq!(opened.content, Content::New);
        server.kill();
        assert_eq!(std::fs::read(site.data().join("format")).unwrap(), b"lockstep disk store 2\n");
    }
    assert_eq!(std::fs::read(site.disk_file("db1", "disk0")).unwrap(), before);
}

#[test]
fn a_damaged_record_is_reported_by_file_and_its_disk_is_left_alone() {
    let site = Site::new();
    let mut server = site.start(&[]);
    fill(&server, A, &image(1, 4096)).unwrap();
    server.kill();
    let record = site.data().join("vms/vm/disks/disk.state");
    std::fs::write(&record, b"LKDC").unwrap();
    let mut server = site.start(&[]);
    let error = server.client().open("vm", "disk", Some(BYTES), A).unwrap_err().to_string();
    assert!(error.contains("disk.state") && error.contains("remove that file"), "{error}");
    server.kill();
    std::fs::remove_file(&record).unwrap();
    let server = site.start(&[]);
    assert_eq!(fill(&server, A, &image(2, 4096)).unwrap().content, Content::Filled);
    assert_holds(&site, &image(1, 4096));
}
