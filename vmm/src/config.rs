//! What a virtual machine is: options as given, checked once, then only read.

use std::io::Read as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use clap::Args;
use devices::{ConsoleInput, DevicesConfig};
use guest_images::cache::Cache;
use logchannel::message::Hello;
use logchannel::pair::{OnReset, PairConfig, Policy};
use replay::ClockPolicy;

use crate::assemble::Surroundings;
use crate::boot::{GuestImage, image};
use crate::cli;
use crate::cli::headings::{DISK, MACHINE, NETWORK, PAIR};
use crate::cli::translator::TranslatorArgs;
use crate::disk_image;
use crate::engine::{EngineError, EngineKind};
use crate::restart::ResetPolicy;
use crate::sizes;

/// Version of the machine model: whatever a guest or a saved state could tell apart changes it.
pub const MACHINE_MODEL: &str = "pc-3";

/// Most that `--reset-limit` takes.
const MAX_RESETS: i64 = 1000;
const MIB: u64 = 1 << 20;
/// Unix time at power-on of every machine whose time is virtual: 2026-01-01 00:00 UTC.
const VIRTUAL_WALL_BASE_NS: u64 = 1_767_225_600 * 1_000_000_000;
/// The guest that is embedded.
pub const MINIKV: &str = "minikv";
/// Most guest memory, MiB.
const MEMORY_MAX_MIB: u64 = 3072;
/// Largest kernel that is read.
const KERNEL_MAX_BYTES: u64 = 512 << 20;
/// Guest memory where nothing says how much, MiB.
const DEFAULT_MEMORY_MIB: u64 = 64;
const NS_PER_MS: u64 = 1_000_000;

/// Name of a disk that has no better one.
const DEFAULT_DISK: &str = "disk0";

