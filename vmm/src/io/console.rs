//! The guest's console: its input from the terminal that this process runs in, or from any stream on standard
//! input; its output to a file of bounded size, or to standard output.

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use crossbeam_channel::Sender;
use nix::sys::termios::{self, InputFlags, LocalFlags, SetArg, SpecialCharacterIndices, Termios};
use nix::unistd;

/// Ctrl-]: ends the machine from outside, as a terminal in raw mode has no other way to.
const ESCAPE: u8 = 0x1d;
const READ_BYTES: usize = 4096;

/// A terminal whose keys go to the guest, each at once and unchanged, until this is dropped.
#[derive(Debug)]
pub struct Terminal {
    before: Termios,
}

impl Terminal {
    /// Takes over the terminal on standard input, if there is one and this process runs in its foreground:
    /// one in the background would be stopped for it.
    pub fn take_over() -> nix::Result<Option<Self>> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() || unistd::tcgetpgrp(&stdin) != Ok(unistd::getpgrp()) {
            return Ok(None);
        }
        let before = termios::tcgetattr(&stdin)?;
        let mut raw = before.clone();
        // Input alone: output keeps its line ends, for what lockstep itself says.
        raw.input_flags &= !(InputFlags::ICRNL | InputFlags::INLCR | InputFlags::IGNCR | InputFlags::IXON);
        raw.local_flags &= !(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG | LocalFlags::IEXTEN);
        raw.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        raw.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        termios::tcsetattr(&stdin, SetArg::TCSANOW, &raw)?;
        eprintln!("lockstep: this terminal is the guest's console; Ctrl-] switches the machine off");
        Ok(Some(Self { before }))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.before);
    }
}

/// Reads standard input for the guest.
pub struct Reader {
    queue: Sender<Vec<u8>>,
    /// Called for the escape key; none when the input is no terminal, whose bytes all go to the guest.
    end: Option<Box<dyn Fn() + Send>>,
}

impl Reader {
    /// For a terminal: `end` is called when the user wants the machine off.
    pub fn terminal(queue: Sender<Vec<u8>>, end: impl Fn() + Send + 'static) -> Self {
        Self { queue, end: Some(Box::new(end)) }
    }

    /// For any stream.
    pub fn stream(queue: Sender<Vec<u8>>) -> Self {
        Self { queue, end: None }
    }

    /// Reads until the input or the guest ends.
    pub fn read(self) {
        let mut buffer = [0; READ_BYTES];
        loop {
            let bytes = match std::io::stdin().read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(count) => &buffer[..count],
            };
            let typed = match (&self.end, bytes.iter().position(|&byte| byte == ESCAPE)) {
                (Some(end), Some(at)) => {
                    end();
                    &bytes[..at]
                }
                _ => bytes,
            };
            if !typed.is_empty() && self.queue.send(typed.to_vec()).is_err() {
                return;
            }
        }
    }
}

/// How much a guest may print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsoleLimits {
    /// Bytes a second, if that is bounded.
    pub rate: Option<u64>,
    /// Bytes that may come at once.
    pub burst: u64,
}

impl ConsoleLimits {
    /// Limits of `rate` bytes a second (0: none), and so many seconds' worth of it at once.
    pub fn new(rate: u64) -> Self {
        const BURST_SECONDS: u64 = 8;
        let burst = rate.saturating_mul(BURST_SECONDS);
        Self { rate: (rate > 0).then_some(rate), burst }
    }
}

/// Where console output goes.
pub struct ConsoleSink {
    /// The file, or standard output.
    pub writer: Box<dyn Write + Send>,
    /// How much goes there.
    pub limits: ConsoleLimits,
}

/// A console's file: when it would grow beyond its limit it becomes FILE.1, in the place of an earlier one,
/// and a new file begins.
#[derive(Debug)]
pub struct ConsoleFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// 0: none.
    limit: u64,
}

impl ConsoleFile {
    /// Opens a file to be appended to; `limit` bytes at most, 0 for any number.
    pub fn open(path: &Path, limit: u64) -> std::io::Result<Self> {
        let file = Self::append(path)?;
        let bytes = file.metadata()?.len();
        // A link stays: what it leads to is put aside.
        let path = std::fs::canonicalize(path)?;
        Ok(Self { path, file, bytes, limit })
    }

    fn append(path: &Path) -> std::io::Result<File> {
        host::files::append(path)
    }

    fn rotate(&mut self) -> std::io::Result<()> {
        let mut older = self.path.clone().into_os_string();
        older.push(".1");
        std::fs::rename(&self.path, older)?;
        self.file = Self::append(&self.path)?;
        self.bytes = 0;
        Ok(())
    }

    /// Only a plain file can be put aside: a device or a pipe has no size.
    fn is_plain(&self) -> bool {
        self.file.metadata().is_ok_and(|metadata| metadata.is_file())
    }
}

impl Write for ConsoleFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let would_be = self.bytes + bytes.len() as u64;
        if self.limit > 0 && self.bytes > 0 && would_be > self.limit && self.is_plain() {
            self.rotate()?;
        }
        let written = self.file.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
#[path = "console_tests.rs"]
mod tests;
