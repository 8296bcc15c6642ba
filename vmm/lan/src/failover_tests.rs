//! Failovers in virtual time: switch, gateway and a guest run on a clock that the test advances, so "recovers
//! within milliseconds, not after a retransmission timeout" is a property of the run, not of the host's
//! speed. Host clients are real sockets on loopback, which deliver at once.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Cidr};

use crate::gateway::{Gateway, device::Wire};
use crate::options::{DEFAULT_GUEST_IP, DEFAULT_GUEST_MAC, LanOptions};
use crate::packet::{gratuitous_arp, tcp_segment};
use crate::switch::{PortId, Switch};
use crate::wire::FrameBatch;

const INSIDE: PortId = PortId(0);
const GUEST_PORT: u16 = 6379;
const STEP_NS: u64 = 50_000;
const MS: u64 = 1_000_000;
/// What a client may stand still after its guest went live: delayed acknowledgements (10 ms), never a
/// retransmission timeout (1 s).
const RECOVERY_NS: u64 = 60 * MS;

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Which frames the dying host swallows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Loss {
    to_guest: bool,
    from_guest: bool,
}

const BOTH: Loss = Loss { to_guest: true, from_guest: true };

/// A guest that answers each byte b by b + 1, on many connections.
struct Guest {
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    handles: Vec<SocketHandle>,
    port: PortId,
    loss: Loss,
    /// TCP segments swallowed, by direction.
    lost: (usize, usize),
    /// Reads nothing, so that its window closes.
    lazy: bool,
}

impl Guest {
    fn new(port: PortId) -> Self {
        let mut wire = Wire::default();
        let mut config = Config::new(EthernetAddress(DEFAULT_GUEST_MAC.0).into());
        config.random_seed = 7;
        let mut interface = Interface::new(config, &mut wire, Instant::ZERO);
        let address = IpCidr::Ipv4(Ipv4Cidr::new(DEFAULT_GUEST_IP, 24));
        interface.update_ip_addrs(|list| list.push(address).unwrap());
        let (mut sockets, mut handles) = (SocketSet::new(Vec::new()), Vec::new());
        for _ in 0..40 {
            let buffer = || tcp::SocketBuffer::new(vec![0; 65535]);
            let mut socket = tcp::Socket::new(buffer(), buffer());
            socket.set_nagle_enabled(false);
            socket.listen(GUEST_PORT).unwrap();
            handles.push(sockets.add(socket));
        }
        Self { wire, interface, sockets, handles, port, loss: Loss::default(), lost: (0, 0), lazy: false }
    }

    fn run(&mut self, now_ns: u64) -> FrameBatch {
        let now = Instant::from_micros((now_ns / 1000) as i64);
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        for &handle in &self.handles {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
            while !self.lazy && socket.can_recv() && socket.can_send() {
                let room = socket.send_capacity() - socket.send_queue();
                let bytes = socket.recv(|b| (b.len().min(room), b[..b.len().min(room)].to_vec())).unwrap();
                let answer: Vec<u8> = bytes.iter().map(|b| b.wrapping_add(1)).collect();
                assert_eq!(socket.send_slice(&answer), Ok(answer.len()));
            }
            if socket.state() == tcp::State::CloseWait && !socket.can_recv() {
                socket.close();
            }
            if socket.state() == tcp::State::Closed {
                socket.listen(GUEST_PORT).unwrap();
            }
        }
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        std::mem::take(&mut self.wire.sent)
    }
}

struct World {
    now_ns: u64,
    epoll: Epoll,
    switch: Switch,
    gateway: Gateway,
    guest: Guest,
    listener: TcpListener,
    frames_on_dead_ports: usize,
}

