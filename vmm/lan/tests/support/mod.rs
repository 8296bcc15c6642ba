//! A guest for tests and measurements: a thread with a TCP/IP stack behind a switch port, and an application
//! that answers on every connection.
// Each user of this module needs a part of it.
#![allow(clippy::unwrap_used, dead_code)]

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use lockstep_lan::stream::Stream;
use lockstep_lan::wire::{FrameBatch, FrameDecoder};
use lockstep_lan::{DEFAULT_GUEST_IP, Endpoint, Mac, gratuitous_arp};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Cidr};

/// The port on which the application listens.
pub const PORT: u16 = 6379;

/// What the application answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum App {
    /// Every byte as it came.
    Echo,
    /// `+PONG` for each `PING` of the Redis protocol in its 14-byte form.
    Pong,
    /// Nothing, and it does not read.
    Deaf,
    /// It resets every connection once a byte has come.
    Reset,
}

/// What a guest is asked.
enum Order {
    /// Swallow frames, both ways.
    Lose(bool),
    /// Leave the switch (or only fall silent) and come back at another port.
    Move {
        to: Endpoint,
        close: bool,
    },
    Stop,
}

/// A running guest.
pub struct Guest {
    orders: Sender<Order>,
    wake: Arc<EventFd>,
    lost: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Guest {
    /// Connects to a switch and serves `sockets` connections at once.
    pub fn start(switch: &Endpoint, ip: Ipv4Addr, mac: Mac, app: App, sockets: usize) -> Self {
        let (orders, receiver) = mpsc::channel();
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
        let lost = Arc::new(AtomicU64::new(0));
        let mut machine = Machine::new(connect(switch), ip, mac, app, sockets);
        (machine.lost, machine.orders, machine.wake) = (lost.clone(), Some(receiver), Some(wake.clone()));
        let thread = std::thread::Builder::new().name("guest".into()).spawn(move || machine.run()).unwrap();
        Self { orders, wake, lost, thread: Some(thread) }
    }

    /// An echo guest with the default addresses.
    pub fn echo(switch: &Endpoint, sockets: usize) -> Self {
        Self::start(switch, DEFAULT_GUEST_IP, lockstep_lan::DEFAULT_GUEST_MAC, App::Echo, sockets)
    }

    fn order(&self, order: Order) {
        self.orders.send(order).unwrap();
        self.wake.write(1).unwrap();
    }

    /// Swallows all frames from now on.
    pub fn lose(&self) {
        self.order(Order::Lose(true));
    }

    /// TCP frames swallowed so far.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::SeqCst)
    }

    /// Goes on at another port, announces itself and swallows nothing any more.
    pub fn go_live(&self, to: &Endpoint, close: bool) {
        self.order(Order::Move { to: to.clone(), close });
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.order(Order::Stop);
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// A connection to a switch.
pub fn connect(endpoint: &Endpoint) -> Stream {
    match endpoint {
        Endpoint::Tcp(address) => Stream::tcp(std::net::TcpStream::connect(address).unwrap()).unwrap(),
        Endpoint::Unix(path) => Stream::unix(std::os::unix::net::UnixStream::connect(path).unwrap()).unwrap(),
        Endpoint::Tap(_) | Endpoint::NewTap(_) => unreachable!("no test guest is behind a TAP device"),
    }
}

#[derive(Default)]
struct Device {
    received: VecDeque<Vec<u8>>,
    sent: FrameBatch,
}

impl phy::Device for Device {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }

    fn receive(&mut self, _: Instant) -> Option<(Rx, Tx<'_>)> {
        let frame = self.received.pop_front()?;
        Some((Rx(frame), Tx(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.sent))
    }
}

struct Rx(Vec<u8>);

impl phy::RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Tx<'a>(&'a mut FrameBatch);

impl phy::TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.0.push_with(len, f)
    }
}

struct Machine {
    app: App,
    ip: Ipv4Addr,
    mac: Mac,
    stream: Stream,
    decoder: FrameDecoder,
    device: Device,
    interface: Interface,
    sockets: SocketSet<'static>,
    handles: Vec<SocketHandle>,
    losing: bool,
    lost: Arc<AtomicU64>,
    orders: Option<Receiver<Order>>,
    wake: Option<Arc<EventFd>>,
    /// Connections of former ports that stay open.
    silent: Vec<Stream>,
    out: Vec<u8>,
}

impl Machine {
    fn new(stream: Stream, ip: Ipv4Addr, mac: Mac, app: App, count: usize) -> Self {
        let mut device = Device::default();
        let mut interface = Interface::new(Config::new(EthernetAddress(mac.0).into()), &mut device, now());
        interface.update_ip_addrs(|list| list.push(IpCidr::Ipv4(Ipv4Cidr::new(ip, 24))).unwrap());
        let (mut sockets, mut handles) = (SocketSet::new(Vec::new()), Vec::new());
        for _ in 0..count {
            let buffer = || SocketBuffer::new(vec![0; 65535]);
            let mut socket = Socket::new(buffer(), buffer());
            socket.set_nagle_enabled(false);
            handles.push(sockets.add(socket));
        }
        Self {
            app,
            ip,
            mac,
            stream,
            decoder: FrameDecoder::new(),
            device,
            interface,
            sockets,
            handles,
            losing: false,
            lost: Arc::default(),
            orders: None,
            wake: None,
            silent: Vec::new(),
            out: Vec::new(),
        }
    }

