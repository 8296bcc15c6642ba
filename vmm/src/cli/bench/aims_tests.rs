//! Verdicts on aims.

use super::*;

fn ratio(value: f64) -> Option<Ratio> {
    Ratio::of([value])
}

#[test]
fn bounds_are_within_the_aim() {
    assert!(Aim::new("x", ratio(2.0), Bound::AtLeast(2.0)).met);
    assert!(!Aim::new("x", ratio(1.99), Bound::AtLeast(2.0)).met);
    assert!(Aim::new("x", ratio(0.5), Bound::AtMost(0.5)).met);
    assert!(!Aim::new("x", ratio(0.51), Bound::AtMost(0.5)).met);
}

#[test]
fn what_was_not_measured_is_not_met() {
    let aims = [Aim::new("one", ratio(3.0), Bound::AtLeast(2.0)), Aim::new("two", None, Bound::AtMost(1.0))];
    assert_eq!(conclude(&aims), 1);
    assert_eq!(conclude(&aims[..1]), 0);
    assert_eq!(conclude(&[]), 0);
    let table = table(&aims);
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[1], ["one", "3.00", "≥", "2", "met"]);
    assert_eq!(lines[2], ["two", "-", "≤", "1", "not", "measured"]);
}
