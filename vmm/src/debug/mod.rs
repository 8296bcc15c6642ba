//! Looking into a guest: GDB over its remote protocol, an instruction trace, symbols.
//!
//! ```text
//!   Machine ── Engine::run ──▶ Debugged ── run_debug ──▶ KVM or software CPU
//!                                 │  ▲
//!                     packets, trace │
//!                                 ▼  │
//!                        gdb, or a file
//! ```
//!
//! `Debugged` is an engine around an engine. The rest of the program does not know of it: a stop of a
//! debugger is no event, takes no position, and leaves no trace in a recording.

mod debugger;
mod monitor;
pub mod paging;
mod registers;
pub mod replay;
pub mod symbols;
mod target;
pub mod trace;
mod wire;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use clap::Args;
use crossbeam_channel::bounded;
use logchannel::Position;
use softcpu::Statistics;

use crate::cli::headings::DEBUGGING;
use crate::engine::{
    AnyEngine, BreakpointStyle, CpuState, DebugRun, DebugStop, Engine, EngineError, Execution, Kick,
    PositionClock, StopPrecision, VmEntry, VmExit,
};
use crate::memory::Ram;
use debugger::Debugger;
use symbols::Symbols;
use target::{Setup, Target};
use trace::Trace;
use wire::Kicks;

pub use debugger::Rewind;
pub use wire::Address;

/// Messages of a debugger that wait.
const QUEUE: usize = 16;

/// Options of commands whose guest can be looked into.
#[derive(Debug, Clone, Default, Args)]
pub struct DebugArgs {
    /// Wait for GDB at this address, HOST:PORT or unix:PATH, before the guest's first instruction.
    #[arg(long, help_heading = DEBUGGING, value_name = "ADDRESS")]
    pub gdb: Option<Address>,
    /// Symbols: an ELF file with a symbol table, or a kernel image that has them for itself. Without it those
    /// of the guest image.
    #[arg(long, help_heading = DEBUGGING, value_name = "FILE")]
    pub symbols: Option<PathBuf>,
    /// Trace instructions from this position on (engines that stop at any instruction).
    #[arg(long, help_heading = DEBUGGING, value_name = "POSITION")]
    pub trace_from: Option<u64>,
    /// Last position to trace; without it as far as the guest runs.
    #[arg(long, help_heading = DEBUGGING, value_name = "POSITION", requires = "trace_from")]
    pub trace_to: Option<u64>,
    /// File for the trace; standard output without it.
    #[arg(long, help_heading = DEBUGGING, value_name = "FILE", requires = "trace_from")]
    pub trace_file: Option<PathBuf>,
}

/// What is to be looked at, and by whom. Clones are the same; without any option nothing is.
#[derive(Clone, Default)]
pub struct Debugging {
    shared: Option<Arc<Mutex<Debugger>>>,
    kicks: Kicks,
}

impl std::fmt::Debug for Debugging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Debugging").field("on", &self.shared.is_some()).finish()
    }
}

impl Debugging {
    /// Sets up what the options ask: reads symbols, opens the trace, listens for a debugger. `image` is the
    /// guest's, where its symbols are if no option names others. A guest that is `replayed` cannot be
    /// changed, but can be run backwards.
    pub fn new(args: &DebugArgs, image: &[u8], replayed: bool) -> anyhow::Result<Self> {
        if args.gdb.is_none() && args.trace_from.is_none() {
            return Ok(Self::default());
        }
        let symbols = match &args.symbols {
            Some(path) => {
                let bytes = std::fs::read(path);
                let bytes = bytes.with_context(|| format!("cannot read --symbols {}", path.display()))?;
                Symbols::of_file(&bytes).with_context(|| format!("--symbols {}", path.display()))?
            }
            None => Symbols::of_file(image).unwrap_or_default(),
        };
        let symbols = Arc::new(symbols);
        let trace = match args.trace_from {
            Some(from) => Some(Trace::new(from, args.trace_to, args.trace_file.as_deref(), symbols.clone())?),
            None => None,
        };
        let kicks = Kicks::default();
        let mut messages = None;
        if let Some(address) = &args.gdb {
            let (sender, receiver) = bounded(QUEUE);
            let bound = wire::listen(address, sender, kicks.clone())
                .with_context(|| format!("cannot listen for a debugger at {address}"))?;
            eprintln!("lockstep: waiting for a debugger: (gdb) target remote {bound}");
            messages = Some(receiver);
        }
        let setup = Setup::new(symbols, replayed);
        let debugger = Debugger::new(messages, kicks.clone(), setup, trace);
        Ok(Self { shared: Some(Arc::new(Mutex::new(debugger))), kicks })
    }