/// Options of every command that runs a virtual machine.
#[derive(Debug, Clone, Args)]
pub struct VmArgs {
    /// Name of the virtual machine, as the disk server knows it.
    #[arg(long, help_heading = MACHINE, default_value = "vm0", value_name = "NAME")]
    pub vm: String,
    /// Guest memory: MiB, or with a unit, as 512M or 2G; an even number of MiB. Without it, what the guest is
    /// known to need, or 64.
    #[arg(
        long,
        help_heading = MACHINE,
        value_name = "SIZE",
        value_parser = sizes::mib,
        allow_hyphen_values = true
    )]
    pub memory: Option<u64>,
    /// Guest: minikv, which is embedded, or one that `lockstep guest build` made.
    #[arg(
        long,
        help_heading = MACHINE,
        default_value = MINIKV,
        value_name = "NAME",
        conflicts_with = "kernel"
    )]
    pub guest: String,
    /// Directory of guest images; $XDG_CACHE_HOME/lockstep or ~/.cache/lockstep without it.
    #[arg(long, help_heading = MACHINE, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Kernel of a guest of one's own: a static 64-bit ELF file, or a Linux bzImage.
    #[arg(long, help_heading = MACHINE, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk; replaces that of the guest, if it has one.
    #[arg(long, help_heading = MACHINE, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Command line of the guest; without it, the guest's own.
    #[arg(long, help_heading = MACHINE, value_name = "TEXT")]
    pub cmdline: Option<String>,
    /// Disk server: HOST:PORT, an IPv6 address as [::1]:PORT. Without it, a pair asks 127.0.0.1:7411, and a
    /// machine without a backup keeps its disk itself, where the command has --data.
    #[arg(long, help_heading = DISK, default_value = "", hide_default_value = true, value_name = "ADDRESS",
          value_parser = disk_server_address)]
    pub disk_server: String,
    /// Name of the disk at the disk server; it is created when missing. Without it, the guest's name if that
    /// has a root disk, else disk0.
    #[arg(long, help_heading = DISK, value_name = "NAME")]
    pub disk: Option<String>,
    /// What an empty disk is filled with, a raw image of any length; replaces the guest's root disk, if it
    /// has one.
    #[arg(long, help_heading = DISK, value_name = "FILE")]
    pub disk_image: Option<PathBuf>,
    /// Size of the disk: MiB, or with a unit, as 512M or 20G.
    #[arg(long, help_heading = DISK, default_value_t = 256, value_name = "SIZE", value_parser = sizes::mib,
        allow_hyphen_values = true)]
    pub disk_size: u64,
    /// Network: HOST:PORT, [IPV6]:PORT or unix:PATH of a `lockstep lan`, or tap:NAME, a TAP device that
    /// exists (tap:NAME,create makes one). Without it, no network.
    #[arg(long, help_heading = NETWORK, value_name = "ENDPOINT")]
    pub net: Option<lan::Endpoint>,
    /// MAC address of the guest.
    #[arg(
        long,
        help_heading = NETWORK,
        default_value = "52:4c:4b:00:00:02",
        value_name = "MAC",
        value_parser = parse_mac
    )]
    pub mac: [u8; 6],
    /// Engine: `auto` takes the fastest that is exact for the guest on this host: `kvm` for minikv where KVM
    /// is usable, else `soft`.
    #[arg(
        long,
        help_heading = MACHINE,
        default_value = "auto",
        env = "LOCKSTEP_ENGINE",
        value_parser = EngineKind::CHOICES
    )]
    pub engine: String,
    /// How it executes.
    #[command(flatten)]
    pub translator: TranslatorArgs,
    /// What the guest's time follows: the host's clock, or with `virtual` only its own execution. Then idle
    /// time is skipped, a disk request takes none, and two runs with the same inputs are identical. Of a
    /// pair, the primary's holds.
    #[arg(long, help_heading = MACHINE, default_value = "host", value_parser = ["host", "virtual"])]
    pub clock: String,
    /// Milliseconds between digests of the whole machine; 0 for none. Of a pair, the primary's holds.
    #[arg(long, help_heading = MACHINE, default_value_t = 1000, value_name = "MS")]
    pub digest_ms: u64,
    /// What a reset by the guest does (reboot, panic=, triple fault): start it again where it is, with the
    /// same kernel and disk, or end the machine.
    #[arg(long, help_heading = MACHINE, default_value = "restart", value_parser = ["restart", "stop"])]
    pub on_reset: String,
    /// Most resets within a minute of the guest's time: one more ends the machine with exit code 6. 0 for no
    /// limit.
    #[arg(long, help_heading = MACHINE, default_value_t = 5, value_name = "COUNT",
        value_parser = clap::value_parser!(u32).range(0..=MAX_RESETS))]
    pub reset_limit: u32,
    /// Control socket for `lockstep status`.
    #[arg(long, help_heading = MACHINE, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// File for the guest's console; standard output without it.
    #[arg(long, help_heading = MACHINE, value_name = "FILE")]
    pub console: Option<PathBuf>,
    /// Size in MiB at which the console's file is put aside as FILE.1, in the place of an earlier one; 0 for
    /// never.
    #[arg(long, help_heading = MACHINE, default_value_t = 64, value_name = "MIB",
          value_parser = up_to_a_mebi())]
    pub console_size: u64,
    /// KiB a second that the guest may print, and eight seconds' worth of it at once; what is more is dropped
    /// and counted. 0 for no limit.
    #[arg(long, help_heading = MACHINE, default_value_t = 1024, value_name = "KIB",
          value_parser = up_to_a_mebi())]
    pub console_rate: u64,
    /// Where the guest's console gets its input from: `auto` is the terminal, if this runs in its foreground.
    #[arg(long, help_heading = MACHINE, default_value = "auto", value_parser = ["auto", "stdin", "none"])]
    pub console_input: String,
}

/// Options of a pair. The primary's hold for both halves; a backup says so where its own differ.
#[derive(Debug, Clone, Args)]
pub struct PairArgs {
    /// Milliseconds between heartbeats.
    #[arg(long, help_heading = PAIR, default_value_t = 50, value_name = "MS")]
    pub heartbeat_ms: u64,
    /// Milliseconds without any sign of life after which the peer is given up.
    #[arg(long, help_heading = PAIR, default_value_t = 500, value_name = "MS")]
    pub timeout_ms: u64,
    /// Execution lag in milliseconds above which the primary is slowed.
    #[arg(long, help_heading = PAIR, default_value_t = 50, value_name = "MS")]
    pub lag_target_ms: u64,
}

