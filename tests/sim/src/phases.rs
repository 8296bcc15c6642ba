//! How a run goes: a safety phase with faults, then a liveness phase in which everything left must serve
//! again.

use disk_server::test_and_set::{Claimant, Decision};
use ft::{BackupState, HaltReason, Primary, PrimaryState};
use logchannel::Generation;
use replay::small_machine::{SmallMachine, sector_value};
use replay::{ClockPolicy, Recorder};

use crate::backup_driver::BackupDriver;
use crate::client::KEYS_USED;
use crate::disk::Claimed;
use crate::faults::Fault;
use crate::linear::is_linearizable;
use crate::network::{Connection, Node, Time};
use crate::primary_driver::PrimaryDriver;
use crate::process::{Interruption, Part, Process};
use crate::world::{Happening, MS, World};

/// How long a healthy world may take to serve again.
const LIVENESS_NS: Time = 4_000 * MS;
/// How long clients go on with requests of their own after the faults ended.
const AFTERWARDS_NS: Time = 60 * MS;
const SUPERVISE_EVERY_NS: Time = 20 * MS;
/// How long it may take until the backup of a primary that lost the disk server is live.
const HAND_OVER_NS: Time = 700 * MS;
const JUDGE_EVERY_NS: Time = 4 * MS;
const MAX_PROCESSES: usize = 12;
const JOIN_TIMEOUT_NS: Time = 400 * MS;
/// Ticks between two console lines of the guest.
const TICKS_PER_LINE: u64 = 8;

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Faults happen.
    Safety,
    /// Faults ended: what was asked must be answered, and the pair be whole again.
    Settling,
    /// Everything is read once more.
    Reading,
    /// The guest was switched off: the pair must end.
    Ending,
    /// The run is over.
    Over,
}

impl World {
    pub(crate) fn begin(&mut self) {
        let claimant = self.next_claimant();
        let Some(Claimed::Answer(Decision::Grant(holding))) = self.disk.claim(0, claimant) else {
            unreachable!("nobody else is there")
        };
        let offset = self.clock_offset();
        let ft = Primary::alone(self.config(claimant), holding.generation, 0, offset);
        let recorder = Recorder::new(SmallMachine::new(), ClockPolicy::default(), offset);
        let driver = PrimaryDriver::first(ft, recorder, offset, self.backup_reads, self.bug);
        self.start_process(0, claimant, Part::Primary(Box::new(driver)), offset);
        self.start_backup(1, 0);
        for (at, fault) in std::mem::take(&mut self.plan.faults) {
            self.plan(at, Happening::Fault(fault));
        }
        for client in 0..self.clients.len() {
            let ns = self.random.below(20 * MS);
            self.plan_client(client, ns);
        }
        if let Some(at) = self.plan.early_power_off {
            self.plan(at, Happening::PowerOff);
        }
        self.plan_in(SUPERVISE_EVERY_NS, Happening::Supervise);
        let safety_ns = self.plan.safety_ns;
        self.plan(safety_ns, Happening::Judge);
    }

    fn next_claimant(&self) -> Claimant {
        self.processes.len() as Claimant + 1
    }

    fn clock_offset(&mut self) -> u64 {
        self.random.between(1_000_000, 9_000_000) * MS
    }

    fn start_process(&mut self, host: usize, claimant: Claimant, part: Part, offset: u64) -> usize {
        let process = self.processes.len();
        self.processes.push(Process::new(host, claimant, part, offset, self.now));
        let first_tick = self.random.below(10 * MS);
        self.plan_in(first_tick, Happening::Tick { process });
        process
    }

    /// Starts a backup, and connects it to the primary.
    fn start_backup(&mut self, host: usize, primary: usize) {
        let claimant = self.next_claimant();
        let offset = self.clock_offset();
        let driver = BackupDriver::new(self.config(claimant), offset + self.now, self.bug);
        let backup = self.start_process(host, claimant, Part::Backup(Box::new(driver)), offset);
        self.tell(|| format!("process {backup} starts on host {host} as backup of process {primary}"));
        if self.phase == Phase::Safety {
            self.processes[backup].slow = self.plan.backup_slow;
        }
        let connection = self.connections.len();
        self.connections.push(Connection { ends: [primary, backup], ..Connection::default() });
        self.processes[primary].connection = Some(connection);
        self.processes[primary].backup = Some(backup);
        self.processes[backup].connection = Some(connection);
        let claimant = self.processes[primary].claimant;
        self.with(primary, |part, _, out| {
            if let Part::Primary(driver) = part {
                driver.connect(claimant, out);
            }
        });
    }

