//! The live copy's side: `ft::Primary` and the logging channel's sender behind one lock, and their actions
//! done.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::Sender as Queue;
use ft::reads::without_data;
use ft::{HaltReason, Primary, PrimaryAction, PrimaryEvent, PrimaryState, ReadTracker};
use logchannel::heartbeat::{Heartbeat, Role};
use logchannel::sender::Sender;
use logchannel::tcp::{ChannelWriter, Closer};
use logchannel::udp::HeartbeatSocket;
use logchannel::{Generation, MachineDigest, Output, Seq};
use replay::Recorded;

use crate::io::clock::HostClock;
use crate::pair::claims::Claims;
use crate::pair::egress::{Egress, EgressCounts};
use crate::pair::transfer::Joining;

/// What reaches the vCPU thread besides network frames.
pub enum Control {
    /// An input for the guest.
    Input(logchannel::Event),
    /// This process went live alone: log it.
    GoLive(Generation),
    /// Power the machine off.
    Shutdown,
    /// Transfer the machine to this backup and replicate to it.
    Replicate(Box<Joining>),
    /// Something changed that the vCPU thread must look at.
    Poke,
}

/// Where heartbeats go.
#[derive(Debug, Clone)]
pub struct HeartbeatLink {
    /// Our socket.
    pub socket: Arc<HeartbeatSocket>,
    /// The peer's.
    pub to: SocketAddr,
    /// `vm_hash` of the machine's name.
    pub vm: u64,
    /// This process.
    pub claimant: u128,
}

/// The logging channel of a leader with a backup.
pub struct Link {
    /// Encodes entries.
    pub sender: Sender,
    /// Ends the connection.
    pub closer: Closer,
    /// Heartbeats to the backup.
    pub heartbeat: HeartbeatLink,
}

/// Counts the backups of a process, so that what a thread still has to say of an earlier one is not taken for
/// the present one's.
pub type Pairing = u64;

/// Numbers for `status`.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct LeaderStatus {
    /// Where the protocol is.
    pub state: String,
    /// The generation held.
    pub generation: Generation,
    /// The last entry appended.
    pub appended: Seq,
    /// The last entry acked by the backup.
    pub acked: Option<Seq>,
    /// Outputs let go up to this entry.
    pub released: Seq,
    /// Outputs that wait.
    pub gated: usize,
    /// Execution lag of the backup, in entries.
    pub lag_entries: u64,
    /// Execution lag of the backup, in nanoseconds.
    pub lag_ns: u64,
    /// Bytes sent on the logging channel.
    pub log_bytes: u64,
    /// Log entries and bytes by kind.
    pub log_kinds: Vec<(String, u64, u64)>,
    /// The last digest logged.
    pub digest: Option<(Seq, MachineDigest)>,
    /// Digests logged.
    pub digests: u64,
    /// What went out.
    pub egress: EgressCounts,
    /// Disk requests in flight.
    pub disk_in_flight: usize,
    /// For how long the oldest of them has been, nanoseconds.
    pub disk_oldest_ns: u64,
    /// How often the guest reset its machine, since this process is live.
    pub resets: u64,
    /// The guest stands still until an input comes or its timer is due.
    pub waiting: bool,
}

struct Inner {
    primary: Primary<Output>,
    link: Option<Link>,
    pairing: Pairing,
    /// Which reads a backup may repeat, if backups are to read the disk themselves.
    reads: Option<ReadTracker>,
    actions: Vec<PrimaryAction<Output>>,
    tell_released: bool,
    /// A question to the backup that is still to be sent.
    ask_disk: Option<u64>,
    goodbye: bool,
    halted: Option<HaltReason>,
    log_bytes: u64,
    digest: Option<(Seq, MachineDigest)>,
    digests: u64,
    resets: u64,
}

/// The live copy's protocol state, shared by its threads.
pub struct Leader {
    inner: Mutex<Inner>,
    changed: Condvar,
    egress: Arc<Egress>,
    clock: HostClock,
    control: Queue<Control>,
    claims: Claims,
    throttle_ns: AtomicU64,
    waiting: AtomicBool,
    /// The guest is to be stopped, and `HandOver` appended.
    hand_over: AtomicBool,
}

