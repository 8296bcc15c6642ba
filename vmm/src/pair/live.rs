//! The vCPU thread of a live copy: run the guest, log what it puts out, offer it what arrived.
//!
//! ```text
//!   advance ──▶ append + flush ──▶ clock, inputs ──▶ (waits? flush, block until input or due) ──▶ advance
//! ```
//!
//! A batch goes to the channel when it holds an output, when enough is pending, and when the guest stands
//! still with entries that are not quite new: no timer lies on the path of an output, and an idle guest's
//! timer ticks share frames.
//!
//! With a virtual clock nothing that the host's speed decides may enter: a guest that waits is given the time
//! it waits for at once, a disk request completes where it was made, the guest standing still meanwhile, and
//! entropy is the same for everybody.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, select};
use ft::{HaltReason, PrimaryEvent, THROTTLE_PERIOD_NS};
use host::errors::Chain;
use logchannel::tcp::ChannelWriter;
use logchannel::{Event, MachineDigest, Output, Position, TrapKind};
use replay::{ClockPolicy, Ending, Offer, Recorded, Recorder, Stop};

use crate::pair::digests::Digests;
use crate::pair::leader::{Control, Leader, write_channel};
use crate::pair::tail::ConsoleTail;
use crate::pair::transfer::{Joined, Outgoing, Transferable};
use crate::random::Random;
use crate::recording::Sink;

/// Longest block without a look around.
const LOOK_AROUND: Duration = Duration::from_millis(500);
/// Longest that entries without an output wait for company while the guest stands still: less than the lag
/// above which it would be slowed, more than the 27 ms that Linux sets the PIT to at most.
const COMPANY_NS: u64 = 45_000_000;
/// Most inputs applied at one position, so that a flood cannot keep the guest from running.
const MAX_INPUTS: usize = 512;

/// How a live copy's run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LiveEnd {
    /// The guest ended.
    Guest {
        /// How.
        ending: Ending,
        /// With a virtual clock, where and in which state: the same for all runs with the same inputs.
        last: Option<(Position, MachineDigest)>,
    },
    /// The protocol stopped this process.
    Halted(HaltReason),
}

/// Where inputs come from.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Ethernet frames.
    pub net: Receiver<Vec<u8>>,
    /// Bytes typed at the console.
    pub console: Receiver<Vec<u8>>,
    /// Everything else.
    pub control: Receiver<Control>,
}

/// Called when a backup has the whole machine: starts replicating to it, and gives the vCPU thread its
/// writer.
pub type JoinedCall = Box<dyn FnMut(Joined) -> anyhow::Result<ChannelWriter> + Send>;

/// The loop's state.
pub struct Live<M: Transferable> {
    recorder: Recorder<M>,
    leader: Arc<Leader>,
    writer: Option<ChannelWriter>,
    inputs: Inputs,
    refused: VecDeque<Event>,
    /// Console input that the guest has no room for yet: it must not hold up the rest.
    typed: VecDeque<u8>,
    recorded: Vec<Recorded>,
    bytes: Vec<u8>,
    /// When the oldest entry was made that no frame was made for yet.
    unsent_since_ns: Option<u64>,
    digests: Digests,
    paused_ns: u64,
    period_start_ns: u64,
    transfer: Option<Outgoing>,
    joined: JoinedCall,
    recording: Option<Sink>,
    /// The guest stands still, and the backup is to go on.
    handed_over: bool,
    console: ConsoleTail,
    /// With a virtual clock: disk requests made, and what has come of them.
    disk: BTreeMap<u64, Option<Event>>,
    /// With a virtual clock: the guest's entropy, of which no host must know more than another.
    entropy: Random,
}

