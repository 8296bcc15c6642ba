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

fn config(option: &str, ms: u64) -> anyhow::Result<VmConfig> {
    let options = Options::try_parse_from(["lockstep", option, &ms.to_string()])?;
    VmConfig::new(&options.vm, Some(&options.pair), 0)
}

/// 18446744073710 ms are 448384 ns modulo 2^64: a digest every half millisecond.
#[test]
fn milliseconds_whose_nanoseconds_do_not_fit_are_refused() {
    for option in MS_OPTIONS {
        for ms in [Policy::MAX_DIGEST_MS + 1, 18_446_744_073_710, u64::MAX] {
            let refused = config(option, ms).expect_err("too many").to_string();
            assert!(refused.contains(option), "{refused}");
        }
    }
}

#[test]
fn the_most_milliseconds_fit() {
    let digest = config("--digest-ms", Policy::MAX_DIGEST_MS).expect("the limit is allowed");
    assert_eq!(digest.digest_every_ns(), Policy::MAX_DIGEST_MS * 1_000_000);
    let timeout = config("--timeout-ms", Policy::MAX_MS).expect("the limit is allowed");
    assert_eq!(protocol(&timeout.policy, 1).ack_timeout_ns, 4 * Policy::MAX_MS * 1_000_000);
}
