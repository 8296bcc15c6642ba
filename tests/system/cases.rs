//! A case: code at a privilege level, with what the processor must make of it.
//!
//! ```text
//!  prelude ── probe (the instructions under test) ── OUT to DONE_PORT
//!               │ exception                            │
//!               ▼                                      ▼
//!             handler: HLT, an `Event` is noted      the case is done
//!               │ if more is expected
//!               ▼
//!             IRETQ
//! ```

use iced_x86::code_asm::CodeAssembler;
use iced_x86::{Decoder, DecoderOptions, IcedError};
use lockstep::engine::state::{CpuState, Segment};
use lockstep::memory::Ram;

use crate::deviations::Holds;
use crate::hosts::Host;
use crate::machine::{Event, Finish, Outcome};
use crate::scaffold::{DONE_PORT, KERNEL_CODE, KERNEL_CS, USER_CODE, assemble, first_state};

/// A point of the case's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Instruction n of the probe, from 0; one past the last is the end.
    Probe(usize),
    /// The end of the probe.
    End,
    /// A linear address.
    Address(u64),
}

/// An exception or interrupt that must be delivered.
#[derive(Debug, Clone)]
pub struct Expected {
    pub vector: u8,
    pub error: Option<u64>,
    pub at: At,
    pub cr2: Option<u64>,
    /// The low sixteen bits of DR6.
    pub dr6: Option<u64>,
    /// RF in the pushed RFLAGS, where the manuals say (SDM vol. 3, 17.3.1.1).
    pub rf: Option<bool>,
    /// RSP of the handler.
    pub rsp: Option<u64>,
}

type Get = Box<dyn Fn(&Outcome, &Ram) -> u64>;

/// A value that must be there in the end.
pub struct Check {
    pub what: String,
    pub get: Get,
    pub want: u64,
}

/// See above.
pub struct Case {
    pub name: String,
    pub state: CpuState,
    pub writes: Vec<(u64, Vec<u8>)>,
    pub events: Vec<Expected>,
    /// How it must end after the events; none: at the last event.
    pub finish: Option<Finish>,
    pub checks: Vec<Check>,
    /// Flags that are undefined in the end.
    pub undefined: u64,
    /// Hosts that are known to differ, and how.
    pub not_on: Vec<(Host, &'static str, Holds)>,
    /// Engines may differ in the state at the end, for a reason given.
    pub states_may_differ: bool,
    /// As before, on these hosts.
    pub differs_on: Vec<Host>,
    bits: u32,
    prelude: Vec<u8>,
    probe: Vec<u8>,
}

type Assembled = Result<(), IcedError>;

impl Case {
    fn new(name: impl Into<String>, user: bool, compat: bool) -> Self {
        Self {
            name: name.into(),
            state: first_state(user, compat),
            writes: Vec::new(),
            events: Vec::new(),
            finish: None,
            checks: Vec::new(),
            undefined: 0,
            not_on: Vec::new(),
            states_may_differ: false,
            differs_on: Vec::new(),
            bits: if compat { 32 } else { 64 },
            prelude: Vec::new(),
            probe: Vec::new(),
        }
    }

    /// 64-bit code at CPL0.
    pub fn kernel(name: impl Into<String>) -> Self {
        Self::new(name, false, false)
    }

    /// 64-bit code at CPL3.
    pub fn user(name: impl Into<String>) -> Self {
        Self::new(name, true, false)
    }

    /// 64-bit code at CPL0 or CPL3.
    pub fn at_level(name: impl Into<String>, cpl: u8) -> Self {
        let name: String = name.into();
        Self::new(format!("{name} at CPL{cpl}"), cpl == 3, false)
    }

    /// 32-bit code at CPL3.
    pub fn compat(name: impl Into<String>) -> Self {
        Self::new(name, true, true)
    }

    fn code(&self) -> u64 {
        if self.state.segments[1].selector & 3 == 3 { USER_CODE } else { KERNEL_CODE }
    }

    /// Instructions that come before the ones under test. Before `probe`.
    pub fn prelude(mut self, program: impl FnOnce(&mut CodeAssembler) -> Assembled) -> Self {
        assert!(self.probe.is_empty());
        self.prelude = assemble(self.bits, self.code(), program);
        self
    }

    /// The instructions under test.
    pub fn probe(mut self, program: impl FnOnce(&mut CodeAssembler) -> Assembled) -> Self {
        self.probe = assemble(self.bits, self.probe_address(), program);
        self
    }

    /// The same as bytes.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.probe = bytes.to_vec();
        self
    }

    /// Where the probe begins.
    pub fn probe_address(&self) -> u64 {
        self.code() + self.prelude.len() as u64
    }

    /// The address that `at` names.
    pub fn address(&self, at: At) -> u64 {
        let begin = self.probe_address();
        match at {
            At::Address(address) => address,
            At::End => begin + self.probe.len() as u64,
            At::Probe(index) => {
                let mut decoder = Decoder::with_ip(self.bits, &self.probe, begin, DecoderOptions::NONE);
                for _ in 0..index {
                    let _ = decoder.decode();
                }
                decoder.ip()
            }
        }
    }

