//! What serves: redis on this host, in our guest without and with a log and a backup, and in QEMU's guest.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use guest_images::cache::{Cache, Guest};
use serde::Serialize;
use tempfile::TempDir;

use crate::cli::bench::{Bench, QEMU, Running, cpu_ns, free_port, log_bytes, say};
use crate::cluster::{ClusterOptions, Part, ping};
use crate::io::clock::HostClock;

/// Longest wait for a server's first answer: a boot on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// Redis as a process of this host, configured as in the guest.
    Native,
    /// The guest on the engine `soft`.
    Unreplicated,
    /// The same, its log kept in a file.
    Recorded,
    /// The same, as a pair.
    Replicated,
    /// QEMU's software CPU.
    QemuTcg,
    /// The same, counting instructions.
    QemuIcount,
    /// The same, recording.
    QemuRecord,
}

impl System {
    /// Without QEMU.
    pub const OURS: [System; 4] =
        [System::Native, System::Unreplicated, System::Recorded, System::Replicated];
    /// QEMU's three.
    pub const QEMUS: [System; 3] = [System::QemuTcg, System::QemuIcount, System::QemuRecord];

    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            System::Native => "native",
            System::Unreplicated => "unreplicated",
            System::Recorded => "recorded",
            System::Replicated => "replicated",
            System::QemuTcg => "QEMU TCG",
            System::QemuIcount => "QEMU icount",
            System::QemuRecord => "QEMU record",
        }
    }

    /// Whether it is our guest.
    pub fn is_ours(self) -> bool {
        matches!(self, System::Unreplicated | System::Recorded | System::Replicated)
    }

    /// What it needs of this host, if that is missing.
    pub fn missing(self) -> Option<&'static str> {
        let (program, why) = match self {
            System::Native => {
                ("redis-server", "there is no redis-server here (Debian's package redis-server)")
            }
            System::QemuTcg | System::QemuIcount | System::QemuRecord => {
                (QEMU, "there is no qemu-system-x86_64 here (Debian's package qemu-system-x86)")
            }
            _ => return None,
        };
        Command::new(program).arg("--version").output().is_err().then_some(why)
    }
}

/// A server that answers.
pub struct Server {
    /// Port of the host that reaches it.
    pub port: u16,
    /// From the start of its processes to the first answer, seconds.
    pub boot_s: f64,
    kept: Kept,
}

enum Kept {
    Cluster { bench: Box<Bench>, recording: bool },
    Process { process: Running, directory: TempDir },
}

/// Name of the file that a recording is.
const RECORDING: &str = "recording";

impl Server {
    /// Starts one and waits until it answers.
    pub fn start(system: System, guest: &str) -> anyhow::Result<Self> {
        Self::start_program(&std::env::current_exe()?, system, guest)
    }

    /// The same of another `lockstep`, if the system is ours.
    pub fn start_program(program: &Path, system: System, guest: &str) -> anyhow::Result<Self> {
        let started_ns = HostClock.now_ns();
        let (port, kept) = match system.is_ours() {
            true => ours(program, system, guest)?,
            false => theirs(system, guest)?,
        };
        let boot_s = (HostClock.now_ns() - started_ns) as f64 / 1e9;
        Ok(Self { port, boot_s, kept })
    }

    /// CPU time that all its processes have used, nanoseconds; a load's own is not in it.
    pub fn cpu_ns(&self) -> u64 {
        match &self.kept {
            Kept::Cluster { bench, .. } => {
                let cluster = &bench.cluster;
                cluster.parts().into_iter().filter_map(|part| cluster.pid(part)).map(cpu_ns).sum()
            }
            Kept::Process { process, .. } => cpu_ns(process.0.id()),
        }
    }

    /// Bytes of its log so far, if it keeps one.
    pub fn log_bytes(&self) -> anyhow::Result<Option<u64>> {
        let of_file = |directory: &Path| {
            let data = std::fs::metadata(directory.join(RECORDING));
            data.ok().map(|data| data.len())
        };
        Ok(match &self.kept {
            Kept::Cluster { bench, recording: true } => of_file(bench.cluster.directory()),
            Kept::Cluster { bench, .. } if bench.cluster.pid(Part::Backup).is_some() => {
                Some(log_bytes(&bench.cluster)?)
            }
            Kept::Cluster { .. } => None,
            Kept::Process { directory, .. } => of_file(directory.path()),
        })
    }
}