fn deliver(gateway: &mut Gateway, guest: &mut Guest, dead: &mut usize, port: PortId, frame: &[u8]) {
    if port == INSIDE {
        gateway.deliver(frame);
    } else if port != guest.port {
        *dead += 1;
    } else if guest.loss.to_guest {
        guest.lost.0 += usize::from(tcp_segment(frame).is_some());
    } else {
        guest.wire.deliver(frame);
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let forward = format!("127.0.0.1:0={DEFAULT_GUEST_IP}:{GUEST_PORT}").parse().unwrap();
        let options = LanOptions { forwards: vec![forward], ..LanOptions::default() };
        let mut switch = Switch::new(options.switch, options.gateway_mac, INSIDE);
        switch.add_port(PortId(1));
        Self {
            now_ns: 0,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap(),
            switch,
            gateway: Gateway::new(&options, seed, |id| id),
            guest: Guest::new(PortId(1)),
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
            frames_on_dead_ports: 0,
        }
    }

    fn client(&mut self) -> TcpStream {
        let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        client.set_nonblocking(true).unwrap();
        client.set_nodelay(true).unwrap();
        let (host, _) = self.listener.accept().unwrap();
        let target = SocketAddrV4::new(DEFAULT_GUEST_IP, GUEST_PORT);
        self.gateway.accept(&self.epoll, host, target).unwrap();
        client
    }

    fn input(&mut self, from: PortId, frame: &[u8]) {
        let (gateway, guest, dead) = (&mut self.gateway, &mut self.guest, &mut self.frames_on_dead_ports);
        let mut send = |port: PortId, frame: &[u8]| deliver(gateway, guest, dead, port, frame);
        let announced = self.switch.input(self.now_ns, from, frame, &mut send);
        if let Some(announced) = announced {
            self.gateway.announced(self.now_ns, announced);
        }
    }

    fn step(&mut self) {
        self.now_ns += STEP_NS;
        let mut events = [EpollEvent::empty(); 64];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap();
        for event in &events[..count] {
            self.gateway.host_event(&self.epoll, event.data(), event.events());
        }
        self.gateway.poll(self.now_ns, &self.epoll);
        let mut frames = FrameBatch::default();
        self.gateway.take_sent(&mut frames);
        frames.iter().for_each(|frame| self.input(INSIDE, frame));
        for frame in self.guest.run(self.now_ns).iter() {
            if self.guest.loss.from_guest {
                self.guest.lost.1 += usize::from(tcp_segment(frame).is_some());
            } else {
                self.input(self.guest.port, frame);
            }
        }
    }

    fn steps_until(&mut self, limit_ns: u64, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = self.now_ns + limit_ns;
        while !done(self) {
            assert!(self.now_ns < end, "{what}: not within {} ms of virtual time", limit_ns / MS);
            self.step();
        }
    }

    /// The guest goes on, as it is, on another port. The old one is gone, or only dead.
    fn go_live(&mut self, old_port_closes: bool) {
        if old_port_closes {
            self.switch.remove_port(self.now_ns, self.guest.port);
        }
        self.guest.port = PortId(self.guest.port.0 + 1);
        self.guest.loss = Loss::default();
        self.switch.add_port(self.guest.port);
        self.input(self.guest.port, &gratuitous_arp(DEFAULT_GUEST_MAC, DEFAULT_GUEST_IP));
    }

    fn exchange(&mut self, client: &mut TcpStream, request: &[u8]) {
        client.write_all(request).unwrap();
        self.answer(client, request);
    }

    fn answer(&mut self, client: &mut TcpStream, request: &[u8]) {
        let expected: Vec<u8> = request.iter().map(|b| b.wrapping_add(1)).collect();
        let mut got = Vec::new();
        self.steps_until(RECOVERY_NS, "an answer", |_| {
            read_some(client, &mut got);
            got.len() >= expected.len()
        });
        assert!(got == expected, "the answer differs");
    }
}

fn read_some(client: &mut TcpStream, got: &mut Vec<u8>) {
    let mut buffer = [0; 65536];
    match client.read(&mut buffer) {
        Ok(0) => panic!("the connection ended"),
        Ok(count) => got.extend_from_slice(&buffer[..count]),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        Err(error) => panic!("the connection broke: {error}"),
    }
}

