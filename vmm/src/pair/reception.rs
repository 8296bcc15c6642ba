//! Where a backup meets whoever connects: greetings are served side by side, each for a short while, so that
//! strangers never keep the primary out.
//!
//! ```text
//!   accept ─▶ greeting (2 s): Hello, same machine? ─▶ reserved: Preparing … Begin, holder? ─▶ the backup
//!              64 at most, more wait                   16 at most, more are refused
//! ```
//!
//! A primary that was welcomed has nothing but a connection here. Who the right one is only the disk server
//! says, when one begins: it holds the generation that it names. Until then the backup waits on.

use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use disk_server::client::DiskClient;
use logchannel::message::{Hello, Refusal, Welcome};
use logchannel::pair::PairConfig;
use logchannel::tcp::{Incoming, Listener, Reserved, TcpError};
use logchannel::udp::HeartbeatSocket;
use logchannel::{Claimant, Generation};
use nix::sys::socket::{Shutdown, shutdown};

use crate::io::clock::HostClock;
use crate::pair::disk_health::DiskHealth;
use crate::pair::threads::start;

/// Longest greeting.
const GREETING: Duration = Duration::from_secs(2);
/// Most greetings at once; more connections wait in the socket's queue.
const MAX_GREETINGS: usize = 64;
/// Most primaries that were welcomed and have not begun.
const MAX_RESERVED: usize = 16;
/// A primary that was welcomed and says nothing for so long is gone, whatever TCP still believes.
const SILENCE: Duration = Duration::from_secs(10);
/// How long the disk server is asked about a primary.
const ASK_HOLDER: Duration = Duration::from_secs(2);
/// Most refusals told in a minute; the rest are counted.
const MAX_TOLD: u64 = 100;
/// What a primary is told that comes second.
const FOLLOWS_ANOTHER: &str = "the backup follows another primary";
const MINUTE_NS: u64 = 60_000_000_000;
/// Between two attempts to accept when the host has no room for another connection.
const NO_ROOM: Duration = Duration::from_millis(50);

/// Who waits, and for whom.
pub(super) struct Desk {
    /// This backup's machine.
    pub(super) ours: PairConfig,
    /// This process.
    pub(super) claimant: Claimant,
    /// Its disk server, host:port.
    pub(super) disk_server: String,
    /// What is known of the disk server.
    pub(super) health: Arc<DiskHealth>,
    /// Told how many primaries are welcomed and have not begun.
    pub(super) reserved: Box<dyn Fn(usize) + Send + Sync>,
}

/// A primary that begins: it holds its generation, and waits for the answer.
pub(super) struct Arrival {
    /// The connection.
    pub(super) reserved: Reserved,
    /// What it holds.
    pub(super) generation: Generation,
    /// Where its heartbeats are heard.
    pub(super) heartbeats: Arc<HeartbeatSocket>,
}

/// A backup's open door.
pub(super) struct Reception {
    shared: Arc<Shared>,
    arrivals: Receiver<Arrival>,
    listener: Arc<Listener>,
}

struct Shared {
    desk: Desk,
    arrivals: Sender<Arrival>,
    closed: AtomicBool,
    counts: Mutex<Counts>,
    changed: Condvar,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Counts {
    greetings: usize,
    reserved: usize,
}

/// Refusals told since the minute began.
#[derive(Default)]
struct Told {
    since_ns: u64,
    lines: u64,
    more: u64,
}

impl Reception {
    /// Receives whoever connects to `listener`, until this is dropped.
    pub(super) fn open(listener: Listener, desk: Desk) -> anyhow::Result<Self> {
        let (send, arrivals) = bounded(0);
        let listener = Arc::new(listener);
        let shared = Arc::new(Shared {
            desk,
            arrivals: send,
            closed: AtomicBool::new(false),
            counts: Mutex::default(),
            changed: Condvar::new(),
            told: Mutex::default(),
        });
        let (of_thread, its_listener) = (shared.clone(), listener.clone());
        start("reception", move || of_thread.accept(&its_listener))?;
        Ok(Self { shared, arrivals, listener })
    }

    /// Waits for a primary that begins.
    pub(super) fn next(&self) -> Arrival {
        self.arrivals.recv().expect("the sender is in this value")
    }
}

impl Drop for Reception {
    /// Nobody else is received: the address is free again, and those who wait are told.
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        // Wakes the thread that accepts.
        let _ = shutdown(self.listener.as_fd().as_raw_fd(), Shutdown::Both);
        self.shared.changed.notify_all();
    }
}

