//! The checked load on a thread of its own, and reads after everything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, ensure};
use load::client::Client;
use load::random::Random;
use load::resp::Reply;
use load::{Outcome, Progress, Report, Workload};
use lockstep::cluster::Cluster;

use crate::image::Contents;

/// A load under way.
pub struct Running {
    progress: Arc<Progress>,
    thread: JoinHandle<std::io::Result<Outcome>>,
}

impl Running {
    /// Starts a load on the cluster's guest.
    pub fn start(
        cluster: &Cluster,
        change: impl FnOnce(Workload) -> Workload,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], cluster.port()));
        let workload = change(Workload::new(address, seed));
        let progress = Arc::new(Progress::default());
        let of_load = progress.clone();
        let thread = std::thread::Builder::new()
            .name("load".into())
            .spawn(move || load::workload::run(&workload, &of_load))?;
        Ok(Self { progress, thread })
    }

    /// Waits for `more` answers.
    pub fn wait_answered(&self, cluster: &mut Cluster, more: u64) -> anyhow::Result<()> {
        let answered = || self.progress.answered.load(Ordering::Relaxed);
        let from = answered();
        cluster.wait(&format!("{more} more answers to the load"), |_| {
            ensure!(!self.thread.is_finished(), "the load ended early: its connections were lost");
            Ok(answered() >= from + more)
        })
    }

    /// Tells the clients to end; they finish what is in flight.
    pub fn stop(&self) {
        self.progress.stop.store(true, Ordering::Relaxed);
    }

    /// Ends the load.
    pub fn finish(self) -> anyhow::Result<Outcome> {
        self.stop();
        Ok(self.thread.join().map_err(|_| anyhow::anyhow!("the load panicked"))??)
    }
}

/// Every connection was kept and one machine could have given all the answers. What it looked like.
pub fn judge(outcome: &Outcome, fault_ns: Option<u64>) -> anyhow::Result<Report> {
    let verdict = load::check(&outcome.history);
    ensure!(verdict.is_linearizable(), "not linearizable: {}", lines(&verdict.violations));
    ensure!(outcome.broken.is_empty(), "connections lost: {}", lines(&outcome.broken));
    let report = Report::new(outcome, &verdict, fault_ns);
    ensure!(report.answered == report.requests && report.writes > 0, "{report:?} shows nothing");
    Ok(report)
}

fn lines(what: &[impl ToString]) -> String {
    what.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Reads again, on a new connection, what the load's keys hold: for a load whose machine was stopped and
/// started again.
pub fn read_again(cluster: &Cluster, outcome: &mut Outcome, keys: u32) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let address = SocketAddr::from(([127, 0, 0, 1], cluster.port()));
    let clients = outcome.connections;
    let history = &mut outcome.history;
    let reads = async {
        let mut client = Client::connect(address).await?;
        history.final_counter = Some(ask(&mut client, "GET", "load:counter".into()).await?);
        (history.final_values, history.final_lengths) = (Vec::new(), Vec::new());
        for key in 0..keys {
            history.final_values.push(ask(&mut client, "GET", format!("load:key:{key}")).await?);
        }
        for own in 0..clients {
            history.final_lengths.push(ask(&mut client, "STRLEN", format!("load:own:{own}")).await?);
        }
        anyhow::Ok(())
    };
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), reads).await })?
}

async fn ask(client: &mut Client, command: &str, key: String) -> anyhow::Result<u64> {
    match client.call(&[command.as_bytes(), key.as_bytes()]).await? {
        Reply::Bulk(None) => Ok(0),
        Reply::Bulk(Some(value)) => Ok(std::str::from_utf8(&value)?.parse()?),
        Reply::Integer(value) => Ok(u64::try_from(value)?),
        other => Err(anyhow::anyhow!("{command} {key} answered {other:?}")),
    }
}

/// One command on a connection of the test's own, with all the time it needs.
pub async fn call(client: &mut Client, words: &[&[u8]]) -> anyhow::Result<Reply> {
    let patience = Duration::from_secs(60);
    Ok(tokio::time::timeout(patience, client.call(words)).await.context("no answer in a minute")??)
}

/// As `judge`, for a load whose connections were cut off: requests without an answer may have been executed
/// or not, but whatever was answered must be there.
pub fn judge_cut_off(outcome: &Outcome) -> anyhow::Result<()> {
    let verdict = load::check(&outcome.history);
    ensure!(verdict.is_linearizable(), "acknowledged writes are gone: {}", lines(&verdict.violations));
    let answered = outcome.history.operations.iter().filter(|o| o.answered_ns.is_some()).count();
    ensure!(answered > 100 && outcome.history.final_counter.is_some(), "{answered} answers show nothing");
    Ok(())
}

/// Gives the guest a few MiB that do not compress, so that a state transfer takes its time. What it wrote.
pub fn fill(cluster: &Cluster, seed: u64) -> anyhow::Result<Contents> {
    const VALUES: usize = 256;
    const VALUE_BYTES: usize = 32 << 10;
    let mut random = Random::new(seed);
    let mut contents = Contents::new();
    for index in 0..VALUES {
        let value = (0..VALUE_BYTES / 8).flat_map(|_| random.draw().to_le_bytes()).collect();
        contents.insert(format!("filling:{index}").into_bytes(), value);
    }
    let address = SocketAddr::from(([127, 0, 0, 1], cluster.port()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut client = Client::connect(address).await?;
        for (key, value) in &contents {
            let reply = call(&mut client, &[b"SET", key, value]).await?;
            ensure!(reply == Reply::Simple("OK".into()), "SET answered {reply:?}");
        }
        anyhow::Ok(())
    })?;
    Ok(contents)
}
