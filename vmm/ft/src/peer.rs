//! Heartbeats and suspicion: when the other process was last heard, and when to be heard.

use logchannel::Generation;
use serde::{Deserialize, Serialize};

/// A heartbeat, as it travels over UDP in both directions. It may be lost, delayed, repeated and reordered,
/// so it says only that its sender lived when it was sent: acks and releases travel on the logging channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The generation under which the pair runs: heartbeats of another pairing do not count.
    pub generation: Generation,
    /// Counts up with each heartbeat of a sender: repeated and overtaken ones do not count.
    pub number: u64,
}

/// Why a peer is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspicion {
    /// The logging channel broke.
    ChannelBroken,
    /// Nothing came from it for the timeout.
    Silent,
    /// Heartbeats come, but entries get no ack.
    AcksStalled,
    /// The backup said that it left the pair.
    Left,
    /// It broke the protocol.
    Misbehaves,
    /// The primary handed over: a backup claims then as if it had lost it.
    HandedOver,
}

/// The other process, as seen from here.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    generation: Generation,
    heard_ns: u64,
    last_number: Option<u64>,
    next_number: u64,
    send_at_ns: u64,
}

impl Peer {
    /// A peer of this generation's pair, heard just now.
    pub(crate) fn new(generation: Generation, now_ns: u64) -> Self {
        Self { generation, heard_ns: now_ns, last_number: None, next_number: 0, send_at_ns: now_ns }
    }

    /// Something came from it over the channel.
    pub(crate) fn heard(&mut self, now_ns: u64) {
        self.heard_ns = self.heard_ns.max(now_ns);
    }

    /// A heartbeat came; whether it counts.
    pub(crate) fn heartbeat(&mut self, beat: Heartbeat, now_ns: u64) -> bool {
        let newer = self.last_number.is_none_or(|last| beat.number > last);
        if beat.generation != self.generation || !newer {
            return false;
        }
        self.last_number = Some(beat.number);
        self.heard(now_ns);
        true
    }

    /// Whether nothing was heard for longer than the timeout.
    pub(crate) fn silent(&self, now_ns: u64, suspect_after_ns: u64) -> bool {
        now_ns.saturating_sub(self.heard_ns) > suspect_after_ns
    }

    /// When it will be silent for too long, unless it is heard before.
    pub(crate) fn silent_at_ns(&self, suspect_after_ns: u64) -> u64 {
        self.heard_ns.saturating_add(suspect_after_ns).saturating_add(1)
    }

    /// When the next heartbeat is due.
    pub(crate) fn send_at_ns(&self) -> u64 {
        self.send_at_ns
    }

    /// The heartbeat to send now, if one is due.
    pub(crate) fn due(&mut self, now_ns: u64, every_ns: u64) -> Option<Heartbeat> {
        if now_ns < self.send_at_ns {
            return None;
        }
        self.send_at_ns = now_ns.saturating_add(every_ns.max(1));
        let number = self.next_number;
        self.next_number += 1;
        Some(Heartbeat { generation: self.generation, number })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_overtaken_and_foreign_heartbeats_do_not_count() {
        let mut peer = Peer::new(3, 0);
        let beat = |generation, number| Heartbeat { generation, number };
        assert!(peer.heartbeat(beat(3, 5), 10));
        assert!(!peer.heartbeat(beat(3, 5), 20));
        assert!(!peer.heartbeat(beat(3, 4), 20));
        assert!(!peer.heartbeat(beat(2, 9), 20));
        assert!(!peer.heartbeat(beat(4, 9), 20));
        assert!(!peer.silent(110, 100));
        assert!(peer.silent(111, 100));
        assert_eq!(peer.silent_at_ns(100), 111);
    }

    #[test]
    fn heartbeats_are_numbered_and_spaced() {
        let mut peer = Peer::new(1, 0);
        assert_eq!(peer.due(0, 20).map(|b| b.number), Some(0));
        assert_eq!(peer.due(19, 20), None);
        assert_eq!(peer.due(25, 20).map(|b| b.number), Some(1));
        assert_eq!(peer.due(44, 20), None);
        assert_eq!(peer.due(45, 20).map(|b| b.number), Some(2));
    }
}
