//! Puts a machine together from its configuration: RAM, guest image, engine, devices. The one place that
//! makes machines of any engine.

use std::sync::Arc;

use crate::boot;
use crate::config::VmConfig;
use crate::debug::Debugging;
use crate::engine::{AnyEngine, EngineError, EngineKind, EngineOptions};
use crate::machine::{Machine, MachineError, MachineState};
use crate::memory::Ram;
use crate::meter::Meter;
use crate::restart::ResetPolicy;

/// A machine on an engine of any kind.
pub type Vm = Machine<AnyEngine>;

/// What a machine is run with, and its guest cannot tell.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Who looks into the guest.
    pub debugging: Debugging,
    /// How its engine executes.
    pub options: EngineOptions,
    /// Who is told how it gets on.
    pub meter: Arc<Meter>,
}

impl Surroundings {
    fn engine(&self, kind: EngineKind, ram: &Ram) -> Result<AnyEngine, EngineError> {
        self.debugging.wrap(kind.create_with(ram, self.options)?, ram)
    }
}

/// The machine of a configuration before its first instruction, its guest image loaded.
pub fn boot(config: &VmConfig) -> anyhow::Result<Vm> {
    let ram = Ram::new(config.memory_bytes())?;
    let first = boot::load(ram.map(), ram.bytes(), &config.guest_image().files())?;
    let engine = config.around.engine(config.engine, &ram)?;
    let mut machine = Machine::new(engine, ram, &config.devices(), &first)?;
    machine.set_meter(config.around.meter.clone());
    machine.set_reset_policy(config.reset_policy());
    Ok(machine)
}

/// A machine as it was saved; `ram` has its memory's content. A guest that resets it does `policy`.
pub fn restore(
    engine: EngineKind,
    around: &Surroundings,
    ram: Ram,
    state: MachineState,
    policy: ResetPolicy,
) -> Result<Vm, MachineError> {
    let engine = around.engine(engine, &ram)?;
    let mut machine = Machine::restored(engine, ram, state)?;
    machine.set_meter(around.meter.clone());
    machine.set_reset_policy(policy);
    Ok(machine)
}
