//! The host's side of the network: a smoltcp stack whose clients talk to the guest.

use std::collections::VecDeque;

use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr, Ipv4Address};

use crate::client::{Client, Step};

const GUEST: Ipv4Address = Ipv4Address::new(10, 77, 0, 2);
const HOST: Ipv4Address = Ipv4Address::new(10, 77, 0, 1);
const HOST_MAC: [u8; 6] = [0x52, 0x4c, 0x4b, 0, 0, 1];
const PORT: u16 = 6379;
const FIRST_LOCAL_PORT: u16 = 40_000;

/// Frames on their way.
#[derive(Debug, Default)]
struct Wire {
    received: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Room<'a>(&'a mut Vec<Vec<u8>>);

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push(frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Room<'_>)> {
        let frame = self.received.pop_front()?;
        Some((Received(frame), Room(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        Some(Room(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

fn instant(now_ns: u64) -> Instant {
    Instant::from_micros((now_ns / 1000) as i64)
}

/// The stack and its clients.
pub struct Peer {
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    clients: Vec<Client>,
    lossy: bool,
}

impl Peer {
    pub fn new(seed: u64, lossy: bool) -> Self {
        let mut wire = Wire::default();
        let mut config = Config::new(EthernetAddress(HOST_MAC).into());
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut wire, instant(0));
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::Ipv4(HOST), 24)).expect("room for one address");
        });
        Self { wire, interface, sockets: SocketSet::new(Vec::new()), clients: Vec::new(), lossy }
    }

    /// Adds a client that connects at `start_ns`.
    pub fn add(&mut self, script: Vec<Step>, start_ns: u64) {
        let buffer = || SocketBuffer::new(vec![0; 32 << 10]);
        let handle = self.sockets.add(Socket::new(buffer(), buffer()));
        let name = format!("client {}", self.clients.len());
        self.clients.push(Client::new(handle, name, script, start_ns));
    }

    /// A frame from the guest.
    pub fn receive(&mut self, frame: Vec<u8>) {
        self.wire.received.push_back(frame);
    }

    /// Does what there is to do; the frames for the guest.
    pub fn poll(&mut self, now_ns: u64) -> Vec<Vec<u8>> {
        let now = instant(now_ns);
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        for (index, client) in self.clients.iter_mut().enumerate() {
            let socket = self.sockets.get_mut::<Socket>(client.handle);
            if client.opens(now_ns) {
                let local = FIRST_LOCAL_PORT + index as u16;
                socket.connect(self.interface.context(), (GUEST, PORT), local).expect("a new connection");
            }
            client.serve(socket, now_ns, self.lossy);
        }
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        std::mem::take(&mut self.wire.sent)
    }

    /// When `poll` has something to do though nothing arrives.
    pub fn wake_at_ns(&mut self, now_ns: u64) -> Option<u64> {
        let stack = self.interface.poll_at(instant(now_ns), &self.sockets);
        let stack = stack.map(|at| at.total_micros().max(0) as u64 * 1000);
        let clients = self.clients.iter().filter_map(Client::wake_at_ns).filter(|&at| at > now_ns);
        stack.into_iter().chain(clients).min()
    }

    /// What each client is doing, for people.
    pub fn describe(&mut self) -> String {
        let sockets = &self.sockets;
        let one = |client: &Client| client.describe(sockets.get::<Socket>(client.handle));
        self.clients.iter().map(one).collect::<Vec<_>>().join("; ")
    }

    /// Whether every client has had its answers and closed its connection.
    pub fn is_done(&mut self) -> bool {
        self.clients.iter().all(|client| client.is_done(self.sockets.get::<Socket>(client.handle)))
    }

    /// How many answers came.
    pub fn answers(&self) -> u64 {
        self.clients.iter().map(Client::answers).sum()
    }
}
