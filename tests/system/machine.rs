//! Runs cases on engines, and tells what came of them.

use std::collections::BTreeMap;
use std::fmt;

use lockstep::engine::state::CpuState;
use lockstep::engine::{AnyEngine, Engine, VmEntry, VmExit};
use lockstep::memory::Ram;
use logchannel::Position;

use crate::cases::{Case, word};
use crate::deviations::{self, Deviation, Holds};
use crate::hosts::{Host, hosts, vendor};
use crate::scaffold::{AC, DONE_PORT, DS, HANDLER_BYTES, HANDLERS, IOPL3, LDTR, RAM_BYTES, RF, build};

/// How a case ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// It got to its end.
    Done,
    /// An exception that nobody asked to go on from.
    Raised,
    /// Triple fault.
    Shutdown,
    /// HLT outside the handlers; the RIP after it.
    Halted(u64),
    /// The engine cannot do it.
    Unsupported(String),
    /// It does not end.
    Astray,
}

/// An exception or interrupt that was delivered.
#[derive(Debug, Clone)]
pub struct Event {
    pub vector: u8,
    pub error: Option<u64>,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
    /// In the handler.
    pub state: CpuState,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vector, error, rip, cs, rflags, rsp, ss, state } = self;
        write!(f, "vector {vector}, error {error:x?}, RIP {rip:#x}, CS {cs:#x}, RFLAGS {rflags:#x}, ")?;
        write!(f, "RSP {rsp:#x}, SS {ss:#x}, CR2 {:#x}, DR6 {:#x}", state.cr[1], state.dr[4])
    }
}

/// What came of a case.
pub struct Outcome {
    pub events: Vec<Event>,
    pub finish: Finish,
    pub state: CpuState,
    /// Exits that are neither the end nor a handler's.
    pub exits: Vec<VmExit>,
}

/// An engine with its memory. Dropped in this order.
pub struct Machine {
    pub engine: AnyEngine,
    pub ram: Ram,
}

const MOST_EXITS: usize = 10_000;
const MOST_INSTRUCTIONS: u64 = 500_000;

impl Machine {
    /// With the scaffold and `writes` in memory.
    pub fn new(host: Host, writes: &[(u64, Vec<u8>)]) -> Self {
        let mut ram = Ram::new(RAM_BYTES).expect("guest memory");
        build(&mut ram);
        for (address, bytes) in writes {
            ram.write(*address as usize, bytes);
        }
        let engine = host.make(&ram).expect("an engine");
        Self { engine, ram }
    }

    /// A machine for one case, ready to run; or why this host does not take its state.
    pub fn of(host: Host, case: &Case) -> Result<Self, String> {
        let mut writes = vec![case.image()];
        writes.extend(case.writes.iter().cloned());
        let mut machine = Self::new(host, &writes);
        machine.start(&case.state)?;
        Ok(machine)
    }

    /// Begins anew in `state`.
    pub fn start(&mut self, state: &CpuState) -> Result<(), String> {
        self.engine.restore(state, Position::at(0)).map_err(|e| format!("the state is refused: {e}"))
    }

    /// On to the next exit.
    pub fn run(&mut self, entry: VmEntry) -> VmExit {
        let until = Position::at(self.engine.position().count + MOST_INSTRUCTIONS);
        // A KVM that gives up on the guest is as good as one that says what it cannot do.
        self.engine.run(entry, Some(until)).unwrap_or_else(|error| VmExit::Unsupported(error.to_string()))
    }

    /// The state after the last exit.
    pub fn state(&mut self) -> CpuState {
        self.engine.complete(VmEntry::Resume).expect("completes");
        self.engine.save().expect("saves")
    }

    /// The event whose handler has just halted in `state`.
    pub fn event(&self, state: CpuState) -> Event {
        let vector = ((state.rip - 1 - HANDLERS) / HANDLER_BYTES) as u8;
        let mut at = state.gpr[4];
        // In 64-bit mode RSP is aligned to 16 before the frame of five words is pushed (SDM vol. 3, 6.14.2):
        // its alignment tells whether there is an error code.
        let error = (at & 8 == 0).then(|| word(&self.ram, at));
        at += if error.is_some() { 8 } else { 0 };
        let [rip, cs, rflags, rsp, ss] = std::array::from_fn(|n| word(&self.ram, at + n as u64 * 8));
        Event { vector, error, rip, cs, rflags, rsp, ss, state }
    }

