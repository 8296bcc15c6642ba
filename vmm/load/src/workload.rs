//! The checked load: clients that keep one connection each for the whole run, and a history of what they saw.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::client::{Client, ClientError};
use crate::history::{History, Operation, Request};
use crate::random::Random;
use crate::resp::{self, Reply};

/// How often a client looks whether its run was abandoned.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What to do.
#[derive(Debug, Clone)]
pub struct Workload {
    /// The server.
    pub address: SocketAddr,
    /// How many clients, each with one connection.
    pub clients: u32,
    /// Requests that a client has in flight at once.
    pub pipeline: u32,
    /// Shared keys.
    pub keys: u32,
    /// What the requests are.
    pub seed: u64,
    /// How long a client waits for an answer before it calls the server stuck.
    pub patience: Duration,
    /// Most operations in all, which bounds the history.
    pub max_operations: u64,
}

impl Workload {
    /// A moderate load on a server that is otherwise empty.
    pub fn new(address: SocketAddr, seed: u64) -> Self {
        let patience = Duration::from_secs(30);
        Self { address, clients: 8, pipeline: 1, keys: 8, seed, patience, max_operations: 2_000_000 }
    }
}

/// Shared between a run and whoever watches it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Requests answered so far.
    pub answered: AtomicU64,
    /// Set it to end the run: clients finish what is in flight.
    pub stop: AtomicBool,
    /// Set it to end the run at once: what is in flight stays without an answer. For a server that was
    /// started again: a connection of before, whose client only waits, would never learn it.
    pub abandon: AtomicBool,
}

/// What came of a run.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// What the clients saw.
    pub history: History,
    /// Connections made.
    pub connections: u32,
    /// What went wrong with connections or answers, a line each; each is a violation.
    pub broken: Vec<String>,
}

/// The host's monotonic clock in nanoseconds, the same for all processes.
#[allow(clippy::cast_possible_truncation, reason = "584 years")]
fn now_ns() -> u64 {
    #[allow(clippy::disallowed_methods)]
    let uptime = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    Duration::from(uptime.expect("every Linux has CLOCK_MONOTONIC")).as_nanos() as u64
}

/// Runs a workload to its end, on a runtime of its own.
pub fn run(workload: &Workload, progress: &Arc<Progress>) -> std::io::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(run_async(workload, progress)))
}

/// Reads once more, on a new connection, what the keys of a run hold: for a run whose machine was started
/// again meanwhile.
pub fn read_again(workload: &Workload, outcome: &mut Outcome) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let reads = async { tokio::time::timeout(workload.patience, final_reads(workload)).await };
    let (counter, values, lengths) = runtime
        .block_on(reads)
        .map_err(std::io::Error::other)?
        .map_err(|error| std::io::Error::other(format!("final reads: {error}")))?;
    outcome.history.final_counter = Some(counter);
    outcome.history.final_values = values;
    outcome.history.final_lengths = lengths;
    Ok(())
}

/// The keys of a workload.
pub fn keys(workload: &Workload) -> Vec<String> {
    let counter = String::from_utf8_lossy(COUNTER).into_owned();
    let keys = std::iter::once(counter).chain((0..workload.keys).map(shared_key));
    keys.chain((0..workload.clients).map(own_key)).collect()
}

async fn run_async(workload: &Workload, progress: &Arc<Progress>) -> Outcome {
    let mut tasks = Vec::new();
    for client in 0..workload.clients {
        let (workload, progress) = (workload.clone(), progress.clone());
        tasks.push(tokio::spawn(async move { drive(client, &workload, &progress).await }));
    }
    let mut outcome = Outcome { connections: workload.clients, ..Outcome::default() };
    for (client, task) in tasks.into_iter().enumerate() {
        match task.await {
            Ok((operations, error)) => {
                outcome.history.operations.extend(operations);
                outcome.broken.extend(error.map(|error| format!("client {client}: {error}")));
            }
            Err(error) => outcome.broken.push(format!("client {client}: {error}")),
        }
    }
    if progress.abandon.load(Ordering::Relaxed) {
        return outcome;
    }
    match tokio::time::timeout(workload.patience, final_reads(workload)).await {
        Ok(Ok((counter, values, lengths))) => {
            outcome.history.final_counter = Some(counter);
            outcome.history.final_values = values;
            outcome.history.final_lengths = lengths;
        }
        Ok(Err(error)) => outcome.broken.push(format!("final reads: {error}")),
        Err(_) => outcome.broken.push("final reads: no answer in time".into()),
    }
    outcome
}

