//! Fenced blocks of a document, in their order, with what the words after the language say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

/// What a word may say. Anything else is a mistake in the document.
const WORDS: [&str; 9] = ["on", "start", "ends", "of", "code", "until", "guest", "type", "keys"];

/// A block.
#[derive(Debug, Clone)]
pub struct Block {
    /// `sh` for commands, `text` for what is said.
    pub language: String,
    /// The words.
    words: BTreeMap<String, String>,
    /// What stands in it.
    pub text: String,
    /// Document and line, for messages.
    pub place: String,
}

impl Block {
    /// What a word says, if it is there.
    pub fn word(&self, name: &str) -> Option<&str> {
        debug_assert!(WORDS.contains(&name));
        self.words.get(name).map(String::as_str)
    }

    /// A word that is a list.
    pub fn list(&self, name: &str) -> Vec<&str> {
        self.word(name).map(|list| list.split(',').collect()).unwrap_or_default()
    }

    /// The exit code that is due.
    pub fn code(&self) -> anyhow::Result<i32> {
        Ok(self.word("code").map_or(Ok(0), str::parse)?)
    }
}

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in a folder of the repository").into()
}

/// The blocks of a document that hold commands, or what commands say.
pub fn blocks(name: &str) -> anyhow::Result<Vec<Block>> {
    let text = std::fs::read_to_string(root().join(name)).with_context(|| name.to_string())?;
    parse(name, &text)
}

/// The blocks of a text.
pub fn parse(name: &str, text: &str) -> anyhow::Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (line, text) in text.lines().enumerate() {
        match (text.strip_prefix("```"), &mut open) {
            (Some(head), None) => {
                let place = format!("{name}:{}", line + 1);
                let mut words = head.split_whitespace();
                let language = words.next().unwrap_or_default().to_string();
                let pair = |word: &str| {
                    let (key, value) = word.split_once('=').with_context(|| format!("{place}: {word:?}"))?;
                    ensure!(WORDS.contains(&key), "{place}: no word {key:?} is known");
                    anyhow::Ok((key.to_string(), value.to_string()))
                };
                let words = words.map(pair).collect::<anyhow::Result<_>>()?;
                open = Some(Block { language, words, text: String::new(), place });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => {
                block.text.push_str(text);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    ensure!(open.is_none(), "{name}: a block does not end");
    Ok(blocks.into_iter().filter(|block| matches!(block.language.as_str(), "sh" | "text")).collect())
}

/// A line without what differs from run to run: numbers, digests, the width of columns.
pub fn shape(line: &str) -> String {
    let words = line.split_whitespace().map(|word| {
        let parts = word.split_inclusive(|c: char| !c.is_ascii_alphanumeric());
        let parts = parts.map(|part| {
            let (name, end) = match part.char_indices().last() {
                Some((at, c)) if !c.is_ascii_alphanumeric() => part.split_at(at),
                _ => (part, ""),
            };
            let varies = name.chars().any(|c| c.is_ascii_digit());
            format!("{}{end}", if varies { "#" } else { name })
        });
        parts.collect::<String>()
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn blocks_have_words_and_lines_have_shapes() {
    let text = "a\n```sh on=A,B start=x\nls # y\n```\n```text of=x code=3\nno 7f3a: 1.2\n```\n```rust\n```\n";
    let found = parse("doc", text).expect("blocks");
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].list("on"), found[0].word("start")), (vec!["A", "B"], Some("x")));
    assert_eq!((found[0].text.as_str(), found[1].code().expect("a code")), ("ls # y\n", 3));
    assert_eq!(shape(found[1].text.trim()), shape("no  00ff: 22.17"));
    assert_ne!(shape("no 7f3a: 1.2"), shape("no 7f3a"));
    assert!(parse("doc", "```sh in=A\n```\n").is_err());
}
