//! The systems that are compared, each a process whose lines are timed as they come.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use guest_images::cache::Guest;

use super::images::Images;
use crate::cli::bench::QEMU;
use crate::cli::bench::said::{Line, Said, listen};
use crate::cluster::{Cluster, ClusterOptions, DIE_WITH_PARENT};
use crate::recording::Recording;

/// The guests whose boots are measured.
pub const GUESTS: [&str; 2] = ["cpubench", "busybox"];
/// First words of user space in them.
const ALIVE: [&str; 2] = ["cpubench begins", "user-space"];
/// Longest silence of a system: a whole kernel on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);
/// The kernels, in the order in which they are reported.
const ORDER: [&str; 9] = [
    "integer",
    "calls",
    "random-reads",
    "dependent-reads",
    "sequential-sum",
    "sse2-double",
    "scalar-double",
    "sha256",
    "lseek",
];

/// What runs the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum System {
    /// This host's processor, as a process.
    Native,
    /// The engine `soft`, time virtual.
    Soft,
    /// QEMU, nothing recorded.
    Tcg,
    /// QEMU, counting instructions and recording.
    Record,
}

impl System {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            System::Native => "native",
            System::Soft => "soft",
            System::Tcg => "QEMU TCG",
            System::Record => "QEMU record",
        }
    }
}

/// What the kernels are told.
#[derive(Debug, Clone)]
pub struct Work {
    /// Divides the work.
    pub scale: u32,
    /// One kernel alone.
    pub only: Option<String>,
}

impl Work {
    fn words(&self) -> Vec<(&'static str, String)> {
        let scale = ("scale", self.scale.to_string());
        std::iter::once(scale).chain(self.only.clone().map(|only| ("only", only))).collect()
    }
}

/// One run of one kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// CPU time of the system's process. A kernel never waits, so that on a quiet host it is also the time.
    pub seconds: f64,
    /// By the host's clock.
    pub wall_s: f64,
    /// By the guest's clock.
    pub guest_ns: u64,
    /// What it computed.
    pub checksum: String,
}

/// One run of all kernels.
#[derive(Debug)]
pub struct Run {
    /// In the order in which they ran.
    pub kernels: Vec<Kernel>,
    /// From the start of the process to the first words of user space: by the clock, and CPU time.
    pub boot_s: (f64, f64),
}

/// The kernels that are known, in their order; then others.
pub fn order<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let place = |name: &str| ORDER.iter().position(|known| *known == name).unwrap_or(ORDER.len());
    let mut names: Vec<String> = names.cloned().collect();
    names.sort_by_key(|name| place(name));
    names
}

/// The first line of `qemu-system-x86_64 --version`; none where it is missing.
pub fn qemu_version() -> Option<String> {
    let output = Command::new(QEMU).arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.to_string())
}

/// Everything that the systems need.
pub struct Systems<'a> {
    images: &'a Images,
    work: Work,
    program: std::path::PathBuf,
    services: Cluster,
    /// A machine has a name of its own: nobody asks whether another one still lives.
    machines: std::cell::Cell<u32>,
}

impl<'a> Systems<'a> {
    /// Starts the disk server and the network that a machine has.
    pub fn new(images: &'a Images, work: Work) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        let services =
            Cluster::start_services(ClusterOptions::new(&program, images.directory.path()), |_| ())?;
        Ok(Self { images, work, program, services, machines: 0.into() })
    }

    /// Runs the kernels.
    pub fn kernels(&self, system: System) -> anyhow::Result<Run> {
        let words = self.work.words();
        let command = match system {
            System::Native => {
                let mut command = Command::new(&self.images.program);
                command.env_clear().envs(words);
                command
            }
            _ => {
                let words: String = words.iter().map(|(name, value)| format!(" {name}={value}")).collect();
                self.machine(system, &self.images.cpubench, &words)?
            }
        };
        kernels_of(&listen(command, system.name(), PATIENCE)?)
    }

    /// Boots the second guest; seconds to its first own words: by the clock, and CPU time.
    pub fn boot(&self, system: System) -> anyhow::Result<(f64, f64)> {
        let words = format!(" run=\"echo {}\"", ALIVE[1]);
        let said = listen(self.machine(system, self.busybox()?, &words)?, system.name(), PATIENCE)?;
        said.first(ALIVE[1])
    }

