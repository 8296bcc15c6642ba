//! A process that complains as fast as it can writes little, and says how much it has left out.
#![allow(clippy::unwrap_used)]

use std::process::Command;

/// Generous for what a slow machine may add while the flood lasts.
const BYTES: usize = 256 << 10;

fn flood(arguments: &[&str]) -> (u64, String) {
    // The example is built before the tests are, in the directory beside theirs.
    let program = std::env::current_exe().unwrap().parent().unwrap().with_file_name("examples").join("flood");
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let tried = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    (tried, String::from_utf8(output.stderr).unwrap())
}

/// The number before `words` in a line, or after it with an equals sign.
fn counted(text: &str) -> u64 {
    let before = |line: &str, words: &str| {
        let (head, _) = line.split_once(words)?;
        head.rsplit([' ', '(']).next()?.parse::<u64>().ok()
    };
    let field = |line: &str| {
        let (_, rest) = line.split_once("left_out=").or_else(|| line.split_once("\"left_out\":"))?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    text.lines()
        .filter_map(|line| {
            before(line, " more lines from")
                .or_else(|| before(line, " lines like this were left out"))
                .or_else(|| field(line))
        })
        .sum()
}

#[test]
fn a_flood_is_a_trickle_and_every_line_is_accounted_for() {
    for arguments in [&[][..], &["--json"]] {
        let (tried, text) = flood(arguments);
        assert!(text.len() < BYTES, "{} bytes", text.len());
        let own = |line: &&str| line.contains("lines like the next one") || line.contains("more lines from");
        let written = text.lines().filter(|line| !own(line)).count() as u64;
        assert_eq!(written + counted(&text), tried, "{text}");
        for place in ["an event", "lowest level", "a record ", "another level", "lockstep: a line"] {
            assert!(text.contains(place), "{place} is heard of");
        }
    }
}
