//! minikv's log: whatever is torn wherever, what was acknowledged is there, and nothing that was not written.

use std::collections::BTreeMap;

use minikv_core::log::{LOG_FORMAT_VERSION, SECTOR_LEN, crc32};
use minikv_core::{Client, Database, DiskWrite, RecoveryError};
use proptest::prelude::*;

mod support;
use support::{apply, boot, boot_with, contents, resp, run, settle};

type Contents = BTreeMap<Vec<u8>, Vec<u8>>;

const DISK_LEN: usize = 1 << 20;

fn execute(db: &mut Database, requests: &[&[&[u8]]]) {
    let mut client = Client::new(1);
    for request in requests {
        assert!(client.feed(&resp(request)));
        run(db, &mut client);
    }
}

/// The disk with the first `len` bytes of a write on it.
fn torn(disk: &[u8], write: &DiskWrite, len: usize) -> Vec<u8> {
    let mut disk = disk.to_vec();
    let at = write.sector as usize * SECTOR_LEN;
    disk[at..at + len].copy_from_slice(&write.bytes[..len]);
    disk
}

/// What a boot from `disk` finds, also after it has written something and was booted again.
fn recovered(mut disk: Vec<u8>) -> Contents {
    let mut db = boot(&mut disk).expect("a log");
    let found = contents(&db);
    execute(&mut db, &[&[b"SET", b"after", b"1"]]);
    settle(&mut db, &mut disk);
    let again = boot(&mut disk).expect("a log");
    let mut expected = found.clone();
    expected.insert(b"after".to_vec(), b"1".to_vec());
    assert_eq!(contents(&again), expected, "what a later boot wrote is there, and nothing older");
    found
}

#[test]
fn crc_is_the_ieee_one() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    assert_eq!(crc32(b""), 0);
    let bytes: Vec<u8> = (0..=255).collect();
    assert_eq!(crc32(&bytes), 0x2905_8c73);
}

#[test]
fn a_batch_torn_at_any_byte_is_there_whole_or_not_at_all() {
    let mut disk = vec![0; DISK_LEN];
    let mut db = boot(&mut disk).expect("an empty disk");
    execute(&mut db, &[&[b"MSET", b"a", b"1", b"b", b"2"], &[b"DEL", b"b"]]);
    settle(&mut db, &mut disk);
    let before = contents(&db);
    let long = vec![b'v'; 700];
    execute(&mut db, &[&[b"SET", b"c", &long], &[b"APPEND", b"a", b"tail"], &[b"DEL", b"none"]]);
    let after = contents(&db);
    let write = db.next_write().expect("a batch");
    assert_eq!(write.bytes.len(), 2 * SECTOR_LEN);
    let content = write.bytes.iter().rposition(|&byte| byte != 0).expect("content") + 1;
    for len in 0..=write.bytes.len() {
        let expected = if len < content { &before } else { &after };
        assert_eq!(&recovered(torn(&disk, &write, len)), expected, "torn at {len}");
    }
}

#[test]
fn what_a_torn_batch_left_never_comes_back() {
    // Three sectors torn so that only the last two are written; they hold an image of a batch with the very
    // sequence that comes next. It must not be taken for one, whatever is written before it later.
    let mut disk = vec![0; DISK_LEN];
    let mut db = boot(&mut disk).expect("an empty disk");
    let mut scratch = disk.clone();
    execute(&mut db, &[&[b"SET", b"a", b"1"]]);
    settle(&mut db, &mut scratch);
    execute(&mut db, &[&[b"SET", b"ghost", b"1"]]);
    let ghost = db.next_write().expect("a batch");
    // As if the first batch had never reached the disk, and the second had.
    apply(&mut disk, &ghost);
    let mut db = boot(&mut disk).expect("a log");
    assert!(contents(&db).is_empty());
    execute(&mut db, &[&[b"SET", b"a", b"1"]]);
    settle(&mut db, &mut disk);
    let db = boot(&mut disk).expect("a log");
    assert_eq!(contents(&db).keys().collect::<Vec<_>>(), [b"a"]);
}

#[test]
fn a_format_torn_at_any_byte_is_made_good() {
    let mut states = Vec::new();
    boot_with(&mut vec![0; DISK_LEN], |disk, write| {
        for len in (0..=write.bytes.len()).filter(|len| len % 64 < 9 || len % SECTOR_LEN > 500) {
            states.push(torn(disk, write, len));
        }
    })
    .expect("an empty disk");
    assert!(states.len() > 100);
    for disk in states {
        assert!(recovered(disk).is_empty());
    }
}

