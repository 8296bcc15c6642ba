//! The process of `lockstep backup`: follows a primary and goes live when it must.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use disk_server::client::DiskClient;
use ft::Backup;
use logchannel::batch::LogStart;
use logchannel::heartbeat::{Role, vm_hash};
use logchannel::message::{Hello, Refusal, Welcome};
use logchannel::receiver::Receiver as ChannelReceiver;
use logchannel::tcp::{Connection, Listener};
use logchannel::udp::HeartbeatSocket;
use logchannel::{Generation, Output};
use replay::Replayer;

use crate::assemble::{self, Vm};
use crate::config::{PairArgs, VmConfig};
use crate::memory::Ram;
use crate::pair::claims::{ClaimServer, Claims, claims};
use crate::pair::fetch::Fetch;
use crate::pair::follower::{FollowEnd, FollowLink, Follower};
use crate::pair::host::{Host, ProcessEnd, announce, claimant as new_claimant};
use crate::pair::leader::{HeartbeatLink, Leader};
use crate::pair::outside::Outside;
use crate::pair::primary::end_on_signal;
use crate::pair::threads::{self, DiskAddress, PeerIdentity, start};
use crate::pair::transfer;
use crate::recording::format::Header;
use crate::recording::sink::{RecordOptions, Sink};

/// How long a backup asks its disk server about a primary.
const ASK_HOLDER: Duration = Duration::from_secs(2);

/// Runs the backup of a pair: listens for a primary, follows it, and goes live when it must; with `record`
/// its log goes into a file too.
pub fn run_backup(
    mut config: VmConfig,
    pair: &PairArgs,
    listen: &str,
    record: Option<&RecordOptions>,
    report: impl Fn(&replay::Divergence) -> anyhow::Result<()>,
) -> anyhow::Result<ProcessEnd> {
    let listener = Listener::bind(listen)?;
    let heartbeats = Arc::new(HeartbeatSocket::bind(&format!("{}:0", listener.local_addr().ip()))?);
    println!("lockstep: backup listening on {}", listener.local_addr());
    std::io::stdout().flush()?;
    let claimant = new_claimant()?;
    let (hello, connection, booted) = accept(&listener, &mut config, claimant, &heartbeats)?;
    drop(listener);
    let host = Host::new(config, "backup", claimant)?;
    let (claims, claim_server) = claims(&host.config.args.disk_server, &host.config.args.vm);
    let net = host.network()?;
    let (mut replayer, log, follower) = join(&host, pair, &hello, connection, booted, &claims, &heartbeats)?;
    let recording = record.map(|options| begin_recording(&host, options, log, replayer.machine_mut()));
    let recording = recording.transpose()?;
    let slot: Arc<Mutex<Option<Arc<Leader>>>> = Arc::default();
    serve_claims(claim_server, follower.clone(), slot.clone())?;
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
            let outside = Outside::new(net, host.console()?, generation);
            let leader = host.lead(backup.into_primary(), outside, claims, None)?;
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(leader.clone());
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
            let mut live = host.live(recorder, leader, None);
            if let Some(sink) = recording {
                end_on_signal(host.control.0.clone())?;
                live.record(sink);
            }
            live.go_live(generation);
            Ok(ProcessEnd::Live(live.run()?))
        }
    }
}

