//! Drives a backup: receiver, replayer and protocol, as the process of a virtual machine monitor does.

use ft::{
    Arrivals, Backup, BackupAction, BackupEvent, BackupState, ClaimAnswer, Config, HaltReason, ReadLimits,
    Suspicion,
};
use logchannel::message::DiskReach;
use logchannel::{Claimant, Endpoint, Event, Generation, LogEntry, LogStart, Message, Output, Receiver, Seq};
use replay::small_machine::{KEYS, SECTOR, SmallMachine};
use replay::{ClockPolicy, Machine, Progress, PushError, ReplayError, Replayer};

use crate::bug::Bug;
use crate::effect::{Effect, Snapshot};
use crate::primary_driver::{DISK_TIMEOUT_NS, DiskAnswer, PrimaryDriver};
use crate::wire::welcome;

/// Entries executed per turn.
const ENTRIES_PER_TURN: usize = 8;
/// The guest has one request in flight for each key at most.
const READ_LIMITS: ReadLimits = ReadLimits { requests: KEYS as usize, bytes: KEYS as u64 * SECTOR as u64 };

#[derive(Debug)]
enum Channel {
    None,
    Greeting(Endpoint),
    Open(Receiver),
}

/// A backup with what surrounds it.
#[derive(Debug)]
pub struct BackupDriver {
    ft: Backup<Output>,
    claimant: Claimant,
    channel: Channel,
    replayer: Option<Replayer<SmallMachine>>,
    entries: Vec<LogEntry>,
    /// If it reads the disk itself: entries that may lack their data.
    arrivals: Option<Arrivals>,
    read_generation: Generation,
    disk_asked_ns: u64,
    live: Option<Vec<(Seq, Output)>>,
    divergence: Option<String>,
    bug: Option<Bug>,
}

impl BackupDriver {
    /// A backup that was just started and waits for a primary.
    pub fn new(config: Config, local_ns: u64, bug: Option<Bug>) -> Self {
        Self {
            claimant: config.claimant,
            ft: Backup::new(config, local_ns),
            channel: Channel::Greeting(Endpoint::default()),
            replayer: None,
            entries: Vec::new(),
            arrivals: None,
            read_generation: 0,
            disk_asked_ns: 0,
            live: None,
            divergence: None,
            bug,
        }
    }

    /// Changes one bit of the guest's registers, as failing hardware would. Whether there is a guest.
    pub fn flip_bit(&mut self, bit: u32) -> bool {
        let machine = self.replayer.as_mut().map(Replayer::machine_mut);
        machine.map(|machine| machine.flip_register_bit(bit)).is_some()
    }

    /// The protocol.
    pub fn ft(&self) -> &Backup<Output> {
        &self.ft
    }

    /// What went wrong in replay, if anything.
    pub fn divergence(&self) -> Option<&str> {
        self.divergence.as_deref()
    }

    /// The last entry of those that are here with their data.
    pub fn holds(&self) -> Seq {
        let wanted = self.arrivals.as_ref().and_then(|arrivals| arrivals.wanted().next());
        let received = self.ft.received();
        wanted.map_or(received, |request| received.min(request.id - 1))
    }

    /// Whether there are entries to execute.
    pub fn wants_turn(&self) -> bool {
        let stopped = matches!(self.ft.state(), BackupState::Halted(_) | BackupState::Live);
        !stopped && self.ft.executed() < self.ft.received()
    }

    /// Executes some entries.
    pub fn turn(&mut self, local_ns: u64, out: &mut Vec<Effect>) {
        for _ in 0..ENTRIES_PER_TURN {
            if !self.wants_turn() {
                return;
            }
            let Some(replayer) = &mut self.replayer else { return };
            match replayer.advance() {
                Ok(Progress::Executed { seq, output, completed }) => {
                    self.step(local_ns, BackupEvent::Executed { seq, output, completed }, out);
                }
                Ok(Progress::Running) => {}
                Ok(Progress::NeedEntries | Progress::Ended(_)) => return,
                Err(ReplayError::Diverged(divergence)) => {
                    return self.diverged(local_ns, divergence.to_string(), out);
                }
                Err(ReplayError::Machine(error)) => panic!("the machine failed: {error}"),
            }
        }
    }

    fn diverged(&mut self, local_ns: u64, why: String, out: &mut Vec<Effect>) {
        self.divergence = Some(why);
        self.step(local_ns, BackupEvent::Diverged, out);
    }

