//! Files whole, torn, damaged and hostile, without a virtual machine.

use std::io::Write as _;
use std::path::PathBuf;

use devices::{Devices, DevicesConfig};
use logchannel::batch::{BatchEncoder, MAX_BATCH_ENTRIES};
use logchannel::frame::{FrameWriter, HEADER_LEN};
use logchannel::pair::PairConfig;
use logchannel::{Event, LOG_VERSION, LogEntry, LogStart, Position, codec};
use tempfile::TempDir;

use super::{Recording, Tail};
use crate::engine::CpuState;
use crate::machine::MachineState;
use crate::memory::{PAGE_BYTES, Ram};
use crate::random::Random;
use crate::recording::format::{Header, Index, RECORDING, RecordingError, kind};
use crate::recording::writer::{PageTracker, Writer};
use crate::restart::ResetState;

const RAM_BYTES: u64 = 4 << 20;

fn header() -> Header {
    Header {
        log_version: LOG_VERSION,
        lockstep: "1.2.3".into(),
        machine: PairConfig { vm: "vm0".into(), memory_bytes: RAM_BYTES, ..PairConfig::default() },
        devices: DevicesConfig::default(),
        files: vec![("kernel".into(), [7; 32])],
        virtual_clock: false,
        checkpoint_every_ns: 1,
    }
}

fn state(count: u64) -> MachineState {
    let devices = Devices::new(&DevicesConfig::default()).save();
    MachineState {
        cpu: CpuState { rip: count, ..CpuState::default() },
        at: Position::at(count),
        devices,
        halted: false,
        resets: ResetState::default(),
    }
}

/// What is written: entries and a checkpoint after every hundredth.
struct Written {
    bytes: Vec<u8>,
    entries: Vec<LogEntry>,
    /// Memory at each checkpoint.
    memories: Vec<Vec<u8>>,
}

fn write(entries: u64) -> Written {
    let mut random = Random::new(entries);
    let mut writer = Writer::new(Vec::new(), &header()).expect("a header");
    let mut tracker = PageTracker::default();
    let mut ram = vec![0; RAM_BYTES as usize];
    let (mut written, mut memories) = (Vec::new(), Vec::new());
    for seq in 0..=entries {
        if seq > 0 {
            let event = match seq % 3 {
                0 => Event::Clock { now_ns: seq },
                1 => Event::NetRx(vec![seq as u8; random.below(2_000) as usize]),
                _ => Event::ConsoleRx(format!("line {seq}\n").into_bytes()),
            };
            let entry = LogEntry { seq, at: Position::at(seq * 10), event };
            writer.append(&entry).expect("an entry");
            written.push(entry);
        }
        if seq % 100 == 0 {
            for _ in 0..700 {
                let at = random.below(RAM_BYTES) as usize;
                ram[at] = random.below(256) as u8;
            }
            let encoded = codec::encode(&state(seq * 10)).expect("a state");
            let pages = tracker.collect(&ram);
            writer.checkpoint(&pages, (Position::at(seq * 10), &encoded), seq).expect("a checkpoint");
            memories.push(ram.clone());
        }
        if seq % 7 == 0 {
            writer.flush().expect("a flush");
        }
    }
    let (bytes, _) = writer.finish().expect("the end");
    Written { bytes, entries: written, memories }
}

fn file(directory: &TempDir, bytes: &[u8]) -> PathBuf {
    let path = directory.path().join("a.lkr");
    std::fs::File::create(&path).and_then(|mut file| file.write_all(bytes)).expect("a file");
    path
}

fn log(recording: &Recording) -> Vec<LogEntry> {
    recording.log().map(|entry| entry.expect("sound")).collect()
}

/// Reads everything there is; errors are fine, anything else is not.
fn read_all(recording: &Recording) {
    let mut ram = Ram::new(RAM_BYTES).expect("guest memory");
    for entry in recording.log() {
        if entry.is_err() {
            break;
        }
    }
    for checkpoint in 0..recording.checkpoints().len() {
        let _ = recording.load_memory(checkpoint, &mut ram);
        let _ = recording.state(checkpoint);
    }
    let _ = recording.log_bytes();
}

