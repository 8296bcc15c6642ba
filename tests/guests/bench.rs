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
