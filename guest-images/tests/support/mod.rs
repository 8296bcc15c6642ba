//! A database over a disk in memory, driven as the guest drives it.
#![allow(dead_code, reason = "each test uses a part")]

use std::collections::BTreeMap;

use minikv_core::log::SECTOR_LEN;
use minikv_core::{
    Client, Config, Database, DiskWrite, Environment, Limits, Progress, Recovery, RecoveryError, Step, Store,
};

pub const LIMITS: Limits = Limits { max_memory: 64 << 20, max_clients: 100 };

/// A request in RESP.
pub fn resp(args: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        out.extend(format!("${}\r\n", arg.len()).bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
    out
}

pub fn apply(disk: &mut [u8], write: &DiskWrite) {
    let at = write.sector as usize * SECTOR_LEN;
    disk[at..at + write.bytes.len()].copy_from_slice(&write.bytes);
}

/// Boots from `disk`. Every write of the boot is given to `torn` before it is carried out.
pub fn boot_with(
    disk: &mut [u8],
    mut torn: impl FnMut(&[u8], &DiskWrite),
) -> Result<Database, RecoveryError> {
    let mut store = Store::new();
    let mut recovery = Recovery::new((disk.len() / SECTOR_LEN) as u64, 0x1234_5678, LIMITS.max_memory)?;
    loop {
        match recovery.step() {
            Step::Read { sector, count } => {
                let at = sector as usize * SECTOR_LEN;
                recovery.read_done(&disk[at..at + count as usize * SECTOR_LEN], &mut store)?;
            }
            Step::Write(write) => {
                torn(disk, &write);
                apply(disk, &write);
                recovery.write_done();
            }
            Step::Ready(journal) => {
                return Ok(Database::new(store, Some(journal), LIMITS, Config::default()));
            }
        }
    }
}

pub fn boot(disk: &mut [u8]) -> Result<Database, RecoveryError> {
    boot_with(disk, |_, _| {})
}

/// Everything in the store.
pub fn contents(db: &Database) -> BTreeMap<Vec<u8>, Vec<u8>> {
    db.store().iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

/// Executes what `client` has been fed, without any write becoming durable.
pub fn run(db: &mut Database, client: &mut Client) -> Progress {
    let env =
        Environment { now_ns: 1_500_000_000, wall_base_ns: 1_700_000_000_000_000_000, ..Default::default() };
    loop {
        let mut budget = 1000;
        match client.run(db, &env, &mut budget) {
            Progress::More => {}
            Progress::Spinning => client.spin(db),
            other => return other,
        }
    }
}

/// Makes everything durable.
pub fn settle(db: &mut Database, disk: &mut [u8]) {
    while let Some(write) = db.next_write() {
        apply(disk, &write);
        db.write_done(write);
    }
}

/// A database without a disk, and one connection to it.
pub struct Session {
    pub db: Database,
    pub client: Client,
}

impl Session {
    pub fn new() -> Self {
        let db = Database::new(Store::new(), None, LIMITS, Config::default());
        Self { db, client: Client::new(1) }
    }

    /// Sends bytes; returns the replies.
    pub fn raw(&mut self, bytes: &[u8]) -> Vec<u8> {
        for piece in bytes.chunks(16 << 10) {
            assert!(self.client.feed(piece), "there is memory");
            run(&mut self.db, &mut self.client);
        }
        let replies = self.client.ready(u64::MAX).to_vec();
        self.client.sent(replies.len());
        replies
    }

    /// Sends a command of words; returns its reply as text.
    pub fn ask(&mut self, line: &str) -> String {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        String::from_utf8_lossy(&self.raw(&resp(&words))).into_owned()
    }
}
