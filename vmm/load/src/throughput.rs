//! Throughput and latency for benches: closed loop (as much as goes), or open loop at a fixed rate, where
//! latency counts from when a request should have been sent, so that a stalled server cannot hide what it
//! delays.

use std::net::SocketAddr;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::client::{Client, ClientError};
use crate::random::Random;
use crate::report::Latency;
use crate::resp;

/// How requests are paced.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub enum Pace {
    /// The next batch as soon as the last is answered.
    Closed,
    /// So many requests per second over all connections, whatever the answers do.
    Open {
        /// Requests per second.
        rate: f64,
    },
}

/// What to send.
#[derive(Debug, Clone)]
pub struct Load {
    /// The server.
    pub address: SocketAddr,
    /// Connections.
    pub connections: u32,
    /// Requests in one batch on a connection.
    pub pipeline: u32,
    /// Percent of SETs; the rest are GETs.
    pub set_percent: u32,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// For how long.
    pub duration: Duration,
    /// Pace.
    pub pace: Pace,
    /// What the requests are.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Throughput {
    /// Requests answered.
    pub answered: u64,
    /// Error replies.
    pub errors: u64,
    /// Answers per second.
    pub requests_per_s: f64,
    /// Latency of a request; of its whole batch when pipelined.
    pub latency: Latency,
}

struct Part {
    histogram: Histogram<u64>,
    answered: u64,
    errors: u64,
}

/// Runs a load to its end, on a runtime of its own.
pub fn run(load: &Load) -> Result<Throughput, ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run_async(load))
}

#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "times and counts of a run, far below 2^64"
)]
async fn run_async(load: &Load) -> Result<Throughput, ClientError> {
    let mut connections = Vec::new();
    for _ in 0..load.connections {
        connections.push(Client::connect(load.address).await?);
    }
    let start = now();
    let (mut tasks, mut pacers) = (Vec::new(), Vec::new());
    for (index, connection) in connections.into_iter().enumerate() {
        let (pacer, due) = mpsc::unbounded_channel();
        pacers.push(pacer);
        let load = load.clone();
        tasks.push(tokio::spawn(async move { drive(connection, index as u32, &load, start, due).await }));
    }
    if let Pace::Open { rate } = load.pace {
        let batches = rate / f64::from(load.pipeline.max(1));
        let (count, interval) = ((batches * load.duration.as_secs_f64()) as u64, 1e9 / batches.max(0.1));
        std::thread::Builder::new()
            .name("pacer".into())
            .spawn(move || pace(start, count, interval, &pacers))?;
    }
    let mut all = Part { histogram: histogram(), answered: 0, errors: 0 };
    for task in tasks {
        let part = task.await.map_err(|error| std::io::Error::other(error.to_string()))??;
        all.histogram.add(part.histogram).expect("histograms of one kind");
        all.answered += part.answered;
        all.errors += part.errors;
    }
    let seconds = now().duration_since(start).as_secs_f64();
    Ok(Throughput {
        answered: all.answered,
        errors: all.errors,
        requests_per_s: all.answered as f64 / seconds,
        latency: Latency::of(&all.histogram),
    })
}

/// Says when each batch is due, `interval_ns` apart, to one connection after the other. A thread of its own,
/// because the runtime's timers know milliseconds only.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "times and counts of a run, far below 2^64"
)]
fn pace(start: Instant, count: u64, interval_ns: f64, connections: &[mpsc::UnboundedSender<Instant>]) {
    let _ = nix::sys::prctl::set_timerslack(1);
    for batch in 0..count {
        let due = start + Duration::from_nanos((batch as f64 * interval_ns) as u64);
        let left = due.saturating_duration_since(now());
        if !left.is_zero() {
            std::thread::sleep(left);
        }
        if connections[(batch % connections.len() as u64) as usize].send(due).is_err() {
            return;
        }
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are possible")
}

/// The end of the reply at the start of `bytes`; whether it is an error.
fn skip(bytes: &[u8]) -> Result<Option<(usize, bool)>, ClientError> {
    Ok(resp::parse(bytes)?.map(|(reply, used)| (used, matches!(reply, resp::Reply::Error(_)))))
}

#[allow(clippy::cast_possible_truncation, reason = "times and counts of a run, far below 2^64")]
async fn drive(
    connection: Client,
    index: u32,
    load: &Load,
    start: Instant,
    mut pacer: mpsc::UnboundedReceiver<Instant>,
) -> Result<Part, ClientError> {
    let mut random = Random::new(load.seed ^ u64::from(index) << 32);
    let mut part = Part { histogram: histogram(), answered: 0, errors: 0 };
    let mut stream = connection.into_stream();
    let (mut out, mut input) = (Vec::new(), Vec::with_capacity(64 << 10));
    let value = vec![b'v'; load.value_bytes];
    loop {
        let due = match load.pace {
            Pace::Closed => Some(now()).filter(|now| now.duration_since(start) < load.duration),
            Pace::Open { .. } => pacer.recv().await,
        };
        let Some(due) = due else { return Ok(part) };
        out.clear();
        for _ in 0..load.pipeline {
            let key = format!("bench:{}", random.below(1000));
            match random.below(100) < u64::from(load.set_percent) {
                true => resp::command(&[b"SET", key.as_bytes(), &value], &mut out),
                false => resp::command(&[b"GET", key.as_bytes()], &mut out),
            }
        }
        stream.write_all(&out).await?;
        let mut left = load.pipeline;
        while left > 0 {
            let mut at = 0;
            while let Some((used, error)) = skip(&input[at..])? {
                at += used;
                left -= 1;
                part.errors += u64::from(error);
            }
            input.drain(..at);
            if left > 0 && stream.read_buf(&mut input).await? == 0 {
                return Err(ClientError::Closed);
            }
        }
        part.answered += u64::from(load.pipeline);
        let _ = part.histogram.record(now().duration_since(due).as_nanos().max(1) as u64);
    }
}
