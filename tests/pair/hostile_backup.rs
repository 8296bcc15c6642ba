//! A real primary meets a backup that answers badly: it goes on alone, or says why it cannot start.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::time::Duration;

use disk_server::client::DiskClient;
use lockstep::cluster::Part;
use lockstep::io::control;
use logchannel::message::{Message, Refusal, Welcome};
use logchannel::tcp::Listener;
use logchannel::{Ack, Mismatch};
use serde_json::Value;

use crate::client::Client;
use crate::crafted::{CLAIMANT, Channel, Noise, frame};
use crate::harness::{PATIENCE, Pair, Process, scale, wait_until};

/// How a backup behaves once it was welcomed.
#[derive(Debug, Clone, Copy)]
enum Behaviour {
    /// It reads, and says nothing.
    Silent,
    /// It does not even read.
    Deaf,
    Garbage,
    OtherVersion,
    Oversized,
    Truncated,
    /// It has what was never sent.
    AcksUnsent,
    /// It executed what it does not have.
    ExecutesAhead,
    /// It acks, then acks less.
    AcksBackwards,
    /// It sends a primary's message.
    SendsEntries,
    WelcomesAgain,
    Leaves,
    Closes,
}

const BEHAVIOURS: [Behaviour; 13] = [
    Behaviour::Silent,
    Behaviour::Deaf,
    Behaviour::Garbage,
    Behaviour::OtherVersion,
    Behaviour::Oversized,
    Behaviour::Truncated,
    Behaviour::AcksUnsent,
    Behaviour::ExecutesAhead,
    Behaviour::AcksBackwards,
    Behaviour::SendsEntries,
    Behaviour::WelcomesAgain,
    Behaviour::Leaves,
    Behaviour::Closes,
];

fn ack(received: u64, executed: u64) -> Message {
    Message::Ack(Ack { received, executed })
}

fn behave(mut channel: Channel, behaviour: Behaviour) {
    let raw = |channel: &mut Channel, bytes: &[u8]| drop(channel.writer.write_all(bytes));
    match behaviour {
        Behaviour::Silent => {}
        Behaviour::Deaf => return std::thread::park(),
        Behaviour::Garbage => raw(&mut channel, &Noise(7).bytes(10_000)),
        Behaviour::OtherVersion => {
            let mut bytes = frame(5, 2, &[0, 0]);
            bytes[4] ^= 0x11;
            raw(&mut channel, &bytes);
        }
        Behaviour::Oversized => {
            let mut bytes = frame(5, 2, &[0, 0]);
            bytes[16..20].fill(0xff);
            raw(&mut channel, &bytes);
        }
        // The rest never comes: only silence tells.
        Behaviour::Truncated => raw(&mut channel, &frame(5, 2, &[0, 0])[..20]),
        Behaviour::AcksUnsent => drop(channel.send(&ack(1 << 40, 0))),
        Behaviour::ExecutesAhead => drop(channel.send(&ack(0, 1))),
        Behaviour::AcksBackwards => {
            while let Some(message) = channel.receive() {
                if let Message::Entries(batch) = message {
                    let last = batch.first + batch.entries.len() as u64 - 1;
                    channel.send(&ack(last, 0));
                    channel.send(&ack(last - 1, 0));
                }
            }
        }
        Behaviour::SendsEntries => {
            let payload = [1, 0, 0, 0];
            raw(&mut channel, &frame(4, 2, &payload));
        }
        Behaviour::WelcomesAgain => {
            channel.send(&Message::Welcome(Welcome { claimant: 1, heartbeat_port: 1 }));
        }
        Behaviour::Leaves => drop(channel.send(&Message::Goodbye { reason: "bye\u{1b}[31m\n".into() })),
        Behaviour::Closes => return,
    }
    channel.drain();
}

/// Starts a primary of a machine of its own.
fn primary(pair: &Pair, vm: &str, backup: &str) -> Process {
    let socket = pair.directory().join(format!("{vm}.sock")).display().to_string();
    let network = pair.network();
    let words = [
        "primary",
        "--vm",
        vm,
        "--backup",
        backup,
        "--disk-server",
        pair.disk_address(),
        "--net",
        &network,
        "--disk-size",
        "16",
        "--control",
        &socket,
    ];
    pair.spawn(vm, &words)
}

