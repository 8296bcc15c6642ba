//! Signals raining on a vCPU thread: each makes KVM_RUN return without an exit of the guest, and must be
//! nothing to the software CPU.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use nix::sys::pthread::{pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::machine::{engine_kind, set_engine_kind};

extern "C" fn ignore(_: i32) {}

/// Runs `work` on a thread of its own with signals raining on it; how many hit it.
pub fn in_the_rain<T: Send>(work: impl FnOnce() -> T + Send) -> (T, u64) {
    let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, so it may run anywhere.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.expect("installs the handler");
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let (tell, told) = mpsc::channel();
    let kind = engine_kind();
    let result = thread::scope(|scope| {
        let worker = scope.spawn(move || {
            set_engine_kind(kind);
            tell.send(pthread_self()).expect("the caller waits");
            work()
        });
        let target = told.recv().expect("the thread is there");
        let (stop, sent) = (&stop, &sent);
        let rain = scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) && pthread_kill(target, Signal::SIGUSR1).is_ok() {
                sent.fetch_add(1, Ordering::Relaxed);
                for _ in 0..5_000 {
                    std::hint::spin_loop();
                }
            }
        });
        while !worker.is_finished() {
            thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
        rain.join().expect("the rain ends");
        worker.join()
    });
    let sent = sent.into_inner();
    match result {
        Ok(value) => (value, sent),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
