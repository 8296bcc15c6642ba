//! A session: a recording and the machine in it, at any position one likes.
//!
//! ```text
//!   position ──run_to──▶ later          plays the log on, everything checked
//!   position ──seek────▶ anywhere       nearest checkpoint or snapshot before it, then plays the log on
//!   position ──step_back(n)──▶ n counts earlier: a seek that leaves snapshots, so that the next is quick
//! ```
//!
//! Being *at* a position means: every entry of the log that lies there is executed, and nothing else. So a
//! position has one state, whichever way one came. On engines that stop exactly a count is an instruction, on
//! the others an exit.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use logchannel::{MachineDigest, Output, Position, Seq};
use replay::{Divergence, Ending, Machine as _, Progress, PushError, ReplayError, Replayer};

use crate::assemble::{self, Surroundings, Vm};
use crate::config::MACHINE_MODEL;
use crate::engine::{Engine as _, EngineKind, StopPrecision};
use crate::machine::MachineError;
use crate::memory::{MemoryError, Ram};
use crate::recording::format::RecordingError;
use crate::recording::reader::Recording;
use crate::recording::snapshot::Snapshots;
use crate::restart::ResetPolicy;

/// Positions that an engine that stops exactly runs at a time, so that a session can be interrupted.
const SLICE: u64 = 1 << 22;

/// What a session cannot do.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The file.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// The machine did not take the recorded path.
    #[error(transparent)]
    Diverged(Box<Divergence>),
    /// The host or the monitor failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// No memory for the guest.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// This host or this lockstep has another machine.
    #[error("recorded with {what} {recorded:?}, here it is {here:?}: {advice}")]
    OtherMachine {
        /// What differs.
        what: &'static str,
        /// In the recording.
        recorded: String,
        /// Here.
        here: String,
        /// What to do.
        advice: &'static str,
    },
}

/// Where a run of a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival {
    /// Where it was to.
    There,
    /// At the last entry of a recording that ends before that place.
    EndOfLog,
    /// The guest ended.
    Ended(Ending),
    /// `Session::interrupter` was set.
    Interrupted,
}

/// Told every output that is executed.
pub type OutputCall = Box<dyn FnMut(Seq, &Output)>;

/// A recording and its machine.
pub struct Session {
    recording: Recording,
    engine: EngineKind,
    replayer: Option<Replayer<Vm>>,
    /// The batch that comes next.
    batch: usize,
    snapshots: Snapshots,
    interrupt: Arc<AtomicBool>,
    outputs: Option<OutputCall>,
}

impl Session {
    /// Opens a recording; the machine is at its first position, and nothing is executed.
    pub fn open(path: &Path) -> Result<Self, SessionError> {
        Self::new(Recording::open(path)?)
    }

    /// A session of an open recording, at its first position.
    pub fn new(recording: Recording) -> Result<Self, SessionError> {
        Self::with(recording, &Surroundings::default())
    }

    /// The same, with what its machine is run with.
    pub fn with(recording: Recording, around: &Surroundings) -> Result<Self, SessionError> {
        let engine = check_machine(&recording)?;
        let mut ram = Ram::new(recording.header().machine.memory_bytes)?;
        recording.load_memory(0, &mut ram)?;
        let policy = ResetPolicy::new(recording.header().machine.on_reset, recording.image()?);
        let machine = assemble::restore(engine, around, ram, recording.state(0)?, policy)?;
        let first = recording.checkpoints()[0].seq + 1;
        Ok(Self {
            recording,
            engine,
            replayer: Some(Replayer::resume(machine, first)),
            batch: 0,
            snapshots: Snapshots::default(),
            interrupt: Arc::default(),
            outputs: None,
        })
    }

    /// The file.
    pub fn recording(&self) -> &Recording {
        &self.recording
    }

    /// Which engine it is on.
    pub fn engine(&self) -> EngineKind {
        self.engine
    }

    fn replayer(&self) -> &Replayer<Vm> {
        self.replayer.as_ref().expect("taken out only within a move")
    }

    fn replayer_mut(&mut self) -> &mut Replayer<Vm> {
        self.replayer.as_mut().expect("taken out only within a move")
    }

    /// Where the machine is.
    pub fn position(&self) -> Position {
        self.replayer().machine().position()
    }

    /// The last entry executed.
    pub fn executed(&self) -> Seq {
        self.replayer().executed()
    }

    /// The last position that can be reached.
    pub fn end(&self) -> Position {
        self.recording.end()
    }

    /// The machine, for what leaves its state and position as they are.
    pub fn machine(&self) -> &Vm {
        self.replayer().machine()
    }

    /// The machine, for what leaves its state and position as they are: registers, digests, memory.
    pub fn machine_mut(&mut self) -> &mut Vm {
        self.replayer_mut().machine_mut()
    }

    /// The machine's fingerprint.
    pub fn digest(&mut self) -> Result<MachineDigest, SessionError> {
        Ok(self.machine_mut().digest()?)
    }

