//! The primary's side of the protocol: it lets outputs go as their entries are acked, gives up a backup that
//! is lost, and goes on alone only after it won the test-and-set.

use std::collections::VecDeque;

use logchannel::{Generation, Seq};

use crate::claim::{Claim, ClaimAnswer, Verdict};
use crate::hand_over::{Inquiry, Leaving};
use crate::lag::{ExecutionLag, LagMeter, Throttle};
use crate::peer::{Heartbeat, Peer, Suspicion};
use crate::{Config, Content, HaltReason, OutputGate};

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrimaryEvent<O> {
    /// The next entry was appended to the log (and, with a backup, handed to the logging channel).
    Appended {
        /// Its number.
        seq: Seq,
        /// The output that it stands for.
        output: Option<O>,
        /// Its size in the log, in bytes.
        bytes: usize,
    },
    /// The backup's ack, from the logging channel.
    Acked {
        /// It holds every entry up to this one.
        received: Seq,
        /// It executed every entry up to this one.
        executed: Seq,
    },
    /// A heartbeat of the backup.
    Heartbeat(Heartbeat),
    /// The logging channel broke.
    ChannelBroken,
    /// The backup said that it left the pair and will never go live: it diverged, or was told to stop.
    BackupLeft,
    /// A new backup has the whole machine as it was after entry `seq`, the last one appended, or is being
    /// sent the last of it: from here on outputs wait for its acks. Only when alone; ignored otherwise.
    BackupJoined {
        /// The last entry appended.
        seq: Seq,
    },
    /// The disk server's answer to the claim with `expect`.
    ClaimAnswer {
        /// Of the claim.
        expect: Generation,
        /// The answer.
        answer: ClaimAnswer,
    },
    /// The disk server refused a request because `generation` is newer than the one it was sent under.
    Fenced {
        /// The generation there is now.
        generation: Generation,
    },
    /// The disk server answered something at `at_ns`. Also to be sent late, before a `Tick`.
    DiskAnswered {
        /// Host nanoseconds.
        at_ns: u64,
    },
    /// The backup's answer to `AskDisk`.
    DiskReach {
        /// The question's number.
        number: u64,
        /// Whether it reaches the disk server.
        reaches: bool,
    },
    /// Somebody wants the backup to go on instead. Only with a backup; ignored otherwise.
    HandOver,
    /// The guest stands still, and the entry `HandOver` was appended, as the last one so far.
    HandedOver,
    /// The guest ended, by itself or by `Shutdown`, and its last entry was appended.
    GuestEnded,
    /// Time passed. To be sent at least every heartbeat interval, after whatever arrived before.
    Tick,
}

/// What to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrimaryAction<O> {
    /// Let this output go.
    Release {
        /// Its entry.
        seq: Seq,
        /// The output.
        output: O,
    },
    /// Tell the backup on the logging channel that the outputs up to this entry went. Also good to send with
    /// each batch of entries: `Primary::released`.
    SendReleased {
        /// The entry.
        up_to: Seq,
    },
    /// Send a heartbeat over UDP.
    SendHeartbeat(Heartbeat),
    /// Ask the disk server for test-and-set, and answer with `ClaimAnswer`.
    Claim {
        /// The generation that this process believes to be current.
        expect: Generation,
        /// This process.
        claimant: u128,
    },
    /// This process holds `generation` alone: log `GoLive`, use it for disk requests from now on, and repeat
    /// under it those that are in flight. Comes before the releases that it allows.
    GoLive {
        /// The generation won.
        generation: Generation,
    },
    /// Ask the backup on the logging channel whether it reaches the disk server.
    AskDisk {
        /// To come back with the answer.
        number: u64,
    },
    /// Stop the guest where it stands, append the entry `HandOver`, and tell by `HandedOver`. Nothing is
    /// appended after it while `may_append` says no.
    StopForHandOver,
    /// Close the logging channel: this pairing is over.
    CloseChannel,
    /// Tell the backup that the pair ends with entry `last`, which it has acked: it must not take over.
    SendGoodbye {
        /// The last entry of the log.
        last: Seq,
    },
    /// Stop the guest and this process' part in the pair, for good.
    Halt {
        /// Why.
        reason: HaltReason,
    },
    /// Let the guest stand still for `pause_ns` of every `THROTTLE_PERIOD_NS`.
    Throttle {
        /// The part, in nanoseconds.
        pause_ns: u64,
    },
}

/// Where the primary is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrimaryState {
    /// A backup follows; outputs wait for its acks.
    Replicating,
    /// The guest stands still, for good unless the backup does not go on: it was handed over.
    HandingOver,
    /// The backup is given up; nothing goes until the disk server has answered.
    Claiming(Suspicion),
    /// This process holds its generation alone; outputs go at once.
    Alone,
    /// Stopped for good.
    Halted(HaltReason),
}

