//! What the control socket answers: `status`, `power-button`, `shutdown`, `end`, `replicate ADDRESS`. Clients
//! ask side by side.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::Sender;
use host::errors::Chain;
use logchannel::Event;

use crate::config::VmConfig;
use crate::io::clock::HostClock;
use crate::io::control::error;
use crate::pair::awaited_end::AwaitedEnd;
use crate::pair::disk_health::DiskHealth;
use crate::pair::follower::{FailoverTimes, Follower, FollowerStatus};
use crate::pair::greeting::greet_backup;
use crate::pair::leader::{Control, Leader};
use crate::pair::replication::Replication;
use crate::pair::status::Status;

/// How long a request may wait for the guest's thread to have room for it.
const ROOM: Duration = Duration::from_secs(5);
const NOTHING: &str = "{}";

/// What `status` is made of.
pub(super) struct StatusParts {
    /// `primary`, `backup` or `run`.
    pub(super) role: &'static str,
    /// The machine; a backup's is what its primary said.
    pub(super) config: Arc<VmConfig>,
    /// What a process that is to be a live copy does before it is one.
    pub(super) starting: Option<String>,
    pub(super) leader: Option<Arc<Leader>>,
    pub(super) follower: Option<Arc<Follower>>,
    pub(super) backup: Option<FollowerStatus>,
    pub(super) failover: Option<FailoverTimes>,
}

/// Whoever answers.
pub(super) struct Answers {
    pub(super) parts: Arc<Mutex<StatusParts>>,
    pub(super) clock: HostClock,
    pub(super) started_ns: u64,
    pub(super) claimant: u128,
    pub(super) queue: Sender<Control>,
    pub(super) health: Arc<DiskHealth>,
    pub(super) replication: Arc<Replication>,
    pub(super) end: Arc<AwaitedEnd>,
}

/// Whether a backup may join now; if not, why. `last` is where the last one was asked to.
fn may_join(leader: &Leader, last: impl FnOnce() -> Option<String>) -> Result<(), String> {
    match leader.status().state.as_str() {
        "Alone" => Ok(()),
        "Replicating" => {
            let to = last().map_or_else(String::new, |to| format!(", asked to at {to}"));
            Err(format!("this machine has a backup already{to}: one at a time"))
        }
        state => Err(format!("this copy is {state}: a backup can join when it is Alone")),
    }
}

impl Answers {
    /// The answer to one request, a line of JSON.
    pub(super) fn answer(&self, request: &str) -> String {
        let (word, rest) = request.split_once(' ').unwrap_or((request, ""));
        match (word, rest.trim()) {
            ("status", "") => self.status(),
            ("power-button", "") => self.tell_guest(Control::Input(Event::PowerButton)),
            ("shutdown", "") => self.tell_guest(Control::Shutdown),
            ("end", "") => match self.live() {
                Ok(()) => self.end.answer(self.clock.now_ns()),
                Err(reason) => error(reason),
            },
            ("replicate", "") => error("replicate needs the address of a backup: replicate HOST:PORT"),
            ("replicate", to) => self
                .replicate(to)
                .map_or_else(error, |number| serde_json::json!({ "attempt": number }).to_string()),
            _ => error("unknown request: status, power-button, shutdown, end or replicate HOST:PORT"),
        }
    }

    fn parts(&self) -> MutexGuard<'_, StatusParts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the live copy is here.
    fn live(&self) -> Result<(), String> {
        let parts = self.parts();
        match &parts.leader {
            Some(_) => Ok(()),
            None => {
                let state = parts.follower.as_ref().map(|follower| follower.status().state);
                Err(match state.filter(|state| state.starts_with("Claiming") || state == "Draining") {
                    Some(state) => {
                        format!("this backup is about to go live ({state}): ask again when it has")
                    }
                    None => format!("no live copy runs in this {}: ask the primary", parts.role),
                })
            }
        }
    }

    /// Passes a request on to the vCPU thread of the live copy: kept for later by a backup, it would end the
    /// machine at the next failover.
    fn tell_guest(&self, request: Control) -> String {
        let full = |_| "the guest takes no requests".to_string();
        let sent = self.live().and_then(|()| self.queue.send_timeout(request, ROOM).map_err(full));
        sent.map_or_else(error, |()| NOTHING.into())
    }

    /// Greets the backup at `to` and has the vCPU thread begin the transfer; the number of the attempt.
    fn replicate(&self, to: &str) -> Result<u64, String> {
        logchannel::address::peer(to).map_err(|error| error.to_string())?;
        let parts = self.parts();
        let (leader, config) = (parts.leader.clone(), parts.config.clone());
        drop(parts);
        let leader = leader.ok_or("no live copy runs in this process yet")?;
        // Before this counts as an attempt: what the last one came to stays known.
        may_join(&leader, || self.replication.status().map(|last| last.to))?;
        let attempt = self.replication.attempt(to).map_err(|running| {
            format!("this machine is being replicated to {running} already: one backup at a time")
        })?;
        let number = attempt.number();
        match greet_backup(&config, self.claimant, &leader, to) {
            Ok(greeted) => {
                attempt.transferring();
                let joining = Box::new(greeted.joining(attempt));
                let sent = self.queue.send_timeout(Control::Replicate(joining), ROOM);
                sent.map_err(|_| "the guest takes no requests".to_string())?;
                Ok(number)
            }
            Err(error) => {
                attempt.fail(&error);
                Err(Chain(error.as_ref()).to_string())
            }
        }
    }

    fn status(&self) -> String {
        let parts = self.parts();
        let (leader, follower, config) = (parts.leader.clone(), parts.follower.clone(), parts.config.clone());
        let now_ns = self.clock.now_ns();
        let mut status = Status {
            role: parts.role,
            vm: config.args.vm.clone(),
            pid: std::process::id(),
            engine: config.engine.to_string(),
            uptime_s: (now_ns - self.started_ns) as f64 / 1e9,
            guest: config.around.meter.status(now_ns, config.engine.clock()),
            policy: config.policy,
            starting: parts.starting.clone(),
            live: None,
            backup: parts.backup.clone(),
            failover: parts.failover,
            replication: self.replication.status(),
            disk_server: self.health.status(&config.args.disk_server),
            failover_possible: false,
        };
        drop(parts);
        status.live = leader.map(|leader| leader.status());
        status.backup = follower.map(|follower| follower.status()).or(status.backup);
        status.failover_possible = status.is_redundant() && status.disk_server.answers != Some(false);
        serde_json::to_string(&status).expect("plain data")
    }
}
