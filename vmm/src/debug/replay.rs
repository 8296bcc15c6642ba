//! A recording under a debugger, forwards and backwards.
//!
//! Backwards is forwards from an earlier state: one step back is a seek to the position before; the last stop
//! before here is found by playing the log from checkpoint after checkpoint, the last first, and noting what
//! would have stopped it. Engines that stop at any instruction only: elsewhere a position has many
//! instructions.

use gdbstub::target::ext::base::reverse_exec::ReplayLogPosition;
use logchannel::{Position, Seq};

use crate::debug::debugger::{Rewind, Stop};
use crate::debug::{Debugging, lock};
use crate::engine::EngineError;
use crate::machine::MachineError;
use crate::recording::{Arrival, Session, SessionError};

/// How far a replay goes: there a debugger is told that the log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// To the end of the log.
    End,
    /// To a position.
    Position(Position),
    /// Until this entry is executed.
    Entry(Seq),
}

impl Goal {
    fn run(self, session: &mut Session) -> Result<Arrival, SessionError> {
        match self {
            Goal::End => session.run_to_end(),
            Goal::Position(to) => session.run_to(to),
            Goal::Entry(seq) => session.run_to_entry(seq),
        }
    }
}

/// Plays on to its goal, and then as long as a debugger is there.
pub fn play(session: &mut Session, debugging: &Debugging, goal: Goal) -> Result<Arrival, SessionError> {
    let Some(debugger) = &debugging.shared else { return goal.run(session) };
    let mut arrived = None;
    loop {
        let moved = match &arrived {
            None => goal.run(session).map(|arrival| {
                lock(debugger).say(end());
                arrived = Some(arrival);
            }),
            Some(_) => Ok(()),
        };
        let attended = moved.and_then(|()| Ok(session.machine_mut().attend()?));
        match attended {
            Err(SessionError::Machine(MachineError::Engine(EngineError::Rewind))) => {
                arrived = None;
                let Some(rewind) = debugging.take_rewind() else { continue };
                go_back(session, debugging, rewind)?;
            }
            Err(error) => return Err(error),
            Ok(()) if lock(debugger).is_attached() => arrived = None,
            Ok(()) => {
                if let Some(arrival) = arrived {
                    return Ok(arrival);
                }
            }
        }
    }
}

fn end() -> Stop {
    Stop::ReplayLog { tid: None, pos: ReplayLogPosition::End }
}

fn go_back(session: &mut Session, debugging: &Debugging, rewind: Rewind) -> Result<(), SessionError> {
    let Some(debugger) = &debugging.shared else { return Ok(()) };
    let first = session.recording().checkpoints()[0].at.count;
    let stop = match rewind {
        Rewind::Step(here) if here.count > first => {
            lock(debugger).quiet(true);
            // The run that was given up left the machine where it was, but its replayer is no use any more.
            let moved = session.rewind(Position::at(here.count - 1));
            lock(debugger).quiet(false);
            moved?;
            Stop::DoneStep
        }
        Rewind::Continue(here) if here.count > first => match last_stop(session, debugging, here)? {
            Some((at, stop)) => {
                quietly(session, debugging, at)?;
                stop
            }
            None => {
                quietly(session, debugging, first)?;
                Stop::ReplayLog { tid: None, pos: ReplayLogPosition::Begin }
            }
        },
        _ => {
            quietly(session, debugging, first)?;
            Stop::ReplayLog { tid: None, pos: ReplayLogPosition::Begin }
        }
    };
    lock(debugger).say(stop);
    Ok(())
}

fn quietly(session: &mut Session, debugging: &Debugging, to: u64) -> Result<(), SessionError> {
    let Some(debugger) = &debugging.shared else { return Ok(()) };
    lock(debugger).quiet(true);
    let moved = session.rewind(Position::at(to));
    lock(debugger).quiet(false);
    moved.map(|_| ())
}

/// The last position before `here` at which the debugger's points stop the guest, and by what.
fn last_stop(
    session: &mut Session,
    debugging: &Debugging,
    here: Position,
) -> Result<Option<(u64, Stop)>, SessionError> {
    let Some(debugger) = &debugging.shared else { return Ok(None) };
    let starts: Vec<u64> = session.recording().checkpoints().iter().map(|point| point.at.count).collect();
    let mut to = here.count;
    for start in starts.into_iter().rev().filter(|start| *start < here.count) {
        quietly(session, debugging, start)?;
        lock(debugger).scan(true);
        let moved = session.run_to(Position::at(to));
        let found = lock(debugger).scan(false);
        moved?;
        if found.is_some() {
            return Ok(found);
        }
        to = start;
    }
    Ok(None)
}
