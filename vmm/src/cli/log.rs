//! `lockstep log`: what is in a recording.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use logchannel::batch::{BatchEncoder, LogStart};
use logchannel::frame::FrameWriter;
use logchannel::{Event, EventKind, LogEntry, Position};
use serde_json::json;

use crate::cli::EXIT_CODES;
use crate::cli::replay::warn_of_tail;
use crate::recording::Recording;
use crate::recording::format::{RECORDING, kind};

/// Encoded entries that are thrown away at a time, once counted.
const COUNTED_BYTES: usize = 1 << 20;

/// Options of `lockstep log`.
#[derive(Debug, Args)]
#[command(after_help = format!("Examples:
  lockstep log dump run.lkr | less
  lockstep log dump run.lkr --json --from 1000 --to 2000
  lockstep log stat run.lkr

{EXIT_CODES}"))]
pub struct LogArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: LogAction,
}

/// The commands of `lockstep log`.
#[derive(Debug, Subcommand)]
pub enum LogAction {
    /// Print every entry, one to a line.
    Dump(DumpArgs),
    /// Count entries and bytes by kind.
    Stat(StatArgs),
}

/// Options of `lockstep log dump`.
#[derive(Debug, Args)]
pub struct DumpArgs {
    /// The recording.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// First position.
    #[arg(long, default_value_t = 0, value_name = "POSITION")]
    pub from: u64,
    /// Last position.
    #[arg(long, default_value_t = u64::MAX, value_name = "POSITION", hide_default_value = true)]
    pub to: u64,
    /// One JSON object to a line, data in hexadecimal.
    #[arg(long)]
    pub json: bool,
}

/// Options of `lockstep log stat`.
#[derive(Debug, Args)]
pub struct StatArgs {
    /// The recording.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &LogArgs) -> anyhow::Result<u8> {
    let result = match &args.action {
        LogAction::Dump(args) => dump(args),
        LogAction::Stat(args) => stat(args),
    };
    match result {
        // Whoever reads the lines has enough of them.
        Err(error)
            if error
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) => {}
        other => other?,
    }
    Ok(0)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn describe(event: &Event) -> String {
    const SHOWN: usize = 32;
    let data = |bytes: &[u8]| {
        let more = if bytes.len() > SHOWN { "…" } else { "" };
        format!("{} bytes {}{more}", bytes.len(), hex(&bytes[..bytes.len().min(SHOWN)]))
    };
    match event {
        Event::NetRx(bytes) => data(bytes),
        Event::ConsoleRx(bytes) => format!("{:?}", String::from_utf8_lossy(bytes)),
        Event::DiskDone { request, status, data: bytes } => {
            format!("request {request} {status:?} {}", data(bytes))
        }
        Event::Clock { now_ns } => format!("{:.9} s", *now_ns as f64 / 1e9),
        Event::Trap { instruction, value } => format!("{instruction:?} {value:#x}"),
        Event::Output { kind, digest } => format!("{kind:?} {}", hex(digest)),
        Event::Digest(digest) => digest.to_string(),
        Event::GoLive { generation } => format!("generation {generation}"),
        Event::DiskRead { request, offset, len, digest } => {
            format!("request {request} {len} bytes at {offset}, digest {}", hex(digest))
        }
        Event::Shutdown | Event::Reset | Event::HandOver | Event::PowerButton => String::new(),
    }
}

fn as_json(entry: &LogEntry) -> serde_json::Value {
    let mut value = json!({ "seq": entry.seq, "position": entry.at.count, "event": entry.event.name() });
    match &entry.event {
        Event::NetRx(bytes) | Event::ConsoleRx(bytes) => value["data"] = hex(bytes).into(),
        Event::DiskDone { request, status, data } => {
            value["request"] = (*request).into();
            value["status"] = format!("{status:?}").into();
            value["data"] = hex(data).into();
        }
        Event::Clock { now_ns } => value["now_ns"] = (*now_ns).into(),
        Event::Trap { instruction, value: result } => {
            value["instruction"] = format!("{instruction:?}").into();
            value["value"] = (*result).into();
        }
        Event::Output { kind, digest } => {
            value["kind"] = format!("{kind:?}").into();
            value["digest"] = hex(digest).into();
        }
        Event::Digest(digest) => {
            let fields = [digest.registers, digest.devices, digest.memory];
            for (name, field) in ["registers", "devices", "memory"].into_iter().zip(fields) {
                value[name] = format!("{field:016x}").into();
            }
        }
        Event::GoLive { generation } => value["generation"] = (*generation).into(),
        Event::DiskRead { request, offset, len, digest } => {
            value["request"] = (*request).into();
            value["offset"] = (*offset).into();
            value["len"] = (*len).into();
            value["digest"] = hex(digest).into();
        }
        Event::Shutdown | Event::Reset | Event::HandOver | Event::PowerButton => {}
    }
    value
}

