//! The systems that are compared, each a process whose lines are timed as they come.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use guest_images::cache::Guest;

use super::images::Images;
use crate::cli::bench::{QEMU, Running, cpu_ns};
use crate::cluster::{Cluster, ClusterOptions, DIE_WITH_PARENT};
use crate::io::clock::HostClock;
use crate::recording::Recording;

/// The guests whose boots are measured.
pub const GUESTS: [&str; 2] = ["cpubench", "busybox"];
/// First words of user space in them.
const ALIVE: [&str; 2] = ["cpubench begins", "user-space"];
/// Longest silence of a system: a whole kernel on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);
/// Most bytes of a line, and most lines: no guest says more here.
const LINE_BYTES: usize = 4096;
const LINES: usize = 1000;
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
    /// From the start of the process to the first words of user space.
    pub boot_s: f64,
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
        kernels_of(&listen(command, system)?)
    }

    /// Boots the second guest; seconds to its first own words.
    pub fn boot(&self, system: System) -> anyhow::Result<f64> {
        let said =
            listen(self.machine(system, self.busybox()?, &format!(" run=\"echo {}\"", ALIVE[1]))?, system)?;
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
            listen(command, System::Soft)?;
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

/// What a process said, and when.
struct Said {
    system: System,
    started_ns: u64,
    lines: Vec<Line>,
}

/// A line, and when its end came.
struct Line {
    /// By the host's clock.
    at_ns: u64,
    /// CPU time that the process had used.
    cpu_ns: u64,
    text: String,
}

impl Said {
    /// Seconds from the start to a line.
    fn first(&self, words: &str) -> anyhow::Result<f64> {
        let found = self.lines.iter().find(|line| line.text.starts_with(words));
        let line = found
            .with_context(|| format!("{} never said {words:?}:\n{}", self.system.name(), self.tail()))?;
        Ok((line.at_ns - self.started_ns) as f64 / 1e9)
    }

    fn tail(&self) -> String {
        let lines = &self.lines[self.lines.len().saturating_sub(20)..];
        lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>().join("\n")
    }
}

/// Runs a process to its end.
fn listen(mut command: Command, system: System) -> anyhow::Result<Said> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started_ns = HostClock.now_ns();
    let child = command.spawn().with_context(|| format!("cannot start {}", system.name()))?;
    let mut process = Running(child);
    let (sender, lines) = crossbeam_channel::bounded(LINES);
    let stdout = process.0.stdout.take().context("its output is piped")?;
    let pid = process.0.id();
    read_lines(stdout, pid, sender)?;
    let (complaint, complaints) = crossbeam_channel::bounded(LINES);
    read_lines(process.0.stderr.take().context("its errors are piped")?, pid, complaint)?;
    let mut said = Said { system, started_ns, lines: Vec::new() };
    collect(&lines, &mut said)?;
    let status = process.0.wait()?;
    if !status.success() {
        let mut why = said.tail();
        complaints.iter().for_each(|line| why += &format!("\n{}", line.text));
        bail!("{} ended with {status}:\n{why}", system.name());
    }
    Ok(said)
}

fn collect(lines: &Receiver<Line>, said: &mut Said) -> anyhow::Result<()> {
    loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) => said.lines.push(line),
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                bail!("{} was silent for {} s:\n{}", said.system.name(), PATIENCE.as_secs(), said.tail())
            }
        }
        ensure!(said.lines.len() < LINES, "{} does not stop talking:\n{}", said.system.name(), said.tail());
    }
}

/// Sends each line with the time at which its end came.
fn read_lines(mut stream: impl Read + Send + 'static, pid: u32, into: Sender<Line>) -> anyhow::Result<()> {
    let read = move || {
        let (mut buffer, mut line) = ([0; 4096], Vec::new());
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            let (at_ns, cpu_ns) = (HostClock.now_ns(), cpu_ns(pid));
            for byte in &buffer[..count] {
                if *byte != b'\n' && line.len() < LINE_BYTES {
                    line.push(*byte);
                    continue;
                }
                let text = String::from_utf8_lossy(&line).trim_end().to_string();
                line.clear();
                // Whoever listened has heard enough: what comes is still read, or the process would wait.
                let _ = into.try_send(Line { at_ns, cpu_ns, text });
            }
        }
    };
    std::thread::Builder::new().name("lines".into()).spawn(read)?;
    Ok(())
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
                    bail!("{} ended a kernel that had not begun: {:?}", said.system.name(), line.text);
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
    ensure!(ended, "{} did not come to the end:\n{}", said.system.name(), said.tail());
    ensure!(!kernels.is_empty(), "no kernel of that name: there are {}", ORDER.join(", "));
    Ok(Run { kernels, boot_s: said.first(ALIVE[0])? })
}
