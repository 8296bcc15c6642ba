//! Numbers, printed and not asserted: what a request costs in positions and in bytes of the log, how fast a
//! replay is, what a digest costs. Alone on a quiet machine:
//!
//! ```text
//!   cargo test --release -p lockstep --test replay -- --exact measure::numbers --nocapture
//! ```

use std::hash::Hasher as _;
use std::time::{Duration, Instant};

use lockstep::engine::Engine as _;
use lockstep::memory::Ram;
use logchannel::batch::{BatchEncoder, LogStart};
use logchannel::{EventKind, LogEntry};
use twox_hash::XxHash3_64;

use crate::client::{Reply, Step, request};
use crate::machine::{minikv, on_engines};
use crate::recording::{Options, Recording, record};
use crate::replaying::{How, Replay, replay};
use crate::world::{DISK_BYTES, Plan};

const REQUESTS: u64 = 200;

#[allow(clippy::disallowed_methods)]
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let value = work();
    (value, start.elapsed())
}

/// Bytes of a log on the channel, without frames.
fn log_bytes(log: &[LogEntry]) -> usize {
    let mut encoder = BatchEncoder::new(LogStart::default());
    log.iter().map(|entry| encoder.append(entry).expect("it fits a frame")).sum()
}

/// What the engine's positions count.
fn counted() -> &'static str {
    minikv(DISK_BYTES as u64).engine().clock().name()
}

/// One client that asks the same again and again, one request at a time.
fn requests(words: &[&[u8]], due: &[u8], count: u64) -> Recording {
    let ask = |words: &[&[u8]], due: &[u8]| Step::Ask {
        bytes: request(words),
        replies: vec![Reply::Exactly(due.to_vec())],
    };
    let mut script = vec![ask(&[b"SET", b"key", &[b'v'; 64]], b"+OK\r\n")];
    script.extend((0..count).map(|_| ask(words, due)));
    record(1, &Options { plan: Some(Plan::quiet()), scripts: vec![script], ..Options::default() })
}

fn per_request(name: &str, words: &[&[u8]], due: &[u8]) {
    let (few, many) = (requests(words, due, 100), requests(words, due, 100 + REQUESTS));
    let each = |of: &dyn Fn(&Recording) -> usize| (of(&many) - of(&few)) as f64 / REQUESTS as f64;
    let count = |kind: EventKind| each(&|recording| recording.count(kind));
    eprintln!(
        "{name}: {:.2} {}, {:.1} bytes of log in {:.2} entries ({:.2} NetRx, {:.2} DiskDone, {:.2} Clock, \
         {:.2} Output)",
        each(&|recording| recording.positions() as usize),
        counted(),
        each(&|recording| log_bytes(&recording.log)),
        each(&|recording| recording.log.len()),
        count(EventKind::NetRx),
        count(EventKind::DiskDone),
        count(EventKind::Clock),
        count(EventKind::Output),
    );
}

fn speed(name: &str, plan: Plan) {
    let options = Options { plan: Some(plan), digests: false, ..Options::default() };
    let (recording, recorded) = timed(|| record(3, &options));
    let (replayed, took) = timed(|| replay(&recording.log, minikv(DISK_BYTES as u64), How::Whole));
    assert!(replayed.is_ok());
    eprintln!(
        "{name}: {} {}, {} entries; recorded with its clients in {:.0} ms, replayed in {:.0} ms \
         ({:.2} times)",
        recording.positions(),
        counted(),
        recording.log.len(),
        recorded.as_secs_f64() * 1e3,
        took.as_secs_f64() * 1e3,
        took.as_secs_f64() / recorded.as_secs_f64(),
    );
}

fn average(rounds: u32, mut work: impl FnMut()) -> f64 {
    work();
    let ((), took) = timed(|| (0..rounds).for_each(|_| work()));
    took.as_secs_f64() * 1e6 / f64::from(rounds)
}

fn digest_cost() {
    let recording = requests(&[b"GET", b"key"], &[b"$64\r\n", &[b'v'; 64][..], b"\r\n"].concat(), 10);
    let mut replay = Replay::new(minikv(DISK_BYTES as u64));
    replay.push(&recording.log).unwrap_or_else(|divergence| panic!("{divergence}"));
    replay.run_to(recording.log.len() as u64 / 2).unwrap_or_else(|divergence| panic!("{divergence}"));
    let machine = replay.replayer.machine_mut();
    let registers = average(200, || {
        machine.cpu().expect("registers").digest();
    });
    let devices = average(200, || {
        let mut hash = XxHash3_64::new();
        machine.devices().digest_bytes(&mut |bytes| hash.write(bytes));
        std::hint::black_box(hash.finish());
    });
    eprintln!("a digest: registers {registers:.0} µs, devices {devices:.0} µs");
    for mib in [16, 64] {
        let mut ram = Ram::new(mib << 20).expect("guest memory");
        (0..(mib << 20) as usize).step_by(4096).for_each(|page| ram.write(page, &[1]));
        let all = average(20, || {
            ram.digest(None);
        });
        let mut changed = vec![0u64; (mib << 20) as usize / 4096 / 64];
        changed[1] = 0xffff;
        let few = average(200, || {
            ram.digest(Some(&changed));
        });
        eprintln!("a digest: {mib} MiB of memory {all:.0} µs; {few:.0} µs with 16 pages known to be changed");
    }
}

#[test]
fn numbers() {
    on_engines("numbers", || {
        per_request("GET of 64 bytes", &[b"GET", b"key"], &[b"$64\r\n", &[b'v'; 64][..], b"\r\n"].concat());
        per_request("SET of 64 bytes", &[b"SET", b"key", &[b'v'; 64]], b"+OK\r\n");
        speed("a run with clients", Plan { clients: 4, steps: 60, ..Plan::quiet() });
        digest_cost();
    });
}
