//! Where two runs of one log part, by bisection: first over the checkpoints of the recordings, then over
//! positions by running both again.
//!
//! ```text
//!   checkpoints   equal ─── equal ─── differ          log: first entry that differs
//!                             │          │
//!   positions                 lo ─ mid ─ hi           both runs played to mid, states compared, and again
//! ```
//!
//! When the two logs lead to different states, their first difference is one step of the guest, and the
//! instruction or the input of that step is named. When a log leads to another state than the one recorded,
//! the recorded run did something that its log does not determine: it is known between which checkpoints,
//! what differs, and which instruction made the differing memory what it is when the log is played.

use logchannel::{LogEntry, Position};
use serde::Serialize;

use crate::debug::symbols::Symbols;
use crate::engine::CpuState;
use crate::machine::MachineState;
use crate::memory::Ram;
use crate::recording::compare::StateDifference;
use crate::recording::disassemble::next_instruction;
use crate::recording::format::{CheckpointRef, RecordingError};
use crate::recording::reader::Recording;
use crate::recording::session::{Arrival, Session, SessionError};

/// What a comparison came to.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// No difference up to a position: of both recordings, or of the recording and its replay.
    Same {
        /// The last position compared.
        position: u64,
        /// Checkpoints compared.
        checkpoints: usize,
    },
    /// They are not runs of one machine from one state.
    Unrelated {
        /// Why.
        why: String,
    },
    /// The two logs lead to different states.
    Parted(Parting),
    /// A recorded run did what its log does not determine.
    Astray(Astray),
}

/// The first step in which two runs differ.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Parting {
    /// The last position at which both were equal.
    pub agreed: u64,
    /// The first at which they differ.
    pub position: u64,
    /// The instruction executed from one to the other; with `entry`, the one that comes next there.
    pub instruction: String,
    /// The entry, the same in both, whose execution made them differ: no instruction did.
    pub entry: Option<String>,
    /// With a stop shortly before, the difference does not show: what makes it may lie some instructions
    /// earlier, in code that is decoded or fetched together.
    pub unstopped: bool,
    /// Entries of the first log at that position that the second one does not have there.
    pub entries_a: Vec<String>,
    /// And the other way round.
    pub entries_b: Vec<String>,
    /// What differs after the step.
    pub difference: StateDifference,
}

/// A run that does not follow from its log.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Astray {
    /// Which recording.
    pub recording: String,
    /// The last position at which the recorded state is what the log leads to.
    pub agreed: u64,
    /// The first at which it is known not to be.
    pub position: u64,
    /// What was seen there: a divergence of the replay.
    pub seen: Option<String>,
    /// Recorded state against replayed state there, when there is a checkpoint.
    pub difference: StateDifference,
    /// When the log is played: where the first differing memory got its value, and by which instruction.
    pub written_at: Option<(u64, String)>,
}

/// A machine's state with its memory.
pub struct Whole {
    /// Everything but the memory.
    pub state: MachineState,
    /// The memory.
    pub ram: Ram,
}

fn recorded(recording: &Recording, checkpoint: usize) -> Result<Whole, SessionError> {
    let mut ram = Ram::new(recording.header().machine.memory_bytes)?;
    recording.load_memory(checkpoint, &mut ram)?;
    Ok(Whole { state: recording.state(checkpoint)?, ram })
}

fn against(whole: &Whole, session: &mut Session) -> Result<StateDifference, SessionError> {
    let state = session.machine_mut().save()?;
    let ram = session.machine().ram().as_slice();
    Ok(StateDifference::between((&whole.state, whole.ram.as_slice()), (&state, ram)))
}

fn between(a: &mut Session, b: &mut Session) -> Result<StateDifference, SessionError> {
    let (of_a, of_b) = (a.machine_mut().save()?, b.machine_mut().save()?);
    let (ram_a, ram_b) = (a.machine().ram().as_slice(), b.machine().ram().as_slice());
    Ok(StateDifference::between((&of_a, ram_a), (&of_b, ram_b)))
}

fn instruction(session: &mut Session) -> Result<String, SessionError> {
    let cpu = session.machine_mut().cpu()?;
    Ok(name(&cpu, session.machine().ram().as_slice()))
}

