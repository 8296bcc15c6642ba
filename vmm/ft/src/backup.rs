//! The backup's side of the protocol: it acks what it holds, keeps outputs until they are known to have gone,
//! and goes live only with the test-and-set won and every entry executed.

use std::collections::BTreeMap;

use logchannel::{Generation, Seq};

use crate::claim::{Claim, ClaimAnswer, Verdict};
use crate::lag::{ExecutionLag, LagMeter};
use crate::peer::{Heartbeat, Peer, Suspicion};
use crate::{Config, Content, HaltReason, Primary};

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupEvent<O> {
    /// The backup has the whole machine as it was after entry `seq` (0: as it starts), of a primary that
    /// holds `generation`. From here on it may go live.
    Joined {
        /// The generation that the primary holds.
        generation: Generation,
        /// The last entry contained in the machine.
        seq: Seq,
        /// Requests that were in flight then: their entries and contents, in order.
        outstanding: Vec<(Seq, O)>,
    },
    /// Every entry up to `up_to` arrived. Also to be sent when only `released` is news.
    Received {
        /// The entry.
        up_to: Seq,
        /// The primary said that the outputs up to this entry have gone.
        released: Seq,
        /// Those of the new entries whose data this backup has to read from the shared disk. The first of
        /// them, and all after it, count as received only when it has been `Fetched`.
        reads: Vec<Seq>,
    },
    /// The data of an entry was read from the shared disk, and is what the entry says.
    Fetched {
        /// The entry.
        seq: Seq,
    },
    /// The replayer executed the next entry.
    Executed {
        /// Its number.
        seq: Seq,
        /// The output that it stands for.
        output: Option<O>,
        /// The request that it completed.
        completed: Option<u64>,
    },
    /// A heartbeat of the primary.
    Heartbeat(Heartbeat),
    /// The logging channel broke.
    ChannelBroken,
    /// The primary ended together with its guest; `last` is the last entry of the log.
    Goodbye {
        /// The entry.
        last: Seq,
    },
    /// Among the entries that came is `HandOver`: the primary's guest stands still after entry `last`.
    HandOver {
        /// The entry.
        last: Seq,
    },
    /// The primary asks whether this backup reaches the disk server.
    AskedForDisk {
        /// The question's number.
        number: u64,
    },
    /// The disk server answered something just now.
    DiskAnswered,
    /// The disk server's answer to the claim with `expect`.
    ClaimAnswer {
        /// Of the claim.
        expect: Generation,
        /// The answer.
        answer: ClaimAnswer,
    },
    /// The replayer found a divergence, or failed: this machine can never go live.
    Diverged,
    /// Time passed. To be sent at least every heartbeat interval, after whatever arrived before.
    Tick,
}

/// What to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupAction<O> {
    /// Send an ack on the logging channel.
    SendAck {
        /// Every entry up to this one is held.
        received: Seq,
        /// Every entry up to this one was executed.
        executed: Seq,
    },
    /// Send a heartbeat over UDP.
    SendHeartbeat(Heartbeat),
    /// Tell the primary on the logging channel that this backup left the pair.
    SendLeft {
        /// Why.
        reason: HaltReason,
    },
    /// Ask the disk server something, and tell by `DiskAnswered`.
    QueryDisk,
    /// Answer the primary's question on the logging channel.
    SendDiskReach {
        /// The question's number.
        number: u64,
        /// The disk server answered since.
        reaches: bool,
    },
    /// Close the logging channel: this pairing is over. What arrives afterwards must not be acked, and what
    /// arrived but is not `Backup::received` yet is to be dropped: it was not acked either.
    CloseChannel,
    /// Ask the disk server for test-and-set, and answer with `ClaimAnswer`.
    Claim {
        /// The generation that this process believes to be current.
        expect: Generation,
        /// This process.
        claimant: u128,
    },
    /// Go live: this process holds `generation`, and every entry was executed. Turn the replayer into a
    /// recorder and this into a primary (`into_primary`), log `GoLive`, announce the guest's address, and
    /// send `resend`.
    GoLive {
        /// The generation won.
        generation: Generation,
        /// Outputs that the primary has not reported as gone, and requests that were not completed.
        resend: Vec<(Seq, O)>,
    },
    /// Stop this process' part in the pair, for good.
    Halt {
        /// Why.
        reason: HaltReason,
    },
}

