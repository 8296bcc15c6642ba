//! Console output on its way to a file or to standard output, which may be a pipe that nobody reads.
//!
//! A guest can print without end. What is more than the rate allows, or finds the queue full, is dropped,
//! counted, and said at its place in the output. Outputs as log entries know nothing of it: both halves log
//! and compare every byte, and the log has 8 bytes of digest for each.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Condvar, Mutex, PoisonError};

use super::{EgressCounts, lock};
use crate::io::clock::HostClock;
use crate::io::console::ConsoleLimits;

/// Bytes that wait for the writer.
const MAX_QUEUED: usize = 1 << 20;
/// Most bytes of one write.
const WRITE_BYTES: usize = 64 << 10;

#[derive(Debug)]
enum Piece {
    Bytes(Vec<u8>),
    /// So many bytes are missing here.
    Missing(u64),
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Piece>,
    queued: usize,
    writing: bool,
    /// Bytes that may be printed now, and since when that is so.
    allowance: u64,
    since_ns: u64,
    dropping: bool,
    written: u64,
    dropped: u64,
}

/// Console output.
#[derive(Debug)]
pub(super) struct Console {
    limits: ConsoleLimits,
    clock: HostClock,
    state: Mutex<State>,
    changed: Condvar,
}

impl Console {
    pub(super) fn new(limits: ConsoleLimits, clock: HostClock) -> Self {
        let state = State {
            queue: VecDeque::new(),
            queued: 0,
            writing: false,
            allowance: limits.burst,
            since_ns: clock.now_ns(),
            dropping: false,
            written: 0,
            dropped: 0,
        };
        Self { limits, clock, state: Mutex::new(state), changed: Condvar::new() }
    }

    pub(super) fn push(&self, bytes: Vec<u8>) {
        let now_ns = self.clock.now_ns();
        let mut state = lock(&self.state);
        self.allow(&mut state, now_ns);
        let len = bytes.len() as u64;
        // Once bytes are missing, more go only when there is room again for many: gaps are few and said once.
        let (share, room) =
            if state.dropping { (self.limits.burst / 8, MAX_QUEUED / 2) } else { (0, MAX_QUEUED) };
        let allowed = self.limits.rate.is_none() || state.allowance >= len.max(share);
        state.dropping = !allowed || state.queued + bytes.len() > room;
        if state.dropping {
            state.dropped += len;
            match state.queue.back_mut() {
                Some(Piece::Missing(count)) => *count += len,
                _ => state.queue.push_back(Piece::Missing(len)),
            }
        } else {
            state.allowance = state.allowance.saturating_sub(len);
            state.queued += bytes.len();
            match state.queue.back_mut() {
                Some(Piece::Bytes(last)) if last.len() + bytes.len() <= WRITE_BYTES => {
                    last.extend_from_slice(&bytes);
                }
                _ => state.queue.push_back(Piece::Bytes(bytes)),
            }
        }
        let idle = !state.writing;
        drop(state);
        if idle {
            self.changed.notify_one();
        }
    }

    /// Adds what the time that has passed allows.
    fn allow(&self, state: &mut State, now_ns: u64) {
        let Some(rate) = self.limits.rate else { return };
        let passed_ns = u128::from(now_ns.saturating_sub(state.since_ns));
        let more = u64::try_from(passed_ns * u128::from(rate) / 1_000_000_000).unwrap_or(u64::MAX);
        // A fraction of a byte is not lost: the time stays where it was.
        if more > 0 {
            state.allowance = state.allowance.saturating_add(more).min(self.limits.burst);
            state.since_ns = now_ns;
        }
    }

    /// Writes what is pushed; for ever. A writer that fails is tried again with what comes next.
    pub(super) fn serve(&self, mut writer: Box<dyn Write + Send>) {
        loop {
            let piece = {
                let mut state = lock(&self.state);
                state.writing = false;
                let nothing = |state: &mut State| state.queue.is_empty();
                let waited = self.changed.wait_while(state, nothing).unwrap_or_else(PoisonError::into_inner);
                state = waited;
                state.writing = true;
                state.queue.pop_front()
            };
            let (bytes, counted) = match piece {
                Some(Piece::Bytes(bytes)) => (bytes, true),
                Some(Piece::Missing(count)) => (missing_line(count).into_bytes(), false),
                None => continue,
            };
            let written = writer.write_all(&bytes).and_then(|()| writer.flush());
            let mut state = lock(&self.state);
            if counted {
                state.queued -= bytes.len();
            }
            match written {
                Ok(()) if counted => state.written += bytes.len() as u64,
                Ok(()) => {}
                Err(error) => {
                    state.dropped += if counted { bytes.len() as u64 } else { 0 };
                    drop(state);
                    tracing::debug!(%error, "console");
                }
            }
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        let state = lock(&self.state);
        state.queue.is_empty() && !state.writing
    }

    pub(super) fn count(&self, counts: &mut EgressCounts) {
        let state = lock(&self.state);
        (counts.console_bytes, counts.console_dropped) = (state.written, state.dropped);
    }
}

fn missing_line(count: u64) -> String {
    format!("\r\n[lockstep: {count} bytes of console output are missing here: see --console-rate]\r\n")
}

#[cfg(test)]
#[path = "console_tests.rs"]
mod tests;
