//! The guest as gdbstub sees it: registers, memory, breakpoints, how to go on.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use gdbstub::arch::Arch;
use gdbstub::common::Signal;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::reverse_exec::{ReverseCont, ReverseContOps, ReverseStep, ReverseStepOps};
use gdbstub::target::ext::base::singlethread::{
    SingleThreadBase, SingleThreadRangeStepping, SingleThreadRangeSteppingOps, SingleThreadResume,
    SingleThreadResumeOps, SingleThreadSingleStep, SingleThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint,
    SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::{TargetError, TargetResult};
use vm_memory::{Bytes, GuestAddress};

use crate::debug::registers::{WireRegisters, X86, from_wire, to_wire};
use crate::debug::symbols::Symbols;
use crate::debug::{monitor, paging};
use crate::engine::{AnyEngine, CpuState, Engine, EngineError, StopPrecision};
use crate::memory::GuestMemory;

/// Most bytes that a watchpoint covers.
const MAX_WATCHED: u64 = 4096;
/// Most breakpoints, and most watchpoints.
const MAX_POINTS: usize = 256;

/// How a debugger lets the guest go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resume {
    /// Until something stops it.
    #[default]
    Continue,
    /// One instruction.
    Step,
    /// Until RIP leaves this range.
    Range(u64, u64),
    /// One instruction back.
    ReverseStep,
    /// Back to the last point that would have stopped it.
    ReverseContinue,
}

/// Memory that stops the guest when its content changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watchpoint {
    /// Linear address.
    pub address: u64,
    /// What is there; shorter where it is not mapped.
    pub content: Vec<u8>,
    bytes: usize,
}

/// What a debugger has set up. Outlives the machine, where a replay makes a new one.
#[derive(Debug, Default)]
pub struct Setup {
    /// How it lets the guest go on.
    pub resume: Resume,
    software: BTreeSet<u64>,
    hardware: BTreeSet<u64>,
    /// All breakpoints.
    pub breakpoints: BTreeSet<u64>,
    /// All watchpoints.
    pub watchpoints: Vec<Watchpoint>,
    /// Whether the guest may be changed.
    pub read_only: bool,
    /// Whether the guest can be run backwards.
    pub reversible: bool,
    /// Names.
    pub symbols: Arc<Symbols>,
}

impl Setup {
    /// Nothing set up yet. A guest that is `replayed` cannot be changed, but can be run backwards.
    pub fn new(symbols: Arc<Symbols>, replayed: bool) -> Self {
        Self { symbols, read_only: replayed, reversible: replayed, ..Self::default() }
    }

    /// The debugger is gone: nothing of its stays.
    pub fn clear(&mut self) {
        self.resume = Resume::Continue;
        self.software.clear();
        self.hardware.clear();
        self.breakpoints.clear();
        self.watchpoints.clear();
    }

    fn set(&mut self, hardware: bool, address: u64, on: bool) -> bool {
        let kind = if hardware { &mut self.hardware } else { &mut self.software };
        if on && kind.len() >= MAX_POINTS {
            return false;
        }
        let changed = if on { kind.insert(address) } else { kind.remove(&address) };
        self.breakpoints = self.software.union(&self.hardware).copied().collect();
        changed || on
    }

    /// Whether a stop at `address` is one of GDB's own breakpoints in software.
    pub fn is_software(&self, address: u64) -> bool {
        self.software.contains(&address)
    }
}

/// An engine and its memory, with what a debugger has set up.
pub struct Target {
    /// The engine.
    pub engine: AnyEngine,
    /// Its memory.
    pub memory: GuestMemory,
    /// The debugger's.
    pub setup: Setup,
    cpu: Option<CpuState>,
    changed: bool,
}

impl Target {
    /// An engine under a debugger; nothing is set up yet.
    pub fn new(engine: AnyEngine, memory: GuestMemory) -> Self {
        Self { engine, memory, setup: Setup::default(), cpu: None, changed: false }
    }

    /// The registers of the stopped guest, its last exit completed.
    pub fn cpu(&mut self) -> Result<&mut CpuState, EngineError> {
        if self.cpu.is_none() {
            self.cpu = Some(self.engine.save()?);
        }
        Ok(self.cpu.as_mut().expect("just saved"))
    }