/// Where the backup is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupState {
    /// It has no whole machine yet.
    Joining,
    /// It follows the log.
    Following,
    /// The primary is given up; the disk server has not answered yet.
    Claiming(Suspicion),
    /// It won; the rest of the log is being executed.
    Draining,
    /// It went live.
    Live,
    /// Stopped for good.
    Halted(HaltReason),
}

#[derive(Debug, Clone)]
enum Mode {
    Joining,
    Following(Peer),
    Claiming { claim: Claim, suspicion: Suspicion },
    Draining { generation: Generation },
    Live,
    Halted(HaltReason),
}

/// The backup.
#[derive(Debug, Clone)]
pub struct Backup<O> {
    config: Config,
    generation: Generation,
    mode: Mode,
    /// The last entry that came.
    arrived: Seq,
    /// Entries that came and whose data is not here yet, with the time since when it is missing.
    reads: BTreeMap<Seq, u64>,
    /// The last entry of those that are whole with all before them.
    received: Seq,
    executed: Seq,
    released: Seq,
    /// The last ack sent.
    acked: (Seq, Seq),
    /// Outputs not known to have gone, and requests not completed, by entry.
    kept: BTreeMap<Seq, O>,
    kept_bytes: usize,
    /// Entry of each request not completed.
    requests: BTreeMap<u64, Seq>,
    lag: LagMeter,
    goodbye: bool,
    /// The primary's guest stands still after this entry.
    handed_over: Option<Seq>,
    /// The primary's question about the disk server, and when it came.
    asked: Option<(u64, u64)>,
    now_ns: u64,
}

impl<O: Content> Backup<O> {
    /// A backup that has nothing yet.
    pub fn new(config: Config, now_ns: u64) -> Self {
        Self {
            config,
            generation: 0,
            mode: Mode::Joining,
            arrived: 0,
            reads: BTreeMap::new(),
            received: 0,
            executed: 0,
            released: 0,
            acked: (0, 0),
            kept: BTreeMap::new(),
            kept_bytes: 0,
            requests: BTreeMap::new(),
            lag: LagMeter::default(),
            goodbye: false,
            handed_over: None,
            asked: None,
            now_ns,
        }
    }

    /// Where it is.
    pub fn state(&self) -> BackupState {
        match &self.mode {
            Mode::Joining => BackupState::Joining,
            Mode::Following(_) => BackupState::Following,
            Mode::Claiming { suspicion, .. } => BackupState::Claiming(*suspicion),
            Mode::Draining { .. } => BackupState::Draining,
            Mode::Live => BackupState::Live,
            Mode::Halted(reason) => BackupState::Halted(reason.clone()),
        }
    }

    /// The generation of the pair, or the one won since.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The last entry held: it is here with all before it, and with their data.
    pub fn received(&self) -> Seq {
        self.received
    }

    /// The last entry executed.
    pub fn executed(&self) -> Seq {
        self.executed
    }

    /// How far execution is behind what was received.
    pub fn lag(&self) -> ExecutionLag {
        self.lag.lag(self.now_ns)
    }

    /// How many outputs are kept.
    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    /// When `Tick` is needed at the latest.
    pub fn next_tick_ns(&self) -> u64 {
        match &self.mode {
            Mode::Following(peer) => {
                let silent_at_ns = peer.silent_at_ns(self.config.suspect_after_ns);
                peer.send_at_ns().min(silent_at_ns).min(self.leave_at_ns())
            }
            Mode::Claiming { claim, .. } => claim.ask_at_ns(),
            Mode::Joining | Mode::Draining { .. } | Mode::Live | Mode::Halted(_) => u64::MAX,
        }
    }

