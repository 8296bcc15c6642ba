//! `lockstep replicate`: give a machine that runs alone a new backup.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;

use crate::io::control;

/// How often `--wait` looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Options of `lockstep replicate`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lockstep backup --listen 127.0.0.1:7701 --net 127.0.0.1:7800 &
  lockstep replicate backup.sock --to 127.0.0.1:7701
  lockstep replicate backup.sock --to [fd00::2]:7701 --wait

The machine runs on while its memory is copied. Exit code 0 says that the transfer has begun; with --wait,
that the machine is protected again.")]
pub struct ReplicateArgs {
    /// Control socket of the live process.
    #[arg(value_name = "SOCKET")]
    pub socket: PathBuf,
    /// Where the new backup listens: HOST:PORT, an IPv6 address as [::1]:PORT.
    #[arg(long, value_name = "ADDRESS", value_parser = logchannel::address::peer)]
    pub to: String,
    /// Wait until the backup has the machine and follows.
    #[arg(long)]
    pub wait: bool,
}

/// Runs the command.
pub fn run(args: &ReplicateArgs) -> anyhow::Result<u8> {
    let answer = ask(&args.socket, &format!("replicate {}", args.to))?;
    if args.wait {
        let attempt = answer["attempt"].as_u64().context("the answer names no attempt")?;
        let waited = wait(args, attempt);
        if std::io::stderr().is_terminal() {
            eprintln!();
        }
        waited?;
    }
    Ok(0)
}

fn ask(socket: &Path, request: &str) -> anyhow::Result<Value> {
    let answer: Value =
        serde_json::from_str(&control::ask(socket, request)?).context("the answer is no JSON")?;
    match answer.get("error").and_then(Value::as_str) {
        Some(error) => bail!("{error}"),
        None => Ok(answer),
    }
}

/// Waits for the end of an attempt, and shows how far it is on a terminal.
fn wait(args: &ReplicateArgs, attempt: u64) -> anyhow::Result<()> {
    loop {
        let status = ask(&args.socket, "status")?;
        let last = &status["replication"];
        if last["attempt"].as_u64() != Some(attempt) {
            bail!("the transfer to {} ended, and another one was begun", args.to);
        }
        match last["state"].as_str() {
            Some("done") => return Ok(()),
            Some("failed") => bail!(
                "the transfer to {} failed, the machine runs on alone: {}",
                args.to,
                last["error"].as_str().unwrap_or("no reason given")
            ),
            _ => {}
        }
        if std::io::stderr().is_terminal() {
            let bytes = last["bytes"].as_u64().unwrap_or(0);
            eprint!("\rtransferring to {}: {} MiB", args.to, bytes >> 20);
            let _ = std::io::stderr().flush();
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