    /// The guest goes on: gives the engine what a debugger has changed, and forgets the registers.
    pub fn release(&mut self) -> Result<(), EngineError> {
        let cpu = self.cpu.take();
        if let (Some(cpu), true) = (cpu, std::mem::take(&mut self.changed)) {
            let at = self.engine.position();
            self.engine.restore(&cpu, at)?;
        }
        Ok(())
    }

    /// Reads linear memory; how many bytes are mapped.
    pub fn read(&mut self, linear: u64, into: &mut [u8]) -> Result<usize, EngineError> {
        let memory = self.memory.clone();
        Ok(paging::read(self.cpu()?, &memory, linear, into))
    }

    /// Where a linear address is in guest physical memory.
    pub fn translate(&mut self, linear: u64) -> Result<Option<u64>, EngineError> {
        let memory = self.memory.clone();
        Ok(paging::translate(self.cpu()?, &memory, linear))
    }

    /// The first watchpoint whose memory has changed since the last call.
    pub fn watched_change(&mut self) -> Result<Option<u64>, EngineError> {
        let mut found = None;
        for index in 0..self.setup.watchpoints.len() {
            let Watchpoint { address, bytes, .. } = self.setup.watchpoints[index];
            let content = self.content(address, bytes)?;
            let watchpoint = &mut self.setup.watchpoints[index];
            if content != watchpoint.content {
                watchpoint.content = content;
                found = found.or(Some(address));
            }
        }
        Ok(found)
    }

    /// Guest physical memory that decides what the watchpoints see: their own, and the entries of page tables
    /// that lead there.
    pub fn watched(&mut self) -> Result<Vec<Range<u64>>, EngineError> {
        let memory = self.memory.clone();
        let mut ranges = Vec::new();
        for index in 0..self.setup.watchpoints.len() {
            let Watchpoint { address, bytes, .. } = self.setup.watchpoints[index];
            paging::places(self.cpu()?, &memory, address, bytes, &mut ranges);
        }
        self.release()?;
        Ok(ranges)
    }

    fn content(&mut self, address: u64, bytes: usize) -> Result<Vec<u8>, EngineError> {
        let mut content = vec![0; bytes];
        let mapped = self.read(address, &mut content)?;
        content.truncate(mapped);
        Ok(content)
    }
}

fn refuse<T>(why: &str) -> TargetResult<T, Target> {
    tracing::debug!(why, "refused a debugger's request");
    Err(TargetError::NonFatal)
}

impl gdbstub::target::Target for Target {
    type Arch = X86;
    type Error = EngineError;

    fn base_ops(&mut self) -> BaseOps<'_, X86, EngineError> {
        BaseOps::SingleThread(self)
    }

    fn guard_rail_implicit_sw_breakpoints(&self) -> bool {
        true
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl SingleThreadBase for Target {
    fn read_registers(&mut self, registers: &mut WireRegisters) -> TargetResult<(), Self> {
        *registers = to_wire(self.cpu().map_err(TargetError::Fatal)?);
        Ok(())
    }

    fn write_registers(&mut self, registers: &WireRegisters) -> TargetResult<(), Self> {
        if self.setup.read_only {
            return refuse("registers of a replay stay as they are recorded");
        }
        let cpu = self.cpu().map_err(TargetError::Fatal)?;
        let before = cpu.clone();
        from_wire(cpu, registers);
        let changed = *cpu != before;
        self.changed |= changed;
        Ok(())
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8]) -> TargetResult<usize, Self> {
        match self.read(start, data).map_err(TargetError::Fatal)? {
            0 if !data.is_empty() => refuse("that memory is not mapped, or is a device's"),
            bytes => Ok(bytes),
        }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8]) -> TargetResult<(), Self> {
        if self.setup.read_only {
            return refuse("memory of a replay stays as it is recorded");
        }
        let memory = self.memory.clone();
        let cpu = self.cpu().map_err(TargetError::Fatal)?;
        let mut places = Vec::new();
        let mapped = paging::parts(cpu, &memory, start, data.len(), |physical, range| {
            let inside = memory.read_slice(&mut vec![0; range.len()], GuestAddress(physical)).is_ok();
            places.push((physical, range));
            inside
        });
        if mapped < data.len() {
            return refuse("that memory is not mapped, or is a device's");
        }
        for (physical, range) in places {
            let bytes = range.len();
            if memory.write_slice(&data[range], GuestAddress(physical)).is_err() {
                return refuse("that memory is not there");
            }
            self.engine.ram_written(physical, bytes);
        }
        Ok(())
    }

    fn support_resume(&mut self) -> Option<SingleThreadResumeOps<'_, Self>> {
        Some(self)
    }
}

