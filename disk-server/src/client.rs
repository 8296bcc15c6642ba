//! The disk protocol's client: blocking, on plain sockets, for threads of the VMM.
//!
//! ```text
//!   DiskClient::connect ─▶ open / test_and_set / query / status: one at a time, each with a deadline
//!          │
//!          └ split ─▶ RequestSender (clone it, send from any thread)
//!                     AnswerReader  (one thread, that waits in `next_answer`)
//! ```
//!
//! Reconnecting is the caller's decision: an error says whether the server could not be reached (nothing is
//! known about what was asked: ask again), refused (it said why), or fenced (halt).

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use logchannel::frame::{FrameError, FrameReader, FrameWriter};
use logchannel::{DiskOp, DiskRequest, Generation};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};

use crate::clock;
use crate::protocol::{
    self, Answer, AnswerBody, ErrorCode, Handle, KIND_ANSWER, KIND_CLOSING, KIND_REQUEST, MAX_TRANSFER,
    MessageError, Opened, PROTOCOL, Purpose, Request, RequestBody, VmState,
};
use crate::socket::Socket;
use crate::status::Status;
use crate::test_and_set::{Claimant, Holding};

const READ_CHUNK: usize = 128 << 10;

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// What was given is no address.
    #[error("{server:?} is no address of a disk server: HOST:PORT, as 10.0.0.3:7411 or [fd00::3]:7411")]
    Address {
        /// What was given.
        server: String,
    },
    /// No connection, or it broke, or no answer in time. Whether the request was executed is unknown.
    #[error("disk server {server} unreachable: {source}")]
    Unreachable {
        /// The server's address.
        server: String,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// The server closed the connection and said why.
    #[error("disk server {server} closed the connection: {reason}")]
    Closed {
        /// The server's address.
        server: String,
        /// Its last word.
        reason: String,
    },
    /// What the server sent is no disk protocol of this version.
    #[error("disk server {server}: {source}")]
    Frame {
        /// The server's address.
        server: String,
        /// What is wrong.
        #[source]
        source: FrameError,
    },
    /// The server sent a frame that holds no fitting message.
    #[error("disk server {server}: {source}")]
    Message {
        /// The server's address.
        server: String,
        /// What is wrong.
        #[source]
        source: MessageError,
    },
    /// The server answered, but not what was asked.
    #[error("disk server {server} gave an answer of another kind")]
    Unexpected {
        /// The server's address.
        server: String,
    },
    /// The server refused the request.
    #[error("disk server: {message}")]
    Refused {
        /// What kind of reason.
        code: ErrorCode,
        /// The reason.
        message: String,
    },
    /// A newer generation is current: whoever gets this must halt.
    #[error("fenced: generation {} is current", .0.generation)]
    Fenced(Holding),
}

impl ClientError {
    /// Whether nothing is known about the request: connect again and ask again.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, ClientError::Unreachable { .. } | ClientError::Closed { .. })
    }
}

/// The verdict on the claim of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The claimant holds this generation, durably, and may run.
    Won(Generation),
    /// Somebody else won meanwhile: this is current.
    Lost(Holding),
    /// The holder is connected, or may return: nothing has changed.
    Held(VmState),
}

/// The verdict on a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// The claimant holds this generation, durably, and may go on alone.
    Won(Generation),
    /// It must halt: this is current.
    Lost(Holding),
}

/// The answer to a submitted disk request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskAnswer {
    /// The tag it was submitted with.
    pub tag: u64,
    /// How it ended.
    pub outcome: DiskOutcome,
}

/// How a disk request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskOutcome {
    /// What a read returned. Compare its length with what was asked.
    Data(Vec<u8>),
    /// Written (durably, if so asked), or flushed.
    Done,
    /// Not executed, or a read whose data must not be used: a newer generation is current. Halt.
    Fenced(Holding),
    /// Not executed, for the reason given.
    Refused {
        /// What kind of reason.
        code: ErrorCode,
        /// The reason.
        message: String,
    },
}

/// Writes requests. One per connection, behind a lock.
#[derive(Debug)]
struct SendHalf {
    writer: FrameWriter,
    payload: Vec<u8>,
    out: Vec<u8>,
    /// What of `out` was written.
    written: usize,
}

