//! The programs in the guest, one after the other in one run of it. When the lines come that say that one
//! begins and ends, the CPU time of the machine's process is taken here, on the host.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use guest_images::cache::Guest;

use super::native::SCRIPT;
use super::{DISK_SIZE, Program, Ran};
use crate::cli::bench::said::{Line, Said, listen};
use crate::cluster::DIE_WITH_PARENT;

/// Longest silence: the longest program, on a busy machine, by an interpreter.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Before each program: the least of its work, so that its files are in memory, as they are on the host.
const WARM_UP: u32 = 1;

/// What the guest is told to run. It says `programs NAME begins`, and `programs NAME CHECKSUM`.
fn script(programs: &[Program]) -> String {
    let mut script = format!("work=/tmp/programs; export work; s=/{SCRIPT}; sh $s prepare;");
    for Program { name, scale } in programs {
        script += &format!(
            " sh $s {name} {WARM_UP} >/dev/null; echo programs {name} begins; \
             echo programs {name} $(sh $s {name} {scale} | tail -n 1);"
        );
    }
    script
}

/// Runs the programs in a machine of its own, whose disk is kept in `data`.
pub fn run(
    guest: &Guest,
    cache: Option<&Path>,
    data: &Path,
    programs: &[Program],
) -> anyhow::Result<Vec<Ran>> {
    let line = format!("{} run=\"{}\"", guest.manifest.command_line, script(programs));
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["run", "--engine", "soft", "--console-input", "none"]);
    command.args(["--guest", &guest.manifest.name, "--cmdline", &line]);
    command.args(["--disk-size", DISK_SIZE]).arg("--data").arg(data);
    if let Some(cache) = cache {
        command.arg("--cache").arg(cache);
    }
    command.env(DIE_WITH_PARENT, "1");
    parse(&listen(command, "soft", PATIENCE)?, programs)
}

/// Reads what the guest said.
fn parse(said: &Said, programs: &[Program]) -> anyhow::Result<Vec<Ran>> {
    let mut ran = Vec::new();
    for Program { name, .. } in programs {
        let find = |last: Option<&str>| {
            let is = |line: &&Line| match line.text.split_whitespace().collect::<Vec<_>>()[..] {
                ["programs", program, word] => {
                    program == *name && last.map_or(word != "begins", |last| word == last)
                }
                _ => false,
            };
            said.lines.iter().find(is)
        };
        let (begin, end) = (find(Some("begins")), find(None));
        let Some((begin, end)) = begin.zip(end) else {
            bail!("{name} did not come to its end in the guest:\n{}", said.tail());
        };
        let checksum = end.text.split_whitespace().last().context("three words")?;
        let cpu_s = end.cpu_ns.saturating_sub(begin.cpu_ns) as f64 / 1e9;
        ran.push(Ran { cpu_s, checksum: checksum.into() });
    }
    Ok(ran)
}

#[cfg(test)]
#[path = "guest_tests.rs"]
mod tests;
