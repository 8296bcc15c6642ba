//! The backup's side: `ft::Backup`, the channel's receiver and the received entries behind one lock, and the
//! vCPU thread's replay loop.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use disk_server::client::{DiskAnswer, RequestSender};
use ft::reads::TooManyReads;
use ft::{Backup, BackupAction, BackupEvent, HaltReason};
use logchannel::batch::LogStart;
use logchannel::buffer::{Limits, ReceiveQueue};
use logchannel::heartbeat::Role;
use logchannel::message::DiskReach;
use logchannel::receiver::Receiver;
use logchannel::tcp::{ChannelWriter, Closer};
use logchannel::{Event, Generation, LogEntry, MachineDigest, Output, Seq};
use replay::{Divergence, Machine, Progress, ReplayError, Replayer};

use crate::io::clock::HostClock;
use crate::pair::claims::Claims;
use crate::pair::fetch::{self, Fetch, FetchCounts, Fetched};
use crate::pair::leader::{HeartbeatLink, send_heartbeat};
use crate::pair::tail::ConsoleTail;
use crate::pair::transfer::Transferable;
use crate::recording::sink::Sink;

/// Most entries taken at once by the vCPU thread.
const BATCH: usize = 1024;
/// Longest block without a look around.
const LOOK_AROUND: Duration = Duration::from_millis(500);

/// When the steps of a failover happened, host nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct FailoverTimes {
    /// The primary was given up.
    pub suspected_ns: u64,
    /// The test-and-set was won.
    pub won_ns: u64,
    /// Every entry held was executed.
    pub replayed_ns: u64,
    /// Outputs go again.
    pub live_ns: u64,
    /// Entries that were left to execute when the primary was given up.
    pub entries_left: u64,
}

/// Numbers for `status`.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct FollowerStatus {
    /// Where the protocol is.
    pub state: String,
    /// The generation of the pair.
    pub generation: Generation,
    /// The last entry held.
    pub received: Seq,
    /// The last entry executed.
    pub executed: Seq,
    /// Execution lag, in entries.
    pub lag_entries: u64,
    /// Execution lag, in nanoseconds.
    pub lag_ns: u64,
    /// Outputs kept.
    pub kept: usize,
    /// The last digest compared.
    pub digest: Option<(Seq, MachineDigest)>,
    /// Digests compared.
    pub digests: u64,
    /// Outputs compared.
    pub outputs: u64,
    /// Reads of the shared disk, if this backup makes some.
    pub disk_reads: Option<FetchCounts>,
}

/// What the protocol decided.
enum Verdict {
    Live { generation: Generation, resend: Vec<(Seq, Output)> },
    Halt(HaltReason),
}

struct Inner {
    backup: Option<Backup<Output>>,
    receiver: Receiver,
    writer: Option<ChannelWriter>,
    closer: Option<Closer>,
    heartbeat: Option<HeartbeatLink>,
    queue: ReceiveQueue,
    /// Entries on their way to the queue, if this backup reads the shared disk itself.
    fetch: Option<Fetch>,
    /// Found in them, not in replay.
    divergence: Option<Box<Divergence>>,
    actions: Vec<BackupAction<Output>>,
    /// What the channel has not taken yet.
    bytes: Vec<u8>,
    /// The ack to be sent when it has.
    ack: Option<(Seq, Seq)>,
    verdict: Option<Verdict>,
    ended: bool,
    times: FailoverTimes,
    digest: Option<(Seq, MachineDigest)>,
    digests: u64,
    outputs: u64,
    entry_ns: u64,
}

/// The backup's protocol state, shared by its threads.
pub struct Follower {
    inner: Mutex<Inner>,
    changed: Condvar,
    clock: HostClock,
    claims: Claims,
}

/// The logging channel of a backup.
pub struct FollowLink {
    /// Which machine this backup has.
    pub joined: BackupEvent<Output>,
    /// Where its log continues.
    pub log: LogStart,
    /// Decodes entries, encodes acks.
    pub receiver: Receiver,
    /// Where acks go.
    pub writer: ChannelWriter,
    /// Ends the connection.
    pub closer: Closer,
    /// Heartbeats to the primary.
    pub heartbeat: HeartbeatLink,
    /// Reads of the shared disk, if this backup is to make them itself.
    pub fetch: Option<Fetch>,
}