impl SendHalf {
    /// Takes a request; `flush` or `flush_now` writes it.
    fn push(&mut self, request: &Request, data: &[u8]) -> Result<(), SendError> {
        protocol::encode(request, data, &mut self.payload).map_err(SendError::Message)?;
        self.writer.write(KIND_REQUEST, &self.payload, &mut self.out);
        Ok(())
    }

    fn send(&mut self, stream: &Socket, request: &Request, data: &[u8]) -> Result<(), SendError> {
        self.push(request, data)?;
        self.flush(stream)
    }

    /// Writes everything that was taken; waits for room.
    fn flush(&mut self, stream: &Socket) -> Result<(), SendError> {
        let mut writer = stream;
        let written = writer.write_all(&self.out[self.written..]);
        self.emptied();
        // A frame may be cut in two: nothing sensible can follow on this connection.
        written.map_err(|error| Self::broke(stream, error))
    }

    /// Writes what the socket has room for; whether that was everything.
    fn flush_now(&mut self, stream: &Socket) -> Result<bool, SendError> {
        while self.written < self.out.len() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(stream.as_raw_fd(), &self.out[self.written..], flags) {
                Ok(count) => self.written += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(false),
                Err(errno) => {
                    self.emptied();
                    return Err(Self::broke(stream, errno.into()));
                }
            }
        }
        self.emptied();
        Ok(true)
    }

    fn emptied(&mut self) {
        self.out.clear();
        self.written = 0;
    }

    fn broke(stream: &Socket, error: io::Error) -> SendError {
        let _ = stream.shutdown(Shutdown::Both);
        SendError::Io(error)
    }
}

enum SendError {
    Message(MessageError),
    Io(io::Error),
}

/// Reads answers.
#[derive(Debug)]
struct ReceiveHalf {
    reader: FrameReader,
    chunk: Vec<u8>,
}

/// One connection.
#[derive(Debug)]
struct Link {
    stream: Socket,
    server: String,
}

impl Link {
    fn unreachable(&self, source: io::Error) -> ClientError {
        ClientError::Unreachable { server: self.server.clone(), source }
    }

    fn message(&self, source: MessageError) -> ClientError {
        ClientError::Message { server: self.server.clone(), source }
    }

    fn send(&self, half: &mut SendHalf, request: &Request, data: &[u8]) -> Result<(), ClientError> {
        Self::check(data)?;
        half.send(&self.stream, request, data).map_err(|error| self.sending(error))
    }

    fn check(data: &[u8]) -> Result<(), ClientError> {
        if data.len() > MAX_TRANSFER {
            let message = format!("{} bytes in one write: at most {MAX_TRANSFER}", data.len());
            return Err(ClientError::Refused { code: ErrorCode::Invalid, message });
        }
        Ok(())
    }

    fn sending(&self, error: SendError) -> ClientError {
        match error {
            SendError::Message(source) => self.message(source),
            SendError::Io(source) => self.unreachable(source),
        }
    }

    /// The next answer and its data, within `deadline` if there is one.
    fn receive(
        &self,
        half: &mut ReceiveHalf,
        deadline: Option<Instant>,
    ) -> Result<(Answer, Vec<u8>), ClientError> {
        let frame = loop {
            let next = half.reader.next_frame();
            let next = next.map_err(|source| ClientError::Frame { server: self.server.clone(), source })?;
            if let Some(frame) = next {
                break frame;
            }
            let count = self.read(&mut half.chunk, deadline).map_err(|error| self.unreachable(error))?;
            half.reader.push(&half.chunk[..count]);
        };
        match frame.kind {
            KIND_ANSWER => {
                let (answer, data) =
                    protocol::decode::<Answer>(&frame.payload).map_err(|e| self.message(e))?;
                Ok((answer, data.to_vec()))
            }
            KIND_CLOSING => {
                let reason = String::from_utf8_lossy(&frame.payload).into_owned();
                Err(ClientError::Closed { server: self.server.clone(), reason })
            }
            kind => Err(self.message(MessageError::Kind(kind))),
        }
    }

