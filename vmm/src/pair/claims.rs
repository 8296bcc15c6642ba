//! Claims: test-and-set at the disk server, on a thread of its own because the answer may take any time.
//!
//! The same thread watches the generation while there is nothing to claim: a copy that was taken over by
//! hand learns it even if its guest leaves the disk alone, and the connection is known to be good when it
//! is needed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use disk_server::client::{Claim, ClientError, DiskClient};
use ft::ClaimAnswer;
use logchannel::Generation;

use crate::io::clock::HostClock;
use crate::io::repeated::Repeated;

const CONNECT: Duration = Duration::from_secs(2);
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// How long the disk server may be silent before people are told: more than the time between two questions.
const SILENT_NS: u64 = 1_500_000_000;

/// When the disk server last answered this process, on any of its connections.
#[derive(Debug)]
pub struct DiskReach {
    answered_ns: AtomicU64,
}

impl Default for DiskReach {
    fn default() -> Self {
        Self { answered_ns: AtomicU64::new(HostClock.now_ns()) }
    }
}

impl DiskReach {
    /// It answered just now.
    pub fn answered(&self) {
        self.answered_ns.fetch_max(HostClock.now_ns(), Ordering::Relaxed);
    }

    /// When it did, host nanoseconds; at first when this was made.
    pub fn answered_ns(&self) -> u64 {
        self.answered_ns.load(Ordering::Relaxed)
    }

    /// For how long it has not answered, if that is long. It is asked every half second at least.
    pub fn silent_ns(&self) -> Option<u64> {
        let silent_ns = HostClock.now_ns().saturating_sub(self.answered_ns());
        (silent_ns > SILENT_NS).then_some(silent_ns)
    }
}

#[derive(Debug, Clone, Copy)]
enum Question {
    Claim(Generation, u128),
    Current,
}

/// Where claims are asked.
#[derive(Debug, Clone)]
pub struct Claims {
    queue: Sender<Question>,
    reach: Arc<DiskReach>,
}

/// The other end, to be served by a thread.
#[derive(Debug)]
pub struct ClaimServer {
    queue: Receiver<Question>,
    server: String,
    vm: String,
    client: Option<DiskClient>,
    reach: Arc<DiskReach>,
    failed: Repeated,
}

/// A queue of claims for the machine `vm` at the disk server `server`.
pub fn claims(server: &str, vm: &str) -> (Claims, ClaimServer) {
    // One claim in hand and one waiting: a repeated question adds nothing.
    let (send, receive) = bounded(1);
    let reach = Arc::<DiskReach>::default();
    let server = ClaimServer {
        queue: receive,
        server: server.into(),
        vm: vm.into(),
        client: None,
        reach: reach.clone(),
        failed: Repeated::default(),
    };
    (Claims { queue: send, reach }, server)
}

impl Claims {
    /// Asks; the answer comes to whoever serves the queue. A claim that finds one waiting is dropped: the
    /// protocol asks again.
    pub fn ask(&self, expect: Generation, claimant: u128) {
        let _ = self.queue.try_send(Question::Claim(expect, claimant));
    }

    /// Asks for the current generation now, not only at the next look at it.
    pub fn look(&self) {
        let _ = self.queue.try_send(Question::Current);
    }

    /// When the disk server last answered.
    pub fn reach(&self) -> &Arc<DiskReach> {
        &self.reach
    }
}

impl ClaimServer {
    /// Answers claims through `answer` until the queue is dropped; in between, tells `watch` the generation
    /// there is. Connects beforehand, so that a failover does not wait for it.
    pub fn serve(
        mut self,
        mut answer: impl FnMut(Generation, ClaimAnswer),
        mut watch: impl FnMut(Generation),
    ) {
        let mut wait = Duration::ZERO;
        loop {
            match self.queue.recv_timeout(wait) {
                Ok(Question::Claim(expect, claimant)) => answer(expect, self.claim(expect, claimant)),
                Ok(Question::Current) | Err(RecvTimeoutError::Timeout) => {
                    self.current().into_iter().for_each(&mut watch)
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
            wait = WATCH_EVERY;
        }
    }

    /// The generation there is, if the server says so.
    fn current(&mut self) -> Option<Generation> {
        let vm = self.vm.clone();
        match self.client().and_then(|client| client.query(&vm)) {
            Ok(state) => {
                self.reach.answered();
                Some(state.holding.generation)
            }
            Err(error) => {
                tracing::debug!(%error, "watching the generation");
                self.client = None;
                None
            }
        }
    }

    fn claim(&mut self, expect: Generation, claimant: u128) -> ClaimAnswer {
        // A connection that idled may be dead: one more try on a new one.
        for _ in 0..2 {
            let claimed = self.try_claim(expect, claimant);
            if claimed.is_ok() {
                self.reach.answered();
            }
            match claimed {
                Ok(Claim::Won(generation)) => return ClaimAnswer::Won { generation },
                Ok(Claim::Lost(holding)) => {
                    return ClaimAnswer::Lost {
                        generation: holding.generation,
                        holder: holding.holder.unwrap_or(0),
                    };
                }
                Err(error) => {
                    if let Some(times) = self.failed.happened() {
                        tracing::warn!(%error, expect, times, "no answer to a test-and-set; asking again");
                    }
                    self.client = None;
                }
            }
        }
        ClaimAnswer::Unreachable
    }

    fn try_claim(&mut self, expect: Generation, claimant: u128) -> Result<Claim, ClientError> {
        let vm = self.vm.clone();
        self.client()?.test_and_set(&vm, expect, claimant)
    }

    fn client(&mut self) -> Result<&mut DiskClient, ClientError> {
        let client = match self.client.take() {
            Some(client) => client,
            None => DiskClient::connect(&self.server, CONNECT)?,
        };
        Ok(self.client.insert(client))
    }
}
