//! Ratios of what was measured in pairs: each round measures both sides, one soon after the other, since the
//! speed of a shared host drifts more within an hour than most ratios differ from 1.

use serde::Serialize;

/// How sure an interval is to be, where there are pairs enough.
const CONFIDENCE: f64 = 0.95;

/// A ratio over the rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    /// Of the rounds' ratios.
    pub median: f64,
    /// Lower end of the interval in which the true median is.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// Probability with which it is in there: 0.95 or more from six rounds on, else of the extremes.
    pub confidence: f64,
    /// Rounds.
    pub pairs: usize,
}

impl Ratio {
    /// Of one ratio per round; none without any, or with one that is not a positive number.
    pub fn of(ratios: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut ratios: Vec<f64> = ratios.into_iter().collect();
        if ratios.is_empty() || ratios.iter().any(|ratio| !(ratio.is_finite() && *ratio > 0.0)) {
            return None;
        }
        ratios.sort_by(f64::total_cmp);
        let pairs = ratios.len();
        let (rank, confidence) = interval(pairs);
        Some(Self {
            median: f64::midpoint(ratios[(pairs - 1) / 2], ratios[pairs / 2]),
            low: ratios[rank],
            high: ratios[pairs - 1 - rank],
            confidence,
            pairs,
        })
    }

    /// Of `above` to `below`, round by round.
    pub fn of_pairs(above: &[f64], below: &[f64]) -> Option<Self> {
        Self::of(above.iter().zip(below).map(|(above, below)| above / below))
    }
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pairs {
            1 => write!(f, "{:.2}", self.median),
            _ => write!(f, "{:.2} ({:.2} to {:.2})", self.median, self.low, self.high),
        }
    }
}

/// Which of `count` sorted values, counted from either end, bound an interval for the median, and how sure it
/// is. Each value is below the median as likely as not, so that the number of those below is binomial;
/// nothing else is taken for granted about the values.
fn interval(count: usize) -> (usize, f64) {
    // The probability that exactly 0, 1, ... values are below.
    let mut exactly = 0.5f64.powi(i32::try_from(count).unwrap_or(i32::MAX));
    let mut outside = 0.0;
    let mut best = (0, 1.0 - 2.0 * exactly);
    for rank in 0..count.div_ceil(2) {
        outside += 2.0 * exactly;
        if 1.0 - outside < CONFIDENCE {
            break;
        }
        best = (rank, 1.0 - outside);
        exactly *= (count - rank) as f64 / (rank + 1) as f64;
    }
    best
}

/// The geometric mean; none of nothing.
pub fn geometric_mean(values: &[f64]) -> Option<f64> {
    let sum: f64 = values.iter().map(|value| value.ln()).sum();
    (!values.is_empty()).then(|| (sum / values.len() as f64).exp())
}

#[cfg(test)]
#[path = "ratio_tests.rs"]
mod tests;
