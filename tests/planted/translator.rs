//! Mistakes planted in the translator, under the whole program: each ends a run with `--jit check`, and the
//! replay of what an interpreter recorded differs, by its digests or outputs.
//!
//! The guests are those of the processor's own tests (`vmm/softcpu/tests/translated/mistakes.rs`), each a
//! kernel (`image`). `LOCKSTEP_PLANTED_TRIES` says how many of each there are (2).

use std::path::Path;
use std::process::{Command, Output};

use softcpu::Mistake;

use crate::harness::{DIVERGED, PROGRAM};
use crate::image::kernel;
use crate::mistakes::guests;

const FAILED: i32 = 1;
const DIFFERS: &str = "internal error: translated code does not what the interpreter does: position ";

fn tries() -> u32 {
    let tries = std::env::var("LOCKSTEP_PLANTED_TRIES");
    tries.map_or(2, |tries| tries.parse().expect("LOCKSTEP_PLANTED_TRIES: a number"))
}

/// Runs the program, which translates every block before it runs.
fn lockstep(words: &[&str], planted: Option<&str>) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(words).env("LOCKSTEP_TRANSLATE_FROM", "1").stdin(std::process::Stdio::null());
    if let Some(name) = planted {
        command.env("LOCKSTEP_PLANTED", format!("{name}@0"));
    }
    command.output().expect("lockstep starts")
}

/// Options of a machine that starts a kernel and keeps what it has in a directory.
fn machine<'a>(kernel: &'a str, data: &'a str) -> [&'a str; 10] {
    ["--kernel", kernel, "--engine", "soft", "--memory", "4", "--clock", "virtual", "--data", data]
}

/// Exit code, and everything that was said.
fn end(output: &Output) -> (Option<i32>, String) {
    let said = [&output.stdout, &output.stderr].map(|part| String::from_utf8_lossy(part).into_owned());
    (output.status.code(), said.concat())
}

/// What `--jit check` says of a guest, and replays of an interpreter's recording; nothing, if all is equal.
fn findings(directory: &Path, guest: &Path, planted: Option<&str>) -> [Option<String>; 2] {
    let image = guest.to_str().expect("UTF-8");
    let data = directory.to_str().expect("UTF-8");
    let machine = machine(image, data);
    let checked = match end(&lockstep(&[&["run", "--jit", "check"], &machine[..]].concat(), planted)) {
        (Some(0), _) => None,
        (Some(FAILED), said) if said.contains(DIFFERS) => Some(said),
        other => panic!("{planted:?}: {other:?}"),
    };
    let recording = directory.join("run.lkr");
    let name = recording.to_str().expect("UTF-8");
    if !recording.exists() {
        let record = [&["record", "-o", name, "--jit", "off"], &machine[..]].concat();
        assert_eq!(end(&lockstep(&record, None)).0, Some(0));
    }
    let replayed = match end(&lockstep(&["verify", name, "-n", "0", "--jit", "on"], planted)) {
        (Some(0), said) if said.contains("all equal") => None,
        (Some(DIVERGED), said) => Some(said),
        other => panic!("{planted:?}: {other:?}"),
    };
    [checked, replayed]
}

#[test]
fn planted_mistakes_of_the_translator_are_found_by_the_check_and_by_digests() {
    let (of, mut found) = (tries(), Vec::new());
    for (name, mistake) in Mistake::ALL {
        let mut tries = [0; 2];
        for number in 0..of {
            let directory = tempfile::tempdir().expect("a directory");
            let guest = directory.path().join("guest.elf");
            std::fs::write(&guest, kernel(&guests(mistake)(number))).expect("a file");
            let nothing = findings(directory.path(), &guest, None);
            assert!(nothing.iter().all(Option::is_none), "{name}, guest {number}: {nothing:?}");
            let findings = findings(directory.path(), &guest, Some(name));
            for (tries, finding) in tries.iter_mut().zip(&findings) {
                *tries += u32::from(finding.is_some());
            }
            if number == 0 {
                println!("{name}: {findings:#?}");
            }
        }
        found.push((name, tries));
    }
    println!("found by the check and by digests, of {of} tries each: {found:?}");
    assert!(found.iter().all(|(_, found)| *found == [of; 2]), "of {of}: {found:?}");
}

/// A form that does nothing when translated: the self-test refuses it, and says so.
#[test]
fn an_odd_form_is_refused_and_said() {
    let directory = tempfile::tempdir().expect("a directory");
    let guest = directory.path().join("guest.elf");
    std::fs::write(&guest, kernel(&guests(Mistake::LostFlag)(0))).expect("a file");
    let image = guest.to_str().expect("UTF-8");
    let mut command = Command::new(PROGRAM);
    command.args(["run", "--jit", "check"]).args(machine(image, directory.path().to_str().expect("UTF-8")));
    command.env("LOCKSTEP_TRANSLATE_FROM", "1").stdin(std::process::Stdio::null());
    let (code, said) =
        end(&command.env("LOCKSTEP_ODD_FORM", "Imul_r64_rm64_imm8").output().expect("it runs"));
    assert_eq!(code, Some(0), "{said}");
    let refusal = "interpreted, not translated, since this host's results differ: Imul_r64_rm64_imm8";
    assert_eq!(said.matches(refusal).count(), 1, "{said}");
}

#[test]
fn this_host_computes_as_others_do() {
    let doctor = Command::new(PROGRAM).args(["doctor", "--json"]).output().expect("it runs");
    let report: serde_json::Value = serde_json::from_slice(&doctor.stdout).expect("JSON");
    assert_eq!(report["forms_as_elsewhere"], true, "{report}");
    assert_eq!(report["refused_forms"], serde_json::json!([]), "{report}");
}
