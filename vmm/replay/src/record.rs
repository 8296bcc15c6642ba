//! The recorder: runs a machine, lets inputs in at its stops, and writes down each of them with its position,
//! and each output.
//!
//! ```text
//!  advance: run ─▶ stop at P ─▶ Output entries at P (one per output made)
//!                               Reset and Digest at P, if the guest reset its machine there
//!  offer:                       [Clock at P]  input at P  Output entries at P (made by applying it)
//! ```
//!
//! Invariants, asserted: sequence numbers are consecutive; positions never decrease; the virtual clock is
//! never set back; nothing is logged after the guest ended but `Digest` and `GoLive`.

use std::collections::VecDeque;

use logchannel::{Event, Generation, LogEntry, Output, Position, Seq};

use crate::machine::{Ending, Machine, Stop};
use crate::pace::Pace;

/// Most that the virtual clock stays behind host time before a `Clock` entry, unless told otherwise.
pub const CLOCK_BOUND_NS: u64 = 1_000_000;
/// Least that it is behind for a timer's sake: less is not worth an entry, however often a guest's timers are
/// due.
pub const TIMER_BOUND_NS: u64 = 20_000;

/// How host time becomes virtual time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockPolicy {
    /// The virtual clock follows the host's.
    Host {
        /// How far it may stay behind, in nanoseconds.
        bound_ns: u64,
    },
    /// No host time enters: idle time is skipped.
    Virtual,
}

impl Default for ClockPolicy {
    fn default() -> Self {
        ClockPolicy::Host { bound_ns: CLOCK_BOUND_NS }
    }
}

/// An entry just appended to the log, with the content of the output if it is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The entry.
    pub entry: LogEntry,
    /// The content, present exactly for `Event::Output`.
    pub output: Option<Output>,
}

/// What became of an input.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Offer {
    /// Applied and logged.
    Applied,
    /// The guest has no room now: nothing was logged, offer it again at a later stop.
    Refused(Event),
}

/// What the guest does between calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Guest {
    Runs,
    Waits { deadline_ns: Option<u64> },
    Ended(Ending),
}

impl Guest {
    pub(crate) fn after(stop: Stop) -> Self {
        match stop {
            Stop::Ready => Guest::Runs,
            Stop::Waiting { deadline_ns } => Guest::Waits { deadline_ns },
            Stop::Ended(ending) => Guest::Ended(ending),
        }
    }

    /// After an input: only running tells whether it woke a waiting guest.
    pub(crate) fn after_input(&mut self) {
        if matches!(self, Guest::Waits { .. }) {
            *self = Guest::Runs;
        }
    }
}

/// What of a reset by the guest is still to be logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Reset {
    /// Nothing.
    #[default]
    Logged,
    /// That it happened, and the state that the guest starts again in.
    Made,
    /// That state.
    Undigested,
}

/// Whether an event changes the machine and so passes `Machine::accepts` and `Machine::apply`. No machine
/// accepts a `DiskRead`: whoever received it puts the data in its place first.
pub(crate) fn is_input(event: &Event) -> bool {
    match event {
        Event::NetRx(_)
        | Event::ConsoleRx(_)
        | Event::DiskDone { .. }
        | Event::Clock { .. }
        | Event::Trap { .. }
        | Event::DiskRead { .. }
        | Event::PowerButton => true,
        Event::Output { .. }
        | Event::Digest(_)
        | Event::Shutdown
        | Event::Reset
        | Event::GoLive { .. }
        | Event::HandOver => false,
    }
}

/// Runs a machine and keeps its log. Entries are handed out through the `out` of each call, in order.
#[derive(Debug, Clone)]
pub struct Recorder<M> {
    machine: M,
    next_seq: Seq,
    last_at: Position,
    guest: Guest,
    /// Outputs made before this recorder took over, whose entries are still to be logged.
    carried: VecDeque<Output>,
    /// A reset made before, or just now, whose entries are still to be logged.
    reset: Reset,
    policy: ClockPolicy,
    anchor_host_ns: u64,
    anchor_virtual_ns: u64,
    /// Where the virtual clock should be by the last host time told.
    target_ns: u64,
    pace: Pace,
}

impl<M: Machine> Recorder<M> {
    /// Starts a log with the machine as it is; its first entry is number 1. `host_ns` is the host's monotonic
    /// clock now, to which the virtual clock is tied from here on.
    pub fn new(machine: M, policy: ClockPolicy, host_ns: u64) -> Self {
        Self::resume(machine, 1, Guest::Runs, (VecDeque::new(), Reset::Logged), policy, host_ns)
    }