/// One client's run; the error that ended it early, if any.
async fn drive(client: u32, workload: &Workload, progress: &Progress) -> (Vec<Operation>, Option<String>) {
    let mut operations = Vec::new();
    let connected = tokio::time::timeout(workload.patience, Client::connect(workload.address)).await;
    let mut connection = match connected {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return (operations, Some(format!("cannot connect: {error}"))),
        Err(_) => return (operations, Some("cannot connect in time".into())),
    };
    let mut random = Random::new(workload.seed ^ u64::from(client).wrapping_mul(0xd6e8_feb8_6659_fd93));
    let (mut written, mut bytes) = (0u64, Vec::new());
    let most = workload.max_operations / u64::from(workload.clients.max(1));
    while !progress.stop.load(Ordering::Relaxed) && (operations.len() as u64) < most {
        let first = operations.len();
        bytes.clear();
        for _ in 0..workload.pipeline.max(1) {
            let request = choose(client, workload, &mut random, &mut written);
            encode(client, &request, &mut bytes);
            operations.push(Operation {
                client,
                request,
                invoked_ns: now_ns(),
                answered_ns: None,
                result: 0,
            });
        }
        let batch = exchange(&mut connection, &bytes, &mut operations[first..], progress);
        let batch = tokio::time::timeout(workload.patience, batch);
        let answered = tokio::select! {
            answered = batch => answered,
            () = abandoned(progress) => return (operations, Some("abandoned".into())),
        };
        match answered {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return (operations, Some(error)),
            Err(_) => return (operations, Some(format!("no answer in {} s", workload.patience.as_secs()))),
        }
    }
    (operations, None)
}

async fn abandoned(progress: &Progress) {
    while !progress.abandon.load(Ordering::Relaxed) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn exchange(
    connection: &mut Client,
    bytes: &[u8],
    operations: &mut [Operation],
    progress: &Progress,
) -> Result<(), String> {
    let broken = |error: ClientError| format!("connection lost: {error}");
    connection.send(bytes).await.map_err(broken)?;
    for operation in operations {
        let reply = connection.receive().await.map_err(broken)?;
        operation.result = result(&operation.request, &reply)?;
        operation.answered_ns = Some(now_ns());
        progress.answered.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[allow(clippy::cast_possible_truncation, reason = "below a number of 32 bits")]
fn choose(client: u32, workload: &Workload, random: &mut Random, written: &mut u64) -> Request {
    let key = random.below(u64::from(workload.keys.max(1))) as u32;
    match random.below(100) {
        0..30 => Request::Increment,
        30..60 => {
            *written += 1;
            Request::Set { key, value: u64::from(client + 1) << 40 | *written }
        }
        60..90 => Request::Get { key },
        _ => Request::Append { bytes: 1 },
    }
}

const COUNTER: &[u8] = b"load:counter";

fn shared_key(key: u32) -> String {
    format!("load:key:{key}")
}

fn own_key(client: u32) -> String {
    format!("load:own:{client}")
}

fn encode(client: u32, request: &Request, out: &mut Vec<u8>) {
    match request {
        Request::Increment => resp::command(&[b"INCR", COUNTER], out),
        Request::Set { key, value } => {
            resp::command(&[b"SET", shared_key(*key).as_bytes(), value.to_string().as_bytes()], out);
        }
        Request::Get { key } => resp::command(&[b"GET", shared_key(*key).as_bytes()], out),
        Request::Append { bytes } => {
            resp::command(&[b"APPEND", own_key(client).as_bytes(), &vec![b'x'; *bytes as usize]], out);
        }
    }
}

fn result(request: &Request, reply: &Reply) -> Result<u64, String> {
    let wrong = || format!("{request:?} answered {reply:?}");
    match (request, reply) {
        (Request::Set { .. }, Reply::Simple(text)) if text == "OK" => Ok(0),
        (Request::Increment | Request::Append { .. }, Reply::Integer(value)) => {
            u64::try_from(*value).map_err(|_| wrong())
        }
        (Request::Get { .. }, Reply::Bulk(value)) => number(value.as_deref()).ok_or_else(wrong),
        _ => Err(wrong()),
    }
}

/// A value as the workload writes them; 0 for none.
fn number(value: Option<&[u8]>) -> Option<u64> {
    match value {
        None => Some(0),
        Some(text) => std::str::from_utf8(text).ok()?.parse().ok(),
    }
}

async fn final_reads(workload: &Workload) -> Result<(u64, Vec<u64>, Vec<u64>), String> {
    let mut client = Client::connect(workload.address).await.map_err(|e| e.to_string())?;
    let mut get = async |words: &[&[u8]]| match client.call(words).await {
        Ok(Reply::Bulk(value)) => {
            number(value.as_deref()).ok_or_else(|| "a value of somebody else".to_string())
        }
        Ok(Reply::Integer(value)) => u64::try_from(value).map_err(|e| e.to_string()),
        Ok(other) => Err(format!("{other:?}")),
        Err(error) => Err(error.to_string()),
    };
    let counter = get(&[b"GET", COUNTER]).await?;
    let (mut values, mut lengths) = (Vec::new(), Vec::new());
    for key in 0..workload.keys {
        values.push(get(&[b"GET", shared_key(key).as_bytes()]).await?);
    }
    for client in 0..workload.clients {
        lengths.push(get(&[b"STRLEN", own_key(client).as_bytes()]).await?);
    }
    Ok((counter, values, lengths))
}
