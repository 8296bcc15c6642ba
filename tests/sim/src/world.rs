//! The simulated world: an agenda of events in simulated time, and everything they happen to.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use disk_server::test_and_set::Claimant;
use ft::{BackupEvent, ClaimAnswer, Config, Heartbeat, PrimaryEvent};
use logchannel::{DiskRequest, Generation};
use replay::small_machine::Reply;

use crate::bug::Bug;
use crate::client::Client;
use crate::disk::{DiskConnection, DiskServer};
use crate::effect::Effect;
use crate::faults::{Fault, Plan};
use crate::network::{Arrival, Connection, Network, Node, Time};
use crate::oracle::Oracle;
use crate::phases::Phase;
use crate::primary_driver::DiskAnswer;
use crate::process::{Part, Process};
use crate::random::Random;

const US: Time = 1_000;
pub(crate) const MS: Time = 1_000_000;
const TICK_NS: Time = 10 * MS;

/// Something that happens.
#[derive(Debug)]
pub(crate) enum Happening {
    Turn { process: usize, number: u64 },
    Tick { process: usize },
    Resume { process: usize },
    Stream { connection: usize, to_primary: bool },
    Frame { process: usize, frame: Vec<u8> },
    Beat { process: usize, beat: Heartbeat },
    Reply { frame: Vec<u8> },
    DiskRequest { process: usize, connection: DiskConnection, generation: Generation, request: DiskRequest },
    DiskAnswer { process: usize, connection: DiskConnection, id: u64, answer: DiskAnswer },
    Claim { process: usize, expect: Generation },
    ClaimAnswer { process: usize, expect: Generation, answer: ClaimAnswer },
    Query { process: usize },
    QueryAnswer { process: usize, generation: Generation },
    ClientSends { client: usize, number: u64 },
    JudgeHandOver { host: usize },
    Fault(Fault),
    DiskStarts,
    Supervise,
    PowerOff,
    Judge,
}

impl Happening {
    fn code(&self) -> u64 {
        match self {
            Happening::Turn { process, .. } => 1 << 8 | *process as u64,
            Happening::Tick { process } => 2 << 8 | *process as u64,
            Happening::Resume { process } => 3 << 8 | *process as u64,
            Happening::Stream { connection, to_primary } => {
                4 << 8 | (*connection as u64) << 1 | u64::from(*to_primary)
            }
            Happening::Frame { process, .. } => 5 << 8 | *process as u64,
            Happening::Beat { process, beat } => 6 << 8 | *process as u64 | beat.number << 16,
            Happening::Reply { frame } => 7 << 8 | frame.len() as u64,
            Happening::DiskRequest { process, request, .. } => 8 << 8 | *process as u64 | request.id << 16,
            Happening::DiskAnswer { process, id, .. } => 9 << 8 | *process as u64 | id << 16,
            Happening::Claim { process, expect } => 10 << 8 | *process as u64 | expect << 16,
            Happening::ClaimAnswer { process, expect, .. } => 11 << 8 | *process as u64 | expect << 16,
            Happening::ClientSends { client, number } => 12 << 8 | *client as u64 | number << 16,
            Happening::Fault(_) => 13 << 8,
            Happening::DiskStarts => 14 << 8,
            Happening::Supervise => 15 << 8,
            Happening::Judge => 16 << 8,
            Happening::PowerOff => 17 << 8,
            Happening::Query { process } => 18 << 8 | *process as u64,
            Happening::QueryAnswer { process, generation } => 19 << 8 | *process as u64 | generation << 16,
            Happening::JudgeHandOver { host } => 20 << 8 | *host as u64,
        }
    }
}

#[derive(Debug)]
struct Planned {
    at: Time,
    /// Equal times happen in the order of planning.
    number: u64,
    what: Happening,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Planned {}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// What is to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Run {
    /// It determines everything.
    pub seed: u64,
    /// A mistake to plant.
    pub bug: Option<Bug>,
    /// Tell what happens, on standard error.
    pub narrate: bool,
    /// Do not look into the processes and the disk server: judge only by what clients saw, by the console, by
    /// the disk's content at the end, and by assertions in production code.
    pub blind: bool,
}

