//! `lockstep backup`: the half of a pair that follows the log, says nothing, and goes live when it must.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use crate::cli::headings::PAIR;
use crate::cli::record::RecordArgs;
use crate::cli::{EXIT_CODES, conclude};
use crate::config::{PairArgs, VmArgs, VmConfig};
use crate::pair::backup::run_backup;

/// Options of `lockstep backup`.
#[derive(Debug, Args)]
#[command(after_help = format!("Examples:
  lockstep backup --listen 0.0.0.0:7700 --disk-server host-c:7411 --net tap:tap0
  lockstep backup --listen 127.0.0.1:7700 --net 127.0.0.1:7800 --control backup.sock

{EXIT_CODES}"))]
pub struct BackupArgs {
    /// The machine: the same as the primary's.
    #[command(flatten)]
    pub vm: VmArgs,
    /// Times of the pair; where the primary's differ, those hold, and a line says so.
    #[command(flatten)]
    pub pair: PairArgs,
    /// The recording.
    #[command(flatten)]
    pub record: RecordArgs,
    /// Where to wait for the primary: HOST:PORT, an IPv6 address as [::1]:PORT. Port 0 takes any, and a line
    /// on standard output says which.
    #[arg(long, help_heading = PAIR, default_value = "127.0.0.1:7700", value_name = "ADDRESS",
          value_parser = logchannel::address::listen)]
    pub listen: String,
    /// Directory for the report, should this backup diverge.
    #[arg(long, help_heading = PAIR, default_value = ".", value_name = "DIR")]
    pub reports: PathBuf,
}

/// Runs the command.
pub fn run(args: &BackupArgs) -> anyhow::Result<u8> {
    let config = VmConfig::new(&args.vm, Some(&args.pair), 0)?;
    let end = run_backup(config, &args.listen, args.record.options().as_ref(), |divergence| {
        let name = format!("divergence-{}-{}.txt", args.vm.vm, divergence.seq);
        let path = args.reports.join(name);
        host::files::write(&path, divergence.to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("lockstep: diverged: {}; report in {}", divergence.difference, path.display());
        Ok(())
    })?;
    Ok(conclude(&end))
}
