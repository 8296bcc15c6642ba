//! Where two replays of one recording part: two processes play it, each by a lockstep of its own, and are
//! asked for digests at the same places, closer and closer.
//!
//! ```text
//!   checkpoint ──────── lo ─┬─┬─┬─┬─┬─ hi      both play from the checkpoint to each place between; the
//!                      equal           differ  first that differs and the one before are the next hi and lo
//! ```
//!
//! The first difference is then an instruction, or an entry that was executed between two. No replay begins
//! in the middle, at a state that was equal: a fault may sit in what no state shows, and would be gone.

use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use logchannel::{Event, Seq};

use crate::memory::{MemoryError, Ram};
use crate::recording::compare::StateDifference;
use crate::recording::diverge::{Astray, Brief, Parting, Verdict, Whole, entries_at, name};
use crate::recording::format::RecordingError;
use crate::recording::reader::Recording;
use crate::recording::serve::{Answer, Question, read_state};

/// Places between `lo` and `hi` that one pass compares: two passes with few cost more than one with many, a
/// place costs a digest.
const PLACES: u64 = 32;

/// Why two replays cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum AgainstError {
    /// The recording.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// No memory for the guest.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A replay cannot be started.
    #[error("cannot start {command}")]
    Start {
        /// What.
        command: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A replay ended, or talks nonsense.
    #[error("{command}: no answer")]
    Answer {
        /// Which.
        command: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A replay cannot go on.
    #[error("{command}: {why}")]
    Failed {
        /// Which.
        command: String,
        /// Why.
        why: String,
    },
    /// What a replay says of itself contradicts what it said before.
    #[error("a replay that agreed with the log up to position {agreed} says that it parted at {position}")]
    Backwards {
        /// Up to where it agreed.
        agreed: u64,
        /// Where it says that it parted.
        position: u64,
    },
    /// What differed once does not differ again.
    #[error("the replays differed at position {position}, and not when they were repeated")]
    NotAgain {
        /// Where.
        position: u64,
    },
}

/// One replay, in a process of its own; ended when dropped.
struct Player {
    command: String,
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Player {
    /// Starts `command`, a lockstep and perhaps words before it, as the shell reads them.
    fn start(command: &str, file: &Path) -> Result<Self, AgainstError> {
        let start = |source| AgainstError::Start { command: command.into(), source };
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("exec {command} \"$@\"")).arg("sh");
        shell.arg("replay").arg(file).arg("--serve");
        shell.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = shell.spawn().map_err(start)?;
        let (questions, answers) = (child.stdin.take(), child.stdout.take());
        let missing = || start(io::Error::other("it has no pipes"));
        let questions = questions.ok_or_else(missing)?;
        let answers = BufReader::new(answers.ok_or_else(missing)?);
        Ok(Self { command: command.into(), child, questions, answers })
    }

    fn failed(&self, source: io::Error) -> AgainstError {
        AgainstError::Answer { command: self.command.clone(), source }
    }

    fn ask(&mut self, question: Question) -> Result<(), AgainstError> {
        let line = serde_json::to_string(&question).map_err(io::Error::from);
        let sent = line.and_then(|line| writeln!(self.questions, "{line}"));
        sent.map_err(|source| self.failed(source))
    }

    fn answer(&mut self) -> Result<Answer, AgainstError> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line).and_then(|_| Ok(serde_json::from_str(&line)?));
        match read.map_err(|source| self.failed(source))? {
            Answer::Failed { why } => Err(AgainstError::Failed { command: self.command.clone(), why }),
            answer => Ok(answer),
        }
    }

    fn state(&mut self, recording: &Recording) -> Result<Whole, AgainstError> {
        let ram = Ram::new(recording.header().machine.memory_bytes)?;
        self.ask(Question::State)?;
        let Answer::State { bytes } = self.answer()? else {
            return Err(self.failed(io::Error::other("not a state")));
        };
        let read = read_state(&mut self.answers, bytes, ram);
        read.map_err(|source| self.failed(source))
    }
}

