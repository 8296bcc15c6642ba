//! The machine: RAM, an engine and the devices, behind `replay::Machine`. The exit → entry loop lives here.
//!
//! ```text
//!            ┌────────── run ──────────┐
//!   inject ──▶ engine.run(entry) ── exit ──▶ devices ──▶ next entry ──▶ Stop::{Ready, Waiting, Ended}
//!            └─────────────────────────┘
//! ```
//!
//! Interrupts are injected only here, between two runs of the engine, from the PIC's state: a function of the
//! machine's own state and of the inputs applied at this position, hence the same on a replica.
//!
//! A reset by the guest is carried out here too, at once and whole: devices, memory and vCPU are as at
//! power-on when the run that came to it returns. The guest is then held until the disk requests in flight
//! are done, so that none of them touches the disk behind the new guest's back.
//!
//! An engine that stops exactly makes time: the virtual clock advances with its position, and it is stopped
//! where the next timer falls due. The clock is brought up to the position at every stop and before every
//! access to a device, so that saving, restoring and stopping anywhere change nothing.

use std::hash::Hasher as _;
use std::sync::Arc;

use devices::{Devices, DevicesConfig, DevicesState};
use logchannel::{DiskRequest, Event, MachineDigest, OnReset, Output, Position, codec};
use replay::{Ending, Stop};
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use crate::boot::BootError;
use crate::engine::{CpuState, Engine, EngineError, StopPrecision, VmEntry, VmExit};
use crate::memory::Ram;
use crate::meter::Meter;
use crate::restart::{ResetPolicy, ResetState};

/// Virtual time of one position, on engines that stop exactly.
pub const NS_PER_COUNT: u64 = 1;

/// Most that such an engine runs without coming back for inputs and the host's time: under a millisecond.
const SLICE: u64 = 100_000;

/// A failure of the host or of the monitor. What a guest does wrong is an `Ending`.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A device was given an input that its state excludes: the log and the machine disagree.
    #[error("input at position {at}: {source}")]
    Apply {
        /// Where.
        at: Position,
        /// What the device said.
        #[source]
        source: devices::ApplyError,
    },
    /// Saved device state of another version, or damaged.
    #[error("cannot restore the devices: {0}")]
    Restore(#[from] devices::RestoreError),
    /// The guest cannot be started again.
    #[error("the guest reset its machine, and cannot be loaded again: {0}")]
    Reload(#[source] BootError),
    /// Its memory cannot be cleared.
    #[error("the guest reset its machine, and its memory cannot be cleared: {0}")]
    Clear(#[source] std::io::Error),
    /// There is nothing to start the guest with.
    #[error(
        "the guest resets its machine at position {at}, and its kernel is not known here: a recording that \
         was cut off before it holds none"
    )]
    NoImage {
        /// Where.
        at: Position,
    },
    /// A log entry that is not an input.
    #[error("{0} is no input")]
    NotAnInput(&'static str),
}

/// Everything of a machine but its memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineState {
    /// The vCPU.
    pub cpu: CpuState,
    /// Where it is.
    pub at: Position,
    /// The devices.
    pub devices: DevicesState,
    /// The guest halted and waits for an interrupt.
    pub halted: bool,
    /// What became of its resets.
    pub resets: ResetState,
}

/// A virtual machine on engine `E`.
///
/// Field order matters: the engine refers to the mapping that `ram` owns and is dropped before it.
pub struct Machine<E> {
    engine: E,
    ram: Ram,
    devices: Devices,
    entry: VmEntry,
    halted: bool,
    ended: Option<Ending>,
    changes: Changes,
    policy: ResetPolicy,
    resets: ResetState,
    /// The guest was reset, and nobody has asked yet.
    was_reset: bool,
    meter: Arc<Meter>,
}

/// Pages that changed and that a reader has yet to learn of: digests and state transfer ask independently.
#[derive(Default)]
struct Changes {
    digest: Vec<u64>,
    /// While a transfer asks.
    transfer: Option<Vec<u64>>,
}

impl Changes {
    fn note(&mut self, pages: &[u64]) {
        for known in std::iter::once(&mut self.digest).chain(&mut self.transfer) {
            known.resize(pages.len(), 0);
            known.iter_mut().zip(pages).for_each(|(known, new)| *known |= new);
        }
    }
}