    /// All the code of the case, and where it goes.
    pub fn image(&self) -> (u64, Vec<u8>) {
        let mut code = self.prelude.clone();
        code.extend(&self.probe);
        if !code.is_empty() {
            code.extend([0xe6, DONE_PORT as u8]); // out DONE_PORT, al
        }
        (self.code(), code)
    }

    /// Bytes to be in memory at the start.
    pub fn poke(mut self, address: u64, bytes: impl AsRef<[u8]>) -> Self {
        self.writes.push((address, bytes.as_ref().to_vec()));
        self
    }

    /// A word of 64 bits to be in memory at the start.
    pub fn poke64(self, address: u64, value: u64) -> Self {
        self.poke(address, value.to_le_bytes())
    }

    /// A change of the first state.
    pub fn with(mut self, change: impl FnOnce(&mut CpuState)) -> Self {
        change(&mut self.state);
        self
    }

    /// A general register at the start.
    pub fn gpr(mut self, register: usize, value: u64) -> Self {
        self.state.gpr[register] = value;
        self
    }

    fn event(mut self, vector: u8, error: Option<u64>, at: At) -> Self {
        self.events.push(Expected { vector, error, at, cr2: None, dr6: None, rf: None, rsp: None });
        self
    }

    /// The next exception is a fault: its frame names the instruction, and has RF set.
    pub fn faults_at(self, vector: u8, error: impl Into<Option<u64>>, at: At) -> Self {
        let mut case = self.event(vector, error.into(), at);
        case.last().rf = Some(true);
        case
    }

    /// A fault of the first instruction of the probe.
    pub fn faults(self, vector: u8, error: impl Into<Option<u64>>) -> Self {
        self.faults_at(vector, error, At::Probe(0))
    }

    /// A page fault of the first instruction of the probe.
    pub fn page_fault(self, error: u64, cr2: u64) -> Self {
        self.page_fault_at(error, cr2, At::Probe(0))
    }

    /// A page fault at some instruction.
    pub fn page_fault_at(self, error: u64, cr2: u64, at: At) -> Self {
        let mut case = self.faults_at(14, error, at);
        case.last().cr2 = Some(cr2);
        case
    }

    /// The next exception is a trap: its frame names the next instruction, here the end of the probe.
    pub fn traps(self, vector: u8) -> Self {
        self.traps_at(vector, At::End)
    }

    /// A trap whose frame names `at`.
    pub fn traps_at(self, vector: u8, at: At) -> Self {
        let mut case = self.event(vector, None, at);
        case.last().rf = Some(false);
        case
    }

    /// A #DB with RIP and the low half of DR6 (reserved bits left out).
    pub fn debug(self, at: At, dr6: u64) -> Self {
        let mut case = self.event(1, None, at);
        case.last().dr6 = Some(dr6);
        case
    }

    /// RF in the RFLAGS that the event described last pushes.
    pub fn rf(mut self, set: bool) -> Self {
        self.last().rf = Some(set);
        self
    }

    /// The event described last, to say more of it.
    fn last(&mut self) -> &mut Expected {
        self.events.last_mut().expect("an event was described")
    }

    /// The handler of the event described last must have this RSP.
    pub fn on_stack(mut self, rsp: u64) -> Self {
        self.last().rsp = Some(rsp);
        self
    }

    /// The event described last says nothing of RF.
    pub fn any_rf(mut self) -> Self {
        self.last().rf = None;
        self
    }

    /// It reaches its end.
    pub fn done(mut self) -> Self {
        self.finish = Some(Finish::Done);
        self
    }

    /// It ends in another way.
    pub fn ends(mut self, finish: Finish) -> Self {
        self.finish = Some(finish);
        self
    }

    /// What must be there in the end.
    pub fn value(
        mut self,
        what: impl Into<String>,
        want: u64,
        get: impl Fn(&Outcome, &Ram) -> u64 + 'static,
    ) -> Self {
        self.checks.push(Check { what: what.into(), want, get: Box::new(get) });
        self
    }

    /// A general register in the end.
    pub fn leaves(self, register: usize, want: u64) -> Self {
        let name = lockstep::engine::state::GPR_NAMES[register];
        self.value(name, want, move |o, _| o.state.gpr[register])
    }

    /// A word of memory in the end.
    pub fn memory(self, address: u64, want: u64) -> Self {
        self.value(format!("memory at {address:#x}"), want, move |_, ram| word(ram, address))
    }

    /// Some flags in the end.
    pub fn flags(self, mask: u64, want: u64) -> Self {
        self.value(format!("flags {mask:#x}"), want, move |o, _| o.state.rflags & mask)
    }

    /// A selector in the end.
    pub fn selector(self, segment: usize, want: u16) -> Self {
        let name = lockstep::engine::state::SEGMENT_NAMES[segment];
        self.value(name, want.into(), move |o, _| o.state.segments[segment].selector.into())
    }