    /// The engine, with whatever looks at it around it. `ram` is its memory, and outlives it.
    pub fn wrap(&self, engine: AnyEngine, ram: &Ram) -> Result<AnyEngine, EngineError> {
        let Some(debugger) = &self.shared else { return Ok(engine) };
        if lock(debugger).needs_exact_stops() && engine.stops() != StopPrecision::Exact {
            return Err(EngineError::Missing(
                "a way to stop at every instruction, which a trace needs: use --engine soft",
            ));
        }
        let target = Target::new(engine, ram.map().clone());
        Ok(Box::new(Debugged { target, debugger: debugger.clone() }))
    }

    /// Something that wakes the thread of a guest that waits.
    pub fn on_message(&self, wake: Kick) {
        if self.shared.is_some() {
            self.kicks.add(wake);
        }
    }

    /// From now on nothing stops the guest and nobody is asked, or again what has been set up.
    pub fn quiet(&self, on: bool) {
        if let Some(debugger) = &self.shared {
            lock(debugger).quiet(on);
        }
    }

    /// After `EngineError::Rewind`: where the debugger wants to be.
    pub fn take_rewind(&self) -> Option<Rewind> {
        lock(self.shared.as_ref()?).take_rewind()
    }
}

fn lock(debugger: &Mutex<Debugger>) -> MutexGuard<'_, Debugger> {
    debugger.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An engine that somebody looks at.
struct Debugged {
    target: Target,
    debugger: Arc<Mutex<Debugger>>,
}

impl Drop for Debugged {
    fn drop(&mut self) {
        lock(&self.debugger).ended(&mut self.target);
    }
}

impl Engine for Debugged {
    fn name(&self) -> &'static str {
        self.target.engine.name()
    }

    fn clock(&self) -> PositionClock {
        self.target.engine.clock()
    }

    fn stops(&self) -> StopPrecision {
        self.target.engine.stops()
    }

    fn position(&self) -> Position {
        self.target.engine.position()
    }

    fn run(&mut self, entry: VmEntry, until: Option<Position>) -> Result<VmExit, EngineError> {
        lock(&self.debugger).run(&mut self.target, entry, until)
    }

    fn interruptible(&self) -> bool {
        self.target.engine.interruptible()
    }

    fn interrupts_enabled(&self) -> bool {
        self.target.engine.interrupts_enabled()
    }

    fn inject(&mut self, vector: u8) -> Result<(), EngineError> {
        self.target.engine.inject(vector)
    }

    fn request_window(&mut self, on: bool) {
        self.target.engine.request_window(on);
    }

    fn skip_time(&mut self, ns: u64) {
        self.target.engine.skip_time(ns);
    }

    fn kicker(&self) -> Option<Kick> {
        self.target.engine.kicker()
    }

    fn debug_kicker(&self) -> Option<Kick> {
        self.target.engine.debug_kicker()
    }

    fn run_debug(
        &mut self,
        entry: VmEntry,
        until: Option<Position>,
        ask: DebugRun<'_>,
    ) -> Result<DebugStop, EngineError> {
        self.target.engine.run_debug(entry, until, ask)
    }

    fn breakpoint_style(&self) -> BreakpointStyle {
        self.target.engine.breakpoint_style()
    }

    fn rip(&mut self) -> Result<u64, EngineError> {
        self.target.engine.rip()
    }

    fn ram_written(&mut self, address: u64, bytes: usize) {
        self.target.engine.ram_written(address, bytes);
    }

    fn attend(&mut self, entry: VmEntry) -> Result<VmEntry, EngineError> {
        lock(&self.debugger).attend(&mut self.target, entry)
    }

    fn complete(&mut self, entry: VmEntry) -> Result<(), EngineError> {
        self.target.engine.complete(entry)
    }

    fn between_instructions(&self) -> bool {
        self.target.engine.between_instructions()
    }

    fn save(&mut self) -> Result<CpuState, EngineError> {
        self.target.engine.save()
    }

    fn restore(&mut self, state: &CpuState, position: Position) -> Result<(), EngineError> {
        self.target.engine.restore(state, position)
    }

    fn power_on(&mut self, first: &CpuState, position: Position) -> Result<(), EngineError> {
        self.target.engine.power_on(first, position)
    }

    fn track_dirty_pages(&mut self, on: bool) -> Result<(), EngineError> {
        self.target.engine.track_dirty_pages(on)
    }

    fn always_tracks(&self) -> bool {
        self.target.engine.always_tracks()
    }

    fn take_dirty_pages(&mut self) -> Result<Vec<u64>, EngineError> {
        self.target.engine.take_dirty_pages()
    }

    fn execution(&self) -> Option<Execution> {
        self.target.engine.execution()
    }

    fn statistics(&self) -> Option<Statistics> {
        self.target.engine.statistics()
    }
}
