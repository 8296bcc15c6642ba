//! What the switch remembers of the frames it sent to one station, so that nothing is lost when the station's
//! host dies.
//!
//! A frame that was forwarded to a primary whose host then died may never have reached the guest. TCP would
//! send it again, but only after its retransmission timeout: a second or more in which every client stands
//! still. So the switch keeps, per TCP flow, the segments that the station has not acknowledged yet, and when
//! the station announces itself on another port (the new primary went live), delivers them there. It also
//! makes the station resend what *it* sent and the dead host swallowed:
//!
//! ```text
//!  switch                                                    new primary's guest
//!    │ ── segments it never acknowledged, in order ──────────────▶ │  client → guest loss repaired
//!    │ ── keep-alive probe (one byte before the end) ────────────▶ │  answers with its ACK and window:
//!    │ ◀─────────────────────────────────────────────────── ACK ── │  repairs lost bare ACKs and windows
//!    │ ── the latest acknowledgement, four times ────────────────▶ │  three duplicates: fast retransmit,
//!    │ ◀────────────────────────── first unacknowledged segment ── │  guest → client loss repaired
//! ```
//!
//! Fast retransmit (RFC 5681) resends one segment. While each one resent is acknowledged alone and more
//! follow (no PSH), the acknowledgement is again repeated, so a window of lost segments comes back at the
//! pace of round trips, not of timeouts.
//!
//! Duplicates that result are what networks do: TCP drops them. Frames that are not TCP are kept for a short
//! time and delivered again too.

use std::collections::{BTreeMap, VecDeque};

use super::PortId;
use crate::packet::{Flow, Segment, bare_ack, seq_at_or_after};

/// Bounds of one station's memory.
#[derive(Debug, Clone, Copy)]
pub struct MemoryLimits {
    /// Most TCP flows.
    pub flows: usize,
    /// Most bytes of frames.
    pub bytes: usize,
    /// Most frames that are not TCP.
    pub others: usize,
    /// How long an unacknowledged TCP segment is worth delivering, in nanoseconds.
    pub segment_age_ns: u64,
    /// The same for a frame that is not TCP.
    pub other_age_ns: u64,
}

impl Default for MemoryLimits {
    fn default() -> Self {
        Self {
            flows: 2048,
            bytes: 4 << 20,
            others: 256,
            segment_age_ns: 120_000_000_000,
            other_age_ns: 2_000_000_000,
        }
    }
}

/// Most rounds of fast retransmit that are provoked per flow and failover: a full window of 64 KiB in
/// segments of 536 bytes.
const MAX_ROUNDS: u32 = 128;
/// How often an acknowledgement is repeated: the first copy may bring a new window and not count as
/// duplicate.
const REPEATS: usize = 4;

#[derive(Debug)]
struct Kept {
    /// TCP: the sequence number after the segment.
    end: u32,
    /// Where it was sent; `None` when it was only held.
    port: Option<PortId>,
    at_ns: u64,
    frame: Box<[u8]>,
}

/// What is being done to get back the station's own lost segments.
#[derive(Debug)]
struct Retrieval {
    /// The acknowledgement that was repeated last.
    ack: u32,
    /// The end of the one segment that came since, when more must follow it.
    resent_to: Option<u32>,
    rounds: u32,
}

#[derive(Debug, Default)]
struct FlowMemory {
    unacked: VecDeque<Kept>,
    /// Headers of the latest segment to the station, as a model for bare ACKs.
    headers: Vec<u8>,
    /// The highest sequence number sent to the station.
    end: u32,
    ack: Option<u32>,
    fin_sent: bool,
    fin_received: bool,
    touched: u64,
    retrieval: Option<Retrieval>,
}

/// The frames sent to one station that it may not have received.
#[derive(Debug)]
pub struct Memory {
    limits: MemoryLimits,
    flows: BTreeMap<Flow, FlowMemory>,
    others: VecDeque<Kept>,
    bytes: usize,
    /// Counts operations: the flow with the lowest `touched` was used least recently.
    ticks: u64,
    forgotten: u64,
}

