//! The comparison's arithmetic, from pairs made up here.

use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Command {
    #[command(flatten)]
    bench: BenchArgs,
}

fn measured(requests_per_s: f64) -> Measured {
    Measured {
        requests_per_s,
        p50_us: 1e6 / requests_per_s,
        p99_us: 2e6 / requests_per_s,
        cpu_us_per_request: 1e6 / requests_per_s,
        log_bytes_per_request: Some(50.0),
        errors: 0,
    }
}

fn side(rates: &[f64]) -> Measurements {
    Measurements::new(Path::new("lockstep"), "1", 1.0, rates.iter().map(|rate| measured(*rate)).collect())
}

#[test]
fn pairs_are_compared_and_not_their_sums() {
    let words = ["lockstep", "service", "--guest", "redis", "--against", "old", "--pairs", "6"];
    let args = Command::parse_from(words).bench;
    assert_eq!(args.against.against.as_deref(), Some(Path::new("old")));
    // The host slows down to a tenth while it is measured.
    let (this, other) =
        ([3000.0, 2900.0, 1500.0, 600.0, 300.0, 330.0], [1000.0, 1000.0, 500.0, 200.0, 100.0, 100.0]);
    let report = Against::new(Host::new(), &args, side(&this), side(&other));
    let rate = report.rate.expect("a ratio");
    assert_eq!((rate.median, rate.low, rate.high), (3.0, 2.9, 3.3));
    assert!(rate.confidence > 0.95);
    assert!((report.cpu.expect("a ratio").median - 3.0).abs() < 1e-9);
    assert!(report.aims[0].met);
    let report = Against::new(Host::new(), &args, side(&other), side(&this));
    assert!(!report.aims[0].met);
}

#[test]
fn a_pair_is_the_mean_of_its_halves() {
    let half =
        |requests_per_s, cpu_us_per_request| Measured { cpu_us_per_request, ..measured(requests_per_s) };
    let pair = mean(&[half(3000.0, 100.0), half(1000.0, 300.0)]);
    assert!((pair.requests_per_s - 2000.0).abs() < 1e-9);
    // 3,000 requests for 0.3 s and 1,000 for 0.3 s.
    assert!((pair.cpu_us_per_request - 150.0).abs() < 1e-9, "{pair:?}");
    assert!((pair.log_bytes_per_request.expect("bytes") - 50.0).abs() < 1e-9);
}
