//! Drives a primary: recorder, protocol and sender, as the process of a virtual machine monitor does.

use std::collections::{BTreeMap, VecDeque};

use ft::reads::without_data;
use ft::{
    ClaimAnswer, HaltReason, Primary, PrimaryAction, PrimaryEvent, PrimaryState, ReadTracker,
    THROTTLE_PERIOD_NS,
};
use logchannel::{
    Ack, Claimant, DiskOp, DiskRequest, DiskStatus, Endpoint, Event, Generation, Limits, LogStart, Message,
    Output, Sender, Seq,
};
use replay::small_machine::SmallMachine;
use replay::{Machine, Offer, Recorded, Recorder, Stop};

use crate::bug::Bug;
use crate::effect::{Effect, Snapshot};
use crate::wire::hello;

const MS: u64 = 1_000_000;
/// The network card's queue, in frames.
const MAX_FRAMES: usize = 16;
/// How long to wait for the disk server before connecting anew.
pub const DISK_TIMEOUT_NS: u64 = 60 * MS;
/// How long the guest's first start waits for a backup.
const START_WITHOUT_BACKUP_NS: u64 = 300 * MS;
const ENTRIES_PER_DIGEST: u64 = 24;
/// How often the disk server is asked for the generation.
const QUERY_EVERY_NS: u64 = 40 * MS;

/// What the disk server answered to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskAnswer {
    /// Done; what was read.
    Done(Vec<u8>),
    /// Refused: this generation is current.
    Fenced(Generation),
}

#[derive(Debug)]
struct InFlight {
    seq: Seq,
    request: DiskRequest,
    answered: bool,
}

#[derive(Debug)]
enum Channel {
    None,
    Greeting(Endpoint),
    Open(Box<Sender>),
}

/// A primary with what surrounds it.
#[derive(Debug)]
pub struct PrimaryDriver {
    ft: Primary<Output>,
    recorder: Recorder<SmallMachine>,
    channel: Channel,
    frames: VecDeque<Vec<u8>>,
    completions: VecDeque<Event>,
    /// The guest had no room for the first frame when it was offered last.
    frames_refused: bool,
    in_flight: BTreeMap<u64, InFlight>,
    disk_asked_ns: u64,
    queried_ns: u64,
    /// If backups are to read the disk themselves.
    reads: Option<ReadTracker>,
    generation: Generation,
    alone: bool,
    guest_started: bool,
    start_at_ns: u64,
    end_told: bool,
    pause_ns: u64,
    next_digest: Seq,
    /// The last entry that was received while still a backup.
    inherited: Seq,
    /// Outputs let go too early, by a planted mistake.
    leaked: Seq,
    bug: Option<Bug>,
}

impl PrimaryDriver {
    /// The first primary of a machine: it holds `generation`, its guest has not started.
    pub fn first(
        ft: Primary<Output>,
        recorder: Recorder<SmallMachine>,
        local_ns: u64,
        backup_reads: bool,
        bug: Option<Bug>,
    ) -> Self {
        let mut driver = Self::new(ft, recorder, backup_reads, bug);
        driver.guest_started = false;
        driver.start_at_ns = local_ns + START_WITHOUT_BACKUP_NS;
        driver
    }

    fn new(
        ft: Primary<Output>,
        recorder: Recorder<SmallMachine>,
        backup_reads: bool,
        bug: Option<Bug>,
    ) -> Self {
        Self {
            generation: ft.generation(),
            inherited: ft.appended(),
            next_digest: ft.appended() + ENTRIES_PER_DIGEST,
            ft,
            recorder,
            channel: Channel::None,
            frames: VecDeque::new(),
            completions: VecDeque::new(),
            frames_refused: false,
            in_flight: BTreeMap::new(),
            disk_asked_ns: 0,
            queried_ns: 0,
            reads: backup_reads.then(ReadTracker::default),
            alone: true,
            guest_started: true,
            start_at_ns: 0,
            end_told: false,
            pause_ns: 0,
            leaked: 0,
            bug,
        }
    }

