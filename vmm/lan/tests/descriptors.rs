//! A process without descriptors turns clients away, at once and without spinning, and serves again later.
//! In a file of its own: the limit is the whole process'.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use lockstep_lan::{DEFAULT_GUEST_IP, Lan, LanOptions, LanStatus};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::time::TimeValLike as _;
use support::{Guest, PORT};

const PATIENCE: Duration = Duration::from_secs(60);

fn status_until(lan: &Lan, what: &str, done: impl Fn(&LanStatus) -> bool) -> LanStatus {
    for _ in 0..60_000 {
        let status = lan.ready().control.status().unwrap();
        if done(&status) {
            return status;
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    panic!("{what} did not happen: {:?}", lan.ready().control.status());
}

/// Milliseconds of processor time of this process.
fn busy_ms() -> i64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    usage.user_time().num_milliseconds() + usage.system_time().num_milliseconds()
}

#[test]
fn without_descriptors_clients_are_reset_and_later_ones_served() {
    let options = LanOptions {
        listen: vec!["tcp:127.0.0.1:0".parse().unwrap()],
        forwards: vec![format!("127.0.0.1:0={DEFAULT_GUEST_IP}:{PORT}").parse().unwrap()],
        ..LanOptions::default()
    };
    let lan = Lan::start(options).unwrap();
    let forward = lan.ready().forwards[0].listen;
    let _guest = Guest::echo(&lan.ready().listen[0], 4);
    // Its connection takes one, too.
    status_until(&lan, "the guest's port", |status| status.ports.len() == 1);
    // The clients' own descriptors are made before there are none left.
    let sockets: Vec<_> = (0..5)
        .map(|_| {
            use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
            socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap()
        })
        .collect();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft.min(256), hard).unwrap();
    let mut held = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        held.push(file);
    }
    let std::net::SocketAddr::V4(address) = forward else { panic!("it is IPv4") };
    let mut refused = Vec::new();
    for (count, socket) in sockets.into_iter().enumerate() {
        use std::os::fd::AsRawFd as _;
        let to = nix::sys::socket::SockaddrIn::from(address);
        let connected = nix::sys::socket::connect(socket.as_raw_fd(), &to);
        status_until(&lan, "a refusal", |status| status.gateway.refused > count as u64);
        // Whether the reset is met when connecting or when reading is a matter of time.
        assert!(matches!(connected, Ok(()) | Err(nix::errno::Errno::ECONNRESET)), "{connected:?}");
        let mut client = TcpStream::from(socket);
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let read = client.read(&mut [0; 8]);
        let reset = read.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset);
        assert!(reset || connected.is_err(), "no reset");
        // Its descriptor is not to be had either.
        refused.push(client);
    }
    let (before, waited) = (busy_ms(), 300);
    std::thread::park_timeout(Duration::from_millis(waited));
    assert!(busy_ms() - before < waited as i64 / 2, "the network's thread spins");
    drop(held);
    let mut client = TcpStream::connect(forward).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"again").unwrap();
    let mut answer = [0; 5];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"again");
}