impl<M: Transferable> Live<M> {
    /// Runs `recorder`'s machine; with `digest_every_ns` > 0 a digest of the machine is logged that often
    /// while the log grows or the guest gets on.
    pub fn new(
        recorder: Recorder<M>,
        leader: Arc<Leader>,
        writer: Option<ChannelWriter>,
        inputs: Inputs,
        digest_every_ns: u64,
        joined: JoinedCall,
    ) -> Self {
        let now = leader.clock().now_ns();
        let from = if recorder.policy() == ClockPolicy::Virtual { recorder.machine().now_ns() } else { now };
        let at = recorder.machine().position();
        let digests = Digests::new(digest_every_ns, from, recorder.next_seq(), at);
        Self {
            recorder,
            leader,
            writer,
            inputs,
            refused: VecDeque::new(),
            typed: VecDeque::new(),
            recorded: Vec::new(),
            bytes: Vec::new(),
            unsent_since_ns: None,
            digests,
            paused_ns: 0,
            period_start_ns: now,
            transfer: None,
            joined,
            recording: None,
            handed_over: false,
            console: ConsoleTail::default(),
            disk: BTreeMap::new(),
            entropy: Random::new(0),
        }
    }

    /// Has the log go into a recording too, which begins with the machine as it is, or goes on with it.
    pub fn record(&mut self, sink: Sink) {
        self.recording = Some(sink);
    }

    fn is_virtual(&self) -> bool {
        self.recorder.policy() == ClockPolicy::Virtual
    }

    /// Logs that this copy went live, when a backup became it.
    pub fn go_live(&mut self, generation: logchannel::Generation) {
        self.recorder.go_live(generation, &mut self.recorded);
        self.submit(true);
    }

    /// Runs until the guest ends or the protocol stops this process; a recording ends with it.
    pub fn run(mut self) -> Result<LiveEnd, M::Error> {
        let end = self.run_guest();
        self.leader.drain();
        if let Some(sink) = self.recording.take() {
            sink.end();
        }
        end
    }

    fn run_guest(&mut self) -> Result<LiveEnd, M::Error> {
        loop {
            if let Some(reason) = self.wait_for_room()? {
                return Ok(LiveEnd::Halted(reason));
            }
            let stop = self.recorder.advance(&mut self.recorded)?;
            if self.recorded.iter().any(|recorded| recorded.entry.event == Event::Reset) {
                self.drop_frames();
            }
            self.submit(false);
            if let Stop::Ended(ending) = stop {
                return self.finish(ending);
            }
            self.take_inputs()?;
            self.digest_if_due()?;
            self.checkpoint_if_due()?;
            self.transfer();
        }
    }

    /// Frames for a guest that reset its machine are lost, as on a network card without power; what was typed
    /// waits for the next one that listens.
    fn drop_frames(&mut self) {
        self.refused.retain(|event| !matches!(event, Event::NetRx(_)));
        while self.inputs.net.try_recv().is_ok() {}
    }

    fn checkpoint_if_due(&mut self) -> Result<(), M::Error> {
        self.submit(false);
        match &mut self.recording {
            Some(sink) if self.recorder.ending().is_none() => {
                sink.checkpoint_if_due(self.recorder.machine_mut())
            }
            _ => Ok(()),
        }
    }

    /// Hands over what was recorded; an output among it flushes.
    fn submit(&mut self, flush: bool) {
        let flush = flush || self.recorded.iter().any(|recorded| recorded.output.is_some());
        if self.recorded.is_empty() && !flush {
            return;
        }
        if let Some(sink) = &mut self.recording {
            sink.append(&self.recorded);
        }
        let outputs = self.recorded.iter().filter_map(|recorded| recorded.output.as_ref());
        outputs.for_each(|output| self.console.note(output));
        if self.is_virtual() {
            let requests = self.recorded.iter().filter_map(|recorded| match &recorded.output {
                Some(Output::Disk(request)) => Some((request.id, None)),
                _ => None,
            });
            self.disk.extend(requests);
        }
        self.leader.append(&mut self.recorded, flush, &mut self.bytes);
        self.unsent_since_ns = match (flush || self.writer.is_none(), self.unsent_since_ns) {
            (true, _) => None,
            (false, None) => Some(self.leader.clock().now_ns()),
            (false, since) => since,
        };
        write_channel(&self.leader, &mut self.writer, &mut self.bytes);
    }

