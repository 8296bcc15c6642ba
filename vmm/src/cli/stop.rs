//! `lockstep stop`: switches a machine off, by its power button or by its cord.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;

use crate::cli::EXIT_NOT_OBEYED;
use crate::io::clock::HostClock;
use crate::io::control;
use crate::pair::awaited_end::End;

/// Between two looks at a machine that is to end.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Longest that a process whose guest is off takes to end.
const ENDING_TAKES_NS: u64 = 10_000_000_000;
/// Between two looks at it.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Longest that the cord takes: a pair ends together.
const CORD_TAKES: Duration = Duration::from_secs(20);

/// Options of `lockstep stop`.
#[derive(Debug, Args)]
#[command(
    about = "Switch a machine off: press its power button and wait",
    after_help = "Examples:
  lockstep stop /run/lockstep/vm0.sock
  lockstep stop --wait 300 /run/lockstep/vm0.sock
  lockstep stop --force /run/lockstep/vm0.sock

The guest shuts down in its own way: Linux with systemd-logind or acpid, minikv, and the images of
`lockstep guest build`. Ask the process in which the live copy runs: with a pair, the primary.

Exit codes:
  0  the machine is off
  1  something failed; standard error says what and what to do
  2  wrong command line
  8  the guest did not switch itself off in time, and runs on"
)]
pub struct StopArgs {
    /// Control socket of the live copy, as given to --control.
    #[arg(value_name = "SOCKET")]
    pub socket: PathBuf,
    /// How long the guest may take after its power button was pressed; 0 to press it and not wait.
    #[arg(long, value_name = "SECONDS", default_value_t = 90)]
    pub wait: u64,
    /// Pull the cord instead: the guest hears nothing of it, and its file systems need recovery.
    #[arg(long, conflicts_with = "wait")]
    pub force: bool,
}

/// Runs the command.
pub fn run(args: &StopArgs) -> anyhow::Result<u8> {
    let socket = args.socket.as_path();
    let (request, patience) = match args.force {
        true => ("shutdown", CORD_TAKES),
        false => ("power-button", Duration::from_secs(args.wait)),
    };
    let waits = args.force || args.wait > 0;
    let mut process = None;
    if waits {
        // The process is told beforehand that somebody wants to know how it ends.
        end(socket)?;
        process = ask(socket, "status")?["pid"].as_u64();
    }
    ask(socket, request)?;
    if !waits {
        return Ok(0);
    }
    let started_ns = HostClock.now_ns();
    loop {
        let ended = end(socket).context(
            "the process ended, and not because its guest switched the machine off: if a backup went live, \
             ask that one",
        )?;
        match ended {
            Some(End { off: true, how }) => {
                wait_until_gone(process);
                eprintln!("lockstep: {how}");
                return Ok(0);
            }
            Some(End { off: false, how }) => bail!("the machine was not switched off: {how}"),
            None => {}
        }
        if u128::from(HostClock.now_ns() - started_ns) >= patience.as_nanos() {
            break;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    let seconds = patience.as_secs();
    if args.force {
        bail!("the machine is not off after {seconds} s: see `lockstep status {}`", socket.display());
    }
    eprintln!(
        "lockstep: the guest did not switch itself off within {seconds} s of its power button being pressed, \
         and runs on: does it listen for the button? Wait longer (--wait SECONDS), or pull the cord \
         (--force)"
    );
    Ok(EXIT_NOT_OBEYED)
}

/// Waits until a process of this host is no more: whoever starts the machine again finds its disk free.
fn wait_until_gone(process: Option<u64>) {
    let Some(process) = process else { return };
    let end_ns = HostClock.now_ns() + ENDING_TAKES_NS;
    // A zombie has given up everything. Its name, in parentheses, may hold any character.
    let runs = || {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
    };
    while runs() && HostClock.now_ns() < end_ns {
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Asks the live copy; an answer that is an error becomes one.
fn ask(socket: &Path, request: &str) -> anyhow::Result<Value> {
    let answer: Value =
        serde_json::from_str(&control::ask(socket, request)?).context("the answer is no JSON")?;
    match answer.get("error").and_then(Value::as_str) {
        Some(error) => bail!("{}: {error}", socket.display()),
        None => Ok(answer),
    }
}

/// How the process' part in the machine ended, if it did.
fn end(socket: &Path) -> anyhow::Result<Option<End>> {
    let mut answer = ask(socket, "end")?;
    Ok(serde_json::from_value(answer["end"].take())?)
}