#[test]
fn a_lost_request_is_delivered_to_the_new_primary() {
    for old_port_closes in [false, true] {
        let mut world = World::new(1);
        let mut client = world.client();
        world.exchange(&mut client, b"hello");
        world.guest.loss = BOTH;
        client.write_all(b"request").unwrap();
        world.steps_until(RECOVERY_NS, "the loss", |w| w.guest.lost.0 > 0);
        world.go_live(old_port_closes);
        world.answer(&mut client, b"request");
    }
}

#[test]
fn a_lost_answer_is_sent_again_by_the_new_primary() {
    let mut world = World::new(2);
    let mut client = world.client();
    world.exchange(&mut client, b"hello");
    world.guest.loss = Loss { from_guest: true, to_guest: false };
    client.write_all(b"request").unwrap();
    world.steps_until(RECOVERY_NS, "the loss", |w| w.guest.lost.1 > 0);
    world.go_live(true);
    world.answer(&mut client, b"request");
}

#[test]
fn a_lost_answer_of_many_segments_is_sent_again() {
    let mut world = World::new(3);
    let mut client = world.client();
    world.exchange(&mut client, b"hello");
    let request = vec![9; 60_000];
    let mut written = 0;
    // The guest has the whole request before anything it says is lost.
    world.guest.lazy = true;
    world.steps_until(1000 * MS, "the request", |w| {
        if let Ok(count) = client.write(&request[written..]) {
            written += count;
        }
        let queue: usize =
            w.guest.handles.iter().map(|&h| w.guest.sockets.get::<tcp::Socket<'_>>(h).recv_queue()).sum();
        queue == request.len()
    });
    world.guest.lazy = false;
    world.guest.loss.from_guest = true;
    world.steps_until(RECOVERY_NS, "the loss", |w| w.guest.lost.1 >= 41);
    world.go_live(true);
    world.answer(&mut client, &request);
}

#[test]
fn a_lost_syn_or_syn_ack_costs_no_timeout() {
    for loss in [BOTH, Loss { to_guest: true, from_guest: false }, Loss { to_guest: false, from_guest: true }]
    {
        for old_port_closes in [false, true] {
            let mut world = World::new(4);
            let mut first = world.client();
            world.exchange(&mut first, b"hello");
            world.guest.loss = loss;
            let mut client = world.client();
            client.write_all(b"request").unwrap();
            world.steps_until(RECOVERY_NS, "the loss", |w| w.guest.lost != (0, 0));
            world.go_live(old_port_closes);
            world.answer(&mut client, b"request");
        }
    }
}

#[test]
fn a_lost_window_update_or_bare_ack_costs_no_timeout() {
    let mut world = World::new(5);
    let mut client = world.client();
    world.exchange(&mut client, b"hello");
    world.guest.lazy = true;
    let request: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
    let mut written = 0;
    // The guest's window closes: the gateway may send no more.
    for _ in 0..4000 {
        if let Ok(count) = client.write(&request[written..]) {
            written += count;
        }
        world.step();
    }
    world.guest.loss.from_guest = true;
    world.guest.lazy = false;
    world.steps_until(RECOVERY_NS, "the loss", |w| w.guest.lost.1 > 0);
    world.go_live(true);
    let expected: Vec<u8> = request.iter().map(|b| b.wrapping_add(1)).collect();
    let mut got = Vec::new();
    world.steps_until(20 * RECOVERY_NS, "the rest", |_| {
        if let Ok(count) = client.write(&request[written..]) {
            written += count;
        }
        read_some(&mut client, &mut got);
        got.len() >= expected.len()
    });
    assert!(got == expected);
}

#[test]
fn a_guest_that_nobody_knew_is_reached_when_its_port_connects() {
    let mut world = World::new(6);
    world.guest.loss = BOTH;
    let mut client = world.client();
    client.write_all(b"early").unwrap();
    for _ in 0..100 {
        world.step();
    }
    world.guest.loss = Loss::default();
    world.gateway.port_connected();
    world.answer(&mut client, b"early");
}

#[test]
fn an_arp_exchange_lost_in_the_failover_costs_no_timeout() {
    let mut world = World::new(7);
    world.input(PortId(1), &gratuitous_arp(DEFAULT_GUEST_MAC, DEFAULT_GUEST_IP));
    let mut client = world.client();
    world.exchange(&mut client, b"hello");
    // smoltcp forgets addresses after a minute and asks anew.
    world.now_ns += 61_000 * MS;
    world.guest.loss = BOTH;
    client.write_all(b"request").unwrap();
    for _ in 0..20 {
        world.step();
    }
    world.go_live(true);
    world.answer(&mut client, b"request");
}

struct Traffic {
    client: TcpStream,
    to_send: Vec<u8>,
    got: Vec<u8>,
    expected: Vec<u8>,
    progress_ns: u64,
}

/// Many clients under way with messages of all sizes, failovers at random moments with random loss; each
/// client's longest wait after a guest went live is bounded in virtual time.
fn random_failovers(seed: u64) -> u64 {
    let mut random = Random(seed);
    let mut world = World::new(seed);
    let mut clients: Vec<Traffic> = Vec::new();
    let (mut live_ns, mut down_until, mut failovers, mut longest) = (0, None::<u64>, 0, 0);
    while failovers < 4 || down_until.is_some() {
        world.step();
        if clients.len() < 8 && random.below(40) == 0 {
            let client = world.client();
            let now_ns = world.now_ns;
            clients.push(Traffic {
                client,
                to_send: vec![],
                got: vec![],
                expected: vec![],
                progress_ns: now_ns,
            });
        }
        for t in &mut clients {
            let idle = t.got.len() == t.expected.len();
            if idle && random.below(3) != 0 {
                let size = [1, 40, 1460, 3000, 30_000][random.below(5) as usize] + random.below(100);
                (t.to_send, t.got) = ((0..size).map(|_| random.next() as u8).collect(), vec![]);
                t.expected = t.to_send.iter().map(|b| b.wrapping_add(1)).collect();
                t.progress_ns = world.now_ns;
            }
            match t.client.write(&t.to_send) {
                Ok(count) => drop(t.to_send.drain(..count)),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            let before = t.got.len();
            read_some(&mut t.client, &mut t.got);
            assert!(t.expected.starts_with(&t.got), "seed {seed}: a wrong answer");
            if t.got.len() > before || t.got.len() == t.expected.len() || down_until.is_some() {
                t.progress_ns = world.now_ns;
            }
            let wait = world.now_ns - t.progress_ns.max(live_ns);
            longest = longest.max(wait);
            assert!(wait < RECOVERY_NS, "seed {seed}: a client waits for {} ms", wait / MS);
        }
        match down_until {
            None if world.now_ns > live_ns + RECOVERY_NS + 5 * MS && random.below(50) == 0 => {
                let loss = [
                    BOTH,
                    Loss { to_guest: true, from_guest: false },
                    Loss { to_guest: false, from_guest: true },
                ];
                world.guest.loss = loss[random.below(3) as usize];
                down_until = Some(world.now_ns + random.below(20) * random.below(20) * MS / 4);
            }
            Some(until) if world.now_ns > until => {
                world.go_live(random.below(2) == 0);
                (live_ns, down_until, failovers) = (world.now_ns, None, failovers + 1);
            }
            _ => {}
        }
    }
    longest
}

#[test]
fn clients_never_wait_for_a_retransmission_timeout() {
    let seeds = std::env::var("LAN_SEED").ok().and_then(|s| s.parse().ok());
    let range = seeds.map_or(0..6, |seed: u64| seed..seed + 1);
    let longest = range.map(random_failovers).max();
    println!("longest wait of a client after going live: {} us", longest.unwrap_or(0) / 1000);
}

#[test]
fn a_station_cannot_take_the_gateways_address() {
    let mut world = World::new(8);
    let mut client = world.client();
    world.exchange(&mut client, b"hello");
    world.input(PortId(1), &gratuitous_arp(DEFAULT_GUEST_MAC, Ipv4Addr::new(10, 77, 0, 1)));
    world.exchange(&mut client, b"still here");
}