    /// A backup that goes live: sends `resend` again and logs that it went live.
    pub fn from_backup(
        ft: Primary<Output>,
        recorder: Recorder<SmallMachine>,
        resend: Vec<(Seq, Output)>,
        local_ns: u64,
        backup_reads: bool,
        bug: Option<Bug>,
        out: &mut Vec<Effect>,
    ) -> Self {
        let mut driver = Self::new(ft, recorder, backup_reads, bug);
        let (generation, seq) = (driver.generation, driver.inherited);
        out.push(Effect::WentLive { generation, seq });
        out.push(Effect::DiskConnect);
        for (seq, output) in resend {
            if let (Output::Disk(request), Some(reads)) = (&output, &mut driver.reads) {
                reads.inherit(request);
            }
            driver.let_go(local_ns, seq, output, out);
        }
        driver.log_go_live(local_ns, out);
        driver
    }

    /// The protocol.
    pub fn ft(&self) -> &Primary<Output> {
        &self.ft
    }

    /// The guest.
    pub fn machine(&self) -> &SmallMachine {
        self.recorder.machine()
    }

    /// The last entry that this process received while it was a backup.
    pub fn inherited(&self) -> Seq {
        self.inherited
    }

    /// Requests that the disk server has not answered, and answers that the guest has not got.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Part of its time in which a throttled guest stands still, in permille.
    pub fn throttle_permille(&self) -> u64 {
        self.pause_ns * 1_000 / THROTTLE_PERIOD_NS
    }

    /// A connection to a new backup is there: greet it.
    pub fn connect(&mut self, claimant: Claimant, out: &mut Vec<Effect>) {
        let (mut endpoint, mut bytes) = (Endpoint::default(), Vec::new());
        let hello = hello(claimant, self.reads.is_some());
        endpoint.send(&hello, &mut bytes).expect("a short message");
        self.channel = Channel::Greeting(endpoint);
        out.push(Effect::Bytes(bytes));
    }

    /// Host time at which this process wants to run its guest, on its own clock: not later than `local_ns`
    /// for at once, `None` for only after something happened.
    pub fn next_turn_ns(&self, local_ns: u64) -> Option<u64> {
        if self.hands_over() {
            return Some(local_ns);
        }
        if !self.guest_started || !self.may_append() {
            return None;
        }
        match self.recorder.stop() {
            Stop::Ended(_) => (!self.end_told).then_some(local_ns),
            Stop::Ready => Some(local_ns),
            Stop::Waiting { .. } => {
                let frames = !self.frames.is_empty() && !self.frames_refused;
                let inputs = frames || !self.completions.is_empty();
                if inputs { Some(local_ns) } else { self.recorder.host_deadline_ns() }
            }
        }
    }

    fn hands_over(&self) -> bool {
        self.ft.hand_over_requested() && self.recorder.ending().is_none()
    }

    fn may_append(&self) -> bool {
        let runs_past = self.bug == Some(Bug::RunsPastHandOver);
        self.ft.may_append() || runs_past && self.ft.state() == PrimaryState::HandingOver
    }

    /// Lets inputs in and runs the guest to its next stop.
    pub fn turn(&mut self, local_ns: u64, out: &mut Vec<Effect>) {
        if self.hands_over() {
            let mut log = Vec::new();
            self.recorder.hand_over(&mut log);
            self.record(local_ns, log, out);
            self.step(local_ns, PrimaryEvent::HandedOver, out);
            out.push(Effect::HandedOver);
            self.flush(local_ns, out);
        }
        if !self.guest_started || !self.may_append() {
            return;
        }
        let mut log = Vec::new();
        self.recorder.clock(local_ns, &mut log).expect("the machine takes the time");
        while let Some(completion) = self.completions.pop_front() {
            let Event::DiskDone { request, .. } = completion else { unreachable!("only completions here") };
            match self.recorder.offer(completion, &mut log).expect("the machine takes the input") {
                Offer::Applied => drop(self.in_flight.remove(&request)),
                Offer::Refused(_) => assert!(self.recorder.ending().is_some(), "completion refused"),
            }
        }
        while let Some(frame) = self.frames.pop_front() {
            let offer = self.recorder.offer(Event::NetRx(frame), &mut log).expect("the machine takes it");
            if let Offer::Refused(Event::NetRx(frame)) = offer {
                self.frames.push_front(frame);
                self.frames_refused = true;
                break;
            }
        }
        if !log.is_empty() {
            self.frames_refused = false;
        }
        let before = self.recorder.machine().position();
        self.recorder.advance(&mut log).expect("the machine runs");
        if self.recorder.machine().position() != before {
            self.frames_refused = false;
        }
        if self.recorder.next_seq() > self.next_digest {
            self.recorder.digest(&mut log).expect("the machine has a digest");
            self.next_digest = self.recorder.next_seq() + ENTRIES_PER_DIGEST;
        }
        self.record(local_ns, log, out);
        if self.recorder.ending().is_some() && !std::mem::replace(&mut self.end_told, true) {
            self.step(local_ns, PrimaryEvent::GuestEnded, out);
        }
        self.flush(local_ns, out);
    }

