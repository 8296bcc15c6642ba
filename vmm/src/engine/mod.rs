//! The engine seam: a CPU that runs guest code until an exit, and goes on with the entry that answers it.
//!
//! An engine has one position clock (`PositionClock`) and stops either exactly where asked or only at exits.
//! Machine, recorder and replayer know no more of it than this, so that engines and clocks can be exchanged.

use std::collections::BTreeSet;
use std::ops::Range;

use logchannel::Position;

pub mod choice;
pub mod kvm;
pub mod soft;
pub mod state;

pub use choice::{AnyEngine, EngineKind, EngineOptions};
pub use state::CpuState;

/// What an engine counts to name a point in the guest's execution (DESIGN 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PositionClock {
    /// Guest instructions retired since boot.
    Instructions,
    /// Retired conditional branches since boot.
    Branches,
    /// Deterministic exits since boot: PIO, MMIO, HLT, MSR; never signals, interrupt windows or host faults.
    Exits,
}

impl PositionClock {
    /// The clock's name in configuration, handshake and messages.
    pub fn name(self) -> &'static str {
        match self {
            PositionClock::Instructions => "instructions",
            PositionClock::Branches => "branches",
            PositionClock::Exits => "exits",
        }
    }
}

/// Where an engine can be made to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopPrecision {
    /// At any position asked for.
    Exact,
    /// Only where the guest exits: inputs wait for its next exit.
    AtExits,
}

/// Why the guest stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmExit {
    /// IN from `port`, `size` bytes: answer with `VmEntry::Value`.
    PioRead {
        /// The port.
        port: u16,
        /// 1, 2 or 4.
        size: u8,
    },
    /// OUT to `port`.
    PioWrite {
        /// The port.
        port: u16,
        /// 1, 2 or 4.
        size: u8,
        /// The value.
        value: u32,
    },
    /// INS of several elements of `size` bytes: answer with `VmEntry::Bytes` of `len` bytes.
    PioReadString {
        /// The port.
        port: u16,
        /// 1, 2 or 4.
        size: u8,
        /// Total length in bytes.
        len: usize,
    },
    /// OUTS of several elements.
    PioWriteString {
        /// The port.
        port: u16,
        /// 1, 2 or 4.
        size: u8,
        /// All elements.
        data: Vec<u8>,
    },
    /// Load from an address that is no RAM: answer with `VmEntry::Value`.
    MmioRead {
        /// Guest physical address.
        address: u64,
        /// 1, 2, 4 or 8.
        size: u8,
    },
    /// Store to an address that is no RAM.
    MmioWrite {
        /// Guest physical address.
        address: u64,
        /// 1, 2, 4 or 8.
        size: u8,
        /// The value.
        value: u64,
    },
    /// HLT.
    Hlt,
    /// RDMSR of a register outside the model: answer with `VmEntry::Msr`.
    MsrRead {
        /// The MSR.
        index: u32,
    },
    /// WRMSR of a register outside the model: answer with `VmEntry::Msr`.
    MsrWrite {
        /// The MSR.
        index: u32,
        /// The value.
        value: u64,
    },
    /// Shutdown by triple fault.
    Shutdown,
    /// The guest did what this engine cannot do; the text says what and where.
    Unsupported(String),
    /// The position asked for was reached (engines that stop exactly).
    Reached,
    /// Stopped from outside; nothing was retired that is not in the position.
    Kicked,
    /// The guest takes an external interrupt here, as `Engine::request_window` asked to be told.
    Window,
}

/// How the guest goes on: the answer to its last exit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum VmEntry {
    /// Nothing to answer.
    #[default]
    Resume,
    /// The value read, in its low bytes.
    Value(u64),
    /// The bytes read by a string instruction.
    Bytes(Vec<u8>),
    /// The MSR's value; `None` raises #GP.
    Msr(Option<u64>),
}

