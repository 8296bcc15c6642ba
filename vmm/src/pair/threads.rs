//! The threads that join sockets to the protocol. Each ends with its socket or its process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Sender as Queue;
use disk_server::Embedded;
use disk_server::client::{AnswerReader, ClientError, DiskClient, DiskOutcome};
use ft::{BackupEvent, PrimaryEvent};
use lan::wire::FrameBatch;
use logchannel::heartbeat::{Heartbeat, Role};
use logchannel::sender::AckReader;
use logchannel::tcp::ChannelReader;
use logchannel::udp::HeartbeatSocket;
use logchannel::{DiskStatus, Event};

use crate::io::repeated::Repeated;
use crate::pair::egress::NetWriter;
use crate::pair::follower::Follower;
use crate::pair::leader::{Control, Leader, Pairing};

const RECONNECT_EVERY: Duration = Duration::from_millis(20);
const CALL_DEADLINE: Duration = Duration::from_secs(5);
const HEARTBEAT_WAIT: Duration = Duration::from_millis(500);
const READ_BYTES: usize = 256 << 10;

/// Starts a named thread.
pub fn start(name: &str, body: impl FnOnce() + Send + 'static) -> anyhow::Result<JoinHandle<()>> {
    Ok(std::thread::Builder::new().name(name.into()).spawn(body)?)
}

/// The network of a process.
pub struct Network {
    /// Where it is.
    pub endpoint: lan::Endpoint,
    /// Where frames go, for `Egress`.
    pub writer: NetWriter,
    /// Where frames come to.
    pub queue: Queue<Vec<u8>>,
    /// Whether this process is the live copy; before, frames are thrown away.
    pub live: Arc<AtomicBool>,
    /// What tells the network where the guest is.
    pub announcement: Option<[u8; 42]>,
}

impl Network {
    /// Receives frames until the guest is gone; connects anew when the network went away.
    pub fn receive(self, mut reader: lan::backend::FrameReader) {
        let (mut batch, mut lost) = (FrameBatch::default(), Repeated::default());
        loop {
            batch.clear();
            if let Err(error) = reader.read(&mut batch) {
                if let Some(times) = lost.happened() {
                    tracing::warn!(%error, times, "the network is gone; connecting again");
                }
                reader = self.reconnect();
                continue;
            }
            if !self.live.load(Ordering::Acquire) {
                continue;
            }
            for frame in batch.iter() {
                if self.queue.send(frame.to_vec()).is_err() {
                    return;
                }
            }
        }
    }

    fn reconnect(&self) -> lan::backend::FrameReader {
        *self.writer.lock().unwrap_or_else(PoisonError::into_inner) = None;
        loop {
            std::thread::sleep(RECONNECT_EVERY);
            match lan::backend::Connection::connect(&self.endpoint).and_then(|connection| connection.split())
            {
                Ok((reader, mut writer, _)) => {
                    if let (Some(frame), true) = (&self.announcement, self.live.load(Ordering::Acquire)) {
                        let announced = writer.write(&[frame]);
                        tracing::debug!(?announced, "back on the network");
                    }
                    *self.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
                    return reader;
                }
                Err(error) => tracing::debug!(%error, "network"),
            }
        }
    }
}

/// Which disk, for whom.
#[derive(Debug, Clone)]
pub struct DiskAddress {
    /// The disk server, host:port.
    pub server: String,
    /// The virtual machine.
    pub vm: String,
    /// The disk.
    pub disk: String,
    /// Its size.
    pub bytes: u64,
    /// This process.
    pub claimant: u128,
}

impl DiskAddress {
    /// Connects and opens the disk.
    pub fn open(&self) -> Result<(DiskClient, disk_server::protocol::Opened), ClientError> {
        let mut client = DiskClient::connect(&self.server, CALL_DEADLINE)?;
        let opened = client.open(&self.vm, &self.disk, Some(self.bytes), self.claimant)?;
        Ok((client, opened))
    }

    /// Connects and opens the disk if it exists, for reads only.
    fn open_existing(&self) -> Result<(DiskClient, disk_server::protocol::Opened), ClientError> {
        let mut client = DiskClient::connect(&self.server, CALL_DEADLINE)?;
        let opened = client.open(&self.vm, &self.disk, None, self.claimant)?;
        Ok((client, opened))
    }
}

/// Completions from the disk server to the guest; connects anew for as long as it takes. Requests in flight
/// are repeated on each connection.
pub fn disk(leader: Arc<Leader>, control: Queue<Control>, address: DiskAddress, first: Option<DiskClient>) {
    let mut first = first;
    let (mut lost, mut refused) = (Repeated::default(), Repeated::default());
    loop {
        let opened = match first.take() {
            Some(mut client) => client
                .open(&address.vm, &address.disk, Some(address.bytes), address.claimant)
                .map(|o| (client, o)),
            None => address.open(),
        };
        let halves = opened.and_then(|(client, opened)| client.split(opened.disk));
        match halves {
            Ok((sender, mut answers)) => {
                leader.connect_disk(sender);
                let error = completions(&leader, &control, &mut answers, &mut refused);
                // A store in this process ends with it.
                if !Embedded::is_address(&address.server)
                    && let Some(times) = lost.happened()
                {
                    tracing::warn!(%error, times, "connection to the disk server lost; connecting again");
                }
            }
            // As above.
            Err(_) if Embedded::is_address(&address.server) => std::thread::sleep(RECONNECT_EVERY),
            Err(error) => {
                if let Some(times) = lost.happened() {
                    tracing::warn!(%error, times, "no connection to the disk server; trying again");
                }
                std::thread::sleep(RECONNECT_EVERY);
            }
        }
    }
}

