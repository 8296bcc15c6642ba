//! What the two machines of a pair must have in common, and how a difference is told to people.

use serde::{Deserialize, Serialize};

/// What becomes of a guest that resets its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum OnReset {
    /// The machine ends.
    #[default]
    Stop,
    /// The machine starts again where it is.
    Restart {
        /// Most resets within a minute of virtual time: one more ends the machine. 0 for no limit.
        limit: u32,
    },
}

impl std::fmt::Display for OnReset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OnReset::Stop => write!(f, "stop"),
            OnReset::Restart { limit: 0 } => write!(f, "restart, without limit"),
            OnReset::Restart { limit } => write!(f, "restart, at most {limit} times a minute"),
        }
    }
}

/// Everything that decides what a machine does besides the log. Two replicas with equal configurations and
/// the same log take the same path.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PairConfig {
    /// Name of the virtual machine, as the disk server knows it.
    pub vm: String,
    /// The engine: `kvm` or `soft`.
    pub engine: String,
    /// The engine's position clock: `instructions`, `branches` or `exits`.
    pub clock: String,
    /// The CPU model that the guest sees.
    pub cpu_model: String,
    /// The host's CPU. Where it runs guest code: vendor, family, model, stepping, microcode and a digest of
    /// the feature leaves. Else a digest of what it computes for the engine.
    pub host_cpu: String,
    /// The machine model and its version: devices, addresses, interrupts.
    pub machine_model: String,
    /// Guest memory, in bytes.
    pub memory_bytes: u64,
    /// BLAKE3 of the guest image(s).
    pub image_digest: [u8; 32],
    /// The guest's command line.
    pub command_line: String,
    /// Name of the disk, as the disk server knows it.
    pub disk: String,
    /// Size of the disk, in bytes.
    pub disk_bytes: u64,
    /// MAC address of the guest's network card.
    pub mac: [u8; 6],
    /// What becomes of a guest that resets its machine.
    pub on_reset: OnReset,
    /// Unix time at power-on, nanoseconds. The primary chooses it, the backup adopts it: not compared.
    pub wall_base_ns: u64,
}

/// A field of `PairConfig` that must be equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Field {
    /// `PairConfig::vm`
    Vm,
    /// `PairConfig::engine`
    Engine,
    /// `PairConfig::clock`
    Clock,
    /// `PairConfig::cpu_model`
    CpuModel,
    /// `PairConfig::host_cpu`
    HostCpu,
    /// `PairConfig::machine_model`
    MachineModel,
    /// `PairConfig::memory_bytes`
    Memory,
    /// `PairConfig::image_digest`
    Image,
    /// `PairConfig::command_line`
    CommandLine,
    /// `PairConfig::disk`
    Disk,
    /// `PairConfig::disk_bytes`
    DiskSize,
    /// `PairConfig::mac`
    Mac,
    /// `PairConfig::on_reset`
    OnReset,
}

impl Field {
    /// The field, for people.
    pub fn name(self) -> &'static str {
        match self {
            Field::Vm => "virtual machine",
            Field::Engine => "engine",
            Field::Clock => "position clock",
            Field::CpuModel => "CPU model",
            Field::HostCpu => "host CPU",
            Field::MachineModel => "machine model",
            Field::Memory => "memory size",
            Field::Image => "guest image",
            Field::CommandLine => "guest command line",
            Field::Disk => "disk",
            Field::DiskSize => "disk size",
            Field::Mac => "MAC address",
            Field::OnReset => "what a reset does",
        }
    }

    /// What to do about a difference.
    pub fn advice(self) -> &'static str {
        match self {
            Field::Vm => "check which backup this primary was pointed at",
            Field::Engine => "start both with the same engine",
            Field::Clock => "start both with an engine whose clock both hosts have",
            Field::CpuModel => "start both with the same CPU model",
            Field::HostCpu => "use two hosts with the same CPU model, stepping, microcode and features",
            Field::MachineModel => "run the same lockstep on both",
            Field::Memory => "start both with the same memory size",
            Field::Image => "give both the same guest image",
            Field::CommandLine => "give both the same guest command line",
            Field::Disk => "give both the same disk (--disk)",
            Field::DiskSize => "start both with the same disk size",
            Field::Mac => "give both the same MAC address",
            Field::OnReset => "give both the same --on-reset and --reset-limit",
        }
    }
}

/// A difference between two configurations that forbids them to be a pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mismatch {
    /// What differs.
    pub field: Field,
    /// The value here, for people.
    pub ours: String,
    /// The peer's value, for people.
    pub theirs: String,
}

impl Mismatch {
    /// The same difference as the other end sees it.
    pub fn flipped(self) -> Self {
        Self { field: self.field, ours: self.theirs, theirs: self.ours }
    }
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Mismatch { field, ours, theirs } = self;
        write!(f, "{}: {ours} here, {theirs} there: {}", field.name(), field.advice())
    }
}

impl PairConfig {
    /// The first difference that forbids `self` (here) and `other` (there) to be a pair.
    pub fn mismatch(&self, other: &PairConfig) -> Option<Mismatch> {
        let pairs = self.comparable().into_iter().zip(other.comparable());
        let ((field, ours), (_, theirs)) =
            pairs.into_iter().find(|((_, ours), (_, theirs))| ours != theirs)?;
        let same = ours.chars().zip(theirs.chars()).take_while(|(ours, theirs)| ours == theirs).count();
        Some(Mismatch { field, ours: excerpt(&ours, same), theirs: excerpt(&theirs, same) })
    }

    /// What is compared, in the order in which a difference is told: the likeliest cause first. Equal texts
    /// mean equal values.
    fn comparable(&self) -> [(Field, String); 13] {
        let hex = |bytes: &[u8], gap: &str| {
            bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(gap)
        };
        [
            (Field::Vm, quoted(&self.vm)),
            (Field::MachineModel, quoted(&self.machine_model)),
            (Field::Engine, quoted(&self.engine)),
            (Field::Clock, quoted(&self.clock)),
            (Field::CpuModel, quoted(&self.cpu_model)),
            (Field::Memory, size(self.memory_bytes)),
            (Field::Disk, quoted(&self.disk)),
            (Field::DiskSize, size(self.disk_bytes)),
            (Field::Image, hex(&self.image_digest, "")),
            (Field::CommandLine, quoted(&self.command_line)),
            (Field::Mac, hex(&self.mac, ":")),
            (Field::OnReset, self.on_reset.to_string()),
            (Field::HostCpu, quoted(&self.host_cpu)),
        ]
    }
}

/// Text from a peer: quoted and escaped, so that it cannot steer a terminal or hide its end.
fn quoted(text: &str) -> String {
    format!("{text:?}")
}

/// A value that is short enough for a message and for people: where it begins to differ, after `same`
/// characters.
fn excerpt(text: &str, same: usize) -> String {
    const MOST: usize = 400;
    const BEFORE: usize = 40;
    if text.chars().count() <= MOST {
        return text.to_owned();
    }
    let start = if same < MOST / 2 { 0 } else { same - BEFORE };
    let part: String = text.chars().skip(start).take(MOST).collect();
    let (before, rest) = (if start > 0 { "…" } else { "" }, text.chars().count() - start > MOST);
    format!("{before}{part}{}", if rest { "…" } else { "" })
}

fn size(bytes: u64) -> String {
    const UNITS: [(u32, &str); 3] = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fits = |&(shift, _): &(u32, &str)| bytes != 0 && bytes.is_multiple_of(1 << shift);
    match UNITS.into_iter().find(|unit| fits(unit)) {
        Some((shift, unit)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
#[path = "pair_tests.rs"]
mod tests;
