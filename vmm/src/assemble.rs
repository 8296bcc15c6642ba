//! Puts a machine together from its configuration: RAM, guest image, engine, devices. The one place that makes
//! machines of any engine.

use crate::boot;
use crate::config::VmConfig;
use crate::engine::AnyEngine;
use crate::machine::{Machine, MachineState};
use crate::memory::Ram;

/// A machine on an engine of any kind.
pub type Vm = Machine<AnyEngine>;

/// The machine of a configuration before its first instruction, its guest image loaded.
pub fn boot(config: &VmConfig) -> anyhow::Result<Vm> {
    let ram = Ram::new(config.memory_bytes())?;
    let first = boot::load_elf64(ram.map(), ram.bytes(), &config.image, &config.args.cmdline)?;
    let engine = config.debugging.wrap(config.engine.create(&ram)?, &ram)?;
    Ok(Machine::new(engine, ram, &config.devices(), &first)?)
}

/// The machine of a configuration as it was saved; `ram` has its memory's content.
pub fn restore(config: &VmConfig, ram: Ram, state: MachineState) -> anyhow::Result<Vm> {
    let engine = config.debugging.wrap(config.engine.create(&ram)?, &ram)?;
    Ok(Machine::restored(engine, ram, state)?)
}
