//! virtio-blk (virtio 1.2, 5.2): one queue; read, write, flush and get-id.
//!
//! ```text
//!  device-readable                           device-writable
//!  type u32 | zero u32 | sector u64 | data   data | status u8
//! ```
//!
//! How the guest splits this into descriptors is its own affair (2.7.4.3). Reads, writes and flushes leave as
//! `Output::Disk` and stay in flight until their `DiskDone` comes back; the rest is answered at once. While
//! the bounds of `layout` are reached, further requests stay in the guest's queue.
//!
//! What is in flight keeps its data: a copy that goes live issues exactly the bytes again that its Output
//! entry named, also when the guest has changed or reused the buffer. Requests that the guest abandoned by a
//! reset stay in flight until they are done, and then touch no memory.

use std::collections::VecDeque;

use logchannel::{DiskOp, DiskRequest, DiskStatus, Output};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk as def;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use super::mmio::{COMMON_FEATURES, Effect, Identity, Transport};
use super::ring::{Broken, Chain, Ring, Segment, gather, scatter};
use crate::layout::{
    MAX_DISK_IN_FLIGHT, MAX_DISK_IN_FLIGHT_BYTES, MAX_DISK_REQUEST_BYTES, SECTOR_BYTES, VIRTQUEUE_SIZE,
};

/// Bytes before the data of a request.
const HEADER_LEN: u64 = 16;
/// Offered in the configuration: the queue's size but for header and status.
const SEG_MAX: u32 = VIRTQUEUE_SIZE as u32 - 2;
/// Offered in the configuration: with `SEG_MAX` buffers of this size a driver stays below the largest
/// request.
const SIZE_MAX: u32 = 4096;
/// What VIRTIO_BLK_T_GET_ID returns.
const SERIAL: [u8; def::VIRTIO_BLK_ID_BYTES as usize] = *b"lockstep-disk\0\0\0\0\0\0\0";

const IDENTITY: Identity = Identity {
    name: "virtio-blk",
    device_id: VIRTIO_ID_BLOCK,
    features: COMMON_FEATURES
        | 1 << def::VIRTIO_BLK_F_SIZE_MAX
        | 1 << def::VIRTIO_BLK_F_SEG_MAX
        | 1 << def::VIRTIO_BLK_F_BLK_SIZE
        | 1 << def::VIRTIO_BLK_F_FLUSH,
};

/// Why a `DiskDone` cannot be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DoneError {
    /// No such request is in flight.
    Unknown,
    /// A successful read must bring as many bytes as were asked for, everything else none.
    Length { expected: u64 },
}

/// A request the outside has not completed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct InFlight {
    id: u64,
    op: Op,
    /// Where the guest waits for it; none once the guest has reset the device.
    reply: Option<Reply>,
}

/// `DiskOp`, with its data as a byte string.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Op {
    Read {
        offset: u64,
        len: u32,
    },
    Write {
        offset: u64,
        #[serde(with = "crate::bytes")]
        data: Vec<u8>,
        durable: bool,
    },
    Flush,
}

/// Where the answer of a request goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Reply {
    head: u16,
    status: u64,
    /// Buffers of a read, in order.
    buffers: Vec<Segment>,
}

impl Op {
    fn to_disk_op(&self) -> DiskOp {
        match self {
            Op::Read { offset, len } => DiskOp::Read { offset: *offset, len: *len },
            Op::Write { offset, data, durable } => {
                DiskOp::Write { offset: *offset, data: data.clone(), durable: *durable }
            }
            Op::Flush => DiskOp::Flush,
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Op::Read { len, .. } => u64::from(*len),
            Op::Write { data, .. } => data.len() as u64,
            Op::Flush => 0,
        }
    }
}

/// What becomes of a request.
enum Verdict {
    Issue(Op),
    Answer { status: u32, written: u32 },
}

