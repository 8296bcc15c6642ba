//! `lockstep primary`: the half of a pair that executes and talks to the world.

use clap::Args;

use crate::cli::headings::{DISK, PAIR};
use crate::cli::record::RecordArgs;
use crate::cli::{EXIT_CODES, conclude};
use crate::config::{PairArgs, VmArgs, VmConfig};
use crate::io::clock::wall_ns;
use crate::pair::primary::run_live;

/// Options of `lockstep primary`.
#[derive(Debug, Args)]
#[command(after_help = format!("Examples:
  lockstep primary --backup host-b:7700 --disk-server host-c:7411 --net tap:tap0
  lockstep primary --backup 127.0.0.1:7700 --net 127.0.0.1:7800 --control primary.sock
  lockstep primary --backup host-b:7700 --net tap:tap0 --backup-reads

{EXIT_CODES}"))]
pub struct PrimaryArgs {
    /// The machine.
    #[command(flatten)]
    pub vm: VmArgs,
    /// Times of the pair.
    #[command(flatten)]
    pub pair: PairArgs,
    /// The recording.
    #[command(flatten)]
    pub record: RecordArgs,
    /// Where the backup listens: HOST:PORT, an IPv6 address as [::1]:PORT.
    #[arg(long, help_heading = PAIR, value_name = "ADDRESS", value_parser = logchannel::address::peer)]
    pub backup: String,
    /// Have the backup read the shared disk itself: the log then carries no data of most disk reads. The
    /// backup is told when the pair forms; so is one that joins later, also after a failover.
    #[arg(long, help_heading = PAIR)]
    pub backup_reads: bool,
    /// Start even when another copy is live, or may be: that one is fenced off and halts. For a person who
    /// knows that it must end, not for a script.
    #[arg(long, help_heading = DISK)]
    pub take_over: bool,
}

/// Runs the command.
pub fn run(args: &PrimaryArgs) -> anyhow::Result<u8> {
    let mut config = VmConfig::new(&args.vm, Some(&args.pair), wall_ns())?;
    config.backup_reads = args.backup_reads;
    let record = args.record.options();
    let end = run_live(config, Some(&args.backup), args.take_over, record.as_ref())?;
    Ok(conclude(&end))
}