    pub(crate) fn resume(
        machine: M,
        next_seq: Seq,
        guest: Guest,
        (carried, reset): (VecDeque<Output>, Reset),
        policy: ClockPolicy,
        host_ns: u64,
    ) -> Self {
        let now_ns = machine.now_ns();
        Self {
            last_at: machine.position(),
            machine,
            next_seq,
            guest,
            carried,
            reset,
            policy,
            anchor_host_ns: host_ns,
            anchor_virtual_ns: now_ns,
            target_ns: now_ns,
            pace: Pace::new(),
        }
    }

    /// The machine.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// The machine, for what leaves its state and position as they are (statistics, saving it).
    pub fn machine_mut(&mut self) -> &mut M {
        &mut self.machine
    }

    /// Gives the machine back.
    pub fn into_machine(self) -> M {
        self.machine
    }

    /// How host time becomes virtual time.
    pub fn policy(&self) -> ClockPolicy {
        self.policy
    }

    /// Number of the next entry.
    pub fn next_seq(&self) -> Seq {
        self.next_seq
    }

    /// How the guest ended, if it did.
    pub fn ending(&self) -> Option<&Ending> {
        match &self.guest {
            Guest::Ended(ending) => Some(ending),
            Guest::Runs | Guest::Waits { .. } => None,
        }
    }

    /// What the last stop was, or would be if the guest did not run now.
    pub fn stop(&self) -> Stop {
        match &self.guest {
            Guest::Runs => Stop::Ready,
            Guest::Waits { deadline_ns } => Stop::Waiting { deadline_ns: *deadline_ns },
            Guest::Ended(ending) => Stop::Ended(ending.clone()),
        }
    }

    /// Runs the guest to its next stop and logs the outputs it made, at their own position. A guest that
    /// waits is not run until an input was applied. When the guest ends, a `Digest` of its last state closes
    /// the log, so that a replay runs through the end too.
    pub fn advance(&mut self, out: &mut Vec<Recorded>) -> Result<Stop, M::Error> {
        self.log_outputs(out);
        self.digest_reset(out)?;
        if self.guest == Guest::Runs {
            let stop = self.machine.run_slice(self.slice())?;
            self.log_outputs(out);
            self.digest_reset(out)?;
            let ended = matches!(stop, Stop::Ended(_));
            self.guest = Guest::after(stop);
            if ended {
                self.digest(out)?;
            }
        }
        Ok(self.stop())
    }

    /// How far the guest may run before the host's clock is looked at again: to about where its next timer is
    /// due there. Nothing of the host decides that with a virtual clock.
    fn slice(&self) -> u64 {
        let (ClockPolicy::Host { .. }, Some(deadline_ns)) = (self.policy, self.machine.next_deadline_ns())
        else {
            return u64::MAX;
        };
        let due_ns = deadline_ns.max(self.machine.now_ns().saturating_add(TIMER_BOUND_NS));
        self.pace.counts_in(due_ns.saturating_sub(self.target_ns))
    }

    /// Whether a timer of a running guest is due by the host's clock and not by its own.
    fn timer_is_late(&self) -> bool {
        let now_ns = self.machine.now_ns();
        let behind_ns = self.target_ns.saturating_sub(now_ns);
        behind_ns >= TIMER_BOUND_NS
            && self.machine.next_deadline_ns().is_some_and(|due| now_ns < due && due <= self.target_ns)
    }

    /// Offers an input at the current position. Before an input to a waiting guest, the clock is brought up
    /// to the last host time that `clock` was told.
    ///
    /// Panics on events that are no input, and on `Clock`, which `clock` makes.
    pub fn offer(&mut self, input: Event, out: &mut Vec<Recorded>) -> Result<Offer, M::Error> {
        assert!(is_input(&input), "{} is no input", input.name());
        assert!(!matches!(input, Event::Clock { .. }), "Clock entries are made by Recorder::clock");
        self.log_outputs(out);
        if self.ending().is_some() || !self.machine.accepts(&input) {
            return Ok(Offer::Refused(input));
        }
        if let (Guest::Waits { .. }, ClockPolicy::Host { bound_ns }) = (&self.guest, self.policy)
            && self.target_ns.saturating_sub(self.machine.now_ns()) > bound_ns
        {
            self.set_clock(self.target_ns, out)?;
            if !self.machine.accepts(&input) {
                return Ok(Offer::Refused(input));
            }
        }
        self.apply(input, out)?;
        Ok(Offer::Applied)
    }

