//! Runs minikv in its world and keeps the log, the outputs and the last state.

use logchannel::{Event, Generation, LogEntry, Output, Position, Seq};
use replay::{ClockPolicy, Ending, Machine as _, Offer, Recorded, Recorder, Stop};

use crate::client::Step;
use crate::disk::Disk;
use crate::machine::{State, Vm, minikv};
use crate::replaying::Replay;
use crate::rng::Rng;
use crate::world::{DISK_BYTES, End, Plan, World};

/// More steps than any run takes.
const MAX_STEPS: u64 = 300_000;

/// How to record.
#[derive(Debug, Clone)]
pub struct Options {
    /// Instead of the seed's plan.
    pub plan: Option<Plan>,
    /// More clients.
    pub scripts: Vec<Vec<Step>>,
    /// Whether digests are logged, but for the last.
    pub digests: bool,
    /// Logs a digest after every input: at once, or at the next stop.
    pub dense: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { plan: None, scripts: Vec::new(), digests: true, dense: false }
    }
}

/// A run that is over.
#[derive(Clone)]
pub struct Recording {
    pub log: Vec<LogEntry>,
    pub outputs: Vec<Output>,
    pub ending: Option<Ending>,
    pub last: State,
    pub disk: Disk,
    /// Answers that clients got.
    pub answers: u64,
}

impl Recording {
    /// How far the guest came.
    pub fn positions(&self) -> u64 {
        self.log.last().map_or(0, |entry| entry.at.count)
    }

    /// How many entries are of this kind.
    pub fn count(&self, kind: logchannel::EventKind) -> usize {
        self.log.iter().filter(|entry| entry.event.kind() == kind).count()
    }
}

/// A run under way.
pub struct Session {
    pub recorder: Recorder<Vm>,
    pub world: World,
    /// Digests and the like, so that they change nothing else.
    rng: Rng,
    options: Options,
    steps: u64,
    /// How long the guest ran to its last stop, in its own time.
    ran_ns: u64,
    out: Vec<Recorded>,
    log: Vec<LogEntry>,
    outputs: Vec<Output>,
    digest_due: bool,
    /// Number of the entry after the last digest, and where that one is.
    digested: (Seq, Position),
}

/// Records the run of a seed.
pub fn record(seed: u64, options: &Options) -> Recording {
    let mut session = Session::new(seed, options);
    while session.step() {}
    session.finish()
}

fn policy(plan: &Plan) -> ClockPolicy {
    match plan.bound_ns {
        Some(bound_ns) => ClockPolicy::Host { bound_ns },
        None => ClockPolicy::Virtual,
    }
}

impl Session {
    /// The run of `seed`, at its beginning.
    pub fn new(seed: u64, options: &Options) -> Self {
        let plan = options.plan.clone().unwrap_or_else(|| Plan::random(&mut Rng::new(seed, 0)));
        let policy = policy(&plan);
        Self {
            world: World::new(seed, plan, &options.scripts),
            recorder: Recorder::new(minikv(DISK_BYTES as u64), policy, 0),
            rng: Rng::new(seed, 2),
            options: options.clone(),
            steps: 0,
            ran_ns: 0,
            out: Vec::new(),
            log: Vec::new(),
            outputs: Vec::new(),
            digest_due: false,
            digested: (1, Position::at(0)),
        }
    }

    /// The recording of a run that is over.
    pub fn finish(self) -> Recording {
        let Self { recorder, world, log, outputs, .. } = self;
        let ending = recorder.ending().cloned();
        Recording {
            log,
            outputs,
            ending,
            last: State::of(&mut recorder.into_machine()),
            answers: world.answers(),
            disk: world.disk,
        }
    }