/// Counts of what a run came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Events.
    pub events: u64,
    /// Simulated time, nanoseconds.
    pub simulated_ns: u64,
    /// Requests answered.
    pub answered: u64,
    /// A backup joined with a whole machine.
    pub joined: u64,
    /// A backup went live.
    pub took_over: u64,
    /// A primary won and went on alone.
    pub went_alone: u64,
    /// A primary handed over.
    pub handed_over: u64,
    /// A process halted because it lost the test-and-set.
    pub lost: u64,
    /// A process halted because it was fenced.
    pub fenced: u64,
    /// Reads of the disk that a backup made itself.
    pub disk_reads: u64,
    /// Backups that left because they could not read the disk.
    pub cannot_read: u64,
    /// Backups that found that they had diverged, after a bit had been flipped.
    pub diverged: u64,
    /// Backups that went live before they could find it.
    pub undetected: u64,
    /// Processes killed.
    pub crashes: u64,
    /// Processes paused.
    pub pauses: u64,
    /// The machine ended by itself, and the pair with it.
    pub ended: u64,
    /// No copy was left: every process that had one was killed.
    pub machines_lost: u64,
}

/// The world of one run.
#[derive(Debug)]
pub struct World {
    pub(crate) now: Time,
    agenda: BinaryHeap<Reverse<Planned>>,
    planned: u64,
    pub(crate) random: Random,
    pub(crate) network: Network,
    pub(crate) disk: DiskServer,
    pub(crate) oracle: Oracle,
    pub(crate) plan: Plan,
    pub(crate) processes: Vec<Process>,
    pub(crate) connections: Vec<Connection>,
    pub(crate) clients: Vec<Client>,
    client_timers: Vec<u64>,
    pub(crate) heartbeats_blocked_until: Time,
    pub(crate) phase: Phase,
    pub(crate) stats: Stats,
    pub(crate) bug: Option<Bug>,
    pub(crate) violation: Option<String>,
    /// The guest was asked to switch itself off.
    pub(crate) switched_off: bool,
    /// Backups read the disk themselves.
    pub(crate) backup_reads: bool,
    /// Judge by what clients and the disk saw only.
    pub(crate) blind: bool,
    trace: u64,
    narrate: bool,
}

/// How a run came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What invariant was violated, and when.
    pub violation: Option<String>,
    /// A hash over everything that happened: equal for equal runs.
    pub trace: u64,
    /// Counts.
    pub stats: Stats,
}

impl World {
    /// The world of this run, at its beginning.
    pub fn new(run: &Run) -> Self {
        let Run { seed, bug, narrate, blind } = *run;
        let mut random = Random::new(seed);
        let plan = Plan::new(&mut random);
        let network = Network::new(plan.weather.clone());
        let mut world = Self {
            now: 0,
            agenda: BinaryHeap::new(),
            planned: 0,
            random,
            network,
            disk: DiskServer::new(bug),
            oracle: Oracle::new(blind),
            processes: Vec::new(),
            connections: Vec::new(),
            clients: (0..3).map(Client::new).collect(),
            client_timers: vec![0; 3],
            heartbeats_blocked_until: 0,
            phase: Phase::Safety,
            stats: Stats::default(),
            bug,
            violation: None,
            switched_off: false,
            backup_reads: seed.is_multiple_of(2),
            blind,
            trace: seed,
            narrate,
            plan,
        };
        world.begin();
        world
    }

    /// Times and limits that fit simulated delays.
    pub(crate) fn config(&self, claimant: Claimant) -> Config {
        Config {
            heartbeat_every_ns: 20 * MS,
            suspect_after_ns: 90 * MS,
            ack_timeout_ns: 250 * MS,
            read_timeout_ns: 125 * MS,
            disk_timeout_ns: 150 * MS,
            claim_retry_ns: 25 * MS,
            max_unacked_entries: 64,
            max_unexecuted_entries: 512,
            lag_target_ns: 20 * MS,
            ..Config::new(claimant)
        }
    }