/// The disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Blk {
    transport: Transport,
    ring: Ring,
    disk_bytes: u64,
    next_id: u64,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: u64,
}

impl Blk {
    /// A disk of whole sectors; what is left over at its end is not offered.
    pub(crate) fn new(disk_bytes: u64) -> Self {
        Self {
            transport: Transport::default(),
            ring: Ring::new(),
            disk_bytes: disk_bytes - disk_bytes % SECTOR_BYTES,
            next_id: 1,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
        }
    }

    /// As at power-on, but for the requests in flight: nobody waits for them any more, and until they are
    /// done their numbers are known.
    pub(crate) fn reset(&mut self) {
        self.transport = self.transport.after_reset();
        self.ring = Ring::new();
        self.in_flight.iter_mut().for_each(|request| request.reply = None);
    }

    /// Whether requests are in flight.
    pub(crate) fn is_busy(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// The level of the interrupt line.
    pub(crate) fn line(&self) -> bool {
        self.transport.line()
    }

    /// The requests that are to be done again by whoever goes live, in the order they were issued.
    pub(crate) fn in_flight(&self) -> impl Iterator<Item = DiskRequest> + '_ {
        self.in_flight.iter().map(|request| DiskRequest { id: request.id, op: request.op.to_disk_op() })
    }

    /// Whether a restored state can be one that this device reached.
    pub(crate) fn consistent(&self) -> bool {
        let bytes = self.in_flight.iter().try_fold(0u64, |sum, request| sum.checked_add(request.op.bytes()));
        let ids = self.in_flight.iter().map(|request| request.id);
        bytes == Some(self.in_flight_bytes)
            && self.in_flight_bytes < MAX_DISK_IN_FLIGHT_BYTES + MAX_DISK_REQUEST_BYTES
            && self.in_flight.len() <= MAX_DISK_IN_FLIGHT
            && ids.clone().all(|id| id < self.next_id)
            && ids.clone().zip(ids.skip(1)).all(|(a, b)| a < b)
    }

    /// Where the answer to a request in flight goes, if it is a read.
    #[cfg(feature = "planted-faults")]
    pub(crate) fn buffers(&self, id: u64) -> &[Segment] {
        let request = self.in_flight.iter().find(|request| request.id == id);
        request.and_then(|request| request.reply.as_ref()).map_or(&[], |reply| &reply.buffers)
    }

