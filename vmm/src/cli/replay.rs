//! `lockstep replay`: plays a recording, to its end or to a place in it.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use logchannel::{Event, Output, Position, Seq};

use crate::assemble::Surroundings;
use crate::cli::translator::TranslatorArgs;
use crate::cli::{EXIT_CODES, EXIT_DIVERGED};
use crate::debug::replay::Goal;
use crate::debug::{self, DebugArgs, Debugging};
use crate::recording::control;
use crate::recording::kernel::kernel;
use crate::recording::reader::Tail;
use crate::recording::serve::serve;
use crate::recording::verify::LastState;
use crate::recording::{Arrival, Recording, Session, SessionError};

/// Options of `lockstep replay`.
#[derive(Debug, Args)]
#[command(after_help = format!("Examples:
  lockstep replay run.lkr                    the whole run, its console shown, everything checked
  lockstep replay run.lkr --to 120000        as far as a position
  lockstep replay run.lkr --to-output 12     as far as the 12th output
  lockstep replay run.lkr --from 900000      from there on, by the nearest checkpoint
  lockstep replay run.lkr --gdb 127.0.0.1:1234   under gdb, forwards and (on soft) backwards

Positions are counts of the recording's clock: instructions, or exits. `lockstep log dump` shows them.

{EXIT_CODES}"))]
pub struct ReplayArgs {
    /// The recording.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Begin at this position, which the nearest checkpoint before it makes quick.
    #[arg(long, value_name = "POSITION")]
    pub from: Option<u64>,
    /// Stop at this position.
    #[arg(long, value_name = "POSITION")]
    pub to: Option<u64>,
    /// Stop when the N-th output of the log is made.
    #[arg(long, value_name = "N", conflicts_with = "to")]
    pub to_output: Option<u64>,
    /// How the software engine executes.
    #[command(flatten)]
    pub translator: TranslatorArgs,
    /// Control socket for `lockstep status`.
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Who looks into the guest.
    #[command(flatten)]
    pub debug: DebugArgs,
    /// Answer questions on standard input, for `diverge --against`.
    #[arg(long, conflicts_with_all = ["from", "to", "to_output", "gdb", "trace_from"])]
    pub serve: bool,
    /// Do not show the guest's console.
    #[arg(long)]
    pub no_console: bool,
    /// Where it ended as JSON; the console goes to standard error.
    #[arg(long)]
    pub json: bool,
}

/// Says on standard error when a recording was not ended properly.
pub fn warn_of_tail(recording: &Recording) {
    match recording.tail() {
        Tail::Whole => {}
        Tail::Torn { bytes } => eprintln!(
            "lockstep: {} was not ended properly; it is whole up to entry {}, position {} ({bytes} bytes \
             of a last frame are left out)",
            recording.path().display(),
            recording.last_seq(),
            recording.end()
        ),
        Tail::Damaged(error) => eprintln!(
            "lockstep: {}: {error}. What is before is used: up to position {}",
            recording.path().display(),
            recording.end()
        ),
    }
}

/// Opens a recording for replaying.
pub fn open(path: &Path) -> anyhow::Result<Session> {
    let recording = Recording::open(path)?;
    warn_of_tail(&recording);
    Ok(Session::new(recording)?)
}

/// The entry of the n-th output, from 1.
fn output_entry(recording: &Recording, n: u64) -> anyhow::Result<Seq> {
    let mut left = n;
    for entry in recording.log() {
        let entry = entry?;
        if matches!(entry.event, Event::Output { .. }) {
            left = left.saturating_sub(1);
            if left == 0 {
                return Ok(entry.seq);
            }
        }
    }
    anyhow::bail!("the recording has {} outputs, not {n}", n - left)
}

fn show_console(session: &mut Session, to_stderr: bool) {
    // What a debugger that went back runs through again has been shown.
    let mut shown = 0;
    session.on_output(Box::new(move |seq, output| {
        if seq <= shown {
            return;
        }
        shown = seq;
        if let Output::Console(bytes) = output {
            let written = match to_stderr {
                true => std::io::stderr().write_all(bytes),
                false => std::io::stdout().write_all(bytes).and_then(|()| std::io::stdout().flush()),
            };
            if let Err(error) = written {
                tracing::debug!(%error, "console");
            }
        }
    }));
}

