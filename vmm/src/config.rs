//! What a virtual machine is: options as given, checked once, then only read.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use devices::{ConsoleInput, DevicesConfig};
use guest_images::cache::Cache;
use logchannel::pair::{OnReset, PairConfig};
use replay::ClockPolicy;

use crate::boot::GuestImage;
use crate::debug::Debugging;
use crate::engine::EngineKind;
use crate::restart::ResetPolicy;

/// Version of the machine model: whatever a guest or a saved state could tell apart changes it.
pub const MACHINE_MODEL: &str = "pc-3";

/// Most that `--reset-limit` takes.
const MAX_RESETS: i64 = 1000;
const MIB: u64 = 1 << 20;
/// Unix time at power-on of every machine whose time is virtual: 2026-01-01 00:00 UTC.
const VIRTUAL_WALL_BASE_NS: u64 = 1_767_225_600 * 1_000_000_000;
/// The guest that is embedded.
pub const MINIKV: &str = "minikv";
/// Guest memory where nothing says how much, MiB.
const DEFAULT_MEMORY_MIB: u64 = 64;

/// Name of a disk that has no better one.
const DEFAULT_DISK: &str = "disk0";

/// Options of every command that runs a virtual machine.
#[derive(Debug, Clone, Args)]
pub struct VmArgs {
    /// Name of the virtual machine, as the disk server knows it.
    #[arg(long, default_value = "vm0", value_name = "NAME")]
    pub vm: String,
    /// Guest memory in MiB, an even number. Without it, what the guest is known to need, or 64.
    #[arg(long, value_name = "MIB")]
    pub memory: Option<u64>,
    /// Guest: minikv, which is embedded, or one that `lockstep guest build` made.
    #[arg(long, default_value = MINIKV, value_name = "NAME", conflicts_with = "kernel")]
    pub guest: String,
    /// Directory of guest images; $XDG_CACHE_HOME/lockstep or ~/.cache/lockstep without it.
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Kernel of a guest of one's own: a static 64-bit ELF file, or a Linux bzImage.
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk; replaces that of the guest, if it has one.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Command line of the guest; without it, the guest's own.
    #[arg(long, value_name = "TEXT")]
    pub cmdline: Option<String>,
    /// Disk server, host:port.
    #[arg(long, default_value = disk_server::DEFAULT_LISTEN, value_name = "ADDRESS")]
    pub disk_server: String,
    /// Name of the disk at the disk server; it is created when missing. Without it, the guest's name if that
    /// has a root disk, else disk0.
    #[arg(long, value_name = "NAME")]
    pub disk: Option<String>,
    /// What an empty disk is filled with; replaces the guest's root disk, if it has one.
    #[arg(long, value_name = "FILE")]
    pub disk_image: Option<PathBuf>,
    /// Size of the disk in MiB.
    #[arg(long, default_value_t = 256, value_name = "MIB")]
    pub disk_size: u64,
    /// Network: ADDRESS:PORT or unix:PATH of a `lockstep lan`, or tap:NAME. Without it, no network.
    #[arg(long, value_name = "ENDPOINT")]
    pub net: Option<lan::Endpoint>,
    /// MAC address of the guest.
    #[arg(long, default_value = "52:4c:4b:00:00:02", value_name = "MAC", value_parser = parse_mac)]
    pub mac: [u8; 6],
    /// Engine: `auto` takes the fastest that is exact for the guest on this host: `kvm` for minikv where KVM
    /// is usable, else `soft`.
    #[arg(long, default_value = "auto", env = "LOCKSTEP_ENGINE", value_parser = EngineKind::CHOICES)]
    pub engine: String,
    /// What the guest's time follows: the host's clock, or with `virtual` only its own execution. Then idle
    /// time is skipped, a disk request takes none, and two runs with the same inputs are identical.
    #[arg(long, default_value = "host", value_parser = ["host", "virtual"])]
    pub clock: String,
    /// Milliseconds between digests of the whole machine; 0 for none.
    #[arg(long, default_value_t = 1000, value_name = "MS")]
    pub digest_ms: u64,
    /// What a reset by the guest does (reboot, panic=, triple fault): start it again where it is, with the
    /// same kernel and disk, or end the machine.
    #[arg(long, default_value = "restart", value_parser = ["restart", "stop"])]
    pub on_reset: String,
    /// Most resets within a minute of the guest's time: one more ends the machine with exit code 6. 0 for no
    /// limit.
    #[arg(long, default_value_t = 5, value_name = "COUNT",
        value_parser = clap::value_parser!(u32).range(0..=MAX_RESETS))]
    pub reset_limit: u32,
    /// Control socket for `lockstep status`.
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// File for the guest's console; standard output without it.
    #[arg(long, value_name = "FILE")]
    pub console: Option<PathBuf>,
    /// Where the guest's console gets its input from: `auto` is the terminal, if this runs in its foreground.
    #[arg(long, default_value = "auto", value_parser = ["auto", "stdin", "none"])]
    pub console_input: String,
}

