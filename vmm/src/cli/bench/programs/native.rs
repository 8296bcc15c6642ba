//! The programs as processes of this host: the guest's own files, copied from its disk, run by their own
//! loader and libraries. So both sides execute the same code, whatever this host has installed.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use guest_images::cache::Guest;
use guest_images::disk_image::extract;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use tempfile::TempDir;

use super::Ran;

/// The script that runs the programs, on the guest's disk.
pub const SCRIPT: &str = "usr/share/programs/work.sh";

/// What holds a program to the instructions of `x86-64-v2`, which is what the guest's processor has.
///
/// openssl: leaf 1 without PCLMULQDQ, FMA, AES, XSAVE, OSXSAVE, AVX, F16C, RDRAND; nothing of leaf 7.
const RESTRICTED: [(&str, &str); 3] = [
    ("OPENSSL_ia32cap", "~0x7e00100200000000:0"),
    (
        "GLIBC_TUNABLES",
        "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX2,-AVX,-AVX_Fast_Unaligned_Load,-BMI1,-BMI2,\
         -LZCNT,-ERMS,-FSRM,-RTM,-XSAVE,-XSAVEC",
    ),
    (
        "java_flags",
        "-XX:UseAVX=0 -XX:-UseAES -XX:-UseSHA -XX:-UseCLMUL -XX:-UseFMA -XX:-UseBMI1Instructions \
         -XX:-UseBMI2Instructions -XX:-UseCountLeadingZerosInstruction",
    ),
];

/// A copy of the guest's disk, and the programs' data.
pub struct Tree {
    directory: TempDir,
}

impl Tree {
    /// Copies the files of the guest's disk, and makes the programs' data.
    pub fn new(guest: &Guest) -> anyhow::Result<Self> {
        let disk = guest.manifest.disk.as_ref().context("the guest has no disk")?;
        let directory = tempfile::Builder::new().prefix("lockstep-programs-").tempdir()?;
        let tree = Self { directory };
        std::fs::create_dir_all(tree.root())?;
        extract(&guest.path(disk), &tree.root())?;
        tree.output(&["prepare"], false)?;
        Ok(tree)
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// Runs a program; its work is `scale` times the least. `restricted` to `x86-64-v2` or with all that this
    /// host's processor has. Nothing else of this process' may end meanwhile: its CPU time would count.
    pub fn run(&self, program: &str, scale: u32, restricted: bool) -> anyhow::Result<Ran> {
        let before = children_cpu()?;
        let output = self.output(&[program, &scale.to_string()], restricted)?;
        let cpu = children_cpu()?.saturating_sub(before);
        Ok(Ran { cpu_s: cpu.as_secs_f64(), checksum: super::checksum(&output) })
    }

    /// What the script says.
    pub fn output(&self, words: &[&str], restricted: bool) -> anyhow::Result<String> {
        let root = self.root();
        let mut command = Command::new(root.join("bin/busybox"));
        command.arg("sh").arg(root.join(SCRIPT)).args(words);
        command.env_clear().env("LC_ALL", "C").env("PATH", "/usr/bin:/bin").env("root", &root);
        command.env("work", self.directory.path().join("work"));
        if restricted {
            command.envs(RESTRICTED);
        }
        let output = command.output().context("cannot start the guest's busybox on this host")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{words:?} on this host ended with {}:\n{complaint}", output.status);
        Ok(text)
    }
}

/// CPU time of all processes that this one started and that have ended, and of those that they started.
fn children_cpu() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let us = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(us)?))
}
