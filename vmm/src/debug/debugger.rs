//! The loop between a debugger and an engine.
//!
//! ```text
//!   run ──▶ anything from the debugger? ──stopped──▶ its packets, until it lets the guest go on
//!     ▲                │
//!     │                ▼
//!     └── step done, breakpoint ◀── engine ──▶ exit of the guest: back to the machine
//! ```
//!
//! All of it happens inside one `Engine::run`, so recorder and replayer see a guest that took its time, and
//! nothing else: a debugger's stop is no event and no position. Invariant: whatever a debugger only looks at,
//! the guest executes the same instructions with the same results as without it.

use std::collections::VecDeque;

use crossbeam_channel::Receiver;
use gdbstub::common::Signal;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{GdbStub, SingleThreadStopReason};
use gdbstub::target::ext::breakpoints::WatchKind;
use logchannel::Position;
use vm_memory::{Bytes, GuestAddress};

use crate::debug::target::{Resume, Setup, Target};
use crate::debug::trace::Trace;
use crate::debug::wire::{Kicks, Message, Wire};
use crate::engine::{
    BreakpointStyle, DebugRun, DebugStop, Engine, EngineError, StopPrecision, VmEntry, VmExit,
};

const INT3: u8 = 0xcc;
/// Room for a packet: memory is read this much at a time, in hexadecimal.
const PACKET_BYTES: usize = 16 << 10;

type Stub = GdbStubStateMachine<'static, Target, Wire>;
/// Why a guest stands still, as a debugger is told.
pub type Stop = SingleThreadStopReason<u64>;

/// A debugger's way to ask for something that only the driver of a replay can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rewind {
    /// One instruction back from here.
    Step(Position),
    /// Back to the last stop before here.
    Continue(Position),
}

/// One debugger at a time, and a trace; outlives the machine, where a replay makes a new one.
pub struct Debugger {
    messages: Option<Receiver<Message>>,
    kicks: Kicks,
    kicker_added: bool,
    inbox: VecDeque<u8>,
    stub: Option<Stub>,
    setup: Setup,
    trace: Option<Trace>,
    /// The guest does not run before a debugger has come.
    wait: bool,
    /// What the debugger is still to be told.
    stop: Option<Stop>,
    /// RIP is at a breakpoint that has been reported.
    leave: bool,
    /// Somebody else than the guest may have changed what is watched: a step, and then a look.
    step_first: bool,
    /// A step whose instruction the machine has still to complete.
    open: bool,
    rewind: Option<Rewind>,
    /// The guest is only being brought to a place: nobody is asked, nothing stops it.
    quiet: bool,
    /// What would have stopped the guest is only noted.
    scan: Option<Scan>,
}

/// A search for the last stop.
#[derive(Default)]
struct Scan {
    last: Option<(u64, Stop)>,
    /// What is watched has been read.
    begun: bool,
}

impl Debugger {
    /// Takes debuggers from `messages`.
    pub fn new(
        messages: Option<Receiver<Message>>,
        kicks: Kicks,
        setup: Setup,
        trace: Option<Trace>,
    ) -> Self {
        Self {
            wait: messages.is_some(),
            messages,
            kicks,
            kicker_added: false,
            inbox: VecDeque::new(),
            stub: None,
            setup,
            trace,
            stop: None,
            leave: false,
            step_first: false,
            open: false,
            rewind: None,
            quiet: false,
            scan: None,
        }
    }

    /// Whether a debugger is connected.
    pub fn is_attached(&self) -> bool {
        self.stub.is_some()
    }

    /// Has a debugger told at the next opportunity.
    pub fn say(&mut self, stop: Stop) {
        self.stop = self.is_attached().then_some(stop);
    }

    /// From now on nothing stops the guest, or again what has been set up.
    pub fn quiet(&mut self, on: bool) {
        self.quiet = on;
        (self.open, self.leave) = (false, false);
    }

    /// From now on what would stop the guest is only noted; at the end, the last of it and where it was.
    pub fn scan(&mut self, on: bool) -> Option<(u64, Stop)> {
        (self.open, self.leave) = (false, false);
        std::mem::replace(&mut self.scan, on.then(Scan::default))?.last
    }

