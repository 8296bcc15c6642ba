//! Aims: what a measure shall be, what it was, and whether that is met.

use serde::Serialize;

use super::ratio::Ratio;
use super::say;

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    /// The measure shall not be below this.
    AtLeast(f64),
    /// The measure shall not be above this.
    AtMost(f64),
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bound::AtLeast(least) => write!(f, "≥ {least}"),
            Bound::AtMost(most) => write!(f, "≤ {most}"),
        }
    }
}

/// One measure and its aim.
#[derive(Debug, Clone, Serialize)]
pub struct Aim {
    /// What is measured.
    pub measure: String,
    /// What it was; none if it could not be measured.
    pub measured: Option<Ratio>,
    /// What it shall be.
    pub aim: Bound,
    /// Whether the median is within the aim. What was not measured is not met.
    pub met: bool,
}

impl Aim {
    /// Compares the median with the aim.
    pub fn new(measure: impl Into<String>, measured: Option<Ratio>, aim: Bound) -> Self {
        let met = measured.is_some_and(|ratio| match aim {
            Bound::AtLeast(least) => ratio.median >= least,
            Bound::AtMost(most) => ratio.median <= most,
        });
        Self { measure: measure.into(), measured, aim, met }
    }

    fn verdict(&self) -> &'static str {
        match (self.met, self.measured) {
            (true, _) => "met",
            (false, Some(_)) => "MISSED",
            (false, None) => "not measured",
        }
    }
}

/// A table of aims, one line each.
pub fn table(aims: &[Aim]) -> String {
    let mut text = format!("{:<44} {:>22} {:>7}\n", "measure", "measured", "aim");
    for aim in aims {
        let measured = aim.measured.map_or_else(|| "-".into(), |ratio| ratio.to_string());
        let bound = aim.aim.to_string();
        text += &format!("{:<44} {measured:>22} {bound:>7}  {}\n", aim.measure, aim.verdict());
    }
    text
}

/// Says which aims are not met; the exit code, which says so too.
pub fn conclude(aims: &[Aim]) -> u8 {
    let missed: Vec<&Aim> = aims.iter().filter(|aim| !aim.met).collect();
    for aim in &missed {
        let measured = aim.measured.map_or_else(|| "not measured".into(), |ratio| ratio.to_string());
        say(&format!("MISSED: {}: {measured}, aim {}", aim.measure, aim.aim));
    }
    if !aims.is_empty() {
        say(&format!("{} of {} aims met", aims.len() - missed.len(), aims.len()));
    }
    u8::from(!missed.is_empty())
}

#[cfg(test)]
#[path = "aims_tests.rs"]
mod tests;