    fn read(&self, chunk: &mut [u8], deadline: Option<Instant>) -> io::Result<usize> {
        loop {
            if let Some(deadline) = deadline {
                let left = deadline.saturating_duration_since(clock::now());
                if left.is_zero() {
                    return Err(io::Error::new(ErrorKind::TimedOut, "no answer in time"));
                }
                self.stream.set_read_timeout(Some(left))?;
            }
            match (&self.stream).read(chunk) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => return Ok(count),
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// A connection to a disk server, one call at a time.
#[derive(Debug)]
pub struct DiskClient {
    link: Link,
    send: SendHalf,
    receive: ReceiveHalf,
    next_tag: u64,
    deadline: Duration,
}

impl DiskClient {
    /// Connects to `server` (`host:port`). Connecting, and each later call, takes at most about `deadline`.
    pub fn connect(server: &str, deadline: Duration) -> Result<Self, ClientError> {
        let unreachable = |source| ClientError::Unreachable { server: server.into(), source };
        let link = |stream: Socket| {
            stream.set_write_timeout(Some(deadline.max(Duration::from_millis(1))))?;
            stream.prepare()?;
            Ok(Link { stream, server: server.into() })
        };
        if let Some(local) = crate::embedded::connect(server) {
            return Ok(Self::new(local.and_then(link).map_err(unreachable)?, deadline));
        }
        let end = clock::now() + deadline;
        let mut failure = io::Error::new(ErrorKind::NotFound, "the name has no address");
        let addresses = logchannel::address::resolve(server).map_err(|error| match error.kind() {
            ErrorKind::InvalidInput => ClientError::Address { server: server.into() },
            _ => unreachable(error),
        })?;
        for address in addresses {
            let left = end.saturating_duration_since(clock::now()).max(Duration::from_millis(1));
            match TcpStream::connect_timeout(&address, left).map(Socket::Tcp).and_then(link) {
                Ok(link) => return Ok(Self::new(link, deadline)),
                Err(error) => failure = error,
            }
        }
        Err(unreachable(failure))
    }

    fn new(link: Link, deadline: Duration) -> Self {
        let send =
            SendHalf { writer: FrameWriter::new(PROTOCOL), payload: Vec::new(), out: Vec::new(), written: 0 };
        let receive = ReceiveHalf { reader: FrameReader::new(PROTOCOL), chunk: vec![0; READ_CHUNK] };
        Self { link, send, receive, next_tag: 0, deadline }
    }

    /// Opens a disk. With `create_bytes` it is created first if it does not exist; if it does, it must have
    /// that size. While this connection lasts, the server counts `claimant` as connected.
    ///
    /// Older connections on which `claimant` opened this disk are closed, and nothing of them is executed
    /// once this returns: what they left unanswered can be repeated here, and followed by other requests.
    pub fn open(
        &mut self,
        vm: &str,
        disk: &str,
        create_bytes: Option<u64>,
        claimant: Claimant,
    ) -> Result<Opened, ClientError> {
        let body = RequestBody::Open { vm: vm.into(), disk: disk.into(), create_bytes, claimant };
        match self.call(body, &[])? {
            (AnswerBody::Opened(opened), _) => Ok(opened),
            (other, _) => Err(self.unexpected(other)),
        }
    }

    /// Claims the right to run `vm` alone, as one half of a pair that goes on without the other, knowing
    /// `expect` as its current generation. After an error that `is_unreachable`, ask again with the same
    /// claimant: a claim that was won is won again.
    pub fn test_and_set(
        &mut self,
        vm: &str,
        expect: Generation,
        claimant: Claimant,
    ) -> Result<Claim, ClientError> {
        match self.claim(vm, expect, claimant, Purpose::Failover)? {
            Start::Won(generation) => Ok(Claim::Won(generation)),
            Start::Lost(holding) => Ok(Claim::Lost(holding)),
            Start::Held(state) => Err(self.unexpected(AnswerBody::Held(state))),
        }
    }

    /// The same for a copy that starts: it does not win while the holder is connected or may return, unless a
    /// person says `take_over`.
    pub fn start(
        &mut self,
        vm: &str,
        expect: Generation,
        claimant: Claimant,
        take_over: bool,
    ) -> Result<Start, ClientError> {
        let purpose = if take_over { Purpose::TakeOver } else { Purpose::Start };
        self.claim(vm, expect, claimant, purpose)
    }

    fn claim(
        &mut self,
        vm: &str,
        expect: Generation,
        claimant: Claimant,
        purpose: Purpose,
    ) -> Result<Start, ClientError> {
        match self.call(RequestBody::TestAndSet { vm: vm.into(), expect, claimant, purpose }, &[])? {
            (AnswerBody::Won { generation }, _) if Some(generation) == expect.checked_add(1) => {
                Ok(Start::Won(generation))
            }
            (AnswerBody::Lost(holding), _) => Ok(Start::Lost(holding)),
            (AnswerBody::Held(state), _) => Ok(Start::Held(state)),
            (other, _) => Err(self.unexpected(other)),
        }
    }

    /// Says that the holder has ended: nothing is admitted under `generation` any more, and a start need not
    /// wait. For the holder only, after its last disk request was answered.
    pub fn release(
        &mut self,
        vm: &str,
        generation: Generation,
        claimant: Claimant,
    ) -> Result<(), ClientError> {
        self.done(RequestBody::Release { vm: vm.into(), generation, claimant }, &[])
    }

    /// Begins to fill a disk that is `New`, or anew with one that is `Filling`, with an image of `bytes`, a
    /// multiple of 512. Until `end_fill`, only this connection may use the disk.
    pub fn begin_fill(
        &mut self,
        disk: Handle,
        generation: Generation,
        bytes: u64,
    ) -> Result<(), ClientError> {
        self.done(RequestBody::BeginFill { disk, generation, bytes }, &[])
    }

    /// The disk is whole. When this returns that is durable, and it is never filled again.
    pub fn end_fill(&mut self, disk: Handle, generation: Generation) -> Result<(), ClientError> {
        self.done(RequestBody::EndFill { disk, generation }, &[])
    }

    fn done(&mut self, body: RequestBody, data: &[u8]) -> Result<(), ClientError> {
        match self.call(body, data)? {
            (AnswerBody::Done, _) => Ok(()),
            (other, _) => Err(self.unexpected(other)),
        }
    }

    /// Generation and holder of `vm`, and whether the holder is connected to the server.
    pub fn query(&mut self, vm: &str) -> Result<VmState, ClientError> {
        match self.call(RequestBody::Query { vm: vm.into() }, &[])? {
            (AnswerBody::State(state), _) => Ok(state),
            (other, _) => Err(self.unexpected(other)),
        }
    }

    /// The server's statistics.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        match self.call(RequestBody::Status, &[])? {
            (AnswerBody::Status, json) => serde_json::from_slice(&json)
                .map_err(|_| ClientError::Unexpected { server: self.link.server.clone() }),
            (other, _) => Err(self.unexpected(other)),
        }
    }

    /// Reads `len` bytes at `offset`.
    pub fn read(
        &mut self,
        disk: Handle,
        generation: Generation,
        offset: u64,
        len: u32,
    ) -> Result<Vec<u8>, ClientError> {
        match self.call(RequestBody::Read { disk, generation, offset, len }, &[])? {
            (AnswerBody::Data, data) if u32::try_from(data.len()) == Ok(len) => Ok(data),
            (other, _) => Err(self.unexpected(other)),
        }
    }

    /// Writes `data` at `offset`; with `durable`, it is on stable storage when this returns.
    pub fn write(
        &mut self,
        disk: Handle,
        generation: Generation,
        offset: u64,
        data: &[u8],
        durable: bool,
    ) -> Result<(), ClientError> {
        self.done(RequestBody::Write { disk, generation, offset, durable }, data)
    }

    /// Makes every finished write of the disk durable.
    pub fn flush(&mut self, disk: Handle, generation: Generation) -> Result<(), ClientError> {
        self.done(RequestBody::Flush { disk, generation }, &[])
    }

    /// How long each call may take.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// How long each later call may take.
    pub fn set_deadline(&mut self, deadline: Duration) -> Result<(), ClientError> {
        let set = self.link.stream.set_write_timeout(Some(deadline.max(Duration::from_millis(1))));
        set.map_err(|error| self.link.unreachable(error))?;
        self.deadline = deadline;
        Ok(())
    }

    /// Gives up single calls for many requests in flight on `disk`.
    pub fn split(self, disk: Handle) -> Result<(RequestSender, AnswerReader), ClientError> {
        self.link.stream.set_read_timeout(None).map_err(|error| self.link.unreachable(error))?;
        let link = Arc::new(self.link);
        let sender = RequestSender { link: Arc::clone(&link), half: Arc::new(Mutex::new(self.send)), disk };
        Ok((sender, AnswerReader { link, half: self.receive }))
    }

    fn call(&mut self, body: RequestBody, data: &[u8]) -> Result<(AnswerBody, Vec<u8>), ClientError> {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.link.send(&mut self.send, &Request { tag, body }, data)?;
        let end = clock::now() + self.deadline;
        loop {
            let (answer, data) = self.link.receive(&mut self.receive, Some(end))?;
            // Answers to earlier calls that were given up.
            if answer.tag < tag {
                continue;
            }
            return match answer.body {
                _ if answer.tag > tag => Err(self.unexpected(answer.body)),
                AnswerBody::Fenced(holding) => Err(ClientError::Fenced(holding)),
                AnswerBody::Refused { code, message } => Err(ClientError::Refused { code, message }),
                body => Ok((body, data)),
            };
        }
    }

    fn unexpected(&self, answer: AnswerBody) -> ClientError {
        tracing::warn!(server = %self.link.server, ?answer, "unexpected answer");
        ClientError::Unexpected { server: self.link.server.clone() }
    }
}

/// Submits disk requests; clone it for more threads or disks.
#[derive(Debug, Clone)]
pub struct RequestSender {
    link: Arc<Link>,
    half: Arc<Mutex<SendHalf>>,
    disk: Handle,
}

impl RequestSender {
    /// Submits one request; its answer comes from the `AnswerReader`, with the same tag. Requests are
    /// executed in the order of submission. Blocks only while the socket is full, at most the client's
    /// deadline; an error means that the connection is of no more use.
    pub fn submit(&self, tag: u64, request: &DiskRequest, generation: Generation) -> Result<(), ClientError> {
        let (body, data) = self.body(request, generation);
        self.link.send(&mut self.half(), &Request { tag, body }, data)
    }