impl Leader {
    /// A leader without a backup; with `backup_reads`, its backups read the disk themselves.
    pub fn new(
        primary: Primary<Output>,
        egress: Arc<Egress>,
        clock: HostClock,
        control: Queue<Control>,
        claims: Claims,
        backup_reads: bool,
    ) -> Self {
        let inner = Inner {
            primary,
            link: None,
            pairing: 0,
            reads: backup_reads.then(ReadTracker::default),
            actions: Vec::new(),
            tell_released: false,
            ask_disk: None,
            goodbye: false,
            halted: None,
            log_bytes: 0,
            digest: None,
            digests: 0,
            resets: 0,
        };
        let (inner, changed) = (Mutex::new(inner), Condvar::new());
        let (throttle_ns, waiting, hand_over) = Default::default();
        Self { inner, changed, egress, clock, control, claims, throttle_ns, waiting, hand_over }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts replicating to the backup at the end of `link`, which has everything appended so far.
    pub fn join(&self, link: Link) -> Pairing {
        self.with(|inner| {
            inner.pairing += 1;
            (inner.tell_released, inner.ask_disk) = (false, None);
            let seq = inner.primary.appended();
            inner.link = Some(link);
            self.step(inner, PrimaryEvent::BackupJoined { seq });
            inner.pairing
        })
    }

    /// Does something with the lock, and then, without it, sends what was let go.
    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        let result = act(&mut self.lock());
        self.egress.pump();
        result
    }

    /// Host time.
    pub fn clock(&self) -> HostClock {
        self.clock
    }

    /// Takes in an event from any thread.
    pub fn event(&self, event: PrimaryEvent<Output>) {
        self.with(|inner| self.step(inner, event));
    }

    /// Takes in an event that concerns one backup, unless there is another one by now.
    pub fn event_of(&self, pairing: Pairing, event: PrimaryEvent<Output>) {
        self.with(|inner| {
            if inner.pairing == pairing {
                self.step(inner, event);
            }
        });
    }

    /// Takes in an ack from the thread that reads them.
    pub fn acked(&self, pairing: Pairing, ack: logchannel::message::Ack) {
        self.with(|inner| {
            if inner.pairing != pairing {
                return;
            }
            match inner.link.as_mut().map(|link| link.sender.on_ack(ack)) {
                Some(Ok(())) => {
                    let event = PrimaryEvent::Acked { received: ack.received, executed: ack.executed };
                    self.step(inner, event);
                }
                Some(Err(error)) => {
                    tracing::error!(%error, "the backup's acks");
                    self.step(inner, PrimaryEvent::ChannelBroken);
                }
                None => {}
            }
        });
    }

    /// Appends what the recorder made. With `flush`, or when enough is pending, `bytes` then holds what the
    /// vCPU thread must write to the channel.
    pub fn append(&self, recorded: &mut Vec<Recorded>, flush: bool, bytes: &mut Vec<u8>) {
        self.with(|inner| self.append_with(inner, recorded, flush, bytes));
    }

    fn append_with(&self, inner: &mut Inner, recorded: &mut Vec<Recorded>, flush: bool, bytes: &mut Vec<u8>) {
        for Recorded { entry, output } in recorded.drain(..) {
            if let logchannel::Event::Digest(digest) = &entry.event {
                inner.digest = Some((entry.seq, *digest));
                inner.digests += 1;
            }
            inner.resets += u64::from(entry.event == logchannel::Event::Reset);
            let mut size = 0;
            let on_disk = inner.reads.as_mut().and_then(|reads| reads.follow(&entry.event, output.as_ref()));
            if let Some(link) = &mut inner.link {
                let before = link.sender.buffer().bytes();
                let short = on_disk.map(|offset| without_data(&entry, offset));
                if let Err(error) = link.sender.append(short.as_ref().unwrap_or(&entry)) {
                    tracing::error!(%error, seq = entry.seq, "log entry");
                    self.step(inner, PrimaryEvent::ChannelBroken);
                } else {
                    size = link.sender.buffer().bytes() - before;
                }
            }
            let hands_over = matches!(entry.event, logchannel::Event::HandOver);
            self.step(inner, PrimaryEvent::Appended { seq: entry.seq, output, bytes: size });
            if hands_over {
                self.step(inner, PrimaryEvent::HandedOver);
            }
        }
        let released = inner.primary.released();
        let tell = std::mem::take(&mut inner.tell_released);
        let Inner { link, log_bytes, goodbye, ask_disk, .. } = inner;
        let Some(link) = link else { return };
        if flush || link.sender.should_flush() || tell {
            let written = match tell {
                true => link.sender.flush_released(released, bytes),
                false => link.sender.flush(released, bytes),
            };
            *log_bytes += written as u64;
        }
        if let Some(number) = ask_disk.take() {
            link.sender.ask_disk(number, bytes);
        }
        if std::mem::take(goodbye) {
            let said = link.sender.goodbye("the guest ended", bytes);
            said.expect("a short text fits a message");
        }
    }

