//! The same inputs at the same exits give the same registers and memory, also under a rain of signals, which
//! make KVM_RUN return without an exit of the guest.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use lockstep::engine::{Engine, EngineKind};
use nix::sys::pthread::{pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::guest::{CPL3, DATA, Guest, VECTOR, assemble, engines};

const EXITS: u64 = 400;

extern "C" fn ignore(_: i32) {}

/// One run: an input byte before every seventh entry, an interrupt at every fifth exit. Digests along the
/// way.
fn run(guest: &mut Guest) -> Vec<(u64, u64)> {
    let mut digests = Vec::new();
    for exit in 1..=EXITS {
        guest.resume();
        if exit % 7 == 0 {
            guest.ram.write(DATA as usize + 0x8000, &exit.to_le_bytes());
        }
        if exit % 40 == 0 {
            digests.push((guest.state().digest(), guest.ram.digest(None)));
        }
        if exit % 5 == 0 && guest.engine.interruptible() {
            guest.engine.inject(VECTOR).expect("injects");
        }
    }
    digests
}

fn new_guest(kind: EngineKind) -> Guest {
    use iced_x86::code_asm::*;
    let handler = assemble(crate::guest::HANDLER, |a| {
        a.push(rax)?;
        a.mov(rax, qword_ptr(DATA + 0x8000))?;
        a.add(qword_ptr(DATA + 0x9000), rax)?;
        a.pop(rax)?;
        a.iretq()
    });
    Guest::new(kind, CPL3, &crate::state::mixer(), &handler)
}

#[test]
fn runs_with_equal_inputs_are_equal_whatever_signals_arrive() {
    for kind in engines("determinism") {
        let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing, so it may run anywhere.
        unsafe { sigaction(Signal::SIGUSR1, &action) }.expect("installs the handler");
        let quiet = run(&mut new_guest(kind));
        assert!(quiet.windows(2).all(|pair| pair[0] != pair[1]), "the guest does something between digests");
        for _ in 0..2 {
            let stop = Arc::new(AtomicBool::new(false));
            let sent = Arc::new(AtomicU64::new(0));
            let (tell, told) = mpsc::channel();
            let vcpu = std::thread::Builder::new()
                .spawn(move || {
                    let mut guest = new_guest(kind);
                    tell.send(pthread_self()).expect("the test waits");
                    run(&mut guest)
                })
                .expect("starts the vCPU thread");
            let target = told.recv().expect("the vCPU thread is there");
            let rain = {
                let (stop, sent) = (stop.clone(), sent.clone());
                std::thread::Builder::new()
                    .spawn(move || {
                        while !stop.load(Ordering::Relaxed) && pthread_kill(target, Signal::SIGUSR1).is_ok() {
                            sent.fetch_add(1, Ordering::Relaxed);
                            for _ in 0..2_000 {
                                std::hint::spin_loop();
                            }
                        }
                    })
                    .expect("starts the rain")
            };
            while !vcpu.is_finished() {
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
            rain.join().expect("the rain ends");
            assert_eq!(vcpu.join().expect("the guest ran"), quiet);
            eprintln!("{} signals", sent.load(Ordering::Relaxed));
        }
    }
}
