//! The process of `lockstep backup`: follows a primary and goes live when it must.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use ft::Backup;
use host::errors::Chain;
use logchannel::batch::LogStart;
use logchannel::heartbeat::{Role, vm_hash};
use logchannel::message::{Hello, Refusal};
use logchannel::receiver::Receiver as ChannelReceiver;
use logchannel::tcp::{ChannelReader, Connection, Listener};
use logchannel::udp::HeartbeatSocket;
use logchannel::{Generation, Output};
use replay::Replayer;

use crate::assemble::{self, Vm};
use crate::config::{VmConfig, protocol};
use crate::memory::Ram;
use crate::pair::answers::StatusParts;
use crate::pair::claims::{ClaimServer, Claims, claims};
use crate::pair::egress::Egress;
use crate::pair::fetch::Fetch;
use crate::pair::follower::{FollowEnd, FollowLink, Follower, FollowerStatus};
use crate::pair::greeting::heartbeat_address;
use crate::pair::host::{Host, ProcessEnd, announce, claimant as new_claimant};
use crate::pair::leader::{HeartbeatLink, Leader};
use crate::pair::live::LiveEnd;
use crate::pair::primary::end_on_signal;
use crate::pair::reception::{Arrival, Desk, Reception};
use crate::pair::threads::{self, DiskAddress, PeerIdentity, start};
use crate::pair::transfer;
use crate::recording::format::Header;
use crate::recording::sink::{RecordOptions, Sink};

/// Runs the backup of a pair: listens for a primary, follows it, and goes live when it must; with `record`
/// its log goes into a file too.
pub fn run_backup(
    config: VmConfig,
    listen: &str,
    record: Option<&RecordOptions>,
    report: impl Fn(&replay::Divergence) -> anyhow::Result<()>,
) -> anyhow::Result<ProcessEnd> {
    let listener = Listener::bind(listen)?;
    let mut host = Host::new(config, "backup", new_claimant()?)?;
    say_waiting(&host.parts(), 0);
    let (claims, claim_server) =
        claims(&host.config.args.disk_server, &host.config.args.vm, host.health.clone());
    let part: Arc<Mutex<Part>> = Arc::default();
    serve_claims(claim_server, part.clone())?;
    println!("lockstep: backup listening on {}", listener.local_addr());
    std::io::stdout().flush()?;
    let met = meet(listener, &mut host)?;
    host.status(|parts| parts.backup = Some(named("Joining")));
    let net = host.network()?;
    let (mut replayer, log, follower) = join(&host, met, &claims)?;
    let recording = record.map(|options| begin_recording(&host, options, log, replayer.machine_mut()));
    let recording = recording.transpose()?;
    *part.lock().unwrap_or_else(PoisonError::into_inner) = Part::Backup(follower.clone());
    host.status(|parts| parts.follower = Some(follower.clone()));
    match follower.follow(replayer, recording) {
        FollowEnd::Halted { reason, divergence, mut replayer, recording } => {
            let file = recording.map(Sink::end);
            if let Some(mut divergence) = divergence {
                match replayer.machine_mut().cpu() {
                    Ok(cpu) => divergence.notes.extend(cpu.describe()),
                    Err(error) => divergence.notes.push(format!("the registers cannot be read: {error}")),
                }
                divergence.replay_command = file.map(|path| format!("lockstep diverge {}", path.display()));
                report(&divergence)?;
            }
            Ok(ProcessEnd::Backup(reason, replayer.ending().cloned()))
        }
        FollowEnd::Live { backup, replayer, generation, resend, mut times, status, entry_ns, recording } => {
            let egress = Egress::start(net, host.console()?, generation, host.clock)?;
            let leader = host.lead(backup.into_primary(), egress, claims, None)?;
            *part.lock().unwrap_or_else(PoisonError::into_inner) = Part::Live(leader.clone());
            announce(&host, &leader)?;
            // The guest's time is as the last entry left it: what has passed since, it catches up.
            let recorder = replayer.into_recorder(host.config.clock, entry_ns);
            leader.resend(resend.into_iter().map(|(_, output)| output));
            times.live_ns = host.clock.now_ns();
            host.status(|parts| {
                parts.role = "primary";
                parts.leader = Some(leader.clone());
                parts.failover = Some(times);
                parts.follower = None;
                parts.backup = Some(*status);
            });
            eprintln!("lockstep: {} is live here, generation {generation}", host.config.args.vm);
            let mut live = host.live(recorder, leader.clone(), None);
            if let Some(sink) = recording {
                end_on_signal(host.control.0.clone())?;
                live.record(sink);
            }
            live.go_live(generation);
            let end = live.run()?;
            if matches!(end, LiveEnd::Guest { .. }) {
                host.release(&leader);
            }
            Ok(host.ended(ProcessEnd::Live(end)))
        }
    }
}

