//! The lockstep command: parse, dispatch, exit code.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use host::errors::Chain;
use lockstep::cli;
use tracing_subscriber::EnvFilter;

/// Runs one virtual machine as a pair: a primary, and a backup that takes over where it stopped.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    propagate_version = true,
    after_help = "Start with: lockstep doctor, then lockstep demo"
)]
struct Command {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show it: a pair on this machine, a checked load, the primary killed.
    Demo(cli::demo::DemoArgs),
    /// Measure what replication costs, and how long a failover takes.
    Bench(cli::bench::BenchArgs),
    /// Run one machine without a backup.
    Run(cli::run::RunArgs),
    /// Run the half of a pair that executes and talks to the world.
    Primary(cli::primary::PrimaryArgs),
    /// Run the half of a pair that follows and takes over.
    Backup(cli::backup::BackupArgs),
    /// Run one machine without a backup and keep its log in a file.
    Record(cli::record::RecordCommandArgs),
    /// Play a recording, to its end or to a place in it.
    Replay(cli::replay::ReplayArgs),
    /// Replay a recording again and again and compare everything.
    Verify(cli::verify::VerifyArgs),
    /// Show what is in a recording.
    Log(cli::log::LogArgs),
    /// Find where two runs of a log part.
    Diverge(cli::diverge::DivergeArgs),
    /// Give a machine that runs alone a new backup.
    Replicate(cli::replicate::ReplicateArgs),
    /// Make guest images of Debian packages, and list them.
    Guest(cli::guest::GuestArgs),
    /// Serve shared disks with fenced writes, and the test-and-set.
    DiskServer(disk_server::Options),
    /// Run a user-space Ethernet switch with a gateway to the guest.
    Lan(cli::lan::LanArgs),
    /// Show what the halves of a pair are doing.
    Status(cli::status::StatusArgs),
    /// Switch a machine off: press its power button and wait.
    Stop(cli::stop::StopArgs),
    /// Say what this host's KVM can do, and which engine and clock that leads to.
    Doctor(cli::doctor::DoctorArgs),
}

fn main() -> ExitCode {
    let command = Command::parse();
    let filter = EnvFilter::try_from_env("LOCKSTEP_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    host::log::start(filter, false);
    if std::env::var_os(lockstep::cluster::DIE_WITH_PARENT).is_some() {
        let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
    }
    let result = match &command.action {
        Action::Run(args) => cli::run::run(args),
        Action::Primary(args) => cli::primary::run(args),
        Action::Backup(args) => cli::backup::run(args),
        Action::Record(args) => cli::record::run(args),
        Action::Replay(args) => cli::replay::run(args),
        Action::Verify(args) => cli::verify::run(args),
        Action::Log(args) => cli::log::run(args),
        Action::Diverge(args) => cli::diverge::run(args),
        Action::Replicate(args) => cli::replicate::run(args),
        Action::Demo(args) => cli::demo::run(args),
        Action::Bench(args) => cli::bench::run(args),
        Action::Guest(args) => cli::guest::run(args),
        Action::DiskServer(options) => cli::disk_server::run(options),
        Action::Lan(args) => cli::lan::run(args),
        Action::Status(args) => cli::status::run(args),
        Action::Stop(args) => cli::stop::run(args),
        Action::Doctor(args) => cli::doctor::run(args),
    };
    host::log::finish();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("lockstep: {}", Chain(error.as_ref()));
            ExitCode::from(cli::exit_code(&error))
        }
    }
}
