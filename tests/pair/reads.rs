//! `--backup-reads`: the backup reads the shared disk itself, and acks what it has read.

use std::os::unix::fs::FileExt;

use disk_server::client::DiskClient;
use lockstep::cluster::{ClusterOptions, Part};
use logchannel::message::{Batch, Hello, Message};
use logchannel::{DiskStatus, Event, EventKind, data_digest};

use crate::crafted::{CLAIMANT, connect, entries, hello, pair_config, win};
use crate::harness::{DIVERGED, PATIENCE, Pair, Process, VM, wait_until};
use crate::load::Load;
use crate::relay::{Later, Relay};

const CONNECTIONS: usize = 4;
const SOME: u64 = 200;
const MACHINE: [&str; 2] = ["--disk-size", "16"];
const DISK_BYTES: u64 = 16 << 20;
/// Connections of a backup before those that read: one asks for the generation all the time, one whether the
/// primary is whom it says.
const QUESTIONS: usize = 2;

fn with_reads(options: &mut ClusterOptions) {
    options.primary_options = vec!["--backup-reads".into()];
}

/// Entries of one kind that a primary sent to its present backup.
fn logged(pair: &Pair, kind: EventKind) -> Option<u64> {
    let status = pair.status(Part::Primary).ok()?;
    let kinds = status.pointer("/live/log_kinds")?.as_array()?;
    let found = kinds.iter().find(|found| found[0] == kind.name());
    Some(found.map_or(0, |found| found[1].as_u64().unwrap_or(0)))
}

fn number(pair: &Pair, part: Part, path: &str) -> Option<u64> {
    pair.status(part).ok()?.pointer(path)?.as_u64()
}

/// Waits until the backup has read as often as the log told it to.
fn all_read(pair: &Pair) -> u64 {
    let mut reads = 0;
    wait_until("the backup to read the disk as the log says", || {
        reads = logged(pair, EventKind::DiskRead).unwrap_or(0);
        reads > 0 && number(pair, Part::Backup, "/backup/disk_reads/reads") == Some(reads)
    });
    reads
}

/// Kills both halves.
fn kill_both(pair: &mut Pair) {
    for part in [Part::Primary, Part::Backup] {
        pair.kill(part).unwrap();
    }
    wait_until("the disk server to see that nobody is left", || !pair.holding().holder_connected);
}

/// Kills both halves, and starts them again on the same disk; the new pair's generation.
fn start_again(pair: &mut Pair) -> u64 {
    kill_both(pair);
    pair.start_halves(str::to_string);
    pair.holding().holding.generation
}

#[test]
fn a_backup_that_reads_the_disk_itself_takes_over_and_so_does_the_next() {
    let Some(mut pair) = Pair::start_with("a_backup_that_reads", with_reads) else { return };
    let load = Load::start(pair.port(), CONNECTIONS);
    load.wait_for(SOME);
    let value = load.stop().assert_unbroken().check(pair.port());
    // The guest now reads its log.
    let generation = start_again(&mut pair);
    let reads = all_read(&pair);
    eprintln!("the backup made {reads} reads of the guest's boot");
    assert_eq!(pair.client().number(crate::load::COUNTER).unwrap(), value);
    pair.client().set(crate::load::COUNTER, "0").unwrap();
    let load = Load::start(pair.port(), CONNECTIONS);
    load.wait_for(SOME);
    pair.kill(Part::Primary).unwrap();
    load.wait_for(SOME);
    pair.assert_one_live(Part::Backup, generation + 1);
    // A backup that joins the new copy is told to read, too.
    pair.promote_backup().unwrap();
    pair.start_backup().unwrap();
    let socket = pair.control(Part::Primary).display().to_string();
    let mut replicate = pair.spawn("replicate", &["replicate", &socket, "--to", pair.backup_address()]);
    assert_eq!(replicate.exit_code(), 0, "{}", replicate.output());
    pair.wait_for_state(Part::Primary, "Replicating");
    wait_until("the new backup to say that it reads", || {
        number(&pair, Part::Backup, "/backup/disk_reads/waiting") == Some(0)
    });
    load.wait_for(SOME);
    pair.kill(Part::Primary).unwrap();
    load.wait_for(SOME);
    pair.assert_one_live(Part::Backup, generation + 2);
    load.stop().assert_unbroken().check(pair.port());
}

