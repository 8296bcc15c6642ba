//! Both ends of a channel, joined by bytes in memory.
#![allow(clippy::unwrap_used)]

mod common;

use logchannel::batch::MAX_ENTRY_LEN;
use logchannel::buffer::KindCount;
use logchannel::endpoint::ChannelError;
use logchannel::frame::{FrameWriter, HEADER_LEN};
use logchannel::message::{Batch, CHANNEL, DiskReach, MessageError, kind};
use logchannel::sender::FLUSH_BYTES;
use logchannel::*;
use proptest::prelude::*;

const BOOT: LogStart = LogStart { seq: 0, count: 0 };

fn sender() -> Sender {
    Sender::new(Endpoint::new(), Limits::default(), BOOT)
}

fn receiver() -> Receiver {
    Receiver::new(Endpoint::new(), BOOT)
}

fn entry(seq: Seq, count: u64, event: Event) -> LogEntry {
    LogEntry { seq, at: Position::at(count), event }
}

fn output(seq: Seq, count: u64) -> LogEntry {
    entry(seq, count, Event::Output { kind: OutputKind::Net, digest: [0xee; 8] })
}

/// The bytes of one flush of these entries.
fn flushed(entries: &[LogEntry]) -> Vec<u8> {
    let (mut sender, mut bytes) = (sender(), Vec::new());
    entries.iter().for_each(|entry| sender.append(entry).unwrap());
    sender.flush(0, &mut bytes);
    bytes
}

#[test]
fn entries_of_every_kind_arrive_and_are_acknowledged() {
    let entries = common::every_kind();
    let (mut sender, mut receiver) = (sender(), receiver());
    let (mut wire, mut got) = (Vec::new(), Vec::new());
    for entry in &entries {
        sender.append(entry).unwrap();
    }
    assert_eq!(sender.flush(0, &mut wire), wire.len());
    assert_eq!(receiver.on_bytes(&wire, &mut got).unwrap().entries, entries.len());
    assert_eq!(got, entries);

    let mut acks = Vec::new();
    assert!(receiver.ack(5, &mut acks));
    assert!(!receiver.ack(5, &mut acks), "no news, no bytes");
    let from = sender.on_bytes(&acks).unwrap();
    let last = entries.len() as u64;
    assert_eq!(from.ack, Some(Ack { received: last, executed: 5 }));
    assert_eq!((sender.acked(), sender.executed(), sender.buffer().len()), (last, 5, 0));
    assert_eq!(sender.buffer().bytes(), 0);

    wire.clear();
    assert_eq!(sender.flush(last, &mut wire), 0, "nothing to carry the watermark");
    assert!(sender.flush_released(last, &mut wire) > 0);
    assert_eq!(sender.flush_released(last, &mut wire), 0, "told once");
    receiver.on_bytes(&wire, &mut got).unwrap();
    assert_eq!(receiver.released(), last);
    assert_eq!(got.len(), entries.len());
}

#[test]
fn entries_are_small() {
    let size = |before: &[LogEntry], entry: LogEntry| {
        let all = [before, std::slice::from_ref(&entry)].concat();
        let mut sender = sender();
        before.iter().for_each(|entry| sender.append(entry).unwrap());
        let start = sender.buffer().pending_bytes();
        sender.append(&all[before.len()]).unwrap();
        sender.buffer().pending_bytes() - start
    };
    let near = [output(1, 1000)];
    assert_eq!(size(&near, output(2, 1063)), 11, "an output within 63 counts");
    assert_eq!(size(&near, output(2, 9191)), 12, "an output within 8,191 counts");
    for len in [0, 60, 100, 1514] {
        assert!(size(&near, entry(2, 1063, Event::NetRx(vec![1; len]))) <= len + 5, "frame of {len}");
    }
    assert!(size(&near, entry(2, 1001, Event::Clock { now_ns: 3_600_000_000_000 })) <= 11);

    // A whole batch with one output, as an idle guest sends it, an hour into its life.
    let mut sender =
        Sender::new(Endpoint::new(), Limits::default(), LogStart { seq: 90_000, count: 400_000 });
    let mut bytes = Vec::new();
    sender.append(&output(90_001, 400_002)).unwrap();
    sender.flush(90_000, &mut bytes);
    assert_eq!(bytes.len(), HEADER_LEN + 10 + 11);

    // The example in the README.
    let mut sender = Sender::new(Endpoint::new(), Limits::default(), LogStart { seq: 3, count: 9 });
    bytes.clear();
    sender.append(&entry(4, 11, Event::Output { kind: OutputKind::Net, digest: *b"lockstep" })).unwrap();
    sender.flush(3, &mut bytes);
    assert_eq!(bytes[HEADER_LEN..], *b"\x04\x03\x09\x01\x04\x05\x00lockstep");
}