    /// The primary that this backup became. Panics unless it went live.
    pub fn into_primary(self) -> Primary<O> {
        assert!(matches!(self.mode, Mode::Live), "only a backup that went live becomes a primary");
        assert_eq!(self.executed, self.received, "every entry is executed before going live");
        Primary::alone(self.config, self.generation, self.executed, self.now_ns)
    }

    /// Takes in one event; appends what is to be done to `actions`. `now_ns` is the host's monotonic clock.
    pub fn step(&mut self, now_ns: u64, event: BackupEvent<O>, actions: &mut Vec<BackupAction<O>>) {
        self.now_ns = self.now_ns.max(now_ns);
        if matches!(self.mode, Mode::Halted(_) | Mode::Live) {
            return;
        }
        match event {
            BackupEvent::Joined { generation, seq, outstanding } => {
                self.join(generation, seq, outstanding, actions);
            }
            BackupEvent::Received { up_to, released, reads } => {
                self.receive(up_to, released, reads, actions);
            }
            BackupEvent::Fetched { seq } => self.fetched(seq, actions),
            BackupEvent::Executed { seq, output, completed } => {
                self.execute(seq, output, completed, actions);
            }
            BackupEvent::Heartbeat(beat) => {
                if let Mode::Following(peer) = &mut self.mode {
                    peer.heartbeat(beat, self.now_ns);
                }
            }
            BackupEvent::ChannelBroken => self.suspect(Suspicion::ChannelBroken, actions),
            BackupEvent::Goodbye { last } => self.said_goodbye(last),
            BackupEvent::HandOver { last } => self.handed_over = Some(last),
            BackupEvent::AskedForDisk { number } => self.asked_for_disk(number, actions),
            BackupEvent::DiskAnswered => self.answer_about_disk(true, actions),
            BackupEvent::ClaimAnswer { expect, answer } => self.answered(expect, answer, actions),
            BackupEvent::Diverged => self.leave(HaltReason::Diverged, actions),
            BackupEvent::Tick => self.tick(actions),
        }
        self.finish(actions);
    }

    fn join(
        &mut self,
        generation: Generation,
        seq: Seq,
        outstanding: Vec<(Seq, O)>,
        actions: &mut Vec<BackupAction<O>>,
    ) {
        if !matches!(self.mode, Mode::Joining) {
            return;
        }
        let fits = |pair: &[(Seq, O)]| pair.iter().all(|(of, o)| *of <= seq && o.request().is_some());
        let ordered = outstanding.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if generation == 0 || !fits(&outstanding) || !ordered {
            tracing::error!(generation, seq, "the primary describes what cannot be: not joining");
            return self.halt(HaltReason::NeverJoined, actions);
        }
        self.generation = generation;
        (self.arrived, self.received, self.executed, self.released) = (seq, seq, seq, seq);
        self.acked = (seq, seq);
        self.lag = LagMeter::new(seq);
        for (of, output) in outstanding {
            self.keep(of, output);
        }
        self.mode = Mode::Following(Peer::new(generation, self.now_ns));
    }

    /// Entries are acked on receipt. Once the primary is given up nothing is acked any more: the end of the
    /// log must stay where this process believes it to be.
    fn receive(&mut self, up_to: Seq, released: Seq, reads: Vec<Seq>, actions: &mut Vec<BackupAction<O>>) {
        let Mode::Following(peer) = &mut self.mode else { return };
        if self.goodbye {
            return;
        }
        assert!(up_to >= self.arrived, "received {up_to} after {}", self.arrived);
        let new = |seq: &Seq| (self.arrived + 1..=up_to).contains(seq);
        assert!(reads.iter().all(new), "reads {reads:?} of entries {}..={up_to}", self.arrived + 1);
        peer.heard(self.now_ns);
        self.arrived = up_to;
        self.reads.extend(reads.into_iter().map(|seq| (seq, self.now_ns)));
        self.hold();
        if released > self.acked.0.max(self.released) {
            tracing::error!(released, acked = self.acked.0, "the primary let go what was not acked");
            return self.suspect(Suspicion::Misbehaves, actions);
        }
        self.forget_released(released);
        self.ack(actions);
    }

