//! A half that translates and one that interprets are a pair like any other: every digest is equal, and
//! either goes on where the other one stopped.

use lockstep::cluster::Part;
use serde_json::Value;

use crate::harness::{Pair, wait_until};
use crate::load::Load;

/// Digests that the backup is to compare under load.
const DIGESTS: u64 = 20;

/// The share of its instructions that a half executed as translated code.
fn native_share(pair: &Pair, part: Part) -> f64 {
    let status = pair.status(part).unwrap();
    status.pointer("/guest/translator/native_share").and_then(Value::as_f64).unwrap_or(0.0)
}

/// `--jit` of the primary, LOCKSTEP_JIT of the backup.
fn halves_agree(test: &str, primary: &str, backup: &str) {
    let started = Pair::start_with(test, |options| {
        options.vm_options.extend(["--engine", "soft", "--digest-ms", "20"].map(String::from));
        options.primary_options = vec!["--jit".into(), primary.into()];
        options.backup_environment = vec![("LOCKSTEP_JIT".into(), backup.into())];
    });
    let Some(mut pair) = started else { return };
    let load = Load::start(pair.port(), 4);
    load.wait_for(2000);
    let digests = |pair: &Pair| pair.status(Part::Backup).unwrap()["backup"]["digests"].as_u64();
    let before = digests(&pair).unwrap();
    wait_until("the backup to compare digests", || digests(&pair).unwrap() >= before + DIGESTS);
    for (part, jit) in [(Part::Primary, primary), (Part::Backup, backup)] {
        let share = native_share(&pair, part);
        assert_eq!(share > 0.0, jit == "on", "{}, --jit {jit}: {share}", part.name());
    }
    pair.kill(Part::Primary).unwrap();
    pair.wait_for_state(Part::Backup, "Alone");
    load.wait_for(1000);
    load.stop().assert_unbroken().check(pair.port());
    pair.assert_one_live(Part::Backup, 2);
}

#[test]
fn a_backup_that_interprets_agrees_with_a_primary_that_translates() {
    halves_agree("a_backup_that_interprets", "on", "off");
}

#[test]
fn a_backup_that_translates_agrees_with_a_primary_that_interprets() {
    halves_agree("a_backup_that_translates", "off", "on");
}
