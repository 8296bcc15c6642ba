//! The software CPU as an engine, with the *instructions* clock: it stops at any position, needs no KVM, and
//! its guest's time is its position.
//!
//! The processor caches code and translations that it derived from RAM. Devices write RAM too: what they
//! wrote is taken from `DeviceWrites` before every run. An exit that asks for a value comes before its
//! instruction has retired; `complete` executes that one instruction again, with the answer. One that asks
//! for nothing is completed before it is handed out.

mod arithmetic;
mod check;
mod state;

use std::sync::Once;

use logchannel::Position;
use softcpu::{Cpu, Exit, Jit, Statistics};

use self::check::Checker;
use crate::engine::{
    CpuState, DebugRun, DebugStop, Engine, EngineError, EngineOptions, Execution, Kick, PositionClock,
    StopPrecision, VmEntry, VmExit, run_by_steps,
};
use crate::memory::{DeviceWrites, PAGE_BYTES, Ram};

pub use arithmetic::host_arithmetic;

/// The CPU that its guests see. Version 3 has other definitions of flags that the manuals leave undefined.
pub const CPU_MODEL: &str = "x86-64-v2/3";

/// One software processor.
pub struct SoftEngine {
    cpu: Box<Cpu>,
    /// With `Jit::Check`.
    checker: Option<Box<Checker>>,
    writes: DeviceWrites,
    ram_bytes: usize,
    /// The instruction at RIP waits for the answer to its exit.
    asked: bool,
    /// The exit that completing the last one came to: some instructions take several.
    next: Option<VmExit>,
}

fn vm_exit(exit: Exit) -> VmExit {
    match exit {
        Exit::Reached => VmExit::Reached,
        // A debugger's are obeyed only in `run_debug`, which looks before.
        Exit::Kicked | Exit::Breakpoint | Exit::Watched => VmExit::Kicked,
        Exit::Window => VmExit::Window,
        Exit::Hlt => VmExit::Hlt,
        Exit::PioRead { port, size } => VmExit::PioRead { port, size },
        Exit::PioWrite { port, size, value } => VmExit::PioWrite { port, size, value },
        Exit::MmioRead { address, size } => VmExit::MmioRead { address, size },
        Exit::MmioWrite { address, size, value } => VmExit::MmioWrite { address, size, value },
        Exit::MsrRead { index } => VmExit::MsrRead { index },
        Exit::MsrWrite { index, value } => VmExit::MsrWrite { index, value },
        Exit::Shutdown => VmExit::Shutdown,
    }
}

/// Says, once, which instructions the self-test has interpreted.
fn warn_of_refused_forms() {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        if let Some(test) = softcpu::self_test().filter(|test| !test.refused.is_empty()) {
            let forms = test.refused.join(", ");
            tracing::warn!("interpreted, not translated, since this host's results differ: {forms}");
        }
    });
}

/// Whether the instruction of an exit has not retired.
fn is_question(exit: &VmExit) -> bool {
    matches!(
        exit,
        VmExit::PioRead { .. }
            | VmExit::PioWrite { .. }
            | VmExit::MmioRead { .. }
            | VmExit::MmioWrite { .. }
            | VmExit::MsrRead { .. }
            | VmExit::MsrWrite { .. }
    )
}

impl SoftEngine {
    /// Makes a processor whose memory is `ram`.
    ///
    /// `ram` must outlive the engine: the machine that owns both drops the engine first.
    pub fn new(ram: &Ram) -> Self {
        Self::with(ram, EngineOptions::default()).expect("nothing to check needs no memory")
    }