    /// Who looks after the pair starts a new backup where one is missing.
    pub(crate) fn supervise(&mut self) {
        self.plan_in(SUPERVISE_EVERY_NS, Happening::Supervise);
        for process in 0..self.processes.len() {
            let slot = &self.processes[process];
            let joining = slot.runs() && slot.backup_state() == Some(BackupState::Joining);
            if joining && self.now - slot.started_at > JOIN_TIMEOUT_NS {
                self.crash(process, false);
            }
        }
        if self.processes.len() >= MAX_PROCESSES || self.phase == Phase::Ending {
            return;
        }
        let alone = |process: &usize| {
            let slot = &self.processes[*process];
            slot.runs() && slot.paused_until.is_none() && slot.primary_state() == Some(PrimaryState::Alone)
        };
        let Some(primary) = (0..self.processes.len()).find(alone) else { return };
        let host = 1 - self.processes[primary].host;
        let last = self.processes.iter().rfind(|slot| slot.host == host);
        let free = last.is_none_or(|last| !last.runs() && self.now - last.stopped_at >= self.plan.restart_ns);
        if free {
            self.start_backup(host, primary);
        }
    }

    pub(crate) fn fault(&mut self, fault: Fault) {
        if self.phase != Phase::Safety {
            return;
        }
        self.tell(|| format!("fault: {fault:?}"));
        let on = |host: usize, world: &Self| world.processes.iter().rposition(|p| p.host == host && p.runs());
        match fault {
            Fault::Crash { host, after, silently } => {
                if let Some(process) = on(host, self) {
                    self.interrupt(process, after, Interruption::Crash { silently });
                }
            }
            Fault::Pause { host, after, ns, clock_stops } => {
                if let Some(process) = on(host, self) {
                    self.interrupt(process, after, Interruption::Pause { ns, clock_stops });
                }
            }
            Fault::Partition { from, to, both_ways, ns } => {
                self.network.block(from, to, self.now + ns);
                if both_ways {
                    self.network.block(to, from, self.now + ns);
                }
            }
            Fault::BreakChannel => self.break_channel(),
            Fault::DamageChannel => {
                if let Some(connection) = self.connections.last_mut() {
                    let stream = self.random.below(2) as usize;
                    connection.streams[stream].damage(&mut self.random);
                }
            }
            Fault::DiskCrash { ns } => {
                self.disk.crash();
                self.plan_in(ns, Happening::DiskStarts);
            }
            Fault::DiskCrashAfterRecord => self.disk.crash_after_record = true,
            Fault::Slow { host, times } => {
                if let Some(process) = on(host, self) {
                    self.processes[process].slow = times;
                }
            }
            Fault::FlipBit { bit } => {
                for slot in self.processes.iter_mut().filter(|slot| slot.runs()) {
                    if let Part::Backup(backup) = &mut slot.part {
                        slot.flipped |= backup.flip_bit(bit);
                    }
                }
            }
            Fault::PrimaryLosesDisk { ns } => self.primary_loses_disk(ns),
            Fault::Heartbeats { ns } => self.heartbeats_blocked_until = self.now + ns,
        }
    }

    fn primary_loses_disk(&mut self, ns: Time) {
        let has_backup =
            |slot: &Process| slot.runs() && slot.primary_state() == Some(PrimaryState::Replicating);
        let Some(slot) = self.processes.iter().find(|slot| has_backup(slot)) else { return };
        let host = slot.host;
        self.network.block(Node::Host(host), Node::Disk, self.now + ns);
        self.network.block(Node::Disk, Node::Host(host), self.now + ns);
        if ns > HAND_OVER_NS {
            self.plan_in(HAND_OVER_NS, Happening::JudgeHandOver { host });
        }
    }

