//! Ethernet frames on their way to the network. A network that does not take them loses them, as networks do.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::{EgressCounts, ROUNDS, Turn, lock};

/// The way to the network, replaced when the network comes back.
pub type NetWriter = Arc<Mutex<Option<lan::backend::FrameWriter>>>;

/// Frames that wait: more than a guest has in its queue. Further ones are dropped.
const MAX_FRAMES: usize = 1024;

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Vec<u8>>,
    turn: Turn,
    sent: u64,
    dropped: u64,
}

/// Frames.
#[derive(Debug)]
pub(super) struct Net {
    writer: Option<NetWriter>,
    state: Mutex<State>,
    handed_over: Condvar,
}

impl Net {
    pub(super) fn new(writer: Option<NetWriter>) -> Self {
        Self { writer, state: Mutex::default(), handed_over: Condvar::new() }
    }

    pub(super) fn push(&self, frame: Vec<u8>) {
        let mut state = lock(&self.state);
        match state.queue.len() < MAX_FRAMES {
            true => state.queue.push_back(frame),
            false => state.dropped += 1,
        }
    }

    pub(super) fn pump(&self) {
        {
            let mut state = lock(&self.state);
            if state.queue.is_empty() || state.turn != Turn::Free {
                return;
            }
            state.turn = Turn::Pumping;
        }
        for _ in 0..ROUNDS {
            if !self.write_all_there_is() {
                return;
            }
        }
        lock(&self.state).turn = Turn::HandedOver;
        self.handed_over.notify_one();
    }

    /// Writes what is queued now; whether the turn goes on, because more came.
    fn write_all_there_is(&self) -> bool {
        let frames = {
            let mut state = lock(&self.state);
            if state.queue.is_empty() {
                state.turn = Turn::Free;
                return false;
            }
            std::mem::take(&mut state.queue)
        };
        let slices: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        // Without a lock of the protocol: this waits a few milliseconds once for a network that is full.
        let sent = self.write(&slices);
        let mut state = lock(&self.state);
        state.sent += sent as u64;
        state.dropped += (frames.len() - sent) as u64;
        true
    }

    fn write(&self, frames: &[&[u8]]) -> usize {
        let mut writer = self.writer.as_ref().map(|net| net.lock().unwrap_or_else(PoisonError::into_inner));
        let Some(writer) = writer.as_mut().and_then(|writer| writer.as_mut()) else { return 0 };
        writer.write(frames).unwrap_or_else(|error| {
            tracing::debug!(%error, "network");
            0
        })
    }

    /// Takes over where a pump has more to do than it has time for; for ever.
    pub(super) fn serve(&self) {
        loop {
            {
                let state = lock(&self.state);
                let handed_over = self.handed_over.wait_while(state, |state| state.turn != Turn::HandedOver);
                drop(handed_over.unwrap_or_else(PoisonError::into_inner));
            }
            while self.write_all_there_is() {}
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        let state = lock(&self.state);
        state.queue.is_empty() && state.turn == Turn::Free
    }

    pub(super) fn count(&self, counts: &mut EgressCounts) {
        let state = lock(&self.state);
        (counts.frames, counts.frames_dropped) = (state.sent, state.dropped);
    }
}