    fn step(&self, inner: &mut Inner, event: PrimaryEvent<Output>) {
        let mut actions = std::mem::take(&mut inner.actions);
        inner.primary.step(self.clock.now_ns(), event, &mut actions);
        for action in actions.drain(..) {
            self.perform(inner, action);
        }
        inner.actions = actions;
        self.changed.notify_all();
    }

    fn perform(&self, inner: &mut Inner, action: PrimaryAction<Output>) {
        match action {
            PrimaryAction::Release { output, .. } => self.egress.push(output),
            PrimaryAction::SendReleased { .. } => {
                inner.tell_released = true;
                self.poke();
            }
            PrimaryAction::SendHeartbeat(beat) => {
                if let Some(link) = &inner.link {
                    send_heartbeat(&link.heartbeat, Role::Primary, beat);
                }
            }
            PrimaryAction::Claim { expect, claimant } => self.claims.ask(expect, claimant),
            PrimaryAction::GoLive { generation } => {
                tracing::info!(generation, "going on alone");
                self.egress.set_generation(generation);
                let _ = self.control.try_send(Control::GoLive(generation));
            }
            PrimaryAction::AskDisk { number } => {
                inner.ask_disk = Some(number);
                self.poke();
            }
            PrimaryAction::StopForHandOver => {
                self.hand_over.store(true, Ordering::Relaxed);
                self.poke();
            }
            PrimaryAction::CloseChannel => {
                if let Some(link) = inner.link.take() {
                    link.closer.close();
                }
            }
            PrimaryAction::SendGoodbye { .. } => {
                inner.goodbye = true;
                self.poke();
            }
            PrimaryAction::Halt { reason } => {
                inner.halted = Some(reason);
                self.poke();
            }
            PrimaryAction::Throttle { pause_ns } => self.throttle_ns.store(pause_ns, Ordering::Relaxed),
        }
    }

    fn poke(&self) {
        // A full queue holds something to look at already.
        let _ = self.control.try_send(Control::Poke);
    }

    /// Part of every `ft::THROTTLE_PERIOD_NS` that the guest must stand still.
    pub fn throttle_ns(&self) -> u64 {
        self.throttle_ns.load(Ordering::Relaxed)
    }

    /// Whether the guest is to be stopped now, to be handed over.
    pub fn wants_hand_over(&self) -> bool {
        self.hand_over.load(Ordering::Relaxed)
    }

    /// Whether it still is: to be asked by the vCPU thread, which then appends `HandOver` at once. Meanwhile
    /// no other backup can have joined: that happens on its thread too.
    pub fn take_hand_over(&self) -> bool {
        self.hand_over.swap(false, Ordering::Relaxed) && self.lock().primary.hand_over_requested()
    }

    /// Whether something is to be sent to the backup though the guest stands still.
    pub fn has_to_say(&self) -> bool {
        let inner = self.lock();
        inner.link.is_some() && (inner.tell_released || inner.ask_disk.is_some() || inner.goodbye)
    }

    /// Takes in that time has passed, and when the disk server answered last.
    pub fn tick(&self) {
        let at_ns = self.claims.health().answered_ns();
        self.with(|inner| {
            self.step(inner, PrimaryEvent::DiskAnswered { at_ns });
            self.step(inner, PrimaryEvent::Tick);
        });
    }

    /// The disk server answered a request.
    pub fn disk_answered(&self) {
        self.claims.health().answered();
    }

    /// Why this process must stop, once it must.
    pub fn halted(&self) -> Option<HaltReason> {
        self.lock().halted.clone()
    }

    /// Whether the guest may run on.
    pub fn may_append(&self) -> bool {
        let inner = self.lock();
        inner.primary.may_append() && inner.link.as_ref().is_none_or(|link| !link.sender.is_full())
    }

    /// Waits, for at most `wait`, until something changes.
    pub fn wait(&self, wait: Duration) {
        let inner = self.lock();
        drop(self.changed.wait_timeout(inner, wait));
    }