/// A failure of the host below an engine, never of the guest.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// /dev/kvm cannot be used.
    #[error(
        "cannot use /dev/kvm: {0}. Is KVM enabled, and may this user open it? `lockstep doctor` says more"
    )]
    Open(#[source] kvm_ioctls::Error),
    /// KVM lacks something.
    #[error("this KVM lacks {0}")]
    Missing(&'static str),
    /// An ioctl failed.
    #[error("{call} failed: {source}")]
    Ioctl {
        /// Which.
        call: &'static str,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A debugger wants the guest to be where it was before: only the driver of a replay can bring it there.
    #[error("a debugger wants to go back, and this run has no recording")]
    Rewind,
    /// No memory for the processor that checks the translator.
    #[error("--jit check needs the guest's memory twice: {0}")]
    Memory(#[source] crate::memory::MemoryError),
    /// The translator and the interpreter of the software CPU disagree.
    #[error("internal error: translated code does not what the interpreter does: {0}")]
    Differs(String),
    /// KVM ended a run in a way that neither guest nor monitor can answer.
    #[error("KVM stopped the vCPU: {0}")]
    Failed(String),
}

/// How an engine executes, as far as there is a choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Execution {
    /// As it was told.
    pub jit: softcpu::Jit,
    /// Why it interprets what it was told to translate.
    pub untranslated: Option<String>,
}

/// Stops a vCPU from another thread: its `run` returns `Kicked`, or is not disturbed at all.
pub type Kick = Box<dyn Fn() + Send + Sync>;

/// What a debugger asks of one run of an engine.
#[derive(Debug, Clone, Copy)]
pub struct DebugRun<'a> {
    /// Stop after one instruction.
    pub step: bool,
    /// Linear addresses: stop before an instruction that begins at one of them, be it the first. Not looked
    /// at when stepping.
    pub breakpoints: &'a BTreeSet<u64>,
    /// Guest physical memory: stop after an instruction that stores there, or that changes CR0.PG, CR3 or
    /// EFER.LMA. Not looked at when stepping, and only by engines that stop at any instruction.
    pub watched: Option<&'a [Range<u64>]>,
}

/// Why a run under a debugger came back. None of it but `Exit` is the guest's doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DebugStop {
    /// The guest exited, as from `Engine::run`; or `Kicked`, also by engines whose `run` never says so.
    Exit(VmExit),
    /// One instruction was executed.
    Stepped,
    /// The next instruction is at a breakpoint.
    Breakpoint,
    /// Watched memory may have changed, or where linear addresses lead.
    Watched,
}

/// Who sees to it that a guest stops at a breakpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakpointStyle {
    /// The engine, which looks at the addresses it is given.
    Watched,
    /// The caller puts an INT3 at each address for as long as the engine runs.
    Patched,
}

