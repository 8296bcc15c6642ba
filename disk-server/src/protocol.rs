//! The disk protocol: requests and answers, and their bytes.
//!
//! Every message is a frame of `logchannel::frame` (magic, version, sequence, CRC-32). A frame's payload:
//!
//! ```text
//!  0          2                    2+n
//!  +----------+--------------------+-----------------+
//!  | head len | head               | data            |
//!  +----------+--------------------+-----------------+
//!    u16 LE     n bytes, codec       the rest: what a Write brings, what a Read returns, a Status as JSON
//! ```
//!
//! The head is a `Request` or an `Answer` in the encoding of `logchannel::codec`. Data stays outside of it,
//! so that it is copied, not decoded. Tags are the client's; an answer carries the tag of its request.
//! Requests of one connection are executed in the order they were sent; answers may come in another order.
//! After an `Opened`, nothing of the claimant's older connections is executed on that disk any more.

use logchannel::frame::Protocol;
use logchannel::{Generation, codec};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::test_and_set::{Claimant, Holding, Refusal};

/// Version of the messages and of their layout.
pub const PROTOCOL_VERSION: u16 = 2;

/// The disk protocol's frames.
pub const PROTOCOL: Protocol =
    Protocol { name: "disk protocol", magic: *b"LKDS", version: PROTOCOL_VERSION, max_payload: 2 << 20 };

/// Frame kind of a request (client to server).
pub const KIND_REQUEST: u8 = 1;
/// Frame kind of an answer (server to client).
pub const KIND_ANSWER: u8 = 2;
/// Frame kind of the server's last word before it closes a connection: the payload is a UTF-8 sentence.
pub const KIND_CLOSING: u8 = 3;

/// Most bytes that one read or write moves.
pub const MAX_TRANSFER: usize = 1 << 20;
/// Offsets and lengths are multiples of this.
pub const SECTOR: u64 = 512;
/// Longest name of a VM or a disk, in bytes.
pub const MAX_NAME: usize = 64;
/// Most bytes of a message's head.
pub const MAX_HEAD: usize = 4096;

/// A disk, as `Open` numbered it on this connection.
pub type Handle = u32;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Comes back in the answer.
    pub tag: u64,
    /// The request.
    pub body: RequestBody,
}

/// The requests, in the order of their numbers on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RequestBody {
    /// 0: opens a disk, and creates it (and its VM) first if it does not exist and `create_bytes` is given.
    /// Supersedes older connections on which the same claimant opened the same disk: they are closed, and
    /// nothing of them is executed after the answer.
    Open {
        /// The VM's name.
        vm: String,
        /// The disk's name.
        disk: String,
        /// Size of a disk to create. A disk that exists must have this size.
        create_bytes: Option<u64>,
        /// Who asks; counts as connected while this connection lasts. Not to be shared by connections that
        /// are to use one disk at the same time.
        claimant: Claimant,
    },
    /// 1: the test-and-set.
    TestAndSet {
        /// The VM's name; a VM that never was has generation 0.
        vm: String,
        /// The generation that the claimant knows as current.
        expect: Generation,
        /// Who claims.
        claimant: Claimant,
        /// What for.
        purpose: Purpose,
    },
    /// 2: asks for the VM's state.
    Query {
        /// The VM's name.
        vm: String,
    },
    /// 3: reads.
    Read {
        /// Which disk.
        disk: Handle,
        /// The asker's generation.
        generation: Generation,
        /// Byte offset on the disk.
        offset: u64,
        /// How many bytes.
        len: u32,
    },
    /// 4: writes the message's data.
    Write {
        /// Which disk.
        disk: Handle,
        /// The asker's generation.
        generation: Generation,
        /// Byte offset on the disk.
        offset: u64,
        /// Answer only when the data is on stable storage.
        durable: bool,
    },
    /// 5: makes every answered write of the disk durable.
    Flush {
        /// Which disk.
        disk: Handle,
        /// The asker's generation.
        generation: Generation,
    },
    /// 6: asks for statistics.
    Status,
    /// 7: begins to fill a disk that is `New` with an image, or begins anew with one that is `Filling`, which
    /// is empty again then. Until `EndFill`, only this connection may use the disk.
    BeginFill {
        /// Which disk.
        disk: Handle,
        /// The asker's generation.
        generation: Generation,
        /// Length of the image in bytes, padded to a multiple of 512.
        bytes: u64,
    },
    /// 8: the disk that this connection fills is whole: durable, and never filled again.
    EndFill {
        /// Which disk.
        disk: Handle,
        /// The asker's generation.
        generation: Generation,
    },
    /// 9: the holder has ended. Nothing is admitted under its generation any more, and a start need not wait.
    Release {
        /// The VM's name.
        vm: String,
        /// The generation that the asker holds.
        generation: Generation,
        /// Who it is.
        claimant: Claimant,
    },
}

/// What a claim is for: who must wait for a holder that may return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Purpose {
    /// One half of a pair goes on without the other: decided at once.
    Failover,
    /// A new copy starts: refused while the holder is connected, or may return.
    Start,
    /// A person says that the holder must end: decided at once.
    TakeOver,
}

/// What the server answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The request's tag.
    pub tag: u64,
    /// The answer.
    pub body: AnswerBody,
}

