//! The same log gives the same machine whatever came before it: twice in one process, and in another process.

use logchannel::LogEntry;
use logchannel::file::{RecordingReader, RecordingWriter};
use logchannel::pair::PairConfig;
use replay::Machine as _;

use crate::machine::{minikv, on_engines};
use crate::recording::{Options, record};
use crate::replaying::{How, assert_same, replay};
use crate::worker::{Repeat, Worker, job, seeds};
use crate::world::DISK_BYTES;

fn last_digest(log: &[LogEntry]) -> String {
    let mut replay = replay(log, minikv(DISK_BYTES as u64), How::Whole)
        .unwrap_or_else(|divergence| panic!("{divergence}"));
    replay.replayer.machine_mut().digest().expect("a digest").to_string()
}

#[test]
#[ignore = "runs in a process of its own, started by the test below"]
fn worker() {
    let Some(path) = job() else { return };
    let log: Vec<LogEntry> = RecordingReader::open(path.as_ref())
        .expect("the recording")
        .collect::<Result<_, _>>()
        .expect("its entries");
    println!("DIGEST {} entries {}", log.len(), last_digest(&log));
}

#[test]
fn a_log_gives_the_same_machine_whatever_came_before() {
    on_engines("history", || {
        for seed in seeds().into_iter().step_by(8) {
            let mut repeat = Repeat::new("history::a_log_gives_the_same_machine_whatever_came_before", seed);
            let recording = record(seed, &Options::default());
            repeat.log.clone_from(&recording.log);
            for how in [How::Whole, How::Whole, How::Batches(seed)] {
                assert_same(&recording, minikv(DISK_BYTES as u64), how);
            }
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("recording");
            let mut file = RecordingWriter::create(&path, &PairConfig::default()).expect("a recording");
            recording.log.iter().for_each(|entry| file.append(entry).expect("appends"));
            file.finish_durably().expect("writes");
            let worker = Worker::start("history::worker", path.to_str().expect("a path in UTF-8"));
            let lines: Vec<String> = worker.lines.iter().collect();
            assert!(worker.succeeded(), "{lines:#?}");
            let due = format!("DIGEST {} entries {}", recording.log.len(), recording.last.digest);
            assert!(lines.iter().any(|line| line.ends_with(&due)), "{due} in {lines:#?}");
        }
    });
}