#[test]
fn a_primary_whose_backup_misbehaves_goes_on_alone() {
    let Some(pair) = Pair::services("a_backup_that_misbehaves", |_| {}) else { return };
    for (index, behaviour) in BEHAVIOURS.into_iter().cycle().take(BEHAVIOURS.len() * scale()).enumerate() {
        let vm = format!("hostile{index}");
        let listener = Listener::bind("127.0.0.1:0").unwrap();
        let mut process = primary(&pair, &vm, &listener.local_addr().to_string());
        let incoming = listener.accept(Some(PATIENCE), PATIENCE).unwrap();
        assert_eq!(incoming.hello.config.vm, vm);
        // Nobody listens where heartbeats go, and none come from there.
        let mut reserved = incoming.welcome(Welcome { claimant: CLAIMANT, heartbeat_port: 0 }).unwrap();
        assert_eq!(reserved.wait_for_begin(PATIENCE).unwrap(), 1);
        let connection = reserved.begun().unwrap();
        let (endpoint, writer, reader) = connection.split().unwrap();
        let channel = Channel { endpoint, writer, reader };
        let thread = std::thread::Builder::new();
        let thread = thread.spawn(move || behave(channel, behaviour)).unwrap();
        goes_on_alone(&pair, &mut process, &vm, behaviour);
        thread.thread().unpark();
        thread.join().unwrap();
    }
}

fn goes_on_alone(pair: &Pair, process: &mut Process, vm: &str, behaviour: Behaviour) {
    let socket = pair.directory().join(format!("{vm}.sock"));
    let mut status = Value::Null;
    wait_until(&format!("the primary to leave the backup that {behaviour:?}"), || {
        assert!(process.runs(), "{behaviour:?}: {}", process.output());
        let text = control::ask(&socket, "status").unwrap_or_default();
        status = serde_json::from_str(&text).unwrap_or_default();
        status["live"]["state"] == "Alone"
    });
    assert_eq!(status["live"]["generation"], 2, "{behaviour:?}: {status}");
    let mut value = None;
    wait_until("the guest to answer", || {
        value = Client::connect(pair.port()).and_then(|mut client| client.incr("n")).ok();
        value.is_some()
    });
    assert_eq!(value, Some(1), "{behaviour:?}");
    let mut disk = DiskClient::connect(pair.disk_address(), PATIENCE).unwrap();
    assert_eq!(disk.query(vm).unwrap().holding.generation, 2);
}

/// Nothing that answers a greeting wrongly becomes a backup, and the primary says what it met.
#[test]
fn a_primary_that_is_answered_wrongly_says_so_and_ends() {
    let Some(pair) = Pair::services("a_backup_that_answers_wrongly", |_| {}) else { return };
    let mut version = frame(2, 0, &[0, 0]);
    version[4] = 0x7f;
    let mut oversized = frame(2, 0, &[0, 0]);
    oversized[16..20].fill(0xff);
    let mismatch = Mismatch {
        field: logchannel::pair::Field::Memory,
        ours: "\u{1b}]0;owned\u{7}1 MiB".into(),
        theirs: "2 MiB\nlockstep: all is well".into(),
    };
    let refuse = |refusal| crate::crafted::message(&Message::Refuse(refusal));
    let cases: [(&str, Vec<u8>, &str); 8] = [
        ("http", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), "not a logging channel frame"),
        ("garbage", Noise(3).bytes(5000), "not a logging channel frame"),
        ("version", version, "version 127 from the peer"),
        ("oversized", oversized, "allowed"),
        ("ack", crate::crafted::message(&ack(0, 0)), "sent Ack where Welcome or Refuse is due"),
        ("malformed", frame(2, 0, &[0xff; 3]), "Welcome message"),
        ("refused", refuse(Refusal::Mismatch(mismatch)), "memory size: 2 MiB"),
        ("closed", Vec::new(), "closed the channel"),
    ];
    for (name, answer, said) in cases {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut process = primary(&pair, &format!("answered-{name}"), &address);
        let (mut stream, _) = listener.accept().unwrap();
        let mut greeting = [0; 24];
        stream.read_exact(&mut greeting).unwrap();
        // It may have seen enough, and be gone, before the last byte of this.
        let _ = stream.write_all(&answer).and_then(|()| stream.shutdown(Shutdown::Write));
        assert_eq!(process.exit_code(), 1, "{name}: {}", process.output());
        let output = process.output();
        assert!(output.contains(said), "{name}: {said:?} not in {output:?}");
        let last = output.lines().last().unwrap_or_default();
        assert!(!last.contains('\u{1b}') && !last.contains('\u{7}'), "{name}: {output:?}");
        assert!(!output.lines().any(|line| line == "lockstep: all is well"), "{output:?}");
        stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    }
    assert!(!pair.log_text(Part::DiskServer).contains("panicked"));
}
