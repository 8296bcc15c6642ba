//! The house style, as far as a program can check it: every file that git tracks, one test per rule.
//!
//! A finding reads `path:line: what is wrong`. Two rules know exceptions, made by a comment on the line or
//! shortly above it that gives the reason: `// tidy: allow(long-function) a table of instructions`, and
//! `// tidy: allow(sleep) ...`.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

const FILE_LINES: usize = 700;
const FUNCTION_LINES: usize = 70;
const RUST_COLUMNS: usize = 110;
const TEXT_COLUMNS: usize = 160;
/// How far above an unsafe operation its SAFETY comment, and above an exception its marker, may begin.
const NEARBY_LINES: usize = 8;

/// Where unsafe code may be: path prefixes.
const UNSAFE_PLACES: [&str; 11] = [
    "vmm/softcpu/",
    "guest-images/cpubench/",
    "vmm/src/engine/soft/",
    "vmm/src/engine/kvm/",
    "vmm/src/memory.rs",
    "tests/engine/determinism.rs",
    "tests/guests/seccomp.rs",
    "tests/replay/signals.rs",
    "vmm/src/cli/doctor.rs",
    "vmm/lan/src/backend/tap.rs",
    "guest-images/minikv/",
];
/// Crates whose roots must forbid it.
const SAFE_CRATES: [&str; 6] =
    ["logchannel", "disk-server", "vmm/devices", "vmm/replay", "vmm/ft", "vmm/host"];
/// Of these every Rust file begins with a `//!` comment.
const DOCUMENTED: [&str; 3] = ["vmm/", "logchannel/", "disk-server/"];
/// Not ours to format.
const FOREIGN: [&str; 3] = ["Cargo.lock", "LICENSE-APACHE", "LICENSE-MIT"];
/// Directories of the machine that something was written on. Split, so that this file has none of them.
const MACHINE_PATHS: [&str; 4] =
    [concat!("/", "work"), concat!("/", "root"), concat!("/", "home"), concat!("/tmp", "/wt")];
/// Unfinished work, in comments and everywhere else.
const UNFINISHED: [&str; 2] = [concat!("FIX", "ME"), concat!("TO", "DO")];
/// Unfinished work, in code.
const UNFINISHED_CODE: [&str; 3] = ["todo!", "unimplemented!", "#[ignore"];
/// In any case of letters.
const FOREIGN_WORDS: [&str; 3] = [concat!("clau", "de"), concat!("sub", "agent"), concat!("L", "LM")];

/// Line (from 1) and what is wrong there.
type Findings = Vec<(usize, String)>;

/// One tracked text file.
struct Source {
    path: String,
    text: String,
    /// The text without what comments, strings and characters hold, of the same shape; empty unless Rust.
    code: String,
    /// Lines (from 0) of `#[cfg(test)] mod … { … }`.
    test_modules: Vec<Range<usize>>,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let code = if path.ends_with(".rs") { code_of(text) } else { String::new() };
        let test_modules = test_modules(&code);
        Self { path: path.into(), text: text.into(), code, test_modules }
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// A file of nothing but tests.
    fn is_test(&self) -> bool {
        self.path.split('/').rev().skip(1).any(|part| part == "tests")
            || self.name().ends_with("_tests.rs")
            || self.name() == "tests.rs"
    }

    /// Whether `line` (from 0) belongs to a test.
    fn in_test(&self, line: usize) -> bool {
        self.is_test() || self.test_modules.iter().any(|lines| lines.contains(&line))
    }

    /// Whether one of the lines up to `line` (from 0) has `text`, as far as it is nearby.
    fn nearby(&self, line: usize, text: &str) -> bool {
        self.text.lines().take(line + 1).skip(line.saturating_sub(NEARBY_LINES)).any(|l| l.contains(text))
    }