/// The answers, in the order of their numbers on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AnswerBody {
    /// 0: the disk is open.
    Opened(Opened),
    /// 1: the claimant holds this generation, durably.
    Won {
        /// `expect + 1`.
        generation: Generation,
    },
    /// 2: the claim failed; this is current.
    Lost(Holding),
    /// 3: the VM's state.
    State(VmState),
    /// 4: the message's data is what was read.
    Data,
    /// 5: written, or flushed.
    Done,
    /// 6: refused, because this newer generation is current. The asker must halt.
    Fenced(Holding),
    /// 7: refused for another reason; nothing may be concluded about other requests.
    Refused {
        /// What kind of reason.
        code: ErrorCode,
        /// A sentence for people.
        message: String,
    },
    /// 8: the message's data is a `Status` as JSON.
    Status,
    /// 9: a start was refused: the holder is connected, or may return for as long as the state says.
    Held(VmState),
}

/// A disk that was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Names the disk on this connection.
    pub disk: Handle,
    /// The disk's size.
    pub bytes: u64,
    /// The VM's state.
    pub state: VmState,
    /// What the disk holds.
    pub content: Content,
}

/// What a disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Content {
    /// Nothing was ever written: it may be filled.
    New,
    /// An image is being copied to it, or the copy was cut short. Only `BeginFill` is of use.
    Filling,
    /// What a machine works with: it is never filled again, whatever its bytes are.
    Filled,
}

/// The state of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VmState {
    /// Generation and holder.
    pub holding: Holding,
    /// Whether the holder has a connection to the server. `false` proves nothing about whether it runs.
    pub holder_connected: bool,
    /// Whether the holder has ended, by its own word or with the process that had the directory open.
    pub ended: bool,
    /// Milliseconds for which a start waits for a holder that is not connected and may return.
    pub may_return_ms: u64,
}

/// Kinds of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorCode {
    /// The request is malformed or reaches beyond the disk.
    Invalid,
    /// No such VM, disk or handle.
    NotFound,
    /// The disk exists with another size or state.
    Conflict,
    /// The generation was never granted.
    NeverGranted,
    /// A limit of the server is reached.
    Limit,
    /// The server's file system is full.
    NoSpace,
    /// The server's file system failed this request.
    Io,
    /// The disk failed before; it takes nothing until the server restarts.
    Failed,
}

/// Why a frame holds no message. The connection cannot be used any further.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// A frame kind that does not belong here.
    #[error("unexpected frame kind {0}")]
    Kind(u8),
    /// The head reaches beyond the payload, or is longer than any head.
    #[error("message head of {head} bytes in a payload of {payload}, {MAX_HEAD} allowed")]
    Head {
        /// Length that the payload claims.
        head: usize,
        /// Length of the payload.
        payload: usize,
    },
    /// The head is no message.
    #[error("message head: {0}")]
    Codec(#[from] codec::CodecError),
    /// Data behind a message that has none.
    #[error("{0} bytes of data behind a message that takes none")]
    Data(usize),
}

/// Replaces `payload` by a message of `head` and `data`.
pub fn encode<T: Serialize>(head: &T, data: &[u8], payload: &mut Vec<u8>) -> Result<(), MessageError> {
    payload.clear();
    payload.extend_from_slice(&[0; 2]);
    codec::encode_into(head, payload)?;
    let len = payload.len() - 2;
    if len > MAX_HEAD {
        return Err(MessageError::Head { head: len, payload: len + data.len() });
    }
    let field = u16::try_from(len).expect("at most MAX_HEAD");
    payload[..2].copy_from_slice(&field.to_le_bytes());
    payload.extend_from_slice(data);
    Ok(())
}

/// The head and the data of a payload.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<(T, &[u8]), MessageError> {
    let (length, rest) =
        payload.split_first_chunk::<2>().ok_or(MessageError::Head { head: 0, payload: 0 })?;
    let head = usize::from(u16::from_le_bytes(*length));
    if head > MAX_HEAD || head > rest.len() {
        return Err(MessageError::Head { head, payload: rest.len() });
    }
    let (head, data) = rest.split_at(head);
    Ok((codec::decode(head)?, data))
}

/// The request in a frame's payload, and its data.
pub fn decode_request(kind: u8, payload: &[u8]) -> Result<(Request, &[u8]), MessageError> {
    if kind != KIND_REQUEST {
        return Err(MessageError::Kind(kind));
    }
    let (request, data) = decode::<Request>(payload)?;
    match request.body {
        RequestBody::Write { .. } => Ok((request, data)),
        _ if data.is_empty() => Ok((request, data)),
        _ => Err(MessageError::Data(data.len())),
    }
}

/// Whether `name` may name a VM or a disk: 1 to 64 of `A-Z a-z 0-9 _ . -`, not beginning with a dot.
pub fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    (1..=MAX_NAME).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(allowed)
}

impl From<Refusal> for AnswerBody {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Fenced(holding) => AnswerBody::Fenced(holding),
            Refusal::NeverGranted { .. } => {
                AnswerBody::Refused { code: ErrorCode::NeverGranted, message: refusal.to_string() }
            }
        }
    }
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