fn dump(args: &DumpArgs) -> anyhow::Result<()> {
    let recording = Recording::open(&args.file)?;
    warn_of_tail(&recording);
    let mut out = BufWriter::new(std::io::stdout().lock());
    for batch in 0..recording.batches().len() {
        if recording.batches()[batch].last_count < args.from {
            continue;
        }
        for entry in recording.entries(batch)? {
            let LogEntry { seq, at, event } = &entry;
            if at.count > args.to {
                return Ok(out.flush()?);
            }
            if at.count < args.from {
                continue;
            }
            match args.json {
                true => writeln!(out, "{}", as_json(&entry))?,
                false => writeln!(out, "{seq:>9} {:>14} {:<9} {}", at.count, event.name(), describe(event))?,
            }
        }
    }
    Ok(out.flush()?)
}

/// Counts of one kind.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    entries: u64,
    bytes: u64,
    data: u64,
}

/// Virtual time at a position, as far as the log says.
struct VirtualTime {
    by_position: bool,
    at: Position,
    now_ns: u64,
}

impl VirtualTime {
    fn pass(&mut self, entry: &LogEntry) {
        if self.by_position {
            let passed = entry.at.count.saturating_sub(self.at.count);
            self.now_ns = self.now_ns.saturating_add(passed);
            self.at = entry.at;
        }
        if let Event::Clock { now_ns } = entry.event {
            self.now_ns = self.now_ns.max(now_ns);
        }
    }
}

fn stat(args: &StatArgs) -> anyhow::Result<()> {
    let recording = Recording::open(&args.file)?;
    warn_of_tail(&recording);
    let mut counts: BTreeMap<EventKind, Count> = BTreeMap::new();
    let first = &recording.checkpoints()[0];
    let mut encoder = BatchEncoder::new(LogStart { seq: first.seq, count: first.at.count });
    let mut time = VirtualTime {
        by_position: recording.header().machine.clock == "instructions",
        at: first.at,
        now_ns: first.now_ns,
    };
    for entry in recording.log() {
        let entry = entry?;
        let len = encoder.append(&entry)? as u64;
        if encoder.len() > COUNTED_BYTES {
            encoder.flush(kind::ENTRIES, 0, &mut FrameWriter::new(RECORDING), &mut Vec::new());
        }
        let count = counts.entry(entry.event.kind()).or_default();
        count.entries += 1;
        count.bytes += len;
        count.data += entry.event.data_len() as u64;
        time.pass(&entry);
    }
    let checked = recording.checkpoints().last().map_or(0, |last| last.now_ns);
    let seconds = time.now_ns.max(checked) as f64 / 1e9;
    let log_bytes = recording.log_bytes()?;
    match args.json {
        true => stat_json(&recording, &counts, log_bytes, seconds),
        false => stat_text(&recording, &counts, log_bytes, seconds),
    }
    Ok(())
}

fn stat_json(recording: &Recording, counts: &BTreeMap<EventKind, Count>, log_bytes: u64, seconds: f64) {
    let kinds: serde_json::Map<String, serde_json::Value> = counts
        .iter()
        .map(|(kind, count)| {
            let value = json!({ "entries": count.entries, "bytes": count.bytes, "data": count.data });
            (kind.name().to_string(), value)
        })
        .collect();
    let value = json!({
        "entries": recording.last_seq(), "position": recording.end().count, "seconds": seconds,
        "file_bytes": recording.bytes(), "log_bytes": log_bytes,
        "checkpoints": recording.checkpoints().len(), "kinds": kinds,
    });
    println!("{value}");
}

fn stat_text(recording: &Recording, counts: &BTreeMap<EventKind, Count>, log_bytes: u64, seconds: f64) {
    let header = recording.header();
    let per_second = |value: u64| if seconds > 0.0 { value as f64 / seconds } else { 0.0 };
    println!(
        "{}: {} on {}, clock {}, {} MiB of RAM, {}",
        recording.path().display(),
        header.machine.vm,
        header.machine.engine,
        header.machine.clock,
        header.machine.memory_bytes >> 20,
        if header.virtual_clock { "virtual time" } else { "the host's time" },
    );
    println!(
        "{:<11} {:>10} {:>12} {:>12} {:>11} {:>12}",
        "", "entries", "bytes", "of data", "entries/s", "bytes/s"
    );
    let mut all = Count::default();
    let line = |name: &str, count: &Count| {
        println!(
            "{name:<11} {:>10} {:>12} {:>12} {:>11.1} {:>12.1}",
            count.entries,
            count.bytes,
            count.data,
            per_second(count.entries),
            per_second(count.bytes)
        );
    };
    for (kind, count) in counts {
        line(kind.name(), count);
        all.entries += count.entries;
        all.bytes += count.bytes;
        all.data += count.data;
    }
    line("all", &all);
    println!(
        "{seconds:.3} s of the guest's time, positions to {}; {} bytes of log in the file, {} checkpoints, \
         {} bytes in all",
        recording.end(),
        log_bytes,
        recording.checkpoints().len(),
        recording.bytes()
    );
}