#[test]
fn what_was_written_is_read() {
    let directory = TempDir::new().expect("a directory");
    let written = write(1_000);
    let recording = Recording::open(&file(&directory, &written.bytes)).expect("a recording");
    assert!(matches!(recording.tail(), Tail::Whole), "{:?}", recording.tail());
    assert_eq!(recording.header(), &header());
    assert_eq!((recording.last_seq(), recording.end()), (1_000, Position::at(10_000)));
    assert!(log(&recording) == written.entries);
    assert_eq!(recording.checkpoints().len(), written.memories.len());
    let whole = recording.checkpoints().iter().filter(|checkpoint| checkpoint.whole).count();
    assert!(whole > 1 && whole < written.memories.len(), "{whole} stand by themselves");
    let mut ram = Ram::new(RAM_BYTES).expect("guest memory");
    for (number, memory) in written.memories.iter().enumerate().rev() {
        recording.load_memory(number, &mut ram).expect("pages");
        assert!(ram.as_slice() == memory, "checkpoint {number}");
        assert_eq!(recording.state(number).expect("a state"), state(number as u64 * 1_000));
    }
    for seq in [1, 2, 100, 999, 1_000] {
        let batch = recording.entries(recording.batch_of(seq)).expect("a batch");
        assert!(batch.iter().any(|entry| entry.seq == seq));
    }
}

#[test]
fn without_its_index_it_reads_the_same() {
    let directory = TempDir::new().expect("a directory");
    let written = write(300);
    let whole = Recording::open(&file(&directory, &written.bytes)).expect("a recording");
    // The end mark and a piece of the index are gone.
    let cut = written.bytes.len() - 100;
    let torn = Recording::open(&file(&directory, &written.bytes[..cut])).expect("a recording");
    assert!(matches!(torn.tail(), Tail::Torn { bytes } if *bytes > 0), "{:?}", torn.tail());
    assert_eq!((torn.batches(), torn.checkpoints()), (whole.batches(), whole.checkpoints()));
    assert!(log(&torn) == written.entries);
}

#[test]
fn torn_anywhere_it_is_good_up_to_there() {
    let directory = TempDir::new().expect("a directory");
    let written = write(200);
    let mut random = Random::new(1);
    let mut last = 0;
    let mut cuts: Vec<usize> = (0..300).map(|_| random.below(written.bytes.len() as u64) as usize).collect();
    cuts.sort_unstable();
    for cut in cuts {
        for zeros in [0, 5_000] {
            // A file system may have made the file longer before it wrote the bytes.
            let mut bytes = written.bytes[..cut].to_vec();
            bytes.resize(cut + zeros, 0);
            match Recording::open(&file(&directory, &bytes)) {
                Ok(recording) => {
                    assert!(!matches!(recording.tail(), Tail::Damaged(_)), "{cut}: {:?}", recording.tail());
                    let entries = log(&recording);
                    assert!(written.entries.starts_with(&entries), "cut at {cut}");
                    assert!(entries.len() >= last, "more of the file, less of the log");
                    last = entries.len();
                }
                Err(error) => {
                    assert!(last == 0, "{error}");
                    assert!(matches!(error, RecordingError::NotARecording { .. }), "{error}");
                }
            }
        }
    }
    assert!(last > 150, "{last}");
}

#[test]
fn a_changed_byte_is_found() {
    let directory = TempDir::new().expect("a directory");
    let written = write(200);
    let mut random = Random::new(2);
    for _ in 0..400 {
        let mut bytes = written.bytes.clone();
        let at = random.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << random.below(8);
        let Ok(recording) = Recording::open(&file(&directory, &bytes)) else { continue };
        let entries: Result<Vec<_>, _> = recording.log().collect();
        match entries {
            Ok(entries) => assert!(written.entries.starts_with(&entries), "byte {at}"),
            Err(error) => assert!(matches!(error, RecordingError::Damaged { .. }), "{error}"),
        }
        read_all(&recording);
    }
}

/// The payloads of a file with their kinds.
fn frames(bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let (mut rest, mut out) = (bytes, Vec::new());
    while let Some((header, after)) = rest.split_first_chunk::<HEADER_LEN>() {
        let len = u32::from_le_bytes(header[16..20].try_into().expect("four bytes")) as usize;
        out.push((header[6], after[..len].to_vec()));
        rest = &after[len..];
    }
    out
}

fn assemble(frames: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let (mut writer, mut bytes) = (FrameWriter::new(RECORDING), Vec::new());
    frames.iter().for_each(|(kind, payload)| writer.write(*kind, payload, &mut bytes));
    bytes
}

#[test]
fn hostile_frames_with_good_checksums_are_refused() {
    let directory = TempDir::new().expect("a directory");
    let sound = frames(&write(120).bytes);
    assert!(sound.len() > 10);
    let mut random = Random::new(3);
    for _ in 0..2_000 {
        let mut frames = sound.clone();
        for _ in 0..=random.below(3) {
            let victim = random.below(frames.len() as u64) as usize;
            match random.below(6) {
                0 => drop(frames.remove(victim)),
                1 => frames[victim].0 = random.below(9) as u8,
                2 => {
                    let other = random.below(frames.len() as u64) as usize;
                    frames.swap(victim, other);
                }
                _ => {
                    let payload = &mut frames[victim].1;
                    // Numbers that make lengths, counts and offsets absurd, near the front where those are.
                    let at = random.below(payload.len().clamp(1, 40) as u64) as usize;
                    let values = [0, 0xff, 0xfb, 0xfc, 0xfd, random.below(256) as u8];
                    if let Some(byte) = payload.get_mut(at) {
                        *byte = values[random.below(6) as usize];
                    }
                }
            }
            if frames.is_empty() {
                break;
            }
        }
        if let Ok(recording) = Recording::open(&file(&directory, &assemble(&frames))) {
            read_all(&recording);
        }
    }
    const { assert!(MAX_BATCH_ENTRIES > 120) };
}