#[test]
fn a_compaction_torn_anywhere_loses_nothing() {
    let mut disk = vec![0; DISK_LEN];
    let mut db = boot(&mut disk).expect("an empty disk");
    for round in 0..20u8 {
        let value = vec![round; 900];
        execute(&mut db, &[&[b"SET", &[b'k', round % 7], &value], &[b"APPEND", b"log", &[round]]]);
        settle(&mut db, &mut disk);
    }
    let expected = contents(&db);
    execute(&mut db, &[&[b"BGREWRITEAOF"]]);
    let mut writes = 0;
    while let Some(write) = db.next_write() {
        let step = (write.bytes.len() / 60).max(1);
        for len in (0..=write.bytes.len()).step_by(step) {
            assert_eq!(recovered(torn(&disk, &write, len)), expected, "write {writes} torn at {len}");
        }
        apply(&mut disk, &write);
        db.write_done(write);
        writes += 1;
    }
    assert_eq!(writes, 2, "one batch and the superblock");
    assert_eq!(recovered(disk), expected);
}

#[test]
fn boots_without_a_write_keep_everything() {
    let mut disk = vec![0; DISK_LEN];
    let mut db = boot(&mut disk).expect("an empty disk");
    execute(&mut db, &[&[b"SET", b"a", b"1"]]);
    settle(&mut db, &mut disk);
    for _ in 0..5 {
        let db = boot(&mut disk).expect("a log");
        assert_eq!(db.store().get(b"a"), Some(&b"1"[..]));
    }
}

#[test]
fn disks_that_cannot_be_used_are_refused_untouched() {
    let mut disk = vec![0; 100 * SECTOR_LEN];
    assert_eq!(boot(&mut disk).err(), Some(RecoveryError::TooSmall(100)));

    let mut foreign = vec![0; DISK_LEN];
    foreign[..4].copy_from_slice(b"EFI ");
    let copy = foreign.clone();
    assert_eq!(boot(&mut foreign).err(), Some(RecoveryError::Foreign));
    assert_eq!(foreign, copy);

    let mut disk = vec![0; DISK_LEN];
    boot(&mut disk).expect("an empty disk");
    let mut newer = disk.clone();
    for at in [0, 8 * SECTOR_LEN] {
        newer[at + 8] = LOG_FORMAT_VERSION as u8 + 1;
    }
    assert_eq!(boot(&mut newer).err(), Some(RecoveryError::Version(LOG_FORMAT_VERSION + 1)));

    let mut damaged = disk.clone();
    damaged[40] ^= 1;
    boot(&mut damaged).expect("one copy is whole");
    let mut damaged = disk.clone();
    damaged[40] ^= 1;
    damaged[8 * SECTOR_LEN + 40] ^= 1;
    assert_eq!(boot(&mut damaged).err(), Some(RecoveryError::Superblocks));

    let mut disk = vec![0; 2 * DISK_LEN];
    boot(&mut disk).expect("an empty disk");
    assert!(matches!(boot(&mut disk[..DISK_LEN]).err(), Some(RecoveryError::Shrunk(2048, _))));
}

#[test]
fn a_full_disk_says_so_and_still_deletes() {
    let mut disk = vec![0; DISK_LEN];
    let mut db = boot(&mut disk).expect("an empty disk");
    let value = vec![b'v'; 50_000];
    let mut client = Client::new(1);
    let mut ask = |db: &mut Database, disk: &mut Vec<u8>, request: &[&[u8]]| {
        assert!(client.feed(&resp(request)));
        loop {
            run(db, &mut client);
            settle(db, disk);
            let reply = client.ready(db.durable()).to_vec();
            if !reply.is_empty() {
                client.sent(reply.len());
                return String::from_utf8(reply).expect("text");
            }
        }
    };
    let full = "-MISCONF Errors writing to the AOF file: No space left on device\r\n";
    let mut stored = 0u8;
    while ask(&mut db, &mut disk, &[b"SET", &[stored], &value]) == "+OK\r\n" {
        stored += 1;
    }
    assert_eq!(stored, 7, "three quarters of a half of the disk");
    assert_eq!(ask(&mut db, &mut disk, &[b"SET", b"new", &value]), full);
    // Small changes go on for ever, by compaction.
    for round in 0..3000 {
        assert_eq!(ask(&mut db, &mut disk, &[b"INCR", b"n"]), format!(":{}\r\n", round + 1));
    }
    assert_eq!(ask(&mut db, &mut disk, &[b"SET", &[0], &value]), "+OK\r\n");
    assert_eq!(ask(&mut db, &mut disk, &[b"DEL", &[1], &[2]]), ":2\r\n");
    assert_eq!(ask(&mut db, &mut disk, &[b"SET", b"new", &value]), "+OK\r\n");
    let expected = contents(&db);
    assert_eq!(recovered(disk), expected);
}

