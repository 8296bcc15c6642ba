//! The network thread: one epoll set over the listeners, the ports' sockets and the host clients' sockets.
//!
//! ```text
//!  wait ─▶ events: accept, read ports → switch, read/write host clients
//!       ─▶ gateway: smoltcp until it has no more to do; its frames → switch
//!       ─▶ write each port's queue once ─▶ wait
//! ```
//!
//! All of a turn's frames for a port leave in one write. Nothing here waits for anything but the epoll set,
//! and every queue is bounded.

mod accept;

use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpListener;
use std::sync::mpsc;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;

use crate::clock::Clock;
use crate::endpoint::Forward;
use crate::gateway::Gateway;
use crate::options::LanOptions;
use crate::port::Port;
use crate::status::{LanStatus, PortStatus, SwitchStatus};
use crate::stream::{Listener, Stream, is_not_now};
use crate::switch::{PortId, Switch};
use crate::wire::{FrameBatch, FrameDecoder};

const GATEWAY_PORT: PortId = PortId(0);
const EVENTS_PER_TURN: usize = 256;

/// What the thread is asked to do.
pub(crate) enum Command {
    Status(mpsc::Sender<LanStatus>),
    Stop,
}

const KIND_BITS: u32 = 3;

/// What an epoll event is about, packed into its 64 bits of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Wake,
    Listener(u64),
    Forward(u64),
    Port(u64),
    Connection(u64),
}

impl Token {
    fn pack(self) -> u64 {
        let (kind, id) = match self {
            Token::Wake => (0, 0),
            Token::Listener(id) => (1, id),
            Token::Forward(id) => (2, id),
            Token::Port(id) => (3, id),
            Token::Connection(id) => (4, id),
        };
        id << KIND_BITS | kind
    }

    fn unpack(data: u64) -> Self {
        let id = data >> KIND_BITS;
        match data & ((1 << KIND_BITS) - 1) {
            1 => Token::Listener(id),
            2 => Token::Forward(id),
            3 => Token::Port(id),
            4 => Token::Connection(id),
            _ => Token::Wake,
        }
    }
}

/// Where frames of the switch go: the ports' queues and the gateway.
struct Outlets {
    ports: BTreeMap<PortId, Port>,
    gateway: Gateway,
    /// Ports with something to write.
    dirty: Vec<PortId>,
}

impl Outlets {
    fn send(&mut self, port: PortId, frame: &[u8]) {
        if port == GATEWAY_PORT {
            self.gateway.deliver(frame);
        } else if let Some(outlet) = self.ports.get_mut(&port) {
            outlet.send(frame);
            if !outlet.dirty && !outlet.waiting {
                outlet.dirty = true;
                self.dirty.push(port);
            }
        }
    }
}

/// The network thread's state.
pub(crate) struct Reactor {
    options: LanOptions,
    epoll: Epoll,
    clock: Clock,
    commands: mpsc::Receiver<Command>,
    wake: std::sync::Arc<EventFd>,
    listeners: Vec<Listener>,
    forwards: Vec<(TcpListener, Forward)>,
    /// Nothing is accepted until then, unless a connection ends before.
    paused: Option<u64>,
    /// Held to be closed when no descriptor is left, so that a peer can be accepted and turned away.
    spare: Option<File>,
    switch: Switch,
    outlets: Outlets,
    next_port: u64,
    frames: FrameBatch,
    garbage: u64,
    refused: u64,
}