impl Memory {
    /// Nothing yet.
    pub fn new(limits: MemoryLimits) -> Self {
        Self { limits, flows: BTreeMap::new(), others: VecDeque::new(), bytes: 0, ticks: 0, forgotten: 0 }
    }

    /// Frames given up before they were acknowledged because a limit was reached.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Bytes of the frames kept.
    pub fn byte_len(&self) -> usize {
        self.bytes
    }

    /// A frame goes to the station, on `port` or, when it has none, nowhere. `repeat` is called with bare
    /// ACKs that shall follow it.
    pub fn sent(
        &mut self,
        now_ns: u64,
        port: Option<PortId>,
        frame: &[u8],
        segment: Option<&Segment<'_>>,
        repeat: &mut dyn FnMut(&[u8]),
    ) {
        match segment {
            Some(segment) if !segment.rst => self.segment_sent(now_ns, port, frame, segment, repeat),
            Some(segment) => {
                self.drop_flow(segment.flow);
                self.other_sent(now_ns, port, frame);
            }
            None => self.other_sent(now_ns, port, frame),
        }
        self.enforce();
    }

    fn segment_sent(
        &mut self,
        now_ns: u64,
        port: Option<PortId>,
        frame: &[u8],
        segment: &Segment<'_>,
        repeat: &mut dyn FnMut(&[u8]),
    ) {
        if segment.syn {
            self.drop_flow(segment.flow);
        }
        self.ticks += 1;
        let occupies = segment.end != segment.seq;
        // A bare ACK of a connection that nobody remembers, such as the last one of a closed connection, is
        // not worth a flow.
        if !occupies && !self.flows.contains_key(&segment.flow) {
            return;
        }
        let flow = self
            .flows
            .entry(segment.flow)
            .or_insert_with(|| FlowMemory { end: segment.end, ..FlowMemory::default() });
        flow.touched = self.ticks;
        flow.fin_sent |= segment.fin;
        if seq_at_or_after(segment.end, flow.end) {
            flow.end = segment.end;
            flow.ack = segment.ack;
            flow.headers.clear();
            if !segment.syn {
                flow.headers.extend_from_slice(segment.headers);
            }
        }
        if occupies {
            self.bytes += frame.len();
            flow.unacked.push_back(Kept { end: segment.end, port, at_ns: now_ns, frame: frame.into() });
        }
        flow.continue_retrieval(segment, repeat);
        self.drop_if_closed(segment.flow);
    }

    fn other_sent(&mut self, now_ns: u64, port: Option<PortId>, frame: &[u8]) {
        while self.others.front().is_some_and(|k| now_ns.saturating_sub(k.at_ns) > self.limits.other_age_ns)
            || self.others.len() >= self.limits.others.max(1)
        {
            let Some(old) = self.others.pop_front() else { break };
            self.bytes -= old.frame.len();
        }
        self.bytes += frame.len();
        self.others.push_back(Kept { end: 0, port, at_ns: now_ns, frame: frame.into() });
    }

    /// The station sent this segment: what it acknowledges needs no memory any more.
    pub fn received(&mut self, segment: &Segment<'_>) {
        let key = segment.flow.reversed();
        if segment.rst {
            self.drop_flow(key);
            return;
        }
        let Some(flow) = self.flows.get_mut(&key) else { return };
        self.ticks += 1;
        flow.touched = self.ticks;
        flow.fin_received |= segment.fin;
        if let Some(ack) = segment.ack {
            while flow.unacked.front().is_some_and(|kept| seq_at_or_after(ack, kept.end)) {
                let kept = flow.unacked.pop_front().expect("a front was seen");
                self.bytes -= kept.frame.len();
            }
        }
        flow.segment_came(segment);
        self.drop_if_closed(key);
    }

    fn drop_if_closed(&mut self, key: Flow) {
        let closed = |f: &FlowMemory| f.fin_sent && f.fin_received && f.unacked.is_empty();
        if self.flows.get(&key).is_some_and(closed) {
            self.drop_flow(key);
        }
    }