    #[allow(
        clippy::cast_possible_truncation,
        reason = "constants of 8 and 32 bits; a request is at most 1 MiB"
    )]
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 24];
        config[..8].copy_from_slice(&(self.disk_bytes / SECTOR_BYTES).to_le_bytes());
        config[8..12].copy_from_slice(&SIZE_MAX.to_le_bytes());
        config[12..16].copy_from_slice(&SEG_MAX.to_le_bytes());
        config[20..].copy_from_slice(&(SECTOR_BYTES as u32).to_le_bytes());
        self.transport.read(&IDENTITY, &[&self.ring], &config, offset, data);
    }

    pub(crate) fn write<M: GuestMemory>(
        &mut self,
        mem: &M,
        scratch: &mut Chain,
        outputs: &mut VecDeque<Output>,
        offset: u64,
        data: &[u8],
    ) {
        match self.transport.write(mem, &IDENTITY, &mut [&mut self.ring], offset, data) {
            Effect::Notify(0) => self.service(mem, scratch, outputs),
            Effect::Reset => self.in_flight.iter_mut().for_each(|request| request.reply = None),
            _ => {}
        }
    }

    /// Takes requests from the guest.
    pub(crate) fn service<M: GuestMemory>(
        &mut self,
        mem: &M,
        scratch: &mut Chain,
        outputs: &mut VecDeque<Output>,
    ) {
        if !self.transport.running() || !self.ring.has_chain(mem) {
            return;
        }
        if let Err(reason) = self.try_service(mem, scratch, outputs) {
            self.transport.break_down(&IDENTITY, reason);
        }
    }

    #[allow(
        clippy::cast_possible_truncation,
        reason = "constants of 8 and 32 bits; a request is at most 1 MiB"
    )]
    fn try_service<M: GuestMemory>(
        &mut self,
        mem: &M,
        chain: &mut Chain,
        outputs: &mut VecDeque<Output>,
    ) -> Result<(), Broken> {
        let mut answered = false;
        for _ in 0..self.ring.size() {
            let full = self.in_flight.len() >= MAX_DISK_IN_FLIGHT
                || self.in_flight_bytes >= MAX_DISK_IN_FLIGHT_BYTES;
            if full || !self.ring.pop(mem, chain)? {
                break;
            }
            let status = status_address(mem, chain)?;
            match self.judge(mem, chain)? {
                Verdict::Issue(op) => self.issue(op, status, chain, outputs),
                Verdict::Answer { status: code, written } => {
                    mem.write_obj(code as u8, GuestAddress(status)).map_err(|_| Broken::Buffer)?;
                    self.ring.push_used(mem, chain.head, written + 1)?;
                    answered = true;
                }
            }
        }
        self.ring.ask_for_notification(mem)?;
        self.interrupt_if(mem, answered)
    }

    fn interrupt_if<M: GuestMemory>(&mut self, mem: &M, answered: bool) -> Result<(), Broken> {
        if answered && self.ring.wants_interrupt(mem)? {
            self.transport.interrupt_used();
        }
        Ok(())
    }

    fn issue(&mut self, op: Op, status: u64, chain: &mut Chain, outputs: &mut VecDeque<Output>) {
        let buffers = match op {
            Op::Read { .. } => chain.writable.clone(),
            Op::Write { .. } | Op::Flush => Vec::new(),
        };
        let id = self.next_id;
        self.next_id += 1;
        self.in_flight_bytes += op.bytes();
        outputs.push_back(Output::Disk(DiskRequest { id, op: op.to_disk_op() }));
        self.in_flight.push_back(InFlight {
            id,
            op,
            reply: Some(Reply { head: chain.head, status, buffers }),
        });
    }

    #[allow(
        clippy::cast_possible_truncation,
        reason = "`place` allows 1 MiB at most, and a serial number has 20 bytes"
    )]
    fn judge<M: GuestMemory>(&self, mem: &M, chain: &Chain) -> Result<Verdict, Broken> {
        let refuse = Ok(Verdict::Answer { status: def::VIRTIO_BLK_S_IOERR, written: 0 });
        if chain.readable_len < HEADER_LEN {
            return refuse;
        }
        let mut header = [0; 16];
        gather(mem, &chain.readable, 0, &mut header)?;
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
        match kind {
            def::VIRTIO_BLK_T_IN => {
                let len = chain.writable_len - 1;
                match self.place(sector, len) {
                    Some(offset) if in_ram(mem, &chain.writable) => {
                        Ok(Verdict::Issue(Op::Read { offset, len: len as u32 }))
                    }
                    _ => refuse,
                }
            }
            def::VIRTIO_BLK_T_OUT => {
                let len = chain.readable_len - HEADER_LEN;
                let Some(offset) = self.place(sector, len) else { return refuse };
                if !in_ram(mem, &chain.readable) {
                    return refuse;
                }
                let mut data = vec![0; len as usize];
                gather(mem, &chain.readable, HEADER_LEN, &mut data)?;
                let durable = !self.transport.negotiated(def::VIRTIO_BLK_F_FLUSH);
                Ok(Verdict::Issue(Op::Write { offset, data, durable }))
            }
            def::VIRTIO_BLK_T_FLUSH => Ok(Verdict::Issue(Op::Flush)),
            def::VIRTIO_BLK_T_GET_ID => {
                let len = (chain.writable_len - 1).min(SERIAL.len() as u64) as usize;
                scatter(mem, &chain.writable, 0, &SERIAL[..len])?;
                Ok(Verdict::Answer { status: def::VIRTIO_BLK_S_OK, written: len as u32 })
            }
            _ => Ok(Verdict::Answer { status: def::VIRTIO_BLK_S_UNSUPP, written: 0 }),
        }
    }

    /// The byte offset of `len` bytes at `sector`, if they are whole sectors on the disk and not too many.
    fn place(&self, sector: u64, len: u64) -> Option<u64> {
        let offset = sector.checked_mul(SECTOR_BYTES)?;
        let whole = len > 0 && len.is_multiple_of(SECTOR_BYTES) && len <= MAX_DISK_REQUEST_BYTES;
        (whole && offset.checked_add(len)? <= self.disk_bytes).then_some(offset)
    }

    /// Whether a completion fits a request in flight.
    pub(crate) fn check_done(&self, id: u64, status: DiskStatus, data: &[u8]) -> Result<(), DoneError> {
        let request = self.in_flight.iter().find(|request| request.id == id).ok_or(DoneError::Unknown)?;
        let expected = match (&request.op, status) {
            (Op::Read { len, .. }, DiskStatus::Ok) => u64::from(*len),
            _ => 0,
        };
        if data.len() as u64 == expected { Ok(()) } else { Err(DoneError::Length { expected }) }
    }

    /// Completes a request that `check_done` found right, then goes on with what waited for room.
    pub(crate) fn done<M: GuestMemory>(
        &mut self,
        mem: &M,
        scratch: &mut Chain,
        outputs: &mut VecDeque<Output>,
        completion: (u64, DiskStatus, &[u8]),
    ) {
        let (id, status, data) = completion;
        let Some(index) = self.in_flight.iter().position(|request| request.id == id) else { return };
        let Some(request) = self.in_flight.remove(index) else { return };
        self.in_flight_bytes -= request.op.bytes();
        if !self.transport.running() {
            return;
        }
        if let Some(reply) = request.reply
            && self.ring.ready()
            && let Err(reason) = self.answer(mem, &reply, status, data)
        {
            self.transport.break_down(&IDENTITY, reason);
        }
        self.service(mem, scratch, outputs);
    }

    #[allow(
        clippy::cast_possible_truncation,
        reason = "constants of 8 and 32 bits; a request is at most 1 MiB"
    )]
    fn answer<M: GuestMemory>(
        &mut self,
        mem: &M,
        reply: &Reply,
        status: DiskStatus,
        data: &[u8],
    ) -> Result<(), Broken> {
        let code = match status {
            DiskStatus::Ok => def::VIRTIO_BLK_S_OK,
            DiskStatus::IoError => def::VIRTIO_BLK_S_IOERR,
            DiskStatus::Unsupported => def::VIRTIO_BLK_S_UNSUPP,
        };
        scatter(mem, &reply.buffers, 0, data)?;
        mem.write_obj(code as u8, GuestAddress(reply.status)).map_err(|_| Broken::Buffer)?;
        self.ring.push_used(mem, reply.head, data.len() as u32 + 1)?;
        self.interrupt_if(mem, true)
    }
}

/// Where the status goes: the last byte that the device may write.
fn status_address<M: GuestMemory>(mem: &M, chain: &Chain) -> Result<u64, Broken> {
    let last = chain.writable.last().ok_or(Broken::NoStatus)?;
    let address = last.address.checked_add(u64::from(last.len) - 1).ok_or(Broken::Buffer)?;
    let writable = mem.check_range(GuestAddress(address), 1, Permissions::Write);
    writable.then_some(address).ok_or(Broken::Buffer)
}

fn in_ram<M: GuestMemory>(mem: &M, segments: &[Segment]) -> bool {
    segments.iter().all(|segment| {
        mem.check_range(GuestAddress(segment.address), segment.len as usize, Permissions::ReadWrite)
    })
}

#[cfg(test)]
#[path = "blk_tests.rs"]
mod tests;