/// How following ended.
pub enum FollowEnd<M> {
    /// This process holds the generation: it runs the machine now.
    Live {
        /// Protocol state.
        backup: Box<Backup<Output>>,
        /// The machine, every entry executed.
        replayer: Box<Replayer<M>>,
        /// The generation won.
        generation: Generation,
        /// Outputs to send again.
        resend: Vec<(Seq, Output)>,
        /// When what happened.
        times: FailoverTimes,
        /// Its last numbers as a backup.
        status: Box<FollowerStatus>,
        /// When the last entry arrived, host nanoseconds.
        entry_ns: u64,
        /// The recording, which goes on.
        recording: Option<Sink>,
    },
    /// This process stops.
    Halted {
        /// Why.
        reason: HaltReason,
        /// The divergence, if it was one.
        divergence: Option<Box<Divergence>>,
        /// The machine, to look at.
        replayer: Box<Replayer<M>>,
        /// The recording, to be ended.
        recording: Option<Sink>,
    },
}

impl Inner {
    /// Whether no more should be taken from the channel.
    fn is_full(&self) -> bool {
        self.queue.is_full() || self.fetch.as_ref().is_some_and(|fetch| fetch.is_full(&Limits::default()))
    }

    /// Takes entries that arrived; which of them lack their data.
    fn take_in(&mut self, entries: &mut Vec<LogEntry>, now_ns: u64) -> Result<Vec<Seq>, TooManyReads> {
        if let Some(fetch) = &mut self.fetch {
            return fetch.arrive(entries, now_ns);
        }
        if !entries.is_empty() {
            self.entry_ns = now_ns;
        }
        self.queue.push_all(entries);
        Ok(Vec::new())
    }

    /// Hands over to the vCPU thread what the protocol counts as received by now.
    fn hold(&mut self) {
        if let Some(held_up_to) = self.backup.as_ref().map(Backup::received) {
            self.move_held(held_up_to);
        }
    }

    fn move_held(&mut self, held_up_to: Seq) {
        let Some(fetch) = &mut self.fetch else { return };
        while let Some((entry, arrived_ns)) = fetch.next(held_up_to) {
            self.entry_ns = arrived_ns;
            self.queue.push(entry);
        }
    }
}