#[test]
fn large_logs_are_split_into_frames_at_entries() {
    let entries: Vec<_> = (1..=100).map(|i| entry(i, i, Event::NetRx(vec![i as u8; 60_000]))).collect();
    let (mut sender, mut bytes, mut got) = (sender(), Vec::new(), Vec::new());
    entries.iter().for_each(|entry| sender.append(entry).unwrap());
    assert!(sender.should_flush() && sender.buffer().pending_bytes() > FLUSH_BYTES);
    sender.flush(0, &mut bytes);
    assert_eq!(sender.stats().frames, 25, "four of these fit a batch");
    assert_eq!(sender.stats().wire_bytes, bytes.len() as u64);
    let total = sender.stats().total();
    assert_eq!(total.entries, 100);
    assert_eq!(sender.stats().by_kind().collect::<Vec<_>>(), [(EventKind::NetRx, total)]);
    assert_eq!(sender.stats().of(EventKind::Clock), KindCount::default());
    receiver().on_bytes(&bytes, &mut got).unwrap();
    assert_eq!(got, entries);
}

#[test]
fn a_read_without_its_data_is_small() {
    let digest = data_digest(&[0; 131_072]);
    let read = Event::DiskRead { request: 70_000, offset: 1 << 31, len: 131_072, digest };
    let mut sender = sender();
    sender.append(&entry(1, 100, read)).unwrap();
    assert_eq!(sender.buffer().bytes(), 26);
}

#[test]
fn entries_that_came_may_be_acknowledged_one_after_the_other() {
    let entries = common::every_kind();
    let mut receiver = receiver();
    let (mut sender, mut wire, mut acks, mut got) = (sender(), Vec::new(), Vec::new(), Vec::new());
    entries.iter().for_each(|entry| sender.append(entry).unwrap());
    sender.flush(0, &mut wire);
    receiver.on_bytes(&wire, &mut got).unwrap();
    assert!(receiver.ack_up_to(3, 0, &mut acks));
    assert!(!receiver.ack_up_to(3, 0, &mut acks), "no news, no bytes");
    assert_eq!(sender.on_bytes(&acks).unwrap().ack, Some(Ack { received: 3, executed: 0 }));
    acks.clear();
    assert!(receiver.ack_up_to(13, 3, &mut acks));
    assert_eq!(sender.on_bytes(&acks).unwrap().ack, Some(Ack { received: 13, executed: 3 }));
}

#[test]
#[should_panic(expected = "acks 2, 1 came")]
fn what_did_not_come_is_not_acknowledged() {
    let mut receiver = receiver();
    receiver.on_bytes(&flushed(&[output(1, 1)]), &mut Vec::new()).unwrap();
    receiver.ack_up_to(2, 0, &mut Vec::new());
}

#[test]
fn an_entry_that_fits_no_frame_is_refused_and_leaves_the_sender_as_it_was() {
    let (mut sender, mut bytes, mut got) = (sender(), Vec::new(), Vec::new());
    let fits = |len| entry(1, 1, Event::DiskDone { request: 1, status: DiskStatus::Ok, data: vec![7; len] });
    let error = sender.append(&fits(MAX_ENTRY_LEN)).unwrap_err();
    assert!(error.to_string().contains("let the device make smaller requests"), "{error}");
    let largest = fits(MAX_ENTRY_LEN - 9);
    sender.append(&largest).unwrap();
    sender.flush(0, &mut bytes);
    receiver().on_bytes(&bytes, &mut got).unwrap();
    assert_eq!(got, [largest]);
}

