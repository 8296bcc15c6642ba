//! Frames under attack: whatever is not the next frame is refused, and says why.
#![allow(clippy::unwrap_used)]

use logchannel::frame::{FrameError, FrameReader, FrameWriter, HEADER_LEN, Protocol};
use proptest::prelude::*;

const SMALL: Protocol = Protocol { name: "test", magic: *b"TEST", version: 3, max_payload: 2000 };

fn frames(payloads: &[&[u8]]) -> Vec<u8> {
    let mut writer = FrameWriter::new(SMALL);
    let mut bytes = Vec::new();
    for (kind, payload) in (1..).zip(payloads) {
        writer.write(kind, payload, &mut bytes);
    }
    bytes
}

/// Everything a reader makes of the bytes: frames, then the error if there is one.
fn read(bytes: &[u8]) -> (Vec<(u8, Vec<u8>)>, Option<FrameError>) {
    let mut reader = FrameReader::new(SMALL);
    reader.push(bytes);
    let mut found = Vec::new();
    loop {
        match reader.next_frame() {
            Ok(Some(frame)) => found.push((frame.kind, frame.payload)),
            Ok(None) => return (found, None),
            Err(error) => return (found, Some(error)),
        }
    }
}

#[test]
fn every_flipped_bit_is_refused() {
    let good = frames(&[b"first", b"second, a longer one"]);
    let first = HEADER_LEN + 5;
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        // A longer length makes the reader wait for more; it gets it, and then it must see.
        bad.resize(good.len() + SMALL.max_payload, 0);
        let (found, error) = read(&bad);
        assert_eq!(found.len(), usize::from(bit / 8 >= first), "bit {bit}: frames before the bad one");
        assert!(error.is_some(), "bit {bit} passed");
    }
}

#[test]
fn a_truncated_frame_waits_then_its_successor_shows_the_damage() {
    let good = frames(&[b"payload"]);
    for len in 0..good.len() {
        assert_eq!(read(&good[..len]), (vec![], None), "{len} bytes");
        let mut spliced = good[..len].to_vec();
        spliced.extend_from_slice(&good);
        let (found, error) = read(&spliced);
        match len {
            0 => assert_eq!((found.len(), error), (1, None)),
            _ => assert!(found.is_empty() && error.is_some(), "{len} bytes lost"),
        }
    }
}

#[test]
fn each_fault_has_its_own_error() {
    let good = frames(&[b"one", b"two"]);
    let second = HEADER_LEN + 3;

    let replayed = [&good[..second], &good[..second]].concat();
    let error = read(&replayed).1.expect("replayed");
    assert!(matches!(error, FrameError::Sequence { expected: 1, found: 0, .. }), "{error}");

    let error = read(&good[second..]).1.expect("the first is missing");
    assert!(matches!(error, FrameError::Sequence { expected: 0, found: 1, .. }), "{error}");

    let mut newer = good.clone();
    newer[4] = 4;
    let error = read(&newer).1.expect("version");
    assert_eq!(
        error.to_string(),
        "test version 4 from the peer, version 3 here: run the same lockstep on both"
    );

    let error = read(b"GET / HTTP/1.1\r\nHost: localhost\r\n").1.expect("garbage");
    assert!(matches!(error, FrameError::Magic { found, .. } if &found == b"GET "), "{error}");

    let mut long = good.clone();
    long[16..20].copy_from_slice(&2001u32.to_le_bytes());
    let error = read(&long[..HEADER_LEN]).1.expect("judged by the header alone");
    assert_eq!(error.to_string(), "test frame of 2001 bytes, 2000 allowed");

    let mut changed = good;
    changed[HEADER_LEN] ^= 1;
    let error = read(&changed).1.expect("damaged");
    assert!(error.to_string().starts_with("test frame 0 is damaged: CRC "), "{error}");
}

#[test]
#[should_panic(expected = "payload too long")]
fn a_writer_does_not_exceed_the_limit() {
    frames(&[&[0; 2001]]);
}

proptest! {
    #[test]
    fn any_chunks_give_the_same_frames(
        payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..20),
        cuts in proptest::collection::vec(1..100usize, 1..50),
    ) {
        let bytes = frames(&payloads.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let mut reader = FrameReader::new(SMALL);
        let mut rest = bytes.as_slice();
        let mut found = Vec::new();
        for cut in cuts.iter().cycle() {
            let (chunk, after) = rest.split_at(rest.len().min(*cut));
            reader.push(chunk);
            while let Some((_, payload)) = reader.next_payload().unwrap() {
                found.push(payload.to_vec());
            }
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(found, payloads);
        prop_assert!(reader.buffered().is_empty());
    }

    #[test]
    fn random_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 24..500)) {
        let (found, error) = read(&bytes);
        prop_assert!(found.is_empty() && error.is_some());
    }
}

#[test]
fn the_highest_number_is_one_like_any_other() {
    let mut bytes = frames(&[b"one"]);
    bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    bytes[20..24].fill(0);
    let crc = crc32fast::hash(&bytes);
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    let mut reader = FrameReader::starting_at(SMALL, u64::MAX);
    reader.push(&bytes);
    let frame = reader.next_frame().unwrap().expect("a frame");
    assert_eq!(frame.payload, b"one");
}
