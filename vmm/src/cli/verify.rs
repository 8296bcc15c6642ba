//! `lockstep verify`: replays a recording again and again and compares everything.

use std::path::PathBuf;

use clap::Args;

use crate::assemble::Surroundings;
use crate::cli::replay::warn_of_tail;
use crate::cli::translator::TranslatorArgs;
use crate::cli::{EXIT_CODES, EXIT_DIVERGED};
use crate::io::clock::{HostClock, wall_ns};
use crate::recording::verify::{LastState, play, play_kicked, play_with_stops, to_compare};
use crate::recording::{Recording, Session, SessionError};

/// Options of `lockstep verify`.
#[derive(Debug, Args)]
#[command(after_help = format!("Examples:
  lockstep verify run.lkr -n 20
  lockstep verify run.lkr -n 0 --stops 1000

{EXIT_CODES}"))]
pub struct VerifyArgs {
    /// The recording.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Replay it so often, with kicks to the vCPU at random moments.
    #[arg(short = 'n', long = "times", default_value_t = 20, value_name = "N")]
    pub times: u64,
    /// Replay it once more, with stops at so many random positions.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub stops: u64,
    /// Seed of kicks and stops.
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u64>,
    /// How the software engine executes.
    #[command(flatten)]
    pub translator: TranslatorArgs,
}

/// Runs the command.
pub fn run(args: &VerifyArgs) -> anyhow::Result<u8> {
    let recording = Recording::open(&args.file)?;
    warn_of_tail(&recording);
    let seed = args.seed.unwrap_or_else(|| wall_ns() / 1000 % 1_000_000_000);
    let (outputs, digests) = to_compare(&recording)?;
    println!(
        "{} entries to position {}, {outputs} outputs and {digests} digests to compare; seed {seed}",
        recording.last_seq(),
        recording.end()
    );
    match verify(args, seed) {
        Ok(last) => {
            println!("all equal: position {}, digest {}", last.position, last.digest);
            Ok(0)
        }
        Err(error) => match error.downcast::<SessionError>() {
            Ok(SessionError::Diverged(divergence)) => {
                eprintln!("lockstep: {divergence}");
                Ok(EXIT_DIVERGED)
            }
            Ok(other) => Err(other.into()),
            Err(error) => Err(error),
        },
    }
}

fn verify(args: &VerifyArgs, seed: u64) -> anyhow::Result<LastState> {
    let straight = play(&mut open_quietly(args)?)?;
    println!("straight: every output and digest equal");
    let same = |what: &str, state: LastState| {
        anyhow::ensure!(
            state == straight,
            "{what} ended at position {} with {}, a straight replay at {} with {}",
            state.position,
            state.digest,
            straight.position,
            straight.digest
        );
        Ok(())
    };
    for time in 1..=args.times {
        let started = HostClock.now_ns();
        let (state, kicks) = play_kicked(&args.file, &around(args), seed.wrapping_add(time))?;
        same(&format!("replay {time} with kicks"), state)?;
        let seconds = (HostClock.now_ns() - started) as f64 / 1e9;
        println!("replay {time} of {}: equal, {kicks} kicks, {seconds:.2} s", args.times);
    }
    if args.stops > 0 {
        let state = play_with_stops(&mut open_quietly(args)?, args.stops, seed)?;
        same(&format!("a replay with {} stops", args.stops), state)?;
        println!("{} stops at random positions: equal", args.stops);
    }
    Ok(straight)
}

fn open_quietly(args: &VerifyArgs) -> Result<Session, SessionError> {
    Session::with(Recording::open(&args.file)?, &around(args))
}

fn around(args: &VerifyArgs) -> Surroundings {
    Surroundings { options: args.translator.options(), ..Surroundings::default() }
}
