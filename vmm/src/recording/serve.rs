//! A replay that is asked from outside: `lockstep replay FILE --serve`, one question a line on standard
//! input, one answer a line on standard output, both JSON. `diverge --against` asks two of them the same.
//!
//! ```text
//!   {"begin":{"checkpoint":3}}      {"at":{"position":5000,"digest":{...}}}
//!   {"arrive":{"position":9000}}    {"at":...}, or {"diverged":{...}}
//!   "state"                         {"state":{"bytes":812}}, then that many bytes, then pages
//! ```
//!
//! A replay is never put back on its way: only `begin` goes backwards, so that what no checkpoint holds, such
//! as code that was decoded, is what it would be in a run straight through.

use std::io::{self, BufRead, Read, Write};

use logchannel::codec;
use logchannel::{MachineDigest, Position, Seq};
use serde::{Deserialize, Serialize};

use crate::machine::MachineState;
use crate::memory::{PAGE_BYTES, Ram};
use crate::recording::diverge::Whole;
use crate::recording::session::{Session, SessionError};

/// A question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Go to a checkpoint of the file.
    Begin {
        /// Its number.
        checkpoint: usize,
    },
    /// Play on to the arrival at a position: no entry there is executed.
    Arrive {
        /// The position's count.
        position: u64,
    },
    /// Play on until an entry is executed.
    Entry {
        /// Its number.
        seq: Seq,
    },
    /// Play to the end of the log.
    End,
    /// The whole machine as it is.
    State,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The machine stands somewhere.
    At {
        /// Where.
        position: u64,
        /// Its fingerprint.
        digest: MachineDigest,
    },
    /// The machine did not take the path of the log.
    Diverged {
        /// The entry at which that was seen.
        seq: Seq,
        /// The last entry whose digest agreed; 0 for none since the last `begin`.
        agreed: Seq,
        /// What was seen.
        seen: String,
    },
    /// The machine's state follows: so many bytes without the memory, then each page that is not zero after
    /// its number as `u64`, then `u64::MAX`.
    State {
        /// Bytes of the encoded state.
        bytes: usize,
    },
    /// The question cannot be answered.
    Failed {
        /// Why.
        why: String,
    },
}

/// Answers until there are no more questions.
pub fn serve(session: &mut Session, questions: impl BufRead, mut answers: impl Write) -> io::Result<()> {
    for line in questions.lines() {
        let question = match serde_json::from_str(&line?) {
            Ok(question) => question,
            Err(error) => {
                tell(&mut answers, &Answer::Failed { why: format!("not a question: {error}") })?;
                continue;
            }
        };
        let answer = match answer(session, question) {
            Ok((answer, None)) => answer,
            Ok((answer, Some(state))) => {
                tell(&mut answers, &answer)?;
                answers.write_all(&state)?;
                write_pages(session.machine().ram(), &mut answers)?;
                answers.flush()?;
                continue;
            }
            Err(SessionError::Diverged(divergence)) => Answer::Diverged {
                seq: divergence.seq,
                agreed: divergence.agreed,
                seen: format!("entry {}: {}", divergence.seq, divergence.difference),
            },
            Err(error) => Answer::Failed { why: error.to_string() },
        };
        tell(&mut answers, &answer)?;
    }
    Ok(())
}

fn tell(answers: &mut impl Write, answer: &Answer) -> io::Result<()> {
    writeln!(answers, "{}", serde_json::to_string(answer)?)?;
    answers.flush()
}

fn answer(session: &mut Session, question: Question) -> Result<(Answer, Option<Vec<u8>>), SessionError> {
    match question {
        Question::Begin { checkpoint } if checkpoint >= session.recording().checkpoints().len() => {
            return Ok((Answer::Failed { why: format!("there is no checkpoint {checkpoint}") }, None));
        }
        Question::Begin { checkpoint } => session.load_checkpoint(checkpoint)?,
        Question::Arrive { position } => drop(session.arrive(Position::at(position))?),
        Question::Entry { seq } => drop(session.run_to_entry(seq)?),
        Question::End => drop(session.run_to_end()?),
        Question::State => {
            let state = session.machine_mut().save()?;
            let encoded = codec::encode(&state);
            return Ok(match encoded {
                Ok(encoded) => (Answer::State { bytes: encoded.len() }, Some(encoded)),
                Err(error) => (Answer::Failed { why: error.to_string() }, None),
            });
        }
    }
    let digest = session.digest()?;
    Ok((Answer::At { position: session.position().count, digest }, None))
}

fn write_pages(ram: &Ram, to: &mut impl Write) -> io::Result<()> {
    for number in 0..ram.pages() {
        let page = ram.page(number);
        if page.iter().any(|byte| *byte != 0) {
            to.write_all(&(number as u64).to_le_bytes())?;
            to.write_all(page)?;
        }
    }
    to.write_all(&u64::MAX.to_le_bytes())
}

/// Reads what follows `Answer::State`; `ram` is of the machine's size and zero.
pub fn read_state(from: &mut impl Read, bytes: usize, mut ram: Ram) -> io::Result<Whole> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_string());
    if bytes > codec::MAX_ENCODED_LEN {
        return Err(wrong("a state of that size"));
    }
    let mut encoded = vec![0; bytes];
    from.read_exact(&mut encoded)?;
    let state: MachineState = codec::decode(&encoded).map_err(|error| wrong(&error.to_string()))?;
    let (mut number, mut page) = ([0; 8], [0; PAGE_BYTES]);
    loop {
        from.read_exact(&mut number)?;
        match u64::from_le_bytes(number) {
            u64::MAX => return Ok(Whole { state, ram }),
            number if number < ram.pages() as u64 => {
                from.read_exact(&mut page)?;
                ram.write(number as usize * PAGE_BYTES, &page);
            }
            _ => return Err(wrong("a page that the machine does not have")),
        }
    }
}