impl Default for PairArgs {
    fn default() -> Self {
        Self { heartbeat_ms: 50, timeout_ms: 500, lag_target_ms: 50 }
    }
}

/// The protocol's configuration for a process of a pair with this policy.
pub fn protocol(policy: &Policy, claimant: u128) -> ft::Config {
    ft::Config {
        heartbeat_every_ns: policy.heartbeat_ms * NS_PER_MS,
        suspect_after_ns: policy.timeout_ms * NS_PER_MS,
        ack_timeout_ns: (4 * policy.timeout_ms).max(2_000) * NS_PER_MS,
        read_timeout_ns: (2 * policy.timeout_ms).max(1_000) * NS_PER_MS,
        disk_timeout_ns: (2 * policy.timeout_ms).max(1_000) * NS_PER_MS,
        lag_target_ns: policy.lag_target_ms * NS_PER_MS,
        ..ft::Config::new(claimant)
    }
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// The options.
    pub args: VmArgs,
    /// The engine.
    pub engine: EngineKind,
    /// How host time becomes virtual time.
    pub clock: ClockPolicy,
    /// The pair's times and clock; those of a pair that this machine may have one day.
    pub policy: Policy,
    /// What the machine is run with besides.
    pub around: Surroundings,
    /// The kernel, or the whole guest where it has no other files. Shared, since copies of this are made when
    /// a pair has formed, and from then on silence means death.
    pub image: Arc<Vec<u8>>,
    /// The initial RAM disk.
    pub initrd: Option<Arc<Vec<u8>>>,
    /// The guest's command line.
    pub command_line: String,
    /// Guest memory, MiB.
    pub memory_mib: u64,
    /// Name of the disk.
    pub disk: String,
    /// What an empty disk is filled with.
    pub disk_image: Option<PathBuf>,
    /// Unix time at power-on, nanoseconds.
    pub wall_base_ns: u64,
    /// Backups of this machine read the shared disk themselves.
    pub backup_reads: bool,
}

impl VmConfig {
    /// Checks the options and reads the image.
    pub fn new(args: &VmArgs, pair: Option<&PairArgs>, wall_base_ns: u64) -> anyhow::Result<Self> {
        let policy = policy(args, pair.unwrap_or(&PairArgs::default()));
        policy.check()?;
        for (option, name) in [("--vm", Some(&args.vm)), ("--disk", args.disk.as_ref())] {
            ensure!(
                name.is_none_or(|name| disk_server::protocol::is_name(name)),
                "{option} {:?}: 1 to 64 of A-Z a-z 0-9 _ . - and no dot in front",
                name.map_or("", String::as_str)
            );
        }
        ensure!(
            (1..=1 << 20).contains(&args.disk_size),
            "--disk-size of {} MiB: from 1M to 1T",
            args.disk_size
        );
        let mut config = Self { policy, ..Self::guest(args, wall_base_ns)? };
        if pair.is_some() && args.disk_server.is_empty() {
            config.args.disk_server = disk_server::DEFAULT_LISTEN.into();
        }
        if let Some(path) = &args.initrd {
            config.initrd = Some(read("--initrd", path, MEMORY_MAX_MIB * MIB)?.into());
        }
        if let Some(line) = &args.cmdline {
            config.command_line.clone_from(line);
        }
        if let Some(image) = &args.disk_image {
            disk_image::check(image, args.disk_size * MIB)?;
            config.disk_image = Some(image.clone());
        }
        if let Some(disk) = &args.disk {
            config.disk.clone_from(disk);
        }
        config.memory_mib = args.memory.unwrap_or(config.memory_mib);
        ensure!(
            (4..=MEMORY_MAX_MIB).contains(&config.memory_mib) && config.memory_mib.is_multiple_of(2),
            "--memory of {} MiB: an even number of MiB, from 4M to 3G",
            config.memory_mib
        );
        Ok(config)
    }