#[derive(Debug, Clone)]
enum Mode {
    Replicating(Pairing),
    Claiming { claim: Claim, suspicion: Suspicion, handed_over: bool },
    Alone,
    Halted(HaltReason),
}

/// What concerns one backup.
#[derive(Debug, Clone)]
struct Pairing {
    peer: Peer,
    acked: Seq,
    executed: Seq,
    /// Entries without ack, oldest first: number, size, when.
    unacked: VecDeque<(Seq, usize, u64)>,
    unacked_bytes: usize,
    /// What the backup was told.
    told_released: Seq,
    lag: LagMeter,
    inquiry: Inquiry,
    leaving: Option<Leaving>,
}

impl Pairing {
    fn is_stopped(&self) -> bool {
        self.leaving.is_some_and(Leaving::is_stopped)
    }
}

/// The primary.
#[derive(Debug, Clone)]
pub struct Primary<O> {
    config: Config,
    generation: Generation,
    mode: Mode,
    gate: OutputGate<O>,
    appended: Seq,
    released: Seq,
    throttle: Throttle,
    guest_ended: bool,
    /// When the disk server answered last.
    disk_answered_ns: u64,
    /// Questions asked about it.
    inquiries: u64,
    now_ns: u64,
}

impl<O: Content> Primary<O> {
    /// A primary that holds `generation` alone, with a log whose last entry is `appended` (0: none). To have
    /// a backup from the first entry on, send `BackupJoined { seq: 0 }` before the guest starts.
    pub fn alone(config: Config, generation: Generation, appended: Seq, now_ns: u64) -> Self {
        assert!(generation > 0, "a primary starts by winning a generation");
        Self {
            gate: OutputGate::new(config.max_gated_bytes),
            config,
            generation,
            mode: Mode::Alone,
            appended,
            released: appended,
            throttle: Throttle::default(),
            guest_ended: false,
            disk_answered_ns: now_ns,
            inquiries: 0,
            now_ns,
        }
    }

    /// Where it is.
    pub fn state(&self) -> PrimaryState {
        match &self.mode {
            Mode::Replicating(pairing) if pairing.is_stopped() => PrimaryState::HandingOver,
            Mode::Replicating(_) => PrimaryState::Replicating,
            Mode::Claiming { suspicion, .. } => PrimaryState::Claiming(*suspicion),
            Mode::Alone => PrimaryState::Alone,
            Mode::Halted(reason) => PrimaryState::Halted(reason.clone()),
        }
    }

    /// The generation that this process won last.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The last entry appended.
    pub fn appended(&self) -> Seq {
        self.appended
    }

    /// The last entry that the backup acked; alone, the last one appended when it was still there.
    pub fn acked(&self) -> Option<Seq> {
        match &self.mode {
            Mode::Replicating(pairing) => Some(pairing.acked),
            Mode::Claiming { .. } | Mode::Alone | Mode::Halted(_) => None,
        }
    }

    /// Every output up to this entry was let go.
    pub fn released(&self) -> Seq {
        self.released
    }

    /// How many outputs wait.
    pub fn gated(&self) -> usize {
        self.gate.len()
    }

    /// How far the backup's execution is behind, as its acks tell.
    pub fn lag(&self) -> ExecutionLag {
        match &self.mode {
            Mode::Replicating(pairing) => pairing.lag.lag(self.now_ns),
            Mode::Claiming { .. } | Mode::Alone | Mode::Halted(_) => ExecutionLag::default(),
        }
    }

    /// Whether the guest may run on. While not, it stalls: a buffer is full, or this process halted.
    pub fn may_append(&self) -> bool {
        match &self.mode {
            Mode::Alone => true,
            Mode::Halted(_) => false,
            Mode::Claiming { handed_over: true, .. } => false,
            Mode::Claiming { .. } => {
                !self.gate.is_full() && self.gate.len() < self.config.max_unacked_entries
            }
            Mode::Replicating(pairing) => {
                !pairing.is_stopped()
                    && !self.gate.is_full()
                    && pairing.unacked.len() < self.config.max_unacked_entries
                    && pairing.unacked_bytes < self.config.max_unacked_bytes
                    && self.appended - pairing.executed < self.config.max_unexecuted_entries
            }
        }
    }

    /// Whether the guest is to be stopped and `HandOver` appended.
    pub fn hand_over_requested(&self) -> bool {
        matches!(&self.mode, Mode::Replicating(pairing) if pairing.leaving == Some(Leaving::Requested))
    }