    /// Bytes came on the logging channel.
    pub fn on_bytes(&mut self, local_ns: u64, bytes: &[u8], out: &mut Vec<Effect>) {
        match &mut self.channel {
            Channel::None => {}
            Channel::Greeting(endpoint) => {
                endpoint.push(bytes);
                match endpoint.next_message() {
                    Ok(Some(Message::Hello(hello))) => {
                        self.arrivals = hello.backup_reads.then(|| Arrivals::new(READ_LIMITS));
                        let mut bytes = Vec::new();
                        let welcome = welcome(self.claimant);
                        endpoint.send(&welcome, &mut bytes).expect("a short message");
                        out.push(Effect::Bytes(bytes));
                    }
                    Ok(None) => {}
                    Ok(Some(_)) | Err(_) => self.on_broken(local_ns, out),
                }
            }
            Channel::Open(receiver) => {
                let from = receiver.on_bytes(bytes, &mut self.entries);
                let hand_over = self.entries.iter().rfind(|entry| entry.event == Event::HandOver);
                let hand_over = hand_over.map(|entry| entry.seq);
                let (up_to, released) = (receiver.received(), receiver.released());
                let Ok(from) = from else {
                    self.entries.clear();
                    return self.on_broken(local_ns, out);
                };
                let reads = self.take_in(local_ns, out);
                self.step(local_ns, BackupEvent::Received { up_to, released, reads }, out);
                self.push_held(local_ns, out);
                if let Some(last) = hand_over {
                    self.step(local_ns, BackupEvent::HandOver { last }, out);
                }
                if let Some(number) = from.ask_disk {
                    self.step(local_ns, BackupEvent::AskedForDisk { number }, out);
                }
                if from.goodbye.is_some() {
                    self.step(local_ns, BackupEvent::Goodbye { last: up_to }, out);
                }
            }
        }
    }

    /// Takes the entries that came; which of them lack their data.
    fn take_in(&mut self, local_ns: u64, out: &mut Vec<Effect>) -> Vec<Seq> {
        let Some(arrivals) = &mut self.arrivals else {
            self.push_entries(local_ns, out);
            return Vec::new();
        };
        if arrivals.wanted().next().is_none() {
            self.disk_asked_ns = local_ns;
        }
        let reads = arrivals.add(&mut self.entries, local_ns).expect("what a machine has in flight");
        for request in reads.iter().filter_map(|seq| arrivals.wanted_for(*seq)) {
            out.push(Effect::Disk { generation: self.read_generation, request: request.clone() });
        }
        if self.bug == Some(Bug::AckBeforeRead) { Vec::new() } else { reads }
    }

    /// Gives the replayer what is here with its data.
    fn push_held(&mut self, local_ns: u64, out: &mut Vec<Effect>) {
        let held_up_to = self.holds();
        let Some(arrivals) = &mut self.arrivals else { return };
        self.entries.extend(std::iter::from_fn(|| arrivals.next(held_up_to)).map(|(entry, _)| entry));
        self.push_entries(local_ns, out);
    }

    /// An answer of the disk server came.
    pub fn on_disk(&mut self, local_ns: u64, seq: Seq, answer: DiskAnswer, out: &mut Vec<Effect>) {
        let (Some(arrivals), DiskAnswer::Done(data)) = (&mut self.arrivals, answer) else { return };
        match arrivals.data(seq, data) {
            Ok(false) => {}
            Ok(true) => {
                self.disk_asked_ns = local_ns;
                self.step(local_ns, BackupEvent::Fetched { seq }, out);
                self.push_held(local_ns, out);
            }
            Err(wrong) => self.diverged(local_ns, wrong.to_string(), out),
        }
    }

    /// Time passed.
    pub fn tick(&mut self, local_ns: u64, out: &mut Vec<Effect>) {
        self.step(local_ns, BackupEvent::Tick, out);
        let Some(arrivals) = &self.arrivals else { return };
        let waiting = arrivals.wanted().next().is_some();
        if waiting && local_ns.saturating_sub(self.disk_asked_ns) > DISK_TIMEOUT_NS {
            self.disk_asked_ns = local_ns;
            out.push(Effect::DiskConnect);
            for request in arrivals.wanted() {
                out.push(Effect::Disk { generation: self.read_generation, request: request.clone() });
            }
        }
    }

    fn push_entries(&mut self, local_ns: u64, out: &mut Vec<Effect>) {
        let Some(replayer) = &mut self.replayer else { return };
        for entry in std::mem::take(&mut self.entries) {
            match replayer.push(entry) {
                Ok(()) => {}
                Err(PushError::Diverged(divergence)) => {
                    return self.diverged(local_ns, divergence.to_string(), out);
                }
                Err(PushError::Full) => panic!("the primary ignores its window"),
            }
        }
    }

    /// The whole machine came.
    pub fn on_snapshot(&mut self, local_ns: u64, snapshot: Snapshot, out: &mut Vec<Effect>) {
        let Channel::Greeting(endpoint) = std::mem::replace(&mut self.channel, Channel::None) else { return };
        let Snapshot { machine, seq, generation, outstanding } = snapshot;
        let count = machine.position().count;
        self.channel = Channel::Open(Receiver::new(endpoint, LogStart { seq, count }));
        self.replayer = Some(Replayer::resume(machine, seq + 1));
        self.read_generation = generation;
        if self.arrivals.is_some() {
            out.push(Effect::DiskConnect);
        }
        self.step(local_ns, BackupEvent::Joined { generation, seq, outstanding }, out);
    }