fn bar(session: &Session, hidden: bool) -> ProgressBar {
    if hidden || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{wide_bar} position {human_pos}/{human_len} eta {eta}");
    ProgressBar::new(session.end().count).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Plays on in pieces, so that the bar moves.
fn play(session: &mut Session, args: &ReplayArgs, bar: &ProgressBar) -> anyhow::Result<Arrival> {
    if let Some(n) = args.to_output {
        let seq = output_entry(session.recording(), n)?;
        return Ok(session.run_to_entry(seq)?);
    }
    let end = args.to.unwrap_or(u64::MAX).min(session.end().count);
    let piece = ((end - session.position().count.min(end)) / 200).max(1);
    while session.position().count < end {
        let next = session.position().count.saturating_add(piece).min(end);
        let arrival = session.run_to(Position::at(next))?;
        bar.set_position(session.position().count);
        if arrival != Arrival::There {
            return Ok(arrival);
        }
    }
    match args.to {
        Some(to) if to > session.end().count => Ok(Arrival::EndOfLog),
        Some(_) => Ok(Arrival::There),
        None => Ok(session.run_to_end()?),
    }
}

/// Runs the command.
pub fn run(args: &ReplayArgs) -> anyhow::Result<u8> {
    let recording = Recording::open(&args.file)?;
    warn_of_tail(&recording);
    let looks = args.debug.gdb.is_some() || args.debug.trace_from.is_some();
    let image = if looks && args.debug.symbols.is_none() { kernel(&recording) } else { None };
    let debugging = Debugging::new(&args.debug, &image.unwrap_or_default(), true)?;
    let options = args.translator.options();
    let around = Surroundings { debugging: debugging.clone(), options, ..Surroundings::default() };
    if let Some(path) = &args.control {
        control::serve_replay(path, &recording.header().machine, around.meter.clone())?;
    }
    let mut session = Session::with(recording, &around)?;
    if args.serve {
        serve(&mut session, std::io::stdin().lock(), std::io::stdout().lock())?;
        return Ok(0);
    }
    let outcome = replay(&mut session, args, &debugging);
    match outcome {
        Ok(code) => Ok(code),
        Err(error) => match error.downcast::<SessionError>() {
            Ok(SessionError::Diverged(mut divergence)) => {
                let registers = session.machine_mut().cpu().map(|cpu| cpu.describe());
                divergence.notes.extend(registers.unwrap_or_default());
                divergence.replay_command =
                    Some(format!("lockstep replay {} --to {}", args.file.display(), divergence.at));
                eprintln!("lockstep: {divergence}");
                Ok(EXIT_DIVERGED)
            }
            Ok(other) => Err(other.into()),
            Err(error) => Err(error),
        },
    }
}

fn replay(session: &mut Session, args: &ReplayArgs, debugging: &Debugging) -> anyhow::Result<u8> {
    if let Some(from) = args.from {
        // The run that is looked into begins there.
        debugging.quiet(true);
        let moved = session.seek(Position::at(from));
        debugging.quiet(false);
        moved.with_context(|| format!("going to position {from}"))?;
    }
    if !args.no_console {
        show_console(session, args.json);
    }
    let bar = bar(session, args.json);
    let arrival = match args.debug.gdb {
        Some(_) => {
            let goal = match (args.to, args.to_output) {
                (_, Some(n)) => Goal::Entry(output_entry(session.recording(), n)?),
                (Some(to), None) => Goal::Position(Position::at(to)),
                (None, None) => Goal::End,
            };
            debug::replay::play(session, debugging, goal)?
        }
        None => play(session, args, &bar)?,
    };
    bar.finish_and_clear();
    let state = LastState {
        position: session.position().count,
        entries: session.executed(),
        digest: session.digest()?,
    };
    report(session, &arrival, &state, args.json)?;
    Ok(0)
}

fn report(session: &Session, arrival: &Arrival, state: &LastState, json: bool) -> anyhow::Result<()> {
    let ending = match arrival {
        Arrival::There => "there".to_string(),
        Arrival::EndOfLog => "end of the log".to_string(),
        Arrival::Ended(ending) => ending.to_string(),
        Arrival::Interrupted => "interrupted".to_string(),
    };
    let now_ns = replay::Machine::now_ns(session.machine());
    if json {
        let mut value = serde_json::to_value(state)?;
        value["arrival"] = ending.into();
        value["now_ns"] = now_ns.into();
        value["last_entry"] = session.recording().last_seq().into();
        println!("{value}");
        return Ok(());
    }
    println!(
        "position {} ({}), entry {} of {}, {:.6} s of the guest's time: {ending}",
        state.position,
        session.engine().clock().name(),
        state.entries,
        session.recording().last_seq(),
        now_ns as f64 / 1e9
    );
    println!("digest {}", state.digest);
    Ok(())
}
