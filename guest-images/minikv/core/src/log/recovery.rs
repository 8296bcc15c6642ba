//! Finds the log on a disk, at boot: which half holds, what its batches make, where it ends. Sans-I/O: the
//! caller carries out each `Step`.
//!
//! It reads both superblocks at once, then the active half in growing pieces until the first batch that is
//! not valid: that is the end, torn or not. Last, it makes the new epoch durable.

use alloc::vec::Vec;
use core::fmt;
use core::mem;

use super::format::{BATCH_HEADER_LEN, BatchHeader, Found, MAX_BATCH_LEN, Op, SECTOR_LEN, Superblock};
use super::journal::{DiskWrite, Journal};
use super::{AREA_START, HALF_ALIGN, LOG_FORMAT_VERSION, MIN_DISK_SECTORS, SUPERBLOCK_SECTORS};
use crate::store::{OutOfMemory, Store};

/// Sectors of the first read of a log.
const FIRST_READ_SECTORS: u64 = 32;
/// Sectors of the largest read.
const MAX_READ_SECTORS: u64 = 512;

/// Why a disk cannot be used. Nothing was written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryError {
    /// Fewer sectors than `MIN_DISK_SECTORS`.
    TooSmall(u64),
    /// It is smaller than it was: sectors now, sectors needed.
    Shrunk(u64, u64),
    /// It holds something else.
    Foreign,
    /// Its log has this other version.
    Version(u32),
    /// Both superblocks are damaged.
    Superblocks,
    /// The batch with this sequence is whole, and yet makes no sense.
    Batch(u64),
    /// The data set does not fit into memory.
    OutOfMemory,
}

impl fmt::Display for RecoveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall(sectors) => {
                write!(f, "the disk has {sectors} sectors of 512 bytes; give it {MIN_DISK_SECTORS} or more")
            }
            Self::Shrunk(now, then) => {
                write!(f, "the disk has {now} sectors, its log needs {then}: it was cut off")
            }
            Self::Foreign => {
                write!(f, "the disk holds something else; to use it here, zero its first 8 KiB")
            }
            Self::Version(found) => {
                write!(f, "the disk has a log of version {found}, this is version {LOG_FORMAT_VERSION}")
            }
            Self::Superblocks => write!(f, "both superblocks of the log are damaged"),
            Self::Batch(seq) => write!(f, "batch {seq} of the log is no list of operations"),
            Self::OutOfMemory => write!(f, "the data set does not fit into memory; give the machine more"),
        }
    }
}

impl From<OutOfMemory> for RecoveryError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// What recovery needs next.
#[derive(Debug)]
pub enum Step {
    /// Read these sectors, then call `read_done`.
    Read {
        /// First sector.
        sector: u64,
        /// How many.
        count: u64,
    },
    /// Write this, then call `write_done`.
    Write(DiskWrite),
    /// The data set is complete, and the log goes on here.
    Ready(Journal),
}

#[derive(Debug)]
enum State {
    Superblocks,
    Load,
    Announce,
    Ready,
}

/// What is where a batch should be.
enum Batch {
    /// One that is valid.
    Whole(BatchHeader),
    /// The beginning of one; more has to be read.
    Part,
    /// None: the log ends here.
    End,
}

/// A recovery under way.
#[derive(Debug)]
pub struct Recovery {
    disk_sectors: u64,
    max_memory: usize,
    state: State,
    superblock: Superblock,
    /// Sectors of the active half that were read.
    read_sectors: u64,
    next_read: u64,
    /// What was read and not yet understood; begins at a batch.
    buffer: Vec<u8>,
    /// Sectors of the batches so far.
    end: u64,
    next_seq: u64,
    last_epoch: u32,
}

impl Recovery {
    /// For a disk of this size, and a data set of at most `max_memory` bytes. `new_disk_id` should differ
    /// from disk to disk.
    pub fn new(disk_sectors: u64, new_disk_id: u32, max_memory: usize) -> Result<Self, RecoveryError> {
        if disk_sectors < MIN_DISK_SECTORS {
            return Err(RecoveryError::TooSmall(disk_sectors));
        }
        let half_sectors = (disk_sectors - AREA_START) / 2 / HALF_ALIGN * HALF_ALIGN;
        let superblock = Superblock {
            serial: 2,
            epoch: 1,
            active: 0,
            half_sectors,
            first_seq: 1,
            base_epoch: 1,
            disk_id: new_disk_id,
        };
        Ok(Self {
            disk_sectors,
            max_memory,
            state: State::Superblocks,
            superblock,
            read_sectors: 0,
            next_read: FIRST_READ_SECTORS,
            buffer: Vec::new(),
            end: 0,
            next_seq: 1,
            last_epoch: 1,
        })
    }

    /// What to do next.
    pub fn step(&mut self) -> Step {
        match self.state {
            State::Superblocks => Step::Read { sector: 0, count: AREA_START },
            State::Load => Step::Read {
                sector: AREA_START
                    + u64::from(self.superblock.active) * self.superblock.half_sectors
                    + self.read_sectors,
                count: self.next_read.min(self.superblock.half_sectors - self.read_sectors),
            },
            State::Announce if self.superblock.serial == 2 => Step::Write(self.format()),
            State::Announce => {
                let sector = SUPERBLOCK_SECTORS[(self.superblock.serial % 2) as usize];
                Step::Write(DiskWrite { sector, bytes: self.superblock.encode().to_vec() })
            }
            State::Ready => Step::Ready(Journal::new(self.superblock, self.end, self.next_seq)),
        }
    }

