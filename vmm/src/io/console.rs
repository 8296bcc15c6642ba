//! Input of the guest's console: the terminal that this process runs in, or any stream on standard input.

use std::io::{IsTerminal, Read};

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
