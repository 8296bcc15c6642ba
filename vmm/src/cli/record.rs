//! `lockstep record`: one machine without a backup, its log kept in a file.

use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;

use crate::cli::data::DataArgs;
use crate::cli::headings::{DISK, RECORDING};
use crate::cli::{EXIT_CODES, conclude};
use crate::config::{VmArgs, VmConfig};
use crate::io::clock::wall_ns;
use crate::pair::primary::run_live;
use crate::recording::sink::RecordOptions;

const SECOND_NS: f64 = 1e9;

/// Where a recording goes, for commands that can make one.
#[derive(Debug, Clone, Args)]
pub struct RecordArgs {
    /// Record the run into this file, which must not exist.
    #[arg(long, help_heading = RECORDING, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Seconds of the guest's time between checkpoints; 0 for none but the first.
    #[arg(
        long,
        help_heading = RECORDING,
        default_value_t = 10.0,
        value_name = "SECONDS",
        value_parser = seconds
    )]
    pub checkpoint_every: f64,
}

impl RecordArgs {
    /// What to record, if anything.
    pub fn options(&self) -> Option<RecordOptions> {
        self.record.as_ref().map(|path| options(path, self.checkpoint_every))
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`seconds` allows 1e9 at most")]
fn options(path: &std::path::Path, checkpoint_every: f64) -> RecordOptions {
    RecordOptions { path: path.to_owned(), checkpoint_every_ns: (checkpoint_every * SECOND_NS) as u64 }
}

fn seconds(text: &str) -> anyhow::Result<f64> {
    let value: f64 = text.parse()?;
    ensure!((0.0..=1e9).contains(&value), "seconds from 0 to 1e9");
    Ok(value)
}

/// Options of `lockstep record`.
#[derive(Debug, Args)]
#[command(after_help = format!("Examples:
  lockstep record -o run.lkr --checkpoint-every 5
  lockstep replay run.lkr
  lockstep verify run.lkr -n 20

SIGINT or SIGTERM powers the machine off and ends the recording. One that was killed is as good up to there.

{EXIT_CODES}"))]
pub struct RecordCommandArgs {
    /// The machine.
    #[command(flatten)]
    pub vm: VmArgs,
    /// The disk.
    #[command(flatten)]
    pub data: DataArgs,
    /// The recording; the file must not exist.
    #[arg(short, long, help_heading = RECORDING, value_name = "FILE")]
    pub output: PathBuf,
    /// Seconds of the guest's time between checkpoints; 0 for none but the first.
    #[arg(
        long,
        help_heading = RECORDING,
        default_value_t = 10.0,
        value_name = "SECONDS",
        value_parser = seconds
    )]
    pub checkpoint_every: f64,
    /// Start even when another copy is live, or may be: that one is fenced off and halts. For a person who
    /// knows that it must end, not for a script.
    #[arg(long, help_heading = DISK)]
    pub take_over: bool,
}

/// Runs the command.
pub fn run(args: &RecordCommandArgs) -> anyhow::Result<u8> {
    let mut config = VmConfig::new(&args.vm, None, wall_ns())?;
    let _store = args.data.keep_disk(&mut config)?;
    let options = options(&args.output, args.checkpoint_every);
    Ok(conclude(&run_live(config, None, args.take_over, Some(&options))?))
}