    /// Both superblocks of an empty disk, in one write.
    fn format(&self) -> DiskWrite {
        let mut bytes = alloc::vec![0; AREA_START as usize * SECTOR_LEN];
        for serial in [1, 2] {
            let at = SUPERBLOCK_SECTORS[serial % 2] as usize * SECTOR_LEN;
            let copy = Superblock { serial: serial as u64, ..self.superblock };
            bytes[at..at + SECTOR_LEN].copy_from_slice(&copy.encode());
        }
        DiskWrite { sector: 0, bytes }
    }

    /// The bytes that the last `Step::Read` asked for. What they say goes into `store`, which was empty.
    pub fn read_done(&mut self, bytes: &[u8], store: &mut Store) -> Result<(), RecoveryError> {
        match self.state {
            State::Superblocks => self.judge(bytes),
            State::Load => {
                self.buffer.try_reserve(bytes.len()).map_err(|_| RecoveryError::OutOfMemory)?;
                self.buffer.extend_from_slice(bytes);
                self.read_sectors += (bytes.len() / SECTOR_LEN) as u64;
                self.next_read = (self.next_read * 2).min(MAX_READ_SECTORS);
                self.load(store)
            }
            State::Announce | State::Ready => panic!("no read was asked for"),
        }
    }

    /// The last `Step::Write` is durable.
    pub fn write_done(&mut self) {
        assert!(matches!(self.state, State::Announce), "a write was asked for");
        self.state = State::Ready;
    }

    fn judge(&mut self, bytes: &[u8]) -> Result<(), RecoveryError> {
        let found = SUPERBLOCK_SECTORS.map(|sector| {
            let at = sector as usize * SECTOR_LEN;
            Superblock::decode(&bytes[at..at + SECTOR_LEN])
        });
        for copy in found {
            match copy {
                Found::Foreign => return Err(RecoveryError::Foreign),
                Found::Version(version) => return Err(RecoveryError::Version(version)),
                Found::Valid(_) | Found::Empty | Found::Damaged => {}
            }
        }
        let newest = found
            .into_iter()
            .filter_map(|copy| if let Found::Valid(superblock) = copy { Some(superblock) } else { None })
            .max_by_key(|superblock| superblock.serial);
        let Some(superblock) = newest else {
            // A disk with data had both copies written whole before its first batch. So one that is empty
            // beside a damaged one is a format that was torn.
            if !found.contains(&Found::Empty) {
                return Err(RecoveryError::Superblocks);
            }
            self.state = State::Announce;
            return Ok(());
        };
        let needed = AREA_START + 2 * superblock.half_sectors;
        if needed > self.disk_sectors {
            return Err(RecoveryError::Shrunk(self.disk_sectors, needed));
        }
        self.superblock = superblock;
        self.next_seq = superblock.first_seq;
        self.last_epoch = superblock.base_epoch;
        self.state = State::Load;
        Ok(())
    }

    /// Takes the batches that are in the buffer whole. Ends the load at the first that is not valid.
    fn load(&mut self, store: &mut Store) -> Result<(), RecoveryError> {
        let buffer = mem::take(&mut self.buffer);
        let mut rest = buffer.as_slice();
        loop {
            if rest.is_empty() && self.end < self.superblock.half_sectors {
                break;
            }
            let header = match self.batch_at(rest) {
                Batch::Whole(header) => header,
                Batch::Part => break,
                Batch::End => {
                    self.finish();
                    return Ok(());
                }
            };
            apply(&rest[BATCH_HEADER_LEN..BATCH_HEADER_LEN + header.len], &header, store)?;
            if store.used_memory() > self.max_memory {
                return Err(RecoveryError::OutOfMemory);
            }
            self.end += (header.padded_len() / SECTOR_LEN) as u64;
            self.next_seq += 1;
            self.last_epoch = header.epoch;
            rest = &rest[header.padded_len()..];
        }
        let consumed = buffer.len() - rest.len();
        self.buffer = buffer;
        self.buffer.drain(..consumed);
        Ok(())
    }

    /// Judges what begins where the next batch should.
    fn batch_at(&self, bytes: &[u8]) -> Batch {
        if bytes.is_empty() {
            return Batch::End;
        }
        let header = BatchHeader::decode(bytes);
        if !self.plausible(&header) {
            return Batch::End;
        }
        if bytes.len() < header.padded_len() {
            return Batch::Part;
        }
        if header.matches(bytes, self.superblock.disk_id) { Batch::Whole(header) } else { Batch::End }
    }

    fn plausible(&self, header: &BatchHeader) -> bool {
        header.len > 0
            && header.len <= MAX_BATCH_LEN - BATCH_HEADER_LEN
            && (header.padded_len() / SECTOR_LEN) as u64 <= self.superblock.half_sectors - self.end
            && header.seq == self.next_seq
            && (self.last_epoch..=self.superblock.epoch).contains(&header.epoch)
    }

    fn finish(&mut self) {
        self.superblock.serial += 1;
        self.superblock.epoch += 1;
        self.state = State::Announce;
    }
}

/// Applies a batch's operations.
fn apply(mut ops: &[u8], header: &BatchHeader, store: &mut Store) -> Result<(), RecoveryError> {
    for _ in 0..header.ops {
        let (op, rest) = Op::decode(ops).ok_or(RecoveryError::Batch(header.seq))?;
        match op {
            Op::Set(key, value) => store.set(key, value)?,
            Op::Delete(key) => {
                store.remove(key);
            }
            Op::Clear => store.clear(),
            Op::Append(key, tail) => {
                store.append(key, tail)?;
            }
        }
        ops = rest;
    }
    if ops.is_empty() { Ok(()) } else { Err(RecoveryError::Batch(header.seq)) }
}