    /// How much longer entries that were not sent may wait for others, if there are any.
    fn company_ns(&self) -> Option<u64> {
        let since_ns = self.unsent_since_ns?;
        Some((since_ns + COMPANY_NS).saturating_sub(self.leader.clock().now_ns()))
    }

    /// Stalls while buffers are full or the protocol waits; says why when this process must stop.
    fn wait_for_room(&mut self) -> Result<Option<HaltReason>, M::Error> {
        let mut flushed = false;
        loop {
            if self.leader.wants_hand_over() {
                self.hand_over();
            }
            if self.leader.may_append() {
                break;
            }
            if let Some(reason) = self.leader.halted() {
                return Ok(Some(reason));
            }
            if !std::mem::replace(&mut flushed, true) || self.leader.has_to_say() {
                self.submit(true);
            }
            self.leader.wait(LOOK_AROUND);
        }
        if std::mem::take(&mut self.handed_over) {
            // It goes on after all, live alone: that is logged before anything else.
            while let Ok(message) = self.inputs.control.try_recv() {
                self.control(message)?;
            }
        }
        self.throttle();
        Ok(None)
    }

    /// The guest stands still from here until the protocol says otherwise.
    fn hand_over(&mut self) {
        // A guest that ended has nothing to be handed over: the pair ends together.
        if self.leader.take_hand_over() && self.recorder.ending().is_none() {
            self.submit(false);
            self.recorder.hand_over(&mut self.recorded);
            self.submit(true);
            self.handed_over = true;
        }
    }

    /// Stands still for the part of the period that the lag control asks.
    fn throttle(&mut self) {
        let pause = self.leader.throttle_ns();
        if pause == 0 {
            return;
        }
        let now = self.leader.clock().now_ns();
        if now - self.period_start_ns > THROTTLE_PERIOD_NS {
            (self.period_start_ns, self.paused_ns) = (now, 0);
        }
        if self.paused_ns < pause {
            let rest = (pause - self.paused_ns).min(THROTTLE_PERIOD_NS);
            self.paused_ns = pause;
            self.submit(true);
            std::thread::sleep(Duration::from_nanos(rest));
        }
    }

    /// Applies what has arrived; while the guest waits, blocks until something wakes it.
    fn take_inputs(&mut self) -> Result<(), M::Error> {
        let mut applied = 0;
        loop {
            if !self.take_disk()? {
                return Ok(());
            }
            if !self.is_virtual() {
                self.recorder.clock(self.leader.clock().now_ns(), &mut self.recorded)?;
            }
            // First what a guest may be waiting for that has no room for frames.
            while applied < MAX_INPUTS
                && let Ok(message) = self.inputs.control.try_recv()
            {
                applied += usize::from(self.control(message)?);
            }
            self.give_entropy()?;
            applied += usize::from(self.type_in()?);
            while let Some(event) = self.refused.pop_front() {
                if !self.offer(event)? {
                    break;
                }
                applied += 1;
            }
            while applied < MAX_INPUTS
                && self.refused.is_empty()
                && let Ok(frame) = self.inputs.net.try_recv()
            {
                applied += usize::from(self.offer(Event::NetRx(frame))?);
            }
            if self.is_virtual() {
                self.recorder.clock(0, &mut self.recorded)?;
            }
            if self.recorder.stop() == Stop::Ready || self.recorder.ending().is_some() {
                return Ok(());
            }
            if self.leader.halted().is_some() || self.transfer.is_some() || self.leader.wants_hand_over() {
                return Ok(());
            }
            self.submit(false);
            if self.company_ns() == Some(0) {
                self.submit(true);
            }
            self.recorder.machine_mut().attend()?;
            self.leader.set_waiting(true);
            self.block()?;
            self.leader.set_waiting(false);
            if self.transfer.is_some() {
                return Ok(());
            }
        }
    }

