//! A process of the virtual machine monitor: a primary or a backup on one of the two hosts, with its own
//! clock.

use std::collections::VecDeque;

use disk_server::test_and_set::Claimant;
use ft::{BackupState, HaltReason, PrimaryState};

use crate::backup_driver::BackupDriver;
use crate::disk::DiskConnection;
use crate::effect::Effect;
use crate::network::Time;
use crate::primary_driver::PrimaryDriver;

/// What a process is.
#[derive(Debug)]
pub enum Part {
    /// A primary.
    Primary(Box<PrimaryDriver>),
    /// A backup.
    Backup(Box<BackupDriver>),
}

/// How a process is to be stopped between two of its effects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interruption {
    /// It dies.
    Crash {
        /// Nobody is told.
        silently: bool,
    },
    /// It stands still.
    Pause {
        /// For how long.
        ns: Time,
        /// Its clock too.
        clock_stops: bool,
    },
}

/// Its connection to the disk server.
#[derive(Debug)]
pub struct DiskLink {
    /// The present connection.
    pub connection: DiskConnection,
    /// It broke: nothing passes any more.
    pub broken: bool,
    /// When the last message on it arrives: they do not overtake.
    pub last_at: Time,
}

/// A process.
#[derive(Debug)]
pub struct Process {
    /// Where it runs.
    pub host: usize,
    /// Who it is to the disk server.
    pub claimant: Claimant,
    /// What it is.
    pub part: Part,
    /// It died.
    pub crashed: bool,
    /// Why it stopped by itself.
    pub halted: Option<HaltReason>,
    /// It stands still until then.
    pub paused_until: Option<Time>,
    /// Its clock minus simulated time.
    pub clock_offset: u64,
    /// Its logging channel.
    pub connection: Option<usize>,
    /// The backup that it has, or had last.
    pub backup: Option<usize>,
    /// When its next turn is due, and the number of that turn: others are void.
    pub turn_at: Option<Time>,
    /// See `turn_at`.
    pub turn_number: u64,
    /// Its last turn takes until then.
    pub busy_until: Time,
    /// It executes this many times as slowly.
    pub slow: u64,
    /// Interrupt it after so many effects.
    pub interruption: Option<(u64, Interruption)>,
    /// Effects that it did not get to before it was paused.
    pub deferred: VecDeque<Effect>,
    /// Its connection to the disk server.
    pub disk: DiskLink,
    /// A bit of its machine was flipped.
    pub flipped: bool,
    /// When it was started.
    pub started_at: Time,
    /// When it died or halted.
    pub stopped_at: Time,
}

impl Process {
    /// A process that was just started.
    pub fn new(host: usize, claimant: Claimant, part: Part, clock_offset: u64, now: Time) -> Self {
        Self {
            host,
            claimant,
            part,
            crashed: false,
            halted: None,
            paused_until: None,
            clock_offset,
            connection: None,
            backup: None,
            turn_at: None,
            turn_number: 0,
            busy_until: now,
            slow: 1,
            interruption: None,
            deferred: VecDeque::new(),
            disk: DiskLink { connection: DiskConnection { life: 1, number: 0 }, broken: false, last_at: now },
            flipped: false,
            started_at: now,
            stopped_at: 0,
        }
    }

    /// What its clock shows.
    pub fn local_ns(&self, now: Time) -> u64 {
        now + self.clock_offset
    }

    /// Neither dead nor halted.
    pub fn runs(&self) -> bool {
        !self.crashed && self.halted.is_none()
    }

    /// Runs, and has a whole machine.
    pub fn is_survivor(&self) -> bool {
        self.runs()
            && match &self.part {
                Part::Primary(_) => true,
                Part::Backup(backup) => backup.ft().state() != BackupState::Joining,
            }
    }

    /// The state of a primary.
    pub fn primary_state(&self) -> Option<PrimaryState> {
        match &self.part {
            Part::Primary(primary) => Some(primary.ft().state()),
            Part::Backup(_) => None,
        }
    }

    /// The state of a backup.
    pub fn backup_state(&self) -> Option<BackupState> {
        match &self.part {
            Part::Primary(_) => None,
            Part::Backup(backup) => Some(backup.ft().state()),
        }
    }

    /// What it received as a backup.
    pub fn received(&self) -> u64 {
        match &self.part {
            Part::Primary(primary) => primary.inherited(),
            Part::Backup(backup) => backup.holds(),
        }
    }

    /// When it wants its next turn, in simulated time.
    pub fn wants_turn_at(&self, now: Time) -> Option<Time> {
        if !self.runs() {
            return None;
        }
        match &self.part {
            Part::Backup(backup) => backup.wants_turn().then_some(now),
            Part::Primary(primary) => {
                let at = primary.next_turn_ns(self.local_ns(now))?;
                Some(at.saturating_sub(self.clock_offset).max(now))
            }
        }
    }
}
