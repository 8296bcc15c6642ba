//! How a live copy, or one that is about to be live, meets its backup.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use crossbeam_channel::{RecvTimeoutError, bounded};
use disk_server::Embedded;
use logchannel::Generation;
use logchannel::message::{Hello, Welcome};
use logchannel::tcp::{Connection, TcpError, Welcomed, dial};
use logchannel::udp::HeartbeatSocket;

use crate::config::VmConfig;
use crate::pair::leader::Leader;
use crate::pair::replication::Attempt;
use crate::pair::transfer::Joining;

/// How long a start waits for its backup, and for it to begin: a large guest takes its time to load.
const START_WAIT: Duration = Duration::from_secs(60);
/// How long `replicate` waits for each step: below what its client waits for the answer.
const REPLICATE_WAIT: Duration = Duration::from_secs(5);
/// How often a backup is told that this end still prepares.
const PREPARING_EVERY: Duration = Duration::from_secs(1);

/// A backup that agrees to be one, and waits.
pub(super) struct Greeted {
    welcomed: Welcomed,
    welcome: Welcome,
    heartbeats: Arc<HeartbeatSocket>,
}

/// A backup that follows from here on.
pub(super) struct Begun {
    pub(super) connection: Connection,
    pub(super) welcome: Welcome,
    pub(super) heartbeats: Arc<HeartbeatSocket>,
}

impl Greeted {
    /// Connects to the backup at `address` and greets it; `wait` for each of the two.
    fn greet(
        address: &str,
        config: &VmConfig,
        claimant: u128,
        transfer: bool,
        wait: Duration,
    ) -> anyhow::Result<Self> {
        let connection = dial(address, wait)?;
        let heartbeats = Arc::new(HeartbeatSocket::beside(connection.local_addr()?)?);
        let hello = Hello {
            config: config.pair(),
            policy: config.policy,
            claimant,
            heartbeat_port: heartbeats.local_addr().port(),
            transfer,
            backup_reads: config.backup_reads,
        };
        let (welcomed, welcome) = connection.greet(&hello, wait)?;
        Ok(Self { welcomed, welcome, heartbeats })
    }

    /// Greets the backup of a machine that is about to be started.
    pub(super) fn at_start(address: &str, config: &VmConfig, claimant: u128) -> anyhow::Result<Self> {
        Self::greet(address, config, claimant, false, START_WAIT)
    }

    /// Does `work` while the backup is told to wait on.
    pub(super) fn while_preparing<T>(
        &mut self,
        work: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let (done, wait) = bounded::<()>(0);
        let welcomed = &mut self.welcomed;
        std::thread::scope(|scope| {
            std::thread::Builder::new().name("preparing".into()).spawn_scoped(scope, move || {
                // A backup that went away is met again when the pair is to begin.
                while wait.recv_timeout(PREPARING_EVERY) == Err(RecvTimeoutError::Timeout) {
                    if let Err(error) = welcomed.preparing() {
                        tracing::debug!(%error, "a backup that waits");
                    }
                }
            })?;
            let result = work();
            drop(done);
            result
        })
    }

    /// Begins the pair under `generation`, which this process holds.
    pub(super) fn begin(self, generation: Generation, wait: Duration) -> Result<Begun, TcpError> {
        let Self { welcomed, welcome, heartbeats } = self;
        let connection = welcomed.begin(generation, wait)?;
        Ok(Begun { connection, welcome, heartbeats })
    }

    /// The same, of a machine that is about to be started.
    pub(super) fn begin_start(self, generation: Generation) -> Result<Begun, TcpError> {
        self.begin(generation, START_WAIT)
    }
}

impl Begun {
    /// A backup that gets the machine by state transfer.
    pub(super) fn joining(self, attempt: Attempt) -> Joining {
        let Self { connection, welcome, heartbeats } = self;
        Joining { connection, welcome, heartbeats, attempt }
    }
}

/// Where a peer hears heartbeats: at its end of the channel, with the interface of a link-local address.
pub(super) fn heartbeat_address(channel: SocketAddr, port: u16) -> SocketAddr {
    let mut address = channel;
    address.set_port(port);
    address
}

/// Greets a backup that is to get the machine of the live copy `leader` by state transfer, and begins.
pub(super) fn greet_backup(
    config: &VmConfig,
    claimant: u128,
    leader: &Leader,
    to: &str,
) -> anyhow::Result<Begun> {
    ensure!(
        !Embedded::is_address(&config.args.disk_server),
        "this machine keeps its disk itself, and a backup must reach it too: stop the machine, start \
         `lockstep disk-server` on the same directory (--data), and the machine with --disk-server"
    );
    let has_one = "this process has a backup, or does not hold its generation";
    leader.alone().context(has_one)?;
    let greeted = Greeted::greet(to, config, claimant, true, REPLICATE_WAIT)?;
    let generation = leader.alone().context(has_one)?;
    Ok(greeted.begin(generation, REPLICATE_WAIT)?)
}