    /// What `Engine::run` is under a debugger.
    pub fn run(
        &mut self,
        target: &mut Target,
        entry: VmEntry,
        until: Option<Position>,
    ) -> Result<VmExit, EngineError> {
        std::mem::swap(&mut self.setup, &mut target.setup);
        let result = self.run_inside(target, entry, until);
        std::mem::swap(&mut self.setup, &mut target.setup);
        result
    }

    /// Lets the debugger have its say while the guest waits; gives back what of `entry` is still to be
    /// answered.
    pub fn attend(&mut self, target: &mut Target, mut entry: VmEntry) -> Result<VmEntry, EngineError> {
        std::mem::swap(&mut self.setup, &mut target.setup);
        let result = self.meet(target, &mut entry);
        std::mem::swap(&mut self.setup, &mut target.setup);
        result.map(|()| entry)
    }

    /// The machine is gone. Unless it is only replaced, the debugger is told that the guest has ended.
    pub fn ended(&mut self, target: &mut Target) {
        (self.open, self.leave) = (false, false);
        self.kicker_added = false;
        if self.rewind.is_some() {
            return;
        }
        if let Some(Stub::Running(stub)) = self.stub.take() {
            let _ = stub.report_stop(target, Stop::Exited(0));
        }
    }

    /// Whether an engine will do only if it stops at any instruction.
    pub fn needs_exact_stops(&self) -> bool {
        self.trace.is_some()
    }

    /// What the debugger wants of the driver of a replay.
    pub fn take_rewind(&mut self) -> Option<Rewind> {
        self.rewind.take()
    }

    fn run_inside(
        &mut self,
        target: &mut Target,
        mut entry: VmEntry,
        until: Option<Position>,
    ) -> Result<VmExit, EngineError> {
        if self.quiet {
            return target.engine.run(entry, until);
        }
        // Devices write memory and apply inputs between two runs.
        self.step_first = true;
        if !self.kicker_added {
            self.kicker_added = true;
            target.engine.debug_kicker().into_iter().for_each(|kick| self.kicks.add(kick));
        }
        if self.open {
            target.engine.complete(std::mem::take(&mut entry))?;
            if target.engine.between_instructions() {
                self.open = false;
                self.stepped(target)?;
            }
        }
        loop {
            self.meet(target, &mut entry)?;
            let at = target.engine.position();
            if target.engine.stops() == StopPrecision::Exact
                && until.is_some_and(|until| at.count >= until.count)
            {
                target.engine.complete(std::mem::take(&mut entry))?;
                return Ok(VmExit::Reached);
            }
            if let Some(exit) = self.go(target, std::mem::take(&mut entry), until)? {
                return Ok(exit);
            }
        }
    }

    /// Lets the engine run once. None when the debugger has the next word.
    fn go(
        &mut self,
        target: &mut Target,
        entry: VmEntry,
        until: Option<Position>,
    ) -> Result<Option<VmExit>, EngineError> {
        let before = target.engine.position();
        let (traced, until) = match &self.trace {
            Some(trace) => trace.stretch(before, until),
            None => (false, until),
        };
        if traced {
            target.engine.complete(VmEntry::Resume)?;
        }
        let stepping = matches!(target.setup.resume, Resume::Step | Resume::Range(..));
        let watching = !target.setup.watchpoints.is_empty();
        let step = stepping || traced || self.leave || watching && self.step_first;
        if let (true, Some(trace)) = (traced, &mut self.trace) {
            trace.before(target)?;
        }
        let stop = self.run_once(target, entry, until, step)?;
        match stop {
            DebugStop::Stepped | DebugStop::Watched => {
                self.stepped(target)?;
                Ok(None)
            }
            DebugStop::Breakpoint => {
                self.stop = Some(self.at_breakpoint(target)?);
                Ok(None)
            }
            // Machines whose engines stop only at exits know of no kicks.
            DebugStop::Exit(VmExit::Kicked) if target.engine.stops() == StopPrecision::AtExits => Ok(None),
            DebugStop::Exit(exit) => {
                let whole = matches!(exit, VmExit::Kicked | VmExit::Reached | VmExit::Window);
                if whole && (step || watching) && target.engine.position() != before {
                    self.stepped(target)?;
                } else {
                    self.open = (step || watching) && !whole;
                }
                Ok(Some(exit))
            }
        }
    }