    /// Tells the host's monotonic clock. Logs a `Clock` entry when it ran ahead of the virtual clock of a
    /// running guest by more than the bound or past a timer, or when the deadline of a waiting guest is due.
    /// Returns whether it did.
    pub fn clock(&mut self, host_ns: u64, out: &mut Vec<Recorded>) -> Result<bool, M::Error> {
        let elapsed_ns = host_ns.saturating_sub(self.anchor_host_ns);
        let target_ns = self.anchor_virtual_ns.saturating_add(elapsed_ns).max(self.target_ns);
        self.target_ns = target_ns;
        let now_ns = self.machine.now_ns();
        self.pace.look(host_ns, self.machine.position().count, self.guest == Guest::Runs);
        let due = match (&self.guest, self.policy) {
            (Guest::Ended(_), _) | (Guest::Waits { deadline_ns: None }, _) => None,
            (Guest::Runs, ClockPolicy::Virtual) => None,
            (Guest::Runs, ClockPolicy::Host { bound_ns }) => {
                (target_ns.saturating_sub(now_ns) > bound_ns || self.timer_is_late()).then_some(target_ns)
            }
            (Guest::Waits { deadline_ns: Some(deadline) }, ClockPolicy::Host { .. }) => {
                (target_ns >= *deadline).then_some(target_ns)
            }
            (Guest::Waits { deadline_ns: Some(deadline) }, ClockPolicy::Virtual) => Some(*deadline),
        };
        match due {
            Some(due_ns) if due_ns > now_ns => {
                self.log_outputs(out);
                self.set_clock(due_ns, out)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Host time, on the clock that `clock` is told, at which the deadline of a waiting guest is due: until
    /// then only an input can wake it. With a virtual clock it is due at once.
    pub fn host_deadline_ns(&self) -> Option<u64> {
        let Guest::Waits { deadline_ns: Some(deadline) } = self.guest else { return None };
        Some(match self.policy {
            ClockPolicy::Virtual => 0,
            ClockPolicy::Host { .. } => {
                self.anchor_host_ns.saturating_add(deadline.saturating_sub(self.anchor_virtual_ns))
            }
        })
    }

    /// Logs a fingerprint of the machine as it is now.
    pub fn digest(&mut self, out: &mut Vec<Recorded>) -> Result<(), M::Error> {
        self.log_outputs(out);
        let digest = self.machine.digest()?;
        self.append(Event::Digest(digest), None, out);
        self.reset = Reset::Logged;
        Ok(())
    }

    /// Logs the state in which a guest starts again that reset its machine.
    fn digest_reset(&mut self, out: &mut Vec<Recorded>) -> Result<(), M::Error> {
        match self.reset {
            Reset::Undigested => self.digest(out),
            Reset::Logged | Reset::Made => Ok(()),
        }
    }

    /// Logs that this copy went live under `generation`.
    pub fn go_live(&mut self, generation: Generation, out: &mut Vec<Recorded>) {
        self.log_outputs(out);
        self.append(Event::GoLive { generation }, None, out);
    }

    /// Logs that this copy hands over where the guest stands now.
    pub fn hand_over(&mut self, out: &mut Vec<Recorded>) {
        self.log_outputs(out);
        self.append(Event::HandOver, None, out);
    }

    /// Powers the machine off from outside: the log ends here. Does nothing when the guest ended before.
    pub fn shutdown(&mut self, out: &mut Vec<Recorded>) -> Result<(), M::Error> {
        if self.ending().is_some() {
            return Ok(());
        }
        self.digest(out)?;
        self.append(Event::Shutdown, None, out);
        self.guest = Guest::Ended(Ending::Shutdown);
        Ok(())
    }

    fn set_clock(&mut self, now_ns: u64, out: &mut Vec<Recorded>) -> Result<(), M::Error> {
        assert!(now_ns > self.machine.now_ns(), "the virtual clock never goes back");
        let event = Event::Clock { now_ns };
        match self.machine.accepts(&event) {
            true => self.apply(event, out),
            false => Ok(()),
        }
    }

    fn apply(&mut self, input: Event, out: &mut Vec<Recorded>) -> Result<(), M::Error> {
        let before = self.machine.position();
        self.machine.apply(&input)?;
        assert_eq!(self.machine.position(), before, "applying an input moved the guest");
        self.guest.after_input();
        self.append(input, None, out);
        self.log_outputs(out);
        Ok(())
    }

    fn log_outputs(&mut self, out: &mut Vec<Recorded>) {
        while let Some(output) = self.carried.pop_front().or_else(|| self.machine.take_output()) {
            let event = Event::Output { kind: output.kind(), digest: output.digest() };
            self.append(event, Some(output), out);
        }
        if self.machine.take_reset() || self.reset == Reset::Made {
            self.append(Event::Reset, None, out);
            self.reset = Reset::Undigested;
        }
    }

    fn append(&mut self, event: Event, output: Option<Output>, out: &mut Vec<Recorded>) {
        let at = self.machine.position();
        assert!(at.count >= self.last_at.count, "position {at} after {}", self.last_at);
        if self.ending().is_some() {
            assert!(!is_input(&event), "{} after the guest ended", event.name());
        }
        self.last_at = at;
        out.push(Recorded { entry: LogEntry { seq: self.next_seq, at, event }, output });
        self.next_seq += 1;
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