impl SingleThreadResume for Target {
    fn resume(&mut self, _signal: Option<Signal>) -> Result<(), EngineError> {
        self.setup.resume = Resume::Continue;
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<SingleThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_range_step(&mut self) -> Option<SingleThreadRangeSteppingOps<'_, Self>> {
        Some(self)
    }

    fn support_reverse_step(&mut self) -> Option<ReverseStepOps<'_, (), Self>> {
        if self.setup.reversible { Some(self) } else { None }
    }

    fn support_reverse_cont(&mut self) -> Option<ReverseContOps<'_, (), Self>> {
        if self.setup.reversible { Some(self) } else { None }
    }
}

impl SingleThreadSingleStep for Target {
    fn step(&mut self, _signal: Option<Signal>) -> Result<(), EngineError> {
        self.setup.resume = Resume::Step;
        Ok(())
    }
}

impl SingleThreadRangeStepping for Target {
    fn resume_range_step(&mut self, start: u64, end: u64) -> Result<(), EngineError> {
        self.setup.resume = Resume::Range(start, end);
        Ok(())
    }
}

impl ReverseStep<()> for Target {
    fn reverse_step(&mut self, (): ()) -> Result<(), EngineError> {
        self.setup.resume = Resume::ReverseStep;
        Ok(())
    }
}

impl ReverseCont<()> for Target {
    fn reverse_cont(&mut self) -> Result<(), EngineError> {
        self.setup.resume = Resume::ReverseContinue;
        Ok(())
    }
}

type Kind = <X86 as Arch>::BreakpointKind;

impl Breakpoints for Target {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        // Elsewhere GDB steps by itself, after `set can-use-hw-watchpoints 0`.
        if self.engine.stops() == StopPrecision::Exact { Some(self) } else { None }
    }
}

impl SwBreakpoint for Target {
    fn add_sw_breakpoint(&mut self, address: u64, _kind: Kind) -> TargetResult<bool, Self> {
        Ok(self.setup.set(false, address, true))
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _kind: Kind) -> TargetResult<bool, Self> {
        Ok(self.setup.set(false, address, false))
    }
}

impl HwBreakpoint for Target {
    fn add_hw_breakpoint(&mut self, address: u64, _kind: Kind) -> TargetResult<bool, Self> {
        Ok(self.setup.set(true, address, true))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _kind: Kind) -> TargetResult<bool, Self> {
        Ok(self.setup.set(true, address, false))
    }
}

impl HwWatchpoint for Target {
    fn add_hw_watchpoint(&mut self, address: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        if kind != WatchKind::Write || !(1..=MAX_WATCHED).contains(&len) {
            return Ok(false);
        }
        if self.setup.watchpoints.len() >= MAX_POINTS {
            return Ok(false);
        }
        let bytes = len as usize;
        let content = self.content(address, bytes).map_err(TargetError::Fatal)?;
        self.setup.watchpoints.push(Watchpoint { address, content, bytes });
        Ok(true)
    }

    fn remove_hw_watchpoint(&mut self, address: u64, len: u64, _kind: WatchKind) -> TargetResult<bool, Self> {
        let same = |point: &Watchpoint| point.address == address && point.bytes as u64 == len;
        let index = self.setup.watchpoints.iter().position(same);
        if let Some(index) = index {
            self.setup.watchpoints.remove(index);
        }
        Ok(index.is_some())
    }
}

impl MonitorCmd for Target {
    fn handle_monitor_cmd(&mut self, command: &[u8], out: ConsoleOutput<'_>) -> Result<(), EngineError> {
        let mut out = out;
        let text = monitor::answer(self, &String::from_utf8_lossy(command))?;
        out.write_raw(text.as_bytes());
        Ok(())
    }
}