impl Follower {
    /// A backup that has a machine of the primary.
    pub fn new(mut backup: Backup<Output>, link: FollowLink, claims: Claims, clock: HostClock) -> Self {
        let FollowLink { joined, log, receiver, writer, closer, heartbeat, fetch } = link;
        backup.step(clock.now_ns(), joined, &mut Vec::new());
        let inner = Inner {
            backup: Some(backup),
            receiver,
            writer: Some(writer),
            closer: Some(closer),
            heartbeat: Some(heartbeat),
            queue: ReceiveQueue::new(Limits::default(), log),
            fetch,
            divergence: None,
            actions: Vec::new(),
            bytes: Vec::new(),
            ack: None,
            verdict: None,
            ended: false,
            times: FailoverTimes::default(),
            digest: None,
            digests: 0,
            outputs: 0,
            entry_ns: clock.now_ns(),
        };
        Self { inner: Mutex::new(inner), changed: Condvar::new(), clock, claims }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in an event from any thread.
    pub fn event(&self, event: BackupEvent<Output>) {
        self.step(&mut self.lock(), event);
    }

    /// Takes bytes of the logging channel: holds the entries, acks them. Whether the connection is still
    /// good. Blocks while too much is held.
    pub fn on_bytes(&self, bytes: &[u8], entries: &mut Vec<LogEntry>) -> bool {
        let mut inner = self.lock();
        while inner.is_full() && inner.verdict.is_none() {
            inner = self.changed.wait_timeout(inner, LOOK_AROUND).unwrap_or_else(PoisonError::into_inner).0;
        }
        if inner.closer.is_none() {
            return false;
        }
        let result = inner.receiver.on_bytes(bytes, entries);
        let (up_to, released) = (inner.receiver.received(), inner.receiver.released());
        let hand_over = entries.iter().rfind(|entry| matches!(entry.event, Event::HandOver));
        let hand_over = hand_over.map(|entry| entry.seq);
        let reads = match inner.take_in(entries, self.clock.now_ns()) {
            Ok(reads) => reads,
            Err(error) => {
                tracing::error!(%error, "the primary's entries");
                self.step(&mut inner, BackupEvent::ChannelBroken);
                return false;
            }
        };
        self.step(&mut inner, BackupEvent::Received { up_to, released, reads });
        inner.hold();
        if let Some(last) = hand_over {
            self.step(&mut inner, BackupEvent::HandOver { last });
        }
        match result {
            Ok(from) => {
                if let Some(number) = from.ask_disk {
                    self.step(&mut inner, BackupEvent::AskedForDisk { number });
                }
                if from.goodbye.is_some() {
                    self.step(&mut inner, BackupEvent::Goodbye { last: up_to });
                }
                true
            }
            Err(error) => {
                tracing::error!(%error, "logging channel");
                self.step(&mut inner, BackupEvent::ChannelBroken);
                false
            }
        }
    }

    /// Whether this backup is to read the shared disk itself.
    pub fn reads_disk(&self) -> bool {
        let inner = self.lock();
        inner.fetch.is_some() && inner.closer.is_some()
    }

    /// Uses a new connection to the disk server for reads.
    pub fn connect_disk(&self, disk: RequestSender) {
        let mut inner = self.lock();
        let follows = inner.closer.is_some();
        match &mut inner.fetch {
            Some(fetch) if follows => fetch.connect(disk),
            _ => disk.close(),
        }
    }

    /// Takes the disk server's answer to a read; whether its connection is still of use.
    pub fn fetched(&self, answer: DiskAnswer) -> bool {
        let mut inner = self.lock();
        let Some(fetch) = &mut inner.fetch else { return false };
        match fetch.answer(answer) {
            Fetched::Nothing => return true,
            Fetched::Data(seq) => {
                self.step(&mut inner, BackupEvent::Fetched { seq });
                inner.hold();
                return true;
            }
            Fetched::Wrong(wrong) => {
                let agreed = inner.digest.map_or(0, |(seq, _)| seq);
                inner.divergence = Some(fetch::divergence(&wrong, agreed));
                tracing::error!(%wrong, "the shared disk");
                self.step(&mut inner, BackupEvent::Diverged);
            }
            // The claim that follows is lost, and says to whom.
            Fetched::Fenced(generation) => {
                tracing::warn!(generation, "a newer generation than that of the primary is current");
                self.step(&mut inner, BackupEvent::ChannelBroken);
            }
            Fetched::Refused(reason) => tracing::error!(reason, "the disk server refuses a read"),
        }
        false
    }

    fn step(&self, inner: &mut Inner, event: BackupEvent<Output>) {
        let Some(mut backup) = inner.backup.take() else { return };
        let mut actions = std::mem::take(&mut inner.actions);
        let now = self.clock.now_ns();
        backup.step(now, event, &mut actions);
        if inner.times.won_ns == 0
            && matches!(backup.state(), ft::BackupState::Draining | ft::BackupState::Live)
        {
            inner.times.won_ns = now;
        }
        for action in actions.drain(..) {
            self.perform(inner, &backup, now, action);
        }
        inner.actions = actions;
        inner.backup = Some(backup);
        // What found no room before.
        write(inner);
        if let Some(fetch) = &mut inner.fetch {
            fetch.retry();
        }
        self.changed.notify_all();
    }

    fn perform(&self, inner: &mut Inner, backup: &Backup<Output>, now: u64, action: BackupAction<Output>) {
        match action {
            BackupAction::SendAck { received, executed } => {
                // Acks are cumulative: while the socket is full, the last one is enough.
                inner.ack = Some((received, executed));
                write(inner);
            }
            BackupAction::SendHeartbeat(beat) => {
                if let Some(link) = &inner.heartbeat {
                    send_heartbeat(link, Role::Backup, beat);
                }
            }
            BackupAction::SendLeft { reason } => {
                let Inner { receiver, bytes, .. } = inner;
                // Behind what is left of an ack, if anything is: the channel closes next.
                receiver.goodbye(&reason.to_string(), bytes).expect("a short text fits a message");
                write(inner);
            }
            BackupAction::QueryDisk => self.claims.look(),
            BackupAction::SendDiskReach { number, reaches } => {
                let Inner { receiver, bytes, .. } = inner;
                receiver.disk_reach(DiskReach { number, reaches }, bytes);
                write(inner);
            }
            BackupAction::CloseChannel => {
                inner.move_held(backup.received());
                if let Some(fetch) = &mut inner.fetch {
                    fetch.close();
                }
                inner.writer = None;
                if let Some(closer) = inner.closer.take() {
                    closer.close();
                }
            }
            BackupAction::Claim { expect, claimant } => {
                if inner.times.suspected_ns == 0 {
                    inner.times.suspected_ns = now;
                    inner.times.entries_left = backup.received() - backup.executed();
                }
                self.claims.ask(expect, claimant);
            }
            BackupAction::GoLive { generation, resend } => {
                inner.times.replayed_ns = now;
                inner.verdict = Some(Verdict::Live { generation, resend });
            }
            BackupAction::Halt { reason } => inner.verdict = Some(Verdict::Halt(reason)),
        }
    }

    /// When `Tick` is due; `None` once following ended.
    pub fn next_tick_ns(&self) -> Option<u64> {
        let inner = self.lock();
        let over = inner.ended || inner.verdict.is_some();
        inner.backup.as_ref().filter(|_| !over).map(Backup::next_tick_ns)
    }

    /// Moves entries to the vCPU thread; blocks until there are some or the protocol decided.
    fn take(&self, into: &mut Vec<LogEntry>) -> Option<Verdict> {
        let mut inner = self.lock();
        loop {
            if let Some(verdict) = inner.verdict.take() {
                inner.ended = true;
                return Some(verdict);
            }
            if !inner.queue.is_empty() {
                into.extend(std::iter::from_fn(|| inner.queue.pop()).take(BATCH));
                self.changed.notify_all();
                return None;
            }
            inner = self.changed.wait_timeout(inner, LOOK_AROUND).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn executed(
        &self,
        batch: &mut Vec<(Seq, Option<Output>, Option<u64>)>,
        digests: &[(Seq, MachineDigest)],
    ) {
        let mut inner = self.lock();
        for (seq, output, completed) in batch.drain(..) {
            inner.outputs += u64::from(output.is_some());
            self.step(&mut inner, BackupEvent::Executed { seq, output, completed });
        }
        inner.digests += digests.len() as u64;
        inner.digest = digests.last().copied().or(inner.digest);
    }

    /// Numbers for people.
    pub fn status(&self) -> FollowerStatus {
        let inner = self.lock();
        let Some(backup) = &inner.backup else { return FollowerStatus::default() };
        let lag = backup.lag();
        FollowerStatus {
            state: format!("{:?}", backup.state()),
            generation: backup.generation(),
            received: backup.received(),
            executed: backup.executed(),
            lag_entries: lag.entries,
            lag_ns: lag.ns,
            kept: backup.kept(),
            digest: inner.digest,
            digests: inner.digests,
            outputs: inner.outputs,
            disk_reads: inner.fetch.as_ref().map(Fetch::counts),
        }
    }

    /// The vCPU thread: replays until this process goes live or stops, and records what it executes.
    pub fn follow<M: Transferable>(
        &self,
        mut replayer: Replayer<M>,
        mut recording: Option<Sink>,
    ) -> FollowEnd<M> {
        let (mut entries, mut executed, mut digests) = (Vec::new(), Vec::new(), Vec::new());
        let (mut divergence, mut console) = (None, ConsoleTail::default());
        loop {
            match self.take(&mut entries) {
                Some(Verdict::Halt(reason)) => {
                    console.explain(replayer.ending());
                    let replayer = Box::new(replayer);
                    let divergence = divergence.or_else(|| self.lock().divergence.take());
                    return FollowEnd::Halted { reason, divergence, replayer, recording };
                }
                Some(Verdict::Live { generation, resend }) => {
                    let status = Box::new(self.status());
                    let mut inner = self.lock();
                    let backup = Box::new(inner.backup.take().expect("the backup that went live"));
                    let (times, entry_ns, replayer) = (inner.times, inner.entry_ns, Box::new(replayer));
                    return FollowEnd::Live {
                        backup,
                        replayer,
                        generation,
                        resend,
                        times,
                        status,
                        entry_ns,
                        recording,
                    };
                }
                None => {}
            }
            digests.clear();
            digests.extend(entries.iter().filter_map(|entry| match entry.event {
                Event::Digest(digest) => Some((entry.seq, digest)),
                _ => None,
            }));
            let copies = recording.is_some().then(|| entries.clone());
            let replayed = replay_batch(&mut replayer, &mut entries, &mut executed);
            let outputs = executed.iter().filter_map(|(_, output, _)| output.as_ref());
            outputs.for_each(|output| console.note(output));
            if let (Some(sink), Some(copies)) = (&mut recording, copies)
                && let Err(error) = record(sink, &mut replayer, copies)
            {
                tracing::error!(%error, "no checkpoint for the recording");
            }
            match replayed {
                Ok(()) => self.executed(&mut executed, &digests),
                Err(ReplayError::Machine(error)) => {
                    // An input that its state excludes, or a failing host: it does not follow the log any
                    // more.
                    tracing::error!(%error, "the machine cannot take what the log says");
                    self.executed(&mut executed, &[]);
                    self.event(BackupEvent::Diverged);
                }
                Err(ReplayError::Diverged(found)) => {
                    self.executed(&mut executed, &[]);
                    divergence = Some(found);
                    self.event(BackupEvent::Diverged);
                }
            }
        }
    }
}

/// Writes to the channel what it takes at once. The rest waits for the next ack, or tick: the primary gives
/// up a backup whose acks do not come.
fn write(inner: &mut Inner) {
    let Inner { receiver, writer, bytes, ack, .. } = inner;
    loop {
        if let (true, Some((received, executed))) = (bytes.is_empty(), *ack) {
            receiver.ack_up_to(received, executed, bytes);
            *ack = None;
        }
        if bytes.is_empty() {
            return;
        }
        let Some(Ok(written)) = writer.as_mut().map(|writer| writer.write_now(bytes)) else { break };
        bytes.drain(..written);
        if !bytes.is_empty() {
            return;
        }
    }
    // The reader of the same connection sees it break, and says so to the protocol.
    tracing::debug!("an ack found the channel closed");
    (*writer, *ack) = (None, None);
    bytes.clear();
}

/// Records entries, and the machine where that is due; of one that diverged, the state in which it was found,
/// before the entry that it did not follow.
fn record<M: Transferable>(
    sink: &mut Sink,
    replayer: &mut Replayer<M>,
    mut entries: Vec<LogEntry>,
) -> Result<(), M::Error> {
    let executed = entries.partition_point(|entry| entry.seq <= replayer.executed());
    let rest = entries.split_off(executed);
    sink.append_entries(entries);
    let recorded = if !replayer.is_settled() {
        // Outputs that wait for their entries are not in the state.
        Ok(())
    } else if replayer.divergence().is_some() {
        sink.checkpoint_now(replayer.machine_mut())
    } else if rest.is_empty() {
        sink.checkpoint_if_due(replayer.machine_mut())
    } else {
        Ok(())
    };
    sink.append_entries(rest);
    recorded
}

/// Executes every entry given.
fn replay_batch<M: Machine>(
    replayer: &mut Replayer<M>,
    entries: &mut Vec<LogEntry>,
    executed: &mut Vec<(Seq, Option<Output>, Option<u64>)>,
) -> Result<(), ReplayError<M::Error>> {
    for entry in entries.drain(..) {
        match replayer.push(entry) {
            Ok(()) => {}
            Err(replay::PushError::Diverged(divergence)) => return Err(ReplayError::Diverged(divergence)),
            Err(replay::PushError::Full) => unreachable!("a batch is far below what a replayer holds"),
        }
    }
    loop {
        match replayer.advance()? {
            Progress::Executed { seq, output, completed } => executed.push((seq, output, completed)),
            Progress::Running => {}
            Progress::NeedEntries | Progress::Ended(_) => return Ok(()),
        }
    }
}

/// Serves `Tick` to a follower until it ends. Runs on a thread of its own.
pub fn tick(follower: &Arc<Follower>, clock: HostClock) {
    while let Some(due) = follower.next_tick_ns() {
        let wait = due.saturating_sub(clock.now_ns()).clamp(1_000_000, 50_000_000);
        std::thread::sleep(Duration::from_nanos(wait));
        follower.event(BackupEvent::Tick);
    }
}
