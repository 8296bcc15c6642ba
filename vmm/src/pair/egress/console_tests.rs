//! Console output that nobody takes, or that is too much.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use super::*;
use crate::pair::threads::start;

/// A writer that hands over what it is given, and waits for leave before each write.
struct Slow {
    leave: Mutex<Receiver<()>>,
    out: Sender<Vec<u8>>,
}

impl Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.leave.lock().unwrap().recv().map_err(|_| std::io::ErrorKind::BrokenPipe)?;
        self.out.send(bytes.to_vec()).map_err(|_| std::io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn counts(console: &Console) -> EgressCounts {
    let mut counts = EgressCounts::default();
    console.count(&mut counts);
    counts
}

#[test]
fn a_pipe_that_nobody_reads_holds_up_nothing_and_what_is_missing_is_said_at_its_place() {
    let limits = ConsoleLimits { rate: None, burst: 0 };
    let console = Arc::new(Console::new(limits, HostClock));
    let (leave, of_writer) = channel();
    let (out, written) = channel();
    let serving = console.clone();
    let slow = Box::new(Slow { leave: Mutex::new(of_writer), out });
    start("console", move || serving.serve(slow)).unwrap();
    // Nobody reads, and every push returns.
    let chunk = vec![b'x'; 64 << 10];
    (0..64).for_each(|_| console.push(chunk.clone()));
    let dropped = counts(&console).console_dropped;
    assert!(dropped >= 40 * chunk.len() as u64, "{dropped} bytes dropped of 4 MiB");
    assert!(!console.is_idle());
    let taken = 64 * chunk.len() as u64 - dropped;
    let mut text = Vec::new();
    while text.iter().filter(|byte| **byte == b'x').count() < taken as usize || !text.ends_with(b"\n") {
        leave.send(()).unwrap();
        text.extend(written.recv().unwrap());
    }
    let said = format!("[lockstep: {dropped} bytes of console output are missing here");
    assert!(String::from_utf8(text).unwrap().contains(&said));
    assert_eq!(counts(&console).console_bytes, taken);
}

#[test]
fn a_rate_lets_a_burst_pass_and_then_as_much_as_time_allows() {
    let limits = ConsoleLimits { rate: Some(1000), burst: 500 };
    let console = Console::new(limits, HostClock);
    let mut state = lock(&console.state);
    state.allowance = 0;
    let since_ns = state.since_ns;
    console.allow(&mut state, since_ns + 100_000_000);
    assert_eq!(state.allowance, 100);
    // Half a byte's time, twice.
    console.allow(&mut state, since_ns + 100_500_000);
    console.allow(&mut state, since_ns + 101_000_000);
    assert_eq!(state.allowance, 101);
    console.allow(&mut state, since_ns + 60_000_000_000);
    assert_eq!(state.allowance, 500);
    drop(state);
    console.push(vec![0; 501]);
    assert_eq!(counts(&console).console_dropped, 501);
}