/// A CPU.
///
/// An engine that stops exactly keeps to this besides, so that positions between two calls are boundaries
/// between instructions, and none has two states:
///
/// - an exit that needs no answer comes when its instruction has retired, and `complete` retires the
///   instruction of one that does; `Shutdown` and `Unsupported` count as one, though nothing retires;
/// - an injected interrupt is delivered by the next `run`, before its first instruction, and a delivery
///   counts as one;
/// - the time stamp counter advances by 1 ns (`machine::NS_PER_COUNT`) for each position, and by what
///   `skip_time` says.
pub trait Engine {
    /// The engine's name in configuration and messages.
    fn name(&self) -> &'static str;
    /// What its positions count.
    fn clock(&self) -> PositionClock;
    /// Where it can stop.
    fn stops(&self) -> StopPrecision;
    /// Where the guest is.
    fn position(&self) -> Position;
    /// Answers the last exit and runs until the next one, or until `until` where the engine stops exactly.
    fn run(&mut self, entry: VmEntry, until: Option<Position>) -> Result<VmExit, EngineError>;
    /// Whether the guest takes an external interrupt here (IF set, no shadow, none queued).
    fn interruptible(&self) -> bool;
    /// Whether RFLAGS.IF is set.
    fn interrupts_enabled(&self) -> bool;
    /// Queues an external interrupt for the next entry. Only when `interruptible`.
    fn inject(&mut self, vector: u8) -> Result<(), EngineError>;
    /// Asks for `VmExit::Window` at the first position where the guest takes an external interrupt, or for
    /// none any more. Engines that stop only at exits have no use for it.
    fn request_window(&mut self, on: bool) {
        let _ = on;
    }
    /// Virtual time went on by `ns` while the guest retired nothing.
    fn skip_time(&mut self, ns: u64) {
        let _ = ns;
    }
    /// What stops a run from another thread, if the engine has such a thing.
    fn kicker(&self) -> Option<Kick> {
        None
    }
    /// What stops a run under a debugger from another thread; asked on the thread that runs the engine.
    fn debug_kicker(&self) -> Option<Kick> {
        self.kicker()
    }
    /// As `run`, but stops also where a debugger asks. Nothing of that changes what the guest computes, and
    /// no position.
    fn run_debug(
        &mut self,
        entry: VmEntry,
        until: Option<Position>,
        ask: DebugRun<'_>,
    ) -> Result<DebugStop, EngineError> {
        if self.stops() != StopPrecision::Exact {
            return Err(EngineError::Missing("a way to stop its guest for a debugger"));
        }
        run_by_steps(self, entry, until, ask)
    }
    /// Who sees to breakpoints.
    fn breakpoint_style(&self) -> BreakpointStyle {
        BreakpointStyle::Watched
    }
    /// RIP; the last exit must be completed.
    fn rip(&mut self) -> Result<u64, EngineError> {
        Ok(self.save()?.rip)
    }
    /// A debugger wrote guest RAM: whatever the engine keeps of its content is stale.
    fn ram_written(&mut self, address: u64, bytes: usize) {
        let _ = (address, bytes);
    }
    /// Lets a debugger have its say although the guest does not run; gives back what of `entry` is still to
    /// be answered. Only engines under a debugger do anything.
    fn attend(&mut self, entry: VmEntry) -> Result<VmEntry, EngineError> {
        Ok(entry)
    }
    /// Completes the instruction of the last exit with `entry` without running any further; does nothing when
    /// no exit is outstanding.
    fn complete(&mut self, entry: VmEntry) -> Result<(), EngineError>;
    /// Whether the completed exit ended its instruction. Some take several exits (string I/O, accesses that
    /// cross a page): in between, the state alone does not say how they go on.
    fn between_instructions(&self) -> bool;
    /// The whole architectural state; the last exit must be completed.
    fn save(&mut self) -> Result<CpuState, EngineError>;
    /// Sets the whole architectural state and the position. RAM may have another content than before:
    /// whatever was derived from it is dropped.
    fn restore(&mut self, state: &CpuState, position: Position) -> Result<(), EngineError>;
    /// Sets the state of a vCPU that was powered on at `position`, and starts in `first`: what that leaves
    /// out, as a first state may, is as it was when the engine was made.
    fn power_on(&mut self, first: &CpuState, position: Position) -> Result<(), EngineError>;
    /// Starts or stops noting which pages of RAM the guest writes.
    fn track_dirty_pages(&mut self, on: bool) -> Result<(), EngineError>;
    /// Whether it notes them at all times, as it costs it next to nothing.
    fn always_tracks(&self) -> bool {
        false
    }
    /// Pages of RAM that the guest wrote since the last call, a bit each. Only while tracking.
    fn take_dirty_pages(&mut self) -> Result<Vec<u64>, EngineError>;
    /// How it executes, where there is a choice.
    fn execution(&self) -> Option<Execution> {
        None
    }
    /// What its translator did, if it has one.
    fn statistics(&self) -> Option<softcpu::Statistics> {
        None
    }
}

/// Debugging on an engine that stops exactly: instruction by instruction where there are breakpoints.
pub fn run_by_steps<E: Engine + ?Sized>(
    engine: &mut E,
    entry: VmEntry,
    until: Option<Position>,
    ask: DebugRun<'_>,
) -> Result<DebugStop, EngineError> {
    if !ask.step && ask.breakpoints.is_empty() && ask.watched.is_none() {
        return Ok(DebugStop::Exit(engine.run(entry, until)?));
    }
    engine.complete(entry)?;
    let step = ask.step || ask.watched.is_some();
    loop {
        if !step && ask.breakpoints.contains(&engine.rip()?) {
            return Ok(DebugStop::Breakpoint);
        }
        let before = engine.position().count;
        let exit = engine.run(VmEntry::Resume, Some(Position::at(before + 1)))?;
        let there = until.is_some_and(|until| engine.position().count >= until.count);
        match exit {
            VmExit::Reached if step => return Ok(DebugStop::Stepped),
            VmExit::Reached if !there => {}
            exit => return Ok(DebugStop::Exit(exit)),
        }
    }
}
