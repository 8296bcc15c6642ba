//! Carries out what the log wants of the disk: one `DiskWrite` at a time, cut into requests.

use alloc::vec;
use alloc::vec::Vec;

use minikv_core::log::SECTOR_LEN;
use minikv_core::{Database, DiskWrite, Journal, Recovery, Step, Store};

use crate::event::EventPort;
use crate::println;
use crate::virtio::blk::{Blk, MAX_REQUEST_LEN};

/// How long after a failed write it is tried again.
const RETRY_NS: u64 = 1_000_000_000;

struct Current {
    write: DiskWrite,
    requests: usize,
    failed: bool,
}

/// The disk, and what it does.
pub struct Disk {
    blk: Blk,
    current: Option<Current>,
    /// When to try the current write again.
    retry_at_ns: Option<u64>,
}

impl Disk {
    /// A disk that does nothing yet.
    pub fn new(blk: Blk) -> Self {
        Self { blk, current: None, retry_at_ns: None }
    }

    /// Reads the log into `store`, and makes it ready for this boot. Waits for the disk as long as it takes.
    /// The error is for people.
    pub fn recover(
        &mut self,
        event: &mut EventPort,
        store: &mut Store,
        max_memory: usize,
    ) -> Result<Journal, alloc::string::String> {
        let seed = event.wall_base_ns() ^ event.now_ns().rotate_left(32);
        let disk_id = (seed ^ (seed >> 32)) as u32;
        let text = |error| alloc::format!("{error}");
        let mut recovery = Recovery::new(self.blk.sectors(), disk_id, max_memory).map_err(text)?;
        loop {
            match recovery.step() {
                Step::Read { sector, count } => {
                    let mut bytes = vec![0; count as usize * SECTOR_LEN];
                    self.blk.read(sector, &mut bytes);
                    if !self.finish_one(event) {
                        return Err(alloc::format!("the disk cannot read {count} sectors at {sector}"));
                    }
                    recovery.read_done(&bytes, store).map_err(text)?;
                }
                Step::Write(write) => {
                    self.blk.write(write.sector, &write.bytes);
                    if !self.finish_one(event) {
                        return Err(alloc::format!("the disk cannot write sector {}", write.sector));
                    }
                    recovery.write_done();
                }
                Step::Ready(journal) => return Ok(journal),
            }
        }
    }

    fn finish_one(&mut self, event: &mut EventPort) -> bool {
        loop {
            event.see_inputs();
            if let Some((_, ok)) = self.blk.next_done() {
                return ok;
            }
            event.wait(u64::MAX);
        }
    }

    /// Takes what the disk has done, and gives it the next write of the log if there is one.
    pub fn serve(&mut self, db: &mut Database, now_ns: u64) {
        while let Some((_, ok)) = self.blk.next_done() {
            let current = self.current.as_mut().expect("a request belongs to a write");
            current.requests -= 1;
            current.failed |= !ok;
        }
        match self.current.take_if(|current| current.requests == 0) {
            Some(current) if current.failed => self.retry(current, db, now_ns),
            Some(current) => db.write_done(current.write),
            None => {}
        }
        if self.current.is_none()
            && let Some(write) = db.next_write()
        {
            self.current = Some(Current { requests: self.submit(&write), write, failed: false });
        }
    }

    /// A write that failed is not durable, and no reply that waits for it may leave: it has to be tried until
    /// it succeeds.
    fn retry(&mut self, mut current: Current, db: &mut Database, now_ns: u64) {
        match self.retry_at_ns {
            None => {
                println!("minikv: writing sector {} failed, trying again", current.write.sector);
                db.stats.disk_retries += 1;
                self.retry_at_ns = Some(now_ns + RETRY_NS);
            }
            Some(at) if now_ns >= at => {
                self.retry_at_ns = None;
                current.failed = false;
                current.requests = self.submit(&current.write);
            }
            Some(_) => {}
        }
        self.current = Some(current);
    }

    /// Asks for all of it, in requests of a bounded length.
    fn submit(&mut self, write: &DiskWrite) -> usize {
        let pieces: Vec<&[u8]> = write.bytes.chunks(MAX_REQUEST_LEN).collect();
        let mut sector = write.sector;
        for piece in &pieces {
            self.blk.write(sector, piece);
            sector += (piece.len() / SECTOR_LEN) as u64;
        }
        pieces.len()
    }

    /// When `serve` has to be called even if the disk says nothing.
    pub fn wake_at_ns(&self) -> Option<u64> {
        self.retry_at_ns
    }
}