impl<E: Engine> Machine<E> {
    /// A machine whose vCPU starts in `first`; the guest image is in `ram` already.
    pub fn new(
        mut engine: E,
        ram: Ram,
        config: &DevicesConfig,
        first: &CpuState,
    ) -> Result<Self, MachineError> {
        engine.restore(first, Position::at(0))?;
        Ok(Self {
            engine,
            ram,
            devices: Devices::new(config),
            entry: VmEntry::Resume,
            halted: false,
            ended: None,
            changes: Changes::default(),
            policy: ResetPolicy::default(),
            resets: ResetState::default(),
            was_reset: false,
            meter: Arc::default(),
        })
    }

    /// Has `meter` told where the guest is, from now on.
    pub fn set_meter(&mut self, meter: Arc<Meter>) {
        meter.set_execution(self.engine.execution());
        meter.moved_to(self.engine.position().count);
        self.meter = meter;
    }

    fn note_position(&self) {
        self.meter.note(self.engine.position().count, || self.engine.statistics());
    }

    /// What a reset by the guest does, from now on; a new machine ends.
    pub fn set_reset_policy(&mut self, policy: ResetPolicy) {
        self.policy = policy;
    }

    /// How often the guest was reset since power-on.
    pub fn resets(&self) -> u64 {
        self.resets.count
    }

    /// A machine that goes on where another one was saved; `ram` has that one's content.
    pub fn restored(mut engine: E, ram: Ram, state: MachineState) -> Result<Self, MachineError> {
        let devices = Devices::restore(state.devices)?;
        engine.restore(&state.cpu, state.at)?;
        Ok(Self {
            engine,
            ram,
            devices,
            entry: VmEntry::Resume,
            halted: state.halted,
            ended: None,
            changes: Changes::default(),
            policy: ResetPolicy::default(),
            resets: state.resets,
            was_reset: false,
            meter: Arc::default(),
        })
    }

    /// Goes on where this machine or another was saved; its memory has the content of that one, which it was
    /// given after `finish_instruction`.
    pub fn go_to(&mut self, state: MachineState) -> Result<(), MachineError> {
        self.devices = Devices::restore(state.devices)?;
        self.engine.restore(&state.cpu, state.at)?;
        (self.entry, self.halted, self.ended) = (VmEntry::Resume, state.halted, None);
        (self.resets, self.was_reset) = (state.resets, false);
        self.meter.moved_to(state.at.count);
        Ok(())
    }

    /// Ends the instruction of the last exit, whatever further exits it takes: before another state, or
    /// another content of memory, takes the place of this one. KVM would else go on with it there.
    pub fn finish_instruction(&mut self) -> Result<(), MachineError> {
        let entry = std::mem::take(&mut self.entry);
        self.engine.complete(entry)?;
        while !self.engine.between_instructions() {
            let exit = self.engine.run(VmEntry::Resume, None)?;
            self.handle(exit);
            let entry = std::mem::take(&mut self.entry);
            self.engine.complete(entry)?;
        }
        Ok(())
    }

    /// Everything but the memory.
    pub fn save(&mut self) -> Result<MachineState, MachineError> {
        let cpu = self.cpu()?;
        let (at, devices, halted) = (self.engine.position(), self.devices.save(), self.halted);
        Ok(MachineState { cpu, at, devices, halted, resets: self.resets.clone() })
    }

    /// Whether the guest is between two instructions, so that it can be saved and go on elsewhere.
    pub fn is_movable(&mut self) -> Result<bool, MachineError> {
        let entry = std::mem::take(&mut self.entry);
        self.engine.complete(entry)?;
        Ok(self.engine.between_instructions())
    }

    /// Starts or stops noting which pages change.
    pub fn track_pages(&mut self, on: bool) -> Result<(), MachineError> {
        if self.engine.always_tracks() {
            self.note_changes()?;
        }
        self.engine.track_dirty_pages(on)?;
        self.ram.take_device_writes();
        self.changes.transfer = on.then(Vec::new);
        Ok(())
    }

    /// Pages that guest or devices wrote since the last call, a bit each. Only while tracking.
    pub fn take_changed_pages(&mut self) -> Result<Vec<u64>, MachineError> {
        self.note_changes()?;
        Ok(self.changes.transfer.as_mut().map(std::mem::take).unwrap_or_default())
    }

    fn note_changes(&mut self) -> Result<(), MachineError> {
        self.changes.note(&self.engine.take_dirty_pages()?);
        self.changes.note(&self.ram.take_device_writes());
        Ok(())
    }

