//! Recordings: whole, torn, damaged, foreign; and the sample of every version.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Read;
use std::path::PathBuf;

use logchannel::file::{FileError, RecordingReader, RecordingWriter};
use logchannel::frame::HEADER_LEN;
use logchannel::*;
use proptest::prelude::*;

fn recorded(entries: &[LogEntry], flush_every: usize) -> Vec<u8> {
    let mut writer = RecordingWriter::new(Vec::new(), &common::config()).unwrap();
    for (i, entry) in entries.iter().enumerate() {
        writer.append(entry).unwrap();
        if (i + 1).is_multiple_of(flush_every) {
            writer.flush().unwrap();
        }
    }
    let (bytes, stats) = writer.finish().unwrap();
    assert_eq!(stats.total().entries, entries.len() as u64);
    bytes
}

/// Everything a reader makes of the bytes: entries, the error that ended them, whether it was whole.
fn replayed(bytes: &[u8]) -> (Vec<LogEntry>, Option<FileError>, bool) {
    let mut reader = match RecordingReader::new(bytes) {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), Some(error), false),
    };
    assert_eq!(reader.config(), &common::config());
    let mut entries = Vec::new();
    let mut failed = None;
    for entry in &mut reader {
        assert!(failed.is_none(), "nothing after an error");
        match entry {
            Ok(entry) => entries.push(entry),
            Err(error) => failed = Some(error),
        }
    }
    (entries, failed, reader.is_whole())
}

/// Offsets at which frames begin, and the end.
fn boundaries(bytes: &[u8]) -> Vec<usize> {
    let mut at = vec![0];
    while let Some(header) = bytes.get(at[at.len() - 1]..).filter(|rest| rest.len() >= HEADER_LEN) {
        let length = u32::from_le_bytes(header[16..20].try_into().unwrap()) as usize;
        at.push(at[at.len() - 1] + HEADER_LEN + length);
    }
    at
}

#[test]
fn a_recording_reads_back_whole() {
    let entries = common::every_kind();
    let (got, error, whole) = replayed(&recorded(&entries, 5));
    assert!(error.is_none() && whole);
    assert_eq!(got, entries);
    let (got, error, whole) = replayed(&recorded(&[], 1));
    assert!(got.is_empty() && error.is_none() && whole);
}

#[test]
fn a_file_is_made_once_and_read_by_path() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.lkl");
    let mut writer = RecordingWriter::create(&path, &common::config()).unwrap();
    let entries: Vec<_> = (1..=3000)
        .map(|seq| LogEntry { seq, at: Position::at(seq * 3), event: Event::NetRx(vec![seq as u8; 700]) })
        .collect();
    entries.iter().for_each(|entry| writer.append(entry).unwrap());
    let stats = writer.finish_durably().unwrap();
    assert!(stats.frames > 20, "it wrote as it went");
    let error = RecordingWriter::create(&path, &common::config()).unwrap_err();
    assert!(matches!(error, FileError::Create { .. }), "an old recording is not written over");
    let got: Result<Vec<_>, _> = RecordingReader::open(&path).unwrap().collect();
    assert_eq!(got.unwrap(), entries);
    let error = RecordingReader::open(&directory.path().join("none")).unwrap_err();
    assert!(matches!(error, FileError::Open { .. }));
}

#[test]
fn a_torn_tail_is_reported_and_everything_before_it_is_used() {
    let entries = common::every_kind();
    let bytes = recorded(&entries, 4);
    let at = boundaries(&bytes);
    assert_eq!(at.len(), 7, "start, four batches, end");
    for len in at[1]..bytes.len() {
        let frames = at.iter().filter(|&&end| end <= len).count() - 2;
        let (got, error, whole) = replayed(&bytes[..len]);
        assert_eq!(got, entries[..(4 * frames).min(entries.len())], "{len} bytes");
        assert!(!whole, "{len} bytes");
        assert_eq!(error.as_ref().is_some_and(FileError::is_torn), !at.contains(&len), "{len} bytes");
        if let Some(FileError::Torn { last, offset, bytes }) = error {
            assert_eq!((last, offset + bytes), (got.len() as u64, len as u64));
        }
    }
    for len in 0..at[1] {
        let (_, error, _) = replayed(&bytes[..len]);
        assert!(matches!(error, Some(FileError::NotARecording(_))), "{len} bytes");
    }
}

#[test]
fn a_tail_of_zeros_is_torn_too() {
    let entries = common::every_kind();
    let bytes = recorded(&entries, 4);
    let at = boundaries(&bytes);
    for (kept, zeros) in [(at[3], 100), (at[3] + 30, 4096), (at[3] + 3, 200_000), (at[4] - 1, 1)] {
        let mut torn = bytes[..kept].to_vec();
        torn.resize(kept + zeros, 0);
        let (got, error, _) = replayed(&torn);
        assert_eq!(got, entries[..8], "{kept} bytes kept");
        match error {
            Some(FileError::Torn { last: 8, offset, bytes }) => {
                assert_eq!((offset, offset + bytes), (at[3] as u64, torn.len() as u64));
            }
            other => panic!("{kept} bytes kept: {other:?}"),
        }
    }
}

