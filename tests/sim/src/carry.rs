//! Carries out what processes do, and what the disk server does about it.

use disk_server::test_and_set::Decision;
use ft::{ClaimAnswer, HaltReason};
use logchannel::{DiskRequest, Generation, Output};

use crate::disk::{Claimed, DiskConnection};
use crate::effect::Effect;
use crate::network::{Item, Node, Time};
use crate::oracle::Warrant;
use crate::process::{Interruption, Part};
use crate::world::{Happening, MS, World};

impl World {
    /// Carries out effects one by one; a process may be interrupted between any two.
    pub(crate) fn carry_out_all(&mut self, process: usize, effects: Vec<Effect>) {
        let mut effects = effects.into_iter();
        while let Some(effect) = effects.next() {
            match self.processes[process].interruption {
                Some((0, interruption)) => {
                    self.processes[process].interruption = None;
                    match interruption {
                        Interruption::Crash { silently } => return self.crash(process, silently),
                        Interruption::Pause { ns, clock_stops } => {
                            self.pause(process, ns, clock_stops);
                            self.processes[process].deferred.push_back(effect);
                            self.processes[process].deferred.extend(effects);
                            return;
                        }
                    }
                }
                Some((left, interruption)) => {
                    self.processes[process].interruption = Some((left - 1, interruption));
                }
                None => {}
            }
            self.carry_out(process, effect);
            if self.violation.is_some() {
                return;
            }
        }
    }

    fn carry_out(&mut self, process: usize, effect: Effect) {
        match effect {
            Effect::HandedOver => {
                self.tell(|| format!("process {process} hands over"));
                self.stats.handed_over += 1;
            }
            Effect::Bytes(bytes) => self.send(process, Item::Bytes(bytes)),
            Effect::Snapshot(snapshot) => {
                self.tell(|| format!("process {process} sends its machine as of entry {}", snapshot.seq));
                self.send(process, Item::Snapshot(snapshot));
            }
            Effect::CloseChannel { gently } => self.close_channel(process, gently),
            Effect::Beat(beat) => self.send_beat(process, beat),
            Effect::Claim { expect } => self.send_claim(process, expect),
            Effect::WentLive { generation, seq } => {
                self.tell(|| {
                    format!("process {process} goes live: generation {generation} after entry {seq}")
                });
                let claimant = self.processes[process].claimant;
                let result = self.oracle.went_live(claimant, generation, seq);
                self.violated(result);
                let inherited = match &self.processes[process].part {
                    Part::Primary(primary) => primary.inherited(),
                    Part::Backup(_) => 0,
                };
                self.stats.went_alone += u64::from(seq != inherited);
            }
            Effect::Release { seq, output, alone, generation } => {
                let claimant = self.processes[process].claimant;
                let backup = self.processes[process].backup;
                let backup_received = backup.map(|backup| self.processes[backup].received());
                let warrant = Warrant { claimant, generation, alone, backup_received };
                let result = self.oracle.release(warrant, seq, &output);
                self.violated(result);
                if let Output::Net(frame) = output {
                    self.send_reply(process, frame);
                }
            }
            Effect::Query => self.send_query(process),
            Effect::DiskConnect => self.connect_disk(process),
            Effect::Disk { generation, request } => self.send_disk(process, generation, request),
            Effect::Halted(reason) => self.halted(process, reason),
        }
    }

    fn send(&mut self, process: usize, item: Item) {
        let Some(connection) = self.processes[process].connection else { return };
        let to_primary = self.connections[connection].ends[1] == process;
        let stream = &mut self.connections[connection].streams[usize::from(to_primary)];
        stream.send(item, &mut self.random);
        self.plan_stream(connection, to_primary);
    }

    pub(crate) fn plan_stream(&mut self, connection: usize, to_primary: bool) {
        let stream = &mut self.connections[connection].streams[usize::from(to_primary)];
        if stream.is_due() && !std::mem::replace(&mut stream.scheduled, true) {
            let delay = self.network.delay(&mut self.random);
            self.plan_in(delay, Happening::Stream { connection, to_primary });
        }
    }