    /// Digest of the memory: of what has changed, and of a part of the rest, where the engine knows; of all
    /// of it takes 0.1 ms a MiB, in which the guest stands still.
    fn digest_memory(&mut self) -> Result<u64, MachineError> {
        if !self.engine.always_tracks() {
            return Ok(self.ram.digest(None));
        }
        self.note_changes()?;
        Ok(self.ram.digest(Some(&std::mem::take(&mut self.changes.digest))))
    }

    /// The engine, for what is particular to it.
    pub fn engine(&self) -> &E {
        &self.engine
    }

    /// Guest RAM; the vCPU is stopped.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// Guest RAM, to plant faults in.
    pub fn ram_mut(&mut self) -> &mut Ram {
        &mut self.ram
    }

    /// The devices.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Disk requests that were put out and have not completed, oldest first.
    pub fn disk_in_flight(&self) -> Vec<DiskRequest> {
        self.devices.in_flight_disk()
    }

    /// The vCPU's state, its last exit completed.
    pub fn cpu(&mut self) -> Result<CpuState, MachineError> {
        let entry = std::mem::take(&mut self.entry);
        self.engine.complete(entry)?;
        Ok(self.engine.save()?)
    }

    /// Overwrites the vCPU's state, position kept: to plant faults.
    pub fn set_cpu(&mut self, state: &CpuState) -> Result<(), MachineError> {
        let at = self.engine.position();
        Ok(self.engine.restore(state, at)?)
    }

    /// Lets a debugger have its say while the guest waits.
    pub fn attend(&mut self) -> Result<(), MachineError> {
        let entry = std::mem::take(&mut self.entry);
        self.entry = self.engine.attend(entry)?;
        Ok(())
    }

    fn can_inject(&self) -> bool {
        self.devices.interrupt_pending() && self.engine.interruptible()
    }

    /// Injects the pending interrupt if the guest takes one here.
    ///
    /// That is asked only when the last exit is complete: its completion may raise an exception, which comes
    /// first, or end the shadow of an STI. So the answer is also the same whether or not a digest has
    /// completed it before.
    fn inject(&mut self) -> Result<(), MachineError> {
        let entry = std::mem::take(&mut self.entry);
        self.engine.complete(entry)?;
        if self.can_inject() {
            let vector = self.devices.acknowledge_interrupt();
            self.engine.inject(vector)?;
            self.halted = false;
        }
        Ok(())
    }

    /// Runs to the guest's next exit; `until` only says whether it is there already.
    fn run_to_exit(&mut self, until: Option<Position>) -> Result<Stop, MachineError> {
        let there = until.is_some_and(|until| self.engine.position().count >= until.count);
        if there || self.stop() != Stop::Ready {
            return Ok(self.stop());
        }
        if self.devices.interrupt_pending() {
            self.inject()?;
        }
        let entry = std::mem::take(&mut self.entry);
        let exit = self.engine.run(entry, until)?;
        self.handle(exit);
        self.reset_if_asked()?;
        Ok(self.stop())
    }

    /// Runs to the guest's next exit or to exactly `until`; without it to the end of a slice, or a kick.
    fn run_exactly(&mut self, until: Option<Position>, slice: u64) -> Result<Stop, MachineError> {
        let start = self.engine.position().count;
        let end = until.map_or(start.saturating_add(slice), |until| until.count);
        while self.engine.position().count < end && self.stop() == Stop::Ready {
            if self.can_inject() {
                let vector = self.devices.acknowledge_interrupt();
                self.engine.inject(vector)?;
                self.halted = false;
            }
            self.engine.request_window(self.devices.interrupt_pending());
            match self.run_timed(self.timer_or(end))? {
                VmExit::Window | VmExit::Reached => {}
                // Not where it began: there an interrupt may have been delivered that is not in the position.
                VmExit::Kicked if until.is_none() && self.engine.position().count > start => break,
                VmExit::Kicked => {}
                exit => {
                    self.handle_whole(exit)?;
                    self.reset_if_asked()?;
                    break;
                }
            }
        }
        Ok(self.stop())
    }

