//! The output gate: holds outputs back until they may go, and lets them go in order (DESIGN 4, the Output
//! Rule).

use std::collections::VecDeque;

use logchannel::Seq;

use crate::Content;

/// Outputs that wait for their entry's ack, oldest first.
#[derive(Debug, Clone)]
pub struct OutputGate<O> {
    held: VecDeque<(Seq, O)>,
    bytes: usize,
    max_bytes: usize,
    last_held: Seq,
    last_released: Seq,
}

impl<O: Content> OutputGate<O> {
    /// An empty gate, which is full from `max_bytes` on.
    pub fn new(max_bytes: usize) -> Self {
        Self { held: VecDeque::new(), bytes: 0, max_bytes, last_held: 0, last_released: 0 }
    }

    /// Holds the output of entry `seq`. Always takes it: `is_full` tells beforehand that the guest must
    /// stall, so the gate exceeds its limit at most by what the guest put out at one stop.
    pub fn hold(&mut self, seq: Seq, output: O) {
        assert!(seq > self.last_held, "output {seq} after output {}", self.last_held);
        self.last_held = seq;
        self.bytes += output.bytes();
        self.held.push_back((seq, output));
    }

    /// The next output that may go when the entries up to `acked` are safe.
    pub fn release(&mut self, acked: Seq) -> Option<(Seq, O)> {
        if self.held.front()?.0 > acked {
            return None;
        }
        let (seq, output) = self.held.pop_front()?;
        assert!(seq > self.last_released && seq <= acked, "output {seq} released out of order");
        self.last_released = seq;
        self.bytes -= output.bytes();
        Some((seq, output))
    }

    /// Whether the guest must stall.
    pub fn is_full(&self) -> bool {
        self.bytes >= self.max_bytes
    }

    /// How many outputs are held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}