    /// Runs through `events` exceptions, and stops at the one after, or at the end.
    pub fn play(&mut self, events: usize, to_the_end: bool) -> Outcome {
        let (mut seen, mut exits, mut entry) = (Vec::new(), Vec::new(), VmEntry::Resume);
        let finish = loop {
            let exit = self.run(std::mem::take(&mut entry));
            match exit {
                VmExit::PioWrite { port: DONE_PORT, .. } => break Finish::Done,
                VmExit::Hlt => {
                    let state = self.state();
                    if !(HANDLERS..HANDLERS + 256 * HANDLER_BYTES).contains(&state.rip) {
                        break Finish::Halted(state.rip);
                    }
                    seen.push(self.event(state));
                    if seen.len() > events || (seen.len() == events && !to_the_end) {
                        break Finish::Raised;
                    }
                }
                VmExit::Shutdown => break Finish::Shutdown,
                VmExit::Unsupported(text) => break Finish::Unsupported(text),
                VmExit::Reached | VmExit::Kicked => break Finish::Astray,
                other => {
                    entry = match &other {
                        VmExit::PioRead { .. } | VmExit::MmioRead { .. } => VmEntry::Value(u64::MAX),
                        VmExit::PioReadString { len, .. } => VmEntry::Bytes(vec![0xff; *len]),
                        VmExit::MsrRead { .. } | VmExit::MsrWrite { .. } => VmEntry::Msr(None),
                        _ => VmEntry::Resume,
                    };
                    exits.push(other);
                    if exits.len() > MOST_EXITS {
                        break Finish::Astray;
                    }
                }
            }
        };
        let lost = matches!(finish, Finish::Shutdown | Finish::Unsupported(_));
        let state = if lost { CpuState::default() } else { self.state() };
        Outcome { events: seen, finish, state, exits }
    }
}

/// What engines must agree on.
fn comparable(state: &CpuState, undefined: u64) -> CpuState {
    let mut state = state.clone();
    state.rflags &= !undefined;
    (state.xsave, state.msrs, state.apic_base, state.xcr0) = (Vec::new(), Vec::new(), 0, 0);
    state.events = Default::default();
    for (index, segment) in state.segments.iter_mut().enumerate() {
        // What a null selector left in the hidden part means nothing; FS and GS keep their bases.
        let null = segment.selector & !3 == 0 && index <= DS;
        if null || segment.access >> 16 & 1 == 1 || segment.access & 0x80 == 0 || index == LDTR {
            (segment.base, segment.limit, segment.access) = (0, 0, 0);
        }
        // The accessed bit of the hidden part is not visible to the guest.
        segment.access &= !1;
    }
    state
}

/// How cases came out, of one subject on one engine.
struct Tally {
    subject: String,
    host: Host,
    run: usize,
    /// Names of cases by reason.
    skipped: BTreeMap<String, Vec<String>>,
    /// Known deviations: how many cases of each differ, and the names of those that do not.
    known: BTreeMap<String, (Holds, usize, Vec<String>)>,
    failures: Vec<String>,
}

impl Tally {
    fn new(subject: &str, host: Host) -> Self {
        let (skipped, known, failures) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        Self { subject: subject.into(), host, run: 0, skipped, known, failures }
    }

    /// What is known of a case on this host.
    fn known_of(&self, case: &Case) -> Option<(String, Holds)> {
        let own = case.not_on.iter().find(|(other, ..)| *other == self.host);
        if let Some((_, why, holds)) = own {
            return Some((format!("`not_on` of the cases themselves: {why}"), *holds));
        }
        let (number, entry) = deviations::of(self.host, vendor(), &self.subject, &case.name)?;
        let Deviation { case, shows, right, seen, .. } = entry;
        Some((format!("{number}, '{case}': {shows}; right: {right}; seen: {seen}"), entry.holds))
    }

    /// What came of a case: whether it is as the manuals say.
    fn note(&mut self, case: &Case, wrong: Vec<String>) -> bool {
        let right = wrong.is_empty();
        let Some((entry, holds)) = self.known_of(case) else {
            self.fail(case, wrong);
            return right;
        };
        let (_, differ, agree) = self.known.entry(entry).or_insert((holds, 0, Vec::new()));
        match right {
            true => agree.push(case.name.clone()),
            false => *differ += 1,
        }
        right
    }

    fn fail(&mut self, case: &Case, wrong: Vec<String>) {
        let (engine, subject) = (self.host.engine(), &self.subject);
        let told = wrong.iter().map(|w| format!("{engine} {subject}: {}: {w}", case.name));
        self.failures.extend(told);
        if let (Some(first), true) = (wrong.first(), self.host != Host::Soft) {
            let line = deviations::line(self.host, vendor(), subject, &case.name, first);
            self.failures.push(format!("if this host is wrong, in tests/system/deviations.rs: {line}"));
        }
    }