    /// The position where the next timer falls due, if that is before `end`.
    fn timer_or(&self, end: u64) -> Position {
        let now_ns = self.devices.now_ns();
        let timer =
            self.devices.next_deadline_ns().filter(|due| *due > now_ns).map(|due| {
                self.engine.position().count.saturating_add((due - now_ns).div_ceil(NS_PER_COUNT))
            });
        Position::at(timer.map_or(end, |timer| timer.min(end)))
    }

    /// Runs the engine, and lets the time pass that this takes.
    fn run_timed(&mut self, until: Position) -> Result<VmExit, MachineError> {
        let before = self.engine.position().count;
        let entry = std::mem::take(&mut self.entry);
        let exit = self.engine.run(entry, Some(until))?;
        self.pass_time(before);
        Ok(exit)
    }

    fn pass_time(&mut self, before: u64) {
        let passed = (self.engine.position().count - before) * NS_PER_COUNT;
        self.devices.advance_to(self.devices.now_ns().saturating_add(passed));
    }

    /// Handles an exit and whatever further exits its instruction takes, until it has retired.
    fn handle_whole(&mut self, mut exit: VmExit) -> Result<(), MachineError> {
        loop {
            let (before, before_ns) = (self.engine.position().count, self.devices.now_ns());
            self.handle(exit);
            // A device whose reading takes time took it from the guest too.
            self.engine.skip_time(self.devices.now_ns() - before_ns);
            let entry = std::mem::take(&mut self.entry);
            self.engine.complete(entry)?;
            self.pass_time(before);
            if self.engine.between_instructions() {
                return Ok(());
            }
            let further = Position::at(self.engine.position().count.saturating_add(1));
            exit = self.run_timed(further)?;
        }
    }

    /// Starts the guest again, if it reset its machine and that is what a reset does.
    fn reset_if_asked(&mut self) -> Result<(), MachineError> {
        let (Some(Ending::Reset), OnReset::Restart { limit }) = (&self.ended, self.policy.on_reset()) else {
            return Ok(());
        };
        if !self.resets.admit(self.devices.now_ns(), limit) {
            self.ended = Some(Ending::ResetLoop { limit });
            return Ok(());
        }
        // Whatever the last instruction still does, it does to the old machine.
        self.finish_instruction()?;
        let at = self.engine.position();
        let load = self.policy.load().ok_or(MachineError::NoImage { at })?;
        self.ram.zero().map_err(MachineError::Clear)?;
        let first = load(&self.ram).map_err(MachineError::Reload)?;
        #[cfg(feature = "planted-faults")]
        crate::planted::in_memory(&mut self.ram, at);
        self.devices.reset();
        self.engine.power_on(&first, at)?;
        (self.halted, self.ended, self.was_reset) = (false, None, true);
        self.resets.held = self.devices.disk_is_busy();
        Ok(())
    }

    fn stop(&self) -> Stop {
        if let Some(ending) = &self.ended {
            return Stop::Ended(ending.clone());
        }
        if self.resets.held {
            return Stop::Waiting { deadline_ns: None };
        }
        if self.halted && !self.can_inject() {
            return Stop::Waiting { deadline_ns: self.devices.next_deadline_ns() };
        }
        match self.devices.waiting(self.ram.map()) {
            Some(wait) => Stop::Waiting { deadline_ns: wait.deadline_ns },
            None => Stop::Ready,
        }
    }

