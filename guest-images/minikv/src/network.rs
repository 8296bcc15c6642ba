//! The TCP/IP stack, and a pool of sockets of which some always listen.

use alloc::vec;
use alloc::vec::Vec;

use minikv_core::Config;
use smoltcp::iface::{
    Config as InterfaceConfig, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet,
};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, Ipv4Address};

use crate::virtio::net::Net;

const RECEIVE_LEN: usize = 16 << 10;
const SEND_LEN: usize = 32 << 10;
/// Memory of one socket, in bytes.
pub const SOCKET_MEMORY: usize = RECEIVE_LEN + SEND_LEN;
/// Sockets that should listen at any time: as many connections may arrive between two looks.
pub const LISTENERS: usize = 16;
/// Frames between two looks at how many still listen.
const FRAMES_PER_LOOK: usize = LISTENERS / 2;
/// Frames taken in at most before something else gets its turn.
const MAX_FRAMES: usize = 512;
/// An acknowledgement waits for a reply to travel with; a disk write is faster than this.
const ACK_DELAY: Duration = Duration::from_millis(20);
/// How long a peer may not acknowledge anything before it is given up: longer than a failover.
const PEER_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a handshake, or a peer's part in closing, may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// The stack.
pub struct Network {
    net: Net,
    interface: Interface,
    sockets: SocketSet<'static>,
    handles: Vec<SocketHandle>,
    max_sockets: usize,
    port: u16,
    now: Instant,
    /// Whether the last `send` came to an end with nothing more to send.
    quiet: bool,
}

fn instant(now_ns: u64) -> Instant {
    Instant::from_micros((now_ns / 1000) as i64)
}

impl Network {
    /// A stack with this configuration. `seed` chooses its initial sequence numbers.
    pub fn new(mut net: Net, config: &Config, seed: u64, max_sockets: usize, now_ns: u64) -> Self {
        let mut settings = InterfaceConfig::new(HardwareAddress::Ethernet(EthernetAddress(net.mac())));
        settings.random_seed = seed;
        let mut interface = Interface::new(settings, &mut net, instant(now_ns));
        interface.update_ip_addrs(|addresses| {
            let address = IpAddress::Ipv4(Ipv4Address::from(config.ip));
            addresses.push(IpCidr::new(address, config.prefix)).expect("room for one address");
        });
        let route = interface.routes_mut().add_default_ipv4_route(Ipv4Address::from(config.gateway));
        route.expect("room for one route");
        let mut network = Self {
            net,
            interface,
            sockets: SocketSet::new(Vec::new()),
            handles: Vec::new(),
            max_sockets,
            port: config.port,
            now: instant(now_ns),
            quiet: true,
        };
        network.keep_listening();
        network
    }

    /// How many sockets there are; their indexes are below.
    pub fn len(&self) -> usize {
        self.handles.len()
    }

    /// Socket `index`.
    pub fn socket(&mut self, index: usize) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handles[index])
    }

    /// Takes in the frames that arrived.
    pub fn receive(&mut self, now_ns: u64) {
        self.now = instant(now_ns);
        for count in 1..=MAX_FRAMES {
            let result = self.interface.poll_ingress_single(self.now, &mut self.net, &mut self.sockets);
            if matches!(result, PollIngressSingleResult::None) {
                break;
            }
            if count % FRAMES_PER_LOOK == 0 {
                self.keep_listening();
            }
        }
        self.keep_listening();
    }

    /// Sees to it that `LISTENERS` sockets listen: closed ones listen again, new ones are made, and if there
    /// may not be more, those that only wait for time to pass after a close are used.
    fn keep_listening(&mut self) {
        let mut listening = 0;
        for &handle in &self.handles {
            let socket = self.sockets.get_mut::<Socket>(handle);
            // A socket that still owes its peer a reset has a remote endpoint, and is used once that is sent.
            if socket.state() == State::Closed && socket.remote_endpoint().is_none() {
                listen(socket, self.port);
            }
            listening += usize::from(socket.state() == State::Listen);
        }
        while listening < LISTENERS && self.handles.len() < self.max_sockets {
            let buffer = |len| SocketBuffer::new(vec![0; len]);
            let mut socket = Socket::new(buffer(RECEIVE_LEN), buffer(SEND_LEN));
            socket.set_nagle_enabled(false);
            socket.set_ack_delay(Some(ACK_DELAY));
            listen(&mut socket, self.port);
            self.handles.push(self.sockets.add(socket));
            listening += 1;
        }
        if listening < LISTENERS {
            for &handle in &self.handles {
                let socket = self.sockets.get_mut::<Socket>(handle);
                if socket.state() == State::TimeWait {
                    socket.abort();
                }
            }
        }
    }

    /// Sends what there is to send, as long as the card has room.
    pub fn send(&mut self) {
        loop {
            let result = self.interface.poll_egress(self.now, &mut self.net, &mut self.sockets);
            if matches!(result, PollResult::None) {
                break;
            }
        }
        self.quiet = self.net.can_send();
    }

    /// Whether the card has room for a frame; if not, frames may wait on both sides.
    pub fn has_room(&self) -> bool {
        self.quiet
    }

    /// When `receive` and `send` have to be called even if no frame arrives.
    pub fn wake_at_ns(&mut self) -> Option<u64> {
        let at = self.interface.poll_at(self.now, &self.sockets)?;
        // Everything that could be sent was: what is due now cannot be done now.
        let at = at.max(self.now + Duration::from_millis(1));
        Some(at.total_micros() as u64 * 1000)
    }
}

fn listen(socket: &mut Socket<'_>, port: u16) {
    if socket.listen(port).is_ok() {
        socket.set_timeout(Some(HANDSHAKE_TIMEOUT));
    }
}

/// Sets how long the peer may be silent: as long as it likes, unless it owes an acknowledgement.
pub fn watch_peer(socket: &mut Socket<'_>) {
    let timeout = (socket.send_queue() > 0).then_some(PEER_TIMEOUT);
    if socket.timeout() != timeout {
        socket.set_timeout(timeout);
    }
}

/// Closes the connection from this side, and gives the peer a bounded time to do the same.
pub fn close(socket: &mut Socket<'_>) {
    socket.close();
    socket.set_timeout(Some(HANDSHAKE_TIMEOUT));
}
