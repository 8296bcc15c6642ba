//! The replayer: runs a machine along a log, entry by entry, and checks that it takes the recorded path.
//!
//! ```text
//!            push                 run to entry.at, check, apply
//!  entries ───────▶ held ──▶ advance ──▶ Executed { seq, output }
//!                                 │ any mismatch
//!                                 ▼
//!                             Divergence: stopped for good
//! ```
//!
//! Invariants: an input is applied at the position in its entry, never later, never earlier; the machine
//! never runs past the last entry held; a replayer that diverged never executes again and never becomes a
//! recorder.

use std::collections::VecDeque;

use logchannel::{Event, LogEntry, Output, Position, Seq};

use crate::divergence::{Difference, Divergence};
use crate::machine::{Ending, Machine};
use crate::record::{ClockPolicy, Guest, Recorder, Reset, is_input};

/// How many executed entries a report of a divergence shows.
pub const RECENT: usize = 16;

/// Most stops of the machine in one `advance`, so that the caller stays responsive.
pub const BATCH: u32 = 256;

/// Most entries held and not yet executed. Senders keep a smaller window, so this stops a peer that does not.
pub const MAX_HELD: usize = 1 << 20;

/// What `advance` came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Every entry held was executed.
    NeedEntries,
    /// The machine is on its way to the next entry: call again.
    Running,
    /// One entry was executed.
    Executed {
        /// Its number.
        seq: Seq,
        /// The output that it checked, if it is one: to be kept until it is known to be released.
        output: Option<Output>,
        /// The disk request that it completed, if it completes one.
        completed: Option<u64>,
    },
    /// Every entry held was executed, and the guest ended.
    Ended(Ending),
}

/// Why an entry cannot be pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The log has a gap or goes back: the replica is stopped.
    #[error(transparent)]
    Diverged(Box<Divergence>),
    /// More entries than `MAX_HELD` are held; the entry was not taken.
    #[error("{MAX_HELD} log entries are held and not yet executed: the sender ignores its window")]
    Full,
}

/// Why the replica cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError<E: std::error::Error + 'static> {
    /// It did not take the path of the log.
    #[error(transparent)]
    Diverged(Box<Divergence>),
    /// The machine failed: the host's or the monitor's fault.
    #[error("the machine failed: {0}")]
    Machine(#[source] E),
}

/// Runs a machine along a log.
#[derive(Debug, Clone)]
pub struct Replayer<M> {
    machine: M,
    held: VecDeque<LogEntry>,
    /// Number and position of the last entry pushed.
    pushed: Seq,
    pushed_at: Position,
    executed: Seq,
    agreed: Seq,
    guest: Guest,
    /// Outputs that the guest made at its current position and that no entry has matched yet.
    made: VecDeque<Output>,
    /// The guest reset its machine there, after those outputs, and no entry has said so yet.
    reset: bool,
    recent: VecDeque<LogEntry>,
    diverged: Option<Box<Divergence>>,
}

impl<M: Machine> Replayer<M> {
    /// Replays a log from its beginning: the machine is as it was when recording started.
    pub fn new(machine: M) -> Self {
        Self::resume(machine, 1)
    }

    /// Replays a log from entry `next_seq` on: the machine is as it was after the entry before.
    pub fn resume(machine: M, next_seq: Seq) -> Self {
        assert!(next_seq >= 1, "the first entry is number 1");
        Self {
            pushed_at: machine.position(),
            machine,
            held: VecDeque::new(),
            pushed: next_seq - 1,
            executed: next_seq - 1,
            agreed: 0,
            guest: Guest::Runs,
            made: VecDeque::new(),
            reset: false,
            recent: VecDeque::with_capacity(RECENT),
            diverged: None,
        }
    }

    /// The machine.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// The machine, for what leaves its state and position as they are (register and page differences).
    pub fn machine_mut(&mut self) -> &mut M {
        &mut self.machine
    }

    /// Gives the machine back.
    pub fn into_machine(self) -> M {
        self.machine
    }

    /// Number of the last entry executed.
    pub fn executed(&self) -> Seq {
        self.executed
    }

    /// Number of the last entry pushed.
    pub fn pushed(&self) -> Seq {
        self.pushed
    }

    /// Whether the machine's state says all that there is to go on with: no output and no
    /// reset waits for its entry.
    pub fn is_settled(&self) -> bool {
        self.made.is_empty() && !self.reset
    }

    /// How the guest ended, if it did.
    pub fn ending(&self) -> Option<&Ending> {
        match &self.guest {
            Guest::Ended(ending) => Some(ending),
            Guest::Runs | Guest::Waits { .. } => None,
        }
    }

