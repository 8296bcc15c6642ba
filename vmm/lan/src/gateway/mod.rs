//! The gateway: a TCP/IP station (smoltcp) on a port of its own that joins host clients to guests.
//!
//! It answers ARP and ping for its address, and makes one connection to the guest for each host client that a
//! forward accepts. Work is found by readiness: epoll names the host sockets, the destination ports of
//! arriving frames name the smoltcp sockets; only smoltcp's own timers look at all of them.

mod connection;
pub(crate) mod device;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Cidr};

use crate::options::LanOptions;
use crate::packet::{self, Announcement};
use crate::status::GatewayStatus;
use crate::stream::reset_on_close;
use crate::switch::Announced;
use crate::wire::FrameBatch;
use connection::{BUFFER_LEN, Connection, Moved, Outcome};
use device::Wire;

/// Ephemeral ports (RFC 6335), used in turn: a port comes back long after its TIME-WAIT.
const PORTS: std::ops::RangeInclusive<u16> = 49152..=65535;
/// How long acknowledgements wait for data to travel with.
const ACK_DELAY: Duration = Duration::from_millis(10);
/// How long after a guest moved its connections acknowledge at once, so that what it resends flows.
const PROMPT_ACKS_NS: u64 = 1_000_000_000;
/// smoltcp's timers are not looked at more often than that while nothing arrives.
const MIN_DELAY_NS: u64 = 1_000_000;

/// Names a forwarded connection, never used twice.
pub(crate) type ConnectionId = u64;

/// The gateway.
pub(crate) struct Gateway {
    me: Announcement,
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    connections: BTreeMap<ConnectionId, Connection>,
    by_port: BTreeMap<u16, ConnectionId>,
    next_id: ConnectionId,
    next_port: u16,
    /// Connections to serve.
    dirty: Vec<ConnectionId>,
    /// Connections for which frames arrived that smoltcp has not processed yet.
    touched: Vec<ConnectionId>,
    /// Sockets to remove after the next poll, which sends their last segment.
    dying: Vec<SocketHandle>,
    targets: Vec<Ipv4Addr>,
    connect_timeout: Duration,
    prompt_until_ns: Option<u64>,
    timer_ns: Option<u64>,
    /// A connection was accepted, restarted or ended: smoltcp must be polled.
    poll_due: bool,
    token: fn(ConnectionId) -> u64,
    status: GatewayStatus,
}

#[allow(clippy::cast_possible_wrap, reason = "292,000 years")]
fn instant(now_ns: u64) -> Instant {
    Instant::from_micros((now_ns / 1000) as i64)
}