    /// Submits one request without waiting; whether all of it was written. If not, the rest is kept, and
    /// `flush` or `flush_now` is to be called before the next request is submitted.
    pub fn submit_now(
        &self,
        tag: u64,
        request: &DiskRequest,
        generation: Generation,
    ) -> Result<bool, ClientError> {
        let (body, data) = self.body(request, generation);
        Link::check(data)?;
        let mut half = self.half();
        let pushed = half.push(&Request { tag, body }, data);
        pushed.and_then(|()| half.flush_now(&self.link.stream)).map_err(|error| self.link.sending(error))
    }

    /// Writes what `submit_now` left over; blocks as `submit` does.
    pub fn flush(&self) -> Result<(), ClientError> {
        self.half().flush(&self.link.stream).map_err(|error| self.link.sending(error))
    }

    /// Writes as much of what `submit_now` left over as the socket has room for; whether that is all.
    pub fn flush_now(&self) -> Result<bool, ClientError> {
        self.half().flush_now(&self.link.stream).map_err(|error| self.link.sending(error))
    }

    fn half(&self) -> MutexGuard<'_, SendHalf> {
        self.half.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn body<'a>(&self, request: &'a DiskRequest, generation: Generation) -> (RequestBody, &'a [u8]) {
        let disk = self.disk;
        match &request.op {
            DiskOp::Read { offset, len } => {
                (RequestBody::Read { disk, generation, offset: *offset, len: *len }, &[])
            }
            DiskOp::Write { offset, data, durable } => {
                (RequestBody::Write { disk, generation, offset: *offset, durable: *durable }, data)
            }
            DiskOp::Flush => (RequestBody::Flush { disk, generation }, &[]),
        }
    }