impl Reactor {
    /// Takes over bound listeners.
    pub(crate) fn new(
        options: LanOptions,
        listeners: Vec<Listener>,
        forwards: Vec<(TcpListener, Forward)>,
        commands: mpsc::Receiver<Command>,
        wake: std::sync::Arc<EventFd>,
        seed: u64,
    ) -> Result<Self, Errno> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&*wake, EpollEvent::new(EpollFlags::EPOLLIN, Token::Wake.pack()))?;
        for (index, listener) in listeners.iter().enumerate() {
            epoll
                .add(listener, EpollEvent::new(EpollFlags::EPOLLIN, Token::Listener(index as u64).pack()))?;
        }
        for (index, (listener, _)) in forwards.iter().enumerate() {
            epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, Token::Forward(index as u64).pack()))?;
        }
        let gateway = Gateway::new(&options, seed, |id| Token::Connection(id).pack());
        Ok(Self {
            epoll,
            clock: Clock::start(),
            commands,
            wake,
            listeners,
            forwards,
            paused: None,
            spare: accept::spare(),
            switch: Switch::new(options.switch, options.gateway_mac, GATEWAY_PORT),
            outlets: Outlets { ports: BTreeMap::new(), gateway, dirty: Vec::new() },
            next_port: 1,
            frames: FrameBatch::default(),
            garbage: 0,
            refused: 0,
            options,
        })
    }

    /// Runs until it is told to stop. An error is the host's: epoll itself failed.
    #[allow(clippy::cast_possible_truncation, reason = "they were made of indexes")]
    pub(crate) fn run(mut self) -> Result<LanStatus, Errno> {
        let mut events = vec![EpollEvent::empty(); EVENTS_PER_TURN];
        loop {
            let count = match self.epoll.wait(&mut events, self.timeout()) {
                Err(Errno::EINTR) => 0,
                result => result?,
            };
            let now_ns = self.clock.now_ns();
            for event in &events[..count] {
                match Token::unpack(event.data()) {
                    Token::Wake => {
                        if self.obey() {
                            return Ok(self.status());
                        }
                    }
                    Token::Listener(index) => self.accept_ports(now_ns, index as usize),
                    Token::Forward(index) => self.accept_clients(now_ns, index as usize),
                    Token::Port(id) => self.port_event(now_ns, PortId(id), event.events()),
                    Token::Connection(id) => {
                        self.outlets.gateway.host_event(&self.epoll, id, event.events());
                    }
                }
            }
            self.settle(now_ns);
        }
    }

    fn timeout(&self) -> EpollTimeout {
        let at_ns = [self.outlets.gateway.timer_ns(), self.paused].into_iter().flatten().min();
        at_ns.map_or(EpollTimeout::NONE, |at| {
            let wait_ms = at.saturating_sub(self.clock.now_ns()).div_ceil(1_000_000);
            EpollTimeout::try_from(wait_ms.min(60_000) as u32).unwrap_or(EpollTimeout::ZERO)
        })
    }

    /// Does what it is told; whether that is to stop.
    fn obey(&mut self) -> bool {
        if let Err(error) = self.wake.read() {
            tracing::debug!(%error, "woken without a reason");
        }
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Status(answer) => drop(answer.send(self.status())),
                Command::Stop => return true,
            }
        }
        false
    }

    fn add_port(&mut self, stream: Stream, peer: String) {
        if self.outlets.ports.len() >= self.options.max_ports {
            self.refused += 1;
            tracing::warn!(%peer, limit = self.options.max_ports, "port refused: all ports are in use");
            return stream.reset();
        }
        let id = PortId(self.next_port);
        let event = EpollEvent::new(EpollFlags::EPOLLIN, Token::Port(id.0).pack());
        if let Err(error) = self.epoll.add(&stream, event) {
            tracing::warn!(%peer, %error, "port refused: cannot watch it");
            return stream.reset();
        }
        tracing::info!(%peer, port = id.0, "port connected");
        self.next_port += 1;
        self.outlets.ports.insert(id, Port::new(stream, peer, self.options.port_queue_bytes));
        self.switch.add_port(id);
        self.outlets.gateway.port_connected();
    }

    fn remove_port(&mut self, now_ns: u64, id: PortId, why: &dyn std::fmt::Display) {
        let Some(port) = self.outlets.ports.remove(&id) else { return };
        tracing::info!(peer = %port.peer, port = id.0, %why, "port closed");
        if let Err(error) = self.epoll.delete(&port.stream) {
            tracing::debug!(%error, "cannot stop watching a port");
        }
        self.switch.remove_port(now_ns, id);
    }

    fn port_event(&mut self, now_ns: u64, id: PortId, events: EpollFlags) {
        if events.contains(EpollFlags::EPOLLOUT)
            && let Some(port) = self.outlets.ports.get_mut(&id)
            && !port.dirty
        {
            port.dirty = true;
            self.outlets.dirty.push(id);
        }
        // Hang-ups and errors show when reading, after what came before them.
        if events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            self.read_port(now_ns, id);
        }
    }

    fn read_port(&mut self, now_ns: u64, id: PortId) {
        let Some(port) = self.outlets.ports.get_mut(&id) else { return };
        let mut decoder = std::mem::take(&mut port.decoder);
        match port.stream.try_read(decoder.space()) {
            Ok(0) => return self.remove_port(now_ns, id, &"the peer closed it"),
            Ok(count) => decoder.filled(count),
            Err(error) if is_not_now(&error) => {}
            Err(error) => return self.remove_port(now_ns, id, &error),
        }
        let (frames, bytes, result) = self.switch_all(now_ns, id, &mut decoder);
        if let Some(port) = self.outlets.ports.get_mut(&id) {
            port.decoder = decoder;
            port.frames_in += frames;
            port.bytes_in += bytes;
        }
        if let Err(error) = result {
            self.garbage += 1;
            self.remove_port(now_ns, id, &error);
        }
    }

    fn switch_all(
        &mut self,
        now_ns: u64,
        id: PortId,
        decoder: &mut FrameDecoder,
    ) -> (u64, u64, Result<(), crate::wire::WireError>) {
        let (mut frames, mut bytes) = (0, 0);
        loop {
            let frame = match decoder.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => return (frames, bytes, Ok(())),
                Err(error) => return (frames, bytes, Err(error)),
            };
            frames += 1;
            bytes += frame.len() as u64;
            let outlets = &mut self.outlets;
            let announced =
                self.switch.input(now_ns, id, frame, &mut |port, frame| outlets.send(port, frame));
            if let Some(announced) = announced {
                if announced.moved {
                    let (mac, ip) = (announced.who.mac, announced.who.ip);
                    tracing::info!(%mac, %ip, port = id.0, "a station moved here");
                }
                outlets.gateway.announced(now_ns, announced);
            }
        }
    }

    /// Lets the gateway work until it has no more to do, and writes what came of the turn.
    fn settle(&mut self, now_ns: u64) {
        let connections = self.outlets.gateway.open_connections();
        loop {
            self.outlets.gateway.poll(now_ns, &self.epoll);
            let mut frames = std::mem::take(&mut self.frames);
            let any = self.outlets.gateway.take_sent(&mut frames);
            for frame in frames.iter() {
                let outlets = &mut self.outlets;
                self.switch.input(now_ns, GATEWAY_PORT, frame, &mut |port, frame| outlets.send(port, frame));
            }
            frames.clear();
            self.frames = frames;
            if !any {
                break;
            }
        }
        let fewer = self.outlets.gateway.open_connections() < connections;
        if self.paused.is_some_and(|until| fewer || now_ns >= until) {
            self.paused = None;
            self.watch_listeners(EpollFlags::EPOLLIN);
        }
        self.flush(now_ns);
    }

    fn flush(&mut self, now_ns: u64) {
        for id in std::mem::take(&mut self.outlets.dirty) {
            let Some(port) = self.outlets.ports.get_mut(&id) else { continue };
            port.dirty = false;
            if let Err(error) = port.flush() {
                // What the peer sent before it went away is still to be read; the port closes when that ends.
                tracing::debug!(peer = %port.peer, %error, "cannot write to a port");
                self.read_rest(now_ns, id, &error);
                continue;
            }
            let waiting = port.queued() > 0;
            if waiting != port.waiting {
                port.waiting = waiting;
                let mut flags = EpollFlags::EPOLLIN;
                flags.set(EpollFlags::EPOLLOUT, waiting);
                let mut event = EpollEvent::new(flags, Token::Port(id.0).pack());
                if let Err(error) = self.epoll.modify(&port.stream, &mut event) {
                    self.remove_port(now_ns, id, &error);
                }
            }
        }
    }

    /// The peer no longer reads: takes what it sent before, then closes the port.
    fn read_rest(&mut self, now_ns: u64, id: PortId, why: &dyn std::fmt::Display) {
        let mut before = None;
        while let Some(port) = self.outlets.ports.get(&id) {
            if before == Some(port.bytes_in) {
                return self.remove_port(now_ns, id, why);
            }
            before = Some(port.bytes_in);
            self.read_port(now_ns, id);
        }
    }

    fn status(&self) -> LanStatus {
        let counters = self.switch.counters();
        let ports = self.outlets.ports.iter().map(|(&id, port)| PortStatus {
            peer: port.peer.clone(),
            stations: self.switch.stations_on(Some(id)).collect(),
            frames_in: port.frames_in,
            bytes_in: port.bytes_in,
            frames_out: port.frames_out,
            bytes_out: port.bytes_out,
            dropped: port.dropped,
            queued_bytes: port.queued() as u64,
        });
        LanStatus {
            ports: ports.collect(),
            switch: SwitchStatus {
                orphans: self.switch.stations_on(None).collect(),
                forwarded: counters.forwarded,
                flooded: counters.flooded,
                held: counters.held,
                filtered: counters.filtered,
                moves: counters.moves,
                outdated: counters.outdated,
                redelivered: counters.redelivered,
                forgotten: counters.forgotten,
                garbage: self.garbage,
                refused: self.refused,
            },
            gateway: self.outlets.gateway.status(),
        }
    }
}