    /// The divergence, once there was one.
    pub fn divergence(&self) -> Option<&Divergence> {
        self.diverged.as_deref()
    }

    /// Adds the next entry of the log.
    pub fn push(&mut self, entry: LogEntry) -> Result<(), PushError> {
        if let Some(divergence) = &self.diverged {
            return Err(PushError::Diverged(divergence.clone()));
        }
        let expected = self.pushed + 1;
        if entry.seq != expected {
            let difference = Difference::Sequence { expected, found: entry.seq };
            return Err(PushError::Diverged(self.diverge(entry.seq, difference)));
        }
        if entry.at.count < self.pushed_at.count {
            let difference = Difference::PositionDecreases { previous: self.pushed_at, found: entry.at };
            return Err(PushError::Diverged(self.diverge(entry.seq, difference)));
        }
        if self.held.len() >= MAX_HELD {
            return Err(PushError::Full);
        }
        self.pushed = entry.seq;
        self.pushed_at = entry.at;
        self.held.push_back(entry);
        Ok(())
    }

    /// Goes on to the next entry held, for at most `BATCH` stops of the machine, and executes it.
    pub fn advance(&mut self) -> Result<Progress, ReplayError<M::Error>> {
        let progress = self.go(None)?;
        Ok(progress.expect("there is no limit"))
    }

    /// As `advance`, but the machine runs no further than `limit`. `None` when it is there and every entry
    /// held that lies there is executed.
    pub fn advance_to(&mut self, limit: Position) -> Result<Option<Progress>, ReplayError<M::Error>> {
        self.go(Some(limit))
    }

    fn go(&mut self, limit: Option<Position>) -> Result<Option<Progress>, ReplayError<M::Error>> {
        if let Some(divergence) = &self.diverged {
            return Err(ReplayError::Diverged(divergence.clone()));
        }
        for _ in 0..BATCH {
            self.collect_outputs();
            let Some(entry) = self.held.front() else {
                return Ok(Some(match &self.guest {
                    Guest::Ended(ending) => Progress::Ended(ending.clone()),
                    Guest::Runs | Guest::Waits { .. } => Progress::NeedEntries,
                }));
            };
            let (seq, at) = (entry.seq, entry.at);
            if self.machine.position() == at {
                let entry = self.held.pop_front().expect("just seen");
                return self.execute(entry).map(Some);
            }
            if let Some(difference) = self.cannot_run(at) {
                return Err(ReplayError::Diverged(self.diverge(seq, difference)));
            }
            let to = match limit.filter(|limit| limit.count < at.count) {
                Some(limit) if self.machine.position().count >= limit.count => return Ok(None),
                limit => limit.unwrap_or(at),
            };
            self.run_towards(seq, to)?;
            if limit.is_some_and(|limit| self.machine.position().count >= limit.count) {
                // The caller may want to stop here, before the entries of this position.
                return Ok(Some(Progress::Running));
            }
        }
        Ok(Some(Progress::Running))
    }

    /// Goes live: the machine runs on from the last entry, and the log continues with the next number.
    /// Outputs that the guest made at this position and whose entries never arrived are the first to be
    /// logged; so is a reset.
    ///
    /// Panics when entries are held that were not executed, or after a divergence: DESIGN 8.
    pub fn into_recorder(self, policy: ClockPolicy, host_ns: u64) -> Recorder<M> {
        assert!(self.diverged.is_none(), "a replica that diverged does not go live");
        assert!(self.held.is_empty(), "{} entries are not executed yet", self.held.len());
        assert_eq!(self.executed, self.pushed, "every entry is executed before going live");
        let reset = if self.reset { Reset::Made } else { Reset::Logged };
        Recorder::resume(self.machine, self.executed + 1, self.guest, (self.made, reset), policy, host_ns)
    }

    fn collect_outputs(&mut self) {
        while let Some(output) = self.machine.take_output() {
            self.made.push_back(output);
        }
        self.reset |= self.machine.take_reset();
    }

    /// Why the machine cannot be run from where it is to `to`, the next entry's position.
    fn cannot_run(&self, to: Position) -> Option<Difference> {
        let found = self.machine.position();
        if let Some(output) = self.made.front() {
            return Some(not_logged(output, format!("nothing before position {to}")));
        }
        if self.reset {
            return Some(Difference::ResetNotLogged { expected: format!("nothing before position {to}") });
        }
        if found.count > to.count {
            return Some(Difference::PositionPassed { expected: to, found });
        }
        match &self.guest {
            Guest::Runs => None,
            Guest::Waits { deadline_ns } => {
                Some(Difference::Waits { expected: to, found, deadline_ns: *deadline_ns })
            }
            Guest::Ended(ending) => {
                Some(Difference::Ended { expected: to, found, ending: ending.to_string() })
            }
        }
    }