    /// When `Tick` is needed at the latest.
    pub fn next_tick_ns(&self) -> u64 {
        match &self.mode {
            Mode::Replicating(pairing) => {
                let silent_at_ns = pairing.peer.silent_at_ns(self.config.suspect_after_ns);
                pairing.peer.send_at_ns().min(silent_at_ns)
            }
            Mode::Claiming { claim, .. } => claim.ask_at_ns(),
            Mode::Alone | Mode::Halted(_) => u64::MAX,
        }
    }

    /// Takes in one event; appends what is to be done to `actions`. `now_ns` is the host's monotonic clock.
    pub fn step(&mut self, now_ns: u64, event: PrimaryEvent<O>, actions: &mut Vec<PrimaryAction<O>>) {
        self.now_ns = self.now_ns.max(now_ns);
        if matches!(self.mode, Mode::Halted(_)) {
            return;
        }
        match event {
            PrimaryEvent::Appended { seq, output, bytes } => self.append(seq, output, bytes, actions),
            PrimaryEvent::Acked { received, executed } => self.acked_by_backup(received, executed, actions),
            PrimaryEvent::Heartbeat(beat) => {
                if let Mode::Replicating(pairing) = &mut self.mode {
                    pairing.peer.heartbeat(beat, self.now_ns);
                }
            }
            PrimaryEvent::ChannelBroken => self.broken(actions),
            PrimaryEvent::BackupLeft => self.suspect(Suspicion::Left, actions),
            PrimaryEvent::BackupJoined { seq } => self.join(seq),
            PrimaryEvent::ClaimAnswer { expect, answer } => self.answered(expect, answer, actions),
            PrimaryEvent::Fenced { generation } => self.fenced(generation, actions),
            PrimaryEvent::DiskAnswered { at_ns } => {
                self.disk_answered_ns = self.disk_answered_ns.max(at_ns.min(self.now_ns));
            }
            PrimaryEvent::DiskReach { number, reaches } => self.disk_reach(number, reaches),
            PrimaryEvent::HandOver => self.hand_over(actions),
            PrimaryEvent::HandedOver => self.handed_over(),
            PrimaryEvent::GuestEnded => self.guest_ended = true,
            PrimaryEvent::Tick => self.tick(actions),
        }
        self.release(actions);
        self.end_if_done(actions);
    }

    fn append(&mut self, seq: Seq, output: Option<O>, bytes: usize, actions: &mut Vec<PrimaryAction<O>>) {
        assert_eq!(seq, self.appended + 1, "entries are appended in order");
        assert!(!self.is_stopped(), "entry {seq} after the guest was handed over");
        self.appended = seq;
        if let Mode::Replicating(pairing) = &mut self.mode {
            pairing.unacked.push_back((seq, bytes, self.now_ns));
            pairing.unacked_bytes += bytes;
            pairing.lag.added(seq, self.now_ns);
        }
        match (output, &self.mode) {
            (Some(output), Mode::Alone) => {
                assert!(self.gate.is_empty(), "nothing is gated while alone");
                actions.push(PrimaryAction::Release { seq, output });
            }
            (Some(output), _) => self.gate.hold(seq, output),
            (None, _) => {}
        }
    }

    fn acked_by_backup(&mut self, received: Seq, executed: Seq, actions: &mut Vec<PrimaryAction<O>>) {
        let Mode::Replicating(pairing) = &mut self.mode else { return };
        if received > self.appended || executed > received {
            tracing::error!(received, executed, appended = self.appended, "the backup acks what cannot be");
            return self.suspect(Suspicion::Misbehaves, actions);
        }
        pairing.peer.heard(self.now_ns);
        if let Some(Leaving::After { progress_ns, .. }) = &mut pairing.leaving
            && (received > pairing.acked || executed > pairing.executed)
        {
            *progress_ns = self.now_ns;
        }
        pairing.acked = pairing.acked.max(received);
        pairing.executed = pairing.executed.max(executed);
        pairing.lag.executed(executed);
        while let Some(&(_, bytes, _)) = pairing.unacked.front().filter(|entry| entry.0 <= pairing.acked) {
            pairing.unacked.pop_front();
            pairing.unacked_bytes -= bytes;
        }
    }

    /// Lets go what may go in the present mode: while claiming, nothing.
    fn release(&mut self, actions: &mut Vec<PrimaryAction<O>>) {
        let up_to = match &self.mode {
            Mode::Replicating(pairing) => pairing.acked,
            Mode::Alone => self.appended,
            Mode::Claiming { .. } | Mode::Halted(_) => return,
        };
        assert!(up_to <= self.appended, "acked {up_to} of {} entries", self.appended);
        assert!(self.released <= up_to, "released {} of {up_to} acked entries", self.released);
        while let Some((seq, output)) = self.gate.release(up_to) {
            actions.push(PrimaryAction::Release { seq, output });
        }
        self.released = up_to;
    }

