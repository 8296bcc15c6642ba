//! One connection: a thread that reads requests, executes them and answers.
//!
//! A batch is what has arrived whole, up to a limit. Its requests are executed in order; reads and plain
//! writes are answered at once; then one commit per disk covers all its durable writes and flushes, and they
//! are answered. What arrives meanwhile waits in the socket: that bounds the requests in flight, and gathers
//! the next batch. One thread does all of it, so that a request costs no hand-over between threads.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use logchannel::Generation;
use logchannel::frame::{FrameError, FrameReader, FrameWriter};

use crate::disk::{Disk, Ticket};
use crate::faults::CrashPoint;
use crate::protocol::{
    self, Answer, AnswerBody, ErrorCode, Handle, KIND_ANSWER, KIND_CLOSING, MAX_TRANSFER, MessageError,
    Opened, PROTOCOL, Request, RequestBody,
};
use crate::seat::{Number, Place, Superseded};
use crate::server::Shared;
use crate::socket::Socket;
use crate::store::StoreError;
use crate::test_and_set::{Claimant, Decision};
use crate::vm::{ClaimRequest, Verdict, Vm};

/// How long a new connection may take to send its first request.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// How long a peer may leave answers unread before it loses the connection.
const SEND: Duration = Duration::from_secs(30);
/// How long, and how much, is still read after the last word, so that the peer gets to read it.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 8 << 20;
const READ_CHUNK: usize = 128 << 10;
/// A batch ends after this many bytes of data in its answers.
const BATCH_BYTES: usize = 2 << 20;
/// Most disks, and most claimants, of one connection.
const MAX_HANDLES: usize = 64;

/// Why a connection ends, other than by the peer's wish.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error("no request within {} s", FIRST_REQUEST.as_secs())]
    Silent,
    #[error("the server has its {0} connections already: close others, or raise --max-connections")]
    Full(usize),
    #[error(
        "superseded: a newer connection of this claimant opened the same disk; \
         repeat there what was not answered here"
    )]
    Superseded,
    #[error("connection: {0}")]
    Io(#[from] io::Error),
}

impl From<Superseded> for ConnectionError {
    fn from(_: Superseded) -> Self {
        ConnectionError::Superseded
    }
}

/// Why a request was not executed.
enum Failure {
    /// It is told, and the connection lives.
    Request(StoreError),
    /// There is no answer: the connection ends.
    Connection(Superseded),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Failure::Request(error)
    }
}

impl From<Superseded> for Failure {
    fn from(error: Superseded) -> Self {
        Failure::Connection(error)
    }
}

/// An answer that may still have to wait for something.
enum Pending {
    Ready(AnswerBody),
    Json(Vec<u8>),
    /// What was read; it is only sent if the generation is still current then.
    Data(Arc<Vm>, Generation, Vec<u8>),
    /// `Done` once the disk has committed.
    Commit(Arc<Disk>, Ticket),
}

/// A disk that this connection opened.
struct OpenDisk {
    vm: Arc<Vm>,
    disk: Arc<Disk>,
    place: Place,
}

impl OpenDisk {
    /// Runs `action` if `generation` is current and no newer connection of the claimant has the disk; both
    /// stay so until `action` returns.
    fn admitted<T>(
        &self,
        generation: Generation,
        action: impl FnOnce(&Disk) -> Result<T, StoreError>,
    ) -> Result<T, Failure> {
        let _inside = self.place.enter()?;
        Ok(self.vm.fenced(generation, || action(&self.disk))?)
    }
}

pub(crate) struct Connection<'a> {
    shared: &'a Shared,
    stream: &'a Socket,
    number: Number,
    reader: FrameReader,
    writer: FrameWriter,
    disks: Vec<OpenDisk>,
    claimants: Vec<(Arc<Vm>, Claimant)>,
    payload: Vec<u8>,
    out: Vec<u8>,
}

impl<'a> Connection<'a> {
    pub(crate) fn new(shared: &'a Shared, stream: &'a Socket, number: Number) -> Self {
        Self {
            shared,
            stream,
            number,
            reader: FrameReader::new(PROTOCOL),
            writer: FrameWriter::new(PROTOCOL),
            disks: Vec::new(),
            claimants: Vec::new(),
            payload: Vec::new(),
            out: Vec::new(),
        }
    }

    /// Serves the peer until it closes the connection or makes an error, which it is told.
    pub(crate) fn serve(&mut self) -> Result<(), ConnectionError> {
        let result = self.converse();
        if let Err(error) = &result {
            self.close(error);
        }
        result
    }

    /// Tells the peer why it is not served.
    pub(crate) fn refuse(&mut self, error: &ConnectionError) {
        self.close(error);
    }