impl Gateway {
    /// A gateway without connections; `token` makes the epoll data of a connection's host socket.
    #[allow(clippy::cast_possible_truncation, reason = "less than the number of ports")]
    pub(crate) fn new(options: &LanOptions, seed: u64, token: fn(ConnectionId) -> u64) -> Self {
        let mut wire = Wire::default();
        let mut config = Config::new(EthernetAddress(options.gateway_mac.0).into());
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut wire, instant(0));
        let address = IpCidr::Ipv4(Ipv4Cidr::new(options.gateway_ip, options.prefix_len));
        interface.update_ip_addrs(|list| list.push(address).expect("an interface holds an address"));
        let mut targets: Vec<Ipv4Addr> = options.forwards.iter().map(|f| *f.target.ip()).collect();
        targets.sort_unstable();
        targets.dedup();
        Self {
            me: Announcement { mac: options.gateway_mac, ip: options.gateway_ip },
            wire,
            interface,
            sockets: SocketSet::new(Vec::new()),
            connections: BTreeMap::new(),
            by_port: BTreeMap::new(),
            next_id: 0,
            next_port: *PORTS.start() + (seed % PORTS.len() as u64) as u16,
            dirty: Vec::new(),
            touched: Vec::new(),
            dying: Vec::new(),
            targets,
            connect_timeout: Duration::from_millis(options.connect_timeout_ms),
            prompt_until_ns: None,
            timer_ns: None,
            poll_due: false,
            token,
            status: GatewayStatus::default(),
        }
    }

    /// Forwarded connections now.
    pub(crate) fn open_connections(&self) -> usize {
        self.connections.len()
    }

    /// What it counted.
    pub(crate) fn status(&self) -> GatewayStatus {
        GatewayStatus { open: self.connections.len() as u64, ..self.status }
    }

    /// A frame from the switch.
    pub(crate) fn deliver(&mut self, frame: &[u8]) {
        if let Some(segment) = packet::tcp_segment(frame)
            && let Some(&id) = self.by_port.get(&segment.flow.destination.1)
            && self.touched.last() != Some(&id)
        {
            self.touched.push(id);
        }
        self.wire.deliver(frame);
    }

    /// A port was connected to the switch: the guests may be there now. Asks for them, so that a connection
    /// in the making need not wait for smoltcp to ask again.
    pub(crate) fn port_connected(&mut self) {
        for &ip in &self.targets {
            self.wire.sent.push(&packet::arp_request(self.me, ip));
        }
    }

    /// A station announced its address.
    pub(crate) fn announced(&mut self, now_ns: u64, announced: Announced) {
        let Announced { who, moved } = announced;
        if who.ip == self.me.ip {
            tracing::warn!(mac = %who.mac, ip = %who.ip, "a station claims the gateway's address");
            return;
        }
        // smoltcp learns addresses only from ARP packets that are meant for it.
        self.wire.deliver(&packet::arp_reply(self.me, who));
        if !moved {
            return;
        }
        self.prompt_until_ns = Some(now_ns + PROMPT_ACKS_NS);
        self.set_ack_delay(None);
        // A SYN, or the answer to it, may be lost; a guest need not answer a repeated SYN at once. A fresh
        // connection costs nothing: no byte was exchanged yet.
        let making: Vec<ConnectionId> = self
            .connections
            .iter()
            .filter(|(_, c)| c.connecting && *c.target.ip() == who.ip)
            .map(|(&id, _)| id)
            .collect();
        for id in making {
            self.restart(id);
        }
    }

    fn set_ack_delay(&mut self, delay: Option<Duration>) {
        for connection in self.connections.values() {
            self.sockets.get_mut::<tcp::Socket<'_>>(connection.handle).set_ack_delay(delay);
        }
    }

    fn restart(&mut self, id: ConnectionId) {
        let Some(target) = self.connections.get(&id).map(|c| c.target) else { return };
        let Ok((handle, port)) = self.connect(target) else { return };
        let connection = self.connections.get_mut(&id).expect("looked up above");
        let old = (connection.handle, connection.port);
        (connection.handle, connection.port) = (handle, port);
        self.by_port.remove(&old.1);
        self.by_port.insert(port, id);
        self.bury(old.0, true);
        self.status.restarted += 1;
    }

    fn bury(&mut self, handle: SocketHandle, abort: bool) {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.set_ack_delay(None);
        if abort {
            socket.abort();
        }
        self.dying.push(handle);
        self.poll_due = true;
    }

    fn free_port(&mut self) -> io::Result<u16> {
        for _ in PORTS {
            let port = self.next_port;
            self.next_port = if port == *PORTS.end() { *PORTS.start() } else { port + 1 };
            if !self.by_port.contains_key(&port) {
                return Ok(port);
            }
        }
        Err(io::Error::other("all ports of the gateway are in use"))
    }

    fn connect(&mut self, target: SocketAddrV4) -> io::Result<(SocketHandle, u16)> {
        let port = self.free_port()?;
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER_LEN]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(ACK_DELAY));
        socket.set_timeout(Some(self.connect_timeout));
        let context = self.interface.context();
        socket.connect(context, (*target.ip(), target.port()), port).map_err(io::Error::other)?;
        self.poll_due = true;
        Ok((self.sockets.add(socket), port))
    }

    /// A host client was accepted: connects it to the guest.
    pub(crate) fn accept(&mut self, epoll: &Epoll, host: TcpStream, target: SocketAddrV4) -> io::Result<()> {
        host.set_nonblocking(true)?;
        host.set_nodelay(true)?;
        let id = self.next_id;
        let (handle, port) = self.connect(target).inspect_err(|_| reset_on_close(&host))?;
        let mut connection = Connection::new(host, handle, port, target);
        let nothing = EpollFlags::empty();
        if let Err(error) = epoll.add(&connection.host, EpollEvent::new(nothing, (self.token)(id))) {
            connection.reset_host();
            self.bury(handle, true);
            return Err(error.into());
        }
        connection.interest = Some(nothing);
        self.next_id += 1;
        self.by_port.insert(port, id);
        self.connections.insert(id, connection);
        self.status.accepted += 1;
        Ok(())
    }

    /// A host client was turned away.
    pub(crate) fn refused(&mut self) {
        self.status.refused += 1;
    }

    /// A connection's host socket reported something.
    pub(crate) fn host_event(&mut self, epoll: &Epoll, id: ConnectionId, events: EpollFlags) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match connection.host_event(events) {
            Ok(()) if !connection.dirty => {
                connection.dirty = true;
                self.dirty.push(id);
            }
            Ok(()) => {}
            Err(error) => {
                tracing::debug!(connection = id, %error, "the host client reset its connection");
                self.finish(epoll, id, Outcome::Reset);
            }
        }
    }

    /// Processes what arrived and what is due; what smoltcp sends is fetched by `take_sent`.
    pub(crate) fn poll(&mut self, now_ns: u64, epoll: &Epoll) {
        let timer = self.timer_ns.is_some_and(|at| now_ns >= at);
        self.poll_due |= timer;
        if self.prompt_until_ns.is_some_and(|until| now_ns > until) {
            self.prompt_until_ns = None;
            self.set_ack_delay(Some(ACK_DELAY));
        }
        let mut worked = false;
        loop {
            self.serve(epoll);
            if !self.poll_due && !self.wire.has_received() {
                break;
            }
            self.poll_due = false;
            worked = true;
            let dying = std::mem::take(&mut self.dying);
            self.interface.poll(instant(now_ns), &mut self.wire, &mut self.sockets);
            for handle in dying {
                self.sockets.remove(handle);
            }
            if timer {
                self.touched.clear();
                self.touched.extend(self.connections.keys());
            }
            for id in std::mem::take(&mut self.touched) {
                if let Some(connection) = self.connections.get_mut(&id).filter(|c| !c.dirty) {
                    connection.dirty = true;
                    self.dirty.push(id);
                }
            }
        }
        if worked {
            let delay = self.interface.poll_delay(instant(now_ns), &self.sockets);
            self.timer_ns = delay.map(|d| now_ns + (d.total_micros() * 1000).max(MIN_DELAY_NS));
        }
    }

    /// When smoltcp wants to be polled without anything arriving.
    pub(crate) fn timer_ns(&self) -> Option<u64> {
        self.timer_ns
    }

    /// Exchanges what was sent since the last call for an empty batch; whether there was anything.
    pub(crate) fn take_sent(&mut self, empty: &mut FrameBatch) -> bool {
        std::mem::swap(&mut self.wire.sent, empty);
        !empty.is_empty()
    }

    fn serve(&mut self, epoll: &Epoll) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for id in dirty.drain(..) {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.dirty = false;
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(connection.handle);
            let mut moved = Moved::default();
            let outcome = connection.pump(socket, &mut moved);
            self.status.bytes_to_guest += moved.to_guest as u64;
            self.status.bytes_to_host += moved.to_host as u64;
            self.poll_due |= moved.poll;
            if outcome == Outcome::Open {
                let wanted = connection.wanted(socket);
                if let Err(error) = watch(epoll, connection, wanted, (self.token)(id)) {
                    tracing::warn!(connection = id, %error, "cannot watch a host client's socket");
                    self.finish(epoll, id, Outcome::Reset);
                }
            } else {
                self.finish(epoll, id, outcome);
            }
        }
        // Nothing is marked dirty while serving: keep the list's memory.
        self.dirty = dirty;
    }

    fn finish(&mut self, epoll: &Epoll, id: ConnectionId, outcome: Outcome) {
        let Some(mut connection) = self.connections.remove(&id) else { return };
        self.by_port.remove(&connection.port);
        match outcome {
            Outcome::Open | Outcome::Finished => {}
            Outcome::Reset => {
                self.status.reset += 1;
                connection.reset_host();
            }
            Outcome::Refused => self.status.failed += 1,
        }
        if let Err(error) = watch(epoll, &mut connection, None, 0) {
            tracing::debug!(connection = id, %error, "cannot stop watching a host client's socket");
        }
        self.bury(connection.handle, outcome == Outcome::Reset);
    }
}

fn watch(
    epoll: &Epoll,
    connection: &mut Connection,
    wanted: Option<EpollFlags>,
    token: u64,
) -> Result<(), nix::errno::Errno> {
    match (connection.interest, wanted) {
        (old, new) if old == new => return Ok(()),
        (Some(_), Some(flags)) => epoll.modify(&connection.host, &mut EpollEvent::new(flags, token))?,
        (None, Some(flags)) => epoll.add(&connection.host, EpollEvent::new(flags, token))?,
        (Some(_), None) => epoll.delete(&connection.host)?,
        (None, None) => {}
    }
    connection.interest = wanted;
    Ok(())
}