    /// Something of a segment in the end.
    pub fn segment(
        self,
        index: usize,
        what: &str,
        want: u64,
        get: impl Fn(&Segment) -> u64 + 'static,
    ) -> Self {
        let name = lockstep::engine::state::SEGMENT_NAMES[index];
        self.value(format!("{what} of {name}"), want, move |o, _| get(&o.state.segments[index]))
    }

    /// Something that this host does otherwise: a known deviation, one with all cases of the
    /// subject that give the same reason.
    pub fn not_on(mut self, host: Host, why: &'static str) -> Self {
        self.not_on.push((host, why, Holds::Always));
        self
    }

    /// Something that this host may do otherwise.
    pub fn not_always_on(mut self, host: Host, why: &'static str) -> Self {
        self.not_on.push((host, why, Holds::Sometimes));
        self
    }

    /// Something that depends on the processor beneath KVM.
    pub fn not_on_kvm(self, why: &'static str) -> Self {
        Host::KVM.into_iter().fold(self, |case, host| case.not_always_on(host, why))
    }

    /// Skips it on `host` if `quirk`.
    pub fn not_on_if(self, quirk: bool, host: Host, why: &'static str) -> Self {
        if quirk { self.not_on(host, why) } else { self }
    }

    /// Flags whose values the manuals leave open.
    pub fn undefined(mut self, flags: u64) -> Self {
        self.undefined |= flags;
        self
    }

    /// The engines' last states need not be equal.
    pub fn incomparable(mut self) -> Self {
        self.states_may_differ = true;
        self
    }

    /// The last state on `host` need not be that of other engines.
    pub fn incomparable_on(mut self, host: Host) -> Self {
        self.differs_on.push(host);
        self
    }

    /// What is wrong with how the case came out.
    pub fn judge(&self, host: Host, outcome: &Outcome, ram: &Ram) -> Vec<String> {
        let mut wrong = Vec::new();
        for (n, want) in self.events.iter().enumerate() {
            match outcome.events.get(n) {
                Some(event) => self.judge_event(host, (n, want), event, &mut wrong),
                None => wrong.push(format!("no exception {} (it {:?})", want.vector, outcome.finish)),
            }
        }
        let extra = outcome.events.get(self.events.len());
        if let Some(extra) = extra.filter(|_| self.finish != Some(Finish::Raised)) {
            wrong.push(format!("exception not asked for: {extra}"));
        }
        match &self.finish {
            Some(finish) if *finish != outcome.finish && outcome.events.len() == self.events.len() => {
                wrong.push(format!("it {:?}, must be {finish:?}", outcome.finish));
            }
            _ => {}
        }
        if wrong.is_empty() {
            wrong.extend(self.checks.iter().filter_map(|check| {
                let got = (check.get)(outcome, ram);
                (got != check.want).then(|| format!("{} {got:#x}, must be {:#x}", check.what, check.want))
            }));
        }
        wrong
    }

    fn judge_event(&self, host: Host, (n, want): (usize, &Expected), event: &Event, wrong: &mut Vec<String>) {
        let rip = self.address(want.at);
        let mut say = |what: &str, got: u64, must: u64| {
            if got != must {
                wrong.push(format!("event {n}: {what} {got:#x}, must be {must:#x} ({event})"));
            }
        };
        say("vector", event.vector.into(), want.vector.into());
        if event.vector != want.vector {
            return;
        }
        say("error code (all ones: none)", event.error.unwrap_or(u64::MAX), want.error.unwrap_or(u64::MAX));
        say("RIP", event.rip, rip);
        if let Some(cr2) = want.cr2 {
            say("CR2", event.state.cr[1], cr2);
        }
        if let Some(dr6) = want.dr6 {
            // Reserved: bits 4 to 12 are ones; 11 (bus lock), 12 and 16 (RTM) are not in the model.
            say("DR6", event.state.dr[4] & 0xe00f, dr6);
        }
        // QEMU's processor knows no RF.
        if let Some(rf) = want.rf.filter(|_| host != Host::Emulated) {
            say("RF of the pushed RFLAGS", event.rflags >> 16 & 1, u64::from(rf));
        }
        if let Some(rsp) = want.rsp {
            say("RSP of the handler", event.state.gpr[4], rsp);
        }
        let segments = &event.state.segments;
        say("CS of the handler", segments[1].selector.into(), KERNEL_CS.into());
        // From an outer level SS becomes null; at the same level it stays.
        let ss = if event.cs & 3 == 0 { event.ss } else { 0 };
        say("SS of the handler", segments[2].selector.into(), ss);
        // TF, NT, RF and VM are cleared; an interrupt gate clears IF too.
        say("TF, IF, NT, RF of the handler", event.state.rflags & 0x1_4300, 0);
    }
}

/// The word of 64 bits at `address`.
pub fn word(ram: &Ram, address: u64) -> u64 {
    let at = address as usize;
    u64::from_le_bytes(ram.as_slice()[at..at + 8].try_into().expect("eight bytes"))
}
