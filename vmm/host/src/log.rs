//! The log on standard error. What each place in the program writes to it is limited (`limit`), at any level,
//! and so is what crates write through `log`: a guest or a peer that makes a process complain as fast as it
//! can gets a few lines a second, and the count of the others.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::IsTerminal as _;
use std::sync::{Mutex, Once, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing::{Event, Subscriber};
use tracing_log::NormalizeEvent as _;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, fmt as format};

use crate::limit::{Limiter, Verdict};
use crate::log_writer::LogWriter;

/// Target of the lines about lines that were left out; they are not limited themselves: there are no more of
/// them than of those that are written.
const OWN_TARGET: &str = "lockstep::log";
/// How often places are reported whose lines were left out, should they not write again by themselves.
const REPORT_EVERY: Duration = Duration::from_secs(10);

static WRITER: OnceLock<LogWriter> = OnceLock::new();
static LIMITER: Mutex<Limiter> = Mutex::new(Limiter::new());

/// Nanoseconds since the first line.
#[allow(clippy::disallowed_methods)]
fn now_ns() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = *START.get_or_init(Instant::now);
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn admit(key: u64, name: impl FnOnce() -> String) -> Verdict {
    let verdict = LIMITER.lock().unwrap_or_else(PoisonError::into_inner).admit(key, now_ns(), name);
    if verdict == Verdict::LeaveOut {
        start_reports();
    }
    verdict
}

/// Starts the periodic report, once, when there is something to report.
fn start_reports() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let reports = || {
            loop {
                std::thread::sleep(REPORT_EVERY);
                report_left_out();
            }
        };
        // Without the thread, counts are told with later lines, and at the end.
        let _ = std::thread::Builder::new().name("log-report".into()).spawn(reports);
    });
}

/// Writes what is still to be written, and how many lines were left out that no later line has told of. To be
/// called before a process ends.
pub fn finish() {
    report_left_out();
    if let Some(writer) = WRITER.get() {
        writer.finish();
    }
}

fn report_left_out() {
    let left_out = LIMITER.lock().unwrap_or_else(PoisonError::into_inner).take_left_out();
    for (place, count) in left_out {
        write_line(format_args!("lockstep: {count} more lines from {place} were left out"));
    }
}

/// Writes a line to standard error, unless its place has written too much lately. Called by `say!`.
pub fn say(file: &'static str, line: u32, text: fmt::Arguments<'_>) {
    let mut hasher = DefaultHasher::new();
    (file, line).hash(&mut hasher);
    if let Verdict::Write { left_out } = admit(hasher.finish(), || format!("{file}:{line}")) {
        match left_out {
            0 => write_line(text),
            count => write_line(format_args!("{text} ({count} lines like this were left out)")),
        }
    }
}

/// A line to standard error, which holds nobody up once logging has started.
fn write_line(text: fmt::Arguments<'_>) {
    match WRITER.get() {
        Some(writer) => writer.line(format!("{text}\n").into_bytes()),
        None => eprintln!("{text}"),
    }
}

/// `eprintln!` for lines that a guest or a peer can cause: as many as `limit` allows this place.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => {
        $crate::log::say(file!(), line!(), format_args!($($text)*))
    };
}

/// The limit of every event, whatever its level.
struct LimitLayer;

impl<S: Subscriber> Layer<S> for LimitLayer {
    fn event_enabled(&self, event: &Event<'_>, _context: Context<'_, S>) -> bool {
        let normalized = event.normalized_metadata();
        let metadata = normalized.as_ref().unwrap_or_else(|| event.metadata());
        if metadata.target() == OWN_TARGET {
            return true;
        }
        let mut hasher = DefaultHasher::new();
        (metadata.target(), metadata.file(), metadata.line()).hash(&mut hasher);
        let name = || match (metadata.file(), metadata.line()) {
            (Some(file), Some(line)) => {
                let file = file.rsplit('/').next().unwrap_or(file);
                format!("{} ({file}:{line})", metadata.target())
            }
            _ => metadata.target().to_owned(),
        };
        match admit(hasher.finish(), name) {
            Verdict::LeaveOut => false,
            Verdict::Write { left_out: 0 } => true,
            Verdict::Write { left_out } => {
                let place = name();
                tracing::warn!(target: OWN_TARGET, left_out, place, "lines like the next one were left out");
                true
            }
        }
    }
}

/// Starts logging to standard error: what `filter` lets pass, as text or as JSON, one object a line. A thread
/// of its own writes the lines, if there can be one.
pub fn start(filter: EnvFilter, json: bool) {
    let colours = std::io::stderr().is_terminal();
    let writer = match LogWriter::start(std::io::stderr()) {
        Ok(writer) => {
            let writer = WRITER.get_or_init(|| writer).clone();
            BoxMakeWriter::new(move || writer.clone())
        }
        Err(_) => BoxMakeWriter::new(std::io::stderr),
    };
    let lines = format::layer().with_writer(writer).with_ansi(colours);
    let lines = if json { lines.json().boxed() } else { lines.boxed() };
    tracing_subscriber::registry().with(lines).with(filter).with(LimitLayer).init();
}