    /// Uses a new connection to the disk server.
    pub fn connect_disk(&self, disk: disk_server::client::RequestSender) {
        self.egress.connect_disk(disk);
        self.egress.pump();
    }

    /// A disk request completed; whether it was in flight.
    pub fn disk_completed(&self, id: u64) -> bool {
        self.egress.completed(id)
    }

    /// Sends a frame that no guest made, an announcement of its address; unless another copy may be live.
    pub fn announce(&self, frame: &[u8]) {
        self.with(|inner| {
            // Whoever slept learns it now, not after this frame.
            self.step(inner, PrimaryEvent::Tick);
            if matches!(inner.primary.state(), PrimaryState::Replicating | PrimaryState::Alone) {
                self.egress.push_frame(frame);
            }
        });
    }

    /// Sends outputs again that the dead primary may not have let go.
    pub fn resend(&self, outputs: impl IntoIterator<Item = Output>) {
        self.with(|inner| {
            for output in outputs {
                if let (Output::Disk(request), Some(reads)) = (&output, &mut inner.reads) {
                    reads.inherit(request);
                }
                self.egress.push(output);
            }
        });
    }

    /// Waits a little until everything that was let go is on its way: before the process ends.
    pub fn drain(&self) {
        const LONGEST: Duration = Duration::from_secs(2);
        self.egress.drain(LONGEST, self.clock);
    }

    /// When `Tick` is due.
    pub fn next_tick_ns(&self) -> u64 {
        self.lock().primary.next_tick_ns()
    }

    /// Whether this backup follows.
    pub fn replicating(&self, pairing: Pairing) -> bool {
        let inner = self.lock();
        let follows = matches!(inner.primary.state(), PrimaryState::Replicating | PrimaryState::HandingOver);
        inner.pairing == pairing && follows
    }

    /// The generation, if this process holds it alone: only then may a backup join.
    pub fn alone(&self) -> Option<Generation> {
        let inner = self.lock();
        (inner.primary.state() == PrimaryState::Alone).then(|| inner.primary.generation())
    }

    /// Numbers for people.
    pub fn status(&self) -> LeaderStatus {
        let (egress, disk) = (self.egress.counts(), self.egress.disk_wait());
        let inner = self.lock();
        let lag = inner.primary.lag();
        let kinds = inner.link.as_ref().map(|link| {
            let kinds = link.sender.stats().by_kind();
            kinds.map(|(kind, count)| (format!("{kind:?}"), count.entries, count.bytes)).collect()
        });
        LeaderStatus {
            state: format!("{:?}", inner.primary.state()),
            generation: inner.primary.generation(),
            appended: inner.primary.appended(),
            acked: inner.primary.acked(),
            released: inner.primary.released(),
            gated: inner.primary.gated(),
            lag_entries: lag.entries,
            lag_ns: lag.ns,
            log_bytes: inner.log_bytes,
            log_kinds: kinds.unwrap_or_default(),
            digest: inner.digest,
            digests: inner.digests,
            egress,
            disk_in_flight: disk.in_flight,
            disk_oldest_ns: disk.since_ns.map_or(0, |since_ns| self.clock.now_ns().saturating_sub(since_ns)),
            resets: inner.resets,
            waiting: self.waiting.load(Ordering::Relaxed),
        }
    }

    /// The guest stands still, or goes on: for `status`.
    pub fn set_waiting(&self, waiting: bool) {
        self.waiting.store(waiting, Ordering::Relaxed);
    }
}

/// Sends the protocol's heartbeat as a datagram.
pub fn send_heartbeat(link: &HeartbeatLink, role: Role, beat: ft::Heartbeat) {
    let heartbeat = Heartbeat {
        vm: link.vm,
        generation: beat.generation,
        role,
        claimant: link.claimant,
        sequence: beat.number,
    };
    if let Err(error) = link.socket.send(&heartbeat, link.to) {
        tracing::debug!(%error, "heartbeat");
    }
}

/// Writes to the channel on the vCPU thread; a broken channel is an event of the protocol.
pub fn write_channel(leader: &Leader, writer: &mut Option<ChannelWriter>, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    let result = writer.as_mut().map(|writer| writer.write_all(bytes));
    bytes.clear();
    if let Some(Err(error)) = result {
        tracing::warn!(%error, "logging channel");
        *writer = None;
        leader.event(PrimaryEvent::ChannelBroken);
    }
}