    /// Nothing else went wrong since the primary on this host lost the disk server.
    pub(crate) fn judge_hand_over(&mut self, host: usize) {
        let live = |slot: &Process| {
            let state = slot.primary_state();
            let is_live = matches!(state, Some(PrimaryState::Replicating | PrimaryState::Alone));
            slot.host != host && slot.runs() && is_live
        };
        if !self.switched_off && !self.processes.iter().any(live) {
            let states: Vec<String> = self.processes.iter().map(describe).collect();
            let what =
                format!("the primary lost the disk server, and no other is live: {}", states.join("; "));
            self.violated(Err(what));
        }
    }

    fn interrupt(&mut self, process: usize, after: u64, interruption: Interruption) {
        match (after, interruption) {
            (0, Interruption::Crash { silently }) => self.crash(process, silently),
            (0, Interruption::Pause { ns, clock_stops }) => self.pause(process, ns, clock_stops),
            _ => self.processes[process].interruption = Some((after, interruption)),
        }
    }

    fn break_channel(&mut self) {
        let Some(connection) = self.connections.len().checked_sub(1) else { return };
        for to_primary in [false, true] {
            let stream = &mut self.connections[connection].streams[usize::from(to_primary)];
            stream.break_off(true, &mut self.random);
            self.plan_stream(connection, to_primary);
        }
    }

    /// Ends the faults; everything that stands still goes on.
    fn heal(&mut self) {
        self.tell(|| "the faults end".into());
        self.phase = Phase::Settling;
        self.network.heal();
        self.disk.crash_after_record = false;
        self.disk.start();
        for process in 0..self.processes.len() {
            let slot = &mut self.processes[process];
            (slot.slow, slot.interruption) = (1, None);
            if slot.paused_until.is_some() {
                slot.paused_until = Some(self.now);
                self.plan_in(0, Happening::Resume { process });
            }
            self.plan_turn(process);
        }
    }

    /// From the end of the faults on: is everything as it must be, and what is next?
    pub(crate) fn judge(&mut self) {
        if self.phase == Phase::Safety {
            self.heal();
        }
        self.plan_in(JUDGE_EVERY_NS, Happening::Judge);
        let since_ns = self.now - self.plan.safety_ns;
        if since_ns > AFTERWARDS_NS {
            self.clients.iter_mut().for_each(|client| client.eager = false);
        }
        if !self.processes.iter().any(Process::is_survivor) {
            return self.nobody_left();
        }
        let answered = self.clients.iter().all(|client| client.is_done());
        match self.phase {
            Phase::Settling if answered && self.pair_is_whole() => {
                self.phase = Phase::Reading;
                self.clients[0].read_everything();
                self.plan_client(0, 0);
            }
            Phase::Reading if answered && self.quiet() => {
                let result = self.disk_is_memory();
                self.violated(result);
                self.phase = if self.plan.power_off { Phase::Ending } else { Phase::Over };
                if self.plan.power_off {
                    self.power_off();
                } else {
                    self.judge_histories();
                }
            }
            _ if since_ns > LIVENESS_NS => {
                let states: Vec<String> = self.processes.iter().map(describe).collect();
                let what =
                    format!("no service {} ms after the faults ended: {}", since_ns / MS, states.join("; "));
                self.violated(Err(what));
            }
            _ => {}
        }
    }

    pub(crate) fn power_off(&mut self) {
        self.tell(|| "a client switches the guest off".into());
        self.switched_off = true;
        self.clients[0].power_off();
        self.plan_client(0, 0);
    }

