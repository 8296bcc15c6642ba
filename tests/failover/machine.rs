//! The machines that fail over here: guest and engine, and what follows from them.

use std::path::Path;
use std::time::Duration;

use anyhow::{bail, ensure};
use lockstep::cluster::ClusterOptions;

use crate::failovers::Kind::{self, *};
use crate::image::{self, Contents};
use crate::{aof, disk_tools, support};

/// Which guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// The embedded one.
    Minikv,
    /// Debian's kernel and Debian's redis-server, an image of the cache.
    Redis,
    /// The same with Debian's nginx.
    Nginx,
    /// The same kernel, with a shell for whoever connects.
    Busybox,
}

impl Guest {
    /// As `--guest` knows it.
    fn name(self) -> &'static str {
        match self {
            Guest::Minikv => "minikv",
            Guest::Redis => "redis",
            Guest::Nginx => "nginx",
            Guest::Busybox => "busybox",
        }
    }
}

/// A guest on an engine.
#[derive(Debug)]
pub struct Machine {
    /// In messages and in the names of the tests.
    pub name: &'static str,
    /// The guest.
    pub guest: Guest,
    engine: &'static str,
    /// Failovers without `LOCKSTEP_FAILOVERS`.
    pub count: u64,
    /// What seeds in a row do.
    pub kinds: &'static [Kind],
    /// When the primary may be killed during a boot: up to so many milliseconds after a line of its log, or
    /// after its start.
    pub boot_moments: &'static [(Option<&'static str>, u64)],
    /// Milliseconds between digests: often, so that even a short run compares some.
    digest_ms: u64,
    /// How long anything may take on a slow host, a boot above all.
    patience: Duration,
    /// Whether the backup reads the shared disk itself.
    pub backup_reads: bool,
}

/// The primary has won its generation and knocks.
const KNOCKS: Option<&str> = Some("waiting for the backup");
/// The pair has formed; the guest's first instruction comes now.
const FORMED: Option<&str> = Some("replicating");

/// The embedded guest on KVM.
pub static MINIKV_ON_KVM: Machine = Machine {
    name: "minikv_on_kvm",
    guest: Guest::Minikv,
    engine: "kvm",
    count: 20,
    kinds: &[
        KillPrimary,
        Idle,
        KillPrimary,
        KillBackup,
        KillPrimary,
        StopPrimary,
        KillPrimary,
        Boot,
        Spin,
        KillPrimary,
        KillBackup,
        KillPrimary,
        Boot,
        KillPrimary,
        StopPrimary,
        KillPrimary,
        Idle,
        Spin,
        StopBackup,
        Boot,
    ],
    boot_moments: &[(None, 20), (KNOCKS, 5), (FORMED, 40)],
    digest_ms: 100,
    patience: Duration::from_secs(60),
    backup_reads: false,
};

/// The embedded guest on the software engine.
pub static MINIKV_ON_SOFT: Machine = Machine {
    name: "minikv_on_soft",
    engine: "soft",
    count: 7,
    kinds: &[KillPrimary, Boot, Idle, Spin, StopPrimary, KillBackup, StopBackup],
    boot_moments: &[(None, 30), (KNOCKS, 10), (FORMED, 100)],
    ..MINIKV_ON_KVM
};

/// Unmodified Linux and redis-server, which only the software engine runs exactly everywhere.
pub static LINUX: Machine = Machine {
    name: "linux",
    guest: Guest::Redis,
    engine: "soft",
    count: 10,
    kinds: &[
        KillPrimary,
        Boot,
        Idle,
        Spin,
        StopPrimary,
        KillPrimary,
        Boot,
        KillBackup,
        KillPrimary,
        StopBackup,
    ],
    boot_moments: &[(FORMED, 8000), (FORMED, 4000), (FORMED, 2000), (FORMED, 200), (None, 1000)],
    digest_ms: 250,
    patience: Duration::from_secs(300),
    backup_reads: false,
};

/// The same, and its backup reads the disk itself.
pub static LINUX_READS: Machine = Machine {
    name: "reading_linux",
    count: 4,
    kinds: &[Boot, KillPrimary, Boot, KillBackup],
    backup_reads: true,
    ..LINUX
};

/// Linux with nginx, whose disk is only read.
pub static NGINX: Machine = Machine { name: "nginx", guest: Guest::Nginx, count: 0, kinds: &[], ..LINUX };

/// Linux with a shell.
pub static BUSYBOX: Machine =
    Machine { name: "busybox", guest: Guest::Busybox, count: 0, kinds: &[], ..LINUX };

/// What redis says while it starts, in this order, well before it answers.
const START: [&str; 3] = ["Redis is starting", "Configuration loaded", "Server initialized"];
/// What it says last, at about the time of its first answer.
const READY: &str = "Ready to accept connections";

impl Machine {
    /// Why it cannot run here, if so. An image that is not there yet is built.
    pub fn absent(&self) -> Option<String> {
        if self.engine == "kvm" {
            let doctor = lockstep::cli::doctor::examine();
            return (!doctor.kvm_usable).then(|| format!("no usable KVM: {}", doctor.reasons.join("; ")));
        }
        let built = lockstep::cli::guest::build_if_missing(self.guest.name());
        let missing = built.err().map(|error| format!("{error:#}"));
        match self.guest {
            Guest::Minikv | Guest::Busybox => missing,
            Guest::Redis | Guest::Nginx => missing.or_else(disk_tools::missing),
        }
    }

    /// A pair's options.
    pub fn options(&self, directory: &Path) -> ClusterOptions {
        let mut options = ClusterOptions::new(env!("CARGO_BIN_EXE_lockstep"), directory);
        let digest_ms = self.digest_ms.to_string();
        let words = ["--guest", self.guest.name(), "--engine", self.engine, "--digest-ms", &digest_ms];
        options.vm_options = words.map(String::from).to_vec();
        if self.backup_reads {
            options.primary_options = vec!["--backup-reads".into()];
        }
        options.patience = self.patience.max(support::PATIENCE);
        options
    }

    /// Whether its console says that its server takes connections.
    pub fn serves(&self, console: &str) -> bool {
        self.guest == Guest::Redis && console.contains(READY)
    }

    /// The console of a copy that went live goes on where that of the one before it ended: nothing is
    /// missing, and nothing is told again but what the first may not have told whole.
    pub fn check_consoles(&self, before: &str, after: &str) -> anyhow::Result<()> {
        if self.guest != Guest::Redis {
            return Ok(());
        }
        let told = START.iter().take_while(|line| before.contains(**line)).count();
        for (index, line) in START.iter().enumerate() {
            ensure!(index + 1 >= told || !after.contains(line), "the console tells {line:?} again");
            ensure!(index <= told || after.contains(line), "the console never told {line:?}");
        }
        Ok(())
    }

    /// The data set on the disk of the cluster in `directory`, whose machine has ended.
    pub fn contents(&self, directory: &Path) -> anyhow::Result<Contents> {
        match self.guest {
            Guest::Minikv => image::read(directory),
            Guest::Redis => aof::read(directory),
            Guest::Nginx | Guest::Busybox => bail!("{} keeps no data set", self.name),
        }
    }

    /// The disk holds exactly `expected`.
    pub fn check_disk(&self, directory: &Path, expected: &Contents) -> anyhow::Result<()> {
        image::compare(&self.contents(directory)?, expected)
    }
}
