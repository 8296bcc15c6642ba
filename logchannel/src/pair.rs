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

/// Times and the clock of a pair: the primary's hold for both halves, so that both judge silence alike and a
/// copy that goes live runs its guest as the one before did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Milliseconds between heartbeats.
    pub heartbeat_ms: u64,
    /// Milliseconds of silence after which the peer is given up.
    pub timeout_ms: u64,
    /// Execution lag in milliseconds above which the primary is slowed.
    pub lag_target_ms: u64,
    /// Milliseconds between digests of the whole machine; 0 for none.
    pub digest_ms: u64,
    /// The guest's time is virtual: no host time enters.
    pub virtual_clock: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self { heartbeat_ms: 50, timeout_ms: 500, lag_target_ms: 50, digest_ms: 1000, virtual_clock: false }
    }
}

/// A policy that no pair can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A time that is too short or too long.
    #[error("{option} {found}: {least} to {most}")]
    Bounds {
        /// The option that sets it.
        option: &'static str,
        /// Its value, milliseconds.
        found: u64,
        /// The shortest.
        least: u64,
        /// The longest.
        most: u64,
    },
    /// A single lost heartbeat would end the pair.
    #[error(
        "--timeout-ms {timeout} must be at least twice --heartbeat-ms {heartbeat}, or one lost datagram is a \
         failover"
    )]
    Timeout {
        /// `Policy::timeout_ms`
        timeout: u64,
        /// `Policy::heartbeat_ms`
        heartbeat: u64,
    },
}

impl Policy {
    /// Longest time of any option but the digests', in milliseconds: an hour.
    pub const MAX_MS: u64 = 3_600_000;
    /// Longest time between digests, in milliseconds: a day.
    pub const MAX_DIGEST_MS: u64 = 86_400_000;

    /// Whether a pair can go by it: every time within its bounds.
    pub fn check(&self) -> Result<(), PolicyError> {
        let (timeout, heartbeat) = (self.timeout_ms, self.heartbeat_ms);
        for (option, found, least, most) in [
            ("--heartbeat-ms", heartbeat, 1, Self::MAX_MS),
            ("--timeout-ms", timeout, 2, Self::MAX_MS),
            ("--lag-target-ms", self.lag_target_ms, 0, Self::MAX_MS),
            ("--digest-ms", self.digest_ms, 0, Self::MAX_DIGEST_MS),
        ] {
            if !(least..=most).contains(&found) {
                return Err(PolicyError::Bounds { option, found, least, most });
            }
        }
        if timeout < 2 * heartbeat {
            return Err(PolicyError::Timeout { timeout, heartbeat });
        }
        Ok(())
    }

    /// What differs from `here`, for people: the options with these values, and with those of `here`.
    pub fn differences(&self, here: &Policy) -> Vec<String> {
        let clock = |policy: &Policy| if policy.virtual_clock { "virtual" } else { "host" }.to_string();
        let values = |policy: &Policy| {
            [
                ("--heartbeat-ms", policy.heartbeat_ms.to_string()),
                ("--timeout-ms", policy.timeout_ms.to_string()),
                ("--lag-target-ms", policy.lag_target_ms.to_string()),
                ("--digest-ms", policy.digest_ms.to_string()),
                ("--clock", clock(policy)),
            ]
        };
        let pairs = values(self).into_iter().zip(values(here));
        let differing = pairs.filter(|((_, theirs), (_, ours))| theirs != ours);
        differing.map(|((option, theirs), (_, ours))| format!("{option} {theirs} (not {ours})")).collect()
    }
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