/// Both replays.
struct Both<'a> {
    recording: &'a Recording,
    /// The checkpoint at which every pass begins.
    first: usize,
    a: Player,
    b: Player,
}

/// What both answered; equal only if both are somewhere, and in one state.
struct Answers(Answer, Answer);

impl Answers {
    fn same(&self) -> bool {
        matches!(self.0, Answer::At { .. }) && self.0 == self.1
    }
}

impl Both<'_> {
    /// Both work at the same time.
    fn ask(&mut self, question: Question) -> Result<Answers, AgainstError> {
        self.a.ask(question)?;
        self.b.ask(question)?;
        Ok(Answers(self.a.answer()?, self.b.answer()?))
    }

    fn begin(&mut self) -> Result<(), AgainstError> {
        self.ask(Question::Begin { checkpoint: self.first }).map(drop)
    }

    /// Plays to each digest of the log in turn, at last to its end: what was answered first that is not the
    /// same, and the position before at which they were; or the end's answers.
    fn first_look(&mut self, begin: u64) -> Result<(u64, Answers), AgainstError> {
        let recording = self.recording;
        let from = recording.batch_of(recording.checkpoints()[self.first].seq + 1);
        let mut agreed = begin;
        for batch in from..recording.batches().len() {
            for entry in recording.entries(batch)? {
                if !matches!(entry.event, Event::Digest(_)) || entry.at.count < begin {
                    continue;
                }
                let answers = self.ask(Question::Entry { seq: entry.seq })?;
                if !answers.same() {
                    return Ok((agreed, answers));
                }
                agreed = entry.at.count;
            }
        }
        Ok((agreed, self.ask(Question::End)?))
    }

    fn arrive(&mut self, position: u64) -> Result<Answers, AgainstError> {
        self.ask(Question::Arrive { position })
    }

    /// One pass: the last of the places that is equal and the first that is not; `None` if all are equal.
    fn pass(&mut self, lo: u64, hi: u64) -> Result<Option<(u64, u64)>, AgainstError> {
        ascending(lo, hi)?;
        self.begin()?;
        let step = (hi - lo).div_ceil(PLACES).max(1);
        let mut equal = lo;
        while equal < hi {
            let place = (equal + step).min(hi);
            if !self.arrive(place)?.same() {
                return Ok(Some((equal, place)));
            }
            equal = place;
        }
        Ok(None)
    }

    /// Where both part, when they are equal on arrival at `lo`.
    fn narrow(&mut self, mut lo: u64, mut hi: u64) -> Result<Parting, AgainstError> {
        ascending(lo, hi)?;
        let end = hi;
        while hi - lo > 1 {
            match self.pass(lo, hi)? {
                Some(found) => (lo, hi) = found,
                // What was seen at the end of the log, or at an entry there, came of an entry there.
                None if hi == end => return self.parting(hi),
                None => return self.parting_unstopped(lo, hi),
            }
        }
        self.parting(lo)
    }

    /// Plays straight from the checkpoint to the arrival at a position.
    fn straight(&mut self, position: u64) -> Result<Answers, AgainstError> {
        self.begin()?;
        self.arrive(position)
    }

    /// Where both part when nothing stops them before: stops at other places hide what makes them differ.
    fn parting_unstopped(&mut self, mut lo: u64, mut hi: u64) -> Result<Parting, AgainstError> {
        if self.straight(hi)?.same() {
            return Err(AgainstError::NotAgain { position: hi });
        }
        while hi - lo > 1 {
            let mid = lo + (hi - lo) / 2;
            if self.straight(mid)?.same() { lo = mid } else { hi = mid }
        }
        self.straight(lo)?;
        let at = self.a.state(self.recording)?;
        let instruction = name(&at.state.cpu, at.ram.as_slice());
        self.straight(hi)?;
        let difference = self.difference()?;
        Ok(Parting {
            agreed: lo,
            position: hi,
            instruction,
            unstopped: true,
            difference,
            ..Parting::default()
        })
    }

    fn difference(&mut self) -> Result<StateDifference, AgainstError> {
        let (a, b) = (self.a.state(self.recording)?, self.b.state(self.recording)?);
        Ok(StateDifference::between((&a.state, a.ram.as_slice()), (&b.state, b.ram.as_slice())))
    }

    /// The first difference, when both are equal at the arrival at `agreed` and not one position later.
    fn parting(&mut self, agreed: u64) -> Result<Parting, AgainstError> {
        self.begin()?;
        self.arrive(agreed)?;
        let mut parting = Parting { agreed, position: agreed, ..Parting::default() };
        for entry in entries_at(self.recording, agreed)? {
            if !self.ask(Question::Entry { seq: entry.seq })?.same() {
                let at = self.a.state(self.recording)?;
                parting.instruction = name(&at.state.cpu, at.ram.as_slice());
                parting.entry = Some(format!("entry {}: {:?}", entry.seq, Brief(&entry)));
                parting.difference = self.difference()?;
                return Ok(parting);
            }
        }
        let at = self.a.state(self.recording)?;
        parting.instruction = name(&at.state.cpu, at.ram.as_slice());
        parting.position = agreed + 1;
        if self.arrive(agreed + 1)?.same() {
            return self.parting_unstopped(agreed, agreed + 1);
        }
        parting.difference = self.difference()?;
        Ok(parting)
    }
}

