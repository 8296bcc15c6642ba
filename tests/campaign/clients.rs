//! The clients: the checked load, large writes, and what the rounds leave to be found again at the end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, ensure};
use load::client::Client;
use load::random::Random;
use load::resp::Reply;
use load::{Outcome, Progress, Workload};

use crate::kinds::Plan;
use crate::site::PATIENCE;

/// Shared keys of the load.
const KEYS: u32 = 8;
/// Writes in flight at once, and their size: 8 MiB in all.
const LARGE: usize = 16;
const LARGE_BYTES: usize = 512 << 10;
/// What every machine is given beside, so that a transfer takes its time: values and their size.
const FILLING: usize = 128;
const FILLING_BYTES: usize = 32 << 10;

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// The checked load on a thread of its own.
pub struct Load {
    workload: Workload,
    progress: Arc<Progress>,
    thread: JoinHandle<std::io::Result<Outcome>>,
}

impl Load {
    /// Starts it, on keys that are empty.
    pub fn start(port: u16, plan: &Plan) -> anyhow::Result<Self> {
        let mut workload = Workload::new(address(port), plan.seed);
        (workload.clients, workload.pipeline, workload.keys) = (plan.clients, plan.pipeline, KEYS);
        // Longer than anything that is waited for here.
        workload.patience = 2 * PATIENCE;
        clear(port, &workload)?;
        let progress = Arc::new(Progress::default());
        let (of_load, of_thread) = (progress.clone(), workload.clone());
        let thread = std::thread::Builder::new()
            .name("load".into())
            .spawn(move || load::workload::run(&of_thread, &of_load))?;
        Ok(Self { workload, progress, thread })
    }

    /// Requests answered so far.
    pub fn answered(&self) -> u64 {
        self.progress.answered.load(Ordering::Relaxed)
    }

    /// Whether all clients lost their connections.
    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends it; what the clients saw. With `again`, at once, and what the keys hold is read on a new
    /// connection: those of before are lost.
    pub fn finish(self, again: bool) -> anyhow::Result<Outcome> {
        self.progress.stop.store(true, Ordering::Relaxed);
        self.progress.abandon.store(again, Ordering::Relaxed);
        let mut outcome = self.thread.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
        if again {
            load::workload::read_again(&self.workload, &mut outcome)?;
        }
        Ok(outcome)
    }
}

fn block_on<T>(body: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { tokio::time::timeout(PATIENCE, body).await.context("stuck: no answer")? })
}

/// One command, one answer, on a connection of its own.
fn call(port: u16, words: &[&[u8]]) -> anyhow::Result<Reply> {
    block_on(async { Ok(Client::connect(address(port)).await?.call(words).await?) })
}

fn clear(port: u16, workload: &Workload) -> anyhow::Result<()> {
    let keys = load::workload::keys(workload);
    let words: Vec<&[u8]> = std::iter::once(&b"DEL"[..]).chain(keys.iter().map(String::as_bytes)).collect();
    let reply = call(port, &words)?;
    ensure!(matches!(reply, Reply::Integer(_)), "DEL answered {reply:?}");
    Ok(())
}

fn bytes(random: &mut Random, count: usize) -> Vec<u8> {
    (0..count / 8).flat_map(|_| random.draw().to_le_bytes()).collect()
}

/// Gives the guest what a state transfer has to carry.
pub fn fill(port: u16) -> anyhow::Result<()> {
    let mut random = Random::new(1);
    block_on(async {
        let mut client = Client::connect(address(port)).await?;
        for index in 0..FILLING {
            let value = bytes(&mut random, FILLING_BYTES);
            let reply = client.call(&[b"SET", format!("filling:{index}").as_bytes(), &value]).await?;
            ensure!(reply == Reply::Simple("OK".into()), "SET answered {reply:?}");
        }
        Ok(())
    })
}

async fn large_write(port: u16, seed: u64, index: usize) -> anyhow::Result<()> {
    let value = bytes(&mut Random::new(seed ^ index as u64), LARGE_BYTES);
    let mut client = Client::connect(address(port)).await?;
    let reply = client.call(&[b"SET", format!("large:{index}").as_bytes(), &value]).await?;
    ensure!(reply == Reply::Simple("OK".into()), "SET answered {reply:?}");
    Ok(())
}

/// 8 MiB of writes at once, on a thread of their own; joined, it says whether all were acknowledged.
pub fn large_writes(port: u16, seed: u64) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
    let writes = move || {
        block_on(async {
            let tasks: Vec<_> =
                (0..LARGE).map(|index| tokio::spawn(large_write(port, seed, index))).collect();
            for task in tasks {
                task.await??;
            }
            Ok(())
        })
    };
    Ok(std::thread::Builder::new().name("large writes".into()).spawn(writes)?)
}

/// One write of each round, to be found again at the end of a machine.
#[derive(Default)]
pub struct Ledger(BTreeMap<u64, u64>);

impl Ledger {
    /// Writes what a round is remembered by.
    pub fn note(&mut self, port: u16, seed: u64) -> anyhow::Result<()> {
        let value = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let (key, text) = (format!("round:{seed}"), value.to_string());
        let reply = call(port, &[b"SET", key.as_bytes(), text.as_bytes()])?;
        ensure!(reply == Reply::Simple("OK".into()), "SET answered {reply:?}");
        self.0.insert(seed, value);
        Ok(())
    }

    /// Every round's is there.
    pub fn check(&self, port: u16) -> anyhow::Result<()> {
        for (seed, value) in &self.0 {
            let reply = call(port, &[b"GET", format!("round:{seed}").as_bytes()])?;
            let due = Reply::Bulk(Some(value.to_string().into_bytes()));
            ensure!(reply == due, "lost: what round {seed} wrote is {reply:?}, {due:?} was acknowledged");
        }
        Ok(())
    }
}

/// Waits until the guest takes connections and answers.
pub fn wait_for_guest(port: u16) -> anyhow::Result<()> {
    crate::site::until("the guest to answer", || {
        Ok(lockstep::cluster::ping(port).unwrap_or(false).then_some(()))
    })
}

/// Longest time in which no client had an answer, ms.
pub fn stall_ms(outcome: &Outcome) -> f64 {
    let operations = outcome.history.operations.iter();
    let mut answers: Vec<u64> = operations.filter_map(|operation| operation.answered_ns).collect();
    answers.sort_unstable();
    let gap = answers.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
    Duration::from_nanos(gap).as_secs_f64() * 1e3
}
