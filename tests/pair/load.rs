//! Clients that write down what they were told, and hold the guest to it.
//!
//! Every connection adds one to a shared counter again and again, and now and then sets a key of its own and
//! reads it back. Nothing is ever repeated. So:
//!
//! - no value of the counter is seen twice, and each connection sees its own values rise;
//! - the counter ends at least at the highest value seen, and at most at the number of increments sent;
//! - a key holds the value acknowledged last, or one that was sent after it.

use std::collections::BTreeSet;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::client::Client;
use crate::harness::wait_until;

/// The shared counter.
pub const COUNTER: &str = "counter";
/// Increments between two writes of a connection's own key.
const OWN_EVERY: u64 = 8;

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    acked: AtomicU64,
    closers: Mutex<Vec<TcpStream>>,
}

/// What one connection did and saw.
#[derive(Debug, Default)]
struct Record {
    key: String,
    sent: u64,
    seen: Vec<i64>,
    /// Values of its own key: the last acknowledged, the last sent.
    own: (u64, u64),
    error: Option<String>,
}

/// Clients at work.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Record>>,
}

/// What all of them saw.
pub struct Ledger {
    records: Vec<Record>,
}

impl Load {
    /// Starts so many connections, each on a thread of its own.
    pub fn start(port: u16, connections: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let threads = (0..connections).map(|index| {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(format!("client-{index}"));
            thread.spawn(move || work(port, format!("own:{index}"), &shared)).expect("a thread")
        });
        let threads = threads.collect();
        Self { shared, threads }
    }

    /// Increments acknowledged so far.
    pub fn acked(&self) -> u64 {
        self.shared.acked.load(Ordering::Acquire)
    }

    /// Waits until so many more increments are acknowledged.
    pub fn wait_for(&self, more: u64) {
        let target = self.acked() + more;
        wait_until(&format!("{target} acknowledged increments"), || {
            let over = self.threads.iter().all(JoinHandle::is_finished);
            assert!(!over || self.acked() >= target, "all connections ended at {} increments", self.acked());
            self.acked() >= target
        });
    }

    /// Ends it, without waiting for answers that will not come.
    pub fn abandon(self) -> Ledger {
        self.shared.stop.store(true, Ordering::Release);
        for stream in self.shared.closers.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.stop()
    }

    /// Ends it when what is under way is answered.
    pub fn stop(mut self) -> Ledger {
        self.shared.stop.store(true, Ordering::Release);
        let records = self.threads.drain(..).map(|thread| thread.join().expect("a client's thread"));
        Ledger { records: records.collect() }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
    }
}

fn work(port: u16, key: String, shared: &Shared) -> Record {
    let mut record = Record { key, ..Record::default() };
    if let Err(error) = converse(port, &mut record, shared) {
        record.error = Some(error.to_string());
    }
    record
}

fn converse(port: u16, record: &mut Record, shared: &Shared) -> std::io::Result<()> {
    let mut client = Client::connect(port)?;
    shared.closers.lock().unwrap_or_else(PoisonError::into_inner).push(client.closer()?);
    while !shared.stop.load(Ordering::Acquire) {
        record.sent += 1;
        record.seen.push(client.incr(COUNTER)?);
        shared.acked.fetch_add(1, Ordering::AcqRel);
        if record.sent.is_multiple_of(OWN_EVERY) {
            record.own.1 += 1;
            client.set(&record.key, &record.own.1.to_string())?;
            record.own.0 = record.own.1;
            let found = client.number(&record.key)?;
            assert_eq!(found, record.own.0 as i64, "{} read back", record.key);
        }
    }
    Ok(())
}

impl Ledger {
    /// Whether no connection broke.
    pub fn assert_unbroken(&self) -> &Self {
        for record in &self.records {
            assert_eq!(record.error, None, "the connection of {} broke", record.key);
        }
        self
    }

    /// Checks everything that was seen against itself and against the guest behind `port`.
    pub fn check(&self, port: u16) -> i64 {
        let mut client = Client::connect(port).expect("a connection to the guest");
        let value = client.number(COUNTER).expect("the counter");
        let sent: u64 = self.records.iter().map(|record| record.sent).sum();
        let mut seen = BTreeSet::new();
        for record in &self.records {
            for pair in record.seen.windows(2) {
                assert!(pair[0] < pair[1], "{}: {} and then {}", record.key, pair[0], pair[1]);
            }
            for value in &record.seen {
                assert!(seen.insert(*value), "{}: the value {value} was given out twice", record.key);
            }
            let own = client.number(&record.key).expect("a key") as u64;
            let (acked, tried) = record.own;
            assert!((acked..=tried).contains(&own), "{} is {own}: {acked} acked, {tried} sent", record.key);
        }
        let highest = seen.last().copied().unwrap_or(0);
        assert!(value >= highest, "an acknowledged increment is lost: {value}, but {highest} was seen");
        assert!(value as u64 <= sent, "{value} increments happened, {sent} were sent");
        if self.records.iter().all(|record| record.error.is_none()) {
            assert_eq!((value as u64, seen.len() as u64), (sent, sent), "each increment once");
        }
        value
    }
}