#[test]
fn a_full_send_buffer_says_so_until_acks_come() {
    let limits = Limits { entries: 10, bytes: 1000 };
    let mut sender = Sender::new(Endpoint::new(), limits, BOOT);
    let mut receiver = receiver();
    let (mut wire, mut acks, mut got) = (Vec::new(), Vec::new(), Vec::new());
    for seq in 1..=10 {
        assert!(!sender.is_full());
        sender.append(&output(seq, seq)).unwrap();
    }
    assert!(sender.is_full(), "by entries");
    sender.flush(0, &mut wire);
    assert!(sender.is_full(), "sent is not acknowledged");
    receiver.on_bytes(&wire, &mut got).unwrap();
    receiver.ack(0, &mut acks);
    sender.on_bytes(&acks).unwrap();
    assert!(!sender.is_full());
    sender.append(&entry(11, 11, Event::NetRx(vec![0; 1000]))).unwrap();
    assert!(sender.is_full(), "by bytes");
}

#[test]
fn a_full_receive_queue_says_so_until_entries_are_taken() {
    let mut queue = ReceiveQueue::new(Limits { entries: 3, bytes: 1 << 20 }, BOOT);
    let mut entries = common::every_kind();
    let last = entries.len() as u64;
    queue.push_all(&mut entries);
    assert!(entries.is_empty() && queue.is_full());
    while queue.is_full() {
        assert_eq!(queue.front().map(|entry| entry.seq), Some(queue.taken() + 1));
        queue.pop().unwrap();
    }
    assert_eq!((queue.len(), queue.taken(), queue.received()), (2, last - 2, last));
    queue.pop();
    queue.pop();
    assert_eq!((queue.pop(), queue.bytes()), (None, 0));

    let mut queue = ReceiveQueue::new(Limits { entries: 100, bytes: 4000 }, BOOT);
    queue.push(entry(1, 1, Event::NetRx(vec![0; 4000])));
    assert!(queue.is_full());
}

#[test]
#[should_panic(expected = "received entries are consecutive")]
fn a_receive_queue_has_no_gaps() {
    ReceiveQueue::new(Limits::default(), BOOT).push(output(2, 2));
}

#[test]
#[should_panic(expected = "log entries are consecutive")]
fn a_sender_has_no_repeats() {
    let mut sender = sender();
    sender.append(&output(1, 1)).unwrap();
    let _ = sender.append(&output(1, 1));
}

#[test]
#[should_panic(expected = "positions never decrease")]
fn a_senders_positions_do_not_decrease() {
    let mut sender = sender();
    sender.append(&output(1, 2)).unwrap();
    let _ = sender.append(&output(2, 1));
}

#[test]
#[should_panic(expected = "the Output Rule")]
fn a_sender_does_not_release_what_is_not_acknowledged() {
    let mut sender = sender();
    sender.append(&output(1, 1)).unwrap();
    sender.flush(1, &mut Vec::new());
}

#[test]
fn a_backup_that_acknowledges_nonsense_is_an_error() {
    let ack = |received, executed| {
        let mut bytes = Vec::new();
        let message = Message::Ack(Ack { received, executed });
        Endpoint::new().send(&message, &mut bytes).unwrap();
        let mut sender = sender();
        (1..=9).for_each(|seq| sender.append(&output(seq, seq)).unwrap());
        sender.flush(0, &mut Vec::new());
        sender.append(&output(10, 10)).unwrap();
        sender.on_bytes(&bytes)
    };
    assert!(ack(9, 9).is_ok());
    let error = ack(10, 0).unwrap_err();
    assert_eq!(error.to_string(), "the backup acknowledged entry 10, but only 9 was sent");
    let error = ack(4, 5).unwrap_err();
    assert_eq!(error.to_string(), "the backup executed entry 5, but received only 4");

    let (mut sender, mut endpoint, mut bytes) = (sender(), Endpoint::new(), Vec::new());
    (1..=9).for_each(|seq| sender.append(&output(seq, seq)).unwrap());
    sender.flush(0, &mut Vec::new());
    for (received, executed) in [(6, 3), (5, 3)] {
        endpoint.send(&Message::Ack(Ack { received, executed }), &mut bytes).unwrap();
    }
    let error = sender.on_bytes(&bytes).unwrap_err();
    assert_eq!(error.to_string(), "the backup's received watermark went back from 6 to 5");
}