    /// Whether an exception is made for `line` (from 0), and its reason given.
    fn allowed(&self, line: usize, rule: &str) -> bool {
        let marker = format!("// tidy: allow({rule}) ");
        let above = self.text.lines().take(line + 1).skip(line.saturating_sub(NEARBY_LINES));
        above
            .filter_map(|l| l.split_once(&marker))
            .any(|(_, reason)| reason.split_whitespace().next().is_some())
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Rust text with everything inside comments, strings and character literals turned into spaces.
fn code_of(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = hidden_end(&chars, at).unwrap_or(at);
        for c in &chars[at..end] {
            out.push(if *c == '\n' { '\n' } else { ' ' });
        }
        if end == at {
            out.push(chars[at]);
        }
        at = end.max(at + 1);
    }
    out
}

/// Where the comment, string or character literal that begins at `at` ends, if one does.
fn hidden_end(chars: &[char], at: usize) -> Option<usize> {
    let is = |i: usize, c: char| chars.get(i) == Some(&c);
    let find = |from: usize, c: char| (from..chars.len()).find(|&i| is(i, c)).unwrap_or(chars.len());
    let word_before = at > 0 && is_word(chars[at - 1]);
    match chars[at] {
        '/' if is(at + 1, '/') => Some(find(at, '\n')),
        '/' if is(at + 1, '*') => Some(block_comment_end(chars, at)),
        '"' => Some(quoted_end(chars, at, '"')),
        'r' | 'b' | 'c' if !word_before => {
            let mut quote = at + 1 + usize::from(is(at + 1, 'r'));
            let raw = is(at, 'r') || is(at + 1, 'r');
            let hashes = chars[quote.min(chars.len())..].iter().take_while(|c| **c == '#').count();
            quote += hashes;
            if !raw || !is(quote, '"') {
                return None;
            }
            let closes = |i: usize| is(i, '"') && (1..=hashes).all(|n| is(i + n, '#'));
            Some((quote + 1..chars.len()).find(|&i| closes(i)).map_or(chars.len(), |i| i + 1 + hashes))
        }
        '\'' if is(at + 1, '\\') => Some(quoted_end(chars, at, '\'')),
        // Otherwise a lifetime.
        '\'' if is(at + 2, '\'') => Some(at + 3),
        _ => None,
    }
}

fn quoted_end(chars: &[char], at: usize, quote: char) -> usize {
    let mut i = at + 1;
    while i < chars.len() && chars[i] != quote {
        i += 1 + usize::from(chars[i] == '\\');
    }
    (i + 1).min(chars.len())
}

fn block_comment_end(chars: &[char], at: usize) -> usize {
    let (mut i, mut depth) = (at, 0);
    while i + 1 < chars.len() {
        match (chars[i], chars[i + 1]) {
            ('/', '*') => (depth, i) = (depth + 1, i + 2),
            ('*', '/') => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

/// From the first `{` outside brackets after `at` to its `}`, in bytes of `code`; none if a `;` comes first.
fn body(code: &str, at: usize) -> Option<Range<usize>> {
    let (mut brackets, mut braces, mut start) = (0i32, 0i32, at);
    for (i, byte) in code.bytes().enumerate().skip(at) {
        match byte {
            b'(' | b'[' => brackets += 1,
            b')' | b']' => brackets -= 1,
            b';' if brackets == 0 && braces == 0 => return None,
            b'{' if brackets == 0 || braces > 0 => {
                start = if braces == 0 { i } else { start };
                braces += 1;
            }
            b'}' if braces > 0 => {
                braces -= 1;
                if braces == 0 {
                    return Some(start..i + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// The line (from 0) of byte `at`.
fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at].iter().filter(|b| **b == b'\n').count()
}

fn test_modules(code: &str) -> Vec<Range<usize>> {
    let attribute = "#[cfg(test)]";
    let found = code.match_indices(attribute).filter_map(|(at, _)| {
        let body = body(code, at + attribute.len())?;
        let head = &code[at + attribute.len()..body.start];
        head.split_whitespace().any(|w| w == "mod").then(|| line_of(code, at)..line_of(code, body.end) + 1)
    });
    found.collect()
}

/// Places of `word` in `text` that are not parts of longer words, in bytes.
fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    text.match_indices(word).map(|(at, _)| at).filter(move |at| {
        !text[..*at].chars().next_back().is_some_and(is_word)
            && !text[at + word.len()..].chars().next().is_some_and(is_word)
    })
}

// ---- The rules -----------------------------------------------------------------------------------

fn long_file(source: &Source) -> Findings {
    if source.is_test() || FOREIGN.contains(&source.name()) {
        return Vec::new();
    }
    let tests: usize = source.test_modules.iter().map(Range::len).sum();
    let lines = source.text.lines().count() - tests;
    let long = lines > FILE_LINES;
    long.then(|| (FILE_LINES + 1, format!("the file has {lines} lines, {FILE_LINES} allowed")))
        .into_iter()
        .collect()
}

fn long_function(source: &Source) -> Findings {
    let functions = words(&source.code, "fn").filter_map(|at| {
        let name = source.code[at + 2..].trim_start();
        let name: String = name.chars().take_while(|c| is_word(*c)).collect();
        (!name.is_empty()).then_some(())?;
        let first = line_of(&source.code, at);
        let lines = line_of(&source.code, body(&source.code, at)?.end) - first + 1;
        let wrong =
            lines > FUNCTION_LINES && !source.in_test(first) && !source.allowed(first, "long-function");
        wrong.then(|| (first + 1, format!("function `{name}` has {lines} lines, {FUNCTION_LINES} allowed")))
    });
    functions.collect()
}

fn wide_line(source: &Source) -> Findings {
    let limit = match source.path.rsplit('.').next() {
        Some("rs") => RUST_COLUMNS,
        Some("md") => TEXT_COLUMNS,
        _ => return Vec::new(),
    };
    let lines: Vec<(usize, &str)> = match source.is_rust() {
        true => source.text.lines().enumerate().collect(),
        // Tables and indented code may be as wide as they must.
        false => unfenced(&source.text)
            .filter(|(_, l)| !l.starts_with("    ") && !l.trim().starts_with('|'))
            .collect(),
    };
    let columns = lines.iter().map(|(n, line)| (n, line.chars().count()));
    columns
        .filter(|(_, columns)| *columns > limit)
        .map(|(n, columns)| (n + 1, format!("{columns} columns, {limit} allowed")))
        .collect()
}

/// Lines of Markdown outside fenced blocks, numbered from 0.
fn unfenced(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter(move |(_, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

fn unsafe_code(source: &Source) -> Findings {
    let mut out = Vec::new();
    let lines: Vec<&str> = source.code.lines().collect();
    for at in words(&source.code, "unsafe") {
        let line = line_of(&source.code, at);
        if !UNSAFE_PLACES.iter().any(|place| source.path.starts_with(place)) {
            out.push((line + 1, "unsafe code is not allowed in this file".into()));
            continue;
        }
        let rest = source.code[at + "unsafe".len()..].trim_start();
        let explained = source.nearby(line, "SAFETY:") || source.nearby(line, "# Safety");
        // An attribute, `#[unsafe(no_mangle)]`, and a method of an unsafe trait have nothing to explain.
        let exempt = rest.starts_with('(') || (rest.starts_with("fn") && in_unsafe_impl(&lines, line));
        if !explained && !exempt {
            out.push((line + 1, "unsafe without a SAFETY comment (or `# Safety` section) above it".into()));
        }
    }
    out
}

fn in_unsafe_impl(code: &[&str], line: usize) -> bool {
    let indent = |l: &str| l.len() - l.trim_start().len();
    let own = indent(code[line]);
    let outer = code[..line].iter().rev().find(|l| !l.trim().is_empty() && indent(l) < own);
    outer.is_some_and(|l| l.trim_start().starts_with("unsafe impl"))
}

fn unsafe_not_forbidden(source: &Source) -> Findings {
    let root = SAFE_CRATES.iter().any(|name| {
        source.path == format!("{name}/src/lib.rs") || source.path == format!("{name}/src/main.rs")
    });
    let missing = root && !source.code.contains("#![forbid(unsafe_code)]");
    missing.then(|| (1, "this crate is to have #![forbid(unsafe_code)]".into())).into_iter().collect()
}

fn unfinished(source: &Source) -> Findings {
    let mut out = Vec::new();
    for word in UNFINISHED {
        out.extend(
            words(&source.text, word).map(|at| (line_of(&source.text, at) + 1, format!("{word}: finish it"))),
        );
    }
    for macro_name in UNFINISHED_CODE {
        let places = source.code.match_indices(macro_name);
        let places = places.map(|(at, _)| line_of(&source.code, at)).filter(|line| {
            // A test that other tests start, as a process of its own, is not left out.
            !source.text.lines().nth(*line).is_some_and(|line| line.contains("in a process of its own"))
        });
        out.extend(places.map(|line| (line + 1, format!("{macro_name} is not allowed"))));
    }
    out
}

fn sleep_in_test(source: &Source) -> Findings {
    let places = words(&source.code, "sleep").filter(|at| source.code[at + "sleep".len()..].starts_with('('));
    places
        .map(|at| line_of(&source.code, at))
        .filter(|line| source.in_test(*line) && !source.allowed(*line, "sleep"))
        .map(|line| (line + 1, "a test waits for a condition, not for a time".into()))
        .collect()
}

fn machine_path(source: &Source) -> Findings {
    let mut out = Vec::new();
    for path in MACHINE_PATHS {
        let absolute = source.text.match_indices(path).map(|(at, _)| at).filter(|at| {
            let before = source.text[..*at].chars().next_back();
            let after = source.text[at + path.len()..].chars().next();
            !before.is_some_and(|c| is_word(c) || "/.-~}*".contains(c))
                && !after.is_some_and(|c| is_word(c) || c == '-')
        });
        out.extend(absolute.map(|at| {
            (
                line_of(&source.text, at) + 1,
                format!("{path} is a directory of one machine, not of this project"),
            )
        }));
    }
    out
}

fn foreign_word(source: &Source) -> Findings {
    let text = source.text.to_ascii_lowercase();
    let mut out = Vec::new();
    for word in FOREIGN_WORDS {
        let places =
            words(&text, &word.to_ascii_lowercase()).map(|at| line_of(&text, at) + 1).collect::<Vec<_>>();
        out.extend(
            places.into_iter().map(|line| (line, format!("the word \"{word}\" does not belong here"))),
        );
    }
    out
}

fn undocumented_file(source: &Source) -> Findings {
    let ours = source.is_rust() && DOCUMENTED.iter().any(|place| source.path.starts_with(place));
    let missing = ours && !source.text.starts_with("//!");
    missing.then(|| (1, "the file does not begin with a //! comment".into())).into_iter().collect()
}

fn untidy_whitespace(source: &Source) -> Findings {
    if FOREIGN.contains(&source.name()) {
        return Vec::new();
    }
    let mut out: Findings = source
        .text
        .split('\n')
        .enumerate()
        .filter(|(_, line)| line.ends_with([' ', '\t', '\r']))
        .map(|(n, _)| (n + 1, "white space at the end of the line".into()))
        .collect();
    let last = source.text.lines().count();
    if !source.text.is_empty() && !source.text.ends_with('\n') {
        out.push((last, "no newline at the end of the file".into()));
    }
    if source.text.ends_with("\n\n") {
        out.push((last, "empty lines at the end of the file".into()));
    }
    out
}

/// Links of Markdown text, `[text](target)` and `[name]: target`: line (from 1) and target.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut out = Vec::new();
    for (n, line) in unfenced(text) {
        // Every second part lies between two backquotes.
        let line = line.split('`').step_by(2).collect::<Vec<_>>().join("_");
        let inline = line.match_indices("](").map(|(at, _)| &line[at + 2..]);
        let reference =
            line.split_once("]: ").filter(|(name, _)| name.starts_with('[')).map(|(_, target)| target);
        let targets = inline.chain(reference).filter_map(|rest| rest.split([')', ' ']).next());
        out.extend(targets.map(|target| (n + 1, target.to_string())));
    }
    out
}

/// What a heading is called in a link (GitHub's rule).
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = unfenced(text).filter(|(_, line)| line.starts_with('#'));
    headings
        .map(|(_, line)| line.trim_start_matches('#').trim().to_lowercase())
        .map(|title| title.chars().filter(|c| is_word(*c) || " -".contains(*c)).collect::<String>())
        .map(|title| title.replace(' ', "-"))
        .collect()
}

/// Relative links that lead nowhere.
fn dead_links(source: &Source, tree: &[Source]) -> Findings {
    let mut out = Vec::new();
    for (line, link) in links(&source.text) {
        if link.contains("://") || link.starts_with("mailto:") {
            continue;
        }
        let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
        let path = if file.is_empty() { source.path.clone() } else { resolve(&source.path, file) };
        let target = tree.iter().find(|other| other.path == path);
        let directory = format!("{path}/");
        let there = target.is_some()
            || path.is_empty()
            || tree.iter().any(|other| other.path.starts_with(&directory));
        if !there {
            out.push((line, format!("the link {link} leads to no file of this repository")));
        } else if let Some(target) = target.filter(|t| !anchor.is_empty() && t.path.ends_with(".md"))
            && !anchors(&target.text).contains(anchor)
        {
            out.push((line, format!("{} has no heading for the link {link}", target.path)));
        }
    }
    out
}

/// `link` as seen from the file `from`, without `.` and `..`.
fn resolve(from: &str, link: &str) -> String {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.join("/")
}

/// Crates with neither a README nor a documented root.
fn unexplained_crates(tree: &[Source]) -> Vec<String> {
    let manifests = tree.iter().filter(|s| s.name() == "Cargo.toml" && s.text.contains("[package]"));
    let explained = |directory: &str| {
        let root = |s: &&Source| {
            ["src/lib.rs", "src/main.rs"].iter().any(|r| s.path == format!("{directory}{r}"))
                && s.text.starts_with("//!")
        };
        tree.iter().any(|s| s.path == format!("{directory}README.md")) || tree.iter().find(root).is_some()
    };
    manifests
        .map(|manifest| manifest.path.trim_end_matches("Cargo.toml"))
        .filter(|directory| !explained(directory))
        .map(|directory| {
            format!("{directory}Cargo.toml:1: the crate has neither a README.md nor a //! in its root")
        })
        .collect()
}

// ---- The repository ------------------------------------------------------------------------------

fn root() -> PathBuf {
    // Cargo sets it when it runs a test, too: a checkout that was moved is still found.
    let package = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&package).join("..").canonicalize().expect("the directory above this package")
}

/// Paths of the files that git tracks; without git, of all files outside build directories.
fn paths(root: &Path) -> Vec<String> {
    let git = Command::new("git").arg("-C").arg(root).args(["ls-files", "-z"]).output();
    if let Ok(output) = git
        && output.status.success()
        && !output.stdout.is_empty()
    {
        let names = output.stdout.split(|b| *b == 0).filter(|name| !name.is_empty());
        return names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    }
    eprintln!("no git here: all files below {} are looked at", root.display());
    let (mut found, mut waiting) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(directory) = waiting.pop() {
        for entry in directory.read_dir().expect("a readable directory") {
            let path = entry.expect("a readable directory").path();
            let name = path.file_name().unwrap_or_default();
            if path.is_dir() && name != "target" && name != ".git" {
                waiting.push(path);
            } else if path.is_file() {
                found.push(path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned());
            }
        }
    }
    found
}

/// All text files.
fn tree() -> Vec<Source> {
    let root = root();
    let text = |path: &String| String::from_utf8(std::fs::read(root.join(path)).ok()?).ok();
    let mut paths = paths(&root);
    paths.sort();
    let files = paths.iter().filter_map(|path| Some((path, text(path).filter(|text| !text.contains('\0'))?)));
    let tree: Vec<Source> = files.map(|(path, text)| Source::new(path, &text)).collect();
    assert!(tree.iter().any(|s| s.path == "vmm/Cargo.toml"), "{} is not this repository", root.display());
    tree
}

#[track_caller]
fn none(findings: &[String]) {
    assert!(findings.is_empty(), "{} against the house style:\n{}\n", findings.len(), findings.join("\n"));
}

#[track_caller]
fn enforce(rule: fn(&Source) -> Findings) {
    let tree = tree();
    let findings = tree.iter().flat_map(|source| {
        rule(source).into_iter().map(|(line, what)| format!("{}:{line}: {what}", source.path))
    });
    none(&findings.collect::<Vec<_>>());
}

#[test]
fn files_are_not_too_long() {
    enforce(long_file);
}

#[test]
fn functions_are_not_too_long() {
    enforce(long_function);
}

#[test]
fn lines_are_not_too_wide() {
    enforce(wide_line);
}

#[test]
fn unsafe_code_is_where_it_may_be_and_is_explained() {
    enforce(unsafe_code);
}

#[test]
fn crates_without_unsafe_code_forbid_it() {
    enforce(unsafe_not_forbidden);
}

#[test]
fn nothing_is_left_unfinished_or_ignored() {
    enforce(unfinished);
}

#[test]
fn tests_do_not_sleep() {
    enforce(sleep_in_test);
}

#[test]
fn no_paths_of_one_machine() {
    enforce(machine_path);
}

#[test]
fn no_words_that_do_not_belong() {
    enforce(foreign_word);
}

#[test]
fn files_begin_with_their_documentation() {
    enforce(undocumented_file);
}

#[test]
fn white_space_is_tidy() {
    enforce(untidy_whitespace);
}

#[test]
fn links_lead_somewhere() {
    let tree = tree();
    let texts = tree.iter().filter(|source| source.path.ends_with(".md"));
    let findings = texts.flat_map(|source| {
        dead_links(source, &tree).into_iter().map(|(line, what)| format!("{}:{line}: {what}", source.path))
    });
    none(&findings.collect::<Vec<_>>());
}

#[test]
fn crates_say_what_they_are() {
    none(&unexplained_crates(&tree()));
}

// ---- The rules find what they are for ------------------------------------------------------------

fn lines_of(rule: fn(&Source) -> Findings, path: &str, text: &str) -> Vec<usize> {
    rule(&Source::new(path, text)).into_iter().map(|(line, _)| line).collect()
}

#[test]
fn comments_strings_and_characters_are_no_code() {
    let text = "a /* b /* c */ d */ e // f\n\"g\\\"h\" i 'j' '\\'' k 'l r#\"m\" n\"# b\"o\" r#p";
    let code: Vec<String> = code_of(text).lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(code, ["ae", "ik'lbr#p"]);
    assert_eq!(code_of(text).chars().count(), text.chars().count());
}

#[test]
fn sizes_are_measured() {
    let long = "//! x\n".repeat(FILE_LINES + 1);
    assert_eq!(lines_of(long_file, "vmm/src/a.rs", &long), [FILE_LINES + 1]);
    assert_eq!(lines_of(long_file, "tests/a/b.rs", &long), [0; 0]);
    let function =
        |lines| format!("\nfn f(a: [u8; 4]) -> T {{\n{}}}\n", "    g('}', \"}\");\n".repeat(lines - 2));
    assert_eq!(lines_of(long_function, "a.rs", &function(FUNCTION_LINES)), [0; 0]);
    assert_eq!(lines_of(long_function, "a.rs", &function(FUNCTION_LINES + 1)), [2]);
    let test = format!("#[cfg(test)]\nmod tests {{ {} }}", function(FUNCTION_LINES + 1));
    assert_eq!(lines_of(long_function, "a.rs", &test), [0; 0]);
    let marked = format!("// tidy: allow(long-function) a table{}", function(FUNCTION_LINES + 1));
    assert_eq!(lines_of(long_function, "a.rs", &marked), [0; 0]);
    let unreasoned = marked.replace(" a table", " ");
    assert_eq!(lines_of(long_function, "a.rs", &unreasoned), [2]);
    assert_eq!(lines_of(wide_line, "a.rs", &"x".repeat(RUST_COLUMNS + 1)), [1]);
    let wide = "x".repeat(TEXT_COLUMNS + 1);
    assert_eq!(lines_of(wide_line, "a.md", &format!("```\n{wide}\n```\n| {wide}\n    {wide}\n{wide}")), [6]);
}

#[test]
fn unsafe_code_is_found() {
    let bare = "fn f() {\n    unsafe { g() }\n}\n";
    assert_eq!(lines_of(unsafe_code, "vmm/src/memory.rs", bare), [2]);
    assert_eq!(lines_of(unsafe_code, "vmm/src/machine.rs", bare), [2]);
    let explained = bare.replace("    unsafe", "    // SAFETY: g asks nothing.\n    unsafe");
    assert_eq!(lines_of(unsafe_code, "vmm/src/memory.rs", &explained), [0; 0]);
    assert_eq!(lines_of(unsafe_code, "vmm/src/machine.rs", "#![forbid(unsafe_code)] // unsafe"), [0; 0]);
    assert_eq!(lines_of(unsafe_not_forbidden, "vmm/ft/src/lib.rs", "//! x"), [1]);
}

#[test]
fn words_and_paths_are_found() {
    let [path, ..] = MACHINE_PATHS;
    assert_eq!(
        lines_of(machine_path, "a.sh", &format!("a\ncd {path}/x\n$a{path} ${{b}}{path} {path}er")),
        [2]
    );
    assert_eq!(
        lines_of(foreign_word, "a.md", &format!("{}s\n({})", FOREIGN_WORDS[0], FOREIGN_WORDS[1])),
        [2]
    );
    assert_eq!(lines_of(unfinished, "a.rs", "todo!()\n\"todo!\"\n#[ignore = \"slow\"]"), [1, 3]);
    assert_eq!(lines_of(unfinished, "a.toml", &format!("# {} x", UNFINISHED[0])), [1]);
    assert_eq!(lines_of(undocumented_file, "vmm/src/a.rs", "// x"), [1]);
    assert_eq!(lines_of(untidy_whitespace, "a.toml", "a \nb\t\n\n"), [1, 2, 3]);
    assert_eq!(lines_of(untidy_whitespace, "a.toml", "a"), [1]);
    let sleeps = "fn f() {\n    sleep(A);\n}\n";
    assert_eq!(lines_of(sleep_in_test, "vmm/src/a_tests.rs", sleeps), [2]);
    assert_eq!(lines_of(sleep_in_test, "vmm/src/a.rs", &format!("#[cfg(test)]\nmod t {{\n{sleeps}}}")), [4]);
    assert_eq!(lines_of(sleep_in_test, "vmm/src/a.rs", sleeps), [0; 0]);
}

#[test]
fn dead_links_and_unexplained_crates_are_found() {
    let text = "[a](b.md#c-d) [a](../x) `[a](no)` [a](https://a.b)\n[a](b.md#e) [a](no.md)\n\n[a]: no\n";
    let tree = [
        Source::new("docs/a.md", text),
        Source::new("docs/b.md", "# C: d\n"),
        Source::new("x/Cargo.toml", "[package]\n"),
    ];
    let lines: Vec<usize> = dead_links(&tree[0], &tree).into_iter().map(|(line, _)| line).collect();
    assert_eq!(lines, [2, 2, 4]);
    assert_eq!(unexplained_crates(&tree).len(), 1);
}