    /// Bytes came on the logging channel.
    pub fn on_bytes(&mut self, local_ns: u64, bytes: &[u8], out: &mut Vec<Effect>) {
        match &mut self.channel {
            Channel::None => {}
            Channel::Greeting(endpoint) => {
                endpoint.push(bytes);
                match endpoint.next_message() {
                    Ok(Some(Message::Welcome(_))) => self.cut(local_ns, out),
                    Ok(None) => {}
                    Ok(Some(_)) | Err(_) => self.on_broken(local_ns, out),
                }
            }
            Channel::Open(sender) => match sender.on_bytes(bytes) {
                Ok(from) => {
                    if let Some(ack) = from.ack {
                        let (received, executed) = (ack.received, ack.executed);
                        self.step(local_ns, PrimaryEvent::Acked { received, executed }, out);
                    }
                    if let Some(reach) = from.disk_reach {
                        let (number, reaches) = (reach.number, reach.reaches);
                        self.step(local_ns, PrimaryEvent::DiskReach { number, reaches }, out);
                    }
                    if from.goodbye.is_some() {
                        self.step(local_ns, PrimaryEvent::BackupLeft, out);
                    }
                }
                Err(_) => self.on_broken(local_ns, out),
            },
        }
    }

    /// The machine as it is now goes to the backup that answered; from here on outputs wait for its acks.
    fn cut(&mut self, local_ns: u64, out: &mut Vec<Effect>) {
        let Channel::Greeting(endpoint) = std::mem::replace(&mut self.channel, Channel::None) else { return };
        if self.ft.state() != PrimaryState::Alone || self.recorder.ending().is_some() {
            return out.push(Effect::CloseChannel { gently: false });
        }
        let seq = self.ft.appended();
        assert_eq!(self.recorder.next_seq(), seq + 1, "every entry was told to the protocol");
        let count = self.recorder.machine().position().count;
        self.channel =
            Channel::Open(Box::new(Sender::new(endpoint, Limits::default(), LogStart { seq, count })));
        let outstanding = self.in_flight.values().map(|f| (f.seq, Output::Disk(f.request.clone()))).collect();
        let machine = self.recorder.machine().clone();
        let generation = self.generation;
        self.alone = false;
        self.step(local_ns, PrimaryEvent::BackupJoined { seq }, out);
        out.push(Effect::Snapshot(Box::new(Snapshot { machine, seq, generation, outstanding })));
        self.guest_started = true;
    }

    /// The logging channel broke.
    pub fn on_broken(&mut self, local_ns: u64, out: &mut Vec<Effect>) {
        match std::mem::replace(&mut self.channel, Channel::None) {
            Channel::None => {}
            Channel::Greeting(_) => {
                self.guest_started = true;
                out.push(Effect::CloseChannel { gently: false });
            }
            Channel::Open(_) => {
                out.push(Effect::CloseChannel { gently: false });
                self.step(local_ns, PrimaryEvent::ChannelBroken, out);
            }
        }
    }

