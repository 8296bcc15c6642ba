//! The disk server's own binary; `lockstep disk-server` is the same server.
#![forbid(unsafe_code)]
#![warn(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss
)]

use std::process::ExitCode;

use clap::Parser;
use disk_server::Options;
use host::errors::Chain;
use tracing_subscriber::EnvFilter;

const AFTER_HELP: &str = "\
Examples:
  disk-server --data /var/lib/lockstep/disks
      Serve on 127.0.0.1:7411, for VMs on this host.
  disk-server --data /srv/disks --listen 10.0.0.5:7411 --json
      Serve the network of the VMs' hosts, log as JSON.
  disk-server --data ./disks --listen 127.0.0.1:0
      Take any free port; the first line on standard output says which.

Exit codes:
  0 stopped by SIGTERM or SIGINT, everything durable   4 cannot listen on the address
  1 something else failed                              5 the data directory cannot be used
  2 wrong command line                                 6 stopped, but not everything could be made durable
  3 another disk server uses the data directory

RUST_LOG sets what is logged on standard error (default: info).";

/// Shared virtual disks with fenced writes, and the test-and-set that lets one copy of a VM go on alone.
#[derive(Debug, Parser)]
#[command(name = "disk-server", version, after_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    options: Options,

    /// Log as JSON, one object a line.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    host::log::start(filter, cli.json);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("disk-server: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(disk_server::run(cli.options));
    host::log::finish();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("disk-server: {}", Chain(&error));
            ExitCode::from(error.exit_code())
        }
    }
}