/// By default the data is in the log, and the backup reads nothing.
#[test]
fn without_the_option_the_backup_reads_nothing() {
    let Some(mut pair) = Pair::start("without_the_option") else { return };
    start_again(&mut pair);
    assert_eq!(logged(&pair, EventKind::DiskRead), Some(0));
    assert!(logged(&pair, EventKind::DiskDone) > Some(0));
    let status = pair.status(Part::Backup).unwrap();
    assert!(status["backup"]["disk_reads"].is_null(), "{status}");
}

/// The primary dies while its guest reads the disk: what the backup has not read was not acked, and is read
/// again.
#[test]
fn the_primary_is_killed_while_its_guest_reads() {
    let Some(mut pair) = Pair::start_with("killed_while_its_guest_reads", with_reads) else { return };
    let load = Load::start(pair.port(), CONNECTIONS);
    load.wait_for(SOME);
    let value = load.stop().assert_unbroken().check(pair.port());
    kill_both(&mut pair);
    let relay = Relay::start_with(pair.disk_address(), QUESTIONS, Later::Hold);
    let _backup = backup_behind(&mut pair, &relay, &["--timeout-ms", "20000"]);
    pair.options_mut().pair_options = vec!["--timeout-ms".into(), "20000".into()];
    pair.start_primary().unwrap();
    wait_until("a read to wait", || number(&pair, Part::Backup, "/backup/disk_reads/waiting") > Some(0));
    assert_eq!(number(&pair, Part::Backup, "/backup/disk_reads/reads"), Some(0));
    let generation = pair.holding().holding.generation;
    pair.kill(Part::Primary).unwrap();
    relay.release();
    wait_until("the guest to answer", || lockstep::cluster::ping(pair.port()).unwrap_or(false));
    pair.wait_for_state(Part::Backup, "Alone");
    assert_eq!(pair.client().number(crate::load::COUNTER).unwrap(), value);
    assert_eq!(pair.holding().holding.generation, generation + 1);
}

/// Starts a backup that reaches the disk server through `relay`, for the next primary.
fn backup_behind(pair: &mut Pair, relay: &Relay, options: &[&str]) -> Process {
    let (network, socket) = (pair.network(), pair.control(Part::Backup).display().to_string());
    let reports = pair.directory().display().to_string();
    let mut words = vec!["backup", "--listen", "127.0.0.1:0", "--disk-server", relay.address()];
    words.extend(["--net", &network, "--control", &socket, "--reports", &reports]);
    words.extend(MACHINE.iter().chain(options));
    let mut backup = pair.spawn("backup", &words);
    let address = backup.wait_for_line("backup listening on ");
    pair.reach_backup_at(address);
    backup
}

/// A backup that cannot reach the disk leaves, and says why; the primary goes on alone. Whether the backup's
/// connections are refused or never answered.
#[test]
fn a_backup_that_cannot_read_the_disk_leaves_the_primary_alone() {
    for later in [Later::Hold, Later::Refuse] {
        let Some(mut pair) = Pair::services("a_backup_that_cannot_read", with_reads) else { return };
        let relay = Relay::start_with(pair.disk_address(), QUESTIONS, later);
        let mut backup = backup_behind(&mut pair, &relay, &[]);
        pair.start_primary().unwrap();
        assert_eq!(backup.exit_code(), 1, "{}", backup.output());
        let output = backup.output();
        assert!(output.contains("halted: the backup cannot read the shared disk"), "{output}");
        pair.wait_for_guest().unwrap();
        pair.assert_one_live(Part::Primary, 2);
        let load = Load::start(pair.port(), CONNECTIONS);
        load.wait_for(SOME);
        load.stop().assert_unbroken().check(pair.port());
    }
}

/// Somebody changes the disk behind everybody's back, between the primary's read and the backup's.
#[test]
fn a_disk_that_shows_the_backup_something_else_is_a_divergence() {
    let Some(mut pair) = Pair::services("a_disk_that_shows", with_reads) else { return };
    let relay = Relay::start_with(pair.disk_address(), QUESTIONS, Later::Hold);
    let patient = ["--timeout-ms", "20000"];
    let mut backup = backup_behind(&mut pair, &relay, &patient);
    pair.options_mut().pair_options = patient.map(String::from).to_vec();
    pair.start_primary().unwrap();
    wait_until("a read to wait", || number(&pair, Part::Backup, "/backup/disk_reads/waiting") > Some(0));
    let path = pair.directory().join(format!("disks/vms/{VM}/disks/disk0.img"));
    // The guest's first read is of the superblocks, at the beginning.
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().write_at(&[0xff], 1).unwrap();
    relay.release();
    assert_eq!(backup.exit_code(), DIVERGED, "{}", backup.output());
    let name = backup.output();
    let name = name.split("report in ").nth(1).and_then(|rest| rest.lines().next()).expect("a report");
    let report = std::fs::read_to_string(name).unwrap();
    assert!(report.contains("of the disk are"), "{report}");
    pair.wait_for_state(Part::Primary, "Alone");
    assert_eq!(pair.holding().holding.generation, 2);
    assert!(!pair.has_ended(Part::Primary));
}