    /// The guest that the options name, as it is by itself.
    fn guest(args: &VmArgs, wall_base_ns: u64) -> anyhow::Result<Self> {
        let engine = EngineKind::choose(&args.engine, args.guest == MINIKV && args.kernel.is_none());
        let (clock, wall_base_ns) = match args.clock.as_str() {
            "virtual" => (ClockPolicy::Virtual, VIRTUAL_WALL_BASE_NS),
            _ => (ClockPolicy::default(), wall_base_ns),
        };
        let mut config = Self {
            args: args.clone(),
            engine,
            clock,
            policy: Policy::default(),
            around: Surroundings { options: args.translator.options(), ..Surroundings::default() },
            image: Arc::default(),
            initrd: None,
            command_line: guest_images::MINIKV_COMMAND_LINE.into(),
            memory_mib: DEFAULT_MEMORY_MIB,
            disk: DEFAULT_DISK.into(),
            disk_image: None,
            wall_base_ns,
            backup_reads: false,
        };
        if let Some(path) = &args.kernel {
            config.image = read("--kernel", path, KERNEL_MAX_BYTES)?.into();
            image::check(&config.image).with_context(|| format!("--kernel {}", path.display()))?;
        } else if args.guest == MINIKV {
            config.image = Arc::new(guest_images::MINIKV.to_vec());
        } else {
            let cache = Cache::new(args.cache.as_deref())?;
            let guest = cache.find(&args.guest).map_err(|error| cli::guest::not_found(&cache, error))?;
            if guest.is_outdated() {
                let name = &guest.manifest.name;
                eprintln!(
                    "lockstep: another version of lockstep made this image of {name}; \
                     for a new one: lockstep guest build {name}"
                );
            }
            let manifest = &guest.manifest;
            config.image = Arc::new(guest.read(&manifest.kernel)?);
            let initrd = manifest.initrd.as_ref().map(|file| guest.read(file)).transpose()?;
            config.initrd = initrd.map(Arc::new);
            config.command_line.clone_from(&manifest.command_line);
            config.memory_mib = manifest.memory_mib;
            if let Some(disk) = &manifest.disk {
                config.disk.clone_from(&manifest.name);
                config.disk_image = Some(guest.path(disk));
            }
        }
        config.check_engine()?;
        Ok(config)
    }

    /// Makes this the configuration of a backup of the primary that says `hello`, whose policy is sound.
    pub fn adopt(&mut self, hello: &Hello) {
        self.wall_base_ns = hello.config.wall_base_ns;
        self.backup_reads = hello.backup_reads;
        self.policy = hello.policy;
        self.clock = if hello.policy.virtual_clock { ClockPolicy::Virtual } else { ClockPolicy::default() };
    }

    /// Refuses an engine that the guest is known not to run on, before anything is started.
    fn check_engine(&self) -> anyhow::Result<()> {
        let linux =
            || self.args.kernel.is_none() && self.args.guest != MINIKV || image::is_linux(&self.image);
        if self.engine == EngineKind::Kvm && linux() && cli::doctor::emulates_cpl0() {
            let missing = "CPL0 at the host's speed: it emulates guest code there, and Linux does not run \
                           on it; take --engine soft or auto (see lockstep doctor)";
            return Err(EngineError::Missing(missing)).context("--engine kvm");
        }
        Ok(())
    }

