//! The channel and the heartbeats over real sockets, on the loopback interface.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use logchannel::tcp::{Connection, Listener, TcpError, connect};
use logchannel::udp::HeartbeatSocket;
use logchannel::*;

const LOCAL: &str = "127.0.0.1:0";
const LONG: Duration = Duration::from_secs(60);
const BOOT: LogStart = LogStart { seq: 0, count: 0 };

fn hello() -> Hello {
    Hello {
        config: common::config(),
        policy: Policy::default(),
        claimant: 11,
        heartbeat_port: 7001,
        transfer: false,
        backup_reads: false,
    }
}

fn welcome() -> Welcome {
    Welcome { claimant: 22, heartbeat_port: 7002 }
}

/// A pair whose handshake is done: the primary's connection, the backup's.
fn pair() -> (Connection, Connection) {
    let listener = Listener::bind(LOCAL).unwrap();
    let address = listener.local_addr().to_string();
    thread::scope(|scope| {
        let backup = scope.spawn(move || {
            let incoming = listener.accept(Some(LONG), LONG).unwrap();
            assert_eq!(incoming.hello, hello());
            let mut reserved = incoming.welcome(welcome()).unwrap();
            assert_eq!(reserved.wait_for_begin(LONG).unwrap(), 3);
            reserved.begun().unwrap()
        });
        let (mut primary, answer) = connect(&address, &hello(), LONG).unwrap();
        assert_eq!(answer, welcome());
        primary.preparing().unwrap();
        primary.preparing().unwrap();
        (primary.begin(3, LONG).unwrap(), backup.join().unwrap())
    })
}

#[test]
fn entries_go_one_way_and_acks_the_other() {
    let (primary, backup) = pair();
    let entries = common::every_kind();
    thread::scope(|scope| {
        scope.spawn(|| {
            let (endpoint, mut writer, mut reader) = backup.split().unwrap();
            let mut receiver = Receiver::new(endpoint, BOOT);
            let (mut buffer, mut out, mut got) = ([0; 4096], Vec::new(), Vec::new());
            while got.len() < entries.len() {
                let len = reader.read(&mut buffer).unwrap();
                receiver.on_bytes(&buffer[..len], &mut got).unwrap();
                receiver.ack(0, &mut out);
                writer.write_all(&out).unwrap();
                out.clear();
            }
            assert_eq!(got, entries);
        });
        let (endpoint, mut writer, mut reader) = primary.split().unwrap();
        let mut sender = Sender::new(endpoint, Limits::default(), BOOT);
        let (mut buffer, mut out) = ([0; 4096], Vec::new());
        for entry in &entries {
            sender.append(entry).unwrap();
            sender.flush(sender.acked(), &mut out);
            writer.write_all(&out).unwrap();
            out.clear();
        }
        while sender.acked() < entries.len() as u64 {
            let len = reader.read(&mut buffer).unwrap();
            sender.on_bytes(&buffer[..len]).unwrap();
        }
        let end = reader.read(&mut buffer).unwrap_err();
        assert!(matches!(end, TcpError::Closed { .. }), "{end}");
    });
}

#[test]
fn a_peer_that_does_not_read_stops_the_writer() {
    const TOTAL: usize = 64 << 20;
    const MOST: usize = 20 << 20;
    let (primary, backup) = pair();
    let written = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (_, mut writer, _) = primary.split().unwrap();
            let chunk = vec![0; 64 << 10];
            for _ in 0..TOTAL / chunk.len() {
                writer.write_all(&chunk).unwrap();
                written.fetch_add(chunk.len(), Ordering::SeqCst);
            }
        });
        let (_, _, mut reader) = backup.split().unwrap();
        let (mut buffer, mut read) = (vec![0; 1 << 20], 0);
        while written.load(Ordering::SeqCst) < 128 << 10 {
            thread::yield_now();
        }
        while read < TOTAL {
            assert!(written.load(Ordering::SeqCst) - read.min(written.load(Ordering::SeqCst)) < MOST);
            read += reader.read(&mut buffer).unwrap();
        }
    });
}

#[test]
fn a_closer_frees_a_blocked_writer_and_a_blocked_reader() {
    let (primary, backup) = pair();
    let (_, mut writer, mut reader) = primary.split().unwrap();
    let closer = writer.closer().unwrap();
    let (done, ended) = mpsc::channel();
    thread::scope(|scope| {
        let wrote = done.clone();
        scope.spawn(move || {
            let error = loop {
                if let Err(error) = writer.write_all(&[0; 1 << 16]) {
                    break error;
                }
            };
            wrote.send(error).unwrap();
        });
        scope.spawn(move || done.send(reader.read(&mut [0; 16]).unwrap_err()).unwrap());
        assert!(ended.try_recv().is_err(), "both wait");
        closer.close();
        for _ in 0..2 {
            let error = ended.recv_timeout(LONG).expect("both came back");
            assert!(matches!(error, TcpError::Closed { .. }), "{error}");
        }
        closer.close();
    });
    drop(backup);
}

