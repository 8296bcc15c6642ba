//! Which reads a backup repeats, and what it holds meanwhile.

use logchannel::{OutputKind, TrapKind};

use super::*;

const LIMITS: ReadLimits = ReadLimits { requests: 4, bytes: 4096 };

fn read(id: u64, offset: u64, len: u32) -> DiskRequest {
    DiskRequest { id, op: DiskOp::Read { offset, len } }
}

fn write(id: u64, offset: u64, len: usize) -> DiskRequest {
    DiskRequest { id, op: DiskOp::Write { offset, data: vec![1; len], durable: false } }
}

fn done(request: u64, len: usize) -> Event {
    Event::DiskDone { request, status: DiskStatus::Ok, data: vec![7; len] }
}

/// A tracker that is told of requests and completions as a log would.
#[derive(Default)]
struct Log(ReadTracker);

impl Log {
    fn issue(&mut self, request: DiskRequest) {
        let output = Output::Disk(request);
        let event = Event::Output { kind: OutputKind::Disk, digest: output.digest() };
        assert_eq!(self.0.follow(&event, Some(&output)), None);
    }

    fn complete(&mut self, request: u64, len: usize) -> Option<u64> {
        self.0.follow(&done(request, len), None)
    }
}

#[test]
fn a_read_without_a_write_beside_it_is_repeated() {
    let mut log = Log::default();
    log.issue(read(1, 4096, 512));
    log.issue(read(2, 0, 1024));
    assert_eq!(log.complete(2, 1024), Some(0));
    assert_eq!(log.complete(1, 512), Some(4096));
    assert_eq!(log.complete(1, 512), None, "nothing is in flight");
    log.issue(DiskRequest { id: 3, op: DiskOp::Flush });
    assert_eq!(log.complete(3, 0), None);
}

#[test]
fn a_read_beside_a_write_to_its_sectors_is_not() {
    // Write before read, and read before write; in flight together at any time.
    let cases: [&[(bool, u64)]; 2] = [&[(true, 1), (false, 2)], &[(false, 2), (true, 1)]];
    for order in cases {
        for completed_first in [1, 2] {
            let mut log = Log::default();
            for (is_write, id) in order {
                log.issue(if *is_write { write(*id, 512, 1024) } else { read(*id, 1024, 4096) });
            }
            if completed_first == 1 {
                assert_eq!(log.complete(1, 0), None);
            }
            assert_eq!(log.complete(2, 4096), None, "{order:?}, request {completed_first} first");
        }
    }
}

#[test]
fn writes_elsewhere_and_at_other_times_do_no_harm() {
    let mut log = Log::default();
    log.issue(write(1, 0, 512));
    log.issue(read(2, 512, 512));
    log.issue(write(3, 1024, 512));
    assert_eq!(log.complete(2, 512), Some(512), "neighbours on both sides");
    log.complete(1, 0);
    log.issue(read(4, 0, 512));
    assert_eq!(log.complete(4, 512), Some(0), "the write was done before the read was made");
    log.issue(write(5, 0, 512));
    log.issue(read(6, 1024, 512));
    log.complete(3, 0);
    assert_eq!(log.complete(6, 512), None, "the write was in flight when the read was made");
}

#[test]
fn failed_reads_and_those_made_again_by_a_new_copy_are_logged_whole() {
    let mut log = Log::default();
    log.issue(read(1, 0, 512));
    let failed = Event::DiskDone { request: 1, status: DiskStatus::IoError, data: Vec::new() };
    assert_eq!(log.0.follow(&failed, None), None);
    log.0.inherit(&read(2, 0, 512));
    log.0.inherit(&write(3, 512, 512));
    assert_eq!(log.complete(2, 512), None);
    log.issue(read(4, 512, 512));
    assert_eq!(log.complete(4, 512), None, "beside a write that was made again");
    log.issue(read(5, u64::MAX - 100, 512));
    assert_eq!(log.complete(5, 512), None, "no such sectors");
}

fn entry(seq: Seq, event: Event) -> LogEntry {
    LogEntry { seq, at: Position::at(seq * 10), event }
}

fn arrivals(entries: Vec<LogEntry>) -> (Arrivals, Vec<Seq>) {
    let (mut arrivals, mut entries) = (Arrivals::new(LIMITS), entries);
    let reads = arrivals.add(&mut entries, 5).unwrap();
    (arrivals, reads)
}

#[test]
fn an_entry_gets_its_data_back() {
    let whole = entry(2, done(70, 1024));
    let short = without_data(&whole, 512);
    let digest = data_digest(&[7; 1024]);
    assert_eq!(short, entry(2, Event::DiskRead { request: 70, offset: 512, len: 1024, digest }));
    let trap = entry(1, Event::Trap { instruction: TrapKind::Random, value: 1 });
    assert_eq!(without_data(&trap, 0), trap);
    let (mut arrivals, reads) = arrivals(vec![trap.clone(), short]);
    assert_eq!(reads, [2]);
    assert_eq!(arrivals.wanted().collect::<Vec<_>>(), [&read(2, 512, 1024)]);
    assert_eq!(arrivals.next(1), Some((trap, 5)));
    assert_eq!(arrivals.next(1), None);
    assert_eq!(arrivals.data(2, vec![7; 1024]), Ok(true));
    assert_eq!(arrivals.data(2, vec![7; 1024]), Ok(false), "an answer to a repetition");
    assert_eq!(arrivals.next(2), Some((whole, 5)));
    assert_eq!(arrivals.bytes, 0);
}

#[test]
fn other_bytes_and_other_lengths_are_found() {
    for data in [vec![8; 512], vec![7; 511], Vec::new()] {
        let (mut arrivals, _) = arrivals(vec![without_data(&entry(1, done(70, 512)), 1024)]);
        let error = arrivals.data(1, data).unwrap_err();
        assert_eq!((error.seq, error.offset, error.len), (1, 1024, 512));
        let text = "entry 1: 512 bytes at 1024 of the disk are not those that the primary read";
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn no_more_is_read_than_a_machine_has_in_flight() {
    let reads = |count: u64, len: usize| -> Vec<LogEntry> {
        (1..=count).map(|seq| without_data(&entry(seq, done(seq, len)), seq * 512)).collect()
    };
    let mut many = Arrivals::new(LIMITS);
    assert_eq!(many.add(&mut reads(4, 512), 0), Ok(vec![1, 2, 3, 4]));
    assert!(many.is_full(&Limits { entries: 9, bytes: 4 * 512 }), "what is to come counts");
    let one_more = &mut vec![reads(5, 512).remove(4)];
    assert_eq!(many.add(one_more, 0), Err(TooManyReads { requests: 5, bytes: 2560 }));
    let mut large = Arrivals::new(LIMITS);
    assert_eq!(large.add(&mut reads(3, 2048), 0), Err(TooManyReads { requests: 3, bytes: 6144 }));
    large.clear();
    assert_eq!(large.add(&mut reads(2, 2048), 0), Ok(vec![1, 2]), "nothing is left of what was dropped");
}

#[test]
#[should_panic(expected = "entry 1 is without its data")]
fn an_entry_without_its_data_is_not_given_away() {
    arrivals(vec![without_data(&entry(1, done(70, 512)), 0)]).0.next(1);
}
