//! The last of what a guest wrote to its console: what people want to see when it resets itself again and
//! again.

use std::collections::VecDeque;

use logchannel::Output;
use replay::Ending;

/// Most bytes kept.
const MOST_BYTES: usize = 16 << 10;
/// Most lines shown.
const MOST_LINES: usize = 20;

/// The last bytes of a console.
#[derive(Debug, Clone, Default)]
pub struct ConsoleTail {
    bytes: VecDeque<u8>,
}

impl ConsoleTail {
    /// Takes note of an output, if it is the console's.
    pub fn note(&mut self, output: &Output) {
        let Output::Console(bytes) = output else { return };
        self.bytes.extend(&bytes[bytes.len().saturating_sub(MOST_BYTES)..]);
        self.bytes.drain(..self.bytes.len().saturating_sub(MOST_BYTES));
    }

    /// The last lines, without what could steer a terminal.
    pub fn lines(&self) -> Vec<String> {
        let bytes: Vec<u8> = self.bytes.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let shown = |line: &str| line.chars().filter(|c| !c.is_control() || *c == '\t').collect::<String>();
        let lines: Vec<String> = text.lines().map(shown).filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(MOST_LINES)..].to_vec()
    }

    /// Shows them, if the guest ended as only they can explain.
    pub fn explain(&self, ending: Option<&Ending>) {
        if let Some(Ending::ResetLoop { .. }) = ending {
            eprintln!("lockstep: the console's last lines:");
            self.lines().iter().for_each(|line| eprintln!("  {line}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(parts: &[&[u8]]) -> Vec<String> {
        let mut tail = ConsoleTail::default();
        parts.iter().for_each(|part| tail.note(&Output::Console(part.to_vec())));
        tail.lines()
    }

    #[test]
    fn lines_come_together_however_they_were_written() {
        assert_eq!(tail(&[b"one\r\ntw", b"o\n\n", b"\x1b[2Jthree"]), ["one", "two", "[2Jthree"]);
        let mut other = ConsoleTail::default();
        other.note(&Output::Net(b"a frame".to_vec()));
        assert!(other.lines().is_empty());
    }

    #[test]
    fn only_the_last_is_kept() {
        let many: Vec<u8> = (0..10_000).flat_map(|line| format!("line {line}\n").into_bytes()).collect();
        let lines = tail(&[&many, b"last\n"]);
        assert_eq!((lines.len(), lines[19].as_str(), lines[18].as_str()), (20, "last", "line 9999"));
        let (long, one) = (vec![b'x'; 10 * MOST_BYTES], b"y".to_vec());
        assert_eq!(tail(&[&long, &one])[0].len(), MOST_BYTES);
    }
}
