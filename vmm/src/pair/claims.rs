//! Claims: test-and-set at the disk server, on a thread of its own because the answer may take any time.
//!
//! The same thread watches the generation while there is nothing to claim: a copy that was taken over by
//! hand learns it even if its guest leaves the disk alone, and the connection is known to be good when it
//! is needed.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use disk_server::client::{Claim, ClientError, DiskClient};
use ft::ClaimAnswer;
use logchannel::Generation;

use crate::io::repeated::Repeated;
use crate::pair::disk_health::DiskHealth;

const CONNECT: Duration = Duration::from_secs(2);
const WATCH_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy)]
enum Question {
    Claim(Generation, u128),
    Current,
}

/// Where claims are asked.
#[derive(Debug, Clone)]
pub struct Claims {
    queue: Sender<Question>,
    health: Arc<DiskHealth>,
}

/// The other end, to be served by a thread.
#[derive(Debug)]
pub struct ClaimServer {
    queue: Receiver<Question>,
    server: String,
    vm: String,
    client: Option<DiskClient>,
    health: Arc<DiskHealth>,
    failed: Repeated,
}

/// A queue of claims for the machine `vm` at the disk server `server`; `health` is told whether that answers.
pub fn claims(server: &str, vm: &str, health: Arc<DiskHealth>) -> (Claims, ClaimServer) {
    // One claim in hand and one waiting: a repeated question adds nothing.
    let (send, receive) = bounded(1);
    let server = ClaimServer {
        queue: receive,
        server: server.into(),
        vm: vm.into(),
        client: None,
        health: health.clone(),
        failed: Repeated::default(),
    };
    (Claims { queue: send, health }, server)
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
    pub fn health(&self) -> &DiskHealth {
        &self.health
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
                self.health.answered();
                Some(state.holding.generation)
            }
            Err(error) => {
                self.health.failed();
                tracing::debug!(%error, "watching the generation");
                self.client = None;
                None
            }
        }
    }

    fn claim(&mut self, expect: Generation, claimant: u128) -> ClaimAnswer {
        // A connection that idled may be dead: one more try on a new one.
        for _ in 0..2 {
            let answer = self.try_claim(expect, claimant);
            match &answer {
                Ok(_) => self.health.answered(),
                Err(_) => self.health.failed(),
            }
            match answer {
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