fn ascending(agreed: u64, position: u64) -> Result<(), AgainstError> {
    if position < agreed {
        return Err(AgainstError::Backwards { agreed, position });
    }
    Ok(())
}

/// Plays `recording` by `ours` and by `theirs`, commands that are a lockstep each, from the last checkpoint
/// at or before `from`, and finds where they part.
pub fn replays(
    recording: &Recording,
    ours: &str,
    theirs: &str,
    from: Option<u64>,
) -> Result<Verdict, AgainstError> {
    let checkpoints = recording.checkpoints();
    let first = checkpoints.partition_point(|c| c.at.count <= from.unwrap_or(0)).max(1) - 1;
    let (a, b) = (Player::start(ours, recording.path())?, Player::start(theirs, recording.path())?);
    let mut both = Both { recording, first, a, b };
    both.begin()?;
    let begin = checkpoints[first].at.count;
    let (agreed, answers) = both.first_look(begin)?;
    let place = |seq: Seq| -> Result<u64, AgainstError> {
        Ok(recording.position_of(seq)?.map_or(begin, |at| at.count.max(begin)))
    };
    let (lo, hi) = match (&answers.0, &answers.1) {
        (Answer::At { position, .. }, Answer::At { .. }) if answers.same() => {
            return Ok(Verdict::Same { position: *position, checkpoints: checkpoints.len() - first });
        }
        (Answer::Diverged { seq, agreed, seen }, Answer::Diverged { seq: other, .. }) if seq == other => {
            // Neither follows the log: if they follow each other, it is the recorded run that is astray.
            let astray = Astray {
                recording: recording.path().display().to_string(),
                agreed: place(*agreed)?,
                position: place(*seq)?,
                seen: Some(seen.clone()),
                ..Astray::default()
            };
            match both.pass(astray.agreed, astray.position)? {
                None => return Ok(Verdict::Astray(astray)),
                Some(found) => found,
            }
        }
        (a, b) => {
            let diverged = [a, b].into_iter().filter_map(|answer| match answer {
                Answer::Diverged { seq, agreed, .. } => Some((*seq, *agreed)),
                _ => None,
            });
            match diverged.min() {
                Some((seq, of_log)) => (place(of_log)?.max(agreed), place(seq)?),
                None => (agreed, recording.end().count),
            }
        }
    };
    Ok(Verdict::Parted(both.narrow(lo, hi)?))
}

/// The command that starts this very program.
pub fn ours() -> io::Result<String> {
    let path = std::env::current_exe()?;
    Ok(format!("'{}'", path.display().to_string().replace('\'', r"'\''")))
}