    /// Guest memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_mib * MIB
    }

    /// Disk size in bytes.
    pub fn disk_bytes(&self) -> u64 {
        self.args.disk_size * MIB
    }

    /// Time between digests, nanoseconds.
    pub fn digest_every_ns(&self) -> u64 {
        self.policy.digest_ms * NS_PER_MS
    }

    /// The devices'.
    pub fn devices(&self) -> DevicesConfig {
        DevicesConfig {
            mac: self.args.mac,
            disk_bytes: self.disk_bytes(),
            wall_base_ns: self.wall_base_ns,
            memory_bytes: self.memory_bytes(),
            console_input: self.console_device(),
        }
    }

    /// Which console takes input: the one that a Linux makes its own, the last `console=` of its command
    /// line.
    fn console_device(&self) -> ConsoleInput {
        let mut words = self.command_line.split_whitespace().rev();
        match words.find_map(|word| word.strip_prefix("console=")) {
            Some(device) if device.starts_with("hvc") => ConsoleInput::Virtio,
            _ => ConsoleInput::Serial,
        }
    }

    /// What both halves of a pair must agree on.
    pub fn pair(&self) -> PairConfig {
        PairConfig {
            vm: self.args.vm.clone(),
            engine: self.engine.name().into(),
            clock: self.engine.clock().name().into(),
            cpu_model: self.engine.cpu_model().into(),
            host_cpu: self.engine.host_cpu(),
            machine_model: MACHINE_MODEL.into(),
            memory_bytes: self.memory_bytes(),
            image_digest: self.guest_image().digest(),
            command_line: self.command_line.clone(),
            disk: self.disk.clone(),
            disk_bytes: self.disk_bytes(),
            mac: self.args.mac,
            on_reset: self.on_reset(),
            wall_base_ns: self.wall_base_ns,
        }
    }

    /// What becomes of a guest that resets its machine.
    fn on_reset(&self) -> OnReset {
        match self.args.on_reset.as_str() {
            "stop" => OnReset::Stop,
            _ => OnReset::Restart { limit: self.args.reset_limit },
        }
    }

    /// The same, with what it is started again with.
    pub fn reset_policy(&self) -> ResetPolicy {
        ResetPolicy::new(self.on_reset(), Some(self.guest_image()))
    }

    /// What the guest is started with.
    pub fn guest_image(&self) -> GuestImage {
        let command_line = self.command_line.clone();
        GuestImage { kernel: self.image.clone(), initrd: self.initrd.clone(), command_line }
    }

    /// The guest's IPv4 address, as its command line says (`ip=ADDRESS/PREFIX`): announced when going live.
    pub fn guest_ip(&self) -> Option<Ipv4Addr> {
        let value = self.command_line.split_whitespace().find_map(|word| word.strip_prefix("ip="))?;
        value.split('/').next()?.parse().ok()
    }
}

/// The policy that these options make.
fn policy(args: &VmArgs, pair: &PairArgs) -> Policy {
    Policy {
        heartbeat_ms: pair.heartbeat_ms,
        timeout_ms: pair.timeout_ms,
        lag_target_ms: pair.lag_target_ms,
        digest_ms: args.digest_ms,
        virtual_clock: args.clock == "virtual",
    }
}

/// Reads a file that a guest is started with, of at most `max` bytes; not a device, which may have no end.
fn read(option: &str, path: &Path, max: u64) -> anyhow::Result<Vec<u8>> {
    let cannot_read = || format!("cannot read {option} {}", path.display());
    let kind = std::fs::metadata(path).with_context(cannot_read)?.file_type();
    ensure!(!kind.is_dir(), "{option} {} is a directory, not a file", path.display());
    ensure!(kind.is_file() || kind.is_fifo(), "{option} {} is a device, not a file", path.display());
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(max + 1).read_to_end(&mut bytes));
    read.with_context(cannot_read)?;
    ensure!(bytes.len() as u64 <= max, "{option} {} is larger than {} MiB", path.display(), max / MIB);
    Ok(bytes)
}

/// An address, or nothing.
fn disk_server_address(text: &str) -> Result<String, logchannel::address::AddressError> {
    if text.is_empty() { Ok(String::new()) } else { logchannel::address::peer(text) }
}

/// A number up to 2²⁰: units of it fit 64 bits.
fn up_to_a_mebi() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(..=1 << 20)
}

fn parse_mac(text: &str) -> anyhow::Result<[u8; 6]> {
    let parts: Vec<&str> = text.split(':').collect();
    let mut mac = [0; 6];
    ensure!(parts.len() == 6, "six hexadecimal bytes with colons, as 52:4c:4b:00:00:02");
    for (byte, part) in mac.iter_mut().zip(parts) {
        *byte = u8::from_str_radix(part, 16).with_context(|| format!("{part:?} is no hexadecimal byte"))?;
    }
    if mac[0] & 1 != 0 {
        bail!("{text} is a group address: the lowest bit of the first byte must be 0");
    }
    Ok(mac)
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