    fn suspect(&mut self, suspicion: Suspicion, actions: &mut Vec<PrimaryAction<O>>) {
        let Mode::Replicating(pairing) = &self.mode else { return };
        let handed_over = pairing.is_stopped();
        tracing::warn!(?suspicion, generation = self.generation, "the backup is given up: claiming");
        actions.push(PrimaryAction::CloseChannel);
        let claim = Claim::new(self.generation, self.config.claimant, self.now_ns);
        self.mode = Mode::Claiming { claim, suspicion, handed_over };
        self.ask(actions);
        if let Some(pause_ns) = self.throttle.lift() {
            actions.push(PrimaryAction::Throttle { pause_ns });
        }
    }

    /// A backup that was handed over to closes the channel when it claims: it is left the time that silence
    /// takes, and only then is it given up.
    fn broken(&mut self, actions: &mut Vec<PrimaryAction<O>>) {
        if let Mode::Replicating(pairing) = &mut self.mode
            && let Some(Leaving::After { closed, .. }) = &mut pairing.leaving
        {
            if !std::mem::replace(closed, true) {
                pairing.peer.heard(self.now_ns);
                actions.push(PrimaryAction::CloseChannel);
            }
            return;
        }
        self.suspect(Suspicion::ChannelBroken, actions);
    }

    /// Whether the guest stands still because it was handed over, and nobody won since.
    fn is_stopped(&self) -> bool {
        match &self.mode {
            Mode::Replicating(pairing) => pairing.is_stopped(),
            Mode::Claiming { handed_over, .. } => *handed_over,
            Mode::Alone | Mode::Halted(_) => false,
        }
    }

    fn disk_reach(&mut self, number: u64, reaches: bool) {
        let Mode::Replicating(pairing) = &mut self.mode else { return };
        match pairing.inquiry {
            Inquiry::Asked { number: asked, .. } if asked == number && reaches => {
                pairing.inquiry = Inquiry::Reaches { since_ns: self.now_ns };
            }
            // Asked again after a while.
            _ => {}
        }
    }

    /// Looks whether the disk server answers here, and if not, whether it does at the backup.
    fn inquire(&mut self, actions: &mut Vec<PrimaryAction<O>>) {
        let Mode::Replicating(pairing) = &mut self.mode else { return };
        if pairing.leaving.is_some() || self.guest_ended {
            return;
        }
        if self.now_ns - self.disk_answered_ns <= self.config.disk_timeout_ns {
            pairing.inquiry = Inquiry::Idle;
            return;
        }
        let ask = match pairing.inquiry {
            Inquiry::Idle => true,
            Inquiry::Asked { at_ns, .. } => self.now_ns - at_ns > self.config.disk_timeout_ns,
            // A disk server that comes back answers both: it is left the time to do so.
            Inquiry::Reaches { since_ns } if self.now_ns - since_ns > self.config.suspect_after_ns => {
                tracing::warn!("the disk server answers the backup and not this primary: handing over");
                return self.hand_over(actions);
            }
            Inquiry::Reaches { .. } => false,
        };
        if ask {
            self.inquiries += 1;
            let number = self.inquiries;
            pairing.inquiry = Inquiry::Asked { number, at_ns: self.now_ns };
            actions.push(PrimaryAction::AskDisk { number });
        }
    }

    fn hand_over(&mut self, actions: &mut Vec<PrimaryAction<O>>) {
        if let Mode::Replicating(pairing) = &mut self.mode
            && pairing.leaving.is_none()
            && !self.guest_ended
        {
            pairing.leaving = Some(Leaving::Requested);
            actions.push(PrimaryAction::StopForHandOver);
        }
    }

    /// The pairing may have ended meanwhile: then the entry is one like any other.
    fn handed_over(&mut self) {
        if let Mode::Replicating(pairing) = &mut self.mode
            && pairing.leaving == Some(Leaving::Requested)
        {
            let (last, progress_ns) = (self.appended, self.now_ns);
            tracing::info!(last, "handed over: the guest stands still");
            pairing.leaving = Some(Leaving::After { last, progress_ns, closed: false });
        }
    }

    fn ask(&mut self, actions: &mut Vec<PrimaryAction<O>>) {
        if let Mode::Claiming { claim, .. } = &mut self.mode
            && let Some((expect, claimant)) = claim.due(self.now_ns, self.config.claim_retry_ns)
        {
            actions.push(PrimaryAction::Claim { expect, claimant });
        }
    }