/// Options of both halves of a pair.
#[derive(Debug, Clone, Args)]
pub struct PairArgs {
    /// Milliseconds between heartbeats.
    #[arg(long, default_value_t = 50, value_name = "MS")]
    pub heartbeat_ms: u64,
    /// Milliseconds without any sign of life after which the peer is given up.
    #[arg(long, default_value_t = 500, value_name = "MS")]
    pub timeout_ms: u64,
    /// Execution lag in milliseconds above which the primary is slowed.
    #[arg(long, default_value_t = 50, value_name = "MS")]
    pub lag_target_ms: u64,
}

impl Default for PairArgs {
    fn default() -> Self {
        Self { heartbeat_ms: 50, timeout_ms: 500, lag_target_ms: 50 }
    }
}

impl PairArgs {
    /// The protocol's configuration for this process.
    pub fn protocol(&self, claimant: u128) -> ft::Config {
        ft::Config {
            heartbeat_every_ns: self.heartbeat_ms * 1_000_000,
            suspect_after_ns: self.timeout_ms * 1_000_000,
            ack_timeout_ns: (4 * self.timeout_ms).max(2_000) * 1_000_000,
            read_timeout_ns: (2 * self.timeout_ms).max(1_000) * 1_000_000,
            lag_target_ns: self.lag_target_ms * 1_000_000,
            ..ft::Config::new(claimant)
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(self.heartbeat_ms > 0, "--heartbeat-ms must be at least 1");
        ensure!(
            self.timeout_ms >= 2 * self.heartbeat_ms,
            "--timeout-ms {} must be at least twice --heartbeat-ms {}, or one lost datagram is a failover",
            self.timeout_ms,
            self.heartbeat_ms
        );
        Ok(())
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
    /// Who looks into the guest.
    pub debugging: Debugging,
    /// The kernel, or the whole guest where it has no other files. Shared, since copies of this are made when
    /// a pair has formed, and from then on silence means death.
    pub image: Arc<[u8]>,
    /// The initial RAM disk.
    pub initrd: Option<Arc<[u8]>>,
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
        if let Some(pair) = pair {
            pair.check()?;
        }
        ensure!((1..=1 << 20).contains(&args.disk_size), "--disk-size {}: 1 MiB to 1 TiB", args.disk_size);
        let mut config = Self::guest(args, wall_base_ns)?;
        if let Some(path) = &args.initrd {
            config.initrd = Some(read("--initrd", path)?.into());
        }
        if let Some(line) = &args.cmdline {
            config.command_line.clone_from(line);
        }
        if let Some(image) = &args.disk_image {
            config.disk_image = Some(image.clone());
        }
        if let Some(disk) = &args.disk {
            config.disk.clone_from(disk);
        }
        config.memory_mib = args.memory.unwrap_or(config.memory_mib);
        ensure!(
            (4..=3072).contains(&config.memory_mib) && config.memory_mib.is_multiple_of(2),
            "--memory {}: an even number of MiB, 4 to 3072",
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
            debugging: Debugging::default(),
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
            config.image = read("--kernel", path)?.into();
        } else if args.guest == MINIKV {
            config.image = guest_images::MINIKV.into();
        } else {
            let guest = Cache::new(args.cache.as_deref())?.find(&args.guest)?;
            if guest.is_outdated() {
                let name = &guest.manifest.name;
                eprintln!(
                    "lockstep: another version of lockstep made this image of {name}; \
                     for a new one: lockstep guest build {name}"
                );
            }
            let manifest = &guest.manifest;
            config.image = guest.read(&manifest.kernel)?.into();
            config.initrd = manifest.initrd.as_ref().map(|file| guest.read(file)).transpose()?.map(Arc::from);
            config.command_line.clone_from(&manifest.command_line);
            config.memory_mib = manifest.memory_mib;
            if let Some(disk) = &manifest.disk {
                config.disk.clone_from(&manifest.name);
                config.disk_image = Some(guest.path(disk));
            }
        }
        Ok(config)
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
        Duration::from_millis(self.args.digest_ms).as_nanos() as u64
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

fn read(option: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {option} {}", path.display()))
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
