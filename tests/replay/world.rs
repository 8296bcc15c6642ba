//! Everything outside the machine: network with its clients, disk, console, host clock. All of it from a
//! seed.
//!
//! Inputs wait for their turn, counted in stops of the machine, so that they hit it at random positions:
//! while it boots, computes, polls or waits.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use logchannel::{DiskRequest, Event, Output};
use replay::Ending;

use crate::client::{Reply, Step, request, script};
use crate::disk::{Disk, independent};
use crate::peer::Peer;
use crate::recording::{Options, record};
use crate::rng::Rng;

/// How a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Powered off from outside once all clients are done.
    Settled,
    /// By the guest, which a client tells to shut down.
    Guest,
    /// Powered off from outside in the middle, after so many steps.
    Abrupt(u64),
}

/// What is random about a run as a whole.
#[derive(Debug, Clone)]
pub struct Plan {
    pub clients: u64,
    /// Rounds of each client.
    pub steps: u64,
    /// How far the virtual clock may stay behind; none: no host time enters.
    pub bound_ns: Option<u64>,
    pub loss_per_mille: u64,
    pub reorder_per_mille: u64,
    /// Most stops that a frame, and a disk request, take.
    pub frame_delay: u64,
    pub disk_delay: u64,
    pub disk_error_per_mille: u64,
    /// Frames and console bytes that nobody asked for.
    pub noise_per_mille: u64,
    pub digest_per_mille: u64,
    pub used_disk: bool,
    pub go_live: bool,
    pub end: End,
}

impl Plan {
    /// The plan of a seed.
    pub fn random(rng: &mut Rng) -> Self {
        let bound_ns = *rng.pick(&[Some(10_000), Some(100_000), Some(1_000_000), Some(1_000_000), None]);
        Self {
            clients: rng.within(1, 5),
            steps: rng.within(10, 60),
            bound_ns,
            loss_per_mille: if bound_ns.is_some() { *rng.pick(&[0, 0, 5, 40]) } else { 0 },
            reorder_per_mille: *rng.pick(&[0, 10, 100]),
            frame_delay: *rng.pick(&[0, 1, 3, 12]),
            disk_delay: *rng.pick(&[0, 2, 8, 30]),
            disk_error_per_mille: *rng.pick(&[0, 0, 20]),
            noise_per_mille: *rng.pick(&[0, 10, 100]),
            digest_per_mille: *rng.pick(&[50, 100, 200]),
            used_disk: rng.chance(400),
            go_live: rng.chance(200),
            end: match rng.below(10) {
                0..6 => End::Settled,
                6..8 => End::Guest,
                _ => End::Abrupt(rng.within(50, 800)),
            },
        }
    }

    /// One client, no disturbance: for counting.
    pub fn quiet() -> Self {
        Self {
            clients: 0,
            steps: 0,
            bound_ns: Some(1_000_000),
            loss_per_mille: 0,
            reorder_per_mille: 0,
            frame_delay: 0,
            disk_delay: 0,
            disk_error_per_mille: 0,
            noise_per_mille: 0,
            digest_per_mille: 0,
            used_disk: false,
            go_live: false,
            end: End::Settled,
        }
    }
}

/// Size of every disk here.
pub const DISK_BYTES: usize = 4 << 20;

/// A disk that a run has left behind, with a log to recover.
fn used_disk() -> &'static Disk {
    static DISK: OnceLock<Disk> = OnceLock::new();
    DISK.get_or_init(|| {
        let plan = Plan { clients: 3, steps: 20, ..Plan::quiet() };
        record(0, &Options { plan: Some(plan), ..Options::default() }).disk
    })
}

/// On its way to the machine.
enum Incoming {
    Input(Event),
    Disk(DiskRequest),
}

