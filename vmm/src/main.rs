//! The lockstep command: parse, dispatch, exit code.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lockstep::cli;

/// Runs one virtual machine as a pair: a primary, and a backup that takes over where it stopped.
#[derive(Debug, Parser)]
#[command(version, about, propagate_version = true)]
struct Command {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Say what this host's KVM can do, and which engine and clock that leads to.
    Doctor(cli::doctor::DoctorArgs),
}

fn main() -> ExitCode {
    let command = Command::parse();
    let result = match &command.action {
        Action::Doctor(args) => cli::doctor::run(args),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("lockstep: {error:#}");
            ExitCode::from(1)
        }
    }
}
