//! `lockstep diverge`: where two runs of a log part.

use std::path::PathBuf;

use clap::Args;

use crate::cli::replay::warn_of_tail;
use crate::cli::{EXIT_CODES, EXIT_DIVERGED};
use crate::recording::{Recording, against, diverge};

/// Options of `lockstep diverge`.
#[derive(Debug, Args)]
#[command(after_help = format!("Examples:
  lockstep diverge run.lkr                   does the recorded run follow from its log?
  lockstep diverge one.lkr other.lkr         where do two runs of one machine part?
  lockstep diverge run.lkr --against 'ssh host-b lockstep'
                                             does that host replay it as this one does?

Ends with 0 when there is no difference, with 4 when there is.

{EXIT_CODES}"))]
pub struct DivergeArgs {
    /// A recording.
    #[arg(value_name = "A")]
    pub a: PathBuf,
    /// Another one of the same machine; without it, A is compared with its own replay.
    #[arg(value_name = "B")]
    pub b: Option<PathBuf>,
    /// Compare the replay here with one by another lockstep: a command that starts it, as the shell reads it.
    /// It must find A under the same name.
    #[arg(long, value_name = "COMMAND", conflicts_with = "b")]
    pub against: Option<String>,
    /// With --against: begin at the last checkpoint at or before this position.
    #[arg(long, value_name = "POSITION", requires = "against")]
    pub from: Option<u64>,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &DivergeArgs) -> anyhow::Result<u8> {
    let a = Recording::open(&args.a)?;
    warn_of_tail(&a);
    let verdict = match (&args.b, &args.against) {
        (None, None) => diverge::with_replay(a)?,
        (None, Some(theirs)) => against::replays(&a, &against::ours()?, theirs, args.from)?,
        (Some(path), _) => {
            let b = Recording::open(path)?;
            warn_of_tail(&b);
            diverge::two(a, b)?
        }
    };
    match args.json {
        true => println!("{}", serde_json::to_string(&verdict)?),
        false => {
            let b = args.b.as_ref().map(|path| path.display().to_string());
            let lines = verdict.describe(&args.a.display().to_string(), b.as_deref());
            lines.iter().for_each(|line| println!("{line}"));
        }
    }
    Ok(if verdict.differs() { EXIT_DIVERGED } else { 0 })
}