    /// Runs to the end.
    pub fn run(mut self) -> Outcome {
        while self.violation.is_none() && self.phase != Phase::Over {
            let Some(Reverse(planned)) = self.agenda.pop() else {
                self.violation = Some("nothing happens any more".into());
                break;
            };
            assert!(planned.at >= self.now, "time goes forward");
            self.now = planned.at;
            self.stats.events += 1;
            self.trace =
                (self.trace ^ planned.what.code() ^ self.now << 20).wrapping_mul(0x9fb2_1c65_1e98_df25);
            self.trace ^= self.trace >> 29;
            self.happens(planned.what);
            self.check();
        }
        self.stats.simulated_ns = self.now;
        self.stats.answered = self.clients.iter().map(|client| client.answered() as u64).sum();
        let at_ms = self.now as f64 / MS as f64;
        let violation = self.violation.map(|what| format!("after {at_ms:.3} ms: {what}"));
        Outcome { violation, trace: self.trace, stats: self.stats }
    }

    pub(crate) fn tell(&self, what: impl FnOnce() -> String) {
        if self.narrate {
            eprintln!("{:>10.3} ms  {}", self.now as f64 / MS as f64, what());
        }
    }

    pub(crate) fn plan(&mut self, at: Time, what: Happening) {
        self.planned += 1;
        self.agenda.push(Reverse(Planned { at: at.max(self.now), number: self.planned, what }));
    }

    pub(crate) fn plan_in(&mut self, ns: Time, what: Happening) {
        self.plan(self.now + ns, what);
    }

    pub(crate) fn violated(&mut self, result: Result<(), String>) {
        if let Err(what) = result
            && self.violation.is_none()
        {
            self.tell(|| format!("VIOLATION: {what}"));
            self.violation = Some(what);
        }
    }

    fn happens(&mut self, what: Happening) {
        match what {
            Happening::Turn { process, number } => self.turn(process, number),
            Happening::Tick { process } => self.tick(process),
            Happening::Resume { process } => self.resume(process),
            Happening::Stream { connection, to_primary } => self.stream(connection, to_primary),
            Happening::Reply { frame } => self.reply(&frame),
            Happening::DiskRequest { process, connection, generation, request } => {
                self.disk_request(process, connection, generation, &request);
            }
            Happening::Claim { process, expect } => self.claim(process, expect),
            Happening::Query { process } => self.query(process),
            Happening::JudgeHandOver { host } => self.judge_hand_over(host),
            Happening::ClientSends { client, number } => self.client_sends(client, number),
            Happening::Fault(fault) => self.fault(fault),
            Happening::DiskStarts => self.disk.start(),
            Happening::Supervise => self.supervise(),
            Happening::Judge => self.judge(),
            Happening::PowerOff => self.power_off(),
            Happening::Frame { process, .. }
            | Happening::Beat { process, .. }
            | Happening::DiskAnswer { process, .. }
            | Happening::QueryAnswer { process, .. }
            | Happening::ClaimAnswer { process, .. } => self.arrives(process, what),
        }
    }

    /// Something arrives at a process: one that stands still finds it when it goes on.
    fn arrives(&mut self, process: usize, what: Happening) {
        if !self.processes[process].runs() {
            return;
        }
        if let Happening::DiskAnswer { connection, .. } = &what
            && *connection != self.processes[process].disk.connection
        {
            return;
        }
        if matches!((&what, &self.processes[process].part), (Happening::DiskAnswer { .. }, Part::Backup(_))) {
            self.stats.disk_reads += 1;
        }
        if let Some(until) = self.processes[process].paused_until {
            let late = self.random.below(300) * US;
            return self.plan(until + late, what);
        }
        self.with(process, |part, local_ns, out| match (part, what) {
            (Part::Primary(primary), Happening::Frame { frame, .. }) => primary.on_frame(frame),
            (Part::Primary(primary), Happening::Beat { beat, .. }) => {
                primary.step(local_ns, PrimaryEvent::Heartbeat(beat), out);
            }
            (Part::Backup(backup), Happening::Beat { beat, .. }) => {
                backup.step(local_ns, BackupEvent::Heartbeat(beat), out);
            }
            (Part::Primary(primary), Happening::DiskAnswer { id, answer, .. }) => {
                primary.on_disk(local_ns, id, answer, out);
            }
            (Part::Backup(backup), Happening::DiskAnswer { id, answer, .. }) => {
                backup.on_disk(local_ns, id, answer, out);
            }
            (Part::Primary(primary), Happening::ClaimAnswer { expect, answer, .. }) => {
                primary.step(local_ns, PrimaryEvent::ClaimAnswer { expect, answer }, out);
            }
            (Part::Primary(primary), Happening::QueryAnswer { generation, .. }) => {
                primary.on_query(local_ns, generation, out);
            }
            (Part::Backup(backup), Happening::QueryAnswer { .. }) => {
                backup.step(local_ns, BackupEvent::DiskAnswered, out);
            }
            (Part::Backup(backup), Happening::ClaimAnswer { expect, answer, .. }) => {
                backup.step(local_ns, BackupEvent::ClaimAnswer { expect, answer }, out);
            }
            _ => {}
        });
    }