/// The next instruction of a vCPU, and where in a Linux kernel it is, if it is in one.
pub(super) fn name(cpu: &CpuState, ram: &[u8]) -> String {
    let instruction = next_instruction(cpu, ram);
    let symbols = Symbols::of_memory(ram).unwrap_or_default();
    match symbols.lookup(cpu.rip) {
        Some(_) => format!("{instruction}  <{}>", symbols.describe(cpu.rip)),
        None => instruction,
    }
}

/// Compares a recording with what its log leads to.
pub fn with_replay(recording: Recording) -> Result<Verdict, SessionError> {
    let name = recording.path().display().to_string();
    let mut session = Session::new(recording)?;
    let checkpoints = session.recording().checkpoints().to_vec();
    let mut agreed = checkpoints[0].at;
    for (index, checkpoint) in checkpoints.iter().enumerate().skip(1) {
        match session.run_to_point(checkpoint.seq, checkpoint.at) {
            Ok(_) => {}
            Err(SessionError::Diverged(divergence)) => {
                return Ok(diverged(name, agreed, &divergence));
            }
            Err(error) => return Err(error),
        }
        let whole = recorded(session.recording(), index)?;
        let difference = against(&whole, &mut session)?;
        if !difference.is_empty() {
            let astray = Astray {
                recording: name,
                agreed: agreed.count,
                position: checkpoint.at.count,
                seen: None,
                written_at: writer(&mut session, agreed, checkpoint, &difference)?,
                difference,
            };
            return Ok(Verdict::Astray(astray));
        }
        agreed = checkpoint.at;
    }
    match session.run_to_end() {
        Ok(_) => Ok(Verdict::Same { position: session.position().count, checkpoints: checkpoints.len() }),
        Err(SessionError::Diverged(divergence)) => Ok(diverged(name, agreed, &divergence)),
        Err(error) => Err(error),
    }
}

fn diverged(recording: String, agreed: Position, divergence: &replay::Divergence) -> Verdict {
    Verdict::Astray(Astray {
        recording,
        agreed: agreed.count,
        position: divergence.at.count,
        seen: Some(format!("entry {}: {}", divergence.seq, divergence.difference)),
        difference: StateDifference::default(),
        written_at: None,
    })
}

/// Where, when the log is played from `from` to a checkpoint, the first memory that differs from the recorded
/// one got the value it has there.
fn writer(
    session: &mut Session,
    from: Position,
    to: &CheckpointRef,
    difference: &StateDifference,
) -> Result<Option<(u64, String)>, SessionError> {
    let Some(range) = difference.memory.first() else { return Ok(None) };
    let place = range.address as usize..range.address as usize + range.theirs.len();
    let last = range.theirs.clone();
    let is_there = |session: &Session| session.machine().ram().as_slice()[place.clone()] == last;
    session.seek(from)?;
    if is_there(session) {
        // Played, nothing writes it: the recorded run did.
        return Ok(None);
    }
    let (mut lo, mut hi) = (from.count, to.at.count);
    while hi - lo > 1 {
        session.seek(Position::at(lo))?;
        session.snapshot()?;
        let mid = lo + (hi - lo) / 2;
        session.run_to(Position::at(mid))?;
        if is_there(session) { hi = mid } else { lo = mid }
    }
    session.seek(Position::at(lo))?;
    Ok(Some((hi, instruction(session)?)))
}