    fn run(mut self) {
        let (orders, wake) = (self.orders.take().unwrap(), self.wake.take().unwrap());
        self.device.sent.push(&gratuitous_arp(self.mac, self.ip));
        loop {
            self.work();
            let delay = self.interface.poll_delay(now(), &self.sockets).map_or(1000, |d| d.total_millis());
            let mut set = [
                PollFd::new(self.stream.as_fd(), PollFlags::POLLIN),
                PollFd::new(wake.as_fd(), PollFlags::POLLIN),
            ];
            poll(&mut set, PollTimeout::from(delay.min(1000) as u16)).unwrap();
            let (frames, woken) = (set[0].any().unwrap_or(true), set[1].any().unwrap_or(true));
            if frames {
                self.receive();
            }
            if woken {
                wake.read().unwrap();
            }
            while let Ok(order) = orders.try_recv() {
                match order {
                    Order::Stop => return,
                    Order::Lose(losing) => self.losing = losing,
                    Order::Move { to, close } => {
                        let old = std::mem::replace(&mut self.stream, connect(&to));
                        if !close {
                            self.silent.push(old);
                        }
                        (self.losing, self.decoder) = (false, FrameDecoder::new());
                        self.out.clear();
                        self.device.sent.push(&gratuitous_arp(self.mac, self.ip));
                    }
                }
            }
        }
    }

    fn receive(&mut self) {
        match self.stream.try_read(self.decoder.space()) {
            // The switch is gone; the test ends soon.
            Ok(0) => std::thread::yield_now(),
            Ok(count) => self.decoder.filled(count),
            Err(_) => return,
        }
        while let Some(frame) = self.decoder.next_frame().unwrap() {
            if self.losing {
                self.lost.fetch_add(1, Ordering::SeqCst);
            } else {
                self.device.received.push_back(frame.to_vec());
            }
        }
    }

    fn work(&mut self) {
        self.interface.poll(now(), &mut self.device, &mut self.sockets);
        for index in 0..self.handles.len() {
            serve(self.app, self.sockets.get_mut(self.handles[index]));
        }
        self.interface.poll(now(), &mut self.device, &mut self.sockets);
        for frame in self.device.sent.iter() {
            if self.losing {
                self.lost.fetch_add(1, Ordering::SeqCst);
            } else {
                self.out.extend_from_slice(&(frame.len() as u32).to_be_bytes());
                self.out.extend_from_slice(frame);
            }
        }
        self.device.sent.clear();
        while !self.out.is_empty() {
            match self.stream.try_write(&self.out) {
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let mut set = [PollFd::new(self.stream.as_fd(), PollFlags::POLLOUT)];
                    poll(&mut set, PollTimeout::NONE).unwrap();
                }
                Err(_) => self.out.clear(),
            }
        }
    }
}

fn serve(app: App, socket: &mut Socket<'_>) {
    if socket.state() == State::Closed {
        socket.listen(PORT).unwrap();
    }
    match app {
        App::Echo => {
            while socket.can_recv() && socket.can_send() {
                let room = socket.send_capacity() - socket.send_queue();
                let bytes = socket.recv(|b| (b.len().min(room), b[..b.len().min(room)].to_vec())).unwrap();
                assert_eq!(socket.send_slice(&bytes), Ok(bytes.len()));
            }
        }
        App::Pong => {
            while socket.recv_queue() >= 14 && socket.send_capacity() - socket.send_queue() >= 7 {
                let mut request = [0; 14];
                assert_eq!(socket.recv_slice(&mut request), Ok(14));
                if &request == b"*1\r\n$4\r\nPING\r\n" {
                    assert_eq!(socket.send_slice(b"+PONG\r\n"), Ok(7));
                } else {
                    // redis-benchmark asks for two settings first.
                    while socket.can_recv() {
                        socket.recv(|bytes| (bytes.len(), ())).unwrap();
                    }
                    socket.send_slice(&b"-ERR unknown command\r\n".repeat(2)).unwrap();
                }
            }
        }
        App::Deaf => return,
        App::Reset => {
            if socket.can_recv() {
                socket.abort();
            }
        }
    }
    if socket.state() == State::CloseWait && !socket.can_recv() {
        socket.close();
    }
    if socket.state() == State::TimeWait {
        // Room for the next connection.
        socket.set_timeout(Some(Duration::from_millis(1)));
        socket.abort();
    }
}

#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    let start = *START.get_or_init(std::time::Instant::now);
    Instant::from_micros(std::time::Instant::now().duration_since(start).as_micros() as i64)
}