    fn drop_flow(&mut self, key: Flow) -> usize {
        let Some(flow) = self.flows.remove(&key) else { return 0 };
        self.bytes -= flow.unacked.iter().map(|k| k.frame.len()).sum::<usize>();
        flow.unacked.len()
    }

    /// Forgets the flows used least recently until the limits hold.
    fn enforce(&mut self) {
        while self.flows.len() > self.limits.flows || self.bytes > self.limits.bytes {
            let oldest = self.flows.iter().min_by_key(|(_, f)| f.touched).map(|(key, _)| *key);
            match oldest {
                Some(key) => self.forgotten += self.drop_flow(key) as u64,
                None => {
                    let Some(other) = self.others.pop_front() else { break };
                    self.bytes -= other.frame.len();
                    self.forgotten += 1;
                }
            }
        }
    }

    /// The station announced itself on `port`: everything it may have missed is sent there by `send`, and it
    /// is made to resend what may have been lost of its own. Returns how many frames were sent.
    pub fn redeliver(&mut self, now_ns: u64, port: PortId, send: &mut dyn FnMut(&[u8])) -> u64 {
        let mut count = 0;
        let mut counted = |frame: &[u8]| {
            count += 1;
            send(frame);
        };
        let MemoryLimits { segment_age_ns, other_age_ns, .. } = self.limits;
        for kept in &mut self.others {
            kept.deliver(now_ns, other_age_ns, port, &mut counted);
        }
        for flow in self.flows.values_mut() {
            for kept in &mut flow.unacked {
                kept.deliver(now_ns, segment_age_ns, port, &mut counted);
            }
            flow.start_retrieval(&mut counted);
        }
        count
    }
}

impl Kept {
    fn deliver(&mut self, now_ns: u64, age_ns: u64, port: PortId, send: &mut dyn FnMut(&[u8])) {
        if self.port != Some(port) && now_ns.saturating_sub(self.at_ns) <= age_ns {
            self.port = Some(port);
            send(&self.frame);
        }
    }
}

impl FlowMemory {
    fn repeat_ack(&self, send: &mut dyn FnMut(&[u8])) {
        if let Some(ack) = bare_ack(&self.headers, self.end) {
            for _ in 0..REPEATS {
                send(&ack);
            }
        }
    }

    fn start_retrieval(&mut self, send: &mut dyn FnMut(&[u8])) {
        let Some(ack) = self.ack.filter(|_| !self.headers.is_empty()) else { return };
        if let Some(probe) = bare_ack(&self.headers, self.end.wrapping_sub(1)) {
            send(&probe);
        }
        self.repeat_ack(send);
        self.retrieval = Some(Retrieval { ack, resent_to: None, rounds: 0 });
    }

    /// The station sent a segment: is it the one that the repeated acknowledgement asked for, and do more
    /// follow?
    fn segment_came(&mut self, segment: &Segment<'_>) {
        let Some(retrieval) = &mut self.retrieval else { return };
        if segment.seq == segment.end {
            return;
        }
        if segment.seq == retrieval.ack && retrieval.resent_to.is_none() {
            if segment.psh || segment.fin {
                self.retrieval = None;
            } else {
                retrieval.resent_to = Some(segment.end);
            }
        }
    }

    /// The station is sent a segment: when it acknowledges exactly what was resent, ask for the next.
    fn continue_retrieval(&mut self, segment: &Segment<'_>, repeat: &mut dyn FnMut(&[u8])) {
        let Some(retrieval) = &mut self.retrieval else { return };
        let Some(ack) = segment.ack.filter(|&ack| ack != retrieval.ack) else { return };
        if retrieval.resent_to != Some(ack) || retrieval.rounds == MAX_ROUNDS {
            self.retrieval = None;
            return;
        }
        *retrieval = Retrieval { ack, resent_to: None, rounds: retrieval.rounds + 1 };
        self.repeat_ack(repeat);
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