/// Which part this process has in the pair.
#[derive(Default)]
enum Part {
    /// None yet.
    #[default]
    Waiting,
    Backup(Arc<Follower>),
    Live(Arc<Leader>),
}

/// Starts the thread that asks for generations: first for the follower, then for the live copy.
fn serve_claims(server: ClaimServer, part: Arc<Mutex<Part>>) -> anyhow::Result<()> {
    start("claims", move || {
        let part = || part.lock().unwrap_or_else(PoisonError::into_inner);
        server.serve(
            |expect, answer| match &*part() {
                Part::Live(leader) => leader.event(ft::PrimaryEvent::ClaimAnswer { expect, answer }),
                Part::Backup(follower) => follower.event(ft::BackupEvent::ClaimAnswer { expect, answer }),
                Part::Waiting => {}
            },
            // A backup needs no word of the generation: it asks when its primary is gone.
            |generation| match &*part() {
                Part::Live(leader) => leader.event(ft::PrimaryEvent::Fenced { generation }),
                Part::Backup(follower) => follower.event(ft::BackupEvent::DiskAnswered),
                Part::Waiting => {}
            },
        );
    })?;
    Ok(())
}

/// Begins the recording of a machine as it is after `log`: at power-on, or where a backup joined.
pub(super) fn begin_recording(
    host: &Host,
    options: &RecordOptions,
    log: LogStart,
    machine: &mut Vm,
) -> anyhow::Result<Sink> {
    let header = Header::new(&host.config, options.checkpoint_every_ns);
    let sink = Sink::create(&options.path, &header, log, machine)?;
    Ok(sink.with_image(host.config.guest_image()))
}

/// A backup's numbers before it has any.
fn named(state: &str) -> FollowerStatus {
    FollowerStatus { state: state.into(), ..FollowerStatus::default() }
}

/// Says, for `status`, that no primary has begun yet; `reserved` of them were welcomed.
fn say_waiting(parts: &Mutex<StatusParts>, reserved: usize) {
    let mut parts = parts.lock().unwrap_or_else(PoisonError::into_inner);
    // One that leaves late is no news to a backup that follows another.
    if parts.backup.as_ref().is_none_or(|backup| ["Waiting", "Reserved"].contains(&&*backup.state)) {
        parts.backup = Some(named(if reserved == 0 { "Waiting" } else { "Reserved" }));
    }
}

/// A primary that began the pair.
struct Met {
    hello: Hello,
    generation: Generation,
    connection: Connection,
    heartbeats: Arc<HeartbeatSocket>,
    /// The machine before its first instruction, if that is what the primary has.
    booted: Option<Vm>,
}

/// Waits for a primary with the same machine that begins; refuses others and says why.
fn meet(listener: Listener, host: &mut Host) -> anyhow::Result<Met> {
    let parts = host.parts();
    let desk = Desk {
        ours: host.config.pair(),
        claimant: host.claimant,
        disk_server: host.config.args.disk_server.clone(),
        health: host.health.clone(),
        reserved: Box::new(move |reserved| say_waiting(&parts, reserved)),
    };
    let own = host.config.policy;
    let reception = Reception::open(listener, desk)?;
    loop {
        let Arrival { reserved, generation, heartbeats } = reception.next();
        let hello = reserved.hello.clone();
        host.adopt(&hello);
        // Before the pair begins: a large guest takes its time, and from then on silence means death.
        let booted = match (!hello.transfer).then(|| assemble::boot(&host.config)).transpose() {
            Ok(booted) => booted,
            Err(error) => {
                let reason = format!("the backup cannot load the guest: {}", Chain(error.as_ref()));
                let _ = reserved.refuse(Refusal::Other(reason));
                return Err(error);
            }
        };
        match reserved.begun() {
            Ok(connection) => {
                let differences = hello.policy.differences(&own);
                if !differences.is_empty() {
                    eprintln!("lockstep: the primary's options hold: {}", differences.join(", "));
                }
                return Ok(Met { hello, generation, connection, heartbeats, booted });
            }
            // The next primary may be one that stays.
            Err(error) => eprintln!("lockstep: the primary left as it began: {error}"),
        }
    }
}

