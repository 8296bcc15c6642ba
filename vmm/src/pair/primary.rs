//! The process of `lockstep run` and of `lockstep primary`: a live copy from power-on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use crossbeam_channel::Sender;
use ft::Primary;
use logchannel::batch::LogStart;
use logchannel::message::Hello;
use logchannel::udp::HeartbeatSocket;
use replay::Recorder;
use tokio::signal::unix::{SignalKind, signal};

use crate::assemble;
use crate::config::{PairArgs, VmConfig};
use crate::io::clock::wall_ns;
use crate::pair::backup::begin_recording;
use crate::pair::claims::claims;
use crate::pair::host::{Host, ProcessEnd, announce, claimant, replicate};
use crate::pair::leader::{Control, Leader};
use crate::pair::outside::Outside;
use crate::pair::threads::start;
use crate::pair::transfer::{Joined, Joining};
use crate::recording::sink::RecordOptions;

/// Runs an unreplicated machine, or with `backup` the primary of a pair; with `record` its log goes into a
/// file too.
pub fn run_live(
    config: VmConfig,
    backup: Option<(&str, &PairArgs)>,
    take_over: bool,
    record: Option<&RecordOptions>,
) -> anyhow::Result<ProcessEnd> {
    let wait_for_backup = Duration::from_secs(60);
    let role = if backup.is_some() { "primary" } else { "run" };
    let host = Host::new(config, role, claimant()?)?;
    let (generation, mut disk) = host.win_generation(take_over, backup.map(|(address, _)| address))?;
    host.fill_disk(&mut disk, generation)?;
    let (claims, claim_server) = claims(&host.config.args.disk_server, &host.config.args.vm);
    let protocol = match backup {
        Some((_, pair)) => pair.protocol(host.claimant),
        None => PairArgs::default().protocol(host.claimant),
    };
    let primary = Primary::alone(protocol, generation, 0, host.clock.now_ns());
    let outside = Outside::new(host.network()?, host.console()?, generation);
    // Before the pair forms: a large guest takes its time, and from then on silence means death.
    let mut machine = assemble::boot(&host.config)?;
    let begin = |options| begin_recording(&host, options, LogStart::default(), &mut machine);
    let sink = record.map(begin).transpose()?;
    let mut channel = None;
    if let Some((address, _)) = backup {
        let heartbeats = Arc::new(HeartbeatSocket::bind("0.0.0.0:0")?);
        let hello = Hello {
            config: host.config.pair(),
            generation,
            claimant: host.claimant,
            heartbeat_port: heartbeats.local_addr().port(),
            transfer: false,
            backup_reads: host.config.backup_reads,
        };
        eprintln!("lockstep: waiting for the backup at {address}");
        channel = Some((logchannel::tcp::connect(address, &hello, wait_for_backup)?, heartbeats));
    }
    let recorder = Recorder::new(machine, host.config.clock, power_on_ns(&host));
    let leader = host.lead(primary, outside, claims, Some(disk))?;
    let of_claims = leader.clone();
    start("claims", move || {
        claim_server.serve(
            |expect, answer| of_claims.event(ft::PrimaryEvent::ClaimAnswer { expect, answer }),
            |generation| of_claims.event(ft::PrimaryEvent::Fenced { generation }),
        );
    })?;
    let mut writer = None;
    if let Some(((connection, welcome), heartbeats)) = channel {
        let to = SocketAddr::new(connection.peer().ip(), welcome.heartbeat_port);
        let (endpoint, channel, reader) = connection.split()?;
        let start = LogStart::default();
        let closer = channel.closer()?;
        let joined = Joined { endpoint, writer: channel, closer, reader, welcome, heartbeats, to, start };
        writer = Some(replicate(&host.config.args.vm, host.claimant, &leader, joined)?);
    }
    // A network may still know the address at the place of a copy that is gone.
    announce(&host, &leader)?;
    host.status(|parts| parts.leader = Some(leader.clone()));
    let _terminal = host.console_input()?;
    let mut live = host.live(recorder, leader, writer);
    if let Some(sink) = sink {
        end_on_signal(host.control.0.clone())?;
        live.record(sink);
    }
    Ok(ProcessEnd::Live(live.run()?))
}

/// When virtual time began, on the host's monotonic clock: when the wall clock was read, whatever has
/// happened since.
fn power_on_ns(host: &Host) -> u64 {
    host.clock.now_ns().saturating_sub(wall_ns().saturating_sub(host.config.wall_base_ns))
}

/// Has SIGINT and SIGTERM power the machine off, so that its recording ends as a whole one.
pub(super) fn end_on_signal(control: Sender<Control>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard = runtime.enter();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    drop(guard);
    start("signals", move || {
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            let _ = control.send(Control::Shutdown);
            // Whoever asks again does not want to wait.
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            std::process::exit(130);
        });
    })?;
    Ok(())
}

/// Greets a backup that is to get this machine by state transfer.
pub(super) fn greet_backup(
    config: &VmConfig,
    claimant: u128,
    leader: Option<&Leader>,
    to: &str,
) -> anyhow::Result<Joining> {
    let wait_for_backup = Duration::from_secs(10);
    let generation = leader.context("no live copy runs in this process yet")?.alone();
    let generation = generation.context("this process has a backup, or does not hold its generation")?;
    let heartbeats = Arc::new(HeartbeatSocket::bind("0.0.0.0:0")?);
    let heartbeat_port = heartbeats.local_addr().port();
    let (machine, backup_reads) = (config.pair(), config.backup_reads);
    let hello = Hello { config: machine, generation, claimant, heartbeat_port, transfer: true, backup_reads };
    let (connection, welcome) = logchannel::tcp::connect(to, &hello, wait_for_backup)?;
    Ok(Joining { connection, welcome, heartbeats })
}
