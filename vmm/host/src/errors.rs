//! Errors for people: a message with its causes, each said once.
//!
//! The rule of the workspace: what an error displays contains what its source displays, so that whoever
//! prints the error alone, in a log line, loses nothing. Whoever prints a chain, prints it with `Chain`,
//! which leaves out what was said already.

use std::error::Error;
use std::fmt;

/// Displays an error and its causes, with colons between, and without a cause that is said already.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = vec![self.0.to_string()];
        let mut next = self.0.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            if said.last().is_some_and(|last| says(&text, last)) {
                // The cause says the same, and more.
                said.pop();
                said.push(text);
            } else if !said.iter().any(|before| says(before, &text)) {
                said.push(text);
            }
            next = cause.source();
        }
        f.write_str(&said.join(": "))
    }
}

/// Whether `text` has `part` as words of its own: not as a piece of a number or of a longer word.
fn says(text: &str, part: &str) -> bool {
    let whole = |at: usize| {
        let before = text[..at].chars().next_back();
        let after = text[at + part.len()..].chars().next();
        let (first, last) = (part.chars().next(), part.chars().next_back());
        let joined = |a: Option<char>, b: Option<char>| {
            a.is_some_and(char::is_alphanumeric) && b.is_some_and(char::is_alphanumeric)
        };
        !joined(before, first) && !joined(last, after)
    };
    text == part || !part.is_empty() && text.match_indices(part).any(|(at, _)| whole(at))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Sample {
        #[error("cannot open the file: {0}")]
        With(#[source] io::Error),
        #[error("cannot reach it: {0}; is it on?")]
        Amid(#[source] Box<Sample>),
        #[error("cannot start")]
        Without(#[source] Box<Sample>),
        #[error("cannot open the file")]
        Less(#[source] io::Error),
        #[error("step 12 failed")]
        Number(#[source] Box<Sample>),
        #[error("2")]
        Two,
    }

    fn denied() -> Box<Sample> {
        Box::new(Sample::With(io::Error::other("denied")))
    }

    #[test]
    fn each_cause_is_said_once() {
        let text = |error: Sample| Chain(&error).to_string();
        assert_eq!(text(*denied()), "cannot open the file: denied");
        assert_eq!(text(Sample::Amid(denied())), "cannot reach it: cannot open the file: denied; is it on?");
        assert_eq!(text(Sample::Without(denied())), "cannot start: cannot open the file: denied");
        let deep = Sample::Without(Box::new(Sample::Amid(denied())));
        assert_eq!(text(deep), "cannot start: cannot reach it: cannot open the file: denied; is it on?");
        let more = Sample::Less(io::Error::other(denied()));
        assert_eq!(text(more), "cannot open the file: denied");
        assert_eq!(text(Sample::Number(Box::new(Sample::Two))), "step 12 failed: 2");
    }
}
