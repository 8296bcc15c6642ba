//! Log entries: everything that is not a function of the machine's own state, and what is checked of it.
//!
//! An entry is the triple of the VMware FT paper's logging channel (section 2.1): the instruction at which,
//! what kind, which data. Entries of one log have consecutive sequence numbers and positions that never
//! decrease.

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use crate::output::OutputKind;

/// Sequence number of a log entry: 1 for the first entry after boot, without gap or repeat.
pub type Seq = u64;

/// Generation of a virtual machine: how often the right to run it alone changed hands. 0 means never held.
pub type Generation = u64;

/// A point in the guest's execution, on the position clock of its engine.
///
/// Positions of one engine are ordered by `count`; two positions with equal count and different `point` are
/// different places that the count alone cannot order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Position {
    /// What the engine's clock counts (instructions retired, conditional branches retired, deterministic
    /// exits), since boot.
    pub count: u64,
    /// For clocks on which several instructions share one count (branches): the place among them.
    pub point: Option<Point>,
}

/// The place of a position among the instructions that share its count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Point {
    /// Guest RIP.
    pub rip: u64,
    /// Guest RCX: tells the iterations of a REP instruction apart.
    pub rcx: u64,
    /// Digest of the other general-purpose registers.
    pub registers: u64,
}

impl Position {
    /// The position with this count, on a clock where the count alone names it.
    pub const fn at(count: u64) -> Self {
        Self { count, point: None }
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.point {
            None => write!(f, "{}", self.count),
            Some(p) => write!(f, "{}@rip={:#x},rcx={:#x}", self.count, p.rip, p.rcx),
        }
    }
}

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Sequence number.
    pub seq: Seq,
    /// Where in the guest's execution it happened, and where replay applies it.
    pub at: Position,
    /// What happened.
    pub event: Event,
}

/// Status of a completed disk request, as virtio-blk reports it (virtio 1.2, 5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DiskStatus {
    /// VIRTIO_BLK_S_OK
    Ok,
    /// VIRTIO_BLK_S_IOERR
    IoError,
    /// VIRTIO_BLK_S_UNSUPP
    Unsupported,
}

/// What a log entry says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// An Ethernet frame arrived (no preamble, no FCS). The device copies it into guest memory and raises its
    /// line at exactly the entry's position.
    NetRx(#[serde(with = "crate::codec::bytes")] Vec<u8>),
    /// Bytes arrived at the serial console.
    ConsoleRx(#[serde(with = "crate::codec::bytes")] Vec<u8>),
    /// A disk request completed. `data` holds what a read returned, else it is empty.
    DiskDone {
        /// The request's id, given by the device that issued it.
        request: u64,
        /// How it ended.
        status: DiskStatus,
        /// The bytes read.
        #[serde(with = "crate::codec::bytes")]
        data: Vec<u8>,
    },
    /// The virtual clock is set forward, to nanoseconds since power-on; due device timers fire.
    Clock {
        /// Nanoseconds since power-on.
        now_ns: u64,
    },
    /// The result of a trapped instruction that no state of the machine determines.
    Trap {
        /// Which kind of instruction.
        instruction: TrapKind,
        /// What it returned.
        value: u64,
    },
    /// The guest put out something (DESIGN 4, the Output Rule): it is released once this entry is acked.
    Output {
        /// Where it went.
        kind: OutputKind,
        /// `Output::digest` of the content, little endian.
        digest: [u8; 8],
    },
    /// A fingerprint of the whole machine at this position, for divergence checks.
    Digest(MachineDigest),
    /// The machine was powered off from outside.
    Shutdown,
    /// The guest reset its machine, which started again at this position. A function of the machine's own state:
    /// it is checked, not applied.
    Reset,
    /// This copy went live, alone, under a new generation.
    GoLive {
        /// The generation won by test-and-set.
        generation: Generation,
    },
    /// A read of the shared disk completed without error; whoever receives this entry reads the data there
    /// itself. It then stands for the `DiskDone` of that read, which is what replay applies.
    DiskRead {
        /// The request's id, as in `DiskDone`.
        request: u64,
        /// Where the data is, in bytes.
        offset: u64,
        /// How many bytes.
        len: u32,
        /// `data_digest` of what the primary read.
        digest: [u8; 8],
    },
    /// This copy hands over: its guest stands still from here on. It goes on, after this entry, only if it
    /// wins a new generation (`GoLive` follows); else the log goes on at the backup's.
    HandOver,
    /// Somebody pressed the power button: the guest is asked to switch itself off.
    PowerButton,
}

/// xxh3-64 of data read from a disk, little endian.
pub fn data_digest(data: &[u8]) -> [u8; 8] {
    XxHash3_64::oneshot(data).to_le_bytes()
}

impl Event {
    /// The kind's name, for people.
    pub fn name(&self) -> &'static str {
        self.kind().name()
    }

    /// Which kind of event it is.
    pub fn kind(&self) -> EventKind {
        match self {
            Event::NetRx(_) => EventKind::NetRx,
            Event::ConsoleRx(_) => EventKind::ConsoleRx,
            Event::DiskDone { .. } => EventKind::DiskDone,
            Event::Clock { .. } => EventKind::Clock,
            Event::Trap { .. } => EventKind::Trap,
            Event::Output { .. } => EventKind::Output,
            Event::Digest(_) => EventKind::Digest,
            Event::Shutdown => EventKind::Shutdown,
            Event::Reset => EventKind::Reset,
            Event::GoLive { .. } => EventKind::GoLive,
            Event::DiskRead { .. } => EventKind::DiskRead,
            Event::HandOver => EventKind::HandOver,
            Event::PowerButton => EventKind::PowerButton,
        }
    }

    /// How many bytes it holds on the heap, for bounding buffers.
    pub fn data_len(&self) -> usize {
        match self {
            Event::NetRx(data) | Event::ConsoleRx(data) | Event::DiskDone { data, .. } => data.len(),
            _ => 0,
        }
    }
}

