//! The TAP backend, in a network namespace of the test's own thread: it ends with the thread.
#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;

use lockstep_lan::backend::{BackendError, Connection};
use lockstep_lan::wire::FrameBatch;
use lockstep_lan::{DEFAULT_GATEWAY_IP, DEFAULT_GUEST_IP, DEFAULT_GUEST_MAC, Endpoint, gratuitous_arp};
use nix::sched::{CloneFlags, unshare};

const DEVICE: &str = "lockstep0";

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// What the machine lacks for this test.
fn lacks() -> Option<&'static str> {
    if !is_root() {
        return Some("root");
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        return Some("/dev/net/tun");
    }
    if Command::new("ip").arg("-V").output().is_err() {
        return Some("the command ip (package iproute2)");
    }
    unshare(CloneFlags::CLONE_NEWNET).is_err().then_some("the right to make a network namespace")
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// Reads until a frame fulfils the condition.
fn frame_that(reader: &mut lockstep_lan::backend::FrameReader, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut batch = FrameBatch::default();
    loop {
        reader.read(&mut batch).unwrap();
        if let Some(frame) = batch.iter().find(|f| wanted(f)) {
            return frame.to_vec();
        }
        batch.clear();
    }
}

fn exchange_with_the_kernel() {
    let endpoint = Endpoint::NewTap(DEVICE.into());
    let (mut reader, mut writer, closer) = Connection::connect(&endpoint).unwrap().split().unwrap();
    // The cable is out: frames are lost, nothing else happens.
    assert_eq!(writer.write(&[&gratuitous_arp(DEFAULT_GUEST_MAC, DEFAULT_GUEST_IP)]).unwrap(), 0);
    ip(&format!("address add {DEFAULT_GATEWAY_IP}/24 dev {DEVICE}"));
    ip(&format!("link set {DEVICE} up"));

    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.send_to(b"through the device", (DEFAULT_GUEST_IP, 9)).unwrap();
    // The kernel asks who has the address; the announcement answers it.
    let asks = |f: &[u8]| f.len() >= 42 && f[12..14] == [8, 6] && f[38..42] == DEFAULT_GUEST_IP.octets();
    frame_that(&mut reader, asks);
    assert_eq!(writer.write(&[&gratuitous_arp(DEFAULT_GUEST_MAC, DEFAULT_GUEST_IP)]).unwrap(), 1);
    let datagram = frame_that(&mut reader, |f| f.ends_with(b"through the device"));
    assert_eq!(datagram[..6], DEFAULT_GUEST_MAC.0);

    let waiting = std::thread::Builder::new()
        .spawn(move || {
            loop {
                if let Err(error) = reader.read(&mut FrameBatch::default()) {
                    return error;
                }
            }
        })
        .unwrap();
    closer.close();
    assert!(matches!(waiting.join().unwrap(), BackendError::Closed));
}

#[test]
fn frames_pass_between_a_backend_and_the_kernel() {
    let thread = std::thread::Builder::new().spawn(|| match lacks() {
        Some(what) => eprintln!("SKIPPED: the TAP backend needs {what}"),
        None => exchange_with_the_kernel(),
    });
    thread.unwrap().join().unwrap();
}

/// A name with a mistake in it is not a new device.
fn attach_to_what_is_there() {
    let error = Connection::connect(&Endpoint::Tap(DEVICE.into())).unwrap_err();
    assert!(matches!(error, BackendError::NoTap { .. }), "{error}");
    assert!(error.to_string().contains(&format!("ip tuntap add {DEVICE} mode tap")), "{error}");
    assert!(nix::net::if_::if_nametoindex(DEVICE).is_err(), "nothing was made");
    ip(&format!("tuntap add {DEVICE} mode tap"));
    let connection = Connection::connect(&Endpoint::Tap(DEVICE.into())).unwrap();
    let error = Connection::connect(&Endpoint::Tap(DEVICE.into())).unwrap_err().to_string();
    assert!(error.contains("another process uses it"), "{error}");
    drop(connection);
    for (make, name) in [("tuntap add tun7 mode tun", "tun7"), ("link add dummy7 type bridge", "dummy7")] {
        ip(make);
        let error = Connection::connect(&Endpoint::Tap(name.into())).unwrap_err().to_string();
        assert!(error.contains("not a TAP device"), "{error}");
    }
    let made = Connection::connect(&Endpoint::NewTap("lockstep1".into())).unwrap();
    assert!(nix::net::if_::if_nametoindex("lockstep1").is_ok());
    drop(made);
    assert!(nix::net::if_::if_nametoindex("lockstep1").is_err(), "it went with its user");
}

#[test]
fn only_a_tap_device_that_exists_is_attached_to() {
    let thread = std::thread::Builder::new().spawn(|| match lacks() {
        Some(what) => eprintln!("SKIPPED: the TAP backend needs {what}"),
        None => attach_to_what_is_there(),
    });
    thread.unwrap().join().unwrap();
}

#[test]
fn impossible_names_are_refused_with_a_reason() {
    for name in ["a-name-that-is-too-long", "a/b", "a b", "tap%d"] {
        let error = Connection::connect(&Endpoint::Tap(name.into())).unwrap_err().to_string();
        assert!(error.contains("1 to 15 characters"), "{error}");
    }
}

#[test]
fn without_the_right_the_error_says_what_to_do() {
    if !is_root() {
        let error = Connection::connect(&Endpoint::NewTap(DEVICE.into())).unwrap_err().to_string();
        assert!(error.contains("lockstep lan"), "{error}");
    } else {
        eprintln!("SKIPPED: root has the right to open TAP devices");
    }
}