fn batch(first: Seq, released: Seq, base: u64, entries: &[LogEntry]) -> Message {
    Message::Entries(Batch { first, released, base, entries: entries.to_vec() })
}

#[test]
fn a_primary_that_sends_nonsense_is_an_error() {
    let receive = |messages: &[Message]| {
        let (mut endpoint, mut bytes, mut got) = (Endpoint::new(), Vec::new(), Vec::new());
        messages.iter().for_each(|message| endpoint.send(message, &mut bytes).unwrap());
        let result = receiver().on_bytes(&bytes, &mut got);
        (got.len(), result.map(|_| ()).map_err(|error| error.to_string()))
    };
    let one = batch(1, 0, 0, &[output(1, 7)]);
    assert_eq!(receive(&[one.clone(), batch(2, 0, 7, &[output(2, 7)])]), (2, Ok(())));

    let missing = "log entries from 3 where entry 2 is due: entries are missing";
    assert_eq!(receive(&[one.clone(), batch(3, 0, 7, &[output(3, 7)])]), (1, Err(missing.into())));
    let repeated = "log entries from 1 where entry 2 is due: entries are repeated";
    assert_eq!(receive(&[one.clone(), one.clone()]), (1, Err(repeated.into())));
    let base = "entry 2 is counted from position 6, but the entry before is at 7";
    assert_eq!(receive(&[one.clone(), batch(2, 0, 6, &[output(2, 7)])]), (1, Err(base.into())));
    let rule = "the primary released outputs up to entry 1, but only 0 was acknowledged";
    assert_eq!(receive(&[one.clone(), batch(2, 1, 7, &[output(2, 7)])]), (1, Err(rule.into())));
    let role = "the peer sent Ack where Entries is due";
    assert_eq!(receive(&[one, Message::Ack(Ack::default())]), (1, Err(role.into())));
}

