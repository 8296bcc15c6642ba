//! An Ethernet switch as a pure state machine: frames in, frames out, no sockets, no clock.
//!
//! It learns on which port a MAC is, floods what it does not know, and forgets stations that stay silent. A MAC
//! seen on another port moves there at once: that is how a new primary takes its guest's traffic over. When a
//! port goes away its stations stay known, without a port, for a while: frames to them are held.
//!
//! When a station that moved announces itself (gratuitous ARP), `Memory` delivers what it missed. A frame other
//! than an announcement moves the MAC but delivers nothing: the announcement says that the guest is live.

pub mod memory;

use std::collections::{BTreeMap, BTreeSet};

use crate::packet::{self, Announcement, Mac};
use memory::{Memory, MemoryLimits};

/// A port of the switch, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u64);

/// Limits of the switch.
#[derive(Debug, Clone, Copy)]
pub struct SwitchLimits {
    /// Most stations known.
    pub stations: usize,
    /// Most stations whose frames are remembered for a failover.
    pub memories: usize,
    /// How long a silent station on a port stays known, in nanoseconds.
    pub station_age_ns: u64,
    /// How long a station whose port went away stays known, in nanoseconds.
    pub orphan_age_ns: u64,
    /// Limits of each station's memory.
    pub memory: MemoryLimits,
}

impl Default for SwitchLimits {
    fn default() -> Self {
        Self {
            stations: 1024,
            memories: 32,
            station_age_ns: 300_000_000_000,
            orphan_age_ns: 120_000_000_000,
            memory: MemoryLimits::default(),
        }
    }
}

/// What the switch counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames forwarded to one port.
    pub forwarded: u64,
    /// Frames flooded to all ports.
    pub flooded: u64,
    /// Frames for a station whose port went away.
    pub held: u64,
    /// Frames dropped: source a group or the gateway's, or the destination on the port they came from.
    pub filtered: u64,
    /// Stations that moved from one port to another.
    pub moves: u64,
    /// Frames sent again, or made up, for a station that moved.
    pub redelivered: u64,
    /// Frames for a failover that were given up because a limit was reached.
    pub forgotten: u64,
}

/// A station announced an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announced {
    /// Station and address.
    pub who: Announcement,
    /// Whether it had moved to the port since its last announcement.
    pub moved: bool,
}

#[derive(Debug)]
struct Station {
    port: Option<PortId>,
    /// Where it was before it moved there, while that port is connected.
    before: Option<PortId>,
    seen_ns: u64,
    /// Moved, and not announced since.
    moved: bool,
    memory: Option<Memory>,
}

/// The switch.
#[derive(Debug)]
pub struct Switch {
    limits: SwitchLimits,
    ports: BTreeSet<PortId>,
    stations: BTreeMap<Mac, Station>,
    /// The station inside: always on this port, its MAC is nobody else's.
    inner: (Mac, PortId),
    counters: Counters,
}

impl Switch {
    /// A switch with one port, `port`, on which the station `mac` stays for ever.
    pub fn new(limits: SwitchLimits, mac: Mac, port: PortId) -> Self {
        Self {
            limits,
            ports: BTreeSet::from([port]),
            stations: BTreeMap::new(),
            inner: (mac, port),
            counters: Counters::default(),
        }
    }

    /// Adds a port.
    pub fn add_port(&mut self, port: PortId) {
        assert!(self.ports.insert(port), "{port:?} was there already");
    }

    /// Removes a port; frames to its stations are held from now on. A station that was on another port
    /// before, which is still connected, is there again: a copy that was replaced and did not know it yet may
    /// have sent a last frame, after the one that replaced it had announced itself.
    pub fn remove_port(&mut self, now_ns: u64, port: PortId) {
        assert!(self.ports.remove(&port), "{port:?} was not there");
        for station in self.stations.values_mut() {
            station.before = station.before.filter(|before| *before != port);
            if station.port == Some(port) {
                station.port = station.before.take();
                station.seen_ns = now_ns;
                station.moved |= station.port.is_some();
                self.counters.moves += u64::from(station.port.is_some());
            }
        }
    }

    /// What was counted.
    pub fn counters(&self) -> Counters {
        let forgotten =
            self.stations.values().filter_map(|s| s.memory.as_ref()).map(Memory::forgotten).sum::<u64>();
        Counters { forgotten: self.counters.forgotten + forgotten, ..self.counters }
    }