    /// Gives the guest the entropy that it waits for.
    fn give_entropy(&mut self) -> Result<(), M::Error> {
        let words = self.recorder.machine().entropy_wanted();
        if words == 0 {
            return Ok(());
        }
        let drawn = match self.is_virtual() {
            true => Ok((0..words).map(|_| self.entropy.word()).collect()),
            false => crate::io::random_words(words),
        };
        match drawn {
            Ok(values) => {
                for value in values {
                    self.offer(Event::Trap { instruction: TrapKind::Random, value })?;
                }
            }
            // The guest waits on: its random numbers must not be anything else.
            Err(error) => tracing::error!(%error, "cannot read /dev/urandom for the guest"),
        }
        Ok(())
    }

    /// Offers what was typed, as much as the guest takes; whether there was anything.
    fn type_in(&mut self) -> Result<bool, M::Error> {
        if self.typed.is_empty() {
            let Ok(bytes) = self.inputs.console.try_recv() else { return Ok(false) };
            self.typed.extend(bytes);
        }
        let room = self.recorder.machine().console_wanted().min(self.typed.len());
        if room == 0 {
            return Ok(false);
        }
        let bytes = self.typed.drain(..room).collect();
        self.offer(Event::ConsoleRx(bytes))
    }

    /// With a virtual clock: waits until every disk request has completed, and applies the completions in the
    /// order of the requests. Whether this process may go on.
    fn take_disk(&mut self) -> Result<bool, M::Error> {
        while !self.disk.is_empty() {
            while self.disk.values().any(Option::is_none) {
                self.submit(true);
                let stops = self.leader.halted().is_some() || self.leader.wants_hand_over();
                if stops || self.recorder.ending().is_some() {
                    return Ok(false);
                }
                if let Ok(message) = self.inputs.control.recv_timeout(LOOK_AROUND) {
                    self.control(message)?;
                }
            }
            for event in std::mem::take(&mut self.disk).into_values().flatten() {
                self.offer(event)?;
            }
            self.submit(true);
        }
        Ok(true)
    }

    /// Offers an input; one that the guest has no room for is kept and comes first next time.
    fn offer(&mut self, event: Event) -> Result<bool, M::Error> {
        match self.recorder.offer(event, &mut self.recorded)? {
            Offer::Refused(event) => {
                self.refused.push_front(event);
                Ok(false)
            }
            _ => Ok(true),
        }
    }

    fn control(&mut self, message: Control) -> Result<bool, M::Error> {
        match message {
            Control::Input(Event::DiskDone { request, .. }) if !self.leader.disk_completed(request) => {
                Ok(false)
            }
            Control::Input(event) => {
                if let Event::DiskDone { request, .. } = &event
                    && let Some(waiting) = self.disk.get_mut(request)
                {
                    *waiting = Some(event);
                    return Ok(false);
                }
                self.offer(event)
            }
            Control::GoLive(generation) => {
                self.recorder.go_live(generation, &mut self.recorded);
                Ok(false)
            }
            Control::Shutdown => {
                self.recorder.shutdown(&mut self.recorded)?;
                Ok(true)
            }
            Control::Replicate(joining) => {
                match Outgoing::start(self.recorder.machine_mut(), *joining) {
                    Ok(transfer) => self.transfer = Some(transfer),
                    Err(error) => {
                        host::say!("lockstep: cannot start the state transfer: {}", Chain(error.as_ref()))
                    }
                }
                Ok(false)
            }
            Control::Poke => {
                self.submit(true);
                Ok(false)
            }
        }
    }

