//! A backup's own reads of the shared disk (`--backup-reads`): entries that wait for their data, and the
//! requests for it.
//!
//! ```text
//!   entries ──▶ Arrivals ──▶ held, with all before them ──▶ the vCPU thread's queue
//!                  │ read            ▲ data, its digest compared
//!                  ▼                 │
//!              disk server, under the generation of the pair
//! ```
//!
//! The reads are made on receipt, not when replay comes to them: acks wait for them. Which entries count as
//! received is the protocol's word (`ft::Backup`).

use devices::layout::{MAX_DISK_IN_FLIGHT, MAX_DISK_IN_FLIGHT_BYTES, MAX_DISK_REQUEST_BYTES};
use disk_server::client::{ClientError, DiskAnswer, DiskOutcome, RequestSender};
use ft::reads::{TooManyReads, WrongData};
use ft::{Arrivals, ReadLimits};
use logchannel::buffer::Limits;
use logchannel::{Generation, LogEntry, Seq};
use replay::{Difference, Divergence};

/// What a machine can have in flight at its disk.
const LIMITS: ReadLimits =
    ReadLimits { requests: MAX_DISK_IN_FLIGHT, bytes: MAX_DISK_IN_FLIGHT_BYTES + MAX_DISK_REQUEST_BYTES };

/// Counts of reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct FetchCounts {
    /// Reads made, their data compared.
    pub reads: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Reads without an answer yet.
    pub waiting: usize,
}

/// What came of an answer of the disk server.
#[derive(Debug)]
pub enum Fetched {
    /// The data of this entry is here.
    Data(Seq),
    /// Nothing waited for it.
    Nothing,
    /// The disk does not have what the primary read there.
    Wrong(WrongData),
    /// Another generation is current.
    Fenced(Generation),
    /// The disk server cannot read it.
    Refused(String),
}

/// A backup's reads.
#[derive(Debug)]
pub struct Fetch {
    arrivals: Arrivals,
    disk: Option<RequestSender>,
    /// Reads from this entry on are still to be asked for.
    next: Seq,
    /// The connection has not taken all of the last one yet.
    full: bool,
    generation: Generation,
    counts: FetchCounts,
}

impl Fetch {
    /// Reads under the generation of the pair.
    pub fn new(generation: Generation) -> Self {
        let (arrivals, counts) = (Arrivals::new(LIMITS), FetchCounts::default());
        Self { arrivals, disk: None, next: 0, full: false, generation, counts }
    }

    /// Takes entries as they arrived, and asks for the data that they lack; which of them lack some.
    pub fn arrive(&mut self, entries: &mut Vec<LogEntry>, now_ns: u64) -> Result<Vec<Seq>, TooManyReads> {
        let reads = self.arrivals.add(entries, now_ns)?;
        self.ask();
        Ok(reads)
    }

    /// Goes on asking where the connection was full.
    pub fn retry(&mut self) {
        if self.full {
            self.ask();
        }
    }

    /// Asks for what was not asked for yet, as far as the connection takes it without waiting.
    fn ask(&mut self) {
        let Some(disk) = &self.disk else { return };
        let asked = ask_for(disk, &self.arrivals, self.generation, &mut self.next, &mut self.full);
        if let Err(error) = asked {
            tracing::debug!(%error, "the disk server cannot be reached");
            disk.close();
            self.disk = None;
        }
    }

    /// Uses a new connection, and repeats on it what was not answered.
    pub fn connect(&mut self, disk: RequestSender) {
        (self.disk, self.next, self.full) = (Some(disk), 0, false);
        self.ask();
    }

    /// Takes an answer.
    pub fn answer(&mut self, answer: DiskAnswer) -> Fetched {
        let seq = answer.tag;
        if self.arrivals.wanted_for(seq).is_none() {
            return Fetched::Nothing;
        }
        let data = match answer.outcome {
            DiskOutcome::Data(data) => data,
            DiskOutcome::Done => return Fetched::Refused("no data".into()),
            DiskOutcome::Fenced(holding) => return Fetched::Fenced(holding.generation),
            DiskOutcome::Refused { message, .. } => return Fetched::Refused(message),
        };
        let bytes = data.len() as u64;
        match self.arrivals.data(seq, data) {
            Ok(_) => {
                self.counts.reads += 1;
                self.counts.bytes += bytes;
                Fetched::Data(seq)
            }
            Err(wrong) => Fetched::Wrong(wrong),
        }
    }

    /// The next entry of those up to `held_up_to`, and when it arrived.
    pub fn next(&mut self, held_up_to: Seq) -> Option<(LogEntry, u64)> {
        self.arrivals.next(held_up_to)
    }

    /// The pairing is over: nothing more is read, and what is not held is lost.
    pub fn close(&mut self) {
        self.arrivals.clear();
        if let Some(disk) = self.disk.take() {
            disk.close();
        }
    }

    /// Whether no more should be taken from the channel.
    pub fn is_full(&self, limits: &Limits) -> bool {
        self.arrivals.is_full(limits)
    }

    /// Counts of reads.
    pub fn counts(&self) -> FetchCounts {
        FetchCounts { waiting: self.arrivals.wanted().count(), ..self.counts }
    }
}

fn ask_for(
    disk: &RequestSender,
    arrivals: &Arrivals,
    generation: Generation,
    next: &mut Seq,
    full: &mut bool,
) -> Result<(), ClientError> {
    if *full {
        *full = !disk.flush_now()?;
    }
    let from = *next;
    for request in arrivals.wanted().skip_while(|request| request.id < from) {
        if *full {
            break;
        }
        *full = !disk.submit_now(request.id, request, generation)?;
        *next = request.id + 1;
    }
    Ok(())
}

/// The report of data that is not what the primary read.
pub fn divergence(wrong: &WrongData, agreed: Seq) -> Box<Divergence> {
    let WrongData { seq, at, offset, len, expected, found } = *wrong;
    let note = "found on receipt: the entries before may not have been executed".to_string();
    Box::new(Divergence {
        seq,
        at,
        difference: Difference::DiskData { offset, len, expected, found },
        agreed,
        recent: Vec::new(),
        notes: vec![note],
        replay_command: None,
    })
}