    /// The same connection, for another disk opened on it.
    pub fn for_disk(&self, disk: Handle) -> Self {
        Self { disk, ..self.clone() }
    }

    /// Closes the connection: the reader's `next` returns an error.
    pub fn close(&self) {
        let _ = self.link.stream.shutdown(Shutdown::Both);
    }
}

/// Receives the answers to submitted requests.
#[derive(Debug)]
pub struct AnswerReader {
    link: Arc<Link>,
    half: ReceiveHalf,
}

impl AnswerReader {
    /// Waits for the next answer, in whatever order they come. After an error the connection is of no more
    /// use, and requests not answered may or may not have been executed.
    pub fn next_answer(&mut self) -> Result<DiskAnswer, ClientError> {
        let (answer, data) = self.link.receive(&mut self.half, None)?;
        let outcome = match answer.body {
            AnswerBody::Data => DiskOutcome::Data(data),
            AnswerBody::Done => DiskOutcome::Done,
            AnswerBody::Fenced(holding) => DiskOutcome::Fenced(holding),
            AnswerBody::Refused { code, message } => DiskOutcome::Refused { code, message },
            _ => return Err(ClientError::Unexpected { server: self.link.server.clone() }),
        };
        Ok(DiskAnswer { tag: answer.tag, outcome })
    }
}
