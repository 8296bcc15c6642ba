//! Options at their limits.

use clap::Parser;
use softcpu::Jit;

use super::*;
use crate::engine::EngineOptions;

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

#[test]
fn how_the_engine_executes_is_each_process_own_choice() {
    let options = |words: &[&str]| {
        let options = Options::try_parse_from(["lockstep"].iter().chain(words)).expect("options");
        VmConfig::new(&options.vm, Some(&options.pair), 0).expect("a configuration")
    };
    let check = options(&["--jit", "check", "--perf-map"]);
    assert_eq!(check.around.options, EngineOptions { jit: Jit::Check, perf_map: true });
    let off = options(&["--jit", "off"]);
    assert_eq!(off.around.options, EngineOptions { jit: Jit::Off, perf_map: false });
    assert_eq!(check.pair(), off.pair(), "nothing that a pair must agree on");
    assert!(Options::try_parse_from(["lockstep", "--jit", "maybe"]).is_err());
}