    /// The same, with options.
    pub fn with(ram: &Ram, options: EngineOptions) -> Result<Self, EngineError> {
        let bytes = ram.bytes() as usize;
        // SAFETY: the mapping is that long and outlives the engine (see above); devices and digests access it
        // only between runs, on the thread that runs.
        let mut cpu = unsafe { Cpu::new(ram.host_address() as *mut u8, bytes) };
        #[cfg(feature = "planted-faults")]
        crate::planted::before_translation();
        cpu.set_jit(options.jit);
        cpu.set_perf_map(options.perf_map);
        if let Some(why) = cpu.untranslated() {
            static SAID: Once = Once::new();
            SAID.call_once(|| tracing::warn!("the guest's code is interpreted, not translated: {why}"));
        } else if options.jit != Jit::Off {
            warn_of_refused_forms();
        }
        let checks = options.jit == Jit::Check && cpu.untranslated().is_none();
        let checker = checks.then(|| Checker::new(ram)).transpose()?.map(Box::new);
        #[cfg(feature = "planted-faults")]
        let cpu = crate::planted::in_processor(cpu);
        let writes = ram.device_writes();
        Ok(Self { cpu, checker, writes, ram_bytes: bytes, asked: false, next: None })
    }

    /// Tells the processor something, and the one that checks it.
    fn tell(&mut self, tell: impl Fn(&mut Cpu)) {
        tell(&mut self.cpu);
        if let Some(checker) = &mut self.checker {
            tell(checker.cpu());
        }
    }

    fn answer(&mut self, entry: VmEntry) {
        if !std::mem::take(&mut self.asked) {
            return;
        }
        match entry {
            VmEntry::Value(value) | VmEntry::Msr(Some(value)) => self.tell(|cpu| cpu.answer(value)),
            VmEntry::Msr(None) => self.tell(Cpu::refuse),
            VmEntry::Resume | VmEntry::Bytes(_) => self.tell(|cpu| cpu.answer(0)),
        }
    }

    /// Runs to `until`, with what devices wrote made known.
    fn execute(&mut self, until: u64) -> Result<VmExit, EngineError> {
        let exit = vm_exit(self.execute_raw(until)?);
        self.asked = is_question(&exit);
        Ok(exit)
    }

    fn execute_raw(&mut self, until: u64) -> Result<Exit, EngineError> {
        self.take_device_writes();
        match &mut self.checker {
            None => Ok(self.cpu.run(until)),
            Some(checker) => checker.run(&mut self.cpu, until),
        }
    }

    /// Makes known what devices wrote.
    fn take_device_writes(&mut self) {
        let (cpu, checker) = (&mut self.cpu, &mut self.checker);
        self.writes.take_fresh(|page| {
            let address = (page * PAGE_BYTES) as u64;
            cpu.ram_written(address, PAGE_BYTES);
            if let Some(checker) = checker {
                checker.ram_written(address, PAGE_BYTES);
            }
        });
    }

    /// An exit as it is handed out: one that asks for nothing is completed.
    fn hand_out(&mut self, exit: VmExit) -> Result<VmExit, EngineError> {
        if matches!(exit, VmExit::PioWrite { .. } | VmExit::MmioWrite { .. }) {
            self.finish(VmEntry::Resume)?;
        }
        Ok(exit)
    }

    /// Executes the instruction that was asked about, and nothing more.
    fn finish(&mut self, entry: VmEntry) -> Result<(), EngineError> {
        if self.next.is_some() || !self.asked {
            return Ok(());
        }
        self.answer(entry);
        let end = self.cpu.retired() + 1;
        // What stops other runs must not come between an answer and its instruction.
        self.tell(|cpu| cpu.request_window(false));
        while self.cpu.retired() < end {
            match self.execute(end)? {
                VmExit::Reached | VmExit::Kicked | VmExit::Window => {}
                further => {
                    self.next = Some(further);
                    break;
                }
            }
        }
        Ok(())
    }
}