    fn asked_for_disk(&mut self, number: u64, actions: &mut Vec<BackupAction<O>>) {
        if let Mode::Following(_) = self.mode {
            self.asked = Some((number, self.now_ns));
            actions.push(BackupAction::QueryDisk);
        }
    }

    fn answer_about_disk(&mut self, reaches: bool, actions: &mut Vec<BackupAction<O>>) {
        if let Mode::Following(_) = self.mode
            && let Some((number, _)) = self.asked.take()
        {
            actions.push(BackupAction::SendDiskReach { number, reaches });
        }
    }

    fn fetched(&mut self, seq: Seq, actions: &mut Vec<BackupAction<O>>) {
        // Once the primary is given up, what was missing then stays lost.
        if matches!(self.mode, Mode::Following(_)) && self.reads.remove(&seq).is_some() {
            self.hold();
            self.ack(actions);
        }
    }

    /// Counts as received what is whole, with all before it.
    fn hold(&mut self) {
        let whole = self.reads.first_key_value().map_or(self.arrived, |(seq, _)| seq - 1);
        assert!(whole >= self.received, "received {whole} after {}", self.received);
        self.received = whole;
        self.lag.added(whole, self.now_ns);
    }

    /// When a backup leaves that cannot read the disk.
    fn leave_at_ns(&self) -> u64 {
        let oldest = self.reads.first_key_value();
        oldest.map_or(u64::MAX, |(_, since_ns)| since_ns.saturating_add(self.config.read_timeout_ns))
    }

    fn ack(&mut self, actions: &mut Vec<BackupAction<O>>) {
        if self.acked != (self.received, self.executed) {
            self.acked = (self.received, self.executed);
            actions.push(BackupAction::SendAck { received: self.received, executed: self.executed });
        }
    }

    fn execute(
        &mut self,
        seq: Seq,
        output: Option<O>,
        completed: Option<u64>,
        actions: &mut Vec<BackupAction<O>>,
    ) {
        assert!(!matches!(self.mode, Mode::Joining), "nothing is executed before joining");
        assert_eq!(seq, self.executed + 1, "entries are executed in order");
        assert!(seq <= self.received, "entry {seq} executed, {} received", self.received);
        self.executed = seq;
        self.lag.executed(seq);
        if let Some(of) = completed.and_then(|id| self.requests.remove(&id)) {
            self.forget(of);
        }
        let Some(output) = output else { return };
        if seq > self.released || output.request().is_some() {
            self.keep(seq, output);
        }
        if self.kept_bytes > self.config.max_kept_bytes {
            self.suspect(Suspicion::Misbehaves, actions);
        }
    }

    fn keep(&mut self, seq: Seq, output: O) {
        if let Some(id) = output.request() {
            self.requests.insert(id, seq);
        }
        self.kept_bytes += output.bytes();
        let before = self.kept.insert(seq, output);
        assert!(before.is_none(), "one output for entry {seq}");
    }

    fn forget(&mut self, seq: Seq) {
        if let Some(output) = self.kept.remove(&seq) {
            self.kept_bytes -= output.bytes();
        }
    }

    /// That a request was released does not say that it took effect: those stay until they are completed.
    fn forget_released(&mut self, released: Seq) {
        if released <= self.released {
            return;
        }
        let range = self.released + 1..=released;
        let gone: Vec<Seq> =
            self.kept.range(range).filter(|(_, o)| o.request().is_none()).map(|(seq, _)| *seq).collect();
        self.released = released;
        gone.into_iter().for_each(|seq| self.forget(seq));
    }

