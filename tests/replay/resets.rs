//! Resets by guests of a few instructions, on every engine: each way to reset, what the guest finds
//! afterwards, and how often it may.

use std::sync::Arc;

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, dx, edx, qword_ptr, rax, rbx, rcx, rsp};
use lockstep::boot;
use lockstep::engine::Engine as _;
use lockstep::engine::StopPrecision;
use lockstep::machine::Machine;
use lockstep::memory::Ram;
use lockstep::restart::ResetPolicy;
use logchannel::{Event, MachineDigest, OnReset, Position};
use replay::{ClockPolicy, Ending, Machine as _, Progress, Recorded, Recorder, Replayer, Stop};

use crate::guest::{CODE, assemble};
use crate::machine::{Vm, engine_kind, on_engines};

const RAM_BYTES: u64 = 8 << 20;
/// Memory that the guest leaves something in.
const MARKED: u64 = 0x60_0000;
const LIMIT: u32 = 5;

type Way = fn(&mut CodeAssembler) -> Result<(), IcedError>;

fn out(a: &mut CodeAssembler, port: u32, value: u32) -> Result<(), IcedError> {
    a.mov(edx, port)?;
    a.mov(al, value)?;
    a.out(dx, al)
}

/// Port 0xcf9, the keyboard controller, a triple fault.
const WAYS: [(&str, Way); 3] = [
    ("0xcf9", |a| out(a, 0xcf9, 6)),
    ("0x64", |a| out(a, 0x64, 0xfe)),
    ("triple fault", |a| {
        // An IDT of no length.
        a.push(0)?;
        a.push(0)?;
        a.lidt(qword_ptr(rsp))?;
        a.ud2()
    }),
];

/// A guest that changes memory, registers, an MSR and the interrupt controller, and resets.
fn code(way: Way) -> Vec<u8> {
    assemble(CODE, |a| {
        // What it finds must be zero.
        a.mov(rbx, MARKED)?;
        a.mov(rsp, MARKED + 0x1000)?;
        a.cmp(qword_ptr(rbx), 0)?;
        let mut clean = a.create_label();
        a.je(clean)?;
        a.hlt()?;
        a.set_label(&mut clean)?;
        a.mov(rax, 0x5a5a_5a5a_5a5a_5a5au64)?;
        a.mov(qword_ptr(rbx), rax)?;
        // KERNEL_GS_BASE
        a.mov(rcx, 0xc000_0102u64)?;
        a.mov(rax, 0x1234u64)?;
        a.mov(edx, 0)?;
        a.wrmsr()?;
        out(a, 0x21, 0x0f)?;
        way(a)?;
        a.hlt()
    })
}

fn machine(code: &[u8], on_reset: OnReset) -> Vm {
    let ram = Ram::new(RAM_BYTES).expect("guest memory");
    let load = {
        let code = code.to_vec();
        move |ram: &Ram| boot::load_flat64(ram.map(), ram.bytes(), &code, CODE, "")
    };
    let first = load(&ram).expect("boot tables");
    let engine = engine_kind().create(&ram).expect("an engine");
    let mut machine =
        Machine::new(engine, ram, &devices::DevicesConfig::default(), &first).expect("a machine");
    machine.set_reset_policy(ResetPolicy::loading(on_reset, Arc::new(load)));
    machine
}

/// Runs until the guest has reset or ended.
fn run(recorder: &mut Recorder<Vm>, log: &mut Vec<Recorded>) -> Option<Ending> {
    let before = log.len();
    loop {
        match recorder.advance(log).expect("it runs") {
            Stop::Ended(ending) => return Some(ending),
            Stop::Waiting { .. } => panic!("it waits, and nothing is in flight"),
            Stop::Ready if log[before..].iter().any(|r| r.entry.event == Event::Reset) => return None,
            Stop::Ready => {}
        }
    }
}

