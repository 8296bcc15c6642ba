//! Frames on a stream, split anywhere, or no frames at all.

use proptest::prelude::*;

use super::*;

fn encode(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in frames {
        bytes.extend_from_slice(&(frame.len() as u32).to_be_bytes());
        bytes.extend_from_slice(frame);
    }
    bytes
}

fn decode(bytes: &[u8], mut pieces: impl Iterator<Item = usize>) -> Result<Vec<Vec<u8>>, WireError> {
    let mut decoder = FrameDecoder::new();
    let (mut frames, mut rest) = (Vec::new(), bytes);
    while !rest.is_empty() {
        let space = decoder.space();
        assert!(!space.is_empty());
        let count = pieces.next().unwrap_or(usize::MAX).clamp(1, space.len()).min(rest.len());
        space[..count].copy_from_slice(&rest[..count]);
        decoder.filled(count);
        rest = &rest[count..];
        while let Some(frame) = decoder.next_frame()? {
            frames.push(frame.to_vec());
        }
    }
    Ok(frames)
}

proptest! {
    #[test]
    fn frames_survive_any_split(
        lengths in proptest::collection::vec(MIN_FRAME_LEN..=MAX_FRAME_LEN, 0..150),
        pieces in proptest::collection::vec(1usize..5000, 1..50),
    ) {
        let frames: Vec<Vec<u8>> =
            lengths.iter().enumerate().map(|(i, &len)| vec![i as u8; len]).collect();
        let decoded = decode(&encode(&frames), pieces.into_iter().cycle()).unwrap();
        prop_assert_eq!(decoded, frames);
    }

    #[test]
    fn any_bytes_end_in_frames_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes, std::iter::repeat(7));
    }
}

#[test]
fn lengths_outside_the_limits_are_refused() {
    for length in [0u32, 13, 1519, 0x4745_5420, u32::MAX] {
        let error = decode(&length.to_be_bytes(), std::iter::empty()).unwrap_err();
        assert_eq!(error, WireError { length });
    }
}

#[test]
fn a_batch_gives_its_frames_back() {
    let mut batch = FrameBatch::default();
    assert!(batch.is_empty() && batch.get(0).is_none());
    batch.push(&[1; 14]);
    batch.push_with(60, |space| space.fill(2));
    assert_eq!(batch.iter().map(|f| (f.len(), f[0])).collect::<Vec<_>>(), [(14, 1), (60, 2)]);
    assert_eq!((batch.len(), batch.byte_len()), (2, 74));
    batch.clear();
    assert!(batch.is_empty() && batch.iter().next().is_none());
}