    fn run_once(
        &mut self,
        target: &mut Target,
        mut entry: VmEntry,
        until: Option<Position>,
        step: bool,
    ) -> Result<DebugStop, EngineError> {
        let patched = target.engine.breakpoint_style() == BreakpointStyle::Patched;
        let mut patches = Vec::new();
        if patched && !step && !target.setup.breakpoints.is_empty() {
            target.engine.complete(std::mem::take(&mut entry))?;
            patches = patch(target)?;
        }
        let watched = match step || target.setup.watchpoints.is_empty() {
            true => None,
            false => Some(target.watched()?),
        };
        let ask = DebugRun { step, breakpoints: &target.setup.breakpoints, watched: watched.as_deref() };
        let stop = target.engine.run_debug(entry, until, ask);
        for (address, byte) in patches {
            target.memory.write_obj(byte, GuestAddress(address)).expect("it was there before");
        }
        stop
    }

    /// An instruction was executed, and the engine is between two of them.
    fn stepped(&mut self, target: &mut Target) -> Result<(), EngineError> {
        (self.leave, self.step_first) = (false, false);
        if let Some(trace) = &mut self.trace {
            trace.after(target)?;
        }
        if self.stub.is_none() {
            return Ok(());
        }
        if !target.setup.watchpoints.is_empty() {
            let changed = target.watched_change()?;
            target.release()?;
            if let Some(addr) = changed {
                self.stop = Some(Stop::Watch { tid: (), kind: WatchKind::Write, addr });
                return Ok(());
            }
        }
        let rip = target.engine.rip()?;
        let arrived = match target.setup.resume {
            Resume::Step => true,
            Resume::Range(start, end) => !(start..end).contains(&rip),
            _ => false,
        };
        if arrived {
            self.stop = Some(Stop::DoneStep);
        } else if target.setup.breakpoints.contains(&rip) {
            self.stop = Some(self.at_breakpoint(target)?);
        }
        Ok(())
    }

    fn at_breakpoint(&self, target: &mut Target) -> Result<Stop, EngineError> {
        let rip = target.engine.rip()?;
        Ok(if target.setup.is_software(rip) { Stop::SwBreak(()) } else { Stop::HwBreak(()) })
    }

    /// Tells the debugger what it waits for, and does what it says until it lets the guest go on.
    fn meet(&mut self, target: &mut Target, entry: &mut VmEntry) -> Result<(), EngineError> {
        if self.quiet {
            return Ok(());
        }
        if self.scan.is_some() {
            return self.note(target, entry);
        }
        let mut stopped = false;
        loop {
            if let Some(stop) = self.stop.take() {
                stopped = true;
                target.engine.complete(std::mem::take(entry))?;
                self.report(target, stop);
            }
            let idle = matches!(self.stub, Some(Stub::Idle(_)));
            if !self.receive(target, idle) {
                break;
            }
            if let Some(byte) = self.inbox.pop_front() {
                // Packets that reach a running guest are Ctrl-C, after which it stands still.
                stopped = true;
                target.engine.complete(std::mem::take(entry))?;
                self.feed(target, byte);
            }
        }
        if stopped {
            target.release()?;
            self.step_first = true;
            self.leave = target.setup.breakpoints.contains(&target.engine.rip()?);
            self.rewind = match target.setup.resume {
                Resume::ReverseStep => Some(Rewind::Step(target.engine.position())),
                Resume::ReverseContinue => Some(Rewind::Continue(target.engine.position())),
                _ => None,
            };
            if self.rewind.is_some() {
                target.setup.resume = Resume::Continue;
                return Err(EngineError::Rewind);
            }
        }
        Ok(())
    }