    /// The machine is lost, and with it up to `lost` of its last entries, but none of an output that was
    /// released. A replica that executed the rest goes live in its place.
    pub fn fail_over(&mut self, lost: usize, generation: Generation) {
        let output = |entry: &LogEntry| matches!(entry.event, Event::Output { .. } | Event::GoLive { .. });
        let kept = self.log.iter().rposition(output).map_or(0, |index| index + 1);
        self.log.truncate(kept.max(self.log.len().saturating_sub(lost)));
        let mut replay = Replay::new(minikv(DISK_BYTES as u64));
        let result = replay.push(&self.log).and_then(|()| replay.run());
        result.unwrap_or_else(|divergence| panic!("{divergence}"));
        assert!(replay.outputs == self.outputs, "the replica made the same outputs");
        self.recorder = replay.replayer.into_recorder(policy(&self.world.plan), self.world.host_ns);
        self.recorder.go_live(generation, &mut self.out);
        self.collect();
        self.world.reissue(self.recorder.machine().disk_in_flight());
    }

    /// Goes on to the guest's next stop and lets in what is due there; false when the run is over.
    pub fn step(&mut self) -> bool {
        let stop = self.advance();
        self.react(stop)
    }

    /// Runs the guest to its next stop.
    pub fn advance(&mut self) -> Stop {
        let before_ns = self.recorder.machine().now_ns();
        let stop = self.recorder.advance(&mut self.out).expect("the guest runs");
        self.ran_ns = self.recorder.machine().now_ns() - before_ns;
        self.collect();
        stop
    }

    /// Lets in what is due at a stop; false when the run is over.
    pub fn react(&mut self, stop: Stop) -> bool {
        self.steps += 1;
        assert!(self.steps < MAX_STEPS, "the run does not come to its end: {}", self.world.describe());
        match stop {
            Stop::Ended(ending) => {
                assert!(
                    self.world.expects(&ending),
                    "{ending}; console: {:?}",
                    String::from_utf8_lossy(&self.world.console)
                );
                return false;
            }
            Stop::Waiting { .. } => {
                let moved = self.world.wait(self.recorder.host_deadline_ns());
                assert!(moved, "guest and clients wait for each other: {}", self.world.describe());
            }
            Stop::Ready => {}
        }
        let chance = self.rng.chance(self.world.plan.digest_per_mille);
        let grown = self.reached() != self.digested;
        if std::mem::take(&mut self.digest_due) || (chance && grown && self.options.digests) {
            self.digest();
        }
        self.world.step(self.ran_ns);
        if self.world.tells_time() {
            self.recorder.clock(self.world.host_ns, &mut self.out).expect("the clock moves");
        }
        self.deliver();
        if self.world.plan.go_live && self.steps == 100 {
            self.recorder.go_live(2, &mut self.out);
        }
        self.collect();
        let abrupt = matches!(self.world.plan.end, End::Abrupt(at) if self.steps >= at);
        if abrupt || self.world.is_settled() {
            self.recorder.shutdown(&mut self.out).expect("a last digest");
            self.collect();
            return false;
        }
        true
    }

    fn digest(&mut self) {
        self.recorder.digest(&mut self.out).expect("a digest");
        self.digested = self.reached();
    }

    /// Number of the next entry, and where the guest is.
    fn reached(&self) -> (Seq, Position) {
        (self.recorder.next_seq(), self.recorder.machine().position())
    }

    fn deliver(&mut self) {
        let mut applied = self.out.iter().any(|recorded| matches!(recorded.entry.event, Event::Clock { .. }));
        loop {
            if std::mem::take(&mut applied) && self.options.dense {
                self.check_soon();
            }
            let Some(event) = self.world.next_input() else { break };
            match self.recorder.offer(event, &mut self.out).expect("an input") {
                Offer::Applied => applied = true,
                Offer::Refused(event) => self.world.refused(event),
            }
        }
    }

    /// A digest now or at the next stop.
    fn check_soon(&mut self) {
        match self.rng.chance(500) {
            true => self.digest(),
            false => self.digest_due = true,
        }
    }

    fn collect(&mut self) {
        for Recorded { entry, output } in self.out.drain(..) {
            self.log.push(entry);
            if let Some(output) = output {
                self.outputs.push(output.clone());
                self.world.take(output);
            }
        }
    }
}