/// Starts following with the machine that was booted, or gets one by state transfer.
fn join(host: &Host, met: Met, claims: &Claims) -> anyhow::Result<(Replayer<Vm>, LogStart, Arc<Follower>)> {
    let Met { hello, generation, connection, heartbeats, booted } = met;
    let to = heartbeat_address(connection.peer(), hello.heartbeat_port);
    let (mut endpoint, writer, mut reader) = connection.split()?;
    let closer = writer.closer()?;
    let (machine, log) = match booted {
        Some(machine) => (machine, LogStart::default()),
        None => transferred(&host.config, &mut endpoint, &mut reader)?,
    };
    let in_flight = machine.disk_in_flight().into_iter().map(Output::Disk);
    let vm = vm_hash(&host.config.args.vm);
    let link = HeartbeatLink { socket: heartbeats.clone(), to, vm, claimant: host.claimant };
    let backup = Backup::new(protocol(&host.config.policy, host.claimant), host.clock.now_ns());
    let receiver = ChannelReceiver::new(endpoint, log);
    let fetch = hello.backup_reads.then(|| Fetch::new(generation));
    let link = FollowLink {
        fetch,
        joined: joined(generation, log, in_flight),
        log,
        receiver,
        writer,
        closer,
        heartbeat: link,
    };
    let follower = Arc::new(Follower::new(backup, link, claims.clone(), host.clock));
    start_threads(host, &follower, &hello, reader, heartbeats)?;
    eprintln!("lockstep: following {} under generation {generation}", host.config.args.vm);
    Ok((Replayer::resume(machine, log.seq + 1), log, follower))
}

/// Starts the threads of a backup that follows.
fn start_threads(
    host: &Host,
    follower: &Arc<Follower>,
    hello: &Hello,
    reader: ChannelReader,
    heartbeats: Arc<HeartbeatSocket>,
) -> anyhow::Result<()> {
    let of_entries = follower.clone();
    start("entries", move || threads::entries(of_entries, reader))?;
    if hello.backup_reads {
        // A seat of its own at the disk: these reads and the requests of a live copy do not displace each
        // other.
        let (of_reads, address) =
            (follower.clone(), DiskAddress { claimant: new_claimant()?, ..host.disk_address() });
        start("reads", move || threads::reads(&of_reads, &address))?;
    }
    let (of_ticks, clock) = (follower.clone(), host.clock);
    start("ticker", move || crate::pair::follower::tick(&of_ticks, clock))?;
    let vm = vm_hash(&host.config.args.vm);
    let (of_beats, peer) =
        (follower.clone(), PeerIdentity { vm, claimant: hello.claimant, role: Role::Primary });
    start("heartbeats", move || {
        let heard = |beat| of_beats.event(ft::BackupEvent::Heartbeat(beat));
        threads::heartbeats(&heartbeats, peer, heard, || of_beats.next_tick_ns().is_some());
    })?;
    Ok(())
}

/// Receives a running machine.
fn transferred(
    config: &VmConfig,
    endpoint: &mut logchannel::endpoint::Endpoint,
    reader: &mut ChannelReader,
) -> anyhow::Result<(Vm, LogStart)> {
    let mut ram = Ram::new(config.memory_bytes())?;
    let (state, log) = transfer::receive(endpoint, reader, &mut ram)?;
    let policy = config.reset_policy();
    Ok((assemble::restore(config.engine, &config.around, ram, state, policy)?, log))
}

/// The protocol's word for having a machine as it was after `log`. The entries of the requests in flight are
/// before it; which ones exactly does not matter, only their order.
fn joined(
    generation: Generation,
    log: LogStart,
    in_flight: impl ExactSizeIterator<Item = Output>,
) -> ft::BackupEvent<Output> {
    let first = (log.seq + 1).saturating_sub(in_flight.len() as u64);
    let outstanding = in_flight.enumerate().map(|(index, output)| (first + index as u64, output)).collect();
    ft::BackupEvent::Joined { generation, seq: log.seq, outstanding }
}
