//! Bytes from strangers on every other port of a pair that is at work: it goes on replicating.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;

use lockstep::cluster::Part;
use logchannel::heartbeat::{HEARTBEAT_LEN, Heartbeat, Role, vm_hash};

use crate::client::{Client, Reply};
use crate::crafted::{CLAIMANT, Noise};
use crate::harness::{Pair, VM, scale, udp_ports, wait_until};
use crate::load::Load;

const SOME: u64 = 100;
const ROUNDS: u64 = 50;

/// A pair at work; the harm that is done to it; and then it still replicates, and can still fail over.
fn undisturbed(test: &str, harm: impl FnOnce(&mut Pair)) {
    let Some(mut pair) = Pair::start(test) else { return };
    let load = Load::start(pair.port(), 4);
    load.wait_for(SOME);
    harm(&mut pair);
    load.wait_for(SOME);
    pair.wait_for_state(Part::Primary, "Replicating");
    pair.wait_for_state(Part::Backup, "Following");
    assert_eq!(pair.holding().holding.generation, 1);
    assert!(!pair.has_ended(Part::Lan) && !pair.has_ended(Part::DiskServer));
    pair.kill(Part::Primary).unwrap();
    load.wait_for(SOME);
    pair.assert_one_live(Part::Backup, 2);
    load.stop().assert_unbroken().check(pair.port());
}

fn seeds() -> impl Iterator<Item = Noise> {
    (1..=ROUNDS * scale() as u64).map(|seed| Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

#[test]
fn noise_on_the_disk_servers_port() {
    undisturbed("noise_on_the_disk_server", |pair| {
        for mut noise in seeds() {
            let mut stream = TcpStream::connect(pair.disk_address()).unwrap();
            let length = noise.next() as usize % 3000;
            let mut bytes = noise.bytes(length);
            // Every other begins as a frame of the protocol would.
            if noise.next().is_multiple_of(2) {
                bytes.splice(..bytes.len().min(8), *b"LKDS\x01\0\x01\0");
            }
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(Shutdown::Write);
            let mut last_word = Vec::new();
            let _ = stream.read_to_end(&mut last_word);
        }
    });
}

/// Datagrams that are no heartbeats, and heartbeats of others, to both halves. They neither break the pair
/// nor, later, keep a dead primary alive.
#[test]
fn strange_datagrams_on_the_heartbeat_ports() {
    undisturbed("strange_datagrams", |pair| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut sent = 0;
        for part in [Part::Primary, Part::Backup] {
            let ports = udp_ports(pair.pid(part).unwrap());
            assert!(!ports.is_empty(), "{} has a port for heartbeats", part.name());
            let mut throw = |bytes: &[u8]| {
                for port in &ports {
                    sent += usize::from(socket.send_to(bytes, ("127.0.0.1", *port)).is_ok());
                }
            };
            for (mut noise, sequence) in seeds().zip(1 << 40..) {
                let length = noise.next() as usize % 1400;
                throw(&noise.bytes(length));
                throw(&forged(sequence, VM, CLAIMANT));
                throw(&forged(sequence, "another", CLAIMANT));
                let mut damaged = forged(sequence, VM, CLAIMANT);
                damaged[noise.next() as usize % HEARTBEAT_LEN] ^= 1;
                throw(&damaged);
                throw(&damaged[..noise.next() as usize % HEARTBEAT_LEN]);
            }
        }
        assert!(sent > 0);
    });
}

/// A heartbeat in which everything is right but the sender.
fn forged(sequence: u64, vm: &str, claimant: u128) -> Vec<u8> {
    let role = if sequence.is_multiple_of(2) { Role::Primary } else { Role::Backup };
    let (vm, generation) = (vm_hash(vm), 1 + sequence % 3);
    Heartbeat { vm, generation, role, claimant, sequence }.encode().into()
}

/// The network's socket takes frames, each with its length before it: here come lengths that cannot be,
/// frames that stop half-way, and frames of noise.
#[test]
fn noise_on_the_networks_socket() {
    undisturbed("noise_on_the_network", |pair| {
        let path = pair.directory().join("lan.sock");
        for mut noise in seeds() {
            let mut stream = UnixStream::connect(&path).unwrap();
            let kind = noise.next() % 5;
            let length = 14 + noise.next() as usize % 1500;
            let content = noise.bytes(length);
            let bytes = match kind {
                0 => content,
                1 => [&u32::MAX.to_be_bytes()[..], &content].concat(),
                2 => [&[0; 4][..], &content].concat(),
                3 => [&1500u32.to_be_bytes()[..], &content[..14]].concat(),
                _ => (0..20).fold(Vec::new(), |mut all, _| {
                    let mut frame = content.clone();
                    // Not a group, not the guest, not the gateway: a station that nobody knows.
                    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, noise.next() as u8]);
                    frame[noise.next() as usize % 6] ^= noise.next() as u8;
                    all.extend((frame.len() as u32).to_be_bytes());
                    all.extend(frame);
                    all
                }),
            };
            // It may be closed at the first impossible length.
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(Shutdown::Write);
        }
    });
}

#[test]
fn noise_on_the_control_sockets() {
    undisturbed("noise_on_the_control_sockets", |pair| {
        for part in [Part::Primary, Part::Backup] {
            for mut noise in seeds() {
                let mut stream = UnixStream::connect(pair.control(part)).unwrap();
                let length = noise.next() as usize % 2000;
                let _ = stream.write_all(&noise.bytes(length));
                let _ = stream.shutdown(Shutdown::Write);
            }
        }
    });
}

/// A client of the guest that does not speak its protocol, and one that goes away in the middle of a word.
#[test]
fn noise_on_the_guests_port() {
    undisturbed("noise_on_the_guest", |pair| {
        for mut noise in seeds() {
            let mut client = Client::connect(pair.port()).unwrap();
            let length = noise.next() as usize % 4000;
            let _ = client.raw(&noise.bytes(length));
        }
        let mut client = pair.client();
        client.raw(b"*2\r\n$3\r\nGET\r\n$-7\r\n").unwrap();
        assert!(matches!(client.reply(), Ok(Reply::Error(_))), "a clear answer");
        client.raw(b"*1\r\n").ok();
        drop(client);
        wait_until("the guest to serve others", || pair.client().set("after", "noise").is_ok());
    });
}