/// Compares two recordings of one machine.
pub fn two(a: Recording, b: Recording) -> Result<Verdict, SessionError> {
    if let Some(why) = unrelated(&a, &b)? {
        return Ok(Verdict::Unrelated { why });
    }
    let (good, bad) = checkpoints(&a, &b)?;
    let log = first_entry(&a, &b)?;
    if log.is_none() && bad.is_none() {
        let position = a.end().count.min(b.end().count);
        return Ok(Verdict::Same { position, checkpoints: good.len() });
    }
    let last = a.end().count.min(b.end().count);
    let of_log = log.as_ref().map_or(last, |position| position.count);
    let hi = bad.map_or(last, |at| at.count).min(of_log);
    let (from_a, from_b) =
        good.into_iter().rev().find(|(i, _)| a.checkpoints()[*i].at.count < hi.max(1)).unwrap_or((0, 0));
    let lo = a.checkpoints()[from_a].at.count;
    let (mut a, mut b) = (Session::new(a)?, Session::new(b)?);
    a.load_checkpoint(from_a)?;
    b.load_checkpoint(from_b)?;
    let (to_a, to_b) = (a.run_to(Position::at(hi)), b.run_to(Position::at(hi)));
    let both = matches!((&to_a, &to_b), (Ok(_), Ok(_)));
    if both && !between(&mut a, &mut b)?.is_empty() {
        return Ok(Verdict::Parted(bisect(&mut a, &mut b, lo, hi)?));
    }
    // Both logs lead to the same state so far: what differs was not determined by them, in one run or both.
    for path in [a.recording().path().to_owned(), b.recording().path().to_owned()] {
        let verdict = with_replay(Recording::open(&path)?)?;
        if matches!(verdict, Verdict::Astray(_)) {
            return Ok(verdict);
        }
    }
    let why = "the logs differ only in what was observed, and each is what its own replay shows".into();
    Ok(Verdict::Unrelated { why })
}

fn unrelated(a: &Recording, b: &Recording) -> Result<Option<String>, SessionError> {
    if let Some(mismatch) = a.header().machine.mismatch(&b.header().machine) {
        return Ok(Some(mismatch.to_string()));
    }
    let (of_a, of_b) = (recorded(a, 0)?, recorded(b, 0)?);
    let both = (&of_a.state, of_a.ram.as_slice());
    let difference = StateDifference::between(both, (&of_b.state, of_b.ram.as_slice()));
    Ok((!difference.is_empty())
        .then(|| format!("they do not begin in the same state: {}", difference.describe().join("; "))))
}

/// Pairs of checkpoints of the same place that are equal, by number in each recording, and the place of the
/// first that are not. By bisection: two runs that have parted stay apart.
#[allow(clippy::type_complexity)]
fn checkpoints(
    a: &Recording,
    b: &Recording,
) -> Result<(Vec<(usize, usize)>, Option<Position>), SessionError> {
    let place = |checkpoint: &CheckpointRef| (checkpoint.seq, checkpoint.at);
    let mut pairs = Vec::new();
    for (index, checkpoint) in a.checkpoints().iter().enumerate() {
        let other = b.checkpoints().iter().position(|other| place(other) == place(checkpoint));
        pairs.extend(other.map(|other| (index, other)));
    }
    let (mut good, mut bad) = (0, pairs.len());
    while bad - good > 1 {
        let mid = good + (bad - good) / 2;
        let (of_a, of_b) = (recorded(a, pairs[mid].0)?, recorded(b, pairs[mid].1)?);
        let ours = (&of_a.state, of_a.ram.as_slice());
        match StateDifference::between(ours, (&of_b.state, of_b.ram.as_slice())).is_empty() {
            true => good = mid,
            false => bad = mid,
        }
    }
    let first_bad = pairs.get(bad).map(|(index, _)| a.checkpoints()[*index].at);
    pairs.truncate(good + 1);
    Ok((pairs, first_bad))
}

/// Where the logs differ first; where one just ends earlier they do not.
fn first_entry(a: &Recording, b: &Recording) -> Result<Option<Position>, SessionError> {
    for (ours, theirs) in a.log().zip(b.log()) {
        let (ours, theirs) = (ours?, theirs?);
        if ours != theirs {
            return Ok(Some(Position::at(ours.at.count.min(theirs.at.count))));
        }
    }
    Ok(None)
}

