//! `lockstep status`: a live view of one half of a pair, by its control socket.

mod view;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;

use crate::io::control;
use view::{View, fit, plain};

/// Options of `lockstep status`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lockstep status primary.sock
  lockstep status --watch 1 primary.sock backup.sock
  lockstep status --json primary.sock | jq .live.lag_ns

On a terminal --watch redraws in place; colours are left out where NO_COLOR is set.")]
pub struct StatusArgs {
    /// Control sockets, as given to --control.
    #[arg(required = true, value_name = "SOCKET")]
    pub sockets: Vec<PathBuf>,
    /// Print JSON, one object a line.
    #[arg(long)]
    pub json: bool,
    /// Repeat every so many seconds, until interrupted.
    #[arg(long, value_name = "SECONDS")]
    pub watch: Option<u64>,
}

/// Runs the command.
pub fn run(args: &StatusArgs) -> anyhow::Result<u8> {
    let is_terminal = std::io::stdout().is_terminal();
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    let view = View { colours: is_terminal && !no_color && !is_dumb };
    let redraws = is_terminal && !is_dumb && args.watch.is_some() && !args.json;
    let mut previous: Vec<Option<Value>> = vec![None; args.sockets.len()];
    let mut drawn = 0;
    loop {
        let mut lines = Vec::new();
        for (socket, previous) in args.sockets.iter().zip(&mut previous) {
            lines.extend(look(args, view, socket, previous)?);
        }
        show(&lines, redraws, &mut drawn)?;
        match args.watch {
            None => return Ok(0),
            Some(seconds) => std::thread::sleep(Duration::from_secs(seconds.max(1))),
        }
    }
}

fn ask(socket: &Path, request: &str) -> anyhow::Result<Value> {
    serde_json::from_str(&control::ask(socket, request)?).context("the answer is no JSON")
}

/// What the process behind one socket says, as lines.
fn look(
    args: &StatusArgs,
    view: View,
    socket: &Path,
    previous: &mut Option<Value>,
) -> anyhow::Result<Vec<String>> {
    let status = match ask(socket, "status") {
        Ok(status) => status,
        // The plug that was pulled is no reason to stop watching the others.
        Err(error) if args.watch.is_some() => {
            let line = plain(&format!("{}: {error:#}", socket.display()));
            return Ok(vec![if args.json { line } else { fit(&line) }]);
        }
        Err(error) => return Err(error),
    };
    if let Some(error) = status.get("error").and_then(Value::as_str) {
        bail!("{}: {error}", socket.display());
    }
    if args.json {
        return Ok(vec![status.to_string()]);
    }
    let lines = view.lines(&status, previous.as_ref());
    *previous = Some(status);
    Ok(lines)
}

/// Prints `lines`; in the place of the `drawn` before, where they are redrawn.
fn show(lines: &[String], redraws: bool, drawn: &mut usize) -> anyhow::Result<()> {
    let mut text = String::new();
    if redraws {
        if *drawn > 0 {
            text += &format!("\x1b[{drawn}A\r");
        }
        *drawn = lines.len();
        // Each line's rest is cleared after it, and what is below the last: nothing flickers.
        lines.iter().for_each(|line| text += &format!("{line}\x1b[K\n"));
        text += "\x1b[J";
    } else {
        lines.iter().for_each(|line| text += &format!("{line}\n"));
    }
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}