/// A payload from varints and raw bytes.
fn payload(varints: &[u64], tail: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for &(mut value) in varints {
        while value >= 0x80 {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
    }
    bytes.extend_from_slice(tail);
    bytes
}

#[test]
fn hostile_batches_are_refused_and_say_why() {
    // The events Shutdown and Reset take one byte each: 7 and 8.
    let refused = |varints: &[u64], tail: &[u8]| {
        let mut bytes = Vec::new();
        FrameWriter::new(CHANNEL).write(kind::ENTRIES, &payload(varints, tail), &mut bytes);
        let (mut receiver, mut got) = (receiver(), vec![output(77, 7)]);
        let error = receiver.on_bytes(&bytes, &mut got).unwrap_err();
        assert_eq!(got.len(), 1, "nothing of a bad batch is handed out");
        assert_eq!(receiver.received(), 0);
        assert!(matches!(error, ChannelError::Message(MessageError::Batch(_))), "{error}");
        error.to_string().replace("Entries message: ", "")
    };
    assert_eq!(refused(&[], &[]), "a batch of log entries without a valid head (first sequence number)");
    assert_eq!(refused(&[1, 0], &[0x80; 12]), "a batch of log entries without a valid head (base count)");
    assert!(refused(&[0, 0, 0, 0], &[]).contains("sequence numbers begin at 1"));
    assert_eq!(refused(&[1, 0, 0, 65_537], &[]), "a batch of 65537 log entries, 65536 allowed");
    let last = refused(&[u64::MAX, 0, 0, 1], &[0, 7]);
    assert_eq!(last, "a batch of 1 log entries from 18446744073709551615: sequence numbers overflow");
    assert_eq!(refused(&[5, 5, 0, 0], &[]), "released up to entry 5, but the batch begins with entry 5");
    assert_eq!(refused(&[1, 0, 0, 2], &[0, 7]), "the batch ends within entry 2");
    assert_eq!(refused(&[1, 0, 0, 65_536], &[0, 7]), "the batch ends within entry 2");
    assert_eq!(refused(&[1, 0, 0, 1], &[0x80]), "the batch ends within entry 1");
    assert_eq!(refused(&[1, 0, 0, 1], &[0, 7, 8]), "1 bytes after the last of 1 log entries");
    let far = refused(&[1, 0, u64::MAX, 1], &[2, 7]);
    assert_eq!(far, "entry 1: position 18446744073709551615 + 1 overflows");
    assert!(refused(&[1, 0, 0, 1], &[0, 99]).starts_with("entry 1: cannot decode"));
    // A NetRx that claims 4 GiB, one that claims more than comes, and a cut-off point.
    assert!(refused(&[1, 0, 0, 1], &[0, 0, 252, 255, 255, 255, 255]).starts_with("entry 1: cannot decode"));
    assert!(refused(&[1, 0, 0, 1], &[0, 0, 200, 1, 2]).starts_with("entry 1: cannot decode"));
    assert!(refused(&[1, 0, 0, 1], &[1, 253, 0]).starts_with("entry 1: cannot decode"));
}

#[test]
fn control_messages_round_trip_and_are_bounded() {
    let hello = Hello {
        config: common::config(),
        policy: Policy { virtual_clock: true, ..Policy::default() },
        claimant: u128::MAX,
        heartbeat_port: 7701,
        transfer: true,
        backup_reads: true,
    };
    let mismatch = Mismatch { field: pair::Field::Memory, ours: "64 MiB".into(), theirs: "1 GiB".into() };
    let messages = [
        Message::Hello(Box::new(hello.clone())),
        Message::Welcome(Welcome { claimant: 5, heartbeat_port: 7702 }),
        Message::Refuse(Refusal::Mismatch(mismatch)),
        Message::Refuse(Refusal::Other("another primary is here".into())),
        Message::Preparing,
        Message::Begin(message::Begin { generation: 3 }),
        Message::Begun,
        Message::Ack(Ack { received: u64::MAX, executed: 1 }),
        Message::Goodbye { reason: "the guest powered off".into() },
        Message::AskDisk { number: u64::MAX },
        Message::DiskReach(DiskReach { number: 7, reaches: true }),
        batch(1, 0, 0, &common::every_kind()),
        batch(9, 8, 7, &[]),
    ];
    let (mut from, mut to, mut bytes) = (Endpoint::new(), Endpoint::new(), Vec::new());
    messages.iter().for_each(|message| from.send(message, &mut bytes).unwrap());
    to.push(&bytes);
    for message in messages {
        assert_eq!(to.next_message().unwrap(), Some(message));
    }
    assert_eq!(to.next_message().unwrap(), None);

    let mut long = hello;
    long.config.command_line = "x".repeat(65_536);
    let before = bytes.len();
    let error = from.send(&Message::Hello(Box::new(long)), &mut bytes).unwrap_err();
    assert!(error.to_string().contains("65536 allowed"), "{error}");
    assert_eq!(bytes.len(), before);
    let error = Message::decode(kind::GOODBYE, &[0; 65_537]).unwrap_err();
    assert_eq!(error.to_string(), "Goodbye message of 65537 bytes, 65536 allowed");
    let error = Message::decode(99, &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "logging channel message of unknown kind 99: run the same lockstep on both"
    );
}

#[test]
fn a_peers_text_cannot_steer_a_terminal() {
    let (mut from, mut bytes) = (Endpoint::new(), Vec::new());
    from.send(&Message::Goodbye { reason: "\x1b[2Jbye\n".repeat(1000) }, &mut bytes).unwrap();
    let reason = sender().on_bytes(&bytes).unwrap().goodbye.unwrap();
    assert!(!reason.chars().any(char::is_control));
    assert_eq!(reason.chars().count(), 4000);
}

#[test]
fn the_ack_reader_works_apart() {
    let (mut sender, mut receiver) = (sender(), receiver());
    let mut reader = sender.take_acks();
    let (mut wire, mut acks) = (Vec::new(), Vec::new());
    sender.append(&output(1, 1)).unwrap();
    sender.flush(0, &mut wire);
    receiver.on_bytes(&wire, &mut Vec::new()).unwrap();
    receiver.ack(1, &mut acks);
    receiver.goodbye("host maintenance", &mut acks).unwrap();
    let from = reader.on_bytes(&acks).unwrap();
    assert_eq!(from.goodbye.as_deref(), Some("host maintenance"));
    sender.on_ack(from.ack.unwrap()).unwrap();
    assert_eq!(sender.acked(), 1);
}

/// Valid streams with bytes changed, cut out, doubled: errors at most, never a panic, never a wrong entry.
#[test]
fn mutated_streams_never_pass_for_entries() {
    let entries = common::every_kind();
    let good = flushed(&entries);
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for _ in 0..50_000 {
        let mut bytes = good.clone();
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] = random(256) as u8,
                1 => bytes[at] ^= 1 << random(8),
                2 => drop(bytes.drain(at..(at + 1 + random(20)).min(bytes.len() - 1).max(at))),
                _ => {
                    let part = bytes[at..(at + random(20)).min(bytes.len())].to_vec();
                    bytes.splice(at..at, part);
                }
            }
        }
        let mut got = Vec::new();
        let _ = receiver().on_bytes(&bytes, &mut got);
        let _ = sender().on_bytes(&bytes);
        assert!(got.is_empty() || got == entries);
        // Behind the checksum: what a peer with a mistake of its own could send.
        let _ = Message::decode(kind::ENTRIES, &bytes[HEADER_LEN.min(bytes.len())..]);
    }
}

