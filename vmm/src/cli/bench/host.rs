//! The host during a measurement, which every report names.

use serde::Serialize;

/// The host's processor, and how busy it was.
#[derive(Debug, Clone, Serialize)]
pub struct Host {
    /// Name of its processor.
    pub cpu: String,
    /// Load average over a minute before the measurement: 0 on a quiet machine.
    pub load_before: f64,
    /// After it: one of this is the bench's own.
    pub load_after: f64,
}

fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(f64::NAN)
}

impl Host {
    /// Before.
    pub fn new() -> Self {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let cpu = name.map_or_else(|| "unknown".into(), |(_, name)| name.to_string());
        Self { cpu, load_before: load(), load_after: 0.0 }
    }

    /// After.
    pub fn end(self) -> Self {
        Self { load_after: load(), ..self }
    }
}
