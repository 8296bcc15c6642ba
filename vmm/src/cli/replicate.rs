//! `lockstep replicate`: give a machine that runs alone a new backup.

use std::path::PathBuf;

use clap::Args;

use crate::io::control;

/// Options of `lockstep replicate`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lockstep backup --listen 127.0.0.1:7701 --net 127.0.0.1:7800 &
  lockstep replicate backup.sock --to 127.0.0.1:7701

The machine runs on while its memory is copied; `lockstep status` shows when it is replicated again.")]
pub struct ReplicateArgs {
    /// Control socket of the live process.
    #[arg(value_name = "SOCKET")]
    pub socket: PathBuf,
    /// Where the new backup listens, host:port.
    #[arg(long, value_name = "ADDRESS")]
    pub to: String,
}

/// Runs the command.
pub fn run(args: &ReplicateArgs) -> anyhow::Result<u8> {
    let answer: serde_json::Value =
        serde_json::from_str(&control::ask(&args.socket, &format!("replicate {}", args.to))?)?;
    match answer.get("error").and_then(serde_json::Value::as_str) {
        Some(error) => anyhow::bail!("{error}"),
        None => Ok(0),
    }
}