    /// Waits for one input, a deadline of the guest, or a while.
    fn block(&mut self) -> Result<(), M::Error> {
        let now = self.leader.clock().now_ns();
        let deadline =
            self.recorder.host_deadline_ns().map(|at| Duration::from_nanos(at.saturating_sub(now)));
        let company = self.company_ns().map_or(LOOK_AROUND, Duration::from_nanos);
        let wait = deadline.unwrap_or(LOOK_AROUND).min(LOOK_AROUND).min(company);
        let Inputs { net, console, control } = self.inputs.clone();
        // What was typed before comes first; only the guest can make room for it.
        let console = if self.typed.is_empty() { console } else { crossbeam_channel::never() };
        let message = select! {
            recv(control) -> message => message.ok(),
            recv(console) -> bytes => {
                self.typed.extend(bytes.unwrap_or_default());
                return Ok(());
            }
            recv(net) -> frame => frame.ok().map(|frame| Control::Input(Event::NetRx(frame))),
            default(wait) => None,
        };
        let Some(message) = message else { return Ok(()) };
        // Time has passed: the clock first, so that the input is not older than the guest believes.
        if !self.is_virtual() {
            self.recorder.clock(self.leader.clock().now_ns(), &mut self.recorded)?;
        }
        if self.refused.is_empty() || !matches!(message, Control::Input(Event::NetRx(_))) {
            self.control(message)?;
        } else if let Control::Input(event) = message {
            self.refused.push_back(event);
        }
        Ok(())
    }

    fn digest_if_due(&mut self) -> Result<(), M::Error> {
        if self.recorder.ending().is_some() {
            return Ok(());
        }
        let now = match self.is_virtual() {
            true => self.recorder.machine().now_ns(),
            false => self.leader.clock().now_ns(),
        };
        let at = self.recorder.machine().position();
        if self.digests.is_due(now, self.recorder.next_seq(), at) {
            self.recorder.digest(&mut self.recorded)?;
            self.submit(false);
            self.digests.logged(now, self.recorder.next_seq(), at);
        }
        Ok(())
    }

    /// Goes on with a state transfer, if there is one.
    fn transfer(&mut self) {
        let Some(mut transfer) = self.transfer.take() else { return };
        let result = match transfer.step(self.recorder.machine_mut()) {
            Ok(false) => {
                self.transfer = Some(transfer);
                return;
            }
            Ok(true) => self.finish_transfer(transfer),
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            host::say!("lockstep: the state transfer failed, still alone: {}", Chain(error.as_ref()));
            if let Err(error) = self.recorder.machine_mut().track_pages(false) {
                tracing::warn!(%error, "page tracking");
            }
        }
    }

    /// The guest stands still from here until the backup has everything.
    fn finish_transfer(&mut self, transfer: Outgoing) -> anyhow::Result<()> {
        anyhow::ensure!(self.leader.alone().is_some(), "this process does not hold its generation alone");
        self.submit(true);
        let last = self.recorder.next_seq() - 1;
        let joined = transfer.finish(self.recorder.machine_mut(), last)?;
        match (self.joined)(joined) {
            Ok(writer) => self.writer = Some(writer),
            // The backup has joined and may claim: only the test-and-set says who goes on.
            Err(error) => {
                tracing::error!(%error, "cannot replicate");
                self.leader.event(PrimaryEvent::ChannelBroken);
            }
        }
        Ok(())
    }

    /// The guest ended: its last outputs go, and the pair ends together.
    fn finish(&mut self, ending: Ending) -> Result<LiveEnd, M::Error> {
        self.submit(true);
        self.leader.event(PrimaryEvent::GuestEnded);
        loop {
            match self.leader.halted() {
                Some(HaltReason::GuestEnded) => break,
                Some(reason) => return Ok(LiveEnd::Halted(reason)),
                None => self.leader.wait(LOOK_AROUND),
            }
        }
        self.submit(true);
        self.console.explain(Some(&ending));
        let is_virtual = self.is_virtual();
        let machine = self.recorder.machine_mut();
        let last = if is_virtual { Some((machine.position(), machine.digest()?)) } else { None };
        Ok(LiveEnd::Guest { ending, last })
    }
}