    fn busybox(&self) -> anyhow::Result<&Guest> {
        self.images.busybox.as_ref().context("no boots were asked for")
    }

    /// Instructions that the two guests execute on `soft` from power-on until they have switched themselves
    /// off, the kernels left out.
    pub fn boot_instructions(&self) -> anyhow::Result<[u64; 2]> {
        let mut counts = [0; 2];
        let guests = [(&self.images.cpubench, " only=none"), (self.busybox()?, " run=:")];
        for (number, (guest, words)) in guests.into_iter().enumerate() {
            let path = self.images.directory.path().join(format!("{}.lkr", GUESTS[number]));
            let mut command = self.machine(System::Soft, guest, words)?;
            command.arg("--record").arg(&path).args(["--checkpoint-every", "0"]);
            listen(command, System::Soft.name(), PATIENCE)?;
            counts[number] = Recording::open(&path)?.end().count;
        }
        Ok(counts)
    }

    fn machine(&self, system: System, guest: &Guest, words: &str) -> anyhow::Result<Command> {
        let line = format!("{}{words}", guest.manifest.command_line);
        Ok(match system {
            System::Native | System::Soft => self.soft(guest, &line),
            System::Tcg => qemu(guest, &line, None)?,
            System::Record => qemu(guest, &line, Some(&self.images.directory.path().join("qemu.rr")))?,
        })
    }

    fn soft(&self, guest: &Guest, line: &str) -> Command {
        self.machines.set(self.machines.get() + 1);
        let name = format!("bench-{}", self.machines.get());
        let mut command = Command::new(&self.program);
        command.args(["run", "--engine", "soft", "--clock", "virtual", "--console-input", "none"]);
        command.args(["--guest", &guest.manifest.name, "--cmdline", line, "--vm", &name, "--disk", &name]);
        command.args(["--disk-size", "1", "--disk-server", self.services.disk_address()]);
        command.args(["--net", &self.services.network()]);
        if let Some(cache) = &self.images.cache {
            command.arg("--cache").arg(cache);
        }
        command.env(DIE_WITH_PARENT, "1");
        command
    }
}

/// QEMU with the machine that is nearest to ours: no APIC, ACPI for the power switch, one serial port.
fn qemu(guest: &Guest, line: &str, record: Option<&std::path::Path>) -> anyhow::Result<Command> {
    let mut command = Command::new(QEMU);
    command.args(["-machine", "pc", "-cpu", "qemu64,-apic", "-accel", "tcg,thread=single", "-smp", "1"]);
    command.args(["-m", &guest.manifest.memory_mib.to_string()]);
    command.args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]);
    command.arg("-kernel").arg(guest.path(&guest.manifest.kernel));
    let initrd = guest.manifest.initrd.as_ref().context("the guest has no initramfs")?;
    command.arg("-initrd").arg(guest.path(initrd)).args(["-append", line]);
    if let Some(file) = record {
        command.arg("-icount").arg(format!("shift=3,rr=record,rrfile={}", file.display()));
    }
    Ok(command)
}

/// Reads what `cpubench` said.
fn kernels_of(said: &Said) -> anyhow::Result<Run> {
    let mut kernels = Vec::new();
    let mut begun: Option<(&str, &Line)> = None;
    for line in &said.lines {
        let words: Vec<&str> = line.text.split_whitespace().collect();
        match words[..] {
            ["cpubench", name, "begins"] => begun = Some((name, line)),
            ["cpubench", name, ns, checksum] => {
                let Some((_, start)) = begun.take_if(|(begun, _)| *begun == name) else {
                    bail!("{} ended a kernel that had not begun: {:?}", said.name, line.text);
                };
                let guest_ns = ns.parse().with_context(|| format!("no time in {:?}", line.text))?;
                kernels.push(Kernel {
                    name: name.into(),
                    seconds: line.cpu_ns.saturating_sub(start.cpu_ns) as f64 / 1e9,
                    wall_s: (line.at_ns - start.at_ns) as f64 / 1e9,
                    guest_ns,
                    checksum: checksum.into(),
                });
            }
            _ => {}
        }
    }
    let ended = said.lines.iter().any(|line| line.text == "cpubench ends");
    ensure!(ended, "{} did not come to the end:\n{}", said.name, said.tail());
    ensure!(!kernels.is_empty(), "no kernel of that name: there are {}", ORDER.join(", "));
    Ok(Run { kernels, boot_s: said.first(ALIVE[0])? })
}
