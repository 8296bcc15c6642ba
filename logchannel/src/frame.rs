//! Frames: how messages travel on a byte stream, for the logging channel and the disk protocol alike.
//!
//! ```text
//!  0      4        6     7      8           16        20       24
//!  +------+--------+-----+------+-----------+---------+--------+---------------+
//!  | magic| version| kind| zero | sequence  | length  | CRC-32 | payload       |
//!  +------+--------+-----+------+-----------+---------+--------+---------------+
//!    4 B    u16      u8    u8     u64         u32       u32      length bytes      all little endian
//! ```
//!
//! The CRC (IEEE) covers the header with its own four bytes as zero, then the payload. Sequences count from 0
//! on each direction of each connection, so a repeated, lost or foreign frame is seen at once.

use crc32fast::Hasher;

/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 24;

/// What distinguishes one protocol's frames from another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protocol {
    /// What people call it; used in errors.
    pub name: &'static str,
    /// First bytes of every frame.
    pub magic: [u8; 4],
    /// Version that both ends must have.
    pub version: u16,
    /// Longest payload, in bytes.
    pub max_payload: usize,
}

/// One received frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The message's kind, as its protocol numbers them.
    pub kind: u8,
    /// The message.
    pub payload: Vec<u8>,
}

/// Why bytes are not the next frame. The connection cannot be used any further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not this protocol at all.
    #[error("not a {protocol} frame: it begins with {found:02x?}")]
    Magic {
        /// The protocol expected.
        protocol: &'static str,
        /// The bytes found.
        found: [u8; 4],
    },
    /// The peer speaks another version.
    #[error(
        "{protocol} version {found} from the peer, version {expected} here: run the same lockstep on both"
    )]
    Version {
        /// The protocol.
        protocol: &'static str,
        /// Version of this end.
        expected: u16,
        /// Version in the frame.
        found: u16,
    },
    /// Longer than the protocol allows.
    #[error("{protocol} frame of {found} bytes, {limit} allowed")]
    TooLong {
        /// The protocol.
        protocol: &'static str,
        /// Most bytes allowed.
        limit: usize,
        /// Bytes claimed.
        found: usize,
    },
    /// A frame is missing, repeated, or comes from elsewhere.
    #[error("{protocol} frame {found} where frame {expected} is due")]
    Sequence {
        /// The protocol.
        protocol: &'static str,
        /// The number due.
        expected: u64,
        /// The number found.
        found: u64,
    },
    /// The bytes were changed on their way.
    #[error("{protocol} frame {sequence} is damaged: CRC {found:08x}, computed {computed:08x}")]
    Crc {
        /// The protocol.
        protocol: &'static str,
        /// The frame's number.
        sequence: u64,
        /// CRC in the frame.
        found: u32,
        /// CRC of what arrived.
        computed: u32,
    },
}

fn crc(header: &[u8], payload: &[u8]) -> u32 {
    let mut hash = Hasher::new();
    hash.update(&header[..20]);
    hash.update(&[0; 4]);
    hash.update(payload);
    hash.finalize()
}

/// Makes frames of one direction of one connection.
#[derive(Debug, Clone)]
pub struct FrameWriter {
    protocol: Protocol,
    next: u64,
}

impl FrameWriter {
    /// A writer whose first frame has sequence 0.
    pub fn new(protocol: Protocol) -> Self {
        Self { protocol, next: 0 }
    }

    /// Appends one frame to `out`. Panics if the payload exceeds the protocol's limit: the caller splits.
    pub fn write(&mut self, kind: u8, payload: &[u8], out: &mut Vec<u8>) {
        self.write_with(kind, out, |out| out.extend_from_slice(payload));
    }

    /// Appends one frame to `out`, whose payload `fill` appends in place. Panics if that exceeds the
    /// protocol's limit.
    pub fn write_with(&mut self, kind: u8, out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_LEN]);
        fill(out);
        let length = out.len() - start - HEADER_LEN;
        assert!(length <= self.protocol.max_payload, "{}: payload too long", self.protocol.name);
        let (header, payload) = out[start..].split_at_mut(HEADER_LEN);
        header[..4].copy_from_slice(&self.protocol.magic);
        header[4..6].copy_from_slice(&self.protocol.version.to_le_bytes());
        header[6] = kind;
        header[8..16].copy_from_slice(&self.next.to_le_bytes());
        let length = u32::try_from(length).expect("no protocol allows 4 GiB");
        header[16..20].copy_from_slice(&length.to_le_bytes());
        let sum = crc(header, payload);
        header[20..].copy_from_slice(&sum.to_le_bytes());
        self.next += 1;
    }
}

/// Finds frames in the bytes of one direction of one connection.
#[derive(Debug, Clone)]
pub struct FrameReader {
    protocol: Protocol,
    next: u64,
    buffer: Vec<u8>,
    start: usize,
}

impl FrameReader {
    /// A reader that expects sequence 0 first.
    pub fn new(protocol: Protocol) -> Self {
        Self { protocol, next: 0, buffer: Vec::new(), start: 0 }
    }

    /// A reader in the middle of a stream, whose next frame is `number`.
    pub fn starting_at(protocol: Protocol, number: u64) -> Self {
        Self { next: number, ..Self::new(protocol) }
    }

    /// Adds bytes as they arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if it has arrived. After an error the stream is lost: close the connection.
    ///
    /// The header is judged as soon as it is there, so a peer cannot make this end wait for, or hold, more
    /// than `max_payload` bytes beyond what one `push` brought.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let frame = self.next_payload()?;
        Ok(frame.map(|(kind, payload)| Frame { kind, payload: payload.to_vec() }))
    }

    /// As `next_frame`, but lends the payload out of the reader's own buffer instead of copying it: kind,
    /// payload.
    pub fn next_payload(&mut self) -> Result<Option<(u8, &[u8])>, FrameError> {
        let protocol = self.protocol.name;
        let bytes = &self.buffer[self.start..];
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let found = [header[0], header[1], header[2], header[3]];
        if found != self.protocol.magic {
            return Err(FrameError::Magic { protocol, found });
        }
        let version = u16::from_le_bytes([header[4], header[5]]);
        if version != self.protocol.version {
            return Err(FrameError::Version { protocol, expected: self.protocol.version, found: version });
        }
        let sequence = u64::from_le_bytes(header[8..16].try_into().expect("eight bytes"));
        if sequence != self.next {
            return Err(FrameError::Sequence { protocol, expected: self.next, found: sequence });
        }
        let length = u32::from_le_bytes(header[16..20].try_into().expect("four bytes")) as usize;
        if length > self.protocol.max_payload {
            return Err(FrameError::TooLong { protocol, limit: self.protocol.max_payload, found: length });
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let found = u32::from_le_bytes(header[20..].try_into().expect("four bytes"));
        let computed = crc(header, payload);
        if found != computed {
            return Err(FrameError::Crc { protocol, sequence, found, computed });
        }
        self.start += HEADER_LEN + length;
        self.next = self.next.wrapping_add(1);
        Ok(Some((header[6], payload)))
    }

    /// Bytes that arrived and are not yet part of a frame taken.
    pub fn buffered(&self) -> &[u8] {
        &self.buffer[self.start..]
    }
}
