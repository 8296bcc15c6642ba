//! What a guest says, read.

use super::*;

const PROGRAMS: [Program; 2] = [Program { name: "java", scale: 20 }, Program { name: "gcc", scale: 2 }];

fn said(lines: &[(u64, &str)]) -> Said {
    let line = |(cpu_ns, text): &(u64, &str)| Line { at_ns: 0, cpu_ns: *cpu_ns, text: (*text).into() };
    Said { name: "soft", started_ns: 0, lines: lines.iter().map(line).collect() }
}

#[test]
fn the_cpu_time_of_a_program_is_between_its_lines() {
    let said = said(&[
        (1, "init: programs are next"),
        (1_000_000_000, "programs java begins"),
        (3_500_000_000, "programs java 00ff"),
        (4_000_000_000, "programs gcc begins"),
        (4_000_000_000, "a warning of gcc begins"),
        (5_000_000_000, "programs gcc 1234"),
    ]);
    let ran = parse(&said, &PROGRAMS).expect("both ran");
    assert_eq!(ran[0], Ran { cpu_s: 2.5, checksum: "00ff".into() });
    assert_eq!(ran[1], Ran { cpu_s: 1.0, checksum: "1234".into() });
}

#[test]
fn a_program_without_an_end_or_a_checksum_is_an_error() {
    let cut = [(1, "programs java begins"), (2, "programs java 00ff"), (3, "programs gcc begins")];
    let error = parse(&said(&cut), &PROGRAMS).expect_err("gcc has no end").to_string();
    assert!(error.contains("gcc did not come to its end"), "{error}");
    let empty = [(1, "programs java begins"), (2, "programs java")];
    parse(&said(&empty), &PROGRAMS[..1]).expect_err("no checksum");
}

#[test]
fn the_script_runs_each_program_twice() {
    let script = script(&PROGRAMS);
    assert!(script.contains("sh $s java 1 >/dev/null; echo programs java begins;"), "{script}");
    assert!(script.contains("echo programs gcc $(sh $s gcc 2 | tail -n 1);"), "{script}");
    // The kernel takes 2,047 characters.
    assert!(script.len() < 1500, "{}", script.len());
    assert!(!script.contains('"'), "{script}");
}