    /// The logging channel broke.
    pub fn on_broken(&mut self, local_ns: u64, out: &mut Vec<Effect>) {
        if !matches!(std::mem::replace(&mut self.channel, Channel::None), Channel::None) {
            out.push(Effect::CloseChannel { gently: false });
            self.step(local_ns, BackupEvent::ChannelBroken, out);
        }
    }

    /// Something happened that concerns the protocol.
    pub fn step(&mut self, local_ns: u64, event: BackupEvent<Output>, out: &mut Vec<Effect>) {
        let mut actions = Vec::new();
        if let BackupEvent::ClaimAnswer { answer: ClaimAnswer::Won { generation }, .. } = &event {
            self.read_generation = *generation;
        }
        self.ft.step(local_ns, event, &mut actions);
        if self.bug == Some(Bug::LiveBeforeLastEntry) && self.ft.state() == BackupState::Draining {
            for seq in self.ft.executed() + 1..=self.ft.received() {
                let executed = BackupEvent::Executed { seq, output: None, completed: None };
                self.ft.step(local_ns, executed, &mut actions);
            }
        }
        let mut believed = None;
        for action in actions {
            match action {
                BackupAction::SendAck { received, executed } => {
                    if let Channel::Open(receiver) = &mut self.channel {
                        let mut bytes = Vec::new();
                        receiver.ack_up_to(received, executed, &mut bytes);
                        out.push(Effect::Bytes(bytes));
                    }
                }
                BackupAction::SendHeartbeat(beat) => out.push(Effect::Beat(beat)),
                BackupAction::SendLeft { reason } => {
                    if let Channel::Open(receiver) = &mut self.channel {
                        let mut bytes = Vec::new();
                        receiver.goodbye(&reason.to_string(), &mut bytes).expect("a short message");
                        out.push(Effect::Bytes(bytes));
                    }
                }
                BackupAction::CloseChannel => {
                    self.drop_arrivals(local_ns, out);
                    self.channel = Channel::None;
                    out.push(Effect::CloseChannel { gently: false });
                }
                BackupAction::QueryDisk => out.push(Effect::Query),
                BackupAction::SendDiskReach { number, reaches } => {
                    if let Channel::Open(receiver) = &mut self.channel {
                        let mut bytes = Vec::new();
                        receiver.disk_reach(DiskReach { number, reaches }, &mut bytes);
                        out.push(Effect::Bytes(bytes));
                    }
                }
                BackupAction::Claim { expect, .. } => match (self.bug, self.ft.state()) {
                    (Some(Bug::HandOverSkipsTestAndSet), BackupState::Claiming(Suspicion::HandedOver)) => {
                        believed = Some(expect)
                    }
                    _ => out.push(Effect::Claim { expect }),
                },
                BackupAction::GoLive { resend, .. } => self.live = Some(resend),
                BackupAction::Halt { reason } => {
                    let gently = reason == HaltReason::GuestEnded;
                    self.channel = Channel::None;
                    out.push(Effect::CloseChannel { gently });
                    out.push(Effect::Halted(reason));
                }
            }
        }
        if let Some(expect) = believed {
            let answer = ClaimAnswer::Won { generation: expect + 1 };
            self.step(local_ns, BackupEvent::ClaimAnswer { expect, answer }, out);
        }
    }

    /// What was not received when the channel closed is lost.
    fn drop_arrivals(&mut self, local_ns: u64, out: &mut Vec<Effect>) {
        self.push_held(local_ns, out);
        if let (Some(arrivals), true) = (&mut self.arrivals, self.bug != Some(Bug::AckBeforeRead)) {
            arrivals.clear();
        }
    }

    /// Whether this backup is to become a primary now.
    pub fn goes_live(&self) -> bool {
        self.live.is_some()
    }

    /// The primary that this backup becomes.
    pub fn into_primary(self, local_ns: u64, out: &mut Vec<Effect>) -> PrimaryDriver {
        let resend = self.live.expect("it goes live");
        let replayer = self.replayer.expect("it has a machine");
        let policy = ClockPolicy::default();
        let replayer = match self.bug {
            Some(Bug::LiveBeforeLastEntry) => {
                Replayer::resume(replayer.machine().clone(), self.ft.received() + 1)
            }
            _ => replayer,
        };
        let recorder = replayer.into_recorder(policy, local_ns);
        let (ft, backup_reads) = (self.ft.into_primary(), self.arrivals.is_some());
        PrimaryDriver::from_backup(ft, recorder, resend, local_ns, backup_reads, self.bug, out)
    }
}