    fn answered(&mut self, expect: Generation, answer: ClaimAnswer, actions: &mut Vec<PrimaryAction<O>>) {
        let Mode::Claiming { claim, .. } = &self.mode else { return };
        match claim.judge(expect, answer) {
            Verdict::Open => {}
            Verdict::Lost { generation, holder } => {
                self.halt(HaltReason::Lost { generation, holder }, actions);
            }
            Verdict::Won(generation) => {
                assert!(generation > self.generation, "a generation never decreases");
                self.generation = generation;
                self.mode = Mode::Alone;
                actions.push(PrimaryAction::GoLive { generation });
            }
        }
    }

    /// While claiming, the newer generation may be our own claim, whose answer is still on its way: only the
    /// answer tells. Requests sent before a claim that was won are repeated by whoever sends them.
    fn fenced(&mut self, generation: Generation, actions: &mut Vec<PrimaryAction<O>>) {
        let claiming = matches!(self.mode, Mode::Claiming { .. });
        if generation > self.generation && !claiming {
            self.halt(HaltReason::Fenced { generation }, actions);
        }
    }

    fn join(&mut self, seq: Seq) {
        if !matches!(self.mode, Mode::Alone) || self.guest_ended {
            return;
        }
        assert_eq!(seq, self.appended, "a backup joins after the last entry");
        assert!(self.gate.is_empty(), "nothing is gated while alone");
        self.mode = Mode::Replicating(Pairing {
            peer: Peer::new(self.generation, self.now_ns),
            acked: seq,
            executed: seq,
            unacked: VecDeque::new(),
            unacked_bytes: 0,
            told_released: seq,
            lag: LagMeter::new(seq),
            inquiry: Inquiry::Idle,
            leaving: None,
        });
    }

    fn tick(&mut self, actions: &mut Vec<PrimaryAction<O>>) {
        self.ask(actions);
        self.inquire(actions);
        let Mode::Replicating(pairing) = &mut self.mode else { return };
        if pairing.peer.silent(self.now_ns, self.config.suspect_after_ns) {
            return self.suspect(Suspicion::Silent, actions);
        }
        let oldest_ns = pairing.unacked.front().map_or(self.now_ns, |&(_, _, at_ns)| at_ns);
        let mut closed = false;
        let waits_since_ns = match pairing.leaving {
            // It has all of the log, and is to execute it.
            Some(Leaving::After { progress_ns, closed: is_closed, .. }) => {
                closed = is_closed;
                oldest_ns.min(progress_ns)
            }
            Some(Leaving::Requested) | None => oldest_ns,
        };
        if self.now_ns - waits_since_ns > self.config.ack_timeout_ns {
            return self.suspect(Suspicion::AcksStalled, actions);
        }
        if closed {
            return;
        }
        if let Some(beat) = pairing.peer.due(self.now_ns, self.config.heartbeat_every_ns) {
            actions.push(PrimaryAction::SendHeartbeat(beat));
            if pairing.told_released < self.released {
                pairing.told_released = self.released;
                actions.push(PrimaryAction::SendReleased { up_to: self.released });
            }
        }
        let lag_ns = pairing.lag.lag(self.now_ns).ns;
        if let Some(pause_ns) = self.throttle.control(lag_ns, self.config.lag_target_ns, self.now_ns) {
            actions.push(PrimaryAction::Throttle { pause_ns });
        }
    }

    /// The pair ends together: only once everything that the guest put out has gone.
    fn end_if_done(&mut self, actions: &mut Vec<PrimaryAction<O>>) {
        if !self.guest_ended || self.released != self.appended || self.is_stopped() {
            return;
        }
        match &self.mode {
            Mode::Replicating(_) => actions.push(PrimaryAction::SendGoodbye { last: self.appended }),
            Mode::Alone => {}
            Mode::Claiming { .. } | Mode::Halted(_) => return,
        }
        self.halt(HaltReason::GuestEnded, actions);
    }

    fn halt(&mut self, reason: HaltReason, actions: &mut Vec<PrimaryAction<O>>) {
        tracing::info!(%reason, generation = self.generation, "the primary halts");
        if let Mode::Replicating(_) = self.mode
            && reason != HaltReason::GuestEnded
        {
            actions.push(PrimaryAction::CloseChannel);
        }
        self.mode = Mode::Halted(reason.clone());
        actions.push(PrimaryAction::Halt { reason });
    }
}

#[cfg(test)]
#[path = "primary_tests.rs"]
mod tests;