proptest! {
    #[test]
    fn any_log_round_trips(
        entries in common::log(100),
        cuts in proptest::collection::vec(1..3000usize, 1..20),
    ) {
        let bytes = flushed(&entries);
        let (mut receiver, mut got, mut rest) = (receiver(), Vec::new(), bytes.as_slice());
        for cut in cuts.iter().cycle() {
            let (chunk, after) = rest.split_at(rest.len().min(*cut));
            receiver.on_bytes(chunk, &mut got).unwrap();
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(receiver.received(), entries.len() as u64);
        prop_assert_eq!(got, entries);
    }

    #[test]
    fn random_payloads_of_every_kind_do_no_harm(
        kind in 0..20u8,
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        if let Ok(message) = Message::decode(kind, &bytes) {
            let mut out = Vec::new();
            let again = Endpoint::new().send(&message, &mut out);
            prop_assert!(again.is_ok());
        }
        let _ = Heartbeat::decode(&bytes);
    }

    /// A primary and a backup in any interleaving, over links that deliver any number of bytes at a time.
    #[test]
    fn any_interleaving_keeps_the_invariants(
        entries in common::log(60),
        steps in proptest::collection::vec((0..7u8, 1..400usize), 0..400),
    ) {
        let limits = Limits { entries: 8, bytes: 4000 };
        let mut sender = Sender::new(Endpoint::new(), limits, BOOT);
        let mut receiver = receiver();
        let mut queue = ReceiveQueue::new(limits, BOOT);
        let (mut wire, mut acks, mut batch) = (Vec::new(), Vec::new(), Vec::new());
        let (mut appended, mut executed, mut released) = (0, Vec::new(), 0);
        // After the random steps, enough of every kind to finish.
        let rest = (0..600).flat_map(|_| (0..7u8).map(|step| (step, 4000)));
        for (step, amount) in steps.into_iter().chain(rest) {
            match step {
                0 if !sender.is_full() && appended < entries.len() => {
                    sender.append(&entries[appended]).unwrap();
                    appended += 1;
                }
                1 => drop(sender.flush(released, &mut wire)),
                2 => drop(sender.flush_released(released, &mut wire)),
                3 if !queue.is_full() => {
                    let bytes: Vec<u8> = wire.drain(..amount.min(wire.len())).collect();
                    receiver.on_bytes(&bytes, &mut batch).unwrap();
                    queue.push_all(&mut batch);
                    receiver.ack(executed.len() as u64, &mut acks);
                }
                4 => {
                    let bytes: Vec<u8> = acks.drain(..amount.min(acks.len())).collect();
                    sender.on_bytes(&bytes).unwrap();
                }
                5 => executed.extend(queue.pop()),
                6 => released = sender.acked(),
                _ => {}
            }
            prop_assert!(sender.executed() <= sender.acked() && sender.acked() <= sender.sent());
            prop_assert!(receiver.released() <= receiver.acked().received);
            prop_assert_eq!(queue.taken(), executed.len() as u64);
            prop_assert!(sender.buffer().len() <= limits.entries);
            prop_assert!(queue.len() < 2 * limits.entries);
        }
        prop_assert_eq!(&executed, &entries);
        prop_assert_eq!(receiver.released(), entries.len() as u64);
        prop_assert!(sender.buffer().is_empty() && sender.buffer().bytes() == 0);
    }
}