#[test]
fn a_refused_primary_is_told_both_values() {
    let listener = Listener::bind(LOCAL).unwrap();
    let address = listener.local_addr().to_string();
    let error = thread::scope(|scope| {
        scope.spawn(|| {
            let incoming = listener.accept(None, LONG).unwrap();
            let mut ours = common::config();
            ours.memory_bytes = 128 << 20;
            let mismatch = ours.mismatch(&incoming.hello.config).expect("memory differs");
            incoming.refuse(Refusal::Mismatch(mismatch)).unwrap();
        });
        connect(&address, &hello(), LONG).unwrap_err()
    });
    let text = format!(
        "backup at {address} refused the pair: memory size: 64 MiB here, 128 MiB there: start both with the \
         same memory size"
    );
    assert_eq!(error.to_string(), text);
}

#[test]
fn a_primary_waits_for_a_backup_that_starts_later() {
    // A port that was free a moment ago, on an address that no other test uses.
    let address = Listener::bind("127.0.0.2:0").unwrap().local_addr().to_string();
    thread::scope(|scope| {
        let primary = scope.spawn(|| connect(&address, &hello(), LONG).unwrap());
        let listener = Listener::bind(&address).unwrap();
        let incoming = listener.accept(Some(LONG), LONG).unwrap();
        incoming.welcome(welcome()).unwrap();
        primary.join().unwrap();
    });
}

#[test]
fn nobody_there_is_an_error_that_says_what_to_do() {
    let address = Listener::bind("127.0.0.3:0").unwrap().local_addr().to_string();
    let error = connect(&address, &hello(), Duration::from_millis(1)).unwrap_err();
    let text =
        format!("no backup answers at {address} (tried for 1ms): start it first, or check the address");
    assert_eq!(error.to_string(), text);
    for nonsense in ["127.0.0.1", "nonsense", "::1:7700", "[::1]"] {
        let error = connect(nonsense, &hello(), LONG).unwrap_err();
        assert!(matches!(error, TcpError::Address { .. }), "{error}");
    }
    let listener = Listener::bind(LOCAL).unwrap();
    let error = listener.accept(Some(Duration::from_millis(1)), LONG).unwrap_err();
    assert!(matches!(error, TcpError::NoPrimary { .. }), "{error}");
    let error = Listener::bind(&listener.local_addr().to_string()).unwrap_err();
    assert!(error.to_string().ends_with("choose another address or port"), "{error}");
}

#[test]
fn a_silent_peer_does_not_hold_the_handshake_up() {
    let silent = TcpListener::bind(LOCAL).unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let error = connect(&address, &hello(), Duration::from_millis(5)).unwrap_err();
    assert!(error.to_string().contains("did not answer the greeting within 5ms"), "{error}");

    let listener = Listener::bind(LOCAL).unwrap();
    let _silent = TcpStream::connect(listener.local_addr()).unwrap();
    let error = listener.accept(Some(LONG), Duration::from_millis(5)).unwrap_err();
    assert!(error.to_string().contains("did not say hello within 5ms"), "{error}");
}

#[test]
fn strangers_are_turned_away_and_the_listener_goes_on() {
    let listener = Listener::bind(LOCAL).unwrap();
    let stranger = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(listener.local_addr()).unwrap();
        stream.write_all(bytes).unwrap();
        let error = listener.accept(Some(LONG), LONG).unwrap_err();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        (error.to_string(), answer)
    };
    let (error, _) = stranger(b"GET / HTTP/1.1\r\nHost: backup\r\n\r\n");
    assert!(error.contains("not a logging channel frame: it begins with [47, 45, 54, 20]"), "{error}");

    let mut ack = Vec::new();
    Endpoint::new().send(&Message::Ack(Ack::default()), &mut ack).unwrap();
    let (error, _) = stranger(&ack);
    assert!(error.contains("the peer sent Ack where Hello is due"), "{error}");

    let mut newer = Vec::new();
    Endpoint::new().send(&Message::Hello(Box::new(hello())), &mut newer).unwrap();
    newer[4..6].copy_from_slice(&(LOG_VERSION + 1).to_le_bytes());
    let (error, answer) = stranger(&newer);
    assert!(error.contains("run the same lockstep on both"), "{error}");
    let mut told = Endpoint::new();
    told.push(&answer);
    let answer = told.next_message().unwrap();
    assert!(matches!(answer, Some(Message::Refuse(Refusal::Other(_)))), "{answer:?}");

    let (error, answer) = stranger(include_bytes!("fixtures/hello-v2.bin"));
    let versions =
        format!("version 2 from the peer, version {LOG_VERSION} here: run the same lockstep on both");
    assert!(error.contains(&versions), "{error}");
    let mut told = Endpoint::new();
    told.push(&answer);
    let Some(Message::Refuse(Refusal::Other(reason))) = told.next_message().unwrap() else {
        panic!("{error}")
    };
    assert!(reason.contains(&versions), "{reason}");

    let mut closed = TcpStream::connect(listener.local_addr()).unwrap();
    closed.write_all(&newer[..10]).unwrap();
    drop(closed);
    assert!(listener.accept(Some(LONG), LONG).is_err());
}