#[test]
fn an_index_with_absurd_numbers_is_not_believed() {
    let directory = TempDir::new().expect("a directory");
    let written = write(120);
    for first in [0, 5, u64::MAX] {
        let mut frames = frames(&written.bytes);
        let (_, payload) = frames.iter_mut().find(|(kind, _)| *kind == kind::INDEX).expect("an index");
        let mut index: Index = codec::decode(payload).expect("an index");
        let last = index.batches.last_mut().expect("a batch");
        (last.first, last.entries) = (first, if first == 0 { 0 } else { 5 });
        *payload = codec::encode(&index).expect("an index");
        let recording = Recording::open(&file(&directory, &assemble(&frames)));
        if let Ok(recording) = &recording {
            read_all(recording);
        }
        // Without an index that can be believed the entries themselves count.
        assert!(recording.is_err() || recording.is_ok_and(|recording| log(&recording) == written.entries));
    }
}

#[test]
fn a_batch_that_goes_back_is_damage() {
    let directory = TempDir::new().expect("a directory");
    let mut frames = frames(&write(0).bytes);
    frames.retain(|(kind, _)| !matches!(*kind, kind::INDEX | kind::END));
    for (seq, counts) in [(1, [10, 20]), (3, [5, 30])] {
        let mut encoder = BatchEncoder::new(LogStart { seq: seq - 1, count: 0 });
        for (seq, count) in (seq..).zip(counts) {
            let entry = LogEntry { seq, at: Position::at(count), event: Event::Clock { now_ns: count } };
            encoder.append(&entry).expect("an entry");
        }
        let mut bytes = Vec::new();
        encoder.flush(kind::ENTRIES, 0, &mut FrameWriter::new(RECORDING), &mut bytes);
        frames.extend(self::frames(&bytes));
    }
    let recording = Recording::open(&file(&directory, &assemble(&frames))).expect("a torn recording");
    assert_eq!(recording.entries(0).expect("sound").len(), 2);
    let error = recording.entries(1).expect_err("it goes back").to_string();
    assert!(error.contains("before the last position"), "{error}");
}

#[test]
fn other_files_and_versions_are_told() {
    let directory = TempDir::new().expect("a directory");
    let open =
        |bytes: &[u8]| Recording::open(&file(&directory, bytes)).expect_err("not a recording").to_string();
    for bytes in [&b""[..], b"LKRC", b"not a recording at all, but long enough for a header", &[0; 100]] {
        assert!(open(bytes).contains("no recording of lockstep"), "{}", open(bytes));
    }
    let mut bytes = write(10).bytes;
    bytes[4] = 99;
    assert!(open(&bytes).contains("a recording of format 99"), "{}", open(&bytes));
    let mut frames = frames(&write(10).bytes);
    // The log's version is the first field of the header.
    frames[0].1[0] = LOG_VERSION as u8 + 1;
    assert!(open(&assemble(&frames)).contains(&format!("log version {};", LOG_VERSION + 1)));
    assert_eq!(PAGE_BYTES, 4096);
}

#[test]
fn a_sample_of_the_version_before_is_refused_by_number() {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/recording/fixtures/recording-v2.lkr");
    let error = Recording::open(&path).expect_err("an old recording").to_string();
    let told = format!(
        "recording of format 2; this lockstep reads format {}: replay it with the lockstep that made it",
        crate::recording::format::RECORDING_VERSION
    );
    assert!(error.contains(&told), "{error}");
}

/// The engine defined undefined flags otherwise when it was made.
#[test]
fn a_recording_of_the_cpu_model_before_is_refused_by_name() {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/recording/fixtures/cpu-model-2.lkr");
    let recording = Recording::open(&path).expect("it can be read");
    assert_eq!(recording.header().machine.cpu_model, "x86-64-v2/2");
    let error = crate::recording::Session::open(&path).map(|_| ()).expect_err("another CPU").to_string();
    let told = r#"recorded with CPU model "x86-64-v2/2", here it is "x86-64-v2/3": use the lockstep that"#;
    assert!(error.starts_with(told), "{error}");
}