    /// Set from any thread, it ends the run under way soon; a run clears it when it returns for that.
    pub fn interrupter(&self) -> Arc<AtomicBool> {
        self.interrupt.clone()
    }

    /// Has every output that is executed from now on told to `call`.
    pub fn on_output(&mut self, call: OutputCall) {
        self.outputs = Some(call);
    }

    /// Plays the log on to a position, which must not lie behind.
    pub fn run_to(&mut self, to: Position) -> Result<Arrival, SessionError> {
        self.run(Some(to), Seq::MAX)
    }

    /// Plays the log on to where a checkpoint was taken: entry `seq` executed and the machine at `to`, but
    /// none of the entries there that come after.
    pub fn run_to_point(&mut self, seq: Seq, to: Position) -> Result<Arrival, SessionError> {
        self.run(Some(to), seq)
    }

    /// Plays the log on to the arrival at a position: every entry before it is executed, and none there.
    pub fn arrive(&mut self, at: Position) -> Result<Arrival, SessionError> {
        let seq = self.recording.last_before(at)?;
        self.run_to_point(seq, at)
    }

    /// Plays the log on until entry `seq` is executed; more entries may lie where the machine is then.
    pub fn run_to_entry(&mut self, seq: Seq) -> Result<Arrival, SessionError> {
        self.run(None, seq)
    }

    /// Plays the log to its end.
    pub fn run_to_end(&mut self) -> Result<Arrival, SessionError> {
        self.run(None, Seq::MAX)
    }

    /// Goes `counts` positions on.
    pub fn step(&mut self, counts: u64) -> Result<Arrival, SessionError> {
        self.run_to(Position::at(self.position().count.saturating_add(counts)))
    }

    /// Goes to a position, forwards or backwards, from the nearest state before it.
    pub fn seek(&mut self, to: Position) -> Result<Arrival, SessionError> {
        let here = self.position().count;
        let of_file = self.recording.checkpoints().partition_point(|c| c.at.count <= to.count).max(1) - 1;
        let file_count = self.recording.checkpoints()[of_file].at.count;
        let kept = self.snapshots.before(to.count).map(|kept| kept.state.at.count);
        let best = kept.unwrap_or(0).max(file_count);
        if to.count < here || best > here {
            match kept {
                Some(kept) if kept >= file_count => self.load_snapshot(to.count)?,
                _ => self.load_checkpoint(of_file)?,
            }
        }
        self.run_to(to)
    }

    /// Goes to a position from the nearest state before it, whatever became of the last run.
    pub fn rewind(&mut self, to: Position) -> Result<Arrival, SessionError> {
        let checkpoints = self.recording.checkpoints();
        let of_file = checkpoints.partition_point(|c| c.at.count <= to.count).max(1) - 1;
        match self.snapshots.before(to.count).map(|kept| kept.state.at.count) {
            Some(kept) if kept >= checkpoints[of_file].at.count => self.load_snapshot(to.count)?,
            _ => self.load_checkpoint(of_file)?,
        }
        self.step_forward(to)
    }

    /// Goes `counts` positions back, or to the first; leaves snapshots on the way, closer and closer.
    pub fn step_back(&mut self, counts: u64) -> Result<Arrival, SessionError> {
        let first = self.recording.checkpoints()[0].at.count;
        let to = self.position().count.saturating_sub(counts).max(first);
        // To begin with the nearest state before; from there on every half of what is left.
        let from = self.nearest(to);
        self.seek(Position::at(from))?;
        self.step_forward(Position::at(to))
    }

    /// Goes on to a position, and leaves snapshots on the way, closer and closer.
    fn step_forward(&mut self, to: Position) -> Result<Arrival, SessionError> {
        let to = to.count;
        let least = match self.stops_exactly() {
            true => 20_000,
            false => 16,
        };
        loop {
            let left = to - self.position().count;
            if left <= least {
                return self.run_to(Position::at(to));
            }
            let arrival = self.run_to(Position::at(to - left / 2))?;
            if arrival != Arrival::There {
                return Ok(arrival);
            }
            self.snapshot()?;
        }
    }

    /// Keeps the machine as it is in memory: a later `seek` may begin here.
    pub fn snapshot(&mut self) -> Result<(), SessionError> {
        let seq = self.executed();
        let machine = self.machine_mut();
        if machine.is_movable()? {
            let state = machine.save()?;
            let replayer = self.replayer.as_ref().expect("taken out only within a move");
            self.snapshots.take(seq, state, replayer.machine().ram());
        }
        Ok(())
    }

    /// Whether a count is an instruction, and every one can be stopped at.
    pub fn stops_exactly(&self) -> bool {
        self.machine().engine().stops() == StopPrecision::Exact
    }

    /// Position of the nearest state kept or recorded at or before a count.
    fn nearest(&self, count: u64) -> u64 {
        let of_file = self.recording.checkpoints().partition_point(|c| c.at.count <= count).max(1) - 1;
        let file_count = self.recording.checkpoints()[of_file].at.count;
        self.snapshots.before(count).map_or(file_count, |kept| kept.state.at.count.max(file_count))
    }

