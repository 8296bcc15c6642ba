//! State transfer: how a running machine gets a backup (DESIGN 5.6).
//!
//! ```text
//!   live copy                                             new backup
//!   Hello{transfer} ────────────────────────────────────▶ same machine? Welcome
//!   pages, while the guest runs, a few at each stop ─────▶ into its memory
//!   pages changed meanwhile, again, until few are left ──▶
//!   the guest stands still: the rest, then State ────────▶ machine restored, joined
//!   entries ────────────────────────────────────────────▶ follows
//! ```
//!
//! The vCPU thread copies, between two runs of the guest, so pages never change under the copy. A backup that
//! takes nothing for a while is given up, and the machine runs on alone. A backup that did not get `State`
//! has not joined and never goes live.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use logchannel::batch::LogStart;
use logchannel::codec;
use logchannel::endpoint::Endpoint;
use logchannel::message::{Message, Pages, State, Welcome};
use logchannel::tcp::{ChannelReader, ChannelWriter, Closer, Connection};
use logchannel::udp::HeartbeatSocket;

use crate::engine::Engine;
use crate::machine::{Machine, MachineError, MachineState};
use crate::memory::{PAGE_BYTES, Ram};
use crate::pair::greeting::heartbeat_address;
use crate::pair::replication::Attempt;

/// Pages copied at one stop of the guest: well under a millisecond.
const PAGES_PER_STOP: usize = 128;
/// Most pages in one message.
const PAGES_PER_MESSAGE: usize = 64;
/// With this few pages left the guest stands still for the rest.
const FEW_PAGES: usize = 256;
/// After so many rounds it does in any case: the guest writes faster than the channel carries.
const MAX_ROUNDS: u32 = 8;
/// A backup that takes nothing for so long is given up: the guest stands still meanwhile.
const MAX_STALL: Duration = Duration::from_millis(500);
/// A primary that sends nothing for so long is gone, whatever TCP still believes.
const MAX_SILENCE: Duration = Duration::from_secs(10);

/// What a transfer needs of a machine, besides running it.
pub trait Transferable: replay::Machine {
    /// Starts or stops noting which pages change.
    fn track_pages(&mut self, on: bool) -> Result<(), Self::Error>;
    /// Pages changed since the last call, a bit each.
    fn take_changed_pages(&mut self) -> Result<Vec<u64>, Self::Error>;
    /// Whether the state alone says how the guest goes on.
    fn is_movable(&mut self) -> Result<bool, Self::Error>;
    /// Guest memory.
    fn memory(&self) -> &Ram;
    /// Everything else, encoded.
    fn save_state(&mut self) -> Result<Vec<u8>, Self::Error>;
    /// Lets a debugger have its say while the guest waits.
    fn attend(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
}

impl<E: Engine> Transferable for Machine<E> {
    fn track_pages(&mut self, on: bool) -> Result<(), MachineError> {
        Machine::track_pages(self, on)
    }

    fn take_changed_pages(&mut self) -> Result<Vec<u64>, MachineError> {
        Machine::take_changed_pages(self)
    }

    fn is_movable(&mut self) -> Result<bool, MachineError> {
        Machine::is_movable(self)
    }

    fn attend(&mut self) -> Result<(), MachineError> {
        Machine::attend(self)
    }

    fn memory(&self) -> &Ram {
        self.ram()
    }

    fn save_state(&mut self) -> Result<Vec<u8>, MachineError> {
        Ok(codec::encode(&self.save()?).expect("a machine state is far below the codec's limit"))
    }
}

/// A backup that welcomed this machine and waits for its state.
pub struct Joining {
    /// The channel.
    pub connection: Connection,
    /// What the backup said.
    pub welcome: Welcome,
    /// Our heartbeats.
    pub heartbeats: Arc<HeartbeatSocket>,
    /// What is told of it.
    pub attempt: Attempt,
}

/// The channel of a backup that has the whole machine.
pub struct Joined {
    /// The protocol's end of it.
    pub endpoint: Endpoint,
    /// Where entries go.
    pub writer: ChannelWriter,
    /// Ends the connection.
    pub closer: Closer,
    /// Where acks come from.
    pub reader: ChannelReader,
    /// What the backup said.
    pub welcome: Welcome,
    /// Our heartbeats.
    pub heartbeats: Arc<HeartbeatSocket>,
    /// Where the backup hears heartbeats.
    pub to: SocketAddr,
    /// Where the log continues.
    pub start: LogStart,
    /// The attempt that this was, if the backup joined a machine that ran.
    pub attempt: Option<Attempt>,
}

/// A transfer under way.
pub struct Outgoing {
    channel: Joined,
    todo: Vec<u64>,
    round: u32,
    bytes: Vec<u8>,
    raw: Vec<u8>,
}

impl Outgoing {
    /// Begins with all of memory.
    pub fn start<M: Transferable>(machine: &mut M, joining: Joining) -> anyhow::Result<Self> {
        machine.track_pages(true)?;
        let Joining { connection, welcome, heartbeats, attempt } = joining;
        let to = heartbeat_address(connection.peer(), welcome.heartbeat_port);
        let (endpoint, writer, reader) = connection.split()?;
        writer.set_patience(Some(MAX_STALL))?;
        let pages = machine.memory().pages();
        let todo = vec![u64::MAX; pages.div_ceil(64)];
        let start = LogStart::default();
        let closer = writer.closer()?;
        let attempt = Some(attempt);
        let channel = Joined { endpoint, writer, closer, reader, welcome, heartbeats, to, start, attempt };
        Ok(Self { channel, todo, round: 0, bytes: Vec::new(), raw: Vec::new() })
    }