    fn run_towards(&mut self, seq: Seq, to: Position) -> Result<(), ReplayError<M::Error>> {
        let before = self.machine.position();
        let stop = self.machine.run(Some(to)).map_err(ReplayError::Machine)?;
        let after = self.machine.position();
        assert!(after.count >= before.count, "position {after} after {before}");
        self.guest = Guest::after(stop);
        if after.count > to.count || (after == before && self.guest == Guest::Runs) {
            let difference = Difference::PositionPassed { expected: to, found: after };
            return Err(ReplayError::Diverged(self.diverge(seq, difference)));
        }
        Ok(())
    }

    /// Checks and applies the entry at whose position the machine is.
    fn execute(&mut self, entry: LogEntry) -> Result<Progress, ReplayError<M::Error>> {
        let seq = entry.seq;
        let (mut output, mut completed) = (None, None);
        if let Some(difference) = self.check(&entry).map_err(ReplayError::Machine)? {
            return Err(ReplayError::Diverged(self.diverge(seq, difference)));
        }
        match &entry.event {
            Event::Output { .. } => output = self.made.pop_front(),
            Event::Digest(_) => self.agreed = seq,
            Event::Shutdown => self.guest = Guest::Ended(Ending::Shutdown),
            Event::Reset => self.reset = false,
            Event::GoLive { .. } | Event::HandOver => {}
            input => {
                if let Event::DiskDone { request, .. } = input {
                    completed = Some(*request);
                }
                // What the log says cannot happen to this machine: it is not the recorded one any more.
                if let Err(error) = self.machine.apply(input) {
                    let event = format!("{} ({error})", input.name());
                    return Err(ReplayError::Diverged(self.diverge(seq, Difference::InputRefused { event })));
                }
                assert_eq!(self.machine.position(), entry.at, "applying an input moved the guest");
                self.guest.after_input();
            }
        }
        assert_eq!(seq, self.executed + 1, "entries are executed in order");
        self.executed = seq;
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(entry);
        Ok(Progress::Executed { seq, output, completed })
    }

    /// What of the entry disagrees with the machine, which is at the entry's position.
    fn check(&mut self, entry: &LogEntry) -> Result<Option<Difference>, M::Error> {
        let event = &entry.event;
        if let Event::Output { kind, digest } = *event {
            let Some(output) = self.made.front() else {
                return Ok(Some(Difference::OutputMissing { expected: kind, expected_digest: digest }));
            };
            let (found, found_digest) = (output.kind(), output.digest());
            let same = (found, found_digest) == (kind, digest);
            let expected_digest = digest;
            return Ok((!same).then_some(Difference::Output {
                expected: kind,
                expected_digest,
                found,
                found_digest,
            }));
        }
        if let Some(output) = self.made.front() {
            return Ok(Some(not_logged(output, event.name().to_string())));
        }
        match (self.reset, event) {
            (true, Event::Reset) => return Ok(None),
            (false, Event::Reset) => return Ok(Some(Difference::ResetMissing)),
            (true, _) => return Ok(Some(Difference::ResetNotLogged { expected: event.name().into() })),
            (false, _) => {}
        }
        if let Event::Digest(expected) = *event {
            let found = self.machine.digest()?;
            return Ok((found != expected).then_some(Difference::State { expected, found }));
        }
        if let (Guest::Ended(ending), true) = (&self.guest, is_input(event)) {
            let (expected, found) = (entry.at, self.machine.position());
            return Ok(Some(Difference::Ended { expected, found, ending: ending.to_string() }));
        }
        if let Event::Clock { now_ns } = *event
            && now_ns < self.machine.now_ns()
        {
            return Ok(Some(Difference::ClockBackwards { expected: now_ns, found: self.machine.now_ns() }));
        }
        let refused = is_input(event) && !self.machine.accepts(event);
        Ok(refused.then(|| Difference::InputRefused { event: event.name().to_string() }))
    }

    fn diverge(&mut self, seq: Seq, difference: Difference) -> Box<Divergence> {
        let divergence = Box::new(Divergence {
            seq,
            at: self.machine.position(),
            difference,
            agreed: self.agreed,
            recent: self.recent.iter().cloned().collect(),
            notes: Vec::new(),
            replay_command: None,
        });
        tracing::error!(seq, at = %divergence.at, "{}", divergence.difference);
        self.held.clear();
        self.diverged = Some(divergence.clone());
        divergence
    }
}

fn not_logged(output: &Output, expected: String) -> Difference {
    Difference::OutputNotLogged { expected, found: output.kind(), found_digest: output.digest() }
}

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
