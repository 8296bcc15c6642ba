//! The world as the guest's outputs reach it: network port, disk server, console.
//!
//! Nothing here decides whether an output may go: that is the protocol's word (`ft::Primary`), and what comes
//! here goes at once. Disk requests are kept until they complete, and repeated when the connection to the
//! disk server is replaced or the generation changes: they are idempotent (DESIGN 4).

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use disk_server::client::RequestSender;
use logchannel::{DiskRequest, Generation, Output};

/// The way to the network, replaced when the network comes back.
pub type NetWriter = Arc<Mutex<Option<lan::backend::FrameWriter>>>;

/// Counts of what went out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct OutsideCounts {
    /// Ethernet frames.
    pub frames: u64,
    /// Frames that the network did not take.
    pub frames_dropped: u64,
    /// Disk requests, repetitions included.
    pub disk_requests: u64,
    /// Console bytes.
    pub console_bytes: u64,
}

/// Where outputs go.
pub struct Outside {
    net: Option<NetWriter>,
    disk: Option<RequestSender>,
    console: Box<dyn Write + Send>,
    generation: Generation,
    in_flight: BTreeMap<u64, DiskRequest>,
    counts: OutsideCounts,
}

impl Outside {
    /// Outputs under `generation`. Without a network, frames are dropped, as by a card without a cable.
    pub fn new(net: Option<NetWriter>, console: Box<dyn Write + Send>, generation: Generation) -> Self {
        let (in_flight, counts) = (BTreeMap::new(), OutsideCounts::default());
        Self { net, disk: None, console, generation, in_flight, counts }
    }

    /// Lets one output go.
    pub fn send(&mut self, output: Output) {
        match output {
            Output::Net(frame) => self.frame(&frame),
            Output::Disk(request) => {
                self.submit(&request);
                self.in_flight.insert(request.id, request);
            }
            Output::Console(bytes) => {
                self.counts.console_bytes += bytes.len() as u64;
                let written = self.console.write_all(&bytes).and_then(|()| self.console.flush());
                if let Err(error) = written {
                    tracing::debug!(%error, "console");
                }
            }
        }
    }

    /// Sends one Ethernet frame, if the network takes it.
    pub fn frame(&mut self, frame: &[u8]) {
        let mut net = self.net.as_ref().map(|net| net.lock().unwrap_or_else(PoisonError::into_inner));
        let taken = net.as_mut().and_then(|net| net.as_mut()).is_some_and(|net| match net.write(&[frame]) {
            Ok(sent) => sent > 0,
            Err(error) => {
                tracing::debug!(%error, "network");
                false
            }
        });
        self.counts.frames += u64::from(taken);
        self.counts.frames_dropped += u64::from(!taken);
    }

    fn submit(&mut self, request: &DiskRequest) {
        let Some(disk) = &mut self.disk else { return };
        self.counts.disk_requests += 1;
        if let Err(error) = disk.submit(request.id, request, self.generation) {
            tracing::warn!(%error, "the disk server cannot be reached");
            self.disk = None;
        }
    }

    /// Uses a new connection to the disk server, and repeats on it what is in flight.
    pub fn connect_disk(&mut self, disk: RequestSender) {
        self.disk = Some(disk);
        self.repeat();
    }

    /// Sends disk requests under `generation` from now on, and repeats under it what is in flight.
    pub fn set_generation(&mut self, generation: Generation) {
        assert!(generation >= self.generation, "a generation never decreases");
        self.generation = generation;
        self.repeat();
    }

    /// The generation of disk requests.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    fn repeat(&mut self) {
        let requests: Vec<DiskRequest> = self.in_flight.values().cloned().collect();
        requests.iter().for_each(|request| self.submit(request));
    }

    /// The disk server answered a request. Whether it was in flight: an answer to a repetition is none.
    pub fn completed(&mut self, id: u64) -> bool {
        self.in_flight.remove(&id).is_some()
    }

    /// Disk requests without answer.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// What went out.
    pub fn counts(&self) -> OutsideCounts {
        self.counts
    }
}