    /// Copies a few pages. Whether it is time to stop the guest for the rest.
    pub fn step<M: Transferable>(&mut self, machine: &mut M) -> anyhow::Result<bool> {
        if self.send_pages(machine.memory(), PAGES_PER_STOP)? {
            return Ok(false);
        }
        self.todo = machine.take_changed_pages()?;
        self.round += 1;
        let left: u32 = self.todo.iter().map(|word| word.count_ones()).sum();
        Ok((left as usize <= FEW_PAGES || self.round >= MAX_ROUNDS) && machine.is_movable()?)
    }

    /// Copies the rest, with the guest standing still after entry `seq`.
    pub fn finish<M: Transferable>(mut self, machine: &mut M, seq: u64) -> anyhow::Result<Joined> {
        while self.send_pages(machine.memory(), usize::MAX)? {}
        machine.track_pages(false)?;
        let (count, state) = (machine.position().count, machine.save_state()?);
        // The last thing that may fail: a backup that has all of it joins, and may claim.
        self.send(&Message::State(State { seq, count, machine: state }))?;
        self.channel.writer.set_patience(None)?;
        self.channel.start = LogStart { seq, count };
        Ok(self.channel)
    }

    /// Sends at most `most` of the pages to do; whether there were any. Zero pages of the first round are
    /// left out: the backup's memory begins as zeroes.
    fn send_pages(&mut self, ram: &Ram, most: usize) -> anyhow::Result<bool> {
        let mut sent = 0;
        while sent < most {
            let Some(first) = next_page(&self.todo, 0) else { break };
            self.raw.clear();
            let mut page = first;
            while page - first < PAGES_PER_MESSAGE
                && page < ram.pages()
                && self.todo[page / 64] >> (page % 64) & 1 == 1
            {
                self.todo[page / 64] &= !(1 << (page % 64));
                let content = ram.page(page);
                if self.round == 0 && is_zero(content) {
                    break;
                }
                self.raw.extend_from_slice(content);
                page += 1;
            }
            sent += (page - first).max(1);
            if page > first {
                let pages = Pages {
                    first: first as u64,
                    count: u32::try_from(page - first).expect("a message has few pages"),
                    lz4: lz4_flex::compress(&self.raw),
                };
                self.send(&Message::Pages(pages))?;
            }
        }
        Ok(sent > 0)
    }

    fn send(&mut self, message: &Message) -> anyhow::Result<()> {
        self.bytes.clear();
        self.channel.endpoint.send(message, &mut self.bytes)?;
        let written = self.channel.writer.write_all(&self.bytes).map_err(anyhow::Error::new);
        if let Some(attempt) = &self.channel.attempt {
            match &written {
                Ok(()) => attempt.sent(self.bytes.len()),
                Err(error) => attempt.fail(error),
            }
        }
        written
    }
}

fn is_zero(page: &[u8]) -> bool {
    page.chunks_exact(8).all(|word| word == [0; 8])
}

fn next_page(bitmap: &[u64], from: usize) -> Option<usize> {
    let word = bitmap[from..].iter().position(|word| *word != 0)? + from;
    Some(word * 64 + bitmap[word].trailing_zeros() as usize)
}

/// The backup's side: fills `ram`, and returns the state and where the log continues.
pub fn receive(
    endpoint: &mut Endpoint,
    reader: &mut ChannelReader,
    ram: &mut Ram,
) -> anyhow::Result<(MachineState, LogStart)> {
    let mut buffer = vec![0; 256 << 10];
    reader.set_patience(Some(MAX_SILENCE))?;
    loop {
        while let Some(message) = endpoint.next_message()? {
            match message {
                Message::Pages(pages) => store(ram, &pages)?,
                Message::State(State { seq, count, machine }) => {
                    let state: MachineState = codec::decode(&machine).context("the transferred state")?;
                    ensure!(state.at.count == count, "state at {} where {count} is said", state.at);
                    reader.set_patience(None)?;
                    return Ok((state, LogStart { seq, count }));
                }
                other => bail!("message kind {} during state transfer", other.kind()),
            }
        }
        match reader.read(&mut buffer)? {
            0 => bail!("the primary went away during state transfer"),
            count => endpoint.push(&buffer[..count]),
        }
    }
}

fn store(ram: &mut Ram, pages: &Pages) -> anyhow::Result<()> {
    let count = pages.count as usize;
    let end = pages.first.checked_add(count as u64).filter(|end| *end <= ram.pages() as u64);
    ensure!(
        count <= PAGES_PER_MESSAGE && end.is_some(),
        "pages {}+{count} of {}: not of this machine",
        pages.first,
        ram.pages()
    );
    let raw = lz4_flex::decompress(&pages.lz4, count * PAGE_BYTES).context("transferred pages")?;
    ensure!(raw.len() == count * PAGE_BYTES, "{} bytes for {count} pages", raw.len());
    let first = usize::try_from(pages.first).context("the number of a page")?;
    ram.write(first * PAGE_BYTES, &raw);
    Ok(())
}
