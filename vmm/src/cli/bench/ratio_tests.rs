//! Ratios of pairs, against values computed by hand.

use super::*;

fn close(left: f64, right: f64) -> bool {
    (left - right).abs() < 1e-9
}

#[test]
fn the_median_is_the_middle_or_between_the_two() {
    let of = |ratios: &[f64]| Ratio::of(ratios.iter().copied()).expect("a ratio").median;
    assert!(close(of(&[3.0]), 3.0));
    assert!(close(of(&[9.0, 1.0, 2.0]), 2.0));
    assert!(close(of(&[4.0, 1.0, 2.0, 100.0]), 3.0));
}

#[test]
fn a_ratio_is_of_pairs_and_not_of_sums() {
    // The host was ten times slower in the second round: the ratio does not see it.
    let ratio = Ratio::of_pairs(&[2.0, 20.0, 2.2], &[1.0, 10.0, 1.0]).expect("a ratio");
    assert!(close(ratio.median, 2.0) && close(ratio.low, 2.0) && close(ratio.high, 2.2), "{ratio:?}");
    assert_eq!(ratio.pairs, 3);
}

#[test]
fn without_a_number_there_is_no_ratio() {
    assert_eq!(Ratio::of([]), None);
    assert_eq!(Ratio::of_pairs(&[1.0, 1.0], &[1.0, 0.0]), None);
    assert_eq!(Ratio::of([1.0, f64::NAN]), None);
    assert_eq!(Ratio::of_pairs(&[0.0], &[1.0]), None);
}

#[test]
fn intervals_are_those_of_the_sign_test() {
    // Tables of the sign test: the k-th values from either end, and 1 - 2 P(X < k) of a binomial of 1/2.
    for (count, rank, confidence) in [
        (1, 0, 0.0),
        (2, 0, 0.5),
        (3, 0, 0.75),
        (5, 0, 0.9375),
        (6, 0, 0.96875),
        (8, 0, 0.992_187_5),
        (9, 1, 0.960_937_5),
        (10, 1, 0.978_515_625),
        (12, 2, 0.961_425_781_25),
        (20, 5, 0.958_610_534_667_968_8),
    ] {
        let (found, sure) = interval(count);
        assert_eq!(found, rank, "{count}");
        assert!(close(sure, confidence), "{count}: {sure}");
    }
}

#[test]
fn the_interval_of_many_leaves_the_outliers_out() {
    let ratio = Ratio::of((1..=12).map(f64::from)).expect("a ratio");
    assert!(close(ratio.low, 3.0) && close(ratio.high, 10.0) && close(ratio.median, 6.5), "{ratio:?}");
    assert_eq!(ratio.to_string(), "6.50 (3.00 to 10.00)");
    assert_eq!(Ratio::of([2.0]).expect("a ratio").to_string(), "2.00");
}

#[test]
fn means_are_geometric() {
    assert!(close(geometric_mean(&[1.0, 4.0, 2.0]).expect("a mean"), 2.0));
    assert_eq!(geometric_mean(&[]), None);
}
