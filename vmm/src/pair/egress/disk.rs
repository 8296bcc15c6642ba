//! Disk requests on their way to the disk server. They are kept until they complete, and repeated in their
//! order when the connection is replaced or the generation changes: they are idempotent (DESIGN 4).
//!
//! What is in flight is bounded by what a guest has in flight, so nothing is ever dropped. Its numbers count
//! up, and so the queue is a place among them: what is to be sent next. A repetition goes back to the first.
//!
//! A request is sent under the generation that is current when it is written. One that was being written
//! under the one before when that changed is repeated like the others: the disk server executes it before
//! it grants the new generation, or refuses it.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use disk_server::client::{ClientError, RequestSender};
use logchannel::{DiskRequest, Generation};

use super::{EgressCounts, ROUNDS, Turn, lock};
use crate::io::clock::HostClock;

/// What waits for the disk server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskWait {
    /// Requests without an answer.
    pub in_flight: usize,
    /// When the oldest of them was let go, host nanoseconds.
    pub since_ns: Option<u64>,
}

#[derive(Debug)]
struct InFlight {
    request: Arc<DiskRequest>,
    since_ns: u64,
}

#[derive(Debug)]
struct State {
    sender: Option<RequestSender>,
    /// Counts connections, so that an error of an earlier one does not end a later one.
    connection: u64,
    generation: Generation,
    in_flight: BTreeMap<u64, InFlight>,
    /// Requests from this one on are still to be written.
    next: u64,
    turn: Turn,
    sent: u64,
}

/// One request to be written, and where.
struct Job {
    sender: RequestSender,
    connection: u64,
    generation: Generation,
    request: Arc<DiskRequest>,
}

impl State {
    fn next_job(&mut self) -> Option<Job> {
        let sender = self.sender.clone()?;
        let (id, in_flight) = self.in_flight.range(self.next..).next()?;
        let request = in_flight.request.clone();
        self.next = id + 1;
        self.sent += 1;
        Some(Job { sender, connection: self.connection, generation: self.generation, request })
    }

    fn has_job(&self) -> bool {
        self.sender.is_some() && self.in_flight.range(self.next..).next().is_some()
    }
}

/// Requests.
#[derive(Debug)]
pub(super) struct Disk {
    clock: HostClock,
    state: Mutex<State>,
    handed_over: Condvar,
}

impl Disk {
    pub(super) fn new(generation: Generation, clock: HostClock) -> Self {
        let state = State {
            sender: None,
            connection: 0,
            generation,
            in_flight: BTreeMap::new(),
            next: 0,
            turn: Turn::Free,
            sent: 0,
        };
        Self { clock, state: Mutex::new(state), handed_over: Condvar::new() }
    }

    pub(super) fn push(&self, request: DiskRequest) {
        let in_flight = InFlight { since_ns: self.clock.now_ns(), request: Arc::new(request) };
        lock(&self.state).in_flight.insert(in_flight.request.id, in_flight);
    }

    pub(super) fn connect(&self, sender: RequestSender) {
        let mut state = lock(&self.state);
        // Whoever waits for room on the old one stops waiting.
        if let Some(old) = state.sender.replace(sender) {
            old.close();
        }
        state.connection += 1;
        state.next = 0;
    }

    pub(super) fn set_generation(&self, generation: Generation) {
        let mut state = lock(&self.state);
        assert!(generation >= state.generation, "a generation never decreases");
        state.generation = generation;
        state.next = 0;
    }

    pub(super) fn completed(&self, id: u64) -> bool {
        lock(&self.state).in_flight.remove(&id).is_some()
    }

    pub(super) fn pump(&self) {
        {
            let mut state = lock(&self.state);
            if state.turn != Turn::Free || !state.has_job() {
                return;
            }
            state.turn = Turn::Pumping;
        }
        for _ in 0..ROUNDS {
            let Some(job) = self.take_job() else { return };
            let written = job.sender.submit_now(job.request.id, &job.request, job.generation);
            if !self.written(&job, written) {
                break;
            }
        }
        lock(&self.state).turn = Turn::HandedOver;
        self.handed_over.notify_one();
    }

    /// The next request; without one, the turn is over.
    fn take_job(&self) -> Option<Job> {
        let mut state = lock(&self.state);
        let job = state.next_job();
        if job.is_none() {
            state.turn = Turn::Free;
        }
        job
    }

    /// Whether all of a request was written. A connection that failed is of no more use.
    fn written(&self, job: &Job, written: Result<bool, ClientError>) -> bool {
        written.unwrap_or_else(|error| {
            job.sender.close();
            let mut state = lock(&self.state);
            if state.connection == job.connection && state.sender.take().is_some() {
                drop(state);
                // Its reader finds it closed, says so, and connects anew.
                tracing::debug!(%error, "the disk server cannot be reached");
            }
            true
        })
    }

    /// Takes over where a socket is full; for ever.
    pub(super) fn serve(&self) {
        loop {
            let rest = {
                let state = lock(&self.state);
                let handed_over = self.handed_over.wait_while(state, |state| state.turn != Turn::HandedOver);
                let state = handed_over.unwrap_or_else(PoisonError::into_inner);
                state.sender.clone().map(|sender| (sender, state.connection))
            };
            if let Some((sender, connection)) = rest {
                self.flushed(&sender, connection);
            }
            while let Some(job) = self.take_job() {
                let written = job.sender.submit_now(job.request.id, &job.request, job.generation);
                if !self.written(&job, written) {
                    self.flushed(&job.sender, job.connection);
                }
            }
        }
    }

    /// Waits until what a socket did not take at once is written.
    fn flushed(&self, sender: &RequestSender, connection: u64) {
        if let Err(error) = sender.flush() {
            sender.close();
            let mut state = lock(&self.state);
            if state.connection == connection && state.sender.take().is_some() {
                drop(state);
                tracing::debug!(%error, "the disk server takes no requests");
            }
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        let state = lock(&self.state);
        state.turn == Turn::Free && !state.has_job()
    }

    pub(super) fn wait(&self) -> DiskWait {
        let state = lock(&self.state);
        DiskWait {
            in_flight: state.in_flight.len(),
            since_ns: state.in_flight.values().map(|in_flight| in_flight.since_ns).min(),
        }
    }

    pub(super) fn count(&self, counts: &mut EgressCounts) {
        counts.disk_requests = lock(&self.state).sent;
    }
}
