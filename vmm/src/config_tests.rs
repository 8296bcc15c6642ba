//! Options at their limits.

use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Options {
    #[command(flatten)]
    vm: VmArgs,
    #[command(flatten)]
    pair: PairArgs,
}

const MS_OPTIONS: [&str; 4] = ["--digest-ms", "--heartbeat-ms", "--timeout-ms", "--lag-target-ms"];

fn parse(option: &str, ms: u64) -> Result<Options, clap::Error> {
    Options::try_parse_from(["lockstep", option, &ms.to_string()])
}

/// 18446744073710 ms are 448384 ns modulo 2^64: a digest every half millisecond.
#[test]
fn milliseconds_whose_nanoseconds_do_not_fit_are_refused() {
    for option in MS_OPTIONS {
        for ms in [MAX_MS + 1, 18_446_744_073_710, u64::MAX] {
            let refused = parse(option, ms).expect_err("too many").to_string();
            assert!(refused.contains(option) && refused.contains("86400000"), "{refused}");
        }
    }
}

#[test]
fn the_most_milliseconds_are_a_day() {
    for option in MS_OPTIONS {
        let options = parse(option, MAX_MS).expect("the limit is allowed");
        let protocol = options.pair.protocol(1);
        let largest = protocol.ack_timeout_ns.max(protocol.heartbeat_every_ns).max(protocol.lag_target_ns);
        assert!(largest <= 4 * 86_400_000_000_000, "{option}: {largest}");
        let _ = options.pair.check();
    }
    let vm = parse("--digest-ms", MAX_MS).expect("the limit is allowed").vm;
    let config = VmConfig::new(&vm, None, 0).expect("minikv");
    assert_eq!(config.digest_every_ns(), 86_400_000_000_000);
}