    fn suspect(&mut self, suspicion: Suspicion, actions: &mut Vec<BackupAction<O>>) {
        match &self.mode {
            Mode::Joining => return self.halt(HaltReason::NeverJoined, actions),
            Mode::Following(_) if !self.goodbye => {}
            _ => return,
        }
        tracing::warn!(?suspicion, generation = self.generation, "the primary is given up: claiming");
        self.reads.clear();
        self.arrived = self.received;
        actions.push(BackupAction::CloseChannel);
        let claim = Claim::new(self.generation, self.config.claimant, self.now_ns);
        self.mode = Mode::Claiming { claim, suspicion };
        self.ask(actions);
    }

    fn ask(&mut self, actions: &mut Vec<BackupAction<O>>) {
        if let Mode::Claiming { claim, .. } = &mut self.mode
            && let Some((expect, claimant)) = claim.due(self.now_ns, self.config.claim_retry_ns)
        {
            actions.push(BackupAction::Claim { expect, claimant });
        }
    }

    fn answered(&mut self, expect: Generation, answer: ClaimAnswer, actions: &mut Vec<BackupAction<O>>) {
        let Mode::Claiming { claim, .. } = &self.mode else { return };
        match claim.judge(expect, answer) {
            Verdict::Open => {}
            Verdict::Lost { generation, holder } => {
                self.halt(HaltReason::Lost { generation, holder }, actions);
            }
            Verdict::Won(generation) => self.mode = Mode::Draining { generation },
        }
    }

    fn said_goodbye(&mut self, last: Seq) {
        if !matches!(self.mode, Mode::Following(_)) {
            return;
        }
        match last == self.received {
            true => self.goodbye = true,
            false => tracing::error!(last, received = self.received, "goodbye at another entry: ignored"),
        }
    }

    fn leave(&mut self, reason: HaltReason, actions: &mut Vec<BackupAction<O>>) {
        if let Mode::Following(_) = self.mode {
            actions.push(BackupAction::SendLeft { reason: reason.clone() });
            actions.push(BackupAction::CloseChannel);
        }
        self.halt(reason, actions);
    }

    fn tick(&mut self, actions: &mut Vec<BackupAction<O>>) {
        self.ask(actions);
        if self.asked.is_some_and(|(_, at_ns)| self.now_ns - at_ns > self.config.disk_timeout_ns) {
            self.answer_about_disk(false, actions);
        }
        let leave_at_ns = self.leave_at_ns();
        let Mode::Following(peer) = &mut self.mode else { return };
        if peer.silent(self.now_ns, self.config.suspect_after_ns) {
            return self.suspect(Suspicion::Silent, actions);
        }
        if self.now_ns >= leave_at_ns {
            return self.leave(HaltReason::CannotRead, actions);
        }
        if let Some(beat) = peer.due(self.now_ns, self.config.heartbeat_every_ns) {
            actions.push(BackupAction::SendHeartbeat(beat));
        }
        self.ack(actions);
    }

    /// What waits for the last entry to be executed.
    fn finish(&mut self, actions: &mut Vec<BackupAction<O>>) {
        if self.executed != self.received {
            return;
        }
        match &self.mode {
            Mode::Following(_) if self.goodbye => self.halt(HaltReason::GuestEnded, actions),
            // The rest of the log is here, and executed: the pair goes on as after a failure.
            Mode::Following(_) if self.handed_over.is_some_and(|last| self.executed >= last) => {
                self.suspect(Suspicion::HandedOver, actions);
            }
            Mode::Draining { generation } => {
                let generation = *generation;
                assert!(generation > self.generation, "a generation never decreases");
                self.generation = generation;
                self.mode = Mode::Live;
                self.kept_bytes = 0;
                let resend = std::mem::take(&mut self.kept).into_iter().collect();
                actions.push(BackupAction::GoLive { generation, resend });
            }
            _ => {}
        }
    }

    fn halt(&mut self, reason: HaltReason, actions: &mut Vec<BackupAction<O>>) {
        tracing::info!(%reason, generation = self.generation, "the backup halts");
        self.mode = Mode::Halted(reason.clone());
        actions.push(BackupAction::Halt { reason });
    }
}

#[cfg(test)]
#[path = "backup_tests.rs"]
mod tests;
