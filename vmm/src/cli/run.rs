//! `lockstep run`: one machine without a backup.

use clap::Args;

use crate::cli::data::DataArgs;
use crate::cli::headings::DISK;
use crate::cli::record::RecordArgs;
use crate::cli::{EXIT_CODES, conclude};
use crate::config::{VmArgs, VmConfig};
use crate::debug::{DebugArgs, Debugging};
use crate::io::clock::wall_ns;
use crate::pair::primary::run_live;

/// Options of `lockstep run`.
#[derive(Debug, Args)]
#[command(after_help = format!("Examples:
  lockstep run
  lockstep guest build busybox && lockstep run --guest busybox

  lockstep lan --listen 127.0.0.1:7800 --forward 127.0.0.1:6379=10.77.0.2:6379 &
  lockstep run --net 127.0.0.1:7800
  redis-cli -p 6379 set key value

  lockstep run --net 127.0.0.1:7800 --gdb 127.0.0.1:1234 &
  gdb -ex 'target remote 127.0.0.1:1234'

The disk is kept in --data by this process, and SIGINT or SIGTERM powers the machine off. A machine that is to
get a backup (lockstep replicate) needs a disk server, which both copies reach; it takes the same directory:
  lockstep disk-server --data ~/.local/share/lockstep --listen 10.0.0.3:7411
  lockstep run --disk-server 10.0.0.3:7411

{EXIT_CODES}"))]
pub struct RunArgs {
    /// The machine.
    #[command(flatten)]
    pub vm: VmArgs,
    /// The disk.
    #[command(flatten)]
    pub data: DataArgs,
    /// The recording.
    #[command(flatten)]
    pub record: RecordArgs,
    /// Who looks into the guest.
    #[command(flatten)]
    pub debug: DebugArgs,
    /// Start even when another copy is live, or may be: that one is fenced off and halts. For a person who
    /// knows that it must end, not for a script.
    #[arg(long, help_heading = DISK)]
    pub take_over: bool,
}

/// Runs the command.
pub fn run(args: &RunArgs) -> anyhow::Result<u8> {
    let mut config = VmConfig::new(&args.vm, None, wall_ns())?;
    config.around.debugging = Debugging::new(&args.debug, &config.image, false)?;
    let _store = args.data.keep_disk(&mut config)?;
    let record = args.record.options();
    Ok(conclude(&run_live(config, None, args.take_over, record.as_ref())?))
}
