//! The machine under test, its whole state, and the engines to test it on.

use std::cell::Cell;

use lockstep::boot;
use lockstep::engine::{AnyEngine, CpuState, EngineKind};
use lockstep::machine::Machine;
use lockstep::memory::{PAGE_BYTES, Ram};
use logchannel::MachineDigest;
use replay::Machine as _;

use crate::guest::{Guest, engines};

pub type Vm = Machine<AnyEngine>;

/// The environment of a worker: the engine that it is to use.
pub const ENGINE: &str = "LOCKSTEP_REPLAY_ENGINE";

thread_local! {
    static CURRENT: Cell<Option<EngineKind>> = const { Cell::new(None) };
}

/// The engine under test on this thread, or in this worker.
pub fn engine_kind() -> EngineKind {
    let named = || EngineKind::named(&std::env::var(ENGINE).ok()?);
    CURRENT.get().or_else(named).expect("a test runs on an engine")
}

/// Makes `kind` the engine under test on this thread, for a test's work on a thread of its own.
pub fn set_engine_kind(kind: EngineKind) {
    CURRENT.set(Some(kind));
}

/// Runs a test on every engine of this machine; with `LOCKSTEP_REPLAY_ENGINE` on the one it names.
pub fn on_engines(test: &str, run: impl Fn()) {
    let only = std::env::var(ENGINE).ok();
    for kind in engines(test).into_iter().filter(|kind| only.as_ref().is_none_or(|only| only == kind.name()))
    {
        eprintln!("{test} on {}", kind.name());
        set_engine_kind(kind);
        run();
    }
    CURRENT.set(None);
}

/// A guest of a few instructions on the engine under test.
pub fn guest(cpl: u8, code: &[u8], handler: &[u8]) -> Guest {
    Guest::new(engine_kind(), cpl, code, handler)
}

/// Little more than minikv needs, because every digest reads all of it.
pub const RAM_BYTES: u64 = 12 << 20;
/// Unix time at power-on of every machine here, nanoseconds.
const WALL_BASE_NS: u64 = 1_700_000_000_000_000_000;

/// A machine with minikv in it, before its first instruction.
pub fn minikv(disk_bytes: u64) -> Vm {
    let ram = Ram::new(RAM_BYTES).expect("guest memory");
    let command_line = guest_images::MINIKV_COMMAND_LINE;
    let first =
        boot::load_elf64(ram.map(), RAM_BYTES, guest_images::MINIKV, command_line).expect("minikv loads");
    let engine = engine_kind().create(&ram).expect("an engine");
    let config = devices::DevicesConfig {
        disk_bytes,
        wall_base_ns: WALL_BASE_NS,
        memory_bytes: RAM_BYTES,
        ..Default::default()
    };
    Machine::new(engine, ram, &config, &first).expect("a machine")
}

/// Everything that a machine is.
#[derive(Clone, PartialEq, Eq)]
pub struct State {
    pub cpu: CpuState,
    pub ram: Vec<u8>,
    pub devices: Vec<u8>,
    pub digest: MachineDigest,
}

impl State {
    pub fn of(machine: &mut Vm) -> Self {
        let digest = machine.digest().expect("a digest");
        let cpu = machine.cpu().expect("the vCPU's state");
        let mut devices = Vec::new();
        machine.devices().digest_bytes(&mut |bytes| devices.extend_from_slice(bytes));
        Self { cpu, ram: machine.ram().as_slice().to_vec(), devices, digest }
    }

    /// What differs, for people; empty when nothing does.
    pub fn diff(&self, other: &Self) -> Vec<String> {
        let mut out = self.cpu.diff(&other.cpu);
        if self.ram != other.ram {
            let pages = self.ram.chunks(PAGE_BYTES).zip(other.ram.chunks(PAGE_BYTES)).enumerate();
            let differing = pages.filter(|(_, (a, b))| a != b).map(|(number, _)| number);
            out.push(format!("pages of RAM {:x?}", differing.collect::<Vec<_>>()));
        }
        if self.devices != other.devices {
            let at = self.devices.iter().zip(&other.devices).position(|(a, b)| a != b);
            out.push(format!("devices, first at byte {at:?} of {}", self.devices.len()));
        }
        if self.digest != other.digest {
            out.push(format!("digest {} -> {}", self.digest, other.digest));
        }
        out
    }
}
