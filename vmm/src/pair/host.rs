//! What both halves of a pair have: their sockets, their control socket, the threads of a live copy.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender, bounded};
use disk_server::client::DiskClient;
use ft::{HaltReason, Primary};
use logchannel::buffer::Limits;
use logchannel::heartbeat::{Role, vm_hash};
use logchannel::message::Hello;
use logchannel::sender::Sender as ChannelSender;
use logchannel::tcp::ChannelWriter;
use logchannel::{Event, Generation, Output};
use replay::{Ending, Recorder};

use crate::assemble::Vm;
use crate::config::VmConfig;
use crate::io::clock::HostClock;
use crate::io::console::{self, ConsoleFile, ConsoleLimits, ConsoleSink};
use crate::io::control;
use crate::pair::answers::{Answers, StatusParts};
use crate::pair::awaited_end::AwaitedEnd;
use crate::pair::claims::Claims;
use crate::pair::disk_health::DiskHealth;
use crate::pair::egress::{Egress, NetWriter};
use crate::pair::generation;
use crate::pair::leader::{Control, HeartbeatLink, Leader, Link};
use crate::pair::live::{Inputs, Live, LiveEnd};
use crate::pair::new_disk;
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
    /// As a backup; with how the guest ended, if it did.
    Backup(HaltReason, Option<Ending>),
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
    pub(super) health: Arc<DiskHealth>,
    status: Arc<Mutex<StatusParts>>,
    end: Arc<AwaitedEnd>,
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
            health: Arc::default(),
            status: Arc::new(Mutex::new(StatusParts {
                role,
                config: Arc::new(config.clone()),
                starting: None,
                leader: None,
                follower: None,
                backup: None,
                failover: None,
            })),
            end: Arc::default(),
            config,
        };
        host.serve_control()?;
        let queue = host.control.0.clone();
        host.config.around.debugging.on_message(Box::new(move || {
            let _ = queue.try_send(Control::Poke);
        }));
        Ok(host)
    }

    /// What `status` is made of.
    pub(super) fn parts(&self) -> Arc<Mutex<StatusParts>> {
        self.status.clone()
    }

    pub(super) fn status(&self, change: impl FnOnce(&mut StatusParts)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Tells whoever asked `stop` how this process' part in the machine ended.
    pub(super) fn ended(&self, end: ProcessEnd) -> ProcessEnd {
        self.end.tell(&end);
        end
    }

    /// Says what a process does that is to be a live copy.
    pub(super) fn starting(&self, what: impl Into<String>) {
        let what = what.into();
        self.status(|parts| parts.starting = Some(what));
    }

    /// Makes this the backup of the primary that says `hello`.
    pub(super) fn adopt(&mut self, hello: &Hello) {
        self.config.adopt(hello);
        let config = Arc::new(self.config.clone());
        self.status(|parts| parts.config = config);
    }

    fn serve_control(&self) -> anyhow::Result<()> {
        let Some(path) = &self.config.args.control else { return Ok(()) };
        let answers = Answers {
            parts: self.status.clone(),
            clock: self.clock,
            started_ns: self.clock.now_ns(),
            claimant: self.claimant,
            queue: self.control.0.clone(),
            health: self.health.clone(),
            replication: Arc::default(),
            end: self.end.clone(),
        };
        let socket = control::bind(path)?;
        let meter = self.config.around.meter.clone();
        start("meter", move || meter.keep_looking())?;
        start("control", move || control::serve(&socket, move |request| answers.answer(request)))?;
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
        let connection = lan::backend::Connection::connect(endpoint)?;
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

    /// Where the guest's console output goes.
    pub(super) fn console(&self) -> anyhow::Result<ConsoleSink> {
        let args = &self.config.args;
        let writer: Box<dyn Write + Send> = match &args.console {
            None => Box::new(std::io::stdout()),
            Some(path) => Box::new(
                ConsoleFile::open(path, args.console_size << 20)
                    .with_context(|| format!("cannot write --console {}", path.display()))?,
            ),
        };
        Ok(ConsoleSink { writer, limits: ConsoleLimits::new(args.console_rate << 10) })
    }

    /// Fills the disk, if that was not done before and the guest has a content for it.
    pub(super) fn fill_disk(&self, client: &mut DiskClient, generation: Generation) -> anyhow::Result<()> {
        let address = self.disk_address();
        let opened = client.open(&address.vm, &address.disk, Some(address.bytes), self.claimant)?;
        new_disk::fill(client, &opened, generation, self.config.disk_image.as_deref())?;
        Ok(())
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
        egress: Arc<Egress>,
        claims: Claims,
        disk: Option<DiskClient>,
    ) -> anyhow::Result<Arc<Leader>> {
        let leader = Arc::new(Leader::new(
            primary,
            egress,
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

    /// Looks whether this start is in vain, before anything is done for it: another copy is live. Waits while
    /// one that is not connected may return.
    pub(super) fn look_for_another_copy(&self) -> anyhow::Result<()> {
        generation::wait_until_free(&self.disk_address())
    }

    /// Wins the first generation of this start: the machine is about to run. `take_over` disregards a holder
    /// that is there or may return. An `OtherCopyLive` says that another copy was found and left alone.
    pub(super) fn win_generation(&self, take_over: bool) -> anyhow::Result<(Generation, DiskClient)> {
        generation::win(&self.disk_address(), take_over)
    }
}

/// This start found another copy of its machine, and left it alone.
#[derive(Debug, thiserror::Error)]
pub enum OtherCopyLive {
    /// It is connected to the disk server.
    #[error(
        "virtual machine {vm} is live elsewhere: generation {generation} is held by {holder:032x}, which is \
         connected to the disk server. That copy was left alone and nothing was started here; to give it a \
         backup: start `lockstep backup`, then `lockstep replicate` at the live copy"
    )]
    Connected {
        /// The machine.
        vm: String,
        /// What it holds.
        generation: Generation,
        /// Who it is.
        holder: u128,
    },
    /// It won while this one was about to.
    #[error("another copy of {vm} was started just now, under generation {generation}; it was left alone")]
    StartedNow {
        /// The machine.
        vm: String,
        /// What it holds.
        generation: Generation,
    },
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
    let Joined { endpoint, writer, closer, reader, welcome, heartbeats, to, start: log, attempt } = joined;
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
    if let Some(attempt) = attempt {
        attempt.done();
    }
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
