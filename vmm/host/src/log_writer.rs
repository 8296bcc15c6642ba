//! The program's own log on its way to standard error, which may be a pipe that nobody reads: a thread of its
//! own writes it, so that a line never holds up who says it. Lines are said with the protocol's lock held.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

/// Lines that wait.
const MAX_LINES: usize = 1024;

enum Item {
    Line(Vec<u8>),
    /// Everything before was written: say so.
    Flush(Sender<()>),
}

/// Takes lines; each `write` is one. Never waits: lines that find no room are lost, and counted.
#[derive(Debug, Clone)]
pub struct LogWriter {
    queue: Sender<Item>,
    lost: std::sync::Arc<AtomicU64>,
}

impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Item")
    }
}

impl LogWriter {
    /// Starts the thread that writes to `out`.
    pub fn start(out: impl Write + Send + 'static) -> std::io::Result<Self> {
        let (queue, items) = bounded(MAX_LINES);
        let lost = std::sync::Arc::<AtomicU64>::default();
        let of_thread = lost.clone();
        std::thread::Builder::new().name("log".into()).spawn(move || serve(out, &items, &of_thread))?;
        Ok(Self { queue, lost })
    }

    /// Takes one line, with its end.
    pub fn line(&self, line: Vec<u8>) {
        if self.queue.try_send(Item::Line(line)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits a little until what was said is written: before the process ends.
    pub fn finish(&self) {
        const LONGEST: Duration = Duration::from_secs(1);
        let (done, written) = bounded(1);
        if self.queue.send_timeout(Item::Flush(done), LONGEST).is_ok() {
            let _ = written.recv_timeout(LONGEST);
        }
    }
}

fn serve(mut out: impl Write, items: &Receiver<Item>, lost: &AtomicU64) {
    for item in items {
        let count = lost.swap(0, Ordering::Relaxed);
        if count > 0 {
            let _ = writeln!(out, "lockstep: {count} lines of the log are missing here: nobody read them");
        }
        match item {
            // There is nobody to tell of an error.
            Item::Line(line) => drop(out.write_all(&line)),
            Item::Flush(done) => drop(done.send(())),
        }
    }
}

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.line(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a line when it is given leave.
    struct Slow(Receiver<()>, Sender<String>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.recv().map_err(|_| std::io::ErrorKind::BrokenPipe)?;
            self.1.send(String::from_utf8_lossy(bytes).into_owned()).expect("the test reads");
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_nobody_reads_hold_up_nothing_and_are_counted() {
        let ((leave, of_out), (out, written)) =
            (crossbeam_channel::unbounded(), crossbeam_channel::unbounded());
        let mut log = LogWriter::start(Slow(of_out, out)).expect("a thread");
        // One is in the writer's hands, at most.
        let many = MAX_LINES + 100;
        (0..many)
            .for_each(|number| log.write_all(format!("line {number}\n").as_bytes()).expect("it is taken"));
        let lost = log.lost.load(Ordering::Relaxed);
        assert!((99..=100).contains(&lost), "{lost}");
        drop(leave);
        // A pipe that is gone ends nothing either.
        log.finish();
        assert_eq!(written.try_iter().count(), 0);
    }
}
