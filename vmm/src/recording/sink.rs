//! A recording under way: the vCPU thread hands over entries and checkpoints, a thread of its own compresses
//! and writes them.
//!
//! The queue between the two is bounded: a disk that is too slow stalls the guest. Entries reach the
//! operating system within `FLUSH_AFTER` of being taken from the queue, so a process that is killed loses
//! what it recorded in its last moment; a host that fails loses what its page cache held. A recording that
//! cannot be written is given up, and the machine runs on.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use logchannel::batch::LogStart;
use logchannel::{Event, LogEntry, Position};
use replay::Recorded;

use crate::boot::GuestImage;
use crate::io::clock::HostClock;
use crate::pair::threads::start;
use crate::pair::transfer::Transferable;
use crate::recording::format::{Header, RecordingError};
use crate::recording::writer::{CheckpointPages, PageTracker, Writer, Written};

/// How long an entry may wait to be written out: together they take less room.
const FLUSH_AFTER: Duration = Duration::from_millis(20);
/// Batches and checkpoints that wait for the writing thread.
const QUEUE: usize = 64;

/// What to record, and where.
#[derive(Debug, Clone)]
pub struct RecordOptions {
    /// The file; it must not exist.
    pub path: PathBuf,
    /// Virtual time between checkpoints, nanoseconds; 0 for none but the first.
    pub checkpoint_every_ns: u64,
}

enum Job {
    Image(GuestImage),
    Entries(Vec<LogEntry>),
    Checkpoint { pages: CheckpointPages, at: Position, state: Vec<u8>, now_ns: u64 },
}

/// A recording under way.
#[derive(Debug)]
pub struct Sink {
    queue: Option<Sender<Job>>,
    result: Receiver<Result<Written, RecordingError>>,
    tracker: PageTracker,
    every_ns: u64,
    next_ns: u64,
    path: PathBuf,
    /// The guest's files, until they are in the recording.
    image: Option<GuestImage>,
}

impl Sink {
    /// Makes the file and records `machine` as it is after `log`: before its first instruction, or where it
    /// was joined.
    pub fn create<M: Transferable>(
        path: &Path,
        header: &Header,
        log: LogStart,
        machine: &mut M,
    ) -> anyhow::Result<Self> {
        let created = host::files::create_new(path);
        let file = created.map_err(|source| RecordingError::Create { path: path.to_owned(), source })?;
        let writer = Writer::joining(file, header, log)?;
        let (queue, jobs) = bounded(QUEUE);
        let (answer, result) = bounded(1);
        start("recording", move || {
            let _ = answer.send(write(writer, &jobs));
        })?;
        let mut sink = Self {
            queue: Some(queue),
            result,
            tracker: PageTracker::default(),
            every_ns: header.checkpoint_every_ns,
            next_ns: 0,
            path: path.to_owned(),
            image: None,
        };
        sink.checkpoint(machine)?;
        Ok(sink)
    }

    /// Has the guest's files go into the recording before the first entry of a reset.
    pub fn with_image(mut self, image: GuestImage) -> Self {
        self.image = Some(image);
        self
    }

    /// Takes entries as the recorder made them.
    pub fn append(&mut self, recorded: &[Recorded]) {
        self.append_entries(recorded.iter().map(|recorded| recorded.entry.clone()).collect());
    }

    /// Takes entries.
    pub fn append_entries(&mut self, entries: Vec<LogEntry>) {
        let resets = || entries.iter().any(|entry| entry.event == Event::Reset);
        if self.image.is_some() && resets() {
            let image = self.image.take().expect("just seen");
            self.send(Job::Image(image));
        }
        if !entries.is_empty() {
            self.send(Job::Entries(entries));
        }
    }

    /// Records the machine as it is after the last entry appended, if that is due and it can be saved here.
    pub fn checkpoint_if_due<M: Transferable>(&mut self, machine: &mut M) -> Result<(), M::Error> {
        let due = self.every_ns != 0 && machine.now_ns() >= self.next_ns && self.queue.is_some();
        if due { self.checkpoint_now(machine) } else { Ok(()) }
    }

    /// Records the machine as it is after the last entry appended, if it can be saved here.
    pub fn checkpoint_now<M: Transferable>(&mut self, machine: &mut M) -> Result<(), M::Error> {
        if machine.is_movable()? { self.checkpoint(machine) } else { Ok(()) }
    }

    fn checkpoint<M: Transferable>(&mut self, machine: &mut M) -> Result<(), M::Error> {
        let (state, at, now_ns) = (machine.save_state()?, machine.position(), machine.now_ns());
        let pages = self.tracker.collect(machine.memory().as_slice());
        self.send(Job::Checkpoint { pages, at, state, now_ns });
        self.next_ns = now_ns.saturating_add(self.every_ns);
        Ok(())
    }

    fn send(&mut self, job: Job) {
        let Some(queue) = &self.queue else { return };
        if queue.send(job).is_err() {
            self.queue = None;
            eprintln!(
                "lockstep: {} cannot be written any more: the machine runs on unrecorded",
                self.path.display()
            );
        }
    }

    /// Writes out what is left, ends the file as a whole recording, and says on standard error what became of
    /// it. The file.
    pub fn end(self) -> PathBuf {
        let path = self.path().to_owned();
        match self.finish() {
            Ok(written) => eprintln!("lockstep: recorded {}: {} bytes", path.display(), written.bytes),
            Err(error) => eprintln!("lockstep: {}: {error}", path.display()),
        }
        path
    }

    fn finish(mut self) -> Result<Written, RecordingError> {
        self.queue = None;
        self.result.recv().unwrap_or(Err(RecordingError::GivenUp))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The writing thread. It ends the file properly when there is nothing more to come.
fn write(mut writer: Writer<File>, jobs: &Receiver<Job>) -> Result<Written, RecordingError> {
    let clock = HostClock;
    // Since when something waits to be written out.
    let mut since = None;
    loop {
        let job = match since {
            None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(since) => {
                let left = FLUSH_AFTER.saturating_sub(Duration::from_nanos(clock.now_ns() - since));
                match left {
                    Duration::ZERO => Err(RecvTimeoutError::Timeout),
                    left => jobs.recv_timeout(left),
                }
            }
        };
        match job {
            Ok(Job::Entries(entries)) => entries.iter().try_for_each(|entry| writer.append(entry))?,
            Ok(Job::Image(image)) => writer.image(&image)?,
            Ok(Job::Checkpoint { pages, at, state, now_ns }) => {
                writer.checkpoint(&pages, (at, &state), now_ns)?;
            }
            Err(RecvTimeoutError::Timeout) => {
                writer.flush()?;
                since = None;
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
        since = since.or_else(|| Some(clock.now_ns()));
    }
    let (file, written) = writer.finish()?;
    file.sync_all().map_err(|source| RecordingError::Io { doing: "write", source })?;
    Ok(written)
}