fn completions(
    leader: &Leader,
    control: &Queue<Control>,
    answers: &mut AnswerReader,
    refused: &mut Repeated,
) -> ClientError {
    loop {
        let answer = match answers.next_answer() {
            Ok(answer) => answer,
            Err(error) => return error,
        };
        leader.disk_answered();
        let (status, data) = match answer.outcome {
            DiskOutcome::Data(data) => (DiskStatus::Ok, data),
            DiskOutcome::Done => (DiskStatus::Ok, Vec::new()),
            DiskOutcome::Fenced(holding) => {
                leader.event(PrimaryEvent::Fenced { generation: holding.generation });
                continue;
            }
            DiskOutcome::Refused { code, message } => {
                if let Some(times) = refused.happened() {
                    tracing::error!(?code, message, times, "disk request refused");
                }
                (DiskStatus::IoError, Vec::new())
            }
        };
        let done = Event::DiskDone { request: answer.tag, status, data };
        if control.send(Control::Input(done)).is_err() {
            return ClientError::Closed { server: String::new(), reason: "the guest is gone".into() };
        }
    }
}

/// What a backup reads from the shared disk itself; connects anew as long as it follows. Reads without an
/// answer are repeated on each connection.
pub fn reads(follower: &Follower, address: &DiskAddress) {
    let mut failed = Repeated::default();
    while follower.reads_disk() {
        match address.open_existing().and_then(|(client, opened)| client.split(opened.disk)) {
            Ok((sender, mut answers)) => {
                follower.connect_disk(sender);
                let lost = loop {
                    match answers.next_answer() {
                        Ok(answer) => {
                            if !follower.fetched(answer) {
                                break "given up".to_string();
                            }
                        }
                        Err(error) => break error.to_string(),
                    }
                };
                tracing::info!(lost, "connection to the disk server");
            }
            Err(error) => {
                if let Some(times) = failed.happened() {
                    tracing::warn!(%error, times, "cannot read the shared disk");
                }
            }
        }
        std::thread::sleep(RECONNECT_EVERY);
    }
}

/// Acks from a backup.
pub fn acks(leader: Arc<Leader>, pairing: Pairing, mut reader: ChannelReader, mut acks: AckReader) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let from = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => acks.on_bytes(&buffer[..count]),
            Err(error) => {
                tracing::debug!(%error, "logging channel");
                break;
            }
        };
        match from {
            Ok(from) => {
                if let Some(ack) = from.ack {
                    leader.acked(pairing, ack);
                }
                if let Some(reach) = from.disk_reach {
                    let (number, reaches) = (reach.number, reach.reaches);
                    leader.event_of(pairing, PrimaryEvent::DiskReach { number, reaches });
                }
                if let Some(reason) = from.goodbye {
                    tracing::warn!(reason, "the backup left");
                    leader.event_of(pairing, PrimaryEvent::BackupLeft);
                    return;
                }
            }
            Err(error) => {
                tracing::error!(%error, "logging channel");
                break;
            }
        }
    }
    leader.event_of(pairing, PrimaryEvent::ChannelBroken);
}

/// Entries from the primary.
pub fn entries(follower: Arc<Follower>, mut reader: ChannelReader) {
    let (mut buffer, mut entries) = (vec![0; READ_BYTES], Vec::new());
    // The first of them may have come with the end of a state transfer: nothing else may come before their
    // ack.
    if !follower.on_bytes(&[], &mut entries) {
        return;
    }
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                if !follower.on_bytes(&buffer[..count], &mut entries) {
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "logging channel");
                break;
            }
        }
    }
    follower.event(BackupEvent::ChannelBroken);
}

/// Whose heartbeats count.
#[derive(Debug, Clone, Copy)]
pub struct PeerIdentity {
    /// `vm_hash` of the machine's name.
    pub vm: u64,
    /// The peer.
    pub claimant: u128,
    /// Which half it is.
    pub role: Role,
}

/// Heartbeats of the peer to `heard`, while `wanted`.
pub fn heartbeats(
    socket: &HeartbeatSocket,
    peer: PeerIdentity,
    heard: impl Fn(ft::Heartbeat),
    wanted: impl Fn() -> bool,
) {
    let of_peer =
        |beat: &Heartbeat| (beat.vm, beat.claimant, beat.role) == (peer.vm, peer.claimant, peer.role);
    while wanted() {
        match socket.receive(HEARTBEAT_WAIT) {
            Ok(Some(beat)) if of_peer(&beat) => {
                heard(ft::Heartbeat { generation: beat.generation, number: beat.sequence });
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "heartbeats");
                std::thread::sleep(RECONNECT_EVERY);
            }
        }
    }
}

/// `Tick` to a leader, for ever.
pub fn tick_leader(leader: &Leader) {
    const LONGEST_NS: u64 = 50_000_000;
    loop {
        let wait = leader.next_tick_ns().saturating_sub(leader.clock().now_ns()).clamp(1_000_000, LONGEST_NS);
        std::thread::sleep(Duration::from_nanos(wait));
        leader.tick();
    }
}
