//! The commands on a whole recording.

use crate::harness::scale;
use crate::recorded::{json, lockstep, shared, shared_soft, succeeds, switched_off};

fn path() -> Option<&'static str> {
    shared().map(|path| path.to_str().expect("a name in UTF-8"))
}

#[test]
fn a_replay_ends_where_the_run_did_and_shows_its_console() {
    let Some(path) = path() else { return };
    let stat = json(&["log", "stat", path, "--json"]);
    assert!(stat["kinds"]["NetRx"]["entries"].as_u64().expect("frames") > 600, "{stat}");
    assert!(stat["checkpoints"].as_u64().expect("a number") > 3, "{stat}");
    let end = json(&["replay", path, "--json"]);
    assert_eq!(end["arrival"], "powered off from outside");
    assert_eq!((&end["position"], &end["entries"]), (&stat["position"], &stat["entries"]));
    assert_eq!(json(&["replay", path, "--json"]), end, "twice the same");
    let shown = succeeds(&["replay", path]);
    assert!(shown.contains("minikv"), "its console: {shown}");
    assert!(shown.contains("powered off from outside") && shown.contains("digest registers"), "{shown}");
}

#[test]
fn every_entry_is_dumped_for_people_and_for_programs() {
    let Some(path) = path() else { return };
    let stat = json(&["log", "stat", path, "--json"]);
    let entries = stat["entries"].as_u64().expect("a number") as usize;
    let (text, lines) = (succeeds(&["log", "dump", path]), succeeds(&["log", "dump", path, "--json"]));
    assert_eq!((text.lines().count(), lines.lines().count()), (entries, entries));
    let mut clocks = 0;
    for (number, line) in lines.lines().enumerate() {
        let entry: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(entry["seq"], number as u64 + 1);
        clocks += u64::from(entry["event"] == "Clock");
    }
    assert_eq!(clocks, stat["kinds"]["Clock"]["entries"]);
    let some = succeeds(&["log", "dump", path, "--from", "100", "--to", "200"]);
    assert!(!some.is_empty() && some.lines().count() < entries);
    assert!(succeeds(&["log", "stat", path]).contains("exits"));
}

#[test]
fn a_position_is_the_same_from_the_start_and_from_a_checkpoint() {
    let Some(path) = path() else { return };
    let end = json(&["log", "stat", path, "--json"])["position"].as_u64().expect("a number");
    for place in [1, end / 3, end / 2, end - 1] {
        let to = place.to_string();
        let straight = json(&["replay", path, "--json", "--to", &to]);
        assert_eq!(straight["position"], place);
        assert_eq!(json(&["replay", path, "--json", "--from", &to, "--to", &to]), straight);
    }
    let output = json(&["replay", path, "--json", "--to-output", "20"]);
    assert_eq!(output["arrival"], "there");
    assert!(output["entries"].as_u64().expect("a number") >= 20);
    let none = lockstep(&["replay", path, "--to-output", "99999999"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&none.stderr).contains("outputs, not 99999999"));
}

#[test]
fn it_verifies_under_kicks_and_with_stops() {
    for path in [shared(), shared_soft()].into_iter().flatten() {
        verifies(path.to_str().expect("a name in UTF-8"));
    }
}

#[test]
fn a_press_of_the_power_button_replays_on_either_engine() {
    for engine in ["kvm", "soft"] {
        let directory = tempfile::TempDir::new().expect("a directory");
        let path = directory.path().join("run.lkr");
        let Some(()) = switched_off(&path, engine) else { continue };
        let path = path.to_str().expect("a name in UTF-8");
        assert_eq!(json(&["log", "stat", path, "--json"])["kinds"]["PowerButton"]["entries"], 1);
        let end = json(&["replay", path, "--json"]);
        assert_eq!(end["arrival"], "the guest switched itself off, status 0");
        assert!(succeeds(&["verify", path, "-n", "2", "--stops", "20"]).contains("all equal"));
    }
}

fn verifies(path: &str) {
    let (times, stops) = ((3 * scale()).to_string(), (200 * scale()).to_string());
    let said = succeeds(&["verify", path, "-n", &times, "--stops", &stops, "--seed", "7"]);
    assert!(said.contains(&format!("replay {times} of {times}: equal")), "{said}");
    assert!(said.contains(&format!("{stops} stops at random positions: equal")), "{said}");
    assert!(said.contains("all equal"), "{said}");
    assert!(!said.contains(" 0 kicks"), "{said}");
}

#[test]
fn a_file_that_is_none_is_refused_with_words() {
    let directory = tempfile::TempDir::new().expect("a directory");
    let path = directory.path().join("none.lkr");
    let path = path.to_str().expect("a name in UTF-8");
    for content in [&b""[..], b"something else altogether, and not short at all", &[0; 4096]] {
        std::fs::write(path, content).expect("a file");
        for command in [&["replay", path][..], &["verify", path], &["log", "dump", path], &["diverge", path]]
        {
            let output = lockstep(command);
            assert_eq!(output.status.code(), Some(1), "{command:?}");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains("is no recording of lockstep"), "{command:?}: {said}");
        }
    }
    let output = lockstep(&["replay", "does-not-exist.lkr"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot open the recording"));
}