    /// A frame for the guest came.
    pub fn on_frame(&mut self, frame: Vec<u8>) {
        if self.frames.len() < MAX_FRAMES {
            self.frames.push_back(frame);
        }
    }

    /// An answer of the disk server came, for a request of the present connection.
    pub fn on_disk(&mut self, local_ns: u64, id: u64, answer: DiskAnswer, out: &mut Vec<Effect>) {
        self.step(local_ns, PrimaryEvent::DiskAnswered { at_ns: local_ns }, out);
        match answer {
            DiskAnswer::Fenced(generation) => {
                self.step(local_ns, PrimaryEvent::Fenced { generation }, out);
            }
            DiskAnswer::Done(data) => {
                let Some(in_flight) = self.in_flight.get_mut(&id) else { return };
                if !std::mem::replace(&mut in_flight.answered, true) {
                    let data =
                        if matches!(in_flight.request.op, DiskOp::Read { .. }) { data } else { Vec::new() };
                    let status = DiskStatus::Ok;
                    self.completions.push_back(Event::DiskDone { request: id, status, data });
                }
                self.disk_asked_ns = local_ns;
            }
        }
    }

    /// The disk server said which generation is current.
    pub fn on_query(&mut self, local_ns: u64, generation: Generation, out: &mut Vec<Effect>) {
        self.step(local_ns, PrimaryEvent::DiskAnswered { at_ns: local_ns }, out);
        self.step(local_ns, PrimaryEvent::Fenced { generation }, out);
    }

    /// Time passed.
    pub fn tick(&mut self, local_ns: u64, out: &mut Vec<Effect>) {
        if local_ns.saturating_sub(self.queried_ns) > QUERY_EVERY_NS {
            self.queried_ns = local_ns;
            out.push(Effect::Query);
        }
        self.step(local_ns, PrimaryEvent::Tick, out);
        if !self.guest_started && local_ns >= self.start_at_ns && matches!(self.channel, Channel::None) {
            self.guest_started = true;
        }
        let waiting = self.in_flight.values().any(|f| !f.answered);
        let halted = matches!(self.ft.state(), PrimaryState::Halted(_));
        if waiting && !halted && local_ns.saturating_sub(self.disk_asked_ns) > DISK_TIMEOUT_NS {
            self.ask_disk_again(local_ns, out);
        }
    }

    fn ask_disk_again(&mut self, local_ns: u64, out: &mut Vec<Effect>) {
        out.push(Effect::DiskConnect);
        self.disk_asked_ns = local_ns;
        for in_flight in self.in_flight.values().filter(|f| !f.answered) {
            let (generation, request) = (self.generation, in_flight.request.clone());
            out.push(Effect::Disk { generation, request });
        }
    }

    /// Something else happened that concerns only the protocol.
    pub fn step(&mut self, local_ns: u64, event: PrimaryEvent<Output>, out: &mut Vec<Effect>) {
        let mut actions = Vec::new();
        self.ft.step(local_ns, event, &mut actions);
        let (mut live, mut answer) = (false, None);
        for action in actions {
            match action {
                PrimaryAction::Release { seq, output } => self.let_go(local_ns, seq, output, out),
                PrimaryAction::SendReleased { up_to } => {
                    if let Channel::Open(sender) = &mut self.channel {
                        let mut bytes = Vec::new();
                        sender.flush_released(up_to, &mut bytes);
                        out.push(Effect::Bytes(bytes));
                    }
                }
                PrimaryAction::SendHeartbeat(beat) => out.push(Effect::Beat(beat)),
                PrimaryAction::Claim { expect, .. } => match self.bug {
                    Some(Bug::PrimarySkipsTestAndSet) => answer = Some(expect),
                    _ => out.push(Effect::Claim { expect }),
                },
                PrimaryAction::GoLive { generation } => {
                    (self.generation, self.alone, live) = (generation, true, true);
                    out.push(Effect::WentLive { generation, seq: self.ft.appended() });
                    self.ask_disk_again(local_ns, out);
                }
                PrimaryAction::AskDisk { number } => {
                    if let Channel::Open(sender) = &mut self.channel {
                        let mut bytes = Vec::new();
                        sender.ask_disk(number, &mut bytes);
                        out.push(Effect::Bytes(bytes));
                    }
                }
                // The next turn does it.
                PrimaryAction::StopForHandOver => {}
                PrimaryAction::CloseChannel => {
                    self.channel = Channel::None;
                    out.push(Effect::CloseChannel { gently: false });
                }
                PrimaryAction::SendGoodbye { .. } => self.say_goodbye(out),
                PrimaryAction::Halt { reason } => self.halted(reason, out),
                PrimaryAction::Throttle { pause_ns } => self.pause_ns = pause_ns,
            }
        }
        if live {
            self.log_go_live(local_ns, out);
        }
        if let Some(expect) = answer {
            let answer = ClaimAnswer::Won { generation: expect + 1 };
            self.step(local_ns, PrimaryEvent::ClaimAnswer { expect, answer }, out);
        }
    }