/// The world of one run.
pub struct World {
    rng: Rng,
    pub plan: Plan,
    peer: Peer,
    pub disk: Disk,
    pub console: Vec<u8>,
    pub host_ns: u64,
    /// Stops so far; and what arrives at which of them, in order of sending where equal.
    tick: u64,
    incoming: BTreeMap<(u64, u64), Incoming>,
    sent: u64,
    last_frame_at: u64,
    told_to_shut_down: bool,
}

impl World {
    /// The world of `seed`, whose clients do what the plan says, and one more for each of `scripts`.
    pub fn new(seed: u64, plan: Plan, scripts: &[Vec<Step>]) -> Self {
        let mut rng = Rng::new(seed, 1);
        let mut peer = Peer::new(rng.next(), plan.loss_per_mille > 0);
        for number in 0..plan.clients {
            let start_ns = rng.below(5_000_000);
            peer.add(script(&mut rng, &format!("{seed}:{number}"), plan.steps), start_ns);
        }
        scripts.iter().for_each(|script| peer.add(script.clone(), 0));
        let disk = if plan.used_disk { used_disk().clone() } else { Disk::new(DISK_BYTES) };
        Self {
            rng,
            plan,
            peer,
            disk,
            console: Vec::new(),
            host_ns: 0,
            tick: 0,
            incoming: BTreeMap::new(),
            sent: 0,
            last_frame_at: 0,
            told_to_shut_down: false,
        }
    }

    /// Whether the machine may look at the clock. A virtual clock skips idle time at once: then the timers of
    /// the guest would run out before anything that is under way could arrive.
    pub fn tells_time(&self) -> bool {
        self.plan.bound_ns.is_some() || self.incoming.is_empty()
    }

    /// How many answers the clients got.
    pub fn answers(&self) -> u64 {
        self.peer.answers()
    }

    /// An output of the machine, released.
    pub fn take(&mut self, output: Output) {
        match output {
            Output::Console(bytes) => self.console.extend(bytes),
            Output::Net(frame) if self.rng.chance(self.plan.loss_per_mille) => drop(frame),
            Output::Net(frame) => self.peer.receive(frame),
            Output::Disk(request) => {
                let mut at = self.tick + self.rng.within(0, self.plan.disk_delay);
                for ((due, _), other) in &self.incoming {
                    if let Incoming::Disk(other) = other
                        && !independent(other, &request)
                    {
                        at = at.max(*due);
                    }
                }
                self.schedule(at, Incoming::Disk(request));
            }
        }
    }

    fn schedule(&mut self, at: u64, incoming: Incoming) {
        self.sent += 1;
        self.incoming.insert((at, self.sent), incoming);
    }

    /// The requests that a machine going live has in flight: those that nobody is at work on are carried out
    /// again.
    pub fn reissue(&mut self, requests: Vec<DiskRequest>) {
        for request in requests {
            let at_work = self.incoming.values().any(|incoming| match incoming {
                Incoming::Disk(other) => other.id == request.id,
                Incoming::Input(_) => false,
            });
            if !at_work {
                self.take(Output::Disk(request));
            }
        }
    }

    /// Moves on by one stop: time passes, the network does its work.
    ///
    /// The guest ran for `ran_ns` of its own time, and the host's clock goes at least as fast, as it does
    /// with every real engine. Were it slower, a guest that computes would get no `Clock` entry, and a
    /// replica that goes live would begin all of that again.
    pub fn step(&mut self, ran_ns: u64) {
        self.tick += 1;
        self.host_ns += ran_ns + self.rng.below(40_000);
        for frame in self.peer.poll(self.host_ns) {
            if self.rng.chance(self.plan.loss_per_mille) {
                continue;
            }
            let mut at = self.tick + self.rng.within(0, self.plan.frame_delay);
            if !self.rng.chance(self.plan.reorder_per_mille) {
                at = at.max(self.last_frame_at);
            }
            self.last_frame_at = self.last_frame_at.max(at);
            self.schedule(at, Incoming::Input(Event::NetRx(frame)));
        }
        if self.rng.chance(self.plan.noise_per_mille) {
            let event = self.noise();
            self.schedule(self.tick, Incoming::Input(event));
        }
    }

