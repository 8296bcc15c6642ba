//! The log while the guest runs: batches under way, and compaction. Sans-I/O: the caller carries out one
//! `DiskWrite` at a time and says when it is done.
//!
//! ```text
//!  Appending ──(half full)──▶ Draining ──(all durable)──▶ Snapshot ──(live set written)──▶ Switch ─┐
//!      ▲                                                                                          │
//!      └──────────────────────────────────(superblock durable)────────────────────────────────────┘
//! ```
//!
//! Invariants: durable <= appended <= next; nothing is appended but in state Appending; one write is under
//! way at most; a write never touches a sector that holds anything acknowledged.

use alloc::vec::Vec;
use core::mem;

use super::format::{BATCH_HEADER_LEN, MAX_BATCH_LEN, Op, SECTOR_LEN, Superblock, seal_batch};
use super::{AREA_START, SUPERBLOCK_SECTORS};
use crate::store::{Position, Store};

/// A snapshot's batch is closed once it is this long.
const SNAPSHOT_BATCH_LEN: usize = 256 << 10;
/// Room of the live set in a half, in percent: the rest is what a compaction wins at least.
const LIVE_PERCENT: u64 = 75;

/// A write that the disk must do; durable when it completes.
#[derive(Debug, PartialEq, Eq)]
pub struct DiskWrite {
    /// First sector.
    pub sector: u64,
    /// Whole sectors.
    pub bytes: Vec<u8>,
}

/// Whether operations can be appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// Yes, now.
    Now,
    /// After a write that is under way, or a compaction.
    Later,
    /// No: the disk is full.
    Never,
}

#[derive(Debug)]
enum State {
    Appending,
    Draining,
    Snapshot(Position),
    Switch,
}

/// The log.
#[derive(Debug)]
pub struct Journal {
    superblock: Superblock,
    state: State,
    /// Next sector to write, relative to the half that is being written.
    next_sector: u64,
    /// The batch that is being filled: room for its header, then operations.
    pending: Vec<u8>,
    pending_ops: u32,
    /// The buffer that is not in use.
    spare: Vec<u8>,
    /// Sequence of the batch that is being filled.
    next_seq: u64,
    /// Sequence of the batch that has the last operation appended.
    appended_seq: u64,
    /// Sequence of the last batch that is durable.
    durable_seq: u64,
    /// Whether a write is under way.
    writing: bool,
    /// Whether nothing was appended since the last compaction.
    fresh: bool,
    /// Bytes written to the log since boot.
    written: u64,
    compactions: u64,
}

impl Journal {
    /// The log as recovery found it: `next_sector` of the active half and `next_seq` are where it goes on.
    pub(super) fn new(superblock: Superblock, next_sector: u64, next_seq: u64) -> Self {
        Self {
            superblock,
            state: State::Appending,
            next_sector,
            pending: Vec::with_capacity(MAX_BATCH_LEN),
            pending_ops: 0,
            spare: Vec::with_capacity(MAX_BATCH_LEN),
            next_seq,
            appended_seq: next_seq - 1,
            durable_seq: next_seq - 1,
            writing: false,
            fresh: false,
            written: 0,
            compactions: 0,
        }
    }

    /// What must be durable before a reply that is given now may leave: compare with `durable_seq`.
    pub fn mark(&self) -> u64 {
        self.appended_seq
    }

    /// Sequence of the last batch that is durable.
    pub fn durable_seq(&self) -> u64 {
        self.durable_seq
    }