fn last_digest(log: &[Recorded]) -> MachineDigest {
    match log.last().map(|recorded| &recorded.entry.event) {
        Some(Event::Digest(digest)) => *digest,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reset_is_a_power_on_and_too_many_are_the_end() {
    on_engines("a reset is a power-on", || {
        for (name, way) in WAYS {
            let code = code(way);
            let mut machine = machine(&code, OnReset::Restart { limit: LIMIT });
            let first = machine.digest().expect("a digest");
            let mut recorder = Recorder::new(machine, ClockPolicy::default(), 0);
            let (mut log, mut last) = (Vec::new(), Position::at(0));
            for count in 1..=u64::from(LIMIT) {
                assert_eq!(run(&mut recorder, &mut log), None, "{name}");
                let digest = last_digest(&log);
                assert_eq!(
                    (digest.registers, digest.memory),
                    (first.registers, first.memory),
                    "{name} {count}"
                );
                assert_ne!(digest.devices, first.devices, "the clock goes on, and resets are counted");
                assert_eq!(recorder.machine().resets(), count, "{name}");
                let at = recorder.machine().position();
                assert!(at.count > last.count, "{name}: the position goes on");
                last = at;
            }
            assert_eq!(run(&mut recorder, &mut log), Some(Ending::ResetLoop { limit: LIMIT }), "{name}");
            follows(&code, &log);
        }
    });
}

/// Another machine follows the log, saved and restored elsewhere after each entry.
fn follows(code: &[u8], log: &[Recorded]) {
    let policy = OnReset::Restart { limit: LIMIT };
    let mut replayer = Replayer::new(machine(code, policy));
    for recorded in log {
        replayer.push(recorded.entry.clone()).expect("the next entry");
        while replayer.executed() < recorded.entry.seq {
            replayer.advance().expect("it follows");
        }
        if replayer.is_settled() && replayer.machine_mut().is_movable().expect("it can be asked") {
            let state = replayer.machine_mut().save().expect("a state");
            let mut moved = machine(code, policy);
            let content = replayer.machine().ram().as_slice().to_vec();
            moved.ram_mut().write(0, &content);
            moved.go_to(state).expect("it goes on elsewhere");
            replayer = Replayer::resume(moved, recorded.entry.seq + 1);
        }
    }
    assert_eq!(replayer.machine().resets(), u64::from(LIMIT));
    assert!(matches!(replayer.advance(), Ok(Progress::NeedEntries | Progress::Ended(_))));
}

#[test]
fn a_reset_ends_a_machine_that_is_to_stop() {
    on_engines("a reset ends a machine", || {
        for (name, way) in WAYS {
            let mut recorder = Recorder::new(machine(&code(way), OnReset::Stop), ClockPolicy::default(), 0);
            assert_eq!(run(&mut recorder, &mut Vec::new()), Some(Ending::Reset), "{name}");
        }
    });
}

#[test]
fn a_machine_without_its_guests_files_says_so() {
    on_engines("a machine without files", || {
        let mut machine = machine(&code(WAYS[0].1), OnReset::Stop);
        machine.set_reset_policy(ResetPolicy::new(OnReset::Restart { limit: 0 }, None));
        let mut recorder = Recorder::new(machine, ClockPolicy::default(), 0);
        let error = loop {
            match recorder.advance(&mut Vec::new()) {
                Ok(stop) => assert_eq!(stop, Stop::Ready),
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains("its kernel is not known here"), "{error}");
    });
}

/// All of memory changes at a reset, for a transfer under way as for the digest of changed pages.
#[test]
fn a_reset_counts_as_a_write_of_every_page() {
    on_engines("a reset counts as a write", || {
        let mut machine = machine(&code(WAYS[0].1), OnReset::Restart { limit: 0 });
        machine.track_pages(true).expect("tracking");
        let mut recorder = Recorder::new(machine, ClockPolicy::default(), 0);
        assert_eq!(run(&mut recorder, &mut Vec::new()), None);
        let changed = recorder.machine_mut().take_changed_pages().expect("pages");
        let pages = RAM_BYTES / 4096;
        assert_eq!(changed.iter().map(|word| u64::from(word.count_ones())).sum::<u64>(), pages);
        assert!(recorder.machine().engine().stops() == StopPrecision::Exact || engine_kind().name() == "kvm");
    });
}
