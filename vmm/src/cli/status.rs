//! `lockstep status`: a live view of one half of a pair, by its control socket.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use host::errors::Chain;
use serde_json::Value;

use crate::io::control;

/// Options of `lockstep status`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lockstep status primary.sock
  lockstep status --watch 1 primary.sock backup.sock
  lockstep status --json primary.sock | jq .live.lag_ns
  lockstep status --shutdown primary.sock")]
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
    /// Power the machine off instead: the pair ends together.
    #[arg(long)]
    pub shutdown: bool,
}

/// Runs the command.
pub fn run(args: &StatusArgs) -> anyhow::Result<u8> {
    if args.shutdown {
        let answer = control::ask(&args.sockets[0], "shutdown")?;
        let answer: Value = serde_json::from_str(&answer).context("the answer is no JSON")?;
        if let Some(error) = answer.get("error").and_then(Value::as_str) {
            bail!("{}: {error}", args.sockets[0].display());
        }
        return Ok(0);
    }
    let mut previous: Vec<Option<Value>> = vec![None; args.sockets.len()];
    loop {
        for (socket, previous) in args.sockets.iter().zip(&mut previous) {
            let line = match control::ask(socket, "status") {
                Ok(line) => line,
                // The plug that was pulled is no reason to stop watching the others.
                Err(error) if args.watch.is_some() => {
                    println!("{}: {}", socket.display(), Chain(error.as_ref()));
                    continue;
                }
                Err(error) => return Err(error),
            };
            if args.json {
                print!("{line}");
                continue;
            }
            let status: Value = serde_json::from_str(&line).context("the answer is no JSON")?;
            print_status(&status, previous.as_ref());
            *previous = Some(status);
        }
        match args.watch {
            None => return Ok(0),
            Some(seconds) => std::thread::sleep(Duration::from_secs(seconds.max(1))),
        }
    }
}

fn number(value: &Value, path: &str) -> u64 {
    value.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

fn digest(value: &Value, path: &str) -> String {
    let at = value.pointer(path).filter(|v| !v.is_null());
    at.map_or("none yet".into(), |v| {
        format!("entry {} memory {:016x}", number(v, "/0"), number(v, "/1/memory"))
    })
}

/// What a backup reads from the shared disk itself, if it does.
fn print_reads(status: &Value) {
    if status.pointer("/backup/disk_reads").is_some_and(|reads| !reads.is_null()) {
        println!(
            "  reads the disk itself: {} reads of {} bytes, {} to come",
            number(status, "/backup/disk_reads/reads"),
            number(status, "/backup/disk_reads/bytes"),
            number(status, "/backup/disk_reads/waiting"),
        );
    }
}

fn print_status(status: &Value, previous: Option<&Value>) {
    let text = |path: &str| status.pointer(path).and_then(Value::as_str).unwrap_or("").to_string();
    let uptime = status["uptime_s"].as_f64().unwrap_or(0.0);
    println!(
        "{} {} (pid {}), {}, up {uptime:.1} s",
        text("/role"),
        text("/vm"),
        number(status, "/pid"),
        text("/engine")
    );
    if status.get("live").is_some_and(|live| !live.is_null()) {
        let bytes = number(status, "/live/log_bytes");
        let (before, since) = previous
            .map_or((0, 0.0), |p| (number(p, "/live/log_bytes"), p["uptime_s"].as_f64().unwrap_or(0.0)));
        let rate = (bytes.saturating_sub(before)) as f64 * 8.0 / 1e6 / (uptime - since).max(1e-3);
        println!(
            "  {} generation {}: entry {} (acked {}, released {}, {} gated)",
            text("/live/state"),
            number(status, "/live/generation"),
            number(status, "/live/appended"),
            status
                .pointer("/live/acked")
                .filter(|v| !v.is_null())
                .map_or("by nobody".into(), Value::to_string),
            number(status, "/live/released"),
            number(status, "/live/gated"),
        );
        println!(
            "  lag {} entries, {:.3} ms; log {bytes} bytes, {rate:.3} Mbit/s; last digest {}",
            number(status, "/live/lag_entries"),
            number(status, "/live/lag_ns") as f64 / 1e6,
            digest(status, "/live/digest"),
        );
    }
    if status.get("backup").is_some_and(|backup| !backup.is_null()) {
        println!(
            "  backup: {} generation {}: entry {} received, {} executed, lag {:.3} ms; {} outputs and {} \
             digests compared, last {}",
            text("/backup/state"),
            number(status, "/backup/generation"),
            number(status, "/backup/received"),
            number(status, "/backup/executed"),
            number(status, "/backup/lag_ns") as f64 / 1e6,
            number(status, "/backup/outputs"),
            number(status, "/backup/digests"),
            digest(status, "/backup/digest"),
        );
        print_reads(status);
    }
    if status.get("failover").is_some_and(|failover| !failover.is_null()) {
        let ms = |from: &str, to: &str| {
            number(status, &format!("/failover/{to}"))
                .saturating_sub(number(status, &format!("/failover/{from}"))) as f64
                / 1e6
        };
        println!(
            "  went live: test-and-set {:.3} ms, replay of {} entries {:.3} ms, go live {:.3} ms",
            ms("suspected_ns", "won_ns"),
            number(status, "/failover/entries_left"),
            ms("won_ns", "replayed_ns"),
            ms("replayed_ns", "live_ns"),
        );
    }
}
