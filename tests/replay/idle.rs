//! An idle guest costs nothing: it waits, and the log does not grow however long host time goes on.

use lockstep::machine::Machine;
use logchannel::Output;
use replay::{ClockPolicy, Offer, Recorder, Stop};

use crate::client::{Step, request};
use crate::disk::Disk;
use crate::guest::{CODE, CPL0, Guest, assemble};
use crate::machine::{Vm, guest, minikv, on_engines};
use crate::recording::{Options, Session};
use crate::world::{DISK_BYTES, Plan};

const HOUR_NS: u64 = 3_600_000_000_000;

/// Lets ten hours of host time go by, in steps of all sizes.
fn stays_idle(recorder: &mut Recorder<Vm>, from_ns: u64) {
    let (position, next) = (replay::Machine::position(recorder.machine()), recorder.next_seq());
    let mut out = Vec::new();
    let mut host_ns = from_ns;
    while host_ns < from_ns + 10 * HOUR_NS {
        host_ns += (host_ns - from_ns) / 7 + 1;
        recorder.clock(host_ns, &mut out).expect("the clock");
        assert_eq!(recorder.advance(&mut out).expect("the guest"), Stop::Waiting { deadline_ns: None });
    }
    assert!(out.is_empty(), "{out:?}");
    assert_eq!((replay::Machine::position(recorder.machine()), recorder.next_seq()), (position, next));
}

#[test]
fn minikv_without_clients_waits_and_logs_nothing() {
    on_engines("idle minikv", || {
        let mut recorder = Recorder::new(minikv(DISK_BYTES as u64), ClockPolicy::default(), 0);
        let (mut disk, mut out) = (Disk::new(DISK_BYTES), Vec::new());
        loop {
            let stop = recorder.advance(&mut out).expect("the guest");
            assert!(!matches!(stop, Stop::Ended(_)), "{stop:?}");
            let outputs: Vec<_> = out.drain(..).filter_map(|recorded| recorded.output).collect();
            if outputs.is_empty() && stop != Stop::Ready {
                break;
            }
            for output in outputs {
                if let Output::Disk(request) = output {
                    let done = disk.complete(&request, false);
                    assert_eq!(recorder.offer(done, &mut out).expect("the disk"), Offer::Applied);
                }
            }
        }
        stays_idle(&mut recorder, 0);
    });
}

#[test]
fn minikv_with_a_silent_client_waits_and_logs_nothing() {
    on_engines("idle minikv with a client", || {
        let ask = Step::Ask {
            bytes: request(&[b"SET", b"key", b"value"]),
            replies: vec![crate::client::Reply::Exactly(b"+OK\r\n".to_vec())],
        };
        let options = Options {
            plan: Some(Plan::quiet()),
            scripts: vec![vec![ask.clone(), Step::Idle(u64::MAX / 4), ask]],
            ..Options::default()
        };
        let mut session = Session::new(1, &options);
        // Until it has its answer, and what is under way has ended: acknowledgements and their timers.
        loop {
            let stop = session.advance();
            let quiet = stop == Stop::Waiting { deadline_ns: None } && !session.world.is_busy();
            if quiet && session.world.answers() == 1 {
                break;
            }
            assert!(session.react(stop), "the client is there");
        }
        let host_ns = session.world.host_ns;
        assert!(host_ns < HOUR_NS, "it got idle by itself");
        stays_idle(&mut session.recorder, host_ns);
    });
}

#[test]
fn a_halted_guest_without_a_timer_waits_and_logs_nothing() {
    on_engines("idle in HLT", || {
        let code = assemble(CODE, |a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.hlt()?;
            a.jmp(again)
        });
        let Guest { engine, ram, first } = guest(CPL0, &code, &[]);
        let machine =
            Machine::new(engine, ram, &devices::DevicesConfig::default(), &first).expect("a machine");
        let mut recorder = Recorder::new(machine, ClockPolicy::default(), 0);
        assert_eq!(
            recorder.advance(&mut Vec::new()).expect("the guest"),
            Stop::Waiting { deadline_ns: None }
        );
        stays_idle(&mut recorder, 0);
    });
}