    /// Notes where the guest would have been stopped, and lets it go on.
    fn note(&mut self, target: &mut Target, entry: &mut VmEntry) -> Result<(), EngineError> {
        let at = target.engine.position().count;
        let Some(scan) = &mut self.scan else { return Ok(()) };
        if !std::mem::replace(&mut scan.begun, true) {
            target.engine.complete(std::mem::take(entry))?;
            target.watched_change()?;
            target.release()?;
        }
        let Some(stop) = self.stop.take() else { return Ok(()) };
        // Backwards, a change is seen before the instruction that makes it.
        let at = if matches!(stop, Stop::Watch { .. }) { at.saturating_sub(1) } else { at };
        scan.last = Some((at, stop));
        target.engine.complete(std::mem::take(entry))?;
        self.leave = target.setup.breakpoints.contains(&target.engine.rip()?);
        Ok(())
    }

    /// Takes messages; waits for one where the guest may not run. Whether there is anything to do.
    fn receive(&mut self, target: &mut Target, idle: bool) -> bool {
        if !self.inbox.is_empty() {
            return true;
        }
        let Some(messages) = &self.messages else { return false };
        let message = match idle || self.wait {
            true => messages.recv().ok(),
            false => messages.try_recv().ok(),
        };
        match message {
            Some(Message::Connected(wire)) => {
                self.wait = false;
                self.connect(target, wire);
            }
            Some(Message::Bytes(bytes)) => self.inbox.extend(bytes),
            Some(Message::Closed) => self.disconnect(target),
            None if idle || self.wait => {
                self.wait = false;
                self.disconnect(target);
            }
            None => return false,
        }
        true
    }

    fn connect(&mut self, target: &mut Target, wire: Wire) {
        self.inbox.clear();
        let stub = GdbStub::builder(wire).packet_buffer_size(PACKET_BYTES).build();
        let stub = stub.map_err(|error| error.to_string());
        match stub.and_then(|stub| stub.run_state_machine(target).map_err(|error| error.to_string())) {
            Ok(stub) => {
                host::say!("lockstep: a debugger is here: the guest stands still");
                self.stub = Some(stub);
            }
            Err(error) => host::say!("lockstep: cannot serve a debugger: {error}"),
        }
    }

    fn disconnect(&mut self, target: &mut Target) {
        if self.stub.take().is_some() {
            host::say!("lockstep: the debugger is gone: the guest goes on");
        }
        self.inbox.clear();
        self.stop = None;
        target.setup.clear();
    }

    /// Passes on one byte.
    fn feed(&mut self, target: &mut Target, byte: u8) {
        let next = match self.stub.take() {
            Some(Stub::Idle(stub)) => stub.incoming_data(target, byte),
            Some(Stub::Running(stub)) => stub.incoming_data(target, byte),
            Some(other) => Ok(other),
            None => return,
        };
        let next = match next {
            Ok(Stub::CtrlCInterrupt(stub)) => {
                stub.interrupt_handled(target, Some(Stop::Signal(Signal::SIGINT)))
            }
            next => next,
        };
        self.keep(target, next);
    }

    fn report(&mut self, target: &mut Target, stop: Stop) {
        let next = match self.stub.take() {
            Some(Stub::Running(stub)) => stub.report_stop(target, stop),
            Some(other) => Ok(other),
            None => return,
        };
        self.keep(target, next);
    }

    fn keep<E: std::fmt::Display>(&mut self, target: &mut Target, next: Result<Stub, E>) {
        match next {
            Ok(Stub::Disconnected(_)) => {
                self.stub = None;
                host::say!("lockstep: the debugger has detached: the guest goes on");
                self.disconnect(target);
            }
            Ok(next) => self.stub = Some(next),
            Err(error) => {
                host::say!("lockstep: the debugger failed: {error}");
                self.disconnect(target);
            }
        }
    }
}

/// Puts an INT3 at every breakpoint that is mapped; what was there.
fn patch(target: &mut Target) -> Result<Vec<(u64, u8)>, EngineError> {
    let mut patches = Vec::new();
    let addresses: Vec<u64> = target.setup.breakpoints.iter().copied().collect();
    for linear in addresses {
        let Some(physical) = target.translate(linear)? else { continue };
        let place = GuestAddress(physical);
        let Ok(byte) = target.memory.read_obj::<u8>(place) else { continue };
        if target.memory.write_obj(INT3, place).is_ok() {
            patches.push((physical, byte));
        }
    }
    target.release()?;
    // Two addresses may be one place: what was there first comes back last.
    patches.reverse();
    Ok(patches)
}