#[test]
fn damage_in_the_middle_is_not_a_torn_tail() {
    let entries = common::every_kind();
    let bytes = recorded(&entries, 4);
    let at = boundaries(&bytes);
    for position in at[2]..at[3] {
        let mut bad = bytes.clone();
        bad[position] ^= 0x10;
        let (got, error, whole) = replayed(&bad);
        assert_eq!(got, entries[..4], "byte {position}");
        let error = error.expect("it was damaged");
        // A longer length makes the frame swallow the rest: nothing tells that from a torn one.
        let length = (at[2] + 16..at[2] + 20).contains(&position);
        assert!(!whole && (length || !error.is_torn()), "byte {position}: {error}");
    }
    let mut swapped = bytes[..at[2]].to_vec();
    swapped.extend_from_slice(&bytes[at[3]..]);
    let error = replayed(&swapped).1.unwrap().to_string();
    assert!(error.starts_with("the recording is damaged at offset"), "{error}");
    let more = [&bytes[..], b"more and more and more and more"].concat();
    assert!(matches!(replayed(&more).1, Some(FileError::Damaged { last: 15, .. })));
}

#[test]
fn foreign_files_are_told_apart() {
    let bytes = recorded(&[], 1);
    let mut newer = bytes.clone();
    newer[4] = LOG_VERSION as u8 + 1;
    let error = replayed(&newer).1.unwrap().to_string();
    let versions = format!("{}; this lockstep reads version {LOG_VERSION}", LOG_VERSION + 1);
    assert!(error.starts_with(&format!("a recording of log version {versions}")), "{error}");
    let error = replayed(&[0x7f; 100]).1.unwrap().to_string();
    assert!(error.starts_with("not a recording of lockstep: not a recording frame"), "{error}");
    let error = replayed(&[]).1.unwrap().to_string();
    assert_eq!(error, "not a recording of lockstep: it ends after 0 bytes");
}

fn sample_path(version: u16) -> PathBuf {
    let name = format!("recording-v{version}.lkl");
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[test]
fn samples_of_older_versions_are_refused_by_number() {
    for version in 1..LOG_VERSION {
        let error = RecordingReader::open(&sample_path(version)).unwrap_err().to_string();
        assert!(error.contains(&format!("a recording of log version {version};")), "{error}");
    }
}

#[test]
fn the_sample_of_this_version_still_reads() {
    let reader = RecordingReader::open(&sample_path(LOG_VERSION)).unwrap();
    assert_eq!(reader.config(), &common::config());
    let entries: Result<Vec<_>, _> = reader.collect();
    assert_eq!(entries.unwrap(), common::every_kind());
}

#[test]
fn this_version_still_writes_the_bytes_of_its_sample() {
    let mut sample = Vec::new();
    let mut file = std::fs::File::open(sample_path(LOG_VERSION)).expect("a sample of this version is kept");
    file.read_to_end(&mut sample).unwrap();
    assert!(
        recorded(&common::every_kind(), 4) == sample,
        "the format changed: raise LOG_VERSION, then keep a sample of the new version with\n\
         LOCKSTEP_KEEP_SAMPLE=1 cargo test -p logchannel --test recordings keep_a_sample"
    );
}

/// Writes the sample of a new version, when asked to. A sample that exists is never replaced.
#[test]
fn keep_a_sample() {
    if std::env::var_os("LOCKSTEP_KEEP_SAMPLE").is_none() {
        return;
    }
    let file = std::fs::File::create_new(sample_path(LOG_VERSION)).expect("no sample of this version yet");
    std::io::copy(&mut recorded(&common::every_kind(), 4).as_slice(), &mut &file).unwrap();
}

proptest! {
    #[test]
    fn any_log_round_trips(entries in common::log(60), flush_every in 1..20usize) {
        let (got, error, whole) = replayed(&recorded(&entries, flush_every));
        prop_assert!(error.is_none() && whole);
        prop_assert_eq!(got, entries);
    }

    #[test]
    fn random_files_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(RecordingReader::new(bytes.as_slice()).is_err());
    }

    #[test]
    fn changed_files_do_no_harm(
        changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..6),
        cut in any::<u16>(),
    ) {
        let entries = common::every_kind();
        let mut bytes = recorded(&entries, 4);
        let first = boundaries(&bytes)[1];
        for (at, to) in changes {
            let at = first + usize::from(at) % (bytes.len() - first);
            bytes[at] = to;
        }
        bytes.truncate(first + usize::from(cut) % (bytes.len() - first));
        let (got, _, whole) = replayed(&bytes);
        prop_assert!(!whole);
        prop_assert_eq!(&got, &entries[..got.len()]);
    }
}