/// Starts the thread that asks for generations: first for the follower, then for the live copy in the slot.
fn serve_claims(
    server: ClaimServer,
    follower: Arc<Follower>,
    slot: Arc<Mutex<Option<Arc<Leader>>>>,
) -> anyhow::Result<()> {
    start("claims", move || {
        let leader = || slot.lock().unwrap_or_else(PoisonError::into_inner).clone();
        server.serve(
            |expect, answer| match leader() {
                Some(leader) => leader.event(ft::PrimaryEvent::ClaimAnswer { expect, answer }),
                None => follower.event(ft::BackupEvent::ClaimAnswer { expect, answer }),
            },
            // A backup needs no word of it: it asks when its primary is gone.
            |generation| {
                if let Some(leader) = leader() {
                    leader.event(ft::PrimaryEvent::Fenced { generation });
                }
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

/// Waits for a primary with the same machine; refuses others and says why. The machine before its first
/// instruction, if that is what the primary has.
fn accept(
    listener: &Listener,
    config: &mut VmConfig,
    claimant: u128,
    heartbeats: &HeartbeatSocket,
) -> anyhow::Result<(Hello, Connection, Option<Vm>)> {
    let ours = config.pair();
    loop {
        let incoming = match listener.accept(None, Duration::from_secs(5)) {
            Ok(incoming) => incoming,
            Err(error) => {
                tracing::warn!(%error, "not a primary");
                eprintln!("lockstep: refused a connection: {error}");
                continue;
            }
        };
        let (peer, hello) = (incoming.peer(), incoming.hello.clone());
        let refusal = match ours.mismatch(&hello.config) {
            Some(mismatch) => Some(Refusal::Mismatch(mismatch)),
            None => check_holder(config, &hello).err().map(Refusal::Other),
        };
        // Whatever becomes of the answer, the next primary may be the right one.
        let answered = match refusal {
            Some(refusal) => {
                eprintln!("lockstep: refused the primary at {peer}: {refusal}");
                incoming.refuse(refusal)
            }
            None => {
                config.wall_base_ns = hello.config.wall_base_ns;
                config.backup_reads = hello.backup_reads;
                // Before the welcome: a large guest takes its time, and from then on silence means death.
                let booted = if hello.transfer { None } else { Some(assemble::boot(config)?) };
                let welcome = Welcome { claimant, heartbeat_port: heartbeats.local_addr().port() };
                match incoming.welcome(welcome) {
                    Ok(connection) => return Ok((hello, connection, booted)),
                    Err(error) => Err(error),
                }
            }
        };
        if let Err(error) = answered {
            tracing::warn!(%error, "the primary did not wait for its answer");
        }
    }
}

/// Whether the disk server that this backup would ask knows the primary as it describes itself. A pair that
/// asks two servers could go live twice.
fn check_holder(config: &VmConfig, hello: &Hello) -> Result<(), String> {
    let (server, vm) = (&config.args.disk_server, &config.args.vm);
    let state = DiskClient::connect(server, ASK_HOLDER).and_then(|mut client| client.query(vm));
    let holding = state.map_err(|error| format!("the backup has no disk server: {error}"))?.holding;
    if (holding.generation, holding.holder) == (hello.generation, Some(hello.claimant)) {
        return Ok(());
    }
    Err(format!(
        "the backup's disk server {server} has generation {} of {vm}, held by {:032x}; the primary is \
         {:032x} with generation {}: give both the same disk server",
        holding.generation,
        holding.holder.unwrap_or(0),
        hello.claimant,
        hello.generation
    ))
}

/// Starts following with the machine that was `booted`, or gets one by state transfer.
fn join(
    host: &Host,
    pair: &PairArgs,
    hello: &Hello,
    connection: Connection,
    booted: Option<Vm>,
    claims: &Claims,
    heartbeats: &Arc<HeartbeatSocket>,
) -> anyhow::Result<(Replayer<Vm>, LogStart, Arc<Follower>)> {
    let to = SocketAddr::new(connection.peer().ip(), hello.heartbeat_port);
    let (mut endpoint, writer, mut reader) = connection.split()?;
    let closer = writer.closer()?;
    let (machine, log) = match booted {
        Some(machine) => (machine, LogStart::default()),
        None => transferred(&host.config, &mut endpoint, &mut reader)?,
    };
    let in_flight = machine.disk_in_flight().into_iter().map(Output::Disk);
    let vm = vm_hash(&host.config.args.vm);
    let link = HeartbeatLink { socket: heartbeats.clone(), to, vm, claimant: host.claimant };
    let backup = Backup::new(pair.protocol(host.claimant), host.clock.now_ns());
    let receiver = ChannelReceiver::new(endpoint, log);
    let fetch = hello.backup_reads.then(|| Fetch::new(hello.generation));
    let link = FollowLink {
        fetch,
        joined: joined(hello.generation, log, in_flight),
        log,
        receiver,
        writer,
        closer,
        heartbeat: link,
    };
    let follower = Arc::new(Follower::new(backup, link, claims.clone(), host.clock));
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
    let (of_beats, peer) =
        (follower.clone(), PeerIdentity { vm, claimant: hello.claimant, role: Role::Primary });
    let socket = heartbeats.clone();
    start("heartbeats", move || {
        let heard = |beat| of_beats.event(ft::BackupEvent::Heartbeat(beat));
        threads::heartbeats(&socket, peer, heard, || of_beats.next_tick_ns().is_some());
    })?;
    eprintln!("lockstep: following {} under generation {}", host.config.args.vm, hello.generation);
    Ok((Replayer::resume(machine, log.seq + 1), log, follower))
}

/// Receives a running machine.
fn transferred(
    config: &VmConfig,
    endpoint: &mut logchannel::endpoint::Endpoint,
    reader: &mut logchannel::tcp::ChannelReader,
) -> anyhow::Result<(Vm, LogStart)> {
    let mut ram = Ram::new(config.memory_bytes())?;
    let (state, log) = transfer::receive(endpoint, reader, &mut ram)?;
    let policy = config.reset_policy();
    Ok((assemble::restore(config.engine, &config.debugging, ram, state, policy)?, log))
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