    /// Whether every operation is durable and nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.pending_ops == 0 && !self.writing && matches!(self.state, State::Appending)
    }

    /// Bytes of the active half in use.
    pub fn used_len(&self) -> u64 {
        self.next_sector * SECTOR_LEN as u64
    }

    /// Bytes of a half.
    pub fn half_len(&self) -> u64 {
        self.superblock.half_sectors * SECTOR_LEN as u64
    }

    /// Bytes written to the log since boot.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Compactions since boot.
    pub fn compactions(&self) -> u64 {
        self.compactions
    }

    /// Boots of this disk, this one included.
    pub fn epoch(&self) -> u32 {
        self.superblock.epoch
    }

    /// Whether operations of `len` bytes can be appended, when the live set takes `live_len` bytes after them
    /// (`None`: they do not make it larger). Starts a compaction if one would make room.
    pub fn room(&mut self, len: usize, live_len: Option<u64>) -> Room {
        if live_len.is_some_and(|live| live > self.half_len() * LIVE_PERCENT / 100) {
            return Room::Never;
        }
        if !matches!(self.state, State::Appending) {
            return Room::Later;
        }
        let start = if self.pending.is_empty() { BATCH_HEADER_LEN } else { self.pending.len() };
        let end = (start + len).next_multiple_of(SECTOR_LEN);
        if end > MAX_BATCH_LEN {
            // The batch being filled is full: it goes out as soon as the one under way is durable.
            return if self.pending_ops > 0 { Room::Later } else { Room::Never };
        }
        if self.next_sector + (end / SECTOR_LEN) as u64 <= self.superblock.half_sectors {
            return Room::Now;
        }
        if self.fresh {
            return Room::Never;
        }
        self.state = State::Draining;
        Room::Later
    }

    /// Starts a compaction, if none is under way.
    pub fn compact(&mut self) {
        if matches!(self.state, State::Appending) {
            self.state = State::Draining;
        }
    }

    /// Appends an operation; `room` was asked and said `Now` for it and those that go with it.
    pub fn append(&mut self, op: &Op<'_>) {
        assert!(matches!(self.state, State::Appending), "nothing is appended during a compaction");
        if self.pending.is_empty() {
            self.pending.resize(BATCH_HEADER_LEN, 0);
        }
        op.encode(&mut self.pending);
        self.pending_ops += 1;
        self.appended_seq = self.next_seq;
        self.fresh = false;
    }

    /// Whether operations wait, or a compaction has to go on, and no write is under way.
    pub fn wants_write(&self) -> bool {
        !self.writing && (self.pending_ops > 0 || !matches!(self.state, State::Appending))
    }

    /// The next write, if one is due; `store` holds what the operations so far make. `None` while one is
    /// under way.
    pub fn next_write(&mut self, store: &Store) -> Option<DiskWrite> {
        if !self.wants_write() {
            return None;
        }
        if self.pending_ops > 0 {
            return Some(self.seal());
        }
        if matches!(self.state, State::Draining) {
            assert_eq!(self.durable_seq + 1, self.next_seq, "drained");
            // From here on `superblock` is the one that the switch will write.
            self.superblock.serial += 1;
            self.superblock.active ^= 1;
            self.superblock.first_seq = self.next_seq;
            self.superblock.base_epoch = self.superblock.epoch;
            self.next_sector = 0;
            self.state = State::Snapshot(Position::default());
        }
        if let State::Snapshot(position) = &mut self.state {
            let position = mem::take(position);
            if let Some(behind) = self.fill_snapshot(store, &position) {
                self.state = State::Snapshot(behind);
                return Some(self.seal());
            }
            self.state = State::Switch;
        }
        self.writing = true;
        let sector = SUPERBLOCK_SECTORS[(self.superblock.serial % 2) as usize];
        Some(DiskWrite { sector, bytes: self.superblock.encode().to_vec() })
    }

    /// Fills a batch with the live set from `position` on; `None` if nothing is left.
    fn fill_snapshot(&mut self, store: &Store, position: &Position) -> Option<Position> {
        self.pending.resize(BATCH_HEADER_LEN, 0);
        let mut last = None;
        for (key, value) in store.iter_from(position) {
            let op = Op::Set(key, value);
            if last.is_some() && self.pending.len() + op.len() > SNAPSHOT_BATCH_LEN {
                break;
            }
            op.encode(&mut self.pending);
            self.pending_ops += 1;
            last = Some(key);
        }
        if last.is_none() {
            self.pending.clear();
        }
        last.map(Position::behind)
    }

    fn seal(&mut self) -> DiskWrite {
        let mut bytes = mem::replace(&mut self.pending, mem::take(&mut self.spare));
        seal_batch(&mut bytes, &self.superblock, self.next_seq, self.pending_ops);
        let sector =
            AREA_START + u64::from(self.superblock.active) * self.superblock.half_sectors + self.next_sector;
        self.next_sector += (bytes.len() / SECTOR_LEN) as u64;
        assert!(self.next_sector <= self.superblock.half_sectors, "a batch never leaves its half");
        self.pending_ops = 0;
        self.next_seq += 1;
        self.written += bytes.len() as u64;
        self.writing = true;
        DiskWrite { sector, bytes }
    }

    /// The write under way is durable. Takes its buffer back for the next one.
    pub fn write_done(&mut self, write: DiskWrite) {
        assert!(self.writing, "a write was under way");
        self.writing = false;
        if matches!(self.state, State::Switch) {
            self.state = State::Appending;
            self.fresh = true;
            self.compactions += 1;
            return;
        }
        self.durable_seq = self.next_seq - 1;
        let mut buffer = write.bytes;
        buffer.clear();
        self.spare = buffer;
    }
}
