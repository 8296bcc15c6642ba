//! Seeds, how to repeat one, and tests that run part of themselves in a process of their own.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use logchannel::LogEntry;
use logchannel::file::RecordingWriter;
use logchannel::pair::PairConfig;

use crate::machine::{ENGINE, engine_kind};

/// The environment of a worker: what it has to do.
const JOB: &str = "LOCKSTEP_REPLAY_JOB";

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: a number is due")))
}

/// How many runs, and tries of each fault.
pub fn runs() -> u64 {
    number("LOCKSTEP_REPLAY_RUNS").unwrap_or(25)
}

/// The seeds of this test run.
pub fn seeds() -> Vec<u64> {
    match number("LOCKSTEP_REPLAY_SEED") {
        Some(seed) => vec![seed],
        None => (1..=runs()).collect(),
    }
}

/// Says how to repeat a seed, and keeps its log, if the test fails while this lives.
pub struct Repeat {
    test: &'static str,
    seed: u64,
    pub log: Vec<LogEntry>,
}

impl Repeat {
    pub fn new(test: &'static str, seed: u64) -> Self {
        Self { test, seed, log: Vec::new() }
    }

    fn keep_log(&self) -> Option<PathBuf> {
        let path = std::env::temp_dir().join(format!("lockstep-replay-seed-{}.log", self.seed));
        let mut file = RecordingWriter::create(&path, &PairConfig::default()).ok()?;
        self.log.iter().try_for_each(|entry| file.append(entry)).ok()?;
        file.finish_durably().ok()?;
        Some(path)
    }
}

impl Drop for Repeat {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        let Self { test, seed, .. } = self;
        eprintln!(
            "FAILED with seed {seed}; repeat with: {ENGINE}={} LOCKSTEP_REPLAY_SEED={seed} \
             cargo test --release \
             -p lockstep --test replay -- --exact {test} --nocapture",
            engine_kind().name()
        );
        if !self.log.is_empty()
            && let Some(path) = self.keep_log()
        {
            eprintln!("its log: {}", path.display());
        }
    }
}

/// The job of this process, if it is a worker.
pub fn job() -> Option<String> {
    std::env::var(JOB).ok()
}

/// A worker and its lines.
pub struct Worker {
    child: Child,
    pub lines: Receiver<String>,
}

impl Worker {
    /// Runs the ignored test `test` of this binary in a process of its own.
    pub fn start(test: &str, job: &str) -> Self {
        let binary = std::env::current_exe().expect("this binary's path");
        let mut child = Command::new(binary)
            .args(["--exact", test, "--ignored", "--nocapture", "--quiet"])
            .env(JOB, job)
            .env(ENGINE, engine_kind().name())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts this binary again");
        let output = child.stdout.take().expect("it is piped");
        let (send, lines) = channel();
        thread::Builder::new()
            .spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if send.send(line).is_err() {
                        break;
                    }
                }
            })
            .expect("a thread to read its output");
        Self { child, lines }
    }

    /// Waits for its end; whether it succeeded.
    pub fn succeeded(mut self) -> bool {
        self.child.wait().expect("it can be waited for").success()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail if it is gone, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
