//! The network over real sockets: a switch with a gateway, guests behind ports, host clients.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use lockstep_lan::backend::{BackendError, Connection};
use lockstep_lan::wire::FrameBatch;
use lockstep_lan::{
    DEFAULT_GATEWAY_IP, DEFAULT_GATEWAY_MAC, DEFAULT_GUEST_IP, DEFAULT_GUEST_MAC, Endpoint, Lan, LanOptions,
    LanStatus, Mac, gratuitous_arp,
};
use support::{App, Guest, PORT};

/// Long enough for any machine: a test that waits as long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

fn options() -> LanOptions {
    LanOptions {
        listen: vec!["tcp:127.0.0.1:0".parse().unwrap()],
        forwards: vec![format!("127.0.0.1:0={DEFAULT_GUEST_IP}:{PORT}").parse().unwrap()],
        ..LanOptions::default()
    }
}

fn start(options: LanOptions) -> (Lan, Endpoint, SocketAddr) {
    let lan = Lan::start(options).unwrap();
    let (switch, forward) = (lan.ready().listen[0].clone(), lan.ready().forwards[0].listen);
    (lan, switch, forward)
}

fn client(forward: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(forward).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn exchange(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
    let mut answer = vec![0; bytes.len()];
    stream.read_exact(&mut answer).unwrap();
    assert!(answer == bytes, "the echo differs");
}

fn status_until(lan: &Lan, what: &str, mut done: impl FnMut(&LanStatus) -> bool) -> LanStatus {
    for _ in 0..60_000 {
        let status = lan.ready().control.status().unwrap();
        if done(&status) {
            return status;
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    panic!("{what} did not happen: {:?}", lan.ready().control.status());
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn a_client_reaches_a_guest_over_tcp_and_over_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lan.sock");
    let unix = Endpoint::Unix(path.clone());
    let mut options = options();
    options.listen.push(unix.clone());
    let second = Ipv4Addr::new(10, 77, 0, 3);
    options.forwards.push(format!("127.0.0.1:0={second}:{PORT}").parse().unwrap());
    let (lan, switch, forward) = start(options);
    let _first = Guest::echo(&switch, 4);
    let _second = Guest::start(&unix, second, Mac([2, 0, 0, 0, 0, 3]), App::Echo, 4);
    exchange(&mut client(forward), b"over TCP");
    exchange(&mut client(lan.ready().forwards[1].listen), b"over a Unix socket");
    let status = lan.stop().unwrap();
    assert_eq!(status.gateway.accepted, 2);
    assert_eq!(status.ports.len(), 2);
    assert!(!path.exists(), "the socket is removed");
}

#[test]
fn a_unix_socket_left_behind_is_replaced_and_one_in_use_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lan.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let listen = vec![Endpoint::Unix(path.clone())];
    let lan = Lan::start(LanOptions { listen: listen.clone(), ..LanOptions::default() }).unwrap();
    let error = Lan::start(LanOptions { listen, ..LanOptions::default() }).unwrap_err();
    assert!(error.to_string().contains("lan.sock"), "{error}");
    drop(lan);
    std::fs::write(&path, b"a file").unwrap();
    let listen = vec![Endpoint::Unix(path.clone())];
    let error = Lan::start(LanOptions { listen, ..LanOptions::default() }).unwrap_err();
    assert!(error.to_string().contains("not a socket"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"a file");
}

#[test]
fn options_that_cannot_work_are_refused_with_the_reason() {
    for (options, word) in [
        (
            LanOptions { forwards: vec!["127.0.0.1:0=192.168.0.2:1".parse().unwrap()], ..options() },
            "10.77.0.1/24",
        ),
        (LanOptions { forwards: vec!["127.0.0.1:0=10.77.0.1:1".parse().unwrap()], ..options() }, "guest"),
        (LanOptions { prefix_len: 32, ..options() }, "prefix"),
        (LanOptions { gateway_mac: Mac::BROADCAST, ..options() }, "group"),
        (LanOptions { listen: vec!["tap:tap0".parse().unwrap()], ..options() }, "TAP"),
    ] {
        let error = Lan::start(options).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn three_hundred_connections_at_once_and_again() {
    let (lan, switch, forward) = start(options());
    let _guest = Guest::echo(&switch, 310);
    for round in 0..2u64 {
        let mut clients: Vec<TcpStream> = (0..300).map(|_| client(forward)).collect();
        for pass in 0..3 {
            for (i, client) in clients.iter_mut().enumerate() {
                client.write_all(&pattern(100 + i, round + pass)).unwrap();
            }
            for (i, client) in clients.iter_mut().enumerate() {
                let mut answer = vec![0; 100 + i];
                client.read_exact(&mut answer).unwrap();
                assert!(answer == pattern(100 + i, round + pass));
            }
        }
        assert_eq!(lan.ready().control.status().unwrap().gateway.open, 300);
        drop(clients);
        status_until(&lan, "the end of all connections", |s| s.gateway.open == 0);
    }
    let status = lan.stop().unwrap();
    assert_eq!((status.gateway.accepted, status.gateway.failed, status.gateway.reset), (600, 0, 0));
}

/// A client that is turned away learns of it at once, however it looks at its connection.
fn assert_reset(address: SocketAddr) {
    let reset =
        |error: &std::io::Error| matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
    // Whether the reset is met when connecting, writing or reading is a matter of time.
    let mut client = match TcpStream::connect(address) {
        Ok(client) => client,
        Err(error) => return assert!(reset(&error), "{error}"),
    };
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let written = client.write_all(b"is anybody there?");
    let read = client.read(&mut [0; 64]);
    match (written, read) {
        (Err(error), _) | (Ok(()), Err(error)) => assert!(reset(&error), "{error}"),
        (Ok(()), Ok(count)) => panic!("{count} bytes instead of a reset"),
    }
}

#[test]
fn clients_over_the_limit_are_reset_and_counted_and_the_others_served() {
    let (lan, switch, forward) = start(LanOptions { max_connections: 2, ..options() });
    let _guest = Guest::echo(&switch, 4);
    for round in 1..=3 {
        let mut served: Vec<TcpStream> = (0..2).map(|_| client(forward)).collect();
        for client in &mut served {
            exchange(client, b"served");
        }
        (0..3).for_each(|_| assert_reset(forward));
        for client in &mut served {
            exchange(client, b"still");
        }
        let status = lan.ready().control.status().unwrap();
        assert_eq!((status.gateway.open, status.gateway.refused), (2, 3 * round));
        drop(served);
        status_until(&lan, "room again", |status| status.gateway.open == 0);
    }
}

#[test]
fn monitors_over_the_limit_are_reset_and_counted() {
    let (lan, switch, _) = start(LanOptions { max_ports: 1, ..options() });
    let Endpoint::Tcp(address) = switch else { panic!("it is TCP") };
    let _first = client(address);
    status_until(&lan, "the first port", |status| status.ports.len() == 1);
    (0..3).for_each(|_| assert_reset(address));
    status_until(&lan, "three refusals", |status| status.switch.refused == 3 && status.ports.len() == 1);
}

#[test]
fn host_addresses_may_be_ipv6() {
    let options = LanOptions {
        listen: vec!["[::1]:0".parse().unwrap()],
        forwards: vec![format!("[::1]:0={DEFAULT_GUEST_IP}:{PORT}").parse().unwrap()],
        ..LanOptions::default()
    };
    let (lan, switch, forward) = start(options);
    assert!(switch.to_string().starts_with("tcp:[::1]:") && forward.is_ipv6());
    assert_eq!(switch.to_string().parse::<Endpoint>().unwrap(), switch);
    let _guest = Guest::echo(&switch, 4);
    exchange(&mut client(forward), b"over IPv6");
    assert!(lan.stop().unwrap().ports[0].peer.starts_with("tcp:[::1]:"));
}

#[test]
fn big_transfers_arrive_whole_both_ways() {
    let (_lan, switch, forward) = start(options());
    let _guest = Guest::echo(&switch, 4);
    let threads: Vec<_> = (1..=3)
        .map(|seed| {
            std::thread::Builder::new()
                .spawn(move || {
                    let data = pattern(8 << 20, seed);
                    let mut stream = client(forward);
                    let mut writer = stream.try_clone().unwrap();
                    let sent = data.clone();
                    let sender = std::thread::Builder::new()
                        .spawn(move || {
                            writer.write_all(&sent).unwrap();
                            writer.shutdown(Shutdown::Write).unwrap();
                        })
                        .unwrap();
                    let mut got = Vec::new();
                    stream.read_to_end(&mut got).unwrap();
                    sender.join().unwrap();
                    assert!(got == data, "{} of {} bytes, or different ones", got.len(), data.len());
                })
                .unwrap()
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
}

#[test]
fn each_direction_ends_by_itself() {
    let (lan, switch, forward) = start(options());
    let _guest = Guest::echo(&switch, 4);
    let mut stream = client(forward);
    let data = pattern(300_000, 5);
    let mut writer = stream.try_clone().unwrap();
    let sent = data.clone();
    let sender = std::thread::Builder::new()
        .spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        })
        .unwrap();
    // The client ends its direction; the guest's answer still comes, whole.
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    sender.join().unwrap();
    assert!(got == data);
    status_until(&lan, "the end of the connection", |s| s.gateway.open == 0);
    assert_eq!(lan.stop().unwrap().gateway.reset, 0);
}

#[test]
fn a_guest_that_does_not_read_stops_the_client_and_nobody_else() {
    let mut options = options();
    let other = Ipv4Addr::new(10, 77, 0, 3);
    options.forwards.push(format!("127.0.0.1:0={other}:{PORT}").parse().unwrap());
    let (lan, switch, forward) = start(options);
    let _deaf = Guest::start(&switch, DEFAULT_GUEST_IP, DEFAULT_GUEST_MAC, App::Deaf, 2);
    let _echo = Guest::start(&switch, other, Mac([2, 0, 0, 0, 0, 3]), App::Echo, 2);
    let mut stuck = client(forward);
    stuck.set_nonblocking(true).unwrap();
    // Until the kernel's buffers, the gateway's and the guest's are full, and have been for a while.
    let (mut written, mut refused) = (0usize, 0);
    while refused < 200 {
        match stuck.write(&[1; 65536]) {
            Ok(count) => (written, refused) = (written + count, 0),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                refused += 1;
                std::thread::park_timeout(Duration::from_millis(1));
            }
        }
        assert!(written < 64 << 20, "somebody buffers without bound");
    }
    exchange(&mut client(lan.ready().forwards[1].listen), b"not stuck");
    // The host client goes away: the guest is told by a reset.
    drop(stuck);
}

#[test]
fn a_reset_by_the_guest_resets_the_client() {
    let (lan, switch, forward) = start(options());
    let _guest = Guest::start(&switch, DEFAULT_GUEST_IP, DEFAULT_GUEST_MAC, App::Reset, 2);
    let mut stream = client(forward);
    stream.write_all(b"x").unwrap();
    let error = stream.read(&mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    status_until(&lan, "the count", |s| s.gateway.reset == 1 && s.gateway.open == 0);
}

#[test]
fn a_reset_by_the_client_frees_the_guests_connection() {
    let (lan, switch, forward) = start(options());
    // One socket: the second client is served only if the first one's connection has ended in the guest.
    let _guest = Guest::echo(&switch, 1);
    let mut first = client(forward);
    exchange(&mut first, b"hello");
    // Unread bytes make the kernel send a reset.
    first.write_all(b"never read").unwrap();
    first.peek(&mut [0; 10]).unwrap();
    drop(first);
    status_until(&lan, "the reset", |s| s.gateway.open == 0);
    // The guest listens again once it has seen the reset: until then it refuses.
    let served =
        |mut stream: TcpStream| stream.write_all(b"next").is_ok() && stream.read_exact(&mut [0; 4]).is_ok();
    while !served(client(forward)) {
        std::thread::yield_now();
    }
}

#[test]
fn a_closed_port_of_the_guest_and_a_guest_that_is_not_there_close_the_client() {
    let mut options = options();
    options.forwards.push(format!("127.0.0.1:0={DEFAULT_GUEST_IP}:1").parse().unwrap());
    options.forwards.push(format!("127.0.0.1:0=10.77.0.9:{PORT}").parse().unwrap());
    options.connect_timeout_ms = 1500;
    let (lan, switch, _) = start(options);
    let _guest = Guest::echo(&switch, 1);
    for forward in &lan.ready().forwards[1..] {
        assert_eq!(client(forward.listen).read(&mut [0; 10]).unwrap(), 0, "{forward}");
    }
    assert_eq!(lan.stop().unwrap().gateway.failed, 2);
}

#[test]
fn a_client_may_come_before_the_guest() {
    let (lan, switch, forward) = start(options());
    let mut early = client(forward);
    early.write_all(b"early").unwrap();
    status_until(&lan, "the connection", |s| s.gateway.open == 1);
    let _guest = Guest::echo(&switch, 1);
    let mut answer = [0; 5];
    early.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"early");
}

#[test]
fn connections_live_through_a_failover_that_loses_frames() {
    for close in [true, false] {
        let (lan, switch, forward) = start(options());
        let guest = Guest::echo(&switch, 30);
        let mut clients: Vec<TcpStream> = (0..20).map(|_| client(forward)).collect();
        clients.iter_mut().for_each(|c| exchange(c, b"before"));
        for round in 0..5u8 {
            guest.lose();
            for (i, client) in clients.iter_mut().enumerate() {
                client.write_all(&vec![round; 10 + 1000 * i]).unwrap();
            }
            while guest.lost() < 20 * u64::from(round + 1) {
                std::thread::yield_now();
            }
            guest.go_live(&switch, close);
            for (i, client) in clients.iter_mut().enumerate() {
                let mut answer = vec![0; 10 + 1000 * i];
                client.read_exact(&mut answer).unwrap();
                assert!(answer == vec![round; 10 + 1000 * i]);
            }
        }
        let status = lan.stop().unwrap();
        assert_eq!(status.switch.moves, 5);
        assert!(status.switch.redelivered > 0);
        assert_eq!((status.gateway.reset, status.gateway.failed), (0, 0));
        assert_eq!(status.ports.len(), if close { 1 } else { 6 });
    }
}

#[test]
fn garbage_closes_its_port_and_no_other() {
    let (lan, switch, forward) = start(options());
    let _guest = Guest::echo(&switch, 4);
    let mut stream = client(forward);
    exchange(&mut stream, b"before");
    let Endpoint::Tcp(address) = switch else { unreachable!() };
    for garbage in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0; 64], &[0xff; 3000], &[0, 0, 0, 13, 1]] {
        let mut port = client(address);
        port.write_all(garbage).unwrap();
        // Closed, with or without a reset for what was not read.
        let mut rest = Vec::new();
        if let Err(error) = port.read_to_end(&mut rest) {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
        exchange(&mut stream, b"meanwhile");
    }
    // A frame that is cut off by the end of the stream, frames of noise.
    client(address).write_all(&[0, 0, 0, 60, 1, 2, 3]).unwrap();
    let mut noise = client(address);
    for seed in 0..200 {
        let frame = pattern(14 + seed as usize * 7, seed + 1);
        noise.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
        noise.write_all(&frame).unwrap();
    }
    exchange(&mut stream, b"after");
    let status = status_until(&lan, "the count of garbage", |s| s.switch.garbage == 4);
    assert!(status.to_string().contains("gateway: 1 connections open"), "{status}");
}

#[test]
fn ports_over_the_limit_are_refused() {
    let (lan, switch, _) = start(LanOptions { max_ports: 1, ..options() });
    let _first = Connection::connect(&switch).unwrap();
    status_until(&lan, "the first port", |s| s.ports.len() == 1);
    // Whether the reset is met when connecting or when reading is a matter of time.
    let connected = Connection::connect(&switch).and_then(Connection::split);
    let read = connected.and_then(|(mut reader, ..)| reader.read(&mut FrameBatch::default()));
    assert!(matches!(read, Err(BackendError::Closed | BackendError::Io(_) | BackendError::Connect { .. })));
    assert_eq!(lan.stop().unwrap().switch.refused, 1);
}

/// An ICMP echo request for the gateway, by hand: type 8, checksums included.
fn ping(from: Mac, ip: Ipv4Addr) -> Vec<u8> {
    fn checksum(bytes: &[u8]) -> [u8; 2] {
        let mut sum: u32 = bytes.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }
    let mut icmp = [8, 0, 0, 0, 0x12, 0x34, 0, 1, b'l', b'o', b'c', b'k'];
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum);
    let mut header = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 1, 0, 0];
    header.extend(ip.octets());
    header.extend(DEFAULT_GATEWAY_IP.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    [&DEFAULT_GATEWAY_MAC.0[..], &from.0, &[8, 0], &header, &icmp].concat()
}

#[test]
fn the_gateway_answers_ping_through_a_backend() {
    let (_lan, switch, _) = start(options());
    let (mut reader, mut writer, closer) = Connection::connect(&switch).unwrap().split().unwrap();
    let announcement = gratuitous_arp(DEFAULT_GUEST_MAC, DEFAULT_GUEST_IP);
    let request = ping(DEFAULT_GUEST_MAC, DEFAULT_GUEST_IP);
    let frames = [&announcement[..], &request, &[0; 5]];
    assert_eq!(writer.write(&frames).unwrap(), 2);
    assert_eq!((writer.sent(), writer.dropped()), (2, 1), "5 bytes are no frame");
    let mut batch = FrameBatch::default();
    let is_reply = |f: &[u8]| f.len() >= 46 && f[23] == 1 && f[34] == 0 && f[42..46] == *b"lock";
    while !batch.iter().any(is_reply) {
        reader.read(&mut batch).unwrap();
    }
    let waiting = std::thread::Builder::new().spawn(move || reader.read(&mut FrameBatch::default())).unwrap();
    closer.close();
    assert!(matches!(waiting.join().unwrap(), Err(BackendError::Closed)));
}

#[test]
fn a_backend_drops_frames_when_the_network_takes_none_and_keeps_the_framing() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
    let (_reader, mut writer, _closer) = Connection::connect(&endpoint).unwrap().split().unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let frames: Vec<Vec<u8>> = (0..255u8).map(|i| vec![i; 1514]).collect();
    let slices: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
    while writer.dropped() == 0 {
        writer.write(&slices).unwrap();
    }
    let sent = writer.sent();
    let reading = std::thread::Builder::new()
        .spawn(move || {
            let (mut count, mut frame) = (0, [0; 1518]);
            while peer.read_exact(&mut frame).is_ok() {
                assert_eq!(frame[..4], 1514u32.to_be_bytes());
                assert!(frame[4..].iter().all(|b| *b == frame[4]));
                count += 1;
            }
            count
        })
        .unwrap();
    // The rest of a frame that was sent in part goes with the next write.
    while writer.write(&[&[7; 1514]]).unwrap() == 0 {
        std::thread::yield_now();
    }
    drop((writer, _reader, _closer));
    assert_eq!(reading.join().unwrap(), sent + 1);
}

#[tokio::test]
async fn it_runs_until_it_is_told_to_end() {
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let mut end = Some(end);
    let mut listen = None;
    let running = lockstep_lan::run(
        options(),
        |ready| {
            listen = Some(ready.listen[0].clone());
            end.take().unwrap().send(()).unwrap();
        },
        async { ended.await.unwrap() },
    );
    let status = running.await.unwrap();
    assert_eq!(status.gateway.accepted, 0);
    assert!(Connection::connect(&listen.unwrap()).is_err());
}

#[tokio::test]
async fn it_ends_when_its_control_says_so() {
    let control = std::sync::Mutex::new(None);
    let keep = |ready: &lockstep_lan::Ready| {
        ready.control.stop().unwrap();
        *control.lock().unwrap() = Some(ready.control.clone());
    };
    lockstep_lan::run(options(), keep, std::future::pending()).await.unwrap();
    assert!(control.lock().unwrap().take().unwrap().status().is_err());
}