/// Both runs are equal at `lo` and differ at `hi`.
fn bisect(a: &mut Session, b: &mut Session, mut lo: u64, mut hi: u64) -> Result<Parting, SessionError> {
    while hi - lo > 1 {
        let mid = lo + (hi - lo) / 2;
        for session in [&mut *a, &mut *b] {
            session.seek(Position::at(lo))?;
            session.snapshot()?;
            session.run_to(Position::at(mid))?;
        }
        if between(a, b)?.is_empty() { lo = mid } else { hi = mid }
    }
    a.seek(Position::at(lo))?;
    let instruction = instruction(a)?;
    let mut ended = false;
    for session in [&mut *a, &mut *b] {
        session.seek(Position::at(lo))?;
        ended |= session.run_to(Position::at(hi))? != Arrival::There;
    }
    debug_assert!(!ended, "both came there before");
    let difference = between(a, b)?;
    let (of_a, of_b) = (entries_at(a.recording(), hi)?, entries_at(b.recording(), hi)?);
    let only = |ours: &[LogEntry], theirs: &[LogEntry]| {
        let missing = ours.iter().filter(|entry| !theirs.contains(entry));
        missing.map(|entry| format!("entry {}: {:?}", entry.seq, Brief(entry))).collect::<Vec<_>>()
    };
    let (entries_a, entries_b) = (only(&of_a, &of_b), only(&of_b, &of_a));
    Ok(Parting {
        agreed: lo,
        position: hi,
        instruction,
        entries_a,
        entries_b,
        difference,
        ..Parting::default()
    })
}

/// An event without most of its data.
pub(super) struct Brief<'a>(pub &'a LogEntry);

impl std::fmt::Debug for Brief<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use logchannel::Event;
        match &self.0.event {
            Event::NetRx(data) | Event::ConsoleRx(data) | Event::DiskDone { data, .. } => {
                write!(f, "{} with {} bytes", self.0.event.name(), data.len())
            }
            event => write!(f, "{event:?}"),
        }
    }
}

/// The entries at a position.
pub(super) fn entries_at(recording: &Recording, count: u64) -> Result<Vec<LogEntry>, RecordingError> {
    let first = recording.batches().partition_point(|batch| batch.last_count < count);
    let mut found = Vec::new();
    for batch in first..recording.batches().len() {
        let entries = recording.entries(batch)?;
        let past = entries.last().is_some_and(|last| last.at.count > count);
        found.extend(entries.into_iter().filter(|entry| entry.at.count == count));
        if past {
            break;
        }
    }
    Ok(found)
}

impl Verdict {
    /// Whether a difference was found.
    pub fn differs(&self) -> bool {
        !matches!(self, Verdict::Same { .. })
    }

    /// For people, a line each.
    pub fn describe(&self, a: &str, b: Option<&str>) -> Vec<String> {
        match self {
            Verdict::Same { position, checkpoints } => {
                vec![format!("no difference up to position {position} ({checkpoints} checkpoints compared)")]
            }
            Verdict::Unrelated { why } => vec![format!("nothing to bisect: {why}")],
            Verdict::Parted(parting) => {
                let Parting { agreed, position, instruction, entry, .. } = parting;
                let mut out = match entry {
                    None => vec![
                        format!("equal up to position {agreed}, different at {position}"),
                        format!("the instruction in between: {instruction}"),
                    ],
                    Some(entry) => vec![
                        format!("equal on arrival at position {position}, different after {entry}"),
                        format!("the instruction that follows it: {instruction}"),
                    ],
                };
                if parting.unstopped {
                    out.push(
                        "a stop before it hides the difference: the cause may lie some instructions earlier"
                            .into(),
                    );
                }
                let of = |name: &str, entries: &[String]| {
                    entries.iter().map(|entry| format!("only in {name}: {entry}")).collect::<Vec<_>>()
                };
                out.extend(of(a, &parting.entries_a));
                out.extend(of(b.unwrap_or("the replay"), &parting.entries_b));
                out.extend(parting.difference.describe());
                out
            }
            Verdict::Astray(astray) => {
                let mut out = vec![format!(
                    "{} is not what its log leads to: equal at position {}, different at {}",
                    astray.recording, astray.agreed, astray.position
                )];
                out.extend(astray.seen.clone());
                out.extend(astray.difference.describe());
                if let Some((position, instruction)) = &astray.written_at {
                    out.push(format!(
                        "played, that memory gets its value at position {position}, by {instruction}"
                    ));
                }
                out
            }
        }
    }
}