    fn handle(&mut self, exit: VmExit) {
        #[cfg(feature = "planted-faults")]
        crate::planted::in_devices(&mut self.devices, self.engine.position());
        let ram = self.ram.map();
        let mut bytes = [0; 8];
        match exit {
            VmExit::PioRead { port, size } => {
                self.devices.pio_read(ram, port, &mut bytes[..usize::from(size)]);
                self.entry = VmEntry::Value(u64::from_le_bytes(bytes));
            }
            VmExit::PioWrite { port, size, value } => {
                self.devices.pio_write(ram, port, &value.to_le_bytes()[..usize::from(size)]);
            }
            VmExit::PioReadString { port, size, len } => {
                let mut data = vec![0; len];
                for element in data.chunks_mut(usize::from(size)) {
                    self.devices.pio_read(ram, port, element);
                }
                self.entry = VmEntry::Bytes(data);
            }
            VmExit::PioWriteString { port, size, data } => {
                for element in data.chunks(usize::from(size)) {
                    self.devices.pio_write(ram, port, element);
                }
            }
            VmExit::MmioRead { address, size } => {
                self.devices.mmio_read(ram, address, &mut bytes[..usize::from(size)]);
                self.entry = VmEntry::Value(u64::from_le_bytes(bytes));
            }
            VmExit::MmioWrite { address, size, value } => {
                self.devices.mmio_write(ram, address, &value.to_le_bytes()[..usize::from(size)]);
            }
            VmExit::MsrRead { index } => {
                tracing::debug!(
                    index = format_args!("{index:#x}"),
                    "guest reads an MSR outside the model: #GP"
                );
                self.entry = VmEntry::Msr(None);
            }
            VmExit::MsrWrite { index, value } => {
                tracing::debug!(
                    index = format_args!("{index:#x}"),
                    value,
                    "guest writes an MSR outside the model: #GP"
                );
                self.entry = VmEntry::Msr(None);
            }
            VmExit::Hlt if self.engine.interrupts_enabled() => {
                self.devices.flush_console();
                self.halted = true;
            }
            VmExit::Hlt => {
                self.devices.flush_console();
                self.ended = Some(Ending::Stuck("HLT with interrupts disabled".into()));
            }
            VmExit::Shutdown => self.ended = Some(Ending::Reset),
            VmExit::Unsupported(what) => self.ended = Some(Ending::Stuck(what)),
            VmExit::Reached | VmExit::Kicked | VmExit::Window => {}
        }
        if let (None, Some(ending)) = (&self.ended, self.devices.ended()) {
            self.ended = Some(match ending {
                devices::Ending::PowerOff(status) => Ending::PowerOff(status),
                devices::Ending::Reset => Ending::Reset,
            });
        }
    }
}

impl<E: Engine> replay::Machine for Machine<E> {
    type Error = MachineError;

    fn position(&self) -> Position {
        self.engine.position()
    }

    fn run(&mut self, until: Option<Position>) -> Result<Stop, MachineError> {
        let stop = match self.engine.stops() {
            StopPrecision::AtExits => self.run_to_exit(until),
            StopPrecision::Exact => self.run_exactly(until, SLICE),
        };
        self.note_position();
        stop
    }

    fn run_slice(&mut self, most: u64) -> Result<Stop, MachineError> {
        let stop = match self.engine.stops() {
            StopPrecision::AtExits => self.run_to_exit(None),
            StopPrecision::Exact => self.run_exactly(None, most.clamp(1, SLICE)),
        };
        self.note_position();
        stop
    }

    fn next_deadline_ns(&self) -> Option<u64> {
        self.devices.next_deadline_ns()
    }

    fn accepts(&self, input: &Event) -> bool {
        self.devices.accepts(self.ram.map(), input)
    }

    fn apply(&mut self, input: &Event) -> Result<(), MachineError> {
        match input {
            Event::NetRx(_)
            | Event::ConsoleRx(_)
            | Event::DiskDone { .. }
            | Event::Clock { .. }
            | Event::Trap { .. }
            | Event::PowerButton => {
                let (at, before_ns) = (self.engine.position(), self.devices.now_ns());
                #[cfg(feature = "planted-faults")]
                crate::planted::in_devices(&mut self.devices, at);
                let applied = self.devices.apply(self.ram.map(), input);
                applied.map_err(|source| MachineError::Apply { at, source })?;
                self.engine.skip_time(self.devices.now_ns() - before_ns);
                self.resets.held &= self.devices.disk_is_busy();
            }
            other => return Err(MachineError::NotAnInput(other.name())),
        }
        Ok(())
    }

    fn entropy_wanted(&self) -> usize {
        self.devices.entropy_wanted()
    }

    fn console_wanted(&self) -> usize {
        self.devices.console_wanted()
    }

    fn take_output(&mut self) -> Option<Output> {
        self.devices.take_output()
    }

    fn take_reset(&mut self) -> bool {
        std::mem::take(&mut self.was_reset)
    }

    fn now_ns(&self) -> u64 {
        self.devices.now_ns()
    }

    fn digest(&mut self) -> Result<MachineDigest, MachineError> {
        let registers = self.cpu()?.digest();
        let mut hash = XxHash3_64::new();
        self.devices.digest_bytes(&mut |bytes| hash.write(bytes));
        hash.write(&[u8::from(self.halted)]);
        hash.write(&codec::encode(&self.resets).expect("a few words"));
        let devices = hash.finish();
        let memory = self.digest_memory()?;
        Ok(MachineDigest { registers, devices, memory })
    }
}
