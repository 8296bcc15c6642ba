//! Programs in a guest that change their own code all the time: a JVM, and one that rewrites code through two
//! mappings of a page, across the ends of pages, and by mprotect. The same files, run by this host's
//! processor, say what they are to compute.

use lockstep::cli::bench::programs::{DISK_SIZE, GUEST, Tree, image};
use serde_json::Value;
use std::process::Command;

use crate::guest::{Guest, PROGRAM, World};

/// Rounds of the rewriting program, unless `LOCKSTEP_REWRITES` says more: some thousand changes of code.
const REWRITES: u32 = 300;
/// Of the JVM's work, unless `LOCKSTEP_JAVA` says more: its compilers are at work before it ends.
const JAVA: u32 = 2;

fn rounds(variable: &str, default: u32) -> u32 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number of rounds"))
}

#[test]
fn programs_that_change_their_own_code_end_as_natively() {
    let Some(world) = World::new(GUEST) else { return };
    let image = image(None).expect("just found");
    let (rewrites, java) = (rounds("LOCKSTEP_REWRITES", REWRITES), rounds("LOCKSTEP_JAVA", JAVA));
    let tree = Tree::new(&image).expect("a copy of the guest's files");
    let mut expected: Vec<String> = Vec::new();
    for (name, scale) in [("rewrite", rewrites), ("java", java)] {
        let said = tree.output(&[name, &scale.to_string()], true).expect("it runs here");
        expected.extend(said.lines().map(|line| line.trim().to_string()));
    }
    // The three ways to rewrite, and a checksum of what the JVM printed.
    assert_eq!(expected.len(), 4, "{expected:?}");
    assert!(expected.iter().all(|line| line.len() > 16), "{expected:?}");

    let script = "/usr/share/programs/work.sh";
    let line = format!(
        "{} run=\"s={script}; sh $s prepare; sh $s rewrite {rewrites}; sh $s java {java}; echo all-ran\"",
        image.manifest.command_line
    );
    let mut guest = Guest::start(&world, GUEST, &["--disk-size", DISK_SIZE, "--cmdline", &line]);
    guest.expect("all-ran");
    for line in &expected {
        assert!(guest.said(line), "the guest did not say {line:?}:\n{}", guest.transcript());
    }
    guest.ends("the guest switched itself off, status 0");
}

/// In its shortest form.
#[test]
fn the_bench_of_programs_computes_what_the_host_does() {
    let Some(_world) = World::new(GUEST) else { return };
    let output = Command::new(PROGRAM).args(["bench", "programs", "--quick", "--json"]).output();
    let output = output.expect("lockstep starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let programs = report["programs"].as_array().expect("a list");
    let names: Vec<&str> = programs.iter().filter_map(|row| row["name"].as_str()).collect();
    assert_eq!(names, ["openssl", "sqlite"]);
    for row in programs {
        for side in ["restricted_s", "native_s", "soft_s"] {
            let seconds = row[side][0].as_f64().expect("one round");
            assert!(seconds > 0.0 && seconds.is_finite(), "{row}");
        }
        assert!(row["soft_over_restricted"]["median"].as_f64().is_some_and(|ratio| ratio > 0.0), "{row}");
    }
    assert_eq!(report["aims"].as_array().map(Vec::len), Some(2));
}
