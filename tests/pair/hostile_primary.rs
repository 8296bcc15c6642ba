//! A real backup meets bytes that are no primary's, and primaries that break the log's rules.

use std::io::Write;
use std::net::{Shutdown, TcpStream};

use lockstep::cluster::Part;
use logchannel::entry::{Point, TrapKind};
use logchannel::message::{Batch, Message};
use logchannel::{Ack, DiskStatus, Event, LogEntry, MachineDigest, OutputKind, Position};
use nix::sys::socket::{setsockopt, sockopt};

use crate::crafted::{self, Channel, Noise, connect, entries, frame, hello, message, pair_config};
use crate::harness::{DIVERGED, Pair, VM, scale, wait_until};
use crate::load::Load;

/// The machine of every half here.
const MACHINE: [&str; 2] = ["--disk-size", "16"];

/// How a connection to the backup's port ends.
#[derive(Debug, Clone, Copy)]
enum End {
    /// In order.
    Fin,
    /// At once: whatever the backup answers finds nobody.
    Reset,
}

fn throw(address: &str, bytes: &[u8], end: End) {
    let mut stream = TcpStream::connect(address).unwrap();
    // The backup may have had enough before all is written.
    let _ = stream.write_all(bytes);
    match end {
        End::Fin => {
            let _ = stream.shutdown(Shutdown::Write);
        }
        End::Reset => {
            let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            setsockopt(&stream, sockopt::Linger, &at_once).unwrap();
        }
    }
}

/// Bytes for a port where a greeting is due.
fn greetings() -> Vec<(&'static str, Vec<u8>)> {
    let right = message(&Message::Hello(Box::new(hello(pair_config(&MACHINE)))));
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = right.clone();
        change(&mut bytes);
        bytes
    };
    let with = |change: &dyn Fn(&mut logchannel::PairConfig)| {
        let mut config = pair_config(&MACHINE);
        change(&mut config);
        message(&Message::Hello(Box::new(hello(config))))
    };
    let policy = |change: &dyn Fn(&mut logchannel::Policy)| {
        let mut hello = hello(pair_config(&MACHINE));
        change(&mut hello.policy);
        message(&Message::Hello(Box::new(hello)))
    };
    let begin = |generation: u8| frame(10, 1, &[generation]);
    vec![
        ("nothing", Vec::new()),
        ("garbage", Noise(1).bytes(100_000)),
        ("zeros", vec![0; 4096]),
        ("http", b"GET / HTTP/1.1\r\nHost: backup\r\n\r\n".to_vec()),
        ("a cut greeting", right[..right.len() / 2].to_vec()),
        ("a cut header", right[..11].to_vec()),
        ("a damaged greeting", changed(&|bytes| bytes[40] ^= 1)),
        ("an oversized greeting", changed(&|bytes| bytes[16..20].fill(0xff))),
        ("another version", changed(&|bytes| bytes[4] ^= 0x20)),
        ("another protocol", changed(&|bytes| bytes[..4].copy_from_slice(b"LKDS"))),
        ("a greeting that is not the first frame", frame(1, 3, &[0; 30])),
        ("a greeting without content", frame(1, 0, &[])),
        ("a greeting of noise", frame(1, 0, &Noise(5).bytes(300))),
        ("a greeting of 64 KiB and one", frame(1, 0, &vec![1; (64 << 10) + 1])),
        ("an ack", message(&Message::Ack(Ack { received: 1, executed: 1 }))),
        ("a goodbye", message(&Message::Goodbye { reason: "x".repeat(60_000) })),
        ("an unknown message", frame(200, 0, &[1, 2, 3])),
        ("another machine", with(&|config| config.memory_bytes = 1 << 20)),
        ("a name to steer terminals", with(&|config| config.vm = "\u{1b}[2J\u{7}\nvm0".into())),
        ("a command line as long as a message", with(&|config| config.command_line = "\n".repeat(65_000))),
        ("a generation that nobody won", [right.clone(), begin(77)].concat()),
        ("generation 0", [right.clone(), begin(0)].concat()),
        ("the last of generations", [right.clone(), frame(10, 1, &[253; 9])].concat()),
        ("a wait without end", [right.clone(), frame(9, 1, &[])].concat()),
        ("entries before the pair began", [right.clone(), frame(4, 1, &[1, 0, 0, 0])].concat()),
        ("a second greeting", [right.clone(), frame(1, 1, &right[24..])].concat()),
        ("heartbeats without a pause", policy(&|policy| policy.heartbeat_ms = 0)),
        ("a timeout beyond numbers", policy(&|policy| policy.timeout_ms = u64::MAX)),
        ("a lag beyond numbers", policy(&|policy| policy.lag_target_ms = u64::MAX / 2)),
        ("digests beyond numbers", policy(&|policy| policy.digest_ms = u64::MAX)),
        ("a timeout below the heartbeat", policy(&|policy| policy.timeout_ms = 10)),
        ("a greeting replayed", right.clone()),
    ]
}

