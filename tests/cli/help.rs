//! Help that fits a terminal.

use crate::process::command;

/// Every command, with words that come before `--help`.
fn commands() -> Vec<Vec<String>> {
    let top = help(&[]);
    let listed = |text: &str| -> Vec<String> {
        let lines = text.lines().skip_while(|line| *line != "Commands:").skip(1);
        let names = lines.take_while(|line| line.starts_with("  "));
        names
            .filter(|line| !line.starts_with("   "))
            .filter_map(|line| line.split_whitespace().next())
            .filter(|name| *name != "help")
            .map(str::to_owned)
            .collect()
    };
    let mut all = vec![Vec::new()];
    for name in listed(&top) {
        let text = help(std::slice::from_ref(&name));
        all.extend(listed(&text).into_iter().map(|inner| vec![name.clone(), inner]));
        all.push(vec![name]);
    }
    all
}

fn help(words: &[String]) -> String {
    let words: Vec<&str> = words.iter().map(String::as_str).chain(["--help"]).collect();
    let output = command(&words).env("COLUMNS", "80").output().expect("a process");
    assert!(output.status.success(), "{words:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn every_help_fits_80_columns_and_breaks_at_words() {
    let commands = commands();
    assert!(commands.len() > 15, "{commands:?}");
    for words in commands {
        let text = help(&words);
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{words:?}: {} columns: {line}", line.chars().count());
        }
    }
}

#[test]
fn the_options_of_a_machine_are_in_groups() {
    for (name, groups) in [
        ("run", &["Machine:", "Disk:", "Network:", "Recording:", "Debugging:"][..]),
        ("record", &["Machine:", "Disk:", "Network:", "Recording:"]),
        ("primary", &["Machine:", "Disk:", "Network:", "Pair:", "Recording:"]),
        ("backup", &["Machine:", "Disk:", "Network:", "Pair:", "Recording:"]),
    ] {
        let text = help(&[name.to_owned()]);
        for group in groups {
            assert!(text.lines().any(|line| line == *group), "{name} has {group}");
        }
        assert!(text.contains("Examples:"), "{name} has examples");
        let plain = text.lines().skip_while(|line| *line != "Options:").skip(1);
        let options = plain.take_while(|line| !line.is_empty()).filter(|line| line.contains("--"));
        assert_eq!(options.count(), 2, "{name}: --help and --version alone are in no group");
    }
}

#[test]
fn limits_of_the_network_are_options() {
    let text = help(&["lan".to_owned()]);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for word in ["--max-connections", "[default: 1024]", "--max-monitors", "[default: 64]"] {
        assert!(text.contains(word), "{word}");
    }
}