    /// The end of a run in which no process has a machine any more: right only if the guest ended, or if
    /// whoever held the last generation was killed.
    fn nobody_left(&mut self) {
        let holding = self.disk.holding();
        let holder = self.processes.iter().find(|slot| Some(slot.claimant) == holding.holder);
        let flipped = holder.is_some_and(|slot| slot.flipped);
        match holder.map(|slot| (slot.crashed, &slot.halted)) {
            Some((true, _)) => self.stats.machines_lost += 1,
            // It won, and found only while it executed the rest that its state was damaged.
            Some((false, Some(HaltReason::Diverged))) if flipped => self.stats.machines_lost += 1,
            Some((false, Some(HaltReason::GuestEnded))) if self.switched_off => {
                self.stats.ended += 1;
                if self.phase == Phase::Ending {
                    let result = self.ended_together(holding.generation);
                    self.violated(result);
                }
            }
            found => {
                let states: Vec<String> = self.processes.iter().map(describe).collect();
                let what = format!("nobody is left, but the holder is {found:?}: {}", states.join("; "));
                self.violated(Err(what));
            }
        }
        self.judge_histories();
        self.phase = Phase::Over;
    }

    /// After the guest's own end nobody took over, and the backup knew that it was the end.
    fn ended_together(&self, generation: Generation) -> Result<(), String> {
        let of_pair = |slot: &&Process| match &slot.part {
            Part::Primary(primary) => primary.ft().generation() == generation && !slot.crashed,
            Part::Backup(backup) => backup.ft().generation() == generation && !slot.crashed,
        };
        for slot in self.processes.iter().filter(of_pair) {
            if slot.halted != Some(HaltReason::GuestEnded) {
                return Err(format!("the guest ended, but: {}", describe(slot)));
            }
        }
        Ok(())
    }

    fn pair_is_whole(&self) -> bool {
        let primary = |slot: &Process| slot.primary_state() == Some(PrimaryState::Replicating);
        let backup = |slot: &Process| slot.backup_state() == Some(BackupState::Following);
        let any = |is: &dyn Fn(&Process) -> bool| self.processes.iter().any(|p| p.runs() && is(p));
        any(&primary) && any(&backup)
    }

    fn quiet(&self) -> bool {
        self.processes.iter().filter(|slot| slot.runs()).all(|slot| match &slot.part {
            Part::Primary(primary) => primary.in_flight() == 0 && primary.ft().gated() == 0,
            Part::Backup(_) => true,
        })
    }

    /// Every change was on the disk before it was answered, so at rest the disk has what the guest has.
    fn disk_is_memory(&self) -> Result<(), String> {
        let Some(primary) = self.processes.iter().find_map(|slot| match &slot.part {
            Part::Primary(primary) if slot.runs() => Some(primary),
            _ => None,
        }) else {
            return Ok(());
        };
        for (key, value) in primary.machine().values().iter().enumerate() {
            let stored = sector_value(self.disk.sector(key as u8));
            if stored != *value {
                return Err(format!("key {key} is {value} in the guest and {stored} on the disk"));
            }
        }
        Ok(())
    }

    fn judge_histories(&mut self) {
        let lines = self.oracle.lines_are_complete(TICKS_PER_LINE);
        self.violated(lines);
        for key in 0..KEYS_USED {
            let history: Vec<_> = self.clients.iter().flat_map(|client| client.operations(key)).collect();
            if !is_linearizable(&history) {
                self.violated(Err(format!("what clients saw of key {key} is not linearizable: {history:?}")));
            }
        }
    }

    /// Invariants that hold after every single event.
    pub(crate) fn check(&mut self) {
        let result = self.oracle.holding(self.disk.holding());
        self.violated(result);
        if self.disk.stale_write && !self.blind {
            self.violated(Err("a write of an older generation was executed".into()));
        }
        for process in 0..self.processes.len() {
            let slot = &self.processes[process];
            if let Part::Primary(primary) = &slot.part
                && slot.runs()
                && primary.ft().state() == PrimaryState::Alone
            {
                let result = self.oracle.alone(slot.claimant, primary.ft().generation());
                self.violated(result);
            }
        }
    }
}

fn describe(slot: &Process) -> String {
    let what = match &slot.part {
        Part::Primary(primary) => {
            format!("primary {:?} of generation {}", primary.ft().state(), primary.ft().generation())
        }
        Part::Backup(backup) => {
            format!("backup {:?} of generation {}", backup.ft().state(), backup.ft().generation())
        }
    };
    let claimant = slot.claimant;
    match slot.crashed {
        true => format!("process {claimant}: dead {what}"),
        false => format!("process {claimant}: {what}"),
    }
}