#[derive(Debug, Clone)]
enum Action {
    /// A command: which, which key, how long a value.
    Command(u8, u8, usize),
    /// The write under way becomes durable.
    Complete,
    /// The power fails: these sectors of the write under way are on the disk, and so many bytes of one.
    Crash(Vec<bool>, usize),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        12 => (0u8..20, 0u8..12, prop_oneof![4 => 0usize..300, 1 => 0usize..40_000])
            .prop_map(|(kind, key, len)| Action::Command(kind, key, len)),
        8 => Just(Action::Complete),
        1 => (prop::collection::vec(any::<bool>(), 1..40), 0usize..SECTOR_LEN)
            .prop_map(|(sectors, len)| Action::Crash(sectors, len)),
    ]
}

fn command(kind: u8, key: u8, len: usize, filler: u8) -> Vec<u8> {
    let (key, value) = ([b'k', b'0' + key], vec![filler; len]);
    match kind {
        0..=9 => resp(&[b"SET", &key, &value]),
        10..=12 => resp(&[b"APPEND", &key, &value[..len.min(100)]]),
        13..=14 => resp(&[b"DEL", &key, b"k3"]),
        15 => resp(&[b"MSET", &key, &value[..len.min(5000)], b"k5", b"x"]),
        16 => resp(&[b"FLUSHALL"]),
        17 => resp(&[b"BGREWRITEAOF"]),
        _ => resp(&[b"GETDEL", &key]),
    }
}

/// A guest's life with a disk whose power fails.
struct Life {
    disk: Vec<u8>,
    db: Database,
    client: Client,
    under_way: Option<DiskWrite>,
    /// What the data set was when the batch of each mark was last added to.
    states: BTreeMap<u64, Contents>,
}

impl Life {
    fn new() -> Self {
        let mut disk = vec![0; DISK_LEN];
        let db = boot(&mut disk).expect("an empty disk");
        let states = BTreeMap::from([(db.mark(), Contents::new())]);
        Self { disk, db, client: Client::new(1), under_way: None, states }
    }

    fn advance(&mut self) {
        run(&mut self.db, &mut self.client);
        self.states.insert(self.db.mark(), contents(&self.db));
        if self.under_way.is_none() {
            self.under_way = self.db.next_write();
        }
        let ready = self.client.ready(self.db.durable()).len();
        self.client.sent(ready);
    }

    fn complete(&mut self) {
        if let Some(write) = self.under_way.take() {
            apply(&mut self.disk, &write);
            self.db.write_done(write);
        }
        self.advance();
    }

    fn crash(&mut self, sectors: &[bool], len: usize) -> Result<(), TestCaseError> {
        if let Some(write) = self.under_way.take() {
            let mut kept = sectors.iter().cycle();
            for (index, sector) in write.bytes.chunks(SECTOR_LEN).enumerate() {
                let kept = if *kept.next().expect("a cycle") { SECTOR_LEN } else { 0 };
                // One of the sectors is itself torn.
                let kept = if index == len % sectors.len() { len } else { kept };
                let at = (write.sector as usize + index) * SECTOR_LEN;
                self.disk[at..at + kept].copy_from_slice(&sector[..kept]);
            }
        }
        let durable = self.db.durable();
        self.db = boot(&mut self.disk).expect("a log");
        self.client = Client::new(1);
        let found = contents(&self.db);
        // The state at the last durable batch, or that of the one under way if it happens to be whole.
        let acceptable = self.states.range(..=durable).next_back().into_iter();
        let acceptable = acceptable.chain(self.states.range(durable + 1..=durable + 1));
        prop_assert!(acceptable.map(|(_, state)| state).any(|state| *state == found));
        self.states = BTreeMap::from([(self.db.mark(), found)]);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn power_failures_lose_nothing_that_was_acknowledged(actions in prop::collection::vec(action(), 1..400)) {
        let mut life = Life::new();
        for (index, action) in actions.into_iter().enumerate() {
            match action {
                Action::Command(kind, key, len) => {
                    // A connection that is blocked takes no more than its parser has room for.
                    let request = command(kind, key, len, index as u8);
                    if life.client.room() >= request.len() {
                        prop_assert!(life.client.feed(&request));
                    }
                    life.advance();
                }
                Action::Complete => life.complete(),
                Action::Crash(sectors, len) => life.crash(&sectors, len)?,
            }
        }
        life.crash(&[false], 0)?;
    }
}