/// The kinds of event, without their data: for counting and naming them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EventKind {
    /// `Event::NetRx`
    NetRx,
    /// `Event::ConsoleRx`
    ConsoleRx,
    /// `Event::DiskDone`
    DiskDone,
    /// `Event::Clock`
    Clock,
    /// `Event::Trap`
    Trap,
    /// `Event::Output`
    Output,
    /// `Event::Digest`
    Digest,
    /// `Event::Shutdown`
    Shutdown,
    /// `Event::Reset`
    Reset,
    /// `Event::GoLive`
    GoLive,
    /// `Event::DiskRead`
    DiskRead,
    /// `Event::HandOver`
    HandOver,
    /// `Event::PowerButton`
    PowerButton,
}

impl EventKind {
    /// Every kind, in the order of their values.
    pub const ALL: [EventKind; 13] = [
        EventKind::NetRx,
        EventKind::ConsoleRx,
        EventKind::DiskDone,
        EventKind::Clock,
        EventKind::Trap,
        EventKind::Output,
        EventKind::Digest,
        EventKind::Shutdown,
        EventKind::Reset,
        EventKind::GoLive,
        EventKind::DiskRead,
        EventKind::HandOver,
        EventKind::PowerButton,
    ];

    /// The kind's name, for people.
    pub const fn name(self) -> &'static str {
        match self {
            EventKind::NetRx => "NetRx",
            EventKind::ConsoleRx => "ConsoleRx",
            EventKind::DiskDone => "DiskDone",
            EventKind::Clock => "Clock",
            EventKind::Trap => "Trap",
            EventKind::Output => "Output",
            EventKind::Digest => "Digest",
            EventKind::Shutdown => "Shutdown",
            EventKind::Reset => "Reset",
            EventKind::GoLive => "GoLive",
            EventKind::DiskRead => "DiskRead",
            EventKind::HandOver => "HandOver",
            EventKind::PowerButton => "PowerButton",
        }
    }
}

/// Instructions whose result enters through the log when the engine traps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TrapKind {
    /// RDTSC or RDTSCP.
    TimeStamp,
    /// RDRAND or RDSEED.
    Random,
}

/// Fingerprint of a machine: equal exactly when registers, devices and memory are (but for hash collisions of
/// xxh3, which is no defence against an attacker and need not be: both sides run our code).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct MachineDigest {
    /// xxh3-64 of the vCPU's registers.
    pub registers: u64,
    /// xxh3-64 of every device's state, the virtual clock included.
    pub devices: u64,
    /// xxh3-64 over the digests of all pages of guest memory.
    pub memory: u64,
}

impl std::fmt::Display for MachineDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "registers {:016x} devices {:016x} memory {:016x}",
            self.registers, self.devices, self.memory
        )
    }
}
