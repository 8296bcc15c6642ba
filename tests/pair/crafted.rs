//! One half of a pair made by hand: it knows the protocol's bytes, and not how to behave.

use std::time::Duration;

use clap::Parser;
use disk_server::client::{Claim, DiskClient};
use lockstep::config::{VmArgs, VmConfig};
use logchannel::message::{CHANNEL, Hello};
use logchannel::pair::{PairConfig, Policy};
use logchannel::tcp::{ChannelReader, ChannelWriter};
use logchannel::{Endpoint, Event, LogEntry, MachineDigest, Message, Position};
use replay::Machine as _;

use crate::harness::{PATIENCE, Pair};

/// Who the other half is said to be.
pub const CLAIMANT: u128 = 0x000b_ad00_c0de;

#[derive(Debug, Parser)]
struct Options {
    #[command(flatten)]
    vm: VmArgs,
}

fn vm_config(options: &[&str]) -> VmConfig {
    let words = ["crafted"].into_iter().chain(options.iter().copied());
    let options = Options::try_parse_from(words).expect("valid options");
    VmConfig::new(&options.vm, None, 0).expect("a valid machine")
}

/// The machine that a process started with these options has.
pub fn pair_config(options: &[&str]) -> PairConfig {
    vm_config(options).pair()
}

/// The digest of that machine before its first instruction.
pub fn first_digest(options: &[&str]) -> MachineDigest {
    let mut machine = lockstep::assemble::boot(&vm_config(options)).expect("a machine");
    machine.digest().expect("its digest")
}

/// What a primary of `config` says first.
pub fn hello(config: PairConfig) -> Hello {
    let (policy, heartbeat_port, transfer, backup_reads) = (Policy::default(), 9, false, false);
    Hello { config, policy, claimant: CLAIMANT, heartbeat_port, transfer, backup_reads }
}

/// Wins the next generation of `vm` as a primary does, for `CLAIMANT`. The machine then counts as live as
/// long as the client is there.
pub fn win(pair: &Pair, vm: &str) -> (u64, DiskClient) {
    let mut client = DiskClient::connect(pair.disk_address(), PATIENCE).expect("the disk server");
    let expect = client.query(vm).expect("the machine's state").holding.generation;
    match client.test_and_set(vm, expect, CLAIMANT).expect("an answer") {
        Claim::Won(generation) => (generation, client),
        Claim::Lost(holding) => panic!("somebody else claims {vm}: {holding:?}"),
    }
}

/// The three parts of a connection whose handshake is done.
pub struct Channel {
    pub endpoint: Endpoint,
    pub writer: ChannelWriter,
    pub reader: ChannelReader,
}

impl Channel {
    /// Sends a message; false when the other end is gone.
    pub fn send(&mut self, message: &Message) -> bool {
        let mut bytes = Vec::new();
        self.endpoint.send(message, &mut bytes).expect("a message that fits");
        self.writer.write_all(&bytes).is_ok()
    }

    /// Reads until the other end is gone.
    pub fn drain(&mut self) {
        let mut buffer = vec![0; 64 << 10];
        while self.reader.read(&mut buffer).is_ok() {}
    }

    /// The next message; none when the other end is gone.
    pub fn receive(&mut self) -> Option<Message> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            if let Some(message) = self.endpoint.next_message().expect("a sound message") {
                return Some(message);
            }
            let count = self.reader.read(&mut buffer).ok()?;
            self.endpoint.push(&buffer[..count]);
        }
    }
}

/// Connects to a backup as the primary of `config`, and begins a pair under `generation`.
pub fn connect(address: &str, hello: &Hello, generation: u64) -> Result<Channel, logchannel::tcp::TcpError> {
    let (welcomed, _) = logchannel::tcp::connect(address, hello, Duration::from_secs(60))?;
    let connection = welcomed.begin(generation, Duration::from_secs(60))?;
    let (endpoint, writer, reader) = connection.split()?;
    Ok(Channel { endpoint, writer, reader })
}

/// A frame of the logging channel with any content.
pub fn frame(kind: u8, sequence: u64, payload: &[u8]) -> Vec<u8> {
    let mut writer = logchannel::frame::FrameWriter::new(CHANNEL);
    let mut bytes = Vec::new();
    for _ in 0..=sequence {
        bytes.clear();
        writer.write(kind, payload, &mut bytes);
    }
    bytes
}

/// The frame of a message.
pub fn message(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    Endpoint::new().send(message, &mut bytes).expect("a message that fits");
    bytes
}

/// Consecutive entries from `first` on, all at one position.
pub fn entries(first: u64, count: u64, events: Vec<Event>) -> Vec<LogEntry> {
    let number = |(index, event)| LogEntry { seq: first + index as u64, at: Position::at(count), event };
    events.into_iter().enumerate().map(number).collect()
}

/// Numbers that look random and are the same in each run.
pub struct Noise(pub u64);

impl Noise {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// So many bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}