    /// The stations known on a port (`None`: those whose port went away).
    pub fn stations_on(&self, port: Option<PortId>) -> impl Iterator<Item = Mac> {
        self.stations.iter().filter(move |(_, s)| s.port == port).map(|(mac, _)| *mac)
    }

    /// A frame came in on port `from`; `send` is called for each frame that goes out. Returns an announcement
    /// that came with it.
    pub fn input(
        &mut self,
        now_ns: u64,
        from: PortId,
        frame: &[u8],
        send: &mut dyn FnMut(PortId, &[u8]),
    ) -> Option<Announced> {
        let (destination, source) = packet::addresses(frame)?;
        let inside = from == self.inner.1;
        if source.is_multicast() || (!inside && source == self.inner.0) {
            self.counters.filtered += 1;
            return None;
        }
        let segment = packet::tcp_segment(frame);
        let mut announced = None;
        if !inside {
            self.learn(now_ns, source, from);
            if let Some(station) = self.stations.get_mut(&source) {
                if let (Some(memory), Some(segment)) = (&mut station.memory, &segment) {
                    memory.received(segment);
                }
                announced = packet::announcement(frame).map(|who| Announced { who, moved: station.moved });
                if announced.is_some_and(|a| a.moved) {
                    station.moved = false;
                    if let Some(memory) = &mut station.memory {
                        self.counters.redelivered +=
                            memory.redeliver(now_ns, from, &mut |frame| send(from, frame));
                    }
                }
            }
        }
        self.forward(now_ns, from, destination, frame, segment.as_ref(), send);
        announced
    }

    fn learn(&mut self, now_ns: u64, source: Mac, from: PortId) {
        if let Some(station) = self.stations.get_mut(&source) {
            station.seen_ns = now_ns;
            if station.port != Some(from) {
                station.before = station.port.replace(from);
                station.moved = true;
                self.counters.moves += 1;
            }
            return;
        }
        if self.stations.len() >= self.limits.stations {
            self.evict();
        }
        let remembered = self.stations.values().filter(|s| s.memory.is_some()).count();
        let memory = (remembered < self.limits.memories).then(|| Memory::new(self.limits.memory));
        let station = Station { port: Some(from), before: None, seen_ns: now_ns, moved: false, memory };
        self.stations.insert(source, station);
    }

    /// Forgets the station that was silent longest.
    fn evict(&mut self) {
        let oldest = self.stations.iter().min_by_key(|(_, s)| s.seen_ns).map(|(mac, _)| *mac);
        if let Some(mac) = oldest {
            self.forget(mac);
        }
    }

    fn forget(&mut self, mac: Mac) {
        if let Some(memory) = self.stations.remove(&mac).and_then(|s| s.memory) {
            self.counters.forgotten += memory.forgotten();
        }
    }

    fn forward(
        &mut self,
        now_ns: u64,
        from: PortId,
        destination: Mac,
        frame: &[u8],
        segment: Option<&packet::Segment<'_>>,
        send: &mut dyn FnMut(PortId, &[u8]),
    ) {
        if destination == self.inner.0 && from != self.inner.1 {
            self.counters.forwarded += 1;
            return send(self.inner.1, frame);
        }
        if !destination.is_multicast() && self.is_stale(now_ns, destination) {
            self.forget(destination);
        }
        match self.stations.get_mut(&destination) {
            Some(station) if station.port == Some(from) => self.counters.filtered += 1,
            Some(station) => {
                match station.port {
                    Some(port) => {
                        self.counters.forwarded += 1;
                        send(port, frame);
                    }
                    None => self.counters.held += 1,
                }
                let (port, redelivered) = (station.port, &mut self.counters.redelivered);
                if let Some(memory) = &mut station.memory {
                    memory.sent(now_ns, port, frame, segment, &mut |ack| {
                        *redelivered += 1;
                        port.into_iter().for_each(|port| send(port, ack));
                    });
                }
            }
            None => {
                self.counters.flooded += 1;
                self.ports.iter().filter(|&&port| port != from).for_each(|&port| send(port, frame));
            }
        }
    }

    fn is_stale(&self, now_ns: u64, mac: Mac) -> bool {
        self.stations.get(&mac).is_some_and(|station| {
            let age =
                if station.port.is_some() { self.limits.station_age_ns } else { self.limits.orphan_age_ns };
            now_ns.saturating_sub(station.seen_ns) > age
        })
    }
}

#[cfg(test)]
#[path = "switch_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "stale_tests.rs"]
mod stale_tests;
