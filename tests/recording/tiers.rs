//! What one tier of the software processor recorded, the other one verifies: straight, kicked at random
//! moments and stopped at random positions.
//!
//! LOCKSTEP_TIER_STOPS says at how many positions, of redis too, which else is only replayed.

use std::path::Path;

use lockstep::cluster::Part;
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::Pair;
use crate::recorded::{has_guest, json, load, start_with, succeeds};

/// `--jit` of who records, and of who verifies.
const WAYS: [(&str, &str); 2] = [("on", "off"), ("off", "on")];

/// Stops that are asked for.
fn stops() -> Option<String> {
    let text = std::env::var("LOCKSTEP_TIER_STOPS").ok()?;
    assert!(text.parse::<u64>().is_ok(), "LOCKSTEP_TIER_STOPS is a number");
    Some(text)
}

/// The share of its instructions that a machine executed as translated code.
fn native_share(pair: &Pair, part: Part) -> f64 {
    let status = pair.status(part).expect("its status");
    status.pointer("/guest/translator/native_share").and_then(Value::as_f64).unwrap_or(0.0)
}

/// Verifies a recording under `tier`.
pub fn verify(path: &Path, tier: &str, kicked: &str, stops: &str) {
    let name = path.to_str().expect("a name in UTF-8");
    let said = succeeds(&["verify", name, "--jit", tier, "-n", kicked, "--stops", stops, "--seed", "3"]);
    println!("{}", said.trim_end());
    assert!(said.contains("all equal"), "{said}");
}

/// Ends the machine in order when it has done `commands`.
fn record(mut pair: Pair, tier: &str, commands: usize) {
    load(pair.port(), commands);
    let share = native_share(&pair, Part::Primary);
    println!("--jit {tier}: {:.1} % of the instructions translated", 100.0 * share);
    assert_eq!(share > 0.0, tier == "on", "{share}");
    pair.signal(Part::Primary, Signal::SIGTERM).expect("SIGTERM");
    let status = pair.wait_for_end(Part::Primary).expect("it ends by itself");
    assert!(status.success(), "{status}: {}", pair.log_tail(Part::Primary));
}

#[test]
fn either_tier_verifies_what_the_other_recorded() {
    let stops = stops().unwrap_or("50".into());
    for (records, verifies) in WAYS {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("run.lkr");
        let options = ["--memory", "32", "--engine", "soft", "--jit", records];
        let Some(pair) = start_with("tiers", &path, "0.03", &options) else { return };
        record(pair, records, 1000);
        verify(&path, verifies, "3", &stops);
        let end = |tier| json(&["replay", path.to_str().expect("UTF-8"), "--json", "--jit", tier]);
        assert_eq!(end("on"), end("off"));
    }
}

#[test]
fn either_tier_verifies_a_server_that_the_other_recorded() {
    if !has_guest("redis") {
        return;
    }
    let (kicked, stops) = stops().map_or(("0", "0".into()), |stops| ("2", stops));
    for (records, verifies) in WAYS {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("run.lkr");
        let options = ["--guest", "redis", "--disk-size", "256", "--jit", records];
        let Some(pair) = start_with("tiers of redis", &path, "1", &options) else { return };
        record(pair, records, 600);
        verify(&path, verifies, kicked, &stops);
    }
}