    fn close_channel(&mut self, process: usize, gently: bool) {
        let Some(connection) = self.processes[process].connection.take() else { return };
        let to_primary = self.connections[connection].ends[1] == process;
        let stream = &mut self.connections[connection].streams[usize::from(to_primary)];
        match gently {
            true => stream.close(),
            false => stream.break_off(true, &mut self.random),
        }
        self.plan_stream(connection, to_primary);
    }

    fn send_beat(&mut self, process: usize, beat: ft::Heartbeat) {
        let Some(connection) = self.processes[process].connection else { return };
        let [primary, backup] = self.connections[connection].ends;
        let peer = if primary == process { backup } else { primary };
        let healthy = self.phase != crate::phases::Phase::Safety;
        let lost = self.random.chance(self.plan.heartbeat_loss) || self.now < self.heartbeats_blocked_until;
        if lost && !healthy {
            return;
        }
        let from = Node::Host(self.processes[process].host);
        let to = Node::Host(self.processes[peer].host);
        let arrivals = self.network.datagram(from, to, self.now, &mut self.random);
        for at in arrivals.into_iter().flatten() {
            self.plan(at, Happening::Beat { process: peer, beat });
        }
    }

    fn send_reply(&mut self, process: usize, frame: Vec<u8>) {
        let host = Node::Host(self.processes[process].host);
        let arrivals = self.network.datagram(host, Node::Clients, self.now, &mut self.random);
        for at in arrivals.into_iter().flatten() {
            self.plan(at, Happening::Reply { frame: frame.clone() });
        }
    }

    fn send_claim(&mut self, process: usize, expect: Generation) {
        self.tell(|| format!("process {process} claims the generation after {expect}"));
        let host = Node::Host(self.processes[process].host);
        let arrivals = self.network.datagram(host, Node::Disk, self.now, &mut self.random);
        if arrivals == [None; 2] && self.random.chance(500) {
            let answer = ClaimAnswer::Unreachable;
            self.plan_in(5 * MS, Happening::ClaimAnswer { process, expect, answer });
        }
        for at in arrivals.into_iter().flatten() {
            self.plan(at, Happening::Claim { process, expect });
        }
    }

    /// A claim arrives at the disk server. The answer goes out whatever became of the process.
    pub(crate) fn claim(&mut self, process: usize, expect: Generation) {
        let claimant = self.processes[process].claimant;
        let claimed = self.disk.claim(expect, claimant);
        self.tell(|| format!("the disk server takes the claim of process {process}: {claimed:?}"));
        let answer = match claimed {
            None => return,
            Some(Claimed::Crashed(_)) => {
                let down = self.random.between(5, 120) * MS;
                return self.plan_in(down, Happening::DiskStarts);
            }
            Some(Claimed::Answer(Decision::Grant(holding) | Decision::Repeat(holding))) => {
                ClaimAnswer::Won { generation: holding.generation }
            }
            Some(Claimed::Answer(Decision::Lost(holding))) => ClaimAnswer::Lost {
                generation: holding.generation,
                holder: holding.holder.unwrap_or_default(),
            },
        };
        let host = Node::Host(self.processes[process].host);
        let arrivals = self.network.datagram(Node::Disk, host, self.now, &mut self.random);
        for at in arrivals.into_iter().flatten() {
            self.plan(at, Happening::ClaimAnswer { process, expect, answer });
        }
    }

    fn send_query(&mut self, process: usize) {
        let host = Node::Host(self.processes[process].host);
        let arrivals = self.network.datagram(host, Node::Disk, self.now, &mut self.random);
        for at in arrivals.into_iter().flatten() {
            self.plan(at, Happening::Query { process });
        }
    }

    /// A question for the generation arrives at the disk server.
    pub(crate) fn query(&mut self, process: usize) {
        if !self.disk.is_up() {
            return;
        }
        let (host, generation) = (Node::Host(self.processes[process].host), self.disk.holding().generation);
        let arrivals = self.network.datagram(Node::Disk, host, self.now, &mut self.random);
        for at in arrivals.into_iter().flatten() {
            self.plan(at, Happening::QueryAnswer { process, generation });
        }
    }

    fn disk_reachable(&self, process: usize) -> bool {
        let host = Node::Host(self.processes[process].host);
        let passes = |from, to| self.network.passes(from, to, self.now);
        self.disk.is_up() && passes(host, Node::Disk) && passes(Node::Disk, host)
    }