    /// Lets a process do something, carries out what it does to the world, and plans its next turn.
    pub(crate) fn with(&mut self, process: usize, act: impl FnOnce(&mut Part, u64, &mut Vec<Effect>)) {
        let mut effects = Vec::new();
        let local_ns = self.processes[process].local_ns(self.now);
        act(&mut self.processes[process].part, local_ns, &mut effects);
        self.carry_out_all(process, effects);
        self.goes_live(process, local_ns);
        self.plan_turn(process);
    }

    fn goes_live(&mut self, process: usize, local_ns: u64) {
        let slot = &mut self.processes[process];
        let ready = matches!(&slot.part, Part::Backup(backup) if backup.goes_live());
        if !ready || !slot.runs() {
            return;
        }
        if slot.flipped {
            // Digests are periodic: what happened after the last one cannot be found.
            self.stats.undetected += 1;
            self.phase = Phase::Over;
            return;
        }
        let empty = Part::Backup(Box::new(crate::backup_driver::BackupDriver::new(
            Config::new(slot.claimant),
            local_ns,
            None,
        )));
        let Part::Backup(backup) = std::mem::replace(&mut slot.part, empty) else {
            unreachable!("just seen")
        };
        let mut effects = Vec::new();
        slot.part = Part::Primary(Box::new(backup.into_primary(local_ns, &mut effects)));
        self.stats.took_over += 1;
        self.carry_out_all(process, effects);
    }

    pub(crate) fn plan_turn(&mut self, process: usize) {
        let slot = &mut self.processes[process];
        if slot.paused_until.is_some() {
            return;
        }
        let Some(at) = slot.wants_turn_at(self.now) else { return };
        let at = at.max(slot.busy_until);
        if slot.turn_at.is_none_or(|planned| planned > at) {
            slot.turn_at = Some(at);
            slot.turn_number += 1;
            let number = slot.turn_number;
            self.plan(at, Happening::Turn { process, number });
        }
    }

    fn turn(&mut self, process: usize, number: u64) {
        let cost = self.random.between(20, 120) * US;
        let slot = &mut self.processes[process];
        if slot.turn_number != number || slot.turn_at.is_none() {
            return;
        }
        slot.turn_at = None;
        if !slot.runs() || slot.paused_until.is_some() {
            return;
        }
        let throttled = match &slot.part {
            Part::Primary(primary) => 1_000 / (1_000 - primary.throttle_permille().min(950)),
            Part::Backup(_) => 1,
        };
        slot.busy_until = self.now + cost * slot.slow * throttled;
        self.with(process, |part, local_ns, out| match part {
            Part::Primary(primary) => primary.turn(local_ns, out),
            Part::Backup(backup) => backup.turn(local_ns, out),
        });
    }

    fn tick(&mut self, process: usize) {
        if !self.processes[process].runs() {
            return;
        }
        self.plan_in(TICK_NS, Happening::Tick { process });
        if self.processes[process].paused_until.is_none() {
            self.with(process, |part, local_ns, out| match part {
                Part::Primary(primary) => primary.tick(local_ns, out),
                Part::Backup(backup) => backup.tick(local_ns, out),
            });
        }
    }

