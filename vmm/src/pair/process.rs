//! Puts a process together: machine, protocol, threads; and takes a backup over into a live copy.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use crossbeam_channel::{Receiver, Sender, bounded};
use disk_server::client::{Claim, DiskClient};
use ft::{Backup, HaltReason, Primary};
use logchannel::batch::LogStart;
use logchannel::buffer::Limits;
use logchannel::heartbeat::{Role, vm_hash};
use logchannel::message::{Hello, Refusal, Welcome};
use logchannel::receiver::Receiver as ChannelReceiver;
use logchannel::sender::Sender as ChannelSender;
use logchannel::tcp::{ChannelWriter, Connection, Listener};
use logchannel::udp::HeartbeatSocket;
use logchannel::{Generation, Output};
use replay::{ClockPolicy, Recorder, Replayer};

use crate::boot;
use crate::config::{PairArgs, VmConfig};
use crate::engine::kvm::KvmEngine;
use crate::io::clock::HostClock;
use crate::io::control;
use crate::machine::Machine;
use crate::memory::Ram;
use crate::pair::claims::{Claims, claims};
use crate::pair::follower::{FailoverTimes, FollowEnd, FollowLink, Follower, FollowerStatus};
use crate::pair::leader::{Control, HeartbeatLink, Leader, Link};
use crate::pair::live::{Inputs, Live, LiveEnd};
use crate::pair::outside::{NetWriter, Outside};
use crate::pair::status::Status;
use crate::pair::threads::{self, DiskAddress, PeerIdentity, start};
use crate::pair::transfer::{self, Joined, Joining};

/// Frames that wait for the guest.
const NET_QUEUE: usize = 1024;
/// Completions and requests that wait for the guest: more than a disk has in flight.
const CONTROL_QUEUE: usize = 4096;
/// How long a backup asks its disk server about a primary.
const ASK_HOLDER: Duration = Duration::from_secs(2);
/// How often an announcement of the guest's address is sent at once.
const ANNOUNCEMENTS: usize = 2;
/// Waits before it is sent again: a copy that was replaced, and did not know it yet, may have sent since.
const AGAIN_AFTER: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

type Kvm = Machine<KvmEngine>;

/// How a process' part in a virtual machine ended.
#[derive(Debug)]
pub enum ProcessEnd {
    /// As a live copy.
    Live(LiveEnd),
    /// As a backup; with the path of the report if it diverged.
    Backup(HaltReason),
}

/// Makes the machine of a configuration, its guest image loaded.
pub fn machine(config: &VmConfig) -> anyhow::Result<Kvm> {
    let ram = Ram::new(config.memory_bytes())?;
    let first = boot::load(ram.map(), ram.bytes(), &config.files())?;
    let engine = KvmEngine::new(&ram)?;
    Ok(Machine::new(engine, ram, &config.devices(), &first)?)
}

/// Everything that both halves have.
struct Host {
    config: VmConfig,
    clock: HostClock,
    claimant: u128,
    control: (Sender<Control>, Receiver<Control>),
    net: (Sender<Vec<u8>>, Receiver<Vec<u8>>),
    live: Arc<AtomicBool>,
    status: Arc<Mutex<StatusParts>>,
}

/// What `status` is made of.
struct StatusParts {
    role: &'static str,
    leader: Option<Arc<Leader>>,
    follower: Option<Arc<Follower>>,
    backup: Option<FollowerStatus>,
    failover: Option<FailoverTimes>,
}

impl StatusParts {
    /// Whether the live copy is here; else what this process is.
    fn live_role(&self) -> Result<(), &'static str> {
        self.leader.is_some().then_some(()).ok_or(self.role)
    }
}

impl Host {
    fn new(config: VmConfig, role: &'static str, claimant: u128) -> anyhow::Result<Self> {
        let host = Self {
            clock: HostClock,
            claimant,
            control: bounded(CONTROL_QUEUE),
            net: bounded(NET_QUEUE),
            live: Arc::new(AtomicBool::new(false)),
            status: Arc::new(Mutex::new(StatusParts {
                role,
                leader: None,
                follower: None,
                backup: None,
                failover: None,
            })),
            config,
        };
        host.serve_control()?;
        Ok(host)
    }