    /// Puts the machine where a checkpoint of the file was taken.
    pub fn load_checkpoint(&mut self, checkpoint: usize) -> Result<(), SessionError> {
        let state = self.recording.state(checkpoint)?;
        let seq = self.recording.checkpoints()[checkpoint].seq;
        // Kept even when the file fails: the session stays where it was only until RAM is overwritten.
        let mut machine = self.replayer.take().expect("a move is not within a move").into_machine();
        let finished = machine.finish_instruction();
        let loaded = self.recording.load_memory(checkpoint, machine.ram_mut());
        let moved = machine.go_to(state);
        self.replayer = Some(Replayer::resume(machine, seq + 1));
        finished?;
        loaded?;
        self.begin_at(seq);
        Ok(moved?)
    }

    fn load_snapshot(&mut self, count: u64) -> Result<(), SessionError> {
        let kept = self.snapshots.before(count).expect("asked for before");
        let (seq, state) = (kept.seq, kept.state.clone());
        let mut machine = self.replayer.take().expect("a move is not within a move").into_machine();
        let finished = machine.finish_instruction();
        kept.load_memory(machine.ram_mut());
        let moved = machine.go_to(state);
        self.replayer = Some(Replayer::resume(machine, seq + 1));
        self.begin_at(seq);
        finished?;
        Ok(moved?)
    }

    fn begin_at(&mut self, seq: Seq) {
        self.batch = self.recording.batch_of(seq + 1);
    }

    /// Gives the replayer the next batch of entries; whether there was one.
    fn feed(&mut self) -> Result<bool, SessionError> {
        if self.batch >= self.recording.batches().len() {
            return Ok(false);
        }
        let entries = self.recording.entries(self.batch)?;
        self.batch += 1;
        let replayer = self.replayer_mut();
        for entry in entries {
            if entry.seq <= replayer.pushed() {
                continue;
            }
            match replayer.push(entry) {
                Ok(()) => {}
                Err(PushError::Diverged(divergence)) => return Err(SessionError::Diverged(divergence)),
                Err(PushError::Full) => unreachable!("a batch is given only when none is held"),
            }
        }
        Ok(true)
    }

    fn run(&mut self, to: Option<Position>, seq: Seq) -> Result<Arrival, SessionError> {
        let slice = if self.stops_exactly() { SLICE } else { u64::MAX };
        let to_count = to.map_or(u64::MAX, |to| to.count);
        loop {
            if self.interrupt.swap(false, Ordering::Relaxed) {
                return Ok(Arrival::Interrupted);
            }
            if self.executed() >= seq && to.is_none_or(|to| self.position().count >= to.count) {
                return Ok(Arrival::There);
            }
            let limit = Position::at(self.position().count.saturating_add(slice).min(to_count));
            match self.replayer_mut().advance_to(limit) {
                Ok(Some(Progress::Executed { seq, output, .. })) => {
                    if let (Some(output), Some(call)) = (&output, &mut self.outputs) {
                        call(seq, output);
                    }
                }
                Ok(Some(Progress::Running)) => {}
                Ok(Some(Progress::NeedEntries)) if self.feed()? => {}
                Ok(Some(Progress::NeedEntries)) => {
                    let there = to.is_some_and(|to| self.position().count == to.count);
                    return Ok(if there { Arrival::There } else { Arrival::EndOfLog });
                }
                Ok(Some(Progress::Ended(_))) if self.feed()? => {}
                Ok(Some(Progress::Ended(ending))) => return Ok(Arrival::Ended(ending)),
                Ok(None) if limit.count == to_count => return Ok(Arrival::There),
                Ok(None) => {}
                Err(ReplayError::Diverged(divergence)) => return Err(SessionError::Diverged(divergence)),
                Err(ReplayError::Machine(error)) => return Err(error.into()),
            }
        }
    }
}

/// Whether what was recorded can be had here; on which engine.
fn check_machine(recording: &Recording) -> Result<EngineKind, SessionError> {
    let machine = &recording.header().machine;
    let other = |what, recorded: &str, here: &str, advice| {
        Err(SessionError::OtherMachine { what, recorded: recorded.into(), here: here.into(), advice })
    };
    let Some(engine) = EngineKind::named(&machine.engine) else {
        return other("engine", &machine.engine, "kvm or soft", "use the lockstep that recorded it");
    };
    let fields = [
        (
            "machine model",
            &machine.machine_model,
            MACHINE_MODEL.to_string(),
            "use the lockstep that recorded it",
        ),
        ("position clock", &machine.clock, engine.clock().name().into(), "use the lockstep that recorded it"),
        ("CPU model", &machine.cpu_model, engine.cpu_model().into(), "use the lockstep that recorded it"),
        ("host CPU", &machine.host_cpu, engine.host_cpu(), "replay it on a host with that CPU"),
    ];
    for (what, recorded, here, advice) in fields {
        if *recorded != here {
            return other(what, recorded, &here, advice);
        }
    }
    Ok(engine)
}