    fn resume(&mut self, process: usize) {
        let now = self.now;
        let slot = &mut self.processes[process];
        if slot.paused_until.is_none_or(|until| until > now) {
            return;
        }
        slot.paused_until = None;
        let effects = std::mem::take(&mut slot.deferred).into();
        self.tell(|| format!("process {process} goes on"));
        self.carry_out_all(process, effects);
        let local_ns = self.processes[process].local_ns(now);
        self.goes_live(process, local_ns);
        self.plan_turn(process);
    }

    fn stream(&mut self, connection: usize, to_primary: bool) {
        let [primary, backup] = self.connections[connection].ends;
        let (from, to) = if to_primary { (backup, primary) } else { (primary, backup) };
        let stream = &mut self.connections[connection].streams[usize::from(to_primary)];
        stream.scheduled = false;
        if self.processes[to].connection != Some(connection) || !self.processes[to].runs() {
            return;
        }
        let (source, sink) = (Node::Host(self.processes[from].host), Node::Host(self.processes[to].host));
        let blocked = self.network.blocked_until(source, sink);
        let paused = self.processes[to].paused_until.unwrap_or(0);
        let late = blocked.max(paused);
        if late > self.now {
            stream.scheduled = true;
            let at = late + self.random.below(2_000) * US;
            return self.plan(at, Happening::Stream { connection, to_primary });
        }
        let Some(arrival) = stream.take(&mut self.random) else { return };
        if stream.is_due() {
            stream.scheduled = true;
            let soon = self.random.between(1, 150) * US;
            self.plan_in(soon, Happening::Stream { connection, to_primary });
        }
        if matches!(arrival, Arrival::Snapshot(_)) {
            self.stats.joined += 1;
            self.tell(|| format!("process {to} has the whole machine"));
        }
        self.with(to, |part, local_ns, out| match (part, arrival) {
            (Part::Primary(primary), Arrival::Bytes(bytes)) => primary.on_bytes(local_ns, &bytes, out),
            (Part::Primary(primary), Arrival::Broken) => primary.on_broken(local_ns, out),
            (Part::Backup(backup), Arrival::Bytes(bytes)) => backup.on_bytes(local_ns, &bytes, out),
            (Part::Backup(backup), Arrival::Broken) => backup.on_broken(local_ns, out),
            (Part::Backup(backup), Arrival::Snapshot(snapshot)) => {
                backup.on_snapshot(local_ns, *snapshot, out);
            }
            (Part::Primary(_), Arrival::Snapshot(_)) => unreachable!("machines go to backups"),
        });
    }

    fn reply(&mut self, frame: &[u8]) {
        let Some(reply) = Reply::decode(frame) else {
            return self.violated(Err("the guest sent a frame that is no reply".into()));
        };
        let client = reply.client as usize;
        match self.clients[client].reply(self.now, &reply) {
            Ok(false) => {}
            Ok(true) => {
                let think = [200, 2_000, 25_000][self.random.below(3) as usize] * US;
                let think = self.random.between(50 * US, think);
                self.plan_client(client, think);
            }
            Err(what) => self.violated(Err(what)),
        }
    }

    pub(crate) fn plan_client(&mut self, client: usize, ns: Time) {
        self.client_timers[client] += 1;
        let number = self.client_timers[client];
        self.plan_in(ns, Happening::ClientSends { client, number });
    }

    /// A frame to the guest reaches both hosts: whoever believes to be the primary takes it.
    fn client_sends(&mut self, client: usize, number: u64) {
        if self.client_timers[client] != number {
            return;
        }
        let Some(frame) = self.clients[client].frame(self.now, &mut self.random) else { return };
        let again = self.random.between(30, 70) * MS;
        self.plan_client(client, again);
        for process in 0..self.processes.len() {
            if !self.processes[process].runs() {
                continue;
            }
            let host = Node::Host(self.processes[process].host);
            let arrivals = self.network.datagram(Node::Clients, host, self.now, &mut self.random);
            for at in arrivals.into_iter().flatten() {
                self.plan(at, Happening::Frame { process, frame: frame.clone() });
            }
        }
    }
}
