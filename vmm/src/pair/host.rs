//! What both halves of a pair have: their sockets, their control socket, the threads of a live copy.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender, bounded};
use disk_server::client::DiskClient;
use ft::{HaltReason, Primary};
use logchannel::buffer::Limits;
use logchannel::heartbeat::{Role, vm_hash};
use logchannel::sender::Sender as ChannelSender;
use logchannel::tcp::ChannelWriter;
use logchannel::{Event, Generation, Output};
use replay::Recorder;

use crate::assemble::Vm;
use crate::config::VmConfig;
use crate::io::clock::HostClock;
use crate::io::{console, control};
use crate::pair::claims::Claims;
use crate::pair::follower::{FailoverTimes, Follower, FollowerStatus};
use crate::pair::generation;
use crate::pair::leader::{Control, HeartbeatLink, Leader, Link};
use crate::pair::live::{Inputs, Live, LiveEnd};
use crate::pair::new_disk;
use crate::pair::outside::{NetWriter, Outside};
use crate::pair::primary::greet_backup;
use crate::pair::status::Status;
use crate::pair::threads::{self, DiskAddress, PeerIdentity, start};
use crate::pair::transfer::Joined;

/// Frames that wait for the guest.
const NET_QUEUE: usize = 1024;
/// Reads of the console's input that wait for the guest.
const CONSOLE_QUEUE: usize = 16;
/// Completions and requests that wait for the guest: more than a disk has in flight.
const CONTROL_QUEUE: usize = 4096;
/// Longest wait for answers of the disk server when the guest has ended.
const RELEASE_WITHIN_NS: u64 = 5_000_000_000;
/// How often an announcement of the guest's address is sent at once.
const ANNOUNCEMENTS: usize = 2;
/// Waits before it is sent again: a copy that was replaced, and did not know it yet, may have sent since.
const AGAIN_AFTER: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

/// How a process' part in a virtual machine ended.
#[derive(Debug)]
pub enum ProcessEnd {
    /// As a live copy.
    Live(LiveEnd),
    /// As a backup; with the path of the report if it diverged.
    Backup(HaltReason),
}

/// Everything that both halves have.
pub(super) struct Host {
    pub(super) config: VmConfig,
    pub(super) clock: HostClock,
    pub(super) claimant: u128,
    pub(super) control: (Sender<Control>, Receiver<Control>),
    net: (Sender<Vec<u8>>, Receiver<Vec<u8>>),
    typed: (Sender<Vec<u8>>, Receiver<Vec<u8>>),
    live: Arc<AtomicBool>,
    status: Arc<Mutex<StatusParts>>,
}

/// What `status` is made of.
pub(super) struct StatusParts {
    pub(super) role: &'static str,
    pub(super) leader: Option<Arc<Leader>>,
    pub(super) follower: Option<Arc<Follower>>,
    pub(super) backup: Option<FollowerStatus>,
    pub(super) failover: Option<FailoverTimes>,
}

impl StatusParts {
    /// Whether the live copy is here; else what this process is.
    fn live_role(&self) -> Result<(), &'static str> {
        self.leader.is_some().then_some(()).ok_or(self.role)
    }
}

