//! A guest's clock as a client sees it: redis is asked for TIME again and again, also across the fault.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{bail, ensure};
use load::client::Client;
use load::resp::Reply;
use lockstep::cluster::Cluster;
use lockstep::io::clock::wall_ns;

use crate::load_run::call;

/// Between two questions.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// A connection that asks.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<Found>>,
}

/// What it was told. It never went backwards.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// Answers.
    pub answers: u64,
    /// By how much the guest's time certainly moved against the host's, milliseconds: an answer is a time
    /// between question and answer. Where it stands is another matter: a real-time clock says whole seconds.
    pub drift_ms: f64,
}

impl Watch {
    /// Begins.
    pub fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], cluster.port()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("time".into())
            .spawn(move || runtime.block_on(ask(address, &stopped)))?;
        Ok(Self { stop, thread })
    }

    /// Ends.
    pub fn finish(self) -> anyhow::Result<Found> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the thread that asks for the time panicked"))?
    }
}

async fn ask(address: SocketAddr, stop: &AtomicBool) -> anyhow::Result<Found> {
    let mut client = Client::connect(address).await?;
    let (mut answers, mut last_us) = (0, 0);
    // The guest's time less the host's is at least `low` at one answer, and at most `high` at another.
    let (mut low, mut high) = (i64::MIN, i64::MAX);
    while !stop.load(Ordering::Relaxed) {
        let asked_us = wall_ns() / 1000;
        let now_us = time_us(call(&mut client, &[b"TIME"]).await?)?;
        let answered_us = wall_ns() / 1000;
        ensure!(now_us >= last_us, "the guest's time went back by {} µs", last_us - now_us);
        last_us = now_us;
        answers += 1;
        low = low.max(now_us as i64 - answered_us as i64);
        high = high.min(now_us as i64 - asked_us as i64);
        // tidy: allow(sleep) between two questions
        tokio::time::sleep(ASK_EVERY).await;
    }
    Ok(Found { answers, drift_ms: low.saturating_sub(high).max(0) as f64 / 1e3 })
}

/// Seconds and microseconds of the Unix time.
fn time_us(reply: Reply) -> anyhow::Result<u64> {
    let Reply::Array(Some(items)) = &reply else { bail!("TIME answered {reply:?}") };
    let [Reply::Bulk(Some(seconds)), Reply::Bulk(Some(us))] = &items[..] else {
        bail!("TIME answered {reply:?}")
    };
    let number = |text: &[u8]| anyhow::Ok(std::str::from_utf8(text)?.parse::<u64>()?);
    Ok(number(seconds)? * 1_000_000 + number(us)?)
}