/// What a backup makes of reads that a primary made up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Diverges,
    Leaves,
    GoesLive,
}

#[test]
fn reads_that_cannot_be_stop_the_backup_or_the_channel() {
    let read = |offset: u64, len: u32, data: &[u8]| {
        let request = offset / 512 + 1;
        Event::DiskRead { request, offset, len, digest: data_digest(data) }
    };
    let zeros = vec![0; 512];
    let many = (0..257).map(|sector| read(sector * 512, 512, &zeros)).collect();
    let cases = [
        ("other bytes", vec![read(0, 512, &[1; 512])], Verdict::Diverges),
        ("a request nobody made", vec![read(0, 512, &zeros)], Verdict::Diverges),
        ("beyond the disk", vec![read(DISK_BYTES, 512, &zeros)], Verdict::Leaves),
        ("half a sector", vec![read(0, 100, &zeros)], Verdict::Leaves),
        ("the end of numbers", vec![read(u64::MAX, u32::MAX, &zeros)], Verdict::GoesLive),
        ("more than a machine has in flight", many, Verdict::GoesLive),
        ("larger than a request", vec![read(0, 6 << 20, &zeros)], Verdict::GoesLive),
    ];
    let Some(mut pair) = Pair::services("reads_that_cannot_be", |_| {}) else { return };
    for (name, events, verdict) in cases {
        pair.start_backup().unwrap();
        let (generation, mut disk) = win(&pair, VM);
        disk.open(VM, "disk0", Some(DISK_BYTES), CLAIMANT).unwrap();
        let hello = Hello { backup_reads: true, ..hello(pair_config(&MACHINE)) };
        let mut channel = connect(pair.backup_address(), &hello, generation).unwrap();
        let batch = Batch { first: 1, released: 0, base: 0, entries: entries(1, 0, events) };
        assert!(channel.send(&Message::Entries(batch)));
        match verdict {
            Verdict::Diverges => assert_eq!(pair.exit_code(Part::Backup), DIVERGED, "{name}"),
            Verdict::Leaves => {
                // A right primary would not fall silent meanwhile.
                let beat = Message::Entries(Batch { first: 2, released: 0, base: 0, entries: Vec::new() });
                wait_until("the backup to leave", || !channel.send(&beat) || pair.has_ended(Part::Backup));
                assert_eq!(pair.exit_code(Part::Backup), 1, "{name}: {}", pair.log_text(Part::Backup));
            }
            Verdict::GoesLive => {
                pair.wait_for_state(Part::Backup, "Alone");
                assert_eq!(pair.holding().holding.generation, generation + 1, "{name}");
                pair.kill(Part::Backup).unwrap();
            }
        }
        let log = pair.log_text(Part::Backup);
        assert!(!log.contains("panicked"), "{name}: {log}");
        drop((channel, disk));
    }
}

/// A read that the disk server cannot do any more under this generation: another copy holds a newer one.
#[test]
fn a_backup_whose_reads_are_fenced_halts_as_one_that_lost() {
    let Some(mut pair) = Pair::services("a_backup_whose_reads_are_fenced", |_| {}) else { return };
    pair.start_backup().unwrap();
    let (generation, mut disk) = win(&pair, VM);
    disk.open(VM, "disk0", Some(DISK_BYTES), CLAIMANT).unwrap();
    let hello = Hello { backup_reads: true, ..hello(pair_config(&MACHINE)) };
    let mut channel = connect(pair.backup_address(), &hello, generation).unwrap();
    let mut third = DiskClient::connect(pair.disk_address(), PATIENCE).unwrap();
    third.test_and_set(VM, generation, 7).unwrap();
    let done = Event::DiskDone { request: 1, status: DiskStatus::Ok, data: vec![0; 512] };
    let [entry] = entries(1, 0, vec![done]).try_into().expect("one");
    let batch = Batch { first: 1, released: 0, base: 0, entries: vec![ft::reads::without_data(&entry, 0)] };
    assert!(channel.send(&Message::Entries(batch)));
    assert_eq!(pair.exit_code(Part::Backup), crate::harness::OTHER_LIVE, "{}", pair.log_text(Part::Backup));
    assert_eq!(pair.holding().holding.generation, generation + 1);
}
