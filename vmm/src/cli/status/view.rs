//! A process' status as lines for people, each of at most 80 columns.

use serde_json::Value;

/// Columns of a line.
const COLUMNS: usize = 80;
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const RED: &str = "\x1b[31m";
const RESET: &str = "\x1b[0m";

/// How lines look.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    /// States are coloured.
    pub(super) colours: bool,
}

/// Text from elsewhere without what could steer a terminal.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A line that is not longer than the terminal is wide.
pub(super) fn fit(line: &str) -> String {
    if line.chars().count() <= COLUMNS {
        return line.to_owned();
    }
    line.chars().take(COLUMNS - 1).chain(['…']).collect()
}

fn number(value: &Value, path: &str) -> u64 {
    value.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

fn float(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or(0.0)
}

fn text(value: &Value, path: &str) -> String {
    plain(value.pointer(path).and_then(Value::as_str).unwrap_or_default())
}

fn has(value: &Value, path: &str) -> bool {
    value.pointer(path).is_some_and(|part| !part.is_null())
}

fn digest(value: &Value, path: &str) -> String {
    match has(value, path) {
        true => format!(
            "entry {} memory {:016x}",
            number(value, &format!("{path}/0")),
            number(value, &format!("{path}/1/memory"))
        ),
        false => "none yet".into(),
    }
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

impl View {
    /// The lines of `status`; rates since `previous`.
    pub(super) fn lines(self, status: &Value, previous: Option<&Value>) -> Vec<String> {
        let mut lines = vec![fit(&format!(
            "{} {} (pid {}), {}, up {}",
            text(status, "/role"),
            text(status, "/vm"),
            number(status, "/pid"),
            text(status, "/engine"),
            duration(float(status, "/uptime_s")),
        ))];
        if has(status, "/guest") {
            guest(status, &mut lines);
        }
        if has(status, "/starting") {
            lines.push(self.paint(YELLOW, &format!("  {}", text(status, "/starting"))));
        }
        if has(status, "/live") {
            self.live(status, previous, &mut lines);
        }
        if has(status, "/backup") {
            self.backup(status, &mut lines);
        }
        if has(status, "/failover") {
            lines.push(fit(&failover(status)));
        }
        if has(status, "/replication") {
            lines.extend(self.replication(status));
        }
        self.disk_server(status, &mut lines);
        lines
    }

    /// One line, fitted, in a colour.
    fn paint(self, colour: &str, line: &str) -> String {
        let line = fit(line);
        if self.colours { format!("{colour}{line}{RESET}") } else { line }
    }

    /// A line that begins with a state.
    fn state(self, state: &str, line: &str) -> String {
        let colour = match state {
            "Replicating" | "Following" | "Live" => GREEN,
            state if state.starts_with("Halted") => RED,
            _ => YELLOW,
        };
        self.paint(colour, line)
    }

    fn live(self, status: &Value, previous: Option<&Value>, lines: &mut Vec<String>) {
        let state = text(status, "/live/state");
        let generation = number(status, "/live/generation");
        lines.push(self.state(&state, &format!("  {state} generation {generation}")));
        let acked = match has(status, "/live/acked") {
            true => number(status, "/live/acked").to_string(),
            false => "by nobody".into(),
        };
        let (appended, released) = (number(status, "/live/appended"), number(status, "/live/released"));
        let gated = number(status, "/live/gated");
        lines.push(fit(&format!("  entry {appended} (acked {acked}, released {released}, {gated} gated)")));
        let bytes = number(status, "/live/log_bytes");
        let (before, since) =
            previous.map_or((0, 0.0), |p| (number(p, "/live/log_bytes"), float(p, "/uptime_s")));
        let seconds = (float(status, "/uptime_s") - since).max(1e-3);
        let rate = bytes.saturating_sub(before) as f64 * 8.0 / 1e6 / seconds;
        lines.push(fit(&format!(
            "  lag {} entries, {:.3} ms; log {bytes} bytes, {rate:.3} Mbit/s",
            number(status, "/live/lag_entries"),
            ms(number(status, "/live/lag_ns")),
        )));
        lines.push(fit(&format!("  last digest {}", digest(status, "/live/digest"))));
        if let resets @ 1.. = number(status, "/live/resets") {
            let times = if resets == 1 { "once".into() } else { format!("{resets} times") };
            lines.push(fit(&format!("  the guest reset itself {times} since this copy is live")));
        }
    }

    fn backup(self, status: &Value, lines: &mut Vec<String>) {
        let state = text(status, "/backup/state");
        let generation = number(status, "/backup/generation");
        match state.as_str() {
            "Waiting" => lines.push(self.state(&state, "  Waiting for a primary")),
            "Reserved" => lines.push(self.state(&state, "  Reserved: a primary is about to begin")),
            "Joining" => lines.push(self.state(&state, "  Joining: the machine is on its way")),
            _ => {
                lines.push(self.state(&state, &format!("  backup: {state} generation {generation}")));
                lines.push(fit(&format!(
                    "  entry {} received, {} executed, lag {:.3} ms",
                    number(status, "/backup/received"),
                    number(status, "/backup/executed"),
                    ms(number(status, "/backup/lag_ns")),
                )));
                lines.push(fit(&format!(
                    "  {} outputs and {} digests compared",
                    number(status, "/backup/outputs"),
                    number(status, "/backup/digests"),
                )));
                lines.push(fit(&format!("  last digest {}", digest(status, "/backup/digest"))));
            }
        }
        if has(status, "/backup/disk_reads") {
            lines.push(fit(&format!(
                "  reads the disk itself: {} reads of {} bytes, {} to come",
                number(status, "/backup/disk_reads/reads"),
                number(status, "/backup/disk_reads/bytes"),
                number(status, "/backup/disk_reads/waiting"),
            )));
        }
    }

    /// An attempt to get a backup, while it is news.
    fn replication(self, status: &Value) -> Option<String> {
        let to = text(status, "/replication/to");
        match status.pointer("/replication/state").and_then(Value::as_str)? {
            "connecting" => Some(self.paint(YELLOW, &format!("  connecting to a new backup at {to}"))),
            "transferring" => {
                let sent = number(status, "/replication/bytes") >> 20;
                Some(self.paint(YELLOW, &format!("  transferring to {to}: {sent} MiB")))
            }
            "failed" => {
                let error = text(status, "/replication/error");
                Some(self.paint(RED, &format!("  no backup at {to}: {error}")))
            }
            _ => None,
        }
    }

    fn disk_server(self, status: &Value, lines: &mut Vec<String>) {
        if status.pointer("/disk_server/answers") != Some(&Value::Bool(false)) {
            return;
        }
        let silent = duration(float(status, "/disk_server/silent_s"));
        let address = text(status, "/disk_server/address");
        lines.push(self.paint(RED, &format!("  no answer for {silent} from the disk server {address}")));
        lines.push(self.paint(RED, "  no failover is possible until it answers, and disk requests wait"));
    }
}

fn guest(status: &Value, lines: &mut Vec<String>) {
    let speed = match has(status, "/guest/mips") {
        true => format!("{:.1} MIPS", float(status, "/guest/mips")),
        false => format!("{:.0} a second", float(status, "/guest/per_second")),
    };
    let (position, clock) = (number(status, "/guest/position"), text(status, "/guest/clock"));
    lines.push(fit(&format!("  position {position} ({clock}), {speed}")));
    if number(status, "/guest/translator/translations") > 0 {
        lines.push(fit(&format!(
            "  translated: {} blocks, {:.1} MiB, {:.1} % of what was executed",
            number(status, "/guest/translator/blocks"),
            float(status, "/guest/translator/bytes") / f64::from(1 << 20),
            100.0 * float(status, "/guest/translator/native_share"),
        )));
    } else if has(status, "/guest/translator/untranslated") {
        lines.push(fit(&format!("  interpreted: {}", text(status, "/guest/translator/untranslated"))));
    } else if text(status, "/guest/translator/jit") == "off" {
        lines.push("  interpreted (--jit off)".into());
    }
}

fn failover(status: &Value) -> String {
    let between = |from: &str, to: &str| {
        let at = |name: &str| number(status, &format!("/failover/{name}"));
        ms(at(to).saturating_sub(at(from)))
    };
    format!(
        "  went live: claim {:.3} ms, {} entries in {:.3} ms, then {:.3} ms",
        between("suspected_ns", "won_ns"),
        number(status, "/failover/entries_left"),
        between("won_ns", "replayed_ns"),
        between("replayed_ns", "live_ns"),
    )
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