    fn connect_disk(&mut self, process: usize) {
        let (life, reachable) = (self.disk.life(), self.disk_reachable(process));
        let link = &mut self.processes[process].disk;
        link.connection = DiskConnection { life, number: link.connection.number + 1 };
        link.broken = !reachable;
        link.last_at = self.now;
    }

    /// Requests of one connection arrive in order, or from one of them on not at all.
    fn send_disk(&mut self, process: usize, generation: Generation, request: DiskRequest) {
        let passes = self.network.passes(Node::Host(self.processes[process].host), Node::Disk, self.now);
        let lost = self.random.chance(self.network.weather.loss / 8);
        let delay = self.network.delay(&mut self.random);
        let link = &mut self.processes[process].disk;
        link.broken |= !passes || lost;
        if link.broken {
            return;
        }
        let at = link.last_at.max(self.now + delay);
        link.last_at = at;
        let connection = link.connection;
        self.plan(at, Happening::DiskRequest { process, connection, generation, request });
    }

    /// A request arrives at the disk server.
    pub(crate) fn disk_request(
        &mut self,
        process: usize,
        connection: DiskConnection,
        generation: Generation,
        request: &DiskRequest,
    ) {
        let Some(answer) = self.disk.request(process, connection, generation, request) else { return };
        let link = &self.processes[process].disk;
        if link.connection != connection || link.broken {
            return;
        }
        let passes = self.network.passes(Node::Disk, Node::Host(self.processes[process].host), self.now);
        let lost = self.random.chance(self.network.weather.loss / 8);
        if !passes || lost {
            self.processes[process].disk.broken = true;
            return;
        }
        let delay = self.network.delay(&mut self.random);
        let id = request.id;
        self.plan_in(delay, Happening::DiskAnswer { process, connection, id, answer });
    }

    pub(crate) fn halted(&mut self, process: usize, reason: HaltReason) {
        self.tell(|| format!("process {process} halts: {reason}"));
        match reason {
            HaltReason::Lost { .. } => self.stats.lost += 1,
            HaltReason::Fenced { .. } => self.stats.fenced += 1,
            HaltReason::Diverged if self.processes[process].flipped => self.stats.diverged += 1,
            HaltReason::Diverged => {
                let why = match &self.processes[process].part {
                    Part::Backup(backup) => backup.divergence().unwrap_or("?").to_string(),
                    Part::Primary(_) => "a primary".to_string(),
                };
                self.violated(Err(format!("process {process}: {why}")));
            }
            HaltReason::CannotRead => self.stats.cannot_read += 1,
            HaltReason::GuestEnded | HaltReason::NeverJoined => {}
        }
        let gently = reason == HaltReason::GuestEnded;
        self.processes[process].halted = Some(reason);
        self.processes[process].stopped_at = self.now;
        self.close_channel(process, gently);
    }

    pub(crate) fn crash(&mut self, process: usize, silently: bool) {
        if !self.processes[process].runs() {
            return;
        }
        self.tell(|| format!("process {process} dies{}", if silently { ", and nobody is told" } else { "" }));
        self.stats.crashes += 1;
        self.processes[process].crashed = true;
        self.processes[process].stopped_at = self.now;
        if let Some(connection) = self.processes[process].connection.take() {
            let to_primary = self.connections[connection].ends[1] == process;
            let stream = &mut self.connections[connection].streams[usize::from(to_primary)];
            stream.break_off(!silently, &mut self.random);
            self.plan_stream(connection, to_primary);
        }
    }

    pub(crate) fn pause(&mut self, process: usize, ns: Time, clock_stops: bool) {
        let slot = &mut self.processes[process];
        if !slot.runs() || slot.paused_until.is_some() {
            return;
        }
        slot.paused_until = Some(self.now + ns);
        slot.turn_at = None;
        if clock_stops {
            slot.clock_offset -= ns.min(slot.clock_offset);
        }
        self.stats.pauses += 1;
        self.tell(|| format!("process {process} stands still for {} ms", ns / MS));
        self.plan_in(ns, Happening::Resume { process });
    }
}
