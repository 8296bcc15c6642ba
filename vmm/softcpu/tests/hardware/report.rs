//! What the run found: a table of the forms by group, and every form that differs with its first vectors.

use crate::forms::Form;
use iced_x86::{CpuidFeature as F, FlowControl};
use std::collections::BTreeMap;
use std::fmt::Write;

/// What became of one form.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    pub group: String,
    pub vectors: u64,
    /// Vectors that the host ended with a fault.
    pub faults: u64,
    pub mismatches: u64,
    /// Vectors that the host ran and the software CPU refused with #UD.
    pub refused: u64,
    /// The first mismatches, in full.
    pub texts: Vec<String>,
}

/// All forms by name.
pub type Tallies = BTreeMap<String, Tally>;

/// The line of the table that a form belongs to.
pub fn group(form: &Form) -> &'static str {
    let code = form.code;
    let has = |feature| code.cpuid_features().contains(&feature);
    if has(F::FPU) || has(F::FPU287) || has(F::FPU387) {
        return "x87";
    }
    for (feature, name) in [
        (F::MMX, "MMX"),
        (F::SSE, "SSE"),
        (F::SSE2, "SSE2"),
        (F::SSE3, "SSE3"),
        (F::SSSE3, "SSSE3"),
        (F::SSE4_1, "SSE4.1"),
        (F::SSE4_2, "SSE4.2"),
        (F::FXSR, "FXSAVE, FXRSTOR"),
    ] {
        if has(feature) {
            return name;
        }
    }
    if code.op_code().is_privileged() {
        return "refused at CPL 3";
    }
    if crate::forms::is_string(code) {
        return "string";
    }
    match code.flow_control() {
        FlowControl::Next if crate::forms::is_stack(code) => "stack",
        FlowControl::Next => "integer",
        _ => "branch",
    }
}

/// One line a form, tab-separated, and one a mismatch: what a worker process prints.
pub fn lines(name: &str, tally: &Tally) -> String {
    let mut out = format!(
        "form\t{name}\t{}\t{}\t{}\t{}\t{}\n",
        tally.group, tally.vectors, tally.faults, tally.mismatches, tally.refused
    );
    for text in &tally.texts {
        let _ = writeln!(out, "text\t{name}\t{}", text.replace('\n', "\u{1}"));
    }
    out
}

/// Takes a worker's line in; lines of anything else are left alone.
pub fn read_line(line: &str, tallies: &mut Tallies) {
    let fields: Vec<&str> = line.split('\t').collect();
    let number = |text: &str| text.parse().expect("a number in a worker's line");
    match fields[..] {
        ["form", name, group, vectors, faults, mismatches, refused] => {
            let tally = tallies.entry(name.into()).or_default();
            tally.group = group.into();
            tally.vectors = number(vectors);
            tally.faults = number(faults);
            tally.mismatches = number(mismatches);
            tally.refused = number(refused);
        }
        ["text", name, text] => {
            tallies.entry(name.into()).or_default().texts.push(text.replace('\u{1}', "\n"));
        }
        _ => {}
    }
}

/// The table.
pub fn table(tallies: &Tallies) -> String {
    let mut rows: BTreeMap<&str, [u64; 6]> = BTreeMap::new();
    for tally in tallies.values() {
        let numbers = [
            1,
            tally.vectors,
            tally.faults,
            tally.mismatches,
            u64::from(tally.mismatches > 0),
            u64::from(tally.refused > 0),
        ];
        for key in [tally.group.as_str(), "~ all"] {
            let row = rows.entry(key).or_default();
            *row = std::array::from_fn(|n| row[n] + numbers[n]);
        }
    }
    let mut out = format!(
        "{:18} {:>6} {:>10} {:>10} {:>10} {:>9} {:>9}\n",
        "group", "forms", "vectors", "faults", "mismatches", "bad forms", "missing"
    );
    for (name, [forms, vectors, faults, mismatches, bad, missing]) in rows {
        let _ = writeln!(
            out,
            "{:18} {forms:>6} {vectors:>10} {faults:>10} {mismatches:>10} {bad:>9} {missing:>9}",
            name.trim_start_matches("~ ")
        );
    }
    out
}

/// The forms that differ, a line each, and then the first vectors of the first `most` of them.
pub fn mismatches(tallies: &Tallies, most: usize) -> String {
    let bad = || tallies.iter().filter(|(_, tally)| tally.mismatches > 0);
    let mut out = String::new();
    for (name, tally) in bad() {
        let refused =
            if tally.refused > 0 { format!(" ({} refused with #UD)", tally.refused) } else { String::new() };
        let _ =
            writeln!(out, "{:16} {name}: {} of {}{refused}", tally.group, tally.mismatches, tally.vectors);
    }
    for (_, tally) in bad().take(most) {
        for text in &tally.texts {
            let _ = writeln!(out, "\n{text}");
        }
    }
    out
}