    fn tell(&mut self) {
        let (subject, engine) = (&self.subject, self.host.engine());
        let skipped: usize = self.skipped.values().map(Vec::len).sum();
        let differ: usize = self.known.values().map(|(_, differ, _)| differ).sum();
        eprintln!("{subject} on {engine}: {} cases run, of which {differ} differ as is known", self.run);
        if skipped > 0 {
            eprintln!("SKIPPED {subject} on {engine}: {skipped} of {} cases", skipped + self.run);
            for (why, names) in &self.skipped {
                eprintln!("    {} × {why}: {}", names.len(), names.join("; "));
            }
        }
        // Of some cases alone nothing follows for an entry.
        let all = std::env::var("LOCKSTEP_SYSTEM_CASE").is_err();
        for (entry, (holds, differ, agree)) in &self.known {
            if all && *holds == Holds::Always && *differ == 0 {
                self.failures.push(format!(
                    "{engine} {subject}: no deviation any more, delete it (or say that it holds sometimes): \
                     {entry} ({})",
                    agree.join("; ")
                ));
            }
        }
    }
}

fn wanted(case: &Case) -> bool {
    std::env::var("LOCKSTEP_SYSTEM_CASE").map_or(true, |part| case.name.contains(&part))
}

/// Runs every case on every engine, each in a machine of its own.
pub fn run(subject: &str, cases: Vec<Case>) {
    run_with(subject, None, cases);
}

/// Runs every case on every engine, all in one machine with `writes` in memory. Cases have no code of their
/// own.
pub fn run_in_one(subject: &str, writes: &[(u64, Vec<u8>)], cases: Vec<Case>) {
    run_with(subject, Some(writes), cases);
}

fn run_with(subject: &str, shared: Option<&[(u64, Vec<u8>)]>, cases: Vec<Case>) {
    let mut failures = Vec::new();
    let mut first: Vec<Option<(Host, Outcome)>> = cases.iter().map(|_| None).collect();
    for host in hosts(subject) {
        let mut tally = Tally::new(subject, host);
        let mut one = shared.map(|writes| Machine::new(host, writes));
        for (case, before) in cases.iter().zip(&mut first).filter(|(case, _)| wanted(case)) {
            let started = match &mut one {
                Some(machine) => machine.start(&case.state).map(|()| None),
                None => Machine::of(host, case).map(Some),
            };
            let mut own = match started {
                Ok(own) => own,
                Err(why) => {
                    tally.skipped.entry(why).or_default().push(case.name.clone());
                    continue;
                }
            };
            let machine = own.as_mut().or(one.as_mut()).expect("one of them");
            let outcome = machine.play(case.events.len(), case.finish.is_some());
            if matches!(outcome.finish, Finish::Unsupported(_)) && host != Host::Soft {
                let why = "an instruction or event that this KVM cannot do";
                match tally.known_of(case) {
                    Some(_) => _ = tally.note(case, vec![why.into()]),
                    None => tally.skipped.entry(why.into()).or_default().push(case.name.clone()),
                }
                if let (Some(writes), true) = (shared, one.is_some()) {
                    one = Some(Machine::new(host, writes));
                }
                continue;
            }
            tally.run += 1;
            let wrong = judge(host, case, &outcome, machine, before.as_ref());
            if tally.note(case, wrong) && before.is_none() {
                *before = Some((host, outcome));
            }
        }
        tally.tell();
        failures.append(&mut tally.failures);
    }
    for failure in &failures {
        eprintln!("FAILED {failure}");
    }
    assert!(
        failures.is_empty(),
        "{} findings, see above. Repeat one with LOCKSTEP_SYSTEM_ENGINE=soft LOCKSTEP_SYSTEM_CASE='name' \
         cargo test --release -p lockstep --test system -- --nocapture {subject}",
        failures.len()
    );
}

/// What is wrong with how a case came out, by itself and beside another engine.
fn judge(
    host: Host,
    case: &Case,
    outcome: &Outcome,
    machine: &Machine,
    before: Option<&(Host, Outcome)>,
) -> Vec<String> {
    let mut wrong = case.judge(host, outcome, &machine.ram);
    if let Some((other, theirs)) = before
        && !case.states_may_differ
        && !case.differs_on.contains(&host)
    {
        let lost = match host {
            // This KVM keeps neither IOPL nor, in handlers, AC.
            Host::Pvm => AC | IOPL3,
            // QEMU's processor knows no RF.
            Host::Emulated => RF,
            _ => 0,
        };
        let open = case.undefined | lost;
        wrong.extend(differences(open, theirs, outcome).map(|d| format!("{} has {d}", other.engine())));
    }
    wrong
}

/// How two engines differ in a case.
fn differences<'a>(open: u64, a: &'a Outcome, b: &'a Outcome) -> impl Iterator<Item = String> + 'a {
    let events = a.events.iter().zip(&b.events).enumerate().filter_map(move |(n, (a, b))| {
        let key = |e: &Event| (e.vector, e.error, e.rip, e.cs, e.rflags & !open, e.rsp, e.ss);
        (key(a) != key(b)).then(|| format!("event {n} {a} instead of {b}"))
    });
    let last = comparable(&b.state, open).diff(&comparable(&a.state, open));
    events.chain(
        (!last.is_empty()).then(|| format!("another last state (ours -> theirs): {}", last.join(", "))),
    )
}
