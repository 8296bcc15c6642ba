//! Replays a log in another virtual machine.

use logchannel::{LogEntry, Output, Seq};
use replay::{Divergence, Ending, Machine as _, Progress, PushError, ReplayError, Replayer};

use crate::machine::{State, Vm};
use crate::recording::Recording;
use crate::rng::Rng;

/// How the entries come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// All at once.
    Whole,
    /// In batches of random sizes, with the guest running as far as it gets in between.
    Batches(u64),
    /// One by one, with a digest of the machine taken after each, which must change nothing.
    Observed,
}

/// A replay under way.
pub struct Replay {
    pub replayer: Replayer<Vm>,
    pub outputs: Vec<Output>,
}

impl Replay {
    pub fn new(machine: Vm) -> Self {
        Self { replayer: Replayer::new(machine), outputs: Vec::new() }
    }

    /// Pushes entries.
    pub fn push(&mut self, entries: &[LogEntry]) -> Result<(), Box<Divergence>> {
        for entry in entries {
            self.replayer.push(entry.clone()).map_err(|error| match error {
                PushError::Diverged(divergence) => divergence,
                PushError::Full => panic!("{error}"),
            })?;
        }
        Ok(())
    }

    /// One `advance`; false when there is nothing more to execute.
    pub fn advance(&mut self) -> Result<bool, Box<Divergence>> {
        match self.replayer.advance() {
            Ok(Progress::Executed { output, .. }) => {
                self.outputs.extend(output);
                Ok(true)
            }
            Ok(Progress::Running) => Ok(true),
            Ok(Progress::NeedEntries | Progress::Ended(_)) => Ok(false),
            Err(ReplayError::Diverged(divergence)) => Err(divergence),
            Err(ReplayError::Machine(error)) => panic!("the machine failed: {error}"),
        }
    }

    /// Executes everything pushed.
    pub fn run(&mut self) -> Result<(), Box<Divergence>> {
        while self.advance()? {}
        Ok(())
    }

    /// Executes up to and with entry `seq`, of which all are pushed.
    pub fn run_to(&mut self, seq: Seq) -> Result<(), Box<Divergence>> {
        while self.replayer.executed() < seq && self.advance()? {}
        Ok(())
    }

    /// How the guest ended, if it did.
    pub fn ending(&mut self) -> Option<Ending> {
        match self.replayer.advance() {
            Ok(Progress::Ended(ending)) => Some(ending),
            _ => None,
        }
    }

    pub fn state(&mut self) -> State {
        State::of(self.replayer.machine_mut())
    }
}

/// Replays a log to its end on `machine`.
pub fn replay(log: &[LogEntry], machine: Vm, how: How) -> Result<Replay, Box<Divergence>> {
    let mut replay = Replay::new(machine);
    match how {
        How::Whole => {
            replay.push(log)?;
            replay.run()?;
        }
        How::Batches(seed) => {
            let (mut rng, mut rest) = (Rng::new(seed, 3), log);
            while !rest.is_empty() {
                let count =
                    rng.within(1, *rng.clone().pick(&[1, 3, 20, 400])).min(rest.len() as u64) as usize;
                replay.push(&rest[..count])?;
                rest = &rest[count..];
                let steps = *rng.pick(&[0, 1, 5, u64::MAX]);
                for _ in 0..steps {
                    if !replay.advance()? {
                        break;
                    }
                }
            }
            replay.run()?;
        }
        How::Observed => {
            for entry in log {
                replay.push(std::slice::from_ref(entry))?;
                replay.run()?;
                replay.replayer.machine_mut().digest().expect("a digest");
            }
        }
    }
    Ok(replay)
}

/// Replays a recording and asserts that everything is equal: outputs, ending, registers, devices, every byte
/// of RAM. The digests on the way are compared by the replayer.
pub fn assert_same(recording: &Recording, machine: Vm, how: How) {
    let mut replay =
        replay(&recording.log, machine, how).unwrap_or_else(|divergence| panic!("{how:?}: {divergence}"));
    assert_eq!(replay.replayer.executed(), recording.log.len() as u64, "{how:?}: every entry was executed");
    assert!(replay.outputs == recording.outputs, "{how:?}: outputs differ");
    assert_eq!(replay.ending(), recording.ending, "{how:?}");
    assert_eq!(replay.state().diff(&recording.last), Vec::<String>::new(), "{how:?}");
}
