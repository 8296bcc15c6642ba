//! A process whose lines are timed as they come: by the host's clock, and in its CPU time.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::{Running, cpu_ns};
use crate::io::clock::HostClock;

/// Most bytes of a line, and most lines: no guest says more here.
const LINE_BYTES: usize = 4096;
const LINES: usize = 1000;

/// What a process said, and when.
pub struct Said {
    /// Of the process, for messages.
    pub name: &'static str,
    /// When it was started, by the host's clock.
    pub started_ns: u64,
    /// Its lines.
    pub lines: Vec<Line>,
}

/// A line, and when its end came.
pub struct Line {
    /// By the host's clock.
    pub at_ns: u64,
    /// CPU time that the process had used.
    pub cpu_ns: u64,
    /// What it is.
    pub text: String,
}

impl Said {
    /// Seconds from the start to a line: by the clock, and of CPU time.
    pub fn first(&self, words: &str) -> anyhow::Result<(f64, f64)> {
        let found = self.lines.iter().find(|line| line.text.starts_with(words));
        let line = found.with_context(|| format!("{} never said {words:?}:\n{}", self.name, self.tail()))?;
        Ok(((line.at_ns - self.started_ns) as f64 / 1e9, line.cpu_ns as f64 / 1e9))
    }

    /// The last lines, for messages.
    pub fn tail(&self) -> String {
        let lines = &self.lines[self.lines.len().saturating_sub(20)..];
        lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>().join("\n")
    }
}

/// Runs a process to its end; `patience` is its longest silence.
pub fn listen(mut command: Command, name: &'static str, patience: Duration) -> anyhow::Result<Said> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started_ns = HostClock.now_ns();
    let child = command.spawn().with_context(|| format!("cannot start {}", name))?;
    let mut process = Running(child);
    let (sender, lines) = crossbeam_channel::bounded(LINES);
    let stdout = process.0.stdout.take().context("its output is piped")?;
    let pid = process.0.id();
    read_lines(stdout, pid, sender)?;
    let (complaint, complaints) = crossbeam_channel::bounded(LINES);
    read_lines(process.0.stderr.take().context("its errors are piped")?, pid, complaint)?;
    let mut said = Said { name, started_ns, lines: Vec::new() };
    collect(&lines, patience, &mut said)?;
    let status = process.0.wait()?;
    if !status.success() {
        let mut why = said.tail();
        complaints.iter().for_each(|line| why += &format!("\n{}", line.text));
        bail!("{} ended with {status}:\n{why}", name);
    }
    Ok(said)
}

fn collect(lines: &Receiver<Line>, patience: Duration, said: &mut Said) -> anyhow::Result<()> {
    loop {
        match lines.recv_timeout(patience) {
            Ok(line) => said.lines.push(line),
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                bail!("{} was silent for {} s:\n{}", said.name, patience.as_secs(), said.tail())
            }
        }
        ensure!(said.lines.len() < LINES, "{} does not stop talking:\n{}", said.name, said.tail());
    }
}

/// Sends each line with the time at which its end came.
fn read_lines(mut stream: impl Read + Send + 'static, pid: u32, into: Sender<Line>) -> anyhow::Result<()> {
    let read = move || {
        let (mut buffer, mut line) = ([0; 4096], Vec::new());
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            let (at_ns, cpu_ns) = (HostClock.now_ns(), cpu_ns(pid));
            for byte in &buffer[..count] {
                if *byte != b'\n' && line.len() < LINE_BYTES {
                    line.push(*byte);
                    continue;
                }
                let text = String::from_utf8_lossy(&line).trim_end().to_string();
                line.clear();
                // Whoever listened has heard enough: what comes is still read, or the process would wait.
                let _ = into.try_send(Line { at_ns, cpu_ns, text });
            }
        }
    };
    std::thread::Builder::new().name("lines".into()).spawn(read)?;
    Ok(())
}
