//! The process of `lockstep run` and of `lockstep primary`: a live copy from power-on.

use crossbeam_channel::Sender;
use disk_server::client::DiskClient;
use ft::Primary;
use logchannel::Generation;
use logchannel::batch::LogStart;
use replay::Recorder;
use tokio::signal::unix::{SignalKind, signal};

use crate::assemble::{self, Vm};
use crate::config::{VmConfig, protocol};
use crate::io::clock::wall_ns;
use crate::pair::claims::claims;
use crate::pair::egress::Egress;
use crate::pair::greeting::{Begun, Greeted, heartbeat_address};
use crate::pair::host::{Host, ProcessEnd, announce, claimant, replicate};
use crate::pair::leader::Control;
use crate::pair::live::LiveEnd;
use crate::pair::threads::start;
use crate::pair::transfer::Joined;
use crate::recording::format::Header;
use crate::recording::sink::{RecordOptions, Sink};

/// Runs an unreplicated machine, or with `backup` the primary of a pair; with `record` its log goes into a
/// file too.
pub fn run_live(
    config: VmConfig,
    backup: Option<&str>,
    take_over: bool,
    record: Option<&RecordOptions>,
) -> anyhow::Result<ProcessEnd> {
    let role = if backup.is_some() { "primary" } else { "run" };
    let host = Host::new(config, role, claimant()?)?;
    if !take_over {
        host.look_for_another_copy()?;
    }
    let (network, console) = (host.network()?, host.console()?);
    host.starting("loading the guest");
    // Before the pair forms: a large guest takes its time, and from then on silence means death.
    let mut machine = assemble::boot(&host.config)?;
    let Won { generation, disk, sink, begun } = win(&host, &mut machine, backup, take_over, record)?;
    let (claims, claim_server) =
        claims(&host.config.args.disk_server, &host.config.args.vm, host.health.clone());
    let protocol = protocol(&host.config.policy, host.claimant);
    let primary = Primary::alone(protocol, generation, 0, host.clock.now_ns());
    let egress = Egress::start(network, console, generation, host.clock)?;
    let recorder = Recorder::new(machine, host.config.clock, power_on_ns(&host));
    let leader = host.lead(primary, egress, claims, Some(disk))?;
    let of_claims = leader.clone();
    start("claims", move || {
        claim_server.serve(
            |expect, answer| of_claims.event(ft::PrimaryEvent::ClaimAnswer { expect, answer }),
            |generation| of_claims.event(ft::PrimaryEvent::Fenced { generation }),
        );
    })?;
    let mut channel = None;
    if let Some(Begun { connection, welcome, heartbeats }) = begun {
        let to = heartbeat_address(connection.peer(), welcome.heartbeat_port);
        let (endpoint, writer_half, reader) = connection.split()?;
        let start = LogStart::default();
        let closer = writer_half.closer()?;
        let (writer, attempt) = (writer_half, None);
        let joined = Joined { endpoint, writer, closer, reader, welcome, heartbeats, to, start, attempt };
        channel = Some(replicate(&host.config.args.vm, host.claimant, &leader, joined)?);
    }
    // A network may still know the address at the place of a copy that is gone.
    announce(&host, &leader)?;
    host.status(|parts| (parts.leader, parts.starting) = (Some(leader.clone()), None));
    let _terminal = host.console_input()?;
    let mut live = host.live(recorder, leader.clone(), channel);
    if sink.is_some() || backup.is_none() {
        end_on_signal(host.control.0.clone())?;
    }
    if let Some(sink) = sink {
        live.record(sink);
    }
    let end = live.run()?;
    if matches!(end, LiveEnd::Guest { .. }) {
        host.release(&leader);
    }
    Ok(host.ended(ProcessEnd::Live(end)))
}

/// What a machine that is about to run has.
struct Won {
    generation: Generation,
    disk: DiskClient,
    sink: Option<Sink>,
    begun: Option<Begun>,
}

/// Greets the backup, wins the first generation, prepares the disk, and begins the pair. The generation comes
/// as late as it can: whoever holds it fences all others, so nothing that takes its time or may fail in
/// another way is between that and the guest's first instruction but what needs the generation.
fn win(
    host: &Host,
    machine: &mut Vm,
    backup: Option<&str>,
    take_over: bool,
    record: Option<&RecordOptions>,
) -> anyhow::Result<Won> {
    let greeted = backup.map(|address| greet(host, address)).transpose()?;
    let mut prepare = || {
        host.starting("winning a generation");
        let (generation, mut disk) = host.win_generation(take_over)?;
        host.starting("preparing the disk");
        host.fill_disk(&mut disk, generation)?;
        let sink = record.map(|options| {
            let header = Header::new(&host.config, options.checkpoint_every_ns);
            let sink = Sink::create(&options.path, &header, LogStart::default(), machine)?;
            anyhow::Ok(sink.with_image(host.config.guest_image()))
        });
        let sink = sink.transpose()?;
        anyhow::Ok(Won { generation, disk, sink, begun: None })
    };
    let Some(mut greeted) = greeted else { return prepare() };
    let won = greeted.while_preparing(prepare)?;
    let begun = Some(greeted.begin_start(won.generation)?);
    Ok(Won { begun, ..won })
}

/// Greets the backup that this start is to have.
fn greet(host: &Host, address: &str) -> anyhow::Result<Greeted> {
    host.starting(format!("waiting for the backup at {address}"));
    eprintln!("lockstep: waiting for the backup at {address}");
    Greeted::at_start(address, &host.config, host.claimant)
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
