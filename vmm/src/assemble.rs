//! Puts a machine together from its configuration: RAM, guest image, engine, devices. The one place that
//! makes machines of any engine.

use crate::boot;
use crate::config::VmConfig;
use crate::debug::Debugging;
use crate::engine::{AnyEngine, EngineKind};
use crate::machine::{Machine, MachineError, MachineState};
use crate::memory::Ram;
use crate::restart::ResetPolicy;

/// A machine on an engine of any kind.
pub type Vm = Machine<AnyEngine>;

/// The machine of a configuration before its first instruction, its guest image loaded.
pub fn boot(config: &VmConfig) -> anyhow::Result<Vm> {
    let ram = Ram::new(config.memory_bytes())?;
    let first = boot::load(ram.map(), ram.bytes(), &config.guest_image().files())?;
    let engine = config.debugging.wrap(config.engine.create(&ram)?, &ram)?;
    let mut machine = Machine::new(engine, ram, &config.devices(), &first)?;
    machine.set_reset_policy(config.reset_policy());
    Ok(machine)
}

/// A machine as it was saved; `ram` has its memory's content. A guest that resets it does `policy`.
pub fn restore(
    engine: EngineKind,
    debugging: &Debugging,
    ram: Ram,
    state: MachineState,
    policy: ResetPolicy,
) -> Result<Vm, MachineError> {
    let engine = debugging.wrap(engine.create(&ram)?, &ram)?;
    let mut machine = Machine::restored(engine, ram, state)?;
    machine.set_reset_policy(policy);
    Ok(machine)
}