    fn converse(&mut self) -> Result<(), ConnectionError> {
        self.stream.prepare()?;
        self.stream.set_write_timeout(Some(SEND))?;
        self.stream.set_read_timeout(Some(FIRST_REQUEST))?;
        let mut greeted = false;
        let mut chunk = vec![0; READ_CHUNK];
        loop {
            let count = match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(self.still_newest()?),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(ConnectionError::Silent),
                Err(error) => return Err(error.into()),
            };
            self.reader.push(&chunk[..count]);
            while self.batch()? {
                if !greeted {
                    greeted = true;
                    self.stream.set_read_timeout(None)?;
                }
            }
        }
    }

    /// Executes and answers one batch; `false` if no request has arrived whole.
    fn batch(&mut self) -> Result<bool, ConnectionError> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut end = Ok(());
        while batch.len() < self.shared.limits.max_in_flight && bytes < BATCH_BYTES {
            match self.next() {
                Ok(Some((tag, pending))) => {
                    if let Pending::Data(_, _, data) = &pending {
                        bytes += data.len();
                    }
                    batch.push((tag, pending));
                }
                Ok(None) => break,
                Err(error) => {
                    end = Err(error);
                    break;
                }
            }
        }
        let any = !batch.is_empty();
        self.answer(batch)?;
        end.map(|()| any)
    }

    fn next(&mut self) -> Result<Option<(u64, Pending)>, ConnectionError> {
        let Some(frame) = self.reader.next_frame()? else { return Ok(None) };
        let (Request { tag, body }, data) = protocol::decode_request(frame.kind, &frame.payload)?;
        self.still_newest()?;
        match self.execute(body, data) {
            Ok(pending) => Ok(Some((tag, pending))),
            Err(Failure::Request(error)) => Ok(Some((tag, Pending::Ready(error.into())))),
            Err(Failure::Connection(superseded)) => Err(superseded.into()),
        }
    }

    /// Ends the connection once a newer one has any of its disks, also if nothing asks for that disk.
    fn still_newest(&self) -> Result<(), Superseded> {
        match self.disks.iter().any(|open| open.place.is_superseded()) {
            true => Err(Superseded),
            false => Ok(()),
        }
    }

    fn execute(&mut self, body: RequestBody, data: &[u8]) -> Result<Pending, Failure> {
        let done = match body {
            RequestBody::Open { vm, disk, create_bytes, claimant } => {
                self.open(&vm, &disk, create_bytes, claimant)?
            }
            RequestBody::TestAndSet { vm, expect, claimant, purpose } => {
                let local = self.stream.is_local();
                self.claim(&vm, ClaimRequest { expect, claimant, purpose, local })?
            }
            RequestBody::Query { vm } => AnswerBody::State(self.shared.store.query(&vm)?),
            RequestBody::Read { disk, generation, offset, len } => {
                let open = self.disk(disk)?;
                let data = open.admitted(generation, |disk| Ok(disk.read(self.number, offset, len)?))?;
                return Ok(Pending::Data(Arc::clone(&open.vm), generation, data));
            }
            RequestBody::Write { disk, generation, offset, durable } => {
                let open = self.disk(disk)?;
                let ticket =
                    open.admitted(generation, |disk| Ok(disk.write(self.number, offset, data)?))?;
                if durable {
                    return Ok(Pending::Commit(Arc::clone(&open.disk), ticket));
                }
                self.shared.faults.reach(CrashPoint::BeforeAnswer);
                AnswerBody::Done
            }
            RequestBody::Flush { disk, generation } => {
                let open = self.disk(disk)?;
                let ticket = open.admitted(generation, |disk| Ok(disk.now()))?;
                return Ok(Pending::Commit(Arc::clone(&open.disk), ticket));
            }
            RequestBody::BeginFill { disk, generation, bytes } => {
                self.disk(disk)?.admitted(generation, |disk| Ok(disk.begin_fill(self.number, bytes)?))?;
                AnswerBody::Done
            }
            RequestBody::EndFill { disk, generation } => {
                self.disk(disk)?.admitted(generation, |disk| Ok(disk.end_fill(self.number)?))?;
                AnswerBody::Done
            }
            RequestBody::Release { vm, generation, claimant } => {
                self.shared.store.release(&vm, generation, claimant)?;
                AnswerBody::Done
            }
            RequestBody::Status => return Ok(Pending::Json(self.shared.status_json())),
        };
        Ok(Pending::Ready(done))
    }

    fn open(
        &mut self,
        vm: &str,
        disk: &str,
        create_bytes: Option<u64>,
        claimant: Claimant,
    ) -> Result<AnswerBody, Failure> {
        if self.disks.len() >= MAX_HANDLES {
            return Err(StoreError::Limit { what: "disks of one connection", limit: MAX_HANDLES }.into());
        }
        let (vm, disk) = self.shared.store.open_disk(vm, disk, create_bytes)?;
        self.belongs_to(&vm, claimant);
        let same = |open: &OpenDisk| Arc::ptr_eq(&open.disk, &disk) && open.place.claimant() == claimant;
        let handle = match self.disks.iter().position(same) {
            Some(known) => known,
            None => self.take_seat(&vm, &disk, claimant)?,
        };
        let (state, bytes, content) = (vm.state()?, disk.bytes(), disk.content());
        let disk = Handle::try_from(handle).expect("at most MAX_HANDLES");
        Ok(AnswerBody::Opened(Opened { disk, bytes, state, content }))
    }

    /// Supersedes older connections of `claimant` at the disk. When this returns, nothing of them is being
    /// executed any more.
    fn take_seat(&mut self, vm: &Arc<Vm>, disk: &Arc<Disk>, claimant: Claimant) -> Result<usize, Superseded> {
        let (place, older) = disk.seats.take(claimant, self.number)?;
        // From here on it is left when this connection ends, whatever happens.
        let handle = self.disks.len();
        self.disks.push(OpenDisk { vm: Arc::clone(vm), disk: Arc::clone(disk), place });
        if let Some(older) = older {
            tracing::info!(older, newer = self.number, "a newer connection supersedes an older one");
            self.shared.supersede(older);
        }
        self.disks[handle].place.settle()?;
        Ok(handle)
    }

    fn claim(&mut self, vm: &str, request: ClaimRequest) -> Result<AnswerBody, StoreError> {
        let (verdict, vm) = self.shared.store.claim(vm, request)?;
        if let Some(vm) = vm {
            self.belongs_to(&vm, request.claimant);
        }
        Ok(match verdict {
            Verdict::Decided(Decision::Grant(holding) | Decision::Repeat(holding)) => {
                AnswerBody::Won { generation: holding.generation }
            }
            Verdict::Decided(Decision::Lost(holding)) => AnswerBody::Lost(holding),
            Verdict::Held(state) => AnswerBody::Held(state),
        })
    }

    fn belongs_to(&mut self, vm: &Arc<Vm>, claimant: Claimant) {
        let known = self.claimants.iter().any(|(other, who)| Arc::ptr_eq(other, vm) && *who == claimant);
        if !known && self.claimants.len() < MAX_HANDLES {
            vm.connect(claimant);
            self.claimants.push((Arc::clone(vm), claimant));
        }
    }

    fn disk(&self, handle: Handle) -> Result<&OpenDisk, StoreError> {
        let found = usize::try_from(handle).ok().and_then(|index| self.disks.get(index));
        found.ok_or(StoreError::Disk {
            code: ErrorCode::NotFound,
            message: format!("no disk {handle} on this connection: open it first"),
        })
    }

    fn answer(&mut self, batch: Vec<(u64, Pending)>) -> Result<(), ConnectionError> {
        let mut commits = Vec::new();
        for (tag, pending) in batch {
            match pending {
                Pending::Ready(body) => self.put(tag, body, &[])?,
                Pending::Json(json) => self.put(tag, AnswerBody::Status, &json)?,
                Pending::Data(vm, generation, data) => match vm.fenced(generation, || Ok(())) {
                    Ok(()) => self.put(tag, AnswerBody::Data, &data)?,
                    Err(error) => self.put(tag, error.into(), &[])?,
                },
                Pending::Commit(disk, ticket) => commits.push((tag, disk, ticket)),
            }
        }
        self.send()?;
        for (tag, disk, ticket) in commits {
            let body = match disk.commit(ticket) {
                Ok(()) => AnswerBody::Done,
                Err(error) => StoreError::from(error).into(),
            };
            self.shared.faults.reach(CrashPoint::BeforeAnswer);
            self.put(tag, body, &[])?;
        }
        self.send()
    }

    fn put(&mut self, tag: u64, body: AnswerBody, data: &[u8]) -> Result<(), ConnectionError> {
        debug_assert!(data.len() <= MAX_TRANSFER || body == AnswerBody::Status);
        protocol::encode(&Answer { tag, body }, data, &mut self.payload)?;
        self.writer.write(KIND_ANSWER, &self.payload, &mut self.out);
        Ok(())
    }

    fn send(&mut self) -> Result<(), ConnectionError> {
        if !self.out.is_empty() {
            let result = self.stream.write_all(&self.out);
            self.out.clear();
            self.out.shrink_to(READ_CHUNK);
            result?;
        }
        Ok(())
    }

    /// Says why, then closes so that the peer gets to read it: a socket closed on unread bytes resets the
    /// connection, and with it our last word.
    fn close(&mut self, error: &ConnectionError) {
        self.writer.write(KIND_CLOSING, error.to_string().as_bytes(), &mut self.out);
        if self.send().is_err() || self.stream.shutdown(Shutdown::Write).is_err() {
            return;
        }
        let _ = self.stream.set_read_timeout(Some(LINGER));
        let mut chunk = [0; 4096];
        let mut left = LINGER_BYTES / chunk.len();
        while left > 0 && matches!(self.stream.read(&mut chunk), Ok(1..)) {
            left -= 1;
        }
        if !matches!(error, ConnectionError::Superseded) {
            self.shared.closed_for_errors.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        for open in &self.disks {
            open.disk.seats.leave(&open.place);
        }
        for (vm, claimant) in &self.claimants {
            vm.disconnect(*claimant);
        }
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
