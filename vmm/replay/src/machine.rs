//! What the recorder and the replayer need of a machine.

use logchannel::{Event, MachineDigest, Output, Position};

/// Why `Machine::run` came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// At a position where inputs may be applied; the guest has more to do.
    Ready,
    /// The guest waits (HLT, or the wait port): it can go on only after an input that wakes it, or after
    /// `Event::Clock` with at least `deadline_ns`.
    Waiting {
        /// Virtual time at which a device timer or the guest's own deadline is due, nanoseconds since
        /// power-on.
        deadline_ns: Option<u64>,
    },
    /// The guest ended; it never runs again.
    Ended(Ending),
}

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// It switched itself off, with the exit status it gave, if it gave one.
    PowerOff(u8),
    /// It asked for a reset, or shut down by triple fault, and its machine does not start it again.
    Reset,
    /// It reset its machine more often than this within a minute of its time.
    ResetLoop {
        /// How often it may.
        limit: u32,
    },
    /// It can never run again by its own doing (HLT with interrupts disabled, an instruction that the engine
    /// does not support); why.
    Stuck(String),
    /// It was powered off from outside (`Event::Shutdown`). Machines never say this, recorders do.
    Shutdown,
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ending::PowerOff(status) => write!(f, "the guest switched itself off, status {status}"),
            Ending::Reset => write!(f, "the guest asked for a reset"),
            Ending::ResetLoop { limit } => {
                write!(f, "the guest reset itself more than {limit} times within a minute of its time")
            }
            Ending::Stuck(why) => write!(f, "the guest can never run again: {why}"),
            Ending::Shutdown => write!(f, "powered off from outside"),
        }
    }
}

/// A deterministic machine: the same inputs at the same positions give the same outputs, states and digests.
///
/// Invariants (asserted by recorder and replayer): positions never decrease; `run(Some(until))` never passes
/// `until`; outputs come in the order in which the guest made them; a run stops where the guest makes an
/// output, so that `position` is then the output's own position (several outputs of one position are fine).
///
/// Inputs are the events `NetRx`, `ConsoleRx`, `DiskDone`, `Clock`, `Trap` and `PowerButton`. No machine
/// accepts `DiskRead`; the others concern the log only and never reach `accepts` or `apply`. `apply` may make
/// outputs, and may wake a waiting guest.
pub trait Machine {
    /// A failure of the host or of the monitor, never of the guest.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Where the guest is.
    fn position(&self) -> Position;

    /// Runs the guest to the next position at which inputs may be applied, at least one step on, but not past
    /// `until`. When it is at `until` already, it does not run. Must not be called while the guest waits and
    /// nothing has woken it: that returns `Waiting` again at the same position.
    fn run(&mut self, until: Option<Position>) -> Result<Stop, Self::Error>;

    /// As `run(None)`, but back after about `most` counts of the position; machines that stop where the guest
    /// does anyway take no notice.
    fn run_slice(&mut self, most: u64) -> Result<Stop, Self::Error> {
        let _ = most;
        self.run(None)
    }

    /// Virtual time at which the next timer of the machine raises an interrupt that the guest would take,
    /// whether it waits or runs.
    fn next_deadline_ns(&self) -> Option<u64> {
        None
    }

    /// Whether the guest has room for this input now. Inputs that are not accepted stay with the host and are
    /// offered again at a later position; they are not logged.
    fn accepts(&self, input: &Event) -> bool;

    /// Applies one input at the current position.
    fn apply(&mut self, input: &Event) -> Result<(), Self::Error>;

    /// How many words of entropy the guest waits for: as many `Trap` inputs of kind `Random` are accepted.
    fn entropy_wanted(&self) -> usize {
        0
    }

    /// How many bytes of console input the guest would take now; 0 while it does not listen.
    fn console_wanted(&self) -> usize {
        0
    }

    /// The oldest output not yet taken.
    fn take_output(&mut self) -> Option<Output>;

    /// Whether the guest reset its machine, which then started again, since this was asked last. A run stops
    /// where it happens; outputs that the guest made before come first.
    fn take_reset(&mut self) -> bool {
        false
    }

    /// Virtual time, nanoseconds since power-on.
    fn now_ns(&self) -> u64;

    /// Fingerprint of the whole machine.
    fn digest(&mut self) -> Result<MachineDigest, Self::Error>;
}