#[test]
fn heartbeats_cross_and_garbage_is_passed_over() {
    let (one, two) = (HeartbeatSocket::bind(LOCAL).unwrap(), HeartbeatSocket::bind(LOCAL).unwrap());
    let vm = heartbeat::vm_hash("shop");
    let (role, generation, claimant) = (Role::Primary, 2, 11);
    let beat = Heartbeat { vm, generation, role, claimant, sequence: 1 };
    assert_eq!(two.receive(Duration::ZERO).unwrap(), None);
    let stranger = std::net::UdpSocket::bind(LOCAL).unwrap();
    stranger.send_to(b"hello?", two.local_addr()).unwrap();
    stranger.send_to(&[&beat.encode()[..], b"more"].concat(), two.local_addr()).unwrap();
    one.send(&beat, two.local_addr()).unwrap();
    assert_eq!(two.receive(LONG).unwrap(), Some(beat));
    assert_eq!(two.receive(Duration::from_millis(1)).unwrap(), None);

    // A peer that went away does not make the socket fail.
    let gone = two.local_addr();
    drop(two);
    one.send(&beat, gone).unwrap();
    assert_eq!(one.receive(Duration::from_millis(1)).unwrap(), None);
    one.send(&beat, gone).unwrap();
    let error = HeartbeatSocket::bind(&one.local_addr().to_string()).unwrap_err();
    assert!(error.to_string().starts_with("cannot hear heartbeats at 127.0.0.1:"), "{error}");
}

/// A pair is not begun by a primary that goes away, says nothing, or something else; a refusal is told.
#[test]
fn a_reserved_backup_is_free_again_when_its_primary_does_not_begin() {
    let listener = Listener::bind(LOCAL).unwrap();
    let address = listener.local_addr().to_string();
    let meet = || {
        thread::scope(|scope| {
            let primary = scope.spawn(|| connect(&address, &hello(), LONG).unwrap().0);
            let reserved = listener.accept(Some(LONG), LONG).unwrap().welcome(welcome()).unwrap();
            (primary.join().unwrap(), reserved)
        })
    };
    let (primary, mut reserved) = meet();
    drop(primary);
    let error = reserved.wait_for_begin(LONG).unwrap_err();
    assert!(matches!(error, TcpError::Closed { .. }), "{error}");

    let (mut primary, mut reserved) = meet();
    primary.preparing().unwrap();
    let error = reserved.wait_for_begin(Duration::from_millis(20)).unwrap_err();
    assert!(matches!(error, TcpError::Handshake { missing: "begin", .. }), "{error}");

    let (primary, mut reserved) = meet();
    let error = thread::scope(|scope| {
        let primary = scope.spawn(|| primary.begin(7, LONG).unwrap_err());
        assert_eq!(reserved.wait_for_begin(LONG).unwrap(), 7);
        reserved.refuse(Refusal::Other("somebody else holds it".into())).unwrap();
        primary.join().unwrap()
    });
    assert!(error.to_string().ends_with("refused the pair: somebody else holds it"), "{error}");
}

/// A peer cannot have this end keep more than a greeting's length.
#[test]
fn a_greeting_without_end_is_cut_short() {
    let listener = Listener::bind(LOCAL).unwrap();
    let mut stream = TcpStream::connect(listener.local_addr()).unwrap();
    let mut header = Vec::new();
    Endpoint::new().send(&Message::Hello(Box::new(hello())), &mut header).unwrap();
    header.truncate(24);
    header[16..20].copy_from_slice(&(3u32 << 20).to_le_bytes());
    stream.write_all(&header).unwrap();
    thread::scope(|scope| {
        let flood = scope.spawn(move || while stream.write_all(&[0; 4096]).is_ok() {});
        let error = listener.accept(Some(LONG), LONG).unwrap_err();
        assert!(error.to_string().contains("65536 allowed"), "{error}");
        flood.join().unwrap();
    });
}

/// On the channel's own address and of its family: over IPv6, too.
#[test]
fn heartbeats_take_the_channels_way() {
    for local in ["127.0.0.1:0", "[::1]:0"] {
        let Ok(listener) = Listener::bind(local) else {
            eprintln!("SKIPPED heartbeats_take_the_channels_way: no {local} on this machine");
            continue;
        };
        let dialled = tcp::dial(&listener.local_addr().to_string(), LONG).unwrap();
        let at = dialled.local_addr().unwrap();
        let (one, two) = (HeartbeatSocket::beside(at).unwrap(), HeartbeatSocket::beside(at).unwrap());
        assert_eq!(one.local_addr().ip(), listener.local_addr().ip());
        let (role, generation, claimant) = (Role::Backup, 2, 11);
        let beat = Heartbeat { vm: 1, generation, role, claimant, sequence: 1 };
        one.send(&beat, two.local_addr()).unwrap();
        assert_eq!(two.receive(LONG).unwrap(), Some(beat));
    }
}