/// None of them costs the backup its life or its place: the right primary is still welcome.
#[test]
fn bad_greetings_leave_the_backup_to_its_primary() {
    let Some(mut pair) = Pair::services("bad_greetings", |_| {}) else { return };
    pair.start_backup().unwrap();
    let address = pair.backup_address().to_string();
    for _ in 0..scale() {
        for (what, bytes) in greetings() {
            for end in [End::Fin, End::Reset] {
                throw(&address, &bytes, end);
                assert!(!pair.has_ended(Part::Backup), "{what}, {end:?}: {}", pair.log_text(Part::Backup));
            }
        }
    }
    // Somebody who says nothing at all is still connected when the primary comes.
    let _silent = TcpStream::connect(&address).unwrap();
    pair.start_primary().unwrap();
    pair.wait_for_guest().unwrap();
    pair.wait_for_state(Part::Primary, "Replicating");
    let log = pair.log_text(Part::Backup);
    assert!(log.contains("memory size: 64 MiB here, 1 MiB there"), "{log}");
    assert!(!log.contains('\u{7}') && !log.contains("\u{1b}[2J"), "{log:?}");
    let load = Load::start(pair.port(), 4);
    load.wait_for(100);
    pair.kill(Part::Primary).unwrap();
    load.wait_for(100);
    pair.assert_one_live(Part::Backup, 2);
    load.stop().assert_unbroken().check(pair.port());
}

/// What a backup makes of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It stops: this is not its machine's log.
    Diverges,
    /// The channel is of no use any more; what came before is a good log, and it goes on from there.
    GoesLive,
    /// What came before was a good log, and what the guest then does is the guest's affair.
    GuestsAffair,
}

/// What a primary sends after the handshake.
enum Script {
    /// These entries, as a sender would frame them.
    Entries(Vec<LogEntry>),
    /// These frames.
    Frames(Vec<Vec<u8>>),
}

fn at_start(events: Vec<Event>) -> Script {
    Script::Entries(entries(1, 0, events))
}

fn clock(now_ns: u64) -> Event {
    Event::Clock { now_ns }
}

