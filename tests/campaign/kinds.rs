//! What a round does to the pair, and the machines that it is done to.

use std::str::FromStr;

use load::random::Random;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// SIGKILL of the primary.
    KillPrimary,
    /// SIGKILL of the backup.
    KillBackup,
    /// SIGKILL of both, then both are started again.
    KillBoth,
    /// SIGSTOP of the primary, shorter or longer than the timeout.
    StopPrimary,
    /// SIGSTOP of the backup.
    StopBackup,
    /// SIGTERM of the primary.
    TermPrimary,
    /// SIGTERM of the backup.
    TermBackup,
    /// Nothing passes between the halves; both reach the disk server.
    CutBothWays,
    /// What the primary sends to the backup is lost.
    CutToBackup,
    /// What the backup sends to the primary is lost.
    CutToPrimary,
    /// Heartbeats are lost, the logging channel is not.
    CutUdpOnly,
    /// The logging channel stands still, heartbeats go on.
    CutTcpOnly,
    /// The primary alone does not reach the disk server.
    CutPrimaryFromDisk,
    /// The backup alone does not.
    CutBackupFromDisk,
    /// SIGKILL of the disk server, then it is started again.
    DiskServerKilled,
    /// SIGSTOP of the disk server, with 8 MiB of writes in flight.
    DiskServerStopped,
    /// No room in the file system of the disks; half the times the primary is killed meanwhile.
    DiskFull,
    /// The primary is killed and its command line started again, while the copy that went live has lost its
    /// connection to the disk server.
    StaleCommand,
    /// The backup is killed and its command line started again, which then is the new backup.
    StaleBackup,
    /// The guest reboots.
    GuestReboot,
    /// Either half is killed in the middle of a state transfer.
    DuringReplicate,
    /// Two faults, the second before anything of the first is repaired.
    DoubleFault,
}

use Kind::*;

/// Kinds in the order in which consecutive seeds take them. What makes a failover comes more often.
pub const TURNS: &[Kind] = &[
    KillPrimary,
    CutBothWays,
    StopPrimary,
    DiskServerStopped,
    KillBackup,
    StaleCommand,
    DuringReplicate,
    TermPrimary,
    DoubleFault,
    CutPrimaryFromDisk,
    KillBoth,
    CutToBackup,
    CutTcpOnly,
    StopBackup,
    DiskServerKilled,
    KillPrimary,
    CutToPrimary,
    DiskFull,
    TermBackup,
    StaleBackup,
    DoubleFault,
    CutUdpOnly,
    KillPrimary,
    CutBackupFromDisk,
    GuestReboot,
    DuringReplicate,
    KillBackup,
    CutBothWays,
    TermPrimary,
    DoubleFault,
    StopPrimary,
];

/// What the faults of a double fault are.
pub const OF_TWO: &[Kind] = &[
    KillPrimary,
    KillBackup,
    StopPrimary,
    StopBackup,
    TermPrimary,
    CutBothWays,
    CutToBackup,
    CutToPrimary,
    CutTcpOnly,
    CutBackupFromDisk,
    DiskServerKilled,
];

impl FromStr for Kind {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        TURNS.iter().copied().find(|kind| format!("{kind:?}").eq_ignore_ascii_case(name)).ok_or(())
    }
}

impl Kind {
    /// Whether the service may end by it: it takes both halves, or the only one that has the whole machine.
    pub fn may_end_the_service(self) -> bool {
        matches!(self, KillBoth | DuringReplicate | DoubleFault)
    }

    /// Whether it gives neither half a reason to go on alone.
    pub fn needs_no_failover(self) -> bool {
        matches!(self, DiskServerKilled | DiskServerStopped | CutBackupFromDisk | CutUdpOnly | GuestReboot)
    }
}

/// A guest on an engine.
#[derive(Debug)]
pub struct Machine {
    /// In messages, and as LOCKSTEP_CAMPAIGN_MACHINE knows it.
    pub name: &'static str,
    /// As `--guest` knows it.
    pub guest: &'static str,
    /// As `--engine` knows it.
    pub engine: &'static str,
    /// More options of both halves.
    pub options: &'static [&'static str],
    /// Whether its console has a shell, which can be told to reboot.
    pub has_shell: bool,
}

/// The embedded guest on the fastest engine.
pub static MINIKV: Machine =
    Machine { name: "minikv", guest: "minikv", engine: "auto", options: &[], has_shell: false };
/// The embedded guest on the software engine.
pub static SOFT: Machine = Machine { name: "soft", engine: "soft", ..MINIKV };
/// Linux with redis.
pub static REDIS: Machine =
    Machine { name: "redis", guest: "redis", engine: "soft", has_shell: true, ..MINIKV };

/// Rounds of one machine in a row.
const BLOCK: u64 = 25;

impl Machine {
    /// The machine of a round of a long campaign.
    pub fn of(seed: u64) -> &'static Machine {
        match seed / BLOCK % 6 {
            2 => &SOFT,
            5 => &REDIS,
            _ => &MINIKV,
        }
    }

    /// Whether a kind can be done to it in this build.
    pub fn can(&self, kind: Kind) -> bool {
        match kind {
            // In the machine model pc-2 a reset ended the machine.
            GuestReboot => {
                let other = std::env::var_os("LOCKSTEP_CAMPAIGN_PROGRAM").is_some();
                self.has_shell && (other || lockstep::config::MACHINE_MODEL != "pc-2")
            }
            // redis ends by itself when it cannot write its file.
            DiskFull => self.guest != "redis",
            _ => true,
        }
    }
}

impl FromStr for &'static Machine {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        [&MINIKV, &SOFT, &REDIS].into_iter().find(|machine| machine.name == name).ok_or(())
    }
}

/// One round, decided.
pub struct Plan {
    /// What decides everything.
    pub seed: u64,
    /// What is done.
    pub kind: Kind,
    /// Clients of the load.
    pub clients: u32,
    /// Requests that each has in flight.
    pub pipeline: u32,
    /// Moments and lengths.
    pub random: Random,
}

impl Plan {
    /// The round of a seed.
    pub fn new(seed: u64, kind: Kind) -> Self {
        let mut random = Random::new(seed);
        let (clients, pipeline) = (2 + random.below(9) as u32, 1 + random.below(4) as u32);
        Self { seed, kind, clients, pipeline, random }
    }

    /// A time between two, in milliseconds.
    pub fn between(&mut self, least_ms: u64, most_ms: u64) -> std::time::Duration {
        std::time::Duration::from_micros(1000 * least_ms + self.random.below(1000 * (most_ms - least_ms)))
    }

    /// Sometimes short, sometimes long, about the timeout in between.
    pub fn short_or_long(&mut self) -> std::time::Duration {
        match self.random.below(2) {
            0 => self.between(20, 500),
            _ => self.between(500, 2500),
        }
    }

    /// One of several.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.random.below(choices.len() as u64) as usize]
    }
}
