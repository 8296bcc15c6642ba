//! Egress: where a live copy's released outputs go, to the network, the disk server and the console.
//!
//! Nothing here decides whether an output may go: that is the protocol's word (`ft::Primary`).
//!
//! ```text
//!   with the leader's lock      push ──▶ a bounded queue of each kind: never waits
//!   without it                  pump ──▶ writes what the sockets take at once, on the releasing thread
//!                               net-tx, disk-tx ──▶ go on with what does not go at once
//!                               console-tx ──▶ writes the console, which may be a pipe that nobody reads
//! ```
//!
//! Outputs of one kind go in the order in which they were pushed: of each kind one thread writes at a time.

mod console;
mod disk;
mod net;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use disk_server::client::RequestSender;
use logchannel::{Generation, Output};

use crate::io::clock::HostClock;
use crate::io::console::ConsoleSink;
use crate::pair::threads::start;

pub use disk::DiskWait;
pub use net::NetWriter;

/// Counts of what went out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct EgressCounts {
    /// Ethernet frames.
    pub frames: u64,
    /// Frames that the network did not take.
    pub frames_dropped: u64,
    /// Disk requests, repetitions included.
    pub disk_requests: u64,
    /// Console bytes written, those that were dropped not among them.
    pub console_bytes: u64,
    /// Console bytes dropped: there were more than --console-rate, or nobody takes them.
    pub console_dropped: u64,
}

/// The outputs' way into the world.
#[derive(Debug)]
pub struct Egress {
    net: net::Net,
    disk: disk::Disk,
    console: console::Console,
}

impl Egress {
    /// Starts the threads of a process' outputs, with disk requests under `generation`. Without a network,
    /// frames are dropped, as by a card without a cable.
    pub fn start(
        net: Option<NetWriter>,
        console: ConsoleSink,
        generation: Generation,
        clock: HostClock,
    ) -> anyhow::Result<Arc<Self>> {
        let (sink, console) = (console.writer, console::Console::new(console.limits, clock));
        let egress =
            Arc::new(Self { net: net::Net::new(net), disk: disk::Disk::new(generation, clock), console });
        let of_net = egress.clone();
        start("net-tx", move || of_net.net.serve())?;
        let of_disk = egress.clone();
        start("disk-tx", move || of_disk.disk.serve())?;
        let of_console = egress.clone();
        start("console-tx", move || of_console.console.serve(sink))?;
        Ok(egress)
    }

    /// Takes one output. Never waits; `pump` then sends it.
    pub fn push(&self, output: Output) {
        match output {
            Output::Net(frame) => self.net.push(frame),
            Output::Disk(request) => self.disk.push(request),
            Output::Console(bytes) => self.console.push(bytes),
        }
    }

    /// Takes a frame that no guest made.
    pub fn push_frame(&self, frame: &[u8]) {
        self.net.push(frame.to_vec());
    }

    /// Sends what goes at once. To be called without the leader's lock, after whatever may have pushed.
    pub fn pump(&self) {
        self.net.pump();
        self.disk.pump();
    }

    /// Uses a new connection to the disk server, and repeats on it, in order, what is in flight.
    pub fn connect_disk(&self, disk: RequestSender) {
        self.disk.connect(disk);
    }

    /// Sends disk requests under `generation` from now on, and repeats under it what is in flight.
    pub fn set_generation(&self, generation: Generation) {
        self.disk.set_generation(generation);
    }

    /// The disk server answered a request. Whether it was in flight: an answer to a repetition is none.
    pub fn completed(&self, id: u64) -> bool {
        self.disk.completed(id)
    }

    /// Disk requests without an answer.
    pub fn disk_wait(&self) -> DiskWait {
        self.disk.wait()
    }

    /// What went out.
    pub fn counts(&self) -> EgressCounts {
        let mut counts = EgressCounts::default();
        self.net.count(&mut counts);
        self.disk.count(&mut counts);
        self.console.count(&mut counts);
        counts
    }

    /// Waits, for at most `longest`, until everything that was pushed is written.
    pub fn drain(&self, longest: Duration, clock: HostClock) {
        const LOOK_EVERY: Duration = Duration::from_millis(1);
        self.pump();
        let end_ns = clock.now_ns() + u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX / 2);
        while !(self.net.is_idle() && self.disk.is_idle() && self.console.is_idle()) {
            if clock.now_ns() >= end_ns {
                return tracing::warn!("outputs that nobody takes are left");
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who writes: one thread at a time, and no work is left with nobody at it.
///
/// A thread that finds `Free` takes the turn. It gives it back only with the queue seen empty under the same
/// lock, so that what another thread pushed meanwhile is not left behind; or it hands it over to the kind's
/// own thread, which may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Turn {
    #[default]
    Free,
    Pumping,
    HandedOver,
}

/// Most rounds of writing by a thread that has something else to do: others may push for ever.
const ROUNDS: usize = 4;
