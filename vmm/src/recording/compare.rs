//! What differs between two states of one machine, for people.

use crate::machine::MachineState;
use crate::memory::PAGE_BYTES;

/// Most lines told of each part.
const MOST_LINES: usize = 16;
/// Most bytes shown of one range of memory.
const MOST_BYTES: usize = 16;

/// A range of guest memory that differs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct MemoryRange {
    /// Guest physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u64,
    /// The first bytes of it here.
    pub ours: Vec<u8>,
    /// The first bytes of it there.
    pub theirs: Vec<u8>,
}

/// What differs between two states. `A -> B` in its lines.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct StateDifference {
    /// Registers.
    pub registers: Vec<String>,
    /// Ranges of memory, the first of them.
    pub memory: Vec<MemoryRange>,
    /// How many pages differ.
    pub pages: usize,
    /// State of devices.
    pub devices: Vec<String>,
}

impl StateDifference {
    /// Compares two states with their memory.
    pub fn between(ours: (&MachineState, &[u8]), theirs: (&MachineState, &[u8])) -> Self {
        let (a, b) = (ours.0, theirs.0);
        let mut registers = a.cpu.diff(&b.cpu);
        if a.halted != b.halted {
            registers.push(format!("halted {} -> {}", a.halted, b.halted));
        }
        if registers.is_empty() && a.cpu != b.cpu {
            registers.push("the vCPU's other state".into());
        }
        let devices = if a.devices == b.devices { Vec::new() } else { lines(&a.devices, &b.devices) };
        let (pages, memory) = memory(ours.1, theirs.1);
        registers.truncate(MOST_LINES);
        Self { registers, memory, pages, devices }
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// For people, a line each.
    pub fn describe(&self) -> Vec<String> {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
        let mut out: Vec<String> = self.registers.iter().map(|line| format!("register {line}")).collect();
        if self.pages > 0 {
            out.push(format!("{} pages of memory differ", self.pages));
        }
        out.extend(self.memory.iter().map(|range| {
            let MemoryRange { address, len, ours, theirs } = range;
            format!("memory {address:#x}, {len} bytes: {} -> {}", hex(ours), hex(theirs))
        }));
        out.extend(self.devices.iter().map(|line| format!("device {line}")));
        out
    }
}

/// The lines of two values' descriptions that differ.
fn lines<T: std::fmt::Debug>(a: &T, b: &T) -> Vec<String> {
    let (a, b) = (format!("{a:#?}"), format!("{b:#?}"));
    let pairs = a.lines().zip(b.lines()).filter(|(a, b)| a != b);
    let told: Vec<String> =
        pairs.take(MOST_LINES).map(|(a, b)| format!("{} -> {}", a.trim(), b.trim())).collect();
    if told.is_empty() { vec!["more state on one side".into()] } else { told }
}

fn memory(a: &[u8], b: &[u8]) -> (usize, Vec<MemoryRange>) {
    let differing = a.chunks(PAGE_BYTES).zip(b.chunks(PAGE_BYTES)).enumerate().filter(|(_, (a, b))| a != b);
    let pages: Vec<usize> = differing.map(|(number, _)| number).collect();
    let mut ranges: Vec<MemoryRange> = Vec::new();
    for page in &pages {
        let start = page * PAGE_BYTES;
        for at in start..start + PAGE_BYTES {
            if a[at] == b[at] {
                continue;
            }
            let full = ranges.len() == MOST_LINES;
            match ranges.last_mut().filter(|range| range.address + range.len == at as u64) {
                Some(range) => {
                    range.len += 1;
                    if range.ours.len() < MOST_BYTES {
                        range.ours.push(a[at]);
                        range.theirs.push(b[at]);
                    }
                }
                None if full => return (pages.len(), ranges),
                None => ranges.push(MemoryRange {
                    address: at as u64,
                    len: 1,
                    ours: vec![a[at]],
                    theirs: vec![b[at]],
                }),
            }
        }
    }
    (pages.len(), ranges)
}
