//! Which engine: the choice of one, what it is known as in a pair and in a recording, and an engine of
//! whichever kind behind one type.

use logchannel::Position;
use softcpu::{Jit, Statistics};

use crate::engine::kvm::{self, CPU_MODEL, KvmEngine, host_cpu};
use crate::engine::soft::{self, SoftEngine};
use crate::engine::{
    BreakpointStyle, CpuState, DebugRun, DebugStop, Engine, EngineError, Execution, Kick, PositionClock,
    StopPrecision, VmEntry, VmExit,
};
use crate::memory::Ram;

/// An engine of any kind. Exits are rare enough that finding its methods at run time costs nothing.
pub type AnyEngine = Box<dyn Engine + Send>;

/// How an engine executes, as far as there is a choice; no guest can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineOptions {
    /// Whether `soft` translates.
    pub jit: Jit,
    /// Whether translated code is listed for `perf`.
    pub perf_map: bool,
}

/// The engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// The host's CPU under KVM, positions counted in exits.
    Kvm,
    /// The software CPU, positions counted in instructions.
    Soft,
}

impl EngineKind {
    /// What `--engine` takes.
    pub const CHOICES: [&str; 3] = ["auto", "kvm", "soft"];

    /// The engine that a choice names; `auto` is the fastest that is exact for the guest on this host. KVM,
    /// whose clock is exits, is exact for a guest that is made to exit often and reads no other clock
    /// (`made_for_exits`).
    pub fn choose(choice: &str, made_for_exits: bool) -> Self {
        match choice {
            "soft" => EngineKind::Soft,
            "auto" if !made_for_exits || !kvm::usable() => EngineKind::Soft,
            _ => EngineKind::Kvm,
        }
    }

    /// The engine with this name.
    pub fn named(name: &str) -> Option<Self> {
        [EngineKind::Kvm, EngineKind::Soft].into_iter().find(|kind| kind.name() == name)
    }

    /// Its name in configuration, handshake and messages.
    pub fn name(self) -> &'static str {
        match self {
            EngineKind::Kvm => "kvm",
            EngineKind::Soft => "soft",
        }
    }

    /// What its positions count.
    pub fn clock(self) -> PositionClock {
        match self {
            EngineKind::Kvm => PositionClock::Exits,
            EngineKind::Soft => PositionClock::Instructions,
        }
    }

    /// The CPU that a guest sees.
    pub fn cpu_model(self) -> &'static str {
        match self {
            EngineKind::Kvm => CPU_MODEL,
            EngineKind::Soft => soft::CPU_MODEL,
        }
    }

    /// What of the host's CPU a guest's results depend on.
    pub fn host_cpu(self) -> String {
        match self {
            EngineKind::Kvm => host_cpu(),
            EngineKind::Soft => soft::host_arithmetic(),
        }
    }

    /// Makes one whose memory is `ram`, which must outlive it: the machine that owns both drops the engine
    /// first.
    pub fn create(self, ram: &Ram) -> Result<AnyEngine, EngineError> {
        self.create_with(ram, EngineOptions::default())
    }

    /// The same, with options.
    pub fn create_with(self, ram: &Ram, options: EngineOptions) -> Result<AnyEngine, EngineError> {
        match self {
            EngineKind::Kvm => Ok(Box::new(KvmEngine::new(ram)?)),
            EngineKind::Soft => Ok(Box::new(SoftEngine::with(ram, options)?)),
        }
    }
}

impl std::fmt::Display for EngineKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, clock {}", self.name(), self.clock().name())
    }
}

impl Engine for AnyEngine {
    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn clock(&self) -> PositionClock {
        (**self).clock()
    }

    fn stops(&self) -> StopPrecision {
        (**self).stops()
    }

    fn position(&self) -> Position {
        (**self).position()
    }

    fn run(&mut self, entry: VmEntry, until: Option<Position>) -> Result<VmExit, EngineError> {
        (**self).run(entry, until)
    }

    fn interruptible(&self) -> bool {
        (**self).interruptible()
    }

    fn interrupts_enabled(&self) -> bool {
        (**self).interrupts_enabled()
    }

    fn inject(&mut self, vector: u8) -> Result<(), EngineError> {
        (**self).inject(vector)
    }

    fn request_window(&mut self, on: bool) {
        (**self).request_window(on);
    }

    fn skip_time(&mut self, ns: u64) {
        (**self).skip_time(ns);
    }

    fn kicker(&self) -> Option<Kick> {
        (**self).kicker()
    }

    fn debug_kicker(&self) -> Option<Kick> {
        (**self).debug_kicker()
    }

    fn run_debug(
        &mut self,
        entry: VmEntry,
        until: Option<Position>,
        ask: DebugRun<'_>,
    ) -> Result<DebugStop, EngineError> {
        (**self).run_debug(entry, until, ask)
    }

    fn breakpoint_style(&self) -> BreakpointStyle {
        (**self).breakpoint_style()
    }

    fn rip(&mut self) -> Result<u64, EngineError> {
        (**self).rip()
    }

    fn ram_written(&mut self, address: u64, bytes: usize) {
        (**self).ram_written(address, bytes);
    }

    fn attend(&mut self, entry: VmEntry) -> Result<VmEntry, EngineError> {
        (**self).attend(entry)
    }

    fn complete(&mut self, entry: VmEntry) -> Result<(), EngineError> {
        (**self).complete(entry)
    }

    fn between_instructions(&self) -> bool {
        (**self).between_instructions()
    }

    fn save(&mut self) -> Result<CpuState, EngineError> {
        (**self).save()
    }

    fn restore(&mut self, state: &CpuState, position: Position) -> Result<(), EngineError> {
        (**self).restore(state, position)
    }

    fn power_on(&mut self, first: &CpuState, position: Position) -> Result<(), EngineError> {
        (**self).power_on(first, position)
    }

    fn track_dirty_pages(&mut self, on: bool) -> Result<(), EngineError> {
        (**self).track_dirty_pages(on)
    }

    fn always_tracks(&self) -> bool {
        (**self).always_tracks()
    }

    fn take_dirty_pages(&mut self) -> Result<Vec<u64>, EngineError> {
        (**self).take_dirty_pages()
    }

    fn execution(&self) -> Option<Execution> {
        (**self).execution()
    }

    fn statistics(&self) -> Option<Statistics> {
        (**self).statistics()
    }
}
