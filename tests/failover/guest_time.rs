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
#[derive(Debug, Clone, Copy, Default)]
pub struct Found {
    /// Answers.
    pub answers: u64,
    /// Furthest behind the host's time when the question was sent, milliseconds.
    pub behind_ms: f64,
    /// Furthest ahead of the host's time when the answer was there, milliseconds.
    pub ahead_ms: f64,
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
    let (mut found, mut last_us) = (Found::default(), 0);
    while !stop.load(Ordering::Relaxed) {
        let asked_us = wall_ns() / 1000;
        let now_us = time_us(call(&mut client, &[b"TIME"]).await?)?;
        let answered_us = wall_ns() / 1000;
        ensure!(now_us >= last_us, "the guest's time went back by {} µs", last_us - now_us);
        last_us = now_us;
        let ms = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e3;
        found.answers += 1;
        found.behind_ms = found.behind_ms.max(ms(now_us, asked_us));
        found.ahead_ms = found.ahead_ms.max(ms(answered_us, now_us));
        tokio::time::sleep(ASK_EVERY).await;
    }
    Ok(found)
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