fn ours(program: &Path, system: System, guest: &str) -> anyhow::Result<(u16, Kept)> {
    let recording = system == System::Recorded;
    let bench = Bench::start(|options: &mut ClusterOptions| {
        options.program = program.into();
        options.replicated = system == System::Replicated;
        options.vm_options = ["--guest", guest, "--engine", "soft"].map(String::from).to_vec();
        options.patience = PATIENCE;
        if recording {
            let file = options.directory.join(RECORDING).display().to_string();
            options.vm_options.extend(["--record", &file, "--checkpoint-every", "0"].map(String::from));
        }
    })?;
    Ok((bench.cluster.port(), Kept::Cluster { bench: Box::new(bench), recording }))
}

fn theirs(system: System, guest: &str) -> anyhow::Result<(u16, Kept)> {
    let directory = tempfile::Builder::new().prefix("lockstep-bench-").tempdir()?;
    let port = free_port()?;
    let mut command = match system {
        System::Native => native(directory.path(), port),
        _ => qemu(system, &Cache::new(None)?.find(guest)?, directory.path(), port)?,
    };
    let output = directory.path().join("output");
    let log = host::files::create(&output)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child = command.spawn().with_context(|| format!("cannot start {}", system.name()))?;
    let mut process = Running(child);
    answers(system, &mut process.0, port, &output)?;
    Ok((port, Kept::Process { process, directory }))
}

/// As in guest-images/linux/redis.conf.
fn native(directory: &Path, port: u16) -> Command {
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
    command.args(["--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0"]);
    command.arg("--dir").arg(directory);
    command
}

/// QEMU with the machine that is nearest to ours: no APIC, one serial port, virtio (on PCI).
fn qemu(system: System, guest: &Guest, directory: &Path, port: u16) -> anyhow::Result<Command> {
    let disk = directory.join("disk");
    let image = guest.path(guest.manifest.disk.as_ref().context("the guest has no disk")?);
    std::io::copy(&mut std::fs::File::open(image)?, &mut host::files::create(&disk)?)?;
    let mut permissions = std::fs::metadata(&disk)?.permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
    std::fs::set_permissions(&disk, permissions)?;
    let initrd = guest.manifest.initrd.as_ref().context("the guest has no initramfs")?;
    let mut command = Command::new(QEMU);
    command.args(["-machine", "pc", "-cpu", "qemu64,-apic"]);
    command.args(["-accel", "tcg,thread=single", "-smp", "1", "-m", &guest.manifest.memory_mib.to_string()]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]);
    command.arg("-kernel").arg(guest.path(&guest.manifest.kernel));
    command.arg("-initrd").arg(guest.path(initrd)).args(["-append", &guest.manifest.command_line]);
    command.arg("-netdev").arg(format!(
        "user,id=net,net=10.77.0.0/24,host=10.77.0.1,hostfwd=tcp:127.0.0.1:{port}-10.77.0.2:6379"
    ));
    command.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
    command.args(["-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci,rng=rng"]);
    command.arg("-drive").arg(format!("file={},if=none,id=image,format=raw", disk.display()));
    let mut drive = "image";
    match system {
        System::QemuIcount => {
            command.args(["-icount", "shift=3"]);
        }
        System::QemuRecord => {
            let file = directory.join(RECORDING);
            command.arg("-icount").arg(format!("shift=3,rr=record,rrfile={}", file.display()));
            command.args(["-drive", "driver=blkreplay,if=none,image=image,id=replay"]);
            command.args(["-object", "filter-replay,id=net-replay,netdev=net"]);
            drive = "replay";
        }
        _ => {}
    }
    command.arg("-device").arg(format!("virtio-blk-pci,drive={drive}"));
    Ok(command)
}

#[allow(clippy::cast_possible_truncation, reason = "minutes")]
fn answers(system: System, child: &mut Child, port: u16, output: &Path) -> anyhow::Result<()> {
    let end = HostClock.now_ns() + PATIENCE.as_nanos() as u64;
    let said = || std::fs::read_to_string(output).unwrap_or_default();
    while !ping(port).unwrap_or(false) {
        let ended = child.try_wait()?;
        ensure!(ended.is_none(), "{} ended:\n{}", system.name(), said());
        ensure!(HostClock.now_ns() < end, "{} does not answer:\n{}", system.name(), said());
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// Those of `all` that this host can run; what is left out is said.
pub fn available(all: impl Iterator<Item = System>) -> Vec<System> {
    all.filter(|system| {
        let missing = system.missing();
        if let Some(why) = missing {
            say(&format!("SKIPPED {}: {why}", system.name()));
        }
        missing.is_none()
    })
    .collect()
}