    fn status(&self, change: impl FnOnce(&mut StatusParts)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn serve_control(&self) -> anyhow::Result<()> {
        let Some(path) = self.config.args.control.clone() else { return Ok(()) };
        let (status, clock, vm) = (self.status.clone(), self.clock, self.config.args.vm.clone());
        let (config, claimant) = (self.config.clone(), self.claimant);
        let started_ns = clock.now_ns();
        let queue = self.control.0.clone();
        let fail = |error: String| serde_json::json!({ "error": error }).to_string();
        let answer = move |request: &str| match request.split_once(' ') {
            Some(("replicate", to)) => {
                let leader = status.lock().unwrap_or_else(PoisonError::into_inner).leader.clone();
                let joining = greet_backup(&config, claimant, leader.as_deref(), to);
                let sent = joining.and_then(|joining| Ok(queue.send(Control::Replicate(Box::new(joining)))?));
                sent.map_or_else(|error| fail(format!("{error:#}")), |()| "{}".to_string())
            }
            _ if request == "shutdown" => {
                let role = status.lock().unwrap_or_else(PoisonError::into_inner).live_role();
                match role {
                    Ok(()) => {
                        let _ = queue.send(Control::Shutdown);
                        "{}".to_string()
                    }
                    // Kept for later, it would end the machine at the next failover.
                    Err(role) => fail(format!("no live copy runs in this {role}: ask the primary")),
                }
            }
            _ => {
                let parts = status.lock().unwrap_or_else(PoisonError::into_inner);
                let follower = parts.follower.as_ref().map(|follower| follower.status());
                let status = Status {
                    role: parts.role,
                    vm: vm.clone(),
                    pid: std::process::id(),
                    engine: "kvm, clock exits".into(),
                    uptime_s: (clock.now_ns() - started_ns) as f64 / 1e9,
                    live: parts.leader.as_ref().map(|leader| leader.status()),
                    backup: follower.or_else(|| parts.backup.clone()),
                    failover: parts.failover,
                };
                serde_json::to_string(&status).expect("plain data")
            }
        };
        let socket = control::bind(&path)?;
        start("control", move || control::serve(&socket, answer))?;
        Ok(())
    }

    fn disk_address(&self) -> DiskAddress {
        DiskAddress {
            server: self.config.args.disk_server.clone(),
            vm: self.config.args.vm.clone(),
            disk: self.config.args.disk.clone(),
            bytes: self.config.disk_bytes(),
            claimant: self.claimant,
        }
    }

    /// Connects to the network and starts reading from it.
    fn network(&self) -> anyhow::Result<Option<NetWriter>> {
        let Some(endpoint) = &self.config.args.net else {
            eprintln!("lockstep: no --net: the guest's network card has no cable");
            return Ok(None);
        };
        let connection = lan::backend::Connection::connect(endpoint)
            .with_context(|| format!("cannot connect to the network {endpoint}"))?;
        let (reader, writer, _) = connection.split()?;
        let writer = Arc::new(Mutex::new(Some(writer)));
        let network = threads::Network {
            endpoint: endpoint.clone(),
            writer: writer.clone(),
            queue: self.net.0.clone(),
            live: self.live.clone(),
            announcement: self
                .config
                .guest_ip()
                .map(|ip| lan::gratuitous_arp(lan::Mac(self.config.args.mac), ip)),
        };
        start("net-rx", move || network.receive(reader))?;
        Ok(Some(writer))
    }

    fn console(&self) -> anyhow::Result<Box<dyn Write + Send>> {
        Ok(match &self.config.args.console {
            None => Box::new(std::io::stdout()),
            Some(path) => {
                let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
                Box::new(file.with_context(|| format!("cannot write --console {}", path.display()))?)
            }
        })
    }

    /// The vCPU thread's loop.
    fn live(&self, recorder: Recorder<Kvm>, leader: Arc<Leader>, writer: Option<ChannelWriter>) -> Live<Kvm> {
        let inputs = Inputs { net: self.net.1.clone(), control: self.control.1.clone() };
        let (vm, claimant, of_joined) = (self.config.args.vm.clone(), self.claimant, leader.clone());
        let joined = Box::new(move |joined| replicate(&vm, claimant, &of_joined, joined));
        Live::new(recorder, leader, writer, inputs, self.config.digest_every_ns(), joined)
    }

    /// Makes this process' leader and starts the threads that every live copy has.
    fn lead(
        &self,
        primary: Primary<Output>,
        outside: Outside,
        claims: Claims,
        disk: Option<DiskClient>,
    ) -> anyhow::Result<Arc<Leader>> {
        let leader = Arc::new(Leader::new(primary, outside, self.clock, self.control.0.clone(), claims));
        let (of_disk, queue, address) = (leader.clone(), self.control.0.clone(), self.disk_address());
        start("disk", move || threads::disk(of_disk, queue, address, disk))?;
        let of_ticks = leader.clone();
        start("ticker", move || threads::tick_leader(&of_ticks))?;
        self.live.store(true, Ordering::Release);
        Ok(leader)
    }

    /// Wins the first generation of this start. `take_over` disregards a holder that is still connected.
    fn win_generation(
        &self,
        take_over: bool,
        backup: Option<&str>,
    ) -> anyhow::Result<(Generation, DiskClient)> {
        let address = self.disk_address();
        let (mut client, opened) = address.open().with_context(|| {
            format!("no disk at {}: start one with `lockstep disk-server --data DIR`", address.server)
        })?;
        let state = opened.state;
        if state.holder_connected && !take_over {
            bail!(
                "virtual machine {} is live elsewhere: generation {} is held by {:032x}, which is connected \
                 to the disk server. If that copy must end, repeat with --take-over",
                address.vm,
                state.holding.generation,
                state.holding.holder.unwrap_or(0)
            );
        }
        if let (true, Some(backup)) = (state.holder_connected, backup) {
            // Before the live copy is fenced off: is there anybody to replicate to?
            TcpStream::connect(backup)
                .with_context(|| format!("no backup listens on {backup}; the live copy was left alone"))?;
        }
        match client.test_and_set(&address.vm, state.holding.generation, self.claimant)? {
            Claim::Won(generation) => Ok((generation, client)),
            Claim::Lost(holding) => {
                bail!("somebody else started {} just now (generation {})", address.vm, holding.generation)
            }
        }
    }
}

/// Who this process is in claims: unique for each start.
fn claimant() -> anyhow::Result<u128> {
    crate::io::random_u128().context("cannot read /dev/urandom")
}

/// Runs an unreplicated machine, or with `backup` the primary of a pair.
pub fn run_live(
    config: VmConfig,
    backup: Option<(&str, &PairArgs)>,
    take_over: bool,
) -> anyhow::Result<ProcessEnd> {
    let wait_for_backup = Duration::from_secs(60);
    let role = if backup.is_some() { "primary" } else { "run" };
    let host = Host::new(config, role, claimant()?)?;
    let (generation, disk) = host.win_generation(take_over, backup.map(|(address, _)| address))?;
    let (claims, claim_server) = claims(&host.config.args.disk_server, &host.config.args.vm);
    let protocol = match backup {
        Some((_, pair)) => pair.protocol(host.claimant),
        None => PairArgs::default().protocol(host.claimant),
    };
    let primary = Primary::alone(protocol, generation, 0, host.clock.now_ns());
    let outside = Outside::new(host.network()?, host.console()?, generation);
    let mut channel = None;
    if let Some((address, _)) = backup {
        let heartbeats = Arc::new(HeartbeatSocket::bind("0.0.0.0:0")?);
        let hello = Hello {
            config: host.config.pair(),
            generation,
            claimant: host.claimant,
            heartbeat_port: heartbeats.local_addr().port(),
            transfer: false,
        };
        eprintln!("lockstep: waiting for the backup at {address}");
        channel = Some((logchannel::tcp::connect(address, &hello, wait_for_backup)?, heartbeats));
    }
    let recorder = Recorder::new(machine(&host.config)?, ClockPolicy::default(), host.clock.now_ns());
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
    Ok(ProcessEnd::Live(host.live(recorder, leader, writer).run()?))
}

/// Greets a backup that is to get this machine by state transfer.
fn greet_backup(
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
    let hello = Hello { config: config.pair(), generation, claimant, heartbeat_port, transfer: true };
    let (connection, welcome) = logchannel::tcp::connect(to, &hello, wait_for_backup)?;
    Ok(Joining { connection, welcome, heartbeats })
}

/// Starts replicating to a backup that has the whole machine.
fn replicate(
    vm: &str,
    claimant: u128,
    leader: &Arc<Leader>,
    joined: Joined,
) -> anyhow::Result<ChannelWriter> {
    let Joined { endpoint, writer, closer, reader, welcome, heartbeats, to, start: log } = joined;
    let mut sender = ChannelSender::new(endpoint, Limits::default(), log);
    let (acks, hash) = (sender.take_acks(), vm_hash(vm));
    let heartbeat = HeartbeatLink { socket: heartbeats.clone(), to, vm: hash, claimant };
    let pairing = leader.join(Link { sender, closer, heartbeat });
    let of_acks = leader.clone();
    start("acks", move || threads::acks(of_acks, pairing, reader, acks))?;
    let peer = PeerIdentity { vm: hash, claimant: welcome.claimant, role: Role::Backup };
    let of_beats = leader.clone();
    start("heartbeats", move || {
        let heard = |beat| of_beats.event_of(pairing, ft::PrimaryEvent::Heartbeat(beat));
        threads::heartbeats(&heartbeats, peer, heard, || of_beats.replicating(pairing));
    })?;
    eprintln!("lockstep: replicating {vm} from entry {} on", log.seq + 1);
    Ok(writer)
}

/// Runs the backup of a pair: listens for a primary, follows it, and goes live when it must.
pub fn run_backup(
    mut config: VmConfig,
    pair: &PairArgs,
    listen: &str,
    report: impl Fn(&replay::Divergence) -> anyhow::Result<()>,
) -> anyhow::Result<ProcessEnd> {
    let listener = Listener::bind(listen)?;
    let heartbeats = Arc::new(HeartbeatSocket::bind(&format!("{}:0", listener.local_addr().ip()))?);
    println!("lockstep: backup listening on {}", listener.local_addr());
    std::io::stdout().flush()?;
    let claimant = claimant()?;
    let (hello, connection) = accept(&listener, &config, claimant, &heartbeats)?;
    drop(listener);
    config.wall_base_ns = hello.config.wall_base_ns;
    let host = Host::new(config, "backup", claimant)?;
    let (claims, claim_server) = claims(&host.config.args.disk_server, &host.config.args.vm);
    let net = host.network()?;
    let (replayer, follower) = join(&host, pair, &hello, connection, &claims, &heartbeats)?;
    let slot: Arc<Mutex<Option<Arc<Leader>>>> = Arc::default();
    let (of_claims, successor) = (follower.clone(), slot.clone());
    start("claims", move || {
        let leader = || successor.lock().unwrap_or_else(PoisonError::into_inner).clone();
        claim_server.serve(
            |expect, answer| match leader() {
                Some(leader) => leader.event(ft::PrimaryEvent::ClaimAnswer { expect, answer }),
                None => of_claims.event(ft::BackupEvent::ClaimAnswer { expect, answer }),
            },
            // A backup needs no word of it: it asks when its primary is gone.
            |generation| {
                if let Some(leader) = leader() {
                    leader.event(ft::PrimaryEvent::Fenced { generation });
                }
            },
        );
    })?;
    host.status(|parts| parts.follower = Some(follower.clone()));
    match follower.follow(replayer) {
        FollowEnd::Halted { reason, divergence, mut replayer } => {
            if let Some(mut divergence) = divergence {
                match replayer.machine_mut().cpu() {
                    Ok(cpu) => divergence.notes.extend(cpu.describe()),
                    Err(error) => divergence.notes.push(format!("the registers cannot be read: {error}")),
                }
                report(&divergence)?;
            }
            Ok(ProcessEnd::Backup(reason))
        }
        FollowEnd::Live { backup, replayer, generation, resend, mut times, status } => {
            let outside = Outside::new(net, host.console()?, generation);
            let leader = host.lead(backup.into_primary(), outside, claims, None)?;
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(leader.clone());
            announce(&host, &leader)?;
            let recorder = replayer.into_recorder(ClockPolicy::default(), host.clock.now_ns());
            leader.resend(resend.into_iter().map(|(_, output)| output));
            times.live_ns = host.clock.now_ns();
            host.status(|parts| {
                parts.role = "primary";
                parts.leader = Some(leader.clone());
                parts.failover = Some(times);
                parts.follower = None;
                parts.backup = Some(status);
            });
            eprintln!("lockstep: {} is live here, generation {generation}", host.config.args.vm);
            let mut live = host.live(recorder, leader, None);
            live.go_live(generation);
            Ok(ProcessEnd::Live(live.run()?))
        }
    }
}

/// Waits for a primary with the same machine; refuses others and says why.
fn accept(
    listener: &Listener,
    config: &VmConfig,
    claimant: u128,
    heartbeats: &HeartbeatSocket,
) -> anyhow::Result<(Hello, Connection)> {
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
                let welcome = Welcome { claimant, heartbeat_port: heartbeats.local_addr().port() };
                match incoming.welcome(welcome) {
                    Ok(connection) => return Ok((hello, connection)),
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

/// Gets the machine, as it boots or by state transfer, and starts following.
fn join(
    host: &Host,
    pair: &PairArgs,
    hello: &Hello,
    connection: Connection,
    claims: &Claims,
    heartbeats: &Arc<HeartbeatSocket>,
) -> anyhow::Result<(Replayer<Kvm>, Arc<Follower>)> {
    let to = SocketAddr::new(connection.peer().ip(), hello.heartbeat_port);
    let (mut endpoint, writer, mut reader) = connection.split()?;
    let closer = writer.closer()?;
    let (machine, log) = match hello.transfer {
        false => (machine(&host.config)?, LogStart::default()),
        true => transferred(&host.config, &mut endpoint, &mut reader)?,
    };
    let in_flight = machine.disk_in_flight().into_iter().map(Output::Disk);
    let vm = vm_hash(&host.config.args.vm);
    let link = HeartbeatLink { socket: heartbeats.clone(), to, vm, claimant: host.claimant };
    let backup = Backup::new(pair.protocol(host.claimant), host.clock.now_ns());
    let receiver = ChannelReceiver::new(endpoint, log);
    let link = FollowLink {
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
    Ok((Replayer::resume(machine, log.seq + 1), follower))
}

/// Receives a running machine.
fn transferred(
    config: &VmConfig,
    endpoint: &mut logchannel::endpoint::Endpoint,
    reader: &mut logchannel::tcp::ChannelReader,
) -> anyhow::Result<(Kvm, LogStart)> {
    let mut ram = Ram::new(config.memory_bytes())?;
    let (state, log) = transfer::receive(endpoint, reader, &mut ram)?;
    let engine = KvmEngine::new(&ram)?;
    Ok((Machine::restored(engine, ram, state)?, log))
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

/// Tells the network where the guest's MAC address is now (DESIGN 5.5).
fn announce(host: &Host, leader: &Arc<Leader>) -> anyhow::Result<()> {
    let Some(ip) = host.config.guest_ip() else { return Ok(()) };
    let frame = lan::gratuitous_arp(lan::Mac(host.config.args.mac), ip);
    (0..ANNOUNCEMENTS).for_each(|_| leader.announce(&frame));
    let leader = leader.clone();
    start("announce", move || {
        for wait in AGAIN_AFTER {
            std::thread::sleep(wait);
            leader.announce(&frame);
        }
    })?;
    Ok(())
}
