//! How Ethernet frames travel on a byte stream: each is preceded by its length.
//!
//! ```text
//!  0         4
//!  +---------+----------------------+
//!  | length  | frame, without FCS   |
//!  +---------+----------------------+
//!    u32 BE    14..=1518 bytes
//! ```
//!
//! That is what QEMU's `-netdev stream` speaks, so a QEMU guest may attach to the switch too. A length
//! outside the limits means that the peer speaks something else: the stream cannot be used any further.

/// Bytes of a frame's length prefix.
pub const PREFIX_LEN: usize = 4;
/// Shortest frame: an Ethernet header.
pub const MIN_FRAME_LEN: usize = 14;
/// Longest frame: header, VLAN tag and 1500 bytes of payload.
pub const MAX_FRAME_LEN: usize = 1518;

/// Bytes of a `FrameDecoder`'s buffer: what one read from the stream may bring.
pub const READ_BUFFER_LEN: usize = 64 << 10;

/// The stream holds no frame where one is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a frame of {length} bytes was announced, {MIN_FRAME_LEN} to {MAX_FRAME_LEN} are possible: the peer must \
     send Ethernet frames, each preceded by its length as 32 bits big endian"
)]
pub struct WireError {
    /// The length announced.
    pub length: u32,
}

/// Whether a frame of this length may travel.
pub const fn is_frame_len(len: usize) -> bool {
    MIN_FRAME_LEN <= len && len <= MAX_FRAME_LEN
}

/// Finds frames in the bytes of a stream, in a buffer of fixed size.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl FrameDecoder {
    /// A decoder that is given bytes by `space` and `filled`.
    pub fn new() -> Self {
        Self { buffer: vec![0; READ_BUFFER_LEN].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Room for more bytes of the stream; never empty once `next_frame` returned `None`.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.end < PREFIX_LEN + MAX_FRAME_LEN {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buffer[self.end..]
    }

    /// Says that `count` bytes were put into `space`.
    pub fn filled(&mut self, count: usize) {
        assert!(count <= self.buffer.len() - self.end, "more bytes than there was space");
        self.end += count;
    }

    /// The next whole frame, if it is there.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, WireError> {
        let bytes = &self.buffer[self.start..self.end];
        let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX_LEN>() else { return Ok(None) };
        let length = u32::from_be_bytes(*prefix);
        if !is_frame_len(length as usize) {
            return Err(WireError { length });
        }
        let Some(frame) = rest.get(..length as usize) else { return Ok(None) };
        self.start += PREFIX_LEN + frame.len();
        Ok(Some(frame))
    }
}

/// Frames one after the other in one allocation, to be used again and again.
#[derive(Debug, Default, Clone)]
pub struct FrameBatch {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl FrameBatch {
    /// Appends a copy of a frame.
    pub fn push(&mut self, frame: &[u8]) {
        self.bytes.extend_from_slice(frame);
        self.ends.push(self.bytes.len());
    }

    /// Appends a frame of `len` bytes that `fill` writes.
    pub fn push_with<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let start = self.bytes.len();
        self.bytes.resize(start + len, 0);
        let result = fill(&mut self.bytes[start..]);
        self.ends.push(self.bytes.len());
        result
    }

    /// How many frames there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of all frames together.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// The frame at `index`.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        Some(&self.bytes[start..end])
    }

    /// The frames in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// Forgets all frames, keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
