//! Drives a backup: receiver, replayer and protocol, as the process of a virtual machine monitor does.

use ft::{Backup, BackupAction, BackupEvent, BackupState, Config, HaltReason};
use logchannel::{Claimant, Endpoint, LogEntry, LogStart, Message, Output, Receiver, Seq};
use replay::small_machine::SmallMachine;
use replay::{ClockPolicy, Machine, Progress, PushError, ReplayError, Replayer};

use crate::bug::Bug;
use crate::effect::{Effect, Snapshot};
use crate::primary_driver::PrimaryDriver;
use crate::wire::welcome;

/// Entries executed per turn.
const ENTRIES_PER_TURN: usize = 8;

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
                    Ok(Some(Message::Hello(_))) => {
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
                let (up_to, released) = (receiver.received(), receiver.released());
                let Ok(from) = from else {
                    self.entries.clear();
                    return self.on_broken(local_ns, out);
                };
                self.push_entries(local_ns, out);
                self.step(local_ns, BackupEvent::Received { up_to, released }, out);
                if from.goodbye.is_some() {
                    self.step(local_ns, BackupEvent::Goodbye { last: up_to }, out);
                }
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
        self.ft.step(local_ns, event, &mut actions);
        if self.bug == Some(Bug::LiveBeforeLastEntry) && self.ft.state() == BackupState::Draining {
            for seq in self.ft.executed() + 1..=self.ft.received() {
                let executed = BackupEvent::Executed { seq, output: None, completed: None };
                self.ft.step(local_ns, executed, &mut actions);
            }
        }
        for action in actions {
            match action {
                BackupAction::SendAck { received, executed } => {
                    if let Channel::Open(receiver) = &mut self.channel {
                        assert_eq!(receiver.received(), received, "acks are for what was received");
                        let mut bytes = Vec::new();
                        receiver.ack(executed, &mut bytes);
                        out.push(Effect::Bytes(bytes));
                    }
                }
                BackupAction::SendHeartbeat(beat) => out.push(Effect::Beat(beat)),
                BackupAction::SendLeft => {
                    if let Channel::Open(receiver) = &mut self.channel {
                        let mut bytes = Vec::new();
                        receiver.goodbye("diverged", &mut bytes).expect("a short message");
                        out.push(Effect::Bytes(bytes));
                    }
                }
                BackupAction::CloseChannel => {
                    self.channel = Channel::None;
                    out.push(Effect::CloseChannel { gently: false });
                }
                BackupAction::Claim { expect, .. } => out.push(Effect::Claim { expect }),
                BackupAction::GoLive { resend, .. } => self.live = Some(resend),
                BackupAction::Halt { reason } => {
                    let gently = reason == HaltReason::GuestEnded;
                    self.channel = Channel::None;
                    out.push(Effect::CloseChannel { gently });
                    out.push(Effect::Halted(reason));
                }
            }
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
        PrimaryDriver::from_backup(self.ft.into_primary(), recorder, resend, local_ns, self.bug, out)
    }
}