    fn log_go_live(&mut self, local_ns: u64, out: &mut Vec<Effect>) {
        if self.recorder.ending().is_none() {
            let mut log = Vec::new();
            self.recorder.go_live(self.generation, &mut log);
            self.record(local_ns, log, out);
        }
    }

    fn say_goodbye(&mut self, out: &mut Vec<Effect>) {
        if let Channel::Open(sender) = &mut self.channel {
            let mut bytes = Vec::new();
            sender.flush(self.ft.released(), &mut bytes);
            sender.goodbye("the guest ended", &mut bytes).expect("a short message");
            out.push(Effect::Bytes(bytes));
        }
        self.channel = Channel::None;
        out.push(Effect::CloseChannel { gently: true });
    }

    fn halted(&mut self, reason: HaltReason, out: &mut Vec<Effect>) {
        self.channel = Channel::None;
        out.push(Effect::Halted(reason));
    }

    fn record(&mut self, local_ns: u64, log: Vec<Recorded>, out: &mut Vec<Effect>) {
        for Recorded { entry, output } in log {
            let on_disk = self.reads.as_mut().and_then(|reads| reads.follow(&entry.event, output.as_ref()));
            if let Channel::Open(sender) = &mut self.channel {
                let short = on_disk.map(|offset| without_data(&entry, offset));
                sender.append(short.as_ref().unwrap_or(&entry)).expect("a short entry");
            }
            if self.bug == Some(Bug::OutputBeforeAck)
                && let (Some(output), false) = (&output, self.alone)
            {
                self.let_go(local_ns, entry.seq, output.clone(), out);
                self.leaked = entry.seq;
            }
            let bytes = 16 + output.as_ref().map_or(0, Output::len);
            self.step(local_ns, PrimaryEvent::Appended { seq: entry.seq, output, bytes }, out);
        }
    }

    fn flush(&mut self, local_ns: u64, out: &mut Vec<Effect>) {
        let Channel::Open(sender) = &mut self.channel else { return };
        let mut bytes = Vec::new();
        sender.flush(self.ft.released(), &mut bytes);
        if bytes.is_empty() {
            return;
        }
        out.push(Effect::Bytes(bytes));
        if self.bug == Some(Bug::AckBeforeReceipt) {
            let (received, executed) = (sender.sent(), sender.executed());
            sender.on_ack(Ack { received, executed }).expect("it was sent");
            self.step(local_ns, PrimaryEvent::Acked { received, executed }, out);
        }
    }

    fn let_go(&mut self, local_ns: u64, seq: Seq, output: Output, out: &mut Vec<Effect>) {
        if seq <= self.leaked {
            return;
        }
        let request = match &output {
            Output::Disk(request) => Some(request.clone()),
            Output::Net(_) | Output::Console(_) => None,
        };
        let (alone, generation) = (self.alone, self.generation);
        out.push(Effect::Release { seq, output, alone, generation });
        if let Some(request) = request {
            if self.in_flight.is_empty() {
                self.disk_asked_ns = local_ns;
            }
            let in_flight = InFlight { seq, request: request.clone(), answered: false };
            self.in_flight.insert(request.id, in_flight);
            out.push(Effect::Disk { generation, request });
        }
    }
}