    fn noise(&mut self) -> Event {
        let len = match self.rng.below(8) {
            0 => return Event::ConsoleRx(self.noise_bytes(1, 4)),
            1 => return Event::NetRx(self.noise_bytes(0, 13)),
            2 => return Event::NetRx(self.noise_bytes(1519, 3000)),
            3 => 1518,
            _ => self.rng.within(14, 200) as usize,
        };
        let mut frame = self.rng.bytes(len);
        if self.rng.chance(500) {
            let to = [[0xff; 6], devices::layout::DEFAULT_GUEST_MAC];
            frame[..6].copy_from_slice(self.rng.pick::<[u8; 6]>(&to));
            frame[12..14].copy_from_slice(self.rng.pick::<[u8; 2]>(&[[8, 0], [8, 6]]));
        }
        Event::NetRx(frame)
    }

    fn noise_bytes(&mut self, low: u64, high: u64) -> Vec<u8> {
        let len = self.rng.within(low, high) as usize;
        self.rng.bytes(len)
    }

    /// The next input that is due.
    pub fn next_input(&mut self) -> Option<Event> {
        let (&(at, _), _) = self.incoming.first_key_value()?;
        if at > self.tick {
            return None;
        }
        match self.incoming.pop_first()?.1 {
            Incoming::Input(event) => Some(event),
            Incoming::Disk(request) => {
                // A guest whose disk fails while it boots gives up.
                let booted = !self.console.is_empty();
                let fail = self.rng.chance(self.plan.disk_error_per_mille) && booted;
                Some(self.disk.complete(&request, fail))
            }
        }
    }

    /// An input that the machine had no room for: it comes back later, but for noise on the console.
    pub fn refused(&mut self, event: Event) {
        if !matches!(event, Event::ConsoleRx(_)) {
            self.schedule(self.tick + 1, Incoming::Input(event));
        }
    }

    /// Whether the guest may end, and so.
    pub fn expects(&self, ending: &Ending) -> bool {
        self.told_to_shut_down && *ending == Ending::PowerOff(0)
    }

    /// Whether anything is on its way.
    pub fn is_busy(&self) -> bool {
        !self.incoming.is_empty()
    }

    /// Where it stands, for the message of a run that stands still.
    pub fn describe(&mut self) -> String {
        format!(
            "{:?}, {}, console {:?}",
            self.plan,
            self.peer.describe(),
            String::from_utf8_lossy(&self.console)
        )
    }

    /// The guest waits: makes the next thing happen that can. False if nothing ever will.
    pub fn wait(&mut self, guest_deadline_ns: Option<u64>) -> bool {
        if let Some(&(at, _)) = self.incoming.keys().next()
            && !self.rng.chance(30)
        {
            self.tick = self.tick.max(at);
            return true;
        }
        let peer_wakes_ns = self.peer.wake_at_ns(self.host_ns);
        let next_ns = guest_deadline_ns.into_iter().chain(peer_wakes_ns).min();
        self.host_ns = self.host_ns.max(next_ns.unwrap_or(0));
        next_ns.is_some() || !self.incoming.is_empty()
    }

    /// Whether all is done; where the plan says so, a last client then tells the guest to shut down.
    pub fn is_settled(&mut self) -> bool {
        if !self.peer.is_done() || !self.incoming.is_empty() {
            return false;
        }
        if self.plan.end == End::Guest && !std::mem::replace(&mut self.told_to_shut_down, true) {
            let step = Step::Ask { bytes: request(&[b"SHUTDOWN"]), replies: vec![Reply::Nothing] };
            self.peer.add(vec![step], self.host_ns + 1);
            return false;
        }
        !self.told_to_shut_down
    }
}
