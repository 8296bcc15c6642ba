//! Errors for people: a message with its causes, each said once.
//!
//! The rule of the workspace: what an error displays contains what its source displays, so that whoever
//! prints the error alone, in a log line, loses nothing. Whoever prints a chain, prints it with `Chain`, which
//! leaves out what was said already.

use std::error::Error;
use std::fmt;

/// Displays an error and its causes, with colons between, and without a cause that is said already.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            if !says(&said, &text) {
                write!(f, ": {text}")?;
                said.push_str(": ");
                said.push_str(&text);
            }
            next = cause.source();
        }
        Ok(())
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
    part.is_empty() || text.match_indices(part).any(|(at, _)| whole(at))
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
        assert_eq!(text(Sample::Number(Box::new(Sample::Two))), "step 12 failed: 2");
    }
}