impl Engine for SoftEngine {
    fn name(&self) -> &'static str {
        "soft"
    }

    fn clock(&self) -> PositionClock {
        PositionClock::Instructions
    }

    fn stops(&self) -> StopPrecision {
        StopPrecision::Exact
    }

    fn position(&self) -> Position {
        Position::at(self.cpu.retired())
    }

    fn run(&mut self, entry: VmEntry, until: Option<Position>) -> Result<VmExit, EngineError> {
        let exit = match self.next.take() {
            Some(exit) => exit,
            None => {
                self.answer(entry);
                self.execute(until.map_or(u64::MAX, |until| until.count))?
            }
        };
        self.hand_out(exit)
    }

    fn run_debug(
        &mut self,
        entry: VmEntry,
        until: Option<Position>,
        ask: DebugRun<'_>,
    ) -> Result<DebugStop, EngineError> {
        if ask.step {
            return run_by_steps(self, entry, until, ask);
        }
        self.cpu.set_breakpoints(ask.breakpoints);
        self.cpu.set_watched(ask.watched.unwrap_or_default());
        self.complete(entry)?;
        if self.next.is_some() || ask.breakpoints.is_empty() && ask.watched.is_none() {
            return Ok(DebugStop::Exit(self.run(VmEntry::Resume, until)?));
        }
        self.cpu.obey_breakpoints(true);
        self.cpu.obey_watched(ask.watched.is_some());
        let exit = self.execute_raw(until.map_or(u64::MAX, |until| until.count));
        self.cpu.obey_breakpoints(false);
        self.cpu.obey_watched(false);
        let exit = match exit? {
            Exit::Breakpoint => return Ok(DebugStop::Breakpoint),
            Exit::Watched => return Ok(DebugStop::Watched),
            exit => vm_exit(exit),
        };
        self.asked = is_question(&exit);
        Ok(DebugStop::Exit(self.hand_out(exit)?))
    }

    fn rip(&mut self) -> Result<u64, EngineError> {
        Ok(self.cpu.rip())
    }

    fn interruptible(&self) -> bool {
        self.cpu.interruptible()
    }

    fn interrupts_enabled(&self) -> bool {
        self.cpu.interrupts_enabled()
    }

    fn inject(&mut self, vector: u8) -> Result<(), EngineError> {
        self.tell(|cpu| cpu.inject(vector));
        Ok(())
    }

    fn request_window(&mut self, on: bool) {
        self.tell(|cpu| cpu.request_window(on));
    }

    fn skip_time(&mut self, ns: u64) {
        self.tell(|cpu| cpu.skip_time(ns));
    }

    fn kicker(&self) -> Option<Kick> {
        let kicker = self.cpu.kicker();
        Some(Box::new(move || kicker.kick()))
    }

    fn ram_written(&mut self, address: u64, bytes: usize) {
        self.cpu.ram_written(address, bytes);
        if let Some(checker) = &mut self.checker {
            checker.ram_written(address, bytes);
        }
    }

    fn complete(&mut self, entry: VmEntry) -> Result<(), EngineError> {
        self.finish(entry)
    }

    fn between_instructions(&self) -> bool {
        self.next.is_none()
    }

    fn save(&mut self) -> Result<CpuState, EngineError> {
        Ok(state::to_engine(&self.cpu.state(), self.cpu.retired()))
    }

    fn restore(&mut self, state: &CpuState, position: Position) -> Result<(), EngineError> {
        self.cpu.ram_written(0, self.ram_bytes);
        self.cpu.set_retired(position.count);
        let state = state::from_engine(state, position.count);
        self.cpu.set_state(&state);
        if let Some(checker) = &mut self.checker {
            checker.restore(&state, position);
        }
        (self.asked, self.next) = (false, None);
        Ok(())
    }

    fn power_on(&mut self, first: &CpuState, position: Position) -> Result<(), EngineError> {
        self.restore(&state::from_power_on(first), position)
    }

    fn track_dirty_pages(&mut self, on: bool) -> Result<(), EngineError> {
        if on {
            self.take_dirty_pages()?;
        }
        Ok(())
    }

    fn always_tracks(&self) -> bool {
        true
    }

    fn take_dirty_pages(&mut self) -> Result<Vec<u64>, EngineError> {
        if self.checker.is_some() {
            self.take_device_writes();
        }
        match &mut self.checker {
            None => Ok(self.cpu.take_dirty()),
            Some(checker) => checker.take_dirty(&mut self.cpu),
        }
    }

    fn execution(&self) -> Option<Execution> {
        let untranslated = self.cpu.untranslated().map(str::to_owned);
        Some(Execution { jit: self.cpu.jit(), untranslated })
    }

    fn statistics(&self) -> Option<Statistics> {
        Some(self.cpu.statistics())
    }
}

#[cfg(test)]
#[path = "soft_tests.rs"]
mod tests;
