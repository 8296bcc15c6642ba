//! What the channel costs per entry, without sockets, and how long an ack takes over TCP on this host:
//! `cargo run --release -p logchannel --example cost`.
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use logchannel::tcp::{Listener, connect};
use logchannel::*;

const ROUNDS: u64 = 1_000_000;

#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

/// One entry per flush, as on the path of an output: append, frame, receive, ack, apply the ack.
fn one_by_one(name: &str, event: Event) {
    let mut sender = Sender::new(Endpoint::new(), Limits::default(), LogStart::default());
    let mut receiver = Receiver::new(Endpoint::new(), LogStart::default());
    let (mut wire, mut acks, mut got) = (Vec::new(), Vec::new(), Vec::new());
    let (mut sending, mut receiving, mut acking) = (0, 0, 0);
    let clock = (0..ROUNDS).map(|_| now().elapsed().as_nanos()).sum::<u128>() as f64 / ROUNDS as f64;
    let mut entry = LogEntry { seq: 0, at: Position::at(0), event };
    for seq in 1..=ROUNDS {
        entry.seq = seq;
        entry.at.count = seq * 5;
        let start = now();
        sender.append(black_box(&entry)).unwrap();
        sender.flush(seq - 1, &mut wire);
        let sent = now();
        receiver.on_bytes(black_box(&wire), &mut got).unwrap();
        receiver.ack(seq - 1, &mut acks);
        let received = now();
        sender.on_bytes(black_box(&acks)).unwrap();
        let acked = now();
        sending += (sent - start).as_nanos();
        receiving += (received - sent).as_nanos();
        acking += (acked - received).as_nanos();
        wire.clear();
        acks.clear();
        got.clear();
    }
    let per = |sum: u128| sum as f64 / ROUNDS as f64 - clock;
    println!(
        "{name:18} append+flush {:4.0} ns   receive+ack {:4.0} ns   apply ack {:4.0} ns   {:6.1} bytes sent",
        per(sending),
        per(receiving),
        per(acking),
        sender.stats().wire_bytes as f64 / ROUNDS as f64,
    );
}

/// Many entries per flush: what a byte stream of the channel carries.
fn batched(name: &str, event: Event, batch: u64) {
    let mut sender = Sender::new(Endpoint::new(), Limits::default(), LogStart::default());
    let mut receiver = Receiver::new(Endpoint::new(), LogStart::default());
    let (mut wire, mut acks, mut got) = (Vec::new(), Vec::new(), Vec::new());
    let mut entry = LogEntry { seq: 0, at: Position::at(0), event };
    let start = now();
    for _ in 0..ROUNDS / batch {
        for _ in 0..batch {
            entry.seq += 1;
            entry.at.count += 5;
            sender.append(black_box(&entry)).unwrap();
        }
        sender.flush(entry.seq - batch, &mut wire);
        receiver.on_bytes(black_box(&wire), &mut got).unwrap();
        receiver.ack(entry.seq - batch, &mut acks);
        sender.on_bytes(&acks).unwrap();
        wire.clear();
        acks.clear();
        got.clear();
    }
    let seconds = start.elapsed().as_secs_f64();
    let bytes = sender.stats().wire_bytes as f64;
    println!(
        "{name:18} both ends, {batch} a flush: {:4.0} ns an entry, {:5.0} MB/s",
        seconds * 1e9 / entry.seq as f64,
        bytes / seconds / 1e6,
    );
}

/// From `append` to the ack applied, over TCP on the loopback interface, a thread at each end.
fn over_tcp(name: &str, event: Event) {
    const ROUNDS: usize = 20_000;
    let listener = Listener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().to_string();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let incoming = listener.accept(None, Duration::from_secs(10)).unwrap();
            let mut reserved = incoming.welcome(Welcome { claimant: 2, heartbeat_port: 0 }).unwrap();
            reserved.wait_for_begin(Duration::from_secs(10)).unwrap();
            let connection = reserved.begun().unwrap();
            let (endpoint, mut writer, mut reader) = connection.split().unwrap();
            let mut receiver = Receiver::new(endpoint, LogStart::default());
            let (mut buffer, mut out, mut got) = (vec![0; 1 << 16], Vec::new(), Vec::new());
            while let Ok(len) = reader.read(&mut buffer) {
                receiver.on_bytes(&buffer[..len], &mut got).unwrap();
                receiver.ack(0, &mut out);
                writer.write_all(&out).unwrap();
                out.clear();
                got.clear();
            }
        });
        let hello = Hello {
            config: PairConfig::default(),
            policy: Policy::default(),
            claimant: 1,
            heartbeat_port: 0,
            transfer: false,
            backup_reads: false,
        };
        let (welcomed, _) = connect(&address, &hello, Duration::from_secs(10)).unwrap();
        let connection = welcomed.begin(1, Duration::from_secs(10)).unwrap();
        let (endpoint, mut writer, mut reader) = connection.split().unwrap();
        let mut sender = Sender::new(endpoint, Limits::default(), LogStart::default());
        let (mut buffer, mut out, mut times) = (vec![0; 1 << 16], Vec::new(), Vec::with_capacity(ROUNDS));
        let mut entry = LogEntry { seq: 0, at: Position::at(0), event };
        for _ in 0..ROUNDS {
            entry.seq += 1;
            let start = now();
            sender.append(&entry).unwrap();
            sender.flush(sender.acked(), &mut out);
            writer.write_all(&out).unwrap();
            while sender.acked() < entry.seq {
                let len = reader.read(&mut buffer).unwrap();
                sender.on_bytes(&buffer[..len]).unwrap();
            }
            times.push(start.elapsed().as_nanos() / 100);
            out.clear();
        }
        writer.closer().unwrap().close();
        times.sort_unstable();
        let at = |share: usize| times[ROUNDS * share / 1000] as f64 / 10.0;
        println!(
            "{name:18} append to ack over TCP: p50 {:.1} us, p99 {:.1} us, p99.9 {:.1} us",
            at(500),
            at(990),
            at(999)
        );
    });
}

fn main() {
    let output = Event::Output { kind: OutputKind::Net, digest: [9; 8] };
    one_by_one("Output", output.clone());
    one_by_one("NetRx, 100 bytes", Event::NetRx(vec![1; 100]));
    one_by_one("NetRx, 1514 bytes", Event::NetRx(vec![1; 1514]));
    batched("Output", output, 100);
    batched("NetRx, 1514 bytes", Event::NetRx(vec![1; 1514]), 20);
    over_tcp("Output", Event::Output { kind: OutputKind::Net, digest: [9; 8] });
    over_tcp("NetRx, 1514 bytes", Event::NetRx(vec![1; 1514]));
}