/// One of a bounded number of places, free again when dropped.
struct Place<'a> {
    shared: &'a Shared,
    of: fn(&mut Counts) -> &mut usize,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut counts = self.shared.counts();
        *(self.of)(&mut counts) -= 1;
        let reserved = counts.reserved;
        drop(counts);
        (self.shared.desk.reserved)(reserved);
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn accept(self: Arc<Self>, listener: &Listener) {
        loop {
            let mut counts = self.counts();
            while counts.greetings >= MAX_GREETINGS && !self.is_closed() {
                counts = self.changed.wait(counts).unwrap_or_else(PoisonError::into_inner);
            }
            drop(counts);
            let accepted = listener.accept_stream(None);
            if self.is_closed() {
                return;
            }
            match accepted {
                Ok(stream) => self.clone().greet(stream),
                Err(error) => {
                    self.tell(&format!("cannot accept a connection: {error}"));
                    std::thread::sleep(NO_ROOM);
                }
            }
        }
    }

    fn greet(self: Arc<Self>, stream: TcpStream) {
        self.counts().greetings += 1;
        let shared = self.clone();
        let started = start("greeting", move || {
            let place = Place { shared: &shared, of: |counts| &mut counts.greetings };
            if let Err(refused) = shared.meet(stream, place) {
                shared.tell(&refused);
            }
        });
        if let Err(error) = started {
            drop(Place { shared: &self, of: |counts| &mut counts.greetings });
            self.tell(&format!("cannot serve a connection: {error:#}"));
        }
    }

    /// Receives one connection; an error says whom it refused, and why.
    fn meet(&self, stream: TcpStream, greeting: Place<'_>) -> Result<(), String> {
        let not_a_primary = |error: TcpError| format!("refused a connection: {error}");
        let incoming = Incoming::receive(stream, GREETING).map_err(not_a_primary)?;
        let peer = incoming.peer();
        let refused = |refusal: &Refusal| format!("refused the primary at {peer}: {refusal}");
        let place = match self.agree(&incoming.hello) {
            Ok(place) => place,
            Err(refusal) => {
                // Whoever asks here once the peer knows finds the line.
                self.tell(&refused(&refusal));
                let _ = incoming.refuse(refusal);
                return Ok(());
            }
        };
        let left = |error: TcpError| format!("the primary at {peer} left before it began: {error}");
        let local = incoming.local_addr().map_err(left)?;
        let heartbeats = HeartbeatSocket::beside(local).map_err(|error| error.to_string())?;
        let heartbeats = Arc::new(heartbeats);
        let heartbeat_port = heartbeats.local_addr().port();
        let welcome = Welcome { claimant: self.desk.claimant, heartbeat_port };
        let mut reserved = incoming.welcome(welcome).map_err(left)?;
        drop(greeting);
        let generation = loop {
            match reserved.next_word(SILENCE).map_err(left)? {
                Some(generation) => break generation,
                None if self.is_closed() => {
                    let _ = reserved.refuse(Refusal::Other(FOLLOWS_ANOTHER.into()));
                    return Ok(());
                }
                None => {}
            }
        };
        if let Err(reason) = self.check_holder(&reserved.hello, generation) {
            let refusal = Refusal::Other(reason);
            self.tell(&refused(&refusal));
            let _ = reserved.refuse(refusal);
            return Ok(());
        }
        drop(place);
        if let Err(unmet) = self.arrivals.send(Arrival { reserved, generation, heartbeats }) {
            let _ = unmet.into_inner().reserved.refuse(Refusal::Other(FOLLOWS_ANOTHER.into()));
        }
        Ok(())
    }

    /// A place for the primary that says `hello`, unless there is a reason against it.
    fn agree(&self, hello: &Hello) -> Result<Place<'_>, Refusal> {
        if let Some(mismatch) = self.desk.ours.mismatch(&hello.config) {
            return Err(Refusal::Mismatch(mismatch));
        }
        let policy = hello.policy.check();
        policy.map_err(|error| Refusal::Other(format!("no pair can go by the primary's times: {error}")))?;
        if self.desk.health.is_silent() {
            let server = &self.desk.disk_server;
            return Err(Refusal::Other(format!(
                "the backup has no disk server: nothing answers at {server}"
            )));
        }
        let mut counts = self.counts();
        if counts.reserved >= MAX_RESERVED {
            return Err(Refusal::Other(format!("{MAX_RESERVED} other primaries are about to begin here")));
        }
        counts.reserved += 1;
        let reserved = counts.reserved;
        drop(counts);
        (self.desk.reserved)(reserved);
        Ok(Place { shared: self, of: |counts| &mut counts.reserved })
    }

    /// Whether the disk server that this backup would ask knows the primary as it describes itself. A pair
    /// that asks two servers could go live twice.
    fn check_holder(&self, hello: &Hello, generation: Generation) -> Result<(), String> {
        let (server, vm) = (&self.desk.disk_server, &self.desk.ours.vm);
        let state = DiskClient::connect(server, ASK_HOLDER).and_then(|mut client| client.query(vm));
        let holding = state.map_err(|error| format!("the backup has no disk server: {error}"))?.holding;
        if (holding.generation, holding.holder) == (generation, Some(hello.claimant)) {
            return Ok(());
        }
        Err(format!(
            "the backup's disk server {server} has generation {} of {vm}, held by {:032x}; the primary is \
             {:032x} with generation {generation}: give both the same disk server",
            holding.generation,
            holding.holder.unwrap_or(0),
            hello.claimant,
        ))
    }

    /// Says what was refused, unless too much of that was said lately.
    fn tell(&self, line: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let now = HostClock.now_ns();
        if now.saturating_sub(told.since_ns) > MINUTE_NS {
            if told.more > 0 {
                eprintln!("lockstep: {} more connections were refused", told.more);
            }
            *told = Told { since_ns: now, ..Told::default() };
        }
        if told.lines >= MAX_TOLD {
            told.more += 1;
            return;
        }
        told.lines += 1;
        eprintln!("lockstep: {line}");
    }
}
