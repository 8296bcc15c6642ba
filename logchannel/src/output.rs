//! Outputs: what a guest sends into the world, and what the Output Rule holds back.

use std::hash::Hasher as _;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

/// Where an output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum OutputKind {
    /// An Ethernet frame.
    Net,
    /// A disk request.
    Disk,
    /// Bytes of the serial console.
    Console,
}

/// One output of the guest, with its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// An Ethernet frame, without preamble and FCS.
    Net(Vec<u8>),
    /// A disk request.
    Disk(DiskRequest),
    /// Bytes of the serial console.
    Console(Vec<u8>),
}

/// A request to the machine's disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRequest {
    /// Given by the device, unique for the life of the machine and counted up: a replica gives the same.
    pub id: u64,
    /// What to do.
    pub op: DiskOp,
}

/// What a disk request asks. Offsets and lengths are bytes, multiples of 512.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskOp {
    /// Read `len` bytes at `offset`.
    Read {
        /// Byte offset on the disk.
        offset: u64,
        /// How many bytes.
        len: u32,
    },
    /// Write `data` at `offset`. With `durable`, it is on stable storage before it completes (a writethrough
    /// device, virtio 1.2, 5.2.6.2); without, the next `Flush` makes it so.
    Write {
        /// Byte offset on the disk.
        offset: u64,
        /// The bytes.
        data: Vec<u8>,
        /// Complete only when durable.
        durable: bool,
    },
    /// Make every completed write durable.
    Flush,
}

impl Output {
    /// Where it goes.
    pub fn kind(&self) -> OutputKind {
        match self {
            Output::Net(_) => OutputKind::Net,
            Output::Disk(_) => OutputKind::Disk,
            Output::Console(_) => OutputKind::Console,
        }
    }

    /// xxh3-64 over the whole content, little endian: what the `Output` entry carries and the backup
    /// compares.
    pub fn digest(&self) -> [u8; 8] {
        let mut hash = XxHash3_64::with_seed(self.kind() as u64);
        match self {
            Output::Net(bytes) | Output::Console(bytes) => hash.write(bytes),
            Output::Disk(request) => {
                hash.write(&request.id.to_le_bytes());
                match &request.op {
                    DiskOp::Read { offset, len } => {
                        hash.write(&[0]);
                        hash.write(&offset.to_le_bytes());
                        hash.write(&len.to_le_bytes());
                    }
                    DiskOp::Write { offset, data, durable } => {
                        hash.write(&[1, u8::from(*durable)]);
                        hash.write(&offset.to_le_bytes());
                        hash.write(data);
                    }
                    DiskOp::Flush => hash.write(&[2]),
                }
            }
        }
        hash.finish().to_le_bytes()
    }

    /// How many bytes of content it holds, for bounding buffers.
    pub fn len(&self) -> usize {
        match self {
            Output::Net(bytes) | Output::Console(bytes) => bytes.len(),
            Output::Disk(DiskRequest { op: DiskOp::Write { data, .. }, .. }) => data.len(),
            Output::Disk(_) => 0,
        }
    }

    /// Whether it holds no bytes of content.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