/// A batch by hand: every number may be wrong.
fn batch(first: u64, released: u64, base: u64, entries: u64, rest: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for mut value in [first, released, base, entries] {
        while value >= 0x80 {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
    }
    bytes.extend_from_slice(rest);
    bytes
}

const ENTRIES: u8 = 4;
const ACK: u8 = 5;
/// A Clock entry at the position before, to 5 ns.
const CLOCK_5: [u8; 3] = [0, 3, 5];

fn inputs() -> Vec<(&'static str, Script, Verdict)> {
    use Verdict::{Diverges, GuestsAffair};
    let digest = MachineDigest { registers: 1, devices: 2, memory: 3 };
    let output = Event::Output { kind: OutputKind::Net, digest: [7; 8] };
    let done = |data: usize| Event::DiskDone { request: 1, status: DiskStatus::Ok, data: vec![0; data] };
    let read = Event::DiskRead { request: 1, offset: 0, len: 512, digest: [7; 8] };
    let trap = Event::Trap { instruction: TrapKind::Random, value: 1 };
    let point = Some(Point { rip: 1, rcx: 2, registers: 3 });
    let pointed = LogEntry { seq: 1, at: Position { count: 0, point }, event: clock(5) };
    let far = LogEntry { seq: 1, at: Position::at(u64::MAX), event: clock(5) };
    vec![
        ("the end of time", at_start(vec![clock(u64::MAX)]), GuestsAffair),
        ("time that goes back", at_start(vec![clock(10), clock(9)]), Diverges),
        ("an empty frame", at_start(vec![Event::NetRx(Vec::new())]), GuestsAffair),
        ("a frame of 3 MiB", at_start(vec![Event::NetRx(vec![0xff; 3 << 20])]), GuestsAffair),
        ("console input without end", at_start(vec![Event::ConsoleRx(vec![b'x'; 1 << 20])]), Diverges),
        ("a disk request nobody made", at_start(vec![done(512)]), Diverges),
        ("a read without data that nobody agreed on", at_start(vec![read]), Diverges),
        ("a trap", at_start(vec![trap]), Diverges),
        ("an output nobody made", at_start(vec![output]), Diverges),
        ("another machine's digest", at_start(vec![Event::Digest(digest)]), Diverges),
        ("a generation nobody won", at_start(vec![Event::GoLive { generation: u64::MAX }]), GuestsAffair),
        ("input after the end", at_start(vec![Event::Shutdown, clock(5)]), Diverges),
        ("a reset, and a clock", at_start(vec![Event::Reset, clock(5)]), Diverges),
        ("a point where none can be", Script::Entries(vec![pointed]), Diverges),
        ("the end of positions", Script::Entries(vec![far]), Diverges),
        ("a flood", at_start((1..200_000).map(clock).collect()), GuestsAffair),
    ]
}

fn frames() -> Vec<(&'static str, Script, Verdict)> {
    use Verdict::GoesLive;
    let frames = |frames: &[(u8, Vec<u8>)]| {
        // The greeting was frame 0, the beginning frame 1.
        let numbered = frames.iter().zip(2..).map(|((kind, payload), number)| frame(*kind, number, payload));
        Script::Frames(numbered.collect())
    };
    let one = || (ENTRIES, batch(1, 0, 0, 1, &CLOCK_5));
    let broken = |name, bytes: Vec<u8>| (name, frames(&[one(), (ENTRIES, bytes)]), GoesLive);
    let flipped = |at: usize| {
        let mut bytes = frame(ENTRIES, 2, &one().1);
        bytes[at] ^= 0x40;
        Script::Frames(vec![bytes])
    };
    vec![
        broken("a gap", batch(3, 0, 0, 1, &CLOCK_5)),
        broken("a repetition", batch(1, 0, 0, 1, &CLOCK_5)),
        broken("another base", batch(2, 0, 9, 1, &CLOCK_5)),
        broken("released and not acked", batch(9, 8, 0, 0, &[])),
        broken("more entries than a batch has", batch(2, 0, 0, 1 << 40, &CLOCK_5)),
        broken("fewer entries than bytes", batch(2, 0, 0, 1, &[0, 3, 5, 0, 3, 6])),
        broken("a number that does not end", vec![0xff; 40]),
        broken("an unknown event", batch(2, 0, 0, 1, &[0, 99])),
        broken("noise", Noise(11).bytes(4000)),
        broken(
            "a length beyond the frame",
            batch(2, 0, 0, 1, &[0, 0, 253, 255, 255, 255, 255, 255, 255, 255, 127]),
        ),
        ("an ack", frames(&[one(), (ACK, vec![1, 1])]), GoesLive),
        ("a frame repeated", Script::Frames(vec![frame(ENTRIES, 2, &one().1); 2]), GoesLive),
        ("a damaged frame", flipped(26), GoesLive),
        ("another version", flipped(4), GoesLive),
        ("a beginning again", frames(&[one(), (10, vec![1])]), GoesLive),
        ("a wait", frames(&[one(), (9, vec![])]), GoesLive),
        ("an oversized frame", flipped(19), GoesLive),
        ("a cut frame", Script::Frames(vec![frame(ENTRIES, 2, &one().1)[..20].to_vec()]), GoesLive),
    ]
}

/// Meets a fresh backup with a script, as the primary that won the machine's next generation.
fn play(pair: &mut Pair, name: &str, script: Script, verdict: Verdict) {
    pair.start_backup().unwrap();
    let (generation, disk) = crafted::win(pair, VM);
    let mut channel = connect(pair.backup_address(), &hello(pair_config(&MACHINE)), generation).unwrap();
    perform(&mut channel, script);
    if verdict == Verdict::Diverges {
        let code = pair.exit_code(Part::Backup);
        assert_eq!(code, DIVERGED, "{name}: {}", pair.log_text(Part::Backup));
        return;
    }
    drop(channel);
    drop(disk);
    match verdict {
        Verdict::GoesLive => {
            pair.wait_for_state(Part::Backup, "Alone");
            pair.wait_for_guest().unwrap();
            assert_eq!(pair.holding().holding.generation, generation + 1, "{name}");
            pair.kill(Part::Backup).unwrap();
        }
        Verdict::GuestsAffair => {
            wait_until("the backup to go live or end", || {
                pair.has_ended(Part::Backup) || pair.holding().holding.generation > generation
            });
            match pair.has_ended(Part::Backup) {
                true => drop(pair.exit_code(Part::Backup)),
                false => pair.kill(Part::Backup).unwrap(),
            }
        }
        Verdict::Diverges => unreachable!("seen above"),
    }
    let log = pair.log_text(Part::Backup);
    assert!(!log.contains("panicked"), "{name}: {log}");
}

fn perform(channel: &mut Channel, script: Script) {
    match script {
        Script::Entries(entries) => {
            for part in entries.chunks(10_000) {
                let batch = Batch { first: part[0].seq, released: 0, base: 0, entries: part.to_vec() };
                if !channel.send(&Message::Entries(batch)) {
                    return;
                }
            }
        }
        Script::Frames(frames) => {
            for bytes in frames {
                if channel.writer.write_all(&bytes).is_err() {
                    return;
                }
            }
        }
    }
}

#[test]
fn inputs_that_cannot_be_stop_the_backup_or_harm_nobody() {
    let Some(mut pair) = Pair::services("inputs_that_cannot_be", |_| {}) else { return };
    for (name, script, verdict) in inputs() {
        play(&mut pair, name, script, verdict);
    }
}

#[test]
fn frames_that_break_the_rules_end_the_channel_and_the_backup_goes_live() {
    let Some(mut pair) = Pair::services("frames_that_break_the_rules", |_| {}) else { return };
    for (name, script, verdict) in frames() {
        play(&mut pair, name, script, verdict);
    }
}

/// Batches of noise, from seeds: whatever they decode to, no panic.
#[test]
fn noise_as_entries_never_panics() {
    let Some(mut pair) = Pair::services("noise_as_entries", |_| {}) else { return };
    for seed in 1..=8 * scale() as u64 {
        let mut noise = Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut bytes = Vec::new();
        let count = 40;
        for _ in 0..count {
            let length = noise.next() as usize % 12;
            bytes.extend([0, noise.next() as u8 % 11]);
            bytes.extend(noise.bytes(length));
        }
        let script = Script::Frames(vec![frame(ENTRIES, 2, &batch(1, 0, 0, count, &bytes))]);
        eprintln!("seed {seed}");
        play(&mut pair, &format!("seed {seed}"), script, Verdict::GuestsAffair);
    }
}

/// Goodbye is the last word, also of a primary that goes on talking while the backup is still busy with what
/// came before: digests of the whole machine, which take their time.
#[test]
fn what_follows_a_goodbye_is_not_heard() {
    const DIGESTS: u64 = 100;
    let Some(mut pair) = Pair::services("what_follows_a_goodbye", |_| {}) else { return };
    pair.start_backup().unwrap();
    let (generation, _disk) = crafted::win(&pair, VM);
    let digest = Event::Digest(crafted::first_digest(&MACHINE));
    let mut channel = connect(pair.backup_address(), &hello(pair_config(&MACHINE)), generation).unwrap();
    let digests = entries(1, 0, vec![digest; DIGESTS as usize]);
    perform(&mut channel, Script::Entries(digests));
    assert!(channel.send(&Message::Goodbye { reason: "the guest ended".into() }));
    // A backup that listened on would believe to have executed what it never received.
    for seq in DIGESTS + 1..=DIGESTS + 50 {
        perform(&mut channel, Script::Entries(entries(seq, 0, vec![clock(5)])));
        if pair.status(Part::Backup).is_err() {
            break;
        }
    }
    assert_eq!(pair.exit_code(Part::Backup), 0, "{}", pair.log_text(Part::Backup));
    assert_eq!(pair.holding().holding.generation, generation, "nobody takes a machine over that ended");
}
