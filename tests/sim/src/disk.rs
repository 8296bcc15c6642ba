//! The simulated disk server: the production test-and-set and fence around a disk in memory, with connections
//! and crashes.

use std::collections::BTreeMap;

use disk_server::test_and_set::{Claimant, Decision, Holding, Refusal, admits, decide};
use logchannel::{DiskOp, DiskRequest, Generation};
use replay::small_machine::{KEYS, SECTOR};

use crate::bug::Bug;
use crate::primary_driver::DiskAnswer;

/// A connection of a process: it belongs to one life of the server, and each process counts its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskConnection {
    /// Which life of the server.
    pub life: u64,
    /// Which of the process' connections.
    pub number: u64,
}

/// The server. Everything in it but `served` is durable.
#[derive(Debug)]
pub struct DiskServer {
    holding: Holding,
    sectors: Vec<Vec<u8>>,
    /// The latest connection of each process.
    served: BTreeMap<usize, u64>,
    /// How often it was started.
    life: u64,
    up: bool,
    /// Crash after the next claim is recorded, before it is answered.
    pub crash_after_record: bool,
    /// A write was executed whose generation was not current.
    pub stale_write: bool,
    bug: Option<Bug>,
}

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claimed {
    /// To be answered.
    Answer(Decision),
    /// Recorded, then the server crashed.
    Crashed(Holding),
}

impl DiskServer {
    /// A new server with an empty disk.
    pub fn new(bug: Option<Bug>) -> Self {
        Self {
            holding: Holding::default(),
            sectors: vec![vec![0; SECTOR]; KEYS as usize],
            served: BTreeMap::new(),
            life: 1,
            up: true,
            crash_after_record: false,
            stale_write: false,
            bug,
        }
    }

    /// The generation and its holder.
    pub fn holding(&self) -> Holding {
        self.holding
    }

    /// What a key has on the disk.
    pub fn sector(&self, key: u8) -> &[u8] {
        &self.sectors[key as usize]
    }

    /// Whether it runs.
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// Which life it lives.
    pub fn life(&self) -> u64 {
        self.life
    }

    /// It dies; connections with it.
    pub fn crash(&mut self) {
        self.up = false;
        self.served.clear();
    }

    /// It starts again.
    pub fn start(&mut self) {
        if !self.up {
            self.up = true;
            self.life += 1;
        }
    }

    /// Takes a claim, unless it is down.
    pub fn claim(&mut self, expect: Generation, claimant: Claimant) -> Option<Claimed> {
        if !self.up {
            return None;
        }
        let decision = decide(&self.holding, expect, claimant);
        if let Decision::Grant(next) = decision {
            assert!(next.generation > self.holding.generation, "a generation never decreases");
            self.holding = next;
            if std::mem::take(&mut self.crash_after_record) {
                self.crash();
                return Some(Claimed::Crashed(next));
            }
        }
        Some(Claimed::Answer(decision))
    }

    /// Takes a request, unless its connection is gone. Once a process has opened a connection, its earlier
    /// ones are no longer served: what is still in them was given up, and may have been sent again.
    pub fn request(
        &mut self,
        process: usize,
        connection: DiskConnection,
        generation: Generation,
        request: &DiskRequest,
    ) -> Option<DiskAnswer> {
        if !self.up || connection.life != self.life {
            return None;
        }
        let latest = self.served.entry(process).or_insert(connection.number);
        if connection.number < *latest && self.bug != Some(Bug::OldConnectionServed) {
            return None;
        }
        *latest = connection.number.max(*latest);
        match admits(&self.holding, generation) {
            Ok(()) => {}
            Err(Refusal::Fenced(holding)) if self.bug != Some(Bug::FenceNotChecked) => {
                return Some(DiskAnswer::Fenced(holding.generation));
            }
            Err(Refusal::Fenced(_)) => {
                self.stale_write |= matches!(request.op, DiskOp::Write { .. });
            }
            Err(Refusal::NeverGranted { .. }) => return None,
        }
        Some(DiskAnswer::Done(match &request.op {
            DiskOp::Read { offset, .. } => self.sectors[*offset as usize / SECTOR].clone(),
            DiskOp::Write { offset, data, .. } => {
                self.sectors[*offset as usize / SECTOR].copy_from_slice(data);
                Vec::new()
            }
            DiskOp::Flush => Vec::new(),
        }))
    }
}
