//! The report's arithmetic, from rounds made up here.

use super::*;

fn ran(seconds: [f64; 2], checksums: [&str; 2]) -> Vec<Ran> {
    seconds.into_iter().zip(checksums).map(|(cpu_s, sum)| Ran { cpu_s, checksum: sum.into() }).collect()
}

#[test]
fn ratios_are_taken_round_by_round() {
    let mut report = ProgramsReport::new(["one", "two"].into_iter());
    // The host is ten times slower in the second round.
    for slow in [1.0, 10.0] {
        report.add(Side::Restricted, &ran([slow, slow], ["a", "b"])).expect("equal");
        report.add(Side::Native, &ran([slow / 2.0, slow], ["a", "b"])).expect("equal");
        report.add(Side::Guest, &ran([3.0 * slow, 4.0 * slow], ["a", "b"])).expect("equal");
    }
    let report = report.end(Host::new());
    let medians: Vec<f64> =
        report.programs.iter().filter_map(|row| Some(row.soft_over_restricted?.median)).collect();
    assert_eq!(medians, [3.0, 4.0]);
    let aims: Vec<bool> = report.aims().iter().map(|aim| aim.met).collect();
    assert_eq!(aims, [true, false]);
    assert_eq!(report.programs[0].soft_over_native.expect("a ratio").median, 6.0);
    let mean = report.mean_over_restricted.expect("a mean");
    assert!((mean - 12f64.sqrt()).abs() < 1e-9, "{mean}");
}

#[test]
fn what_differs_is_an_error() {
    let mut report = ProgramsReport::new(["one", "two"].into_iter());
    report.add(Side::Guest, &ran([1.0, 1.0], ["a", "b"])).expect("equal");
    let error = report.add(Side::Native, &ran([1.0, 1.0], ["a", "c"])).expect_err("another checksum");
    assert!(error.to_string().starts_with("two: native computed c, another side b"), "{error}");
    report.add(Side::Native, &ran([1.0, 1.0], ["", "b"])).expect_err("no checksum");
}
