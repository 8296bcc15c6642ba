//! `lockstep bench cpu` in its shortest form: one kernel with a part of its work, natively and in a guest.

use std::process::Command;

use serde_json::Value;

use crate::guest::{PROGRAM, World};

#[test]
fn the_bench_of_the_cpu_computes_what_the_host_does() {
    // Only for its image and its turn.
    let Some(_world) = World::new("cpubench") else { return };
    let output =
        Command::new(PROGRAM).args(["bench", "cpu", "--json", "--quick"]).output().expect("lockstep starts");
    let complaint = String::from_utf8_lossy(&output.stderr);
    if complaint.contains("cannot build the guest image") {
        println!("SKIPPED: the guest image cpubench is old, and cannot be built here: {}", complaint.trim());
        return;
    }
    assert!(output.status.success(), "{complaint}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let kernels = report["kernels"].as_array().expect("a list");
    assert_eq!(kernels.len(), 1, "{report}");
    assert_eq!(kernels[0]["name"], "integer");
    // 1.7 thousand million, of which a twentieth.
    let instructions = kernels[0]["instructions"].as_u64().expect("a number");
    assert!((80_000_000..100_000_000).contains(&instructions), "{report}");
    let rate = kernels[0]["soft_mips"].as_f64().expect("a number");
    assert!(rate > 0.0 && rate.is_finite(), "{report}");
    assert_eq!(report["boots"][0]["guest"], "cpubench");
    assert_eq!(report["qemu"], Value::Null);
}

/// A program beside itself, for as short as can be.
#[test]
fn the_bench_against_another_build_measures_both() {
    let Some(_world) = World::new("redis") else { return };
    let words = ["bench", "service", "--guest", "redis", "--against", PROGRAM, "--pairs", "2", "--json"];
    let output = Command::new(PROGRAM).args(words).args(["--seconds", "0.5"]).output();
    let output = output.expect("lockstep starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for side in ["this", "other"] {
        let rounds = report[side]["rounds"].as_array().expect("a list");
        assert_eq!(rounds.len(), 2, "{report}");
        assert!(rounds.iter().all(|round| round["requests_per_s"].as_f64() > Some(0.0)), "{report}");
        assert!(report[side]["log_bytes_per_request"].as_f64() > Some(0.0), "{report}");
    }
    let ratio = &report["rate"];
    assert_eq!(ratio["pairs"], 2, "{report}");
    assert!(ratio["low"].as_f64() <= ratio["median"].as_f64(), "{report}");
    assert!(ratio["median"].as_f64() <= ratio["high"].as_f64(), "{report}");
}
