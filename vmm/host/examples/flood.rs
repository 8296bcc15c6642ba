//! Complains as fast as it can in every way that a process here can, for the test of the limits. Prints on
//! standard output how many lines it tried.

use tracing_subscriber::EnvFilter;

const LINES: u64 = 100_000;

fn main() {
    let json = std::env::args().any(|argument| argument == "--json");
    lockstep_host::log::start(EnvFilter::new("trace"), json);
    for count in 0..LINES {
        tracing::error!(count, "an event");
        tracing::trace!(count, "an event of the lowest level");
        log::error!("a record {count}");
        log::debug!("a record of another level {count}");
        lockstep_host::say!("lockstep: a line {count}");
    }
    lockstep_host::log::finish();
    println!("{}", 5 * LINES);
}
