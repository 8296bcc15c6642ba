//! Puts a machine together from its configuration: RAM, guest image, engine, devices. The one place that
//! makes machines of any engine.

use crate::boot;
use crate::config::VmConfig;
use crate::debug::Debugging;
use crate::engine::{AnyEngine, EngineKind};
use crate::machine::{Machine, MachineError, MachineState};
use crate::memory::Ram;

/// A machine on an engine of any kind.
pub type Vm = Machine<AnyEngine>;

/// The machine of a configuration before its first instruction, its guest image loaded.
pub fn boot(config: &VmConfig) -> anyhow::Result<Vm> {
    let ram = Ram::new(config.memory_bytes())?;
    let first = boot::load(ram.map(), ram.bytes(), &config.files())?;
    let engine = config.debugging.wrap(config.engine.create(&ram)?, &ram)?;
    Ok(Machine::new(engine, ram, &config.devices(), &first)?)
}

/// A machine as it was saved; `ram` has its memory's content.
pub fn restore(engine: EngineKind, ram: Ram, state: MachineState) -> Result<Vm, MachineError> {
    restore_debugged(engine, &Debugging::default(), ram, state)
}

/// The same, looked into.
pub fn restore_debugged(
    engine: EngineKind,
    debugging: &Debugging,
    ram: Ram,
    state: MachineState,
) -> Result<Vm, MachineError> {
    let engine = debugging.wrap(engine.create(&ram)?, &ram)?;
    Machine::restored(engine, ram, state)
}