impl Host {
    pub(super) fn new(config: VmConfig, role: &'static str, claimant: u128) -> anyhow::Result<Self> {
        let host = Self {
            clock: HostClock,
            claimant,
            control: bounded(CONTROL_QUEUE),
            net: bounded(NET_QUEUE),
            typed: bounded(CONSOLE_QUEUE),
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
        let queue = host.control.0.clone();
        host.config.debugging.on_message(Box::new(move || {
            let _ = queue.try_send(Control::Poke);
        }));
        Ok(host)
    }

    pub(super) fn status(&self, change: impl FnOnce(&mut StatusParts)) {
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
                    engine: config.engine.to_string(),
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

    pub(super) fn disk_address(&self) -> DiskAddress {
        DiskAddress {
            server: self.config.args.disk_server.clone(),
            vm: self.config.args.vm.clone(),
            disk: self.config.disk.clone(),
            bytes: self.config.disk_bytes(),
            claimant: self.claimant,
        }
    }

    /// Connects to the network and starts reading from it.
    pub(super) fn network(&self) -> anyhow::Result<Option<NetWriter>> {
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

    pub(super) fn console(&self) -> anyhow::Result<Box<dyn Write + Send>> {
        Ok(match &self.config.args.console {
            None => Box::new(std::io::stdout()),
            Some(path) => {
                let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
                Box::new(file.with_context(|| format!("cannot write --console {}", path.display()))?)
            }
        })
    }

    /// Fills the disk, if that was not done before and the guest has a content for it.
    pub(super) fn fill_disk(&self, client: &mut DiskClient, generation: Generation) -> anyhow::Result<()> {
        let address = self.disk_address();
        let opened = client.open(&address.vm, &address.disk, Some(address.bytes), self.claimant)?;
        new_disk::fill(client, &opened, generation, self.config.disk_image.as_deref())?;
        Ok(())
    }

    /// The disk for a backup that went live: filled, should the primary have died over that.
    pub(super) fn filled_disk(&self, generation: Generation) -> anyhow::Result<Option<DiskClient>> {
        let Ok((mut client, _)) = self.disk_address().open() else { return Ok(None) };
        self.fill_disk(&mut client, generation)?;
        Ok(Some(client))
    }

    /// The guest has ended: when its last disk requests are answered, the disk server is told, so that the
    /// next start need not wait.
    pub(super) fn release(&self, leader: &Leader) {
        let end = self.clock.now_ns() + RELEASE_WITHIN_NS;
        while leader.status().disk_in_flight > 0 {
            let left = Duration::from_nanos(end.saturating_sub(self.clock.now_ns()));
            match self.control.1.recv_timeout(left) {
                Ok(Control::Input(Event::DiskDone { request, .. })) => {
                    leader.disk_completed(request);
                }
                Ok(_) if !left.is_zero() => {}
                _ => {
                    return tracing::warn!("the disk server does not answer: the generation is not released");
                }
            }
        }
        if let Err(error) = generation::release(&self.disk_address(), leader.status().generation) {
            tracing::warn!(%error, "the generation is not released");
        }
    }

    /// Starts reading the console's input, if there is any. The terminal is as before once the result is
    /// dropped.
    pub(super) fn console_input(&self) -> anyhow::Result<Option<console::Terminal>> {
        let (queue, control) = (self.typed.0.clone(), self.control.0.clone());
        let end = move || drop(control.send(Control::Shutdown));
        let (reader, terminal) = match self.config.args.console_input.as_str() {
            "none" => return Ok(None),
            "auto" => match console::Terminal::take_over()? {
                Some(terminal) => (console::Reader::terminal(queue, end), Some(terminal)),
                None => return Ok(None),
            },
            _ => (console::Reader::stream(queue), None),
        };
        start("console-in", move || reader.read())?;
        Ok(terminal)
    }

    /// The vCPU thread's loop.
    pub(super) fn live(
        &self,
        recorder: Recorder<Vm>,
        leader: Arc<Leader>,
        writer: Option<ChannelWriter>,
    ) -> Live<Vm> {
        let (net, control) = (self.net.1.clone(), self.control.1.clone());
        let inputs = Inputs { net, console: self.typed.1.clone(), control };
        let (vm, claimant, of_joined) = (self.config.args.vm.clone(), self.claimant, leader.clone());
        let joined = Box::new(move |joined| replicate(&vm, claimant, &of_joined, joined));
        Live::new(recorder, leader, writer, inputs, self.config.digest_every_ns(), joined)
    }

    /// Makes this process' leader and starts the threads that every live copy has.
    pub(super) fn lead(
        &self,
        primary: Primary<Output>,
        outside: Outside,
        claims: Claims,
        disk: Option<DiskClient>,
    ) -> anyhow::Result<Arc<Leader>> {
        let leader = Arc::new(Leader::new(
            primary,
            outside,
            self.clock,
            self.control.0.clone(),
            claims,
            self.config.backup_reads,
        ));
        let (of_disk, queue, address) = (leader.clone(), self.control.0.clone(), self.disk_address());
        start("disk", move || threads::disk(of_disk, queue, address, disk))?;
        let of_ticks = leader.clone();
        start("ticker", move || threads::tick_leader(&of_ticks))?;
        self.live.store(true, Ordering::Release);
        Ok(leader)
    }

    /// Wins the first generation of this start. `take_over` disregards a holder that is still connected.
    pub(super) fn win_generation(
        &self,
        take_over: bool,
        backup: Option<&str>,
    ) -> anyhow::Result<(Generation, DiskClient)> {
        let address = self.disk_address();
        let (mut client, state) = generation::wait_until_free(&address, take_over)?;
        if let (true, Some(backup)) = (state.holder_connected, backup) {
            // Before the live copy is fenced off: is there anybody to replicate to?
            TcpStream::connect(backup)
                .with_context(|| format!("no backup listens on {backup}; the live copy was left alone"))?;
        }
        let generation = generation::win(&mut client, &address, take_over)?;
        Ok((generation, client))
    }
}

/// Who this process is in claims: unique for each start.
pub(super) fn claimant() -> anyhow::Result<u128> {
    crate::io::random_u128().context("cannot read /dev/urandom")
}

/// Starts replicating to a backup that has the whole machine.
pub(super) fn replicate(
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

/// Tells the network where the guest's MAC address is now (DESIGN 5.5).
pub(super) fn announce(host: &Host, leader: &Arc<Leader>) -> anyhow::Result<()> {
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
