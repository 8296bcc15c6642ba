//! Steps and breakpoints, at both privilege levels, on guests of a few instructions.

use std::cell::Cell;
use std::collections::BTreeSet;

use iced_x86::code_asm::*;
use lockstep::engine::{CpuState, DebugRun, DebugStop, Engine, EngineKind, VmEntry, VmExit};

use crate::guest::{CODE, CPL0, CPL3, DATA, Guest, STACK, assemble, engines};

const NONE: BTreeSet<u64> = BTreeSet::new();

fn program() -> Vec<u8> {
    assemble(CODE, |a| {
        let mut again = a.create_label();
        a.mov(eax, 3)?;
        a.set_label(&mut again)?;
        a.add(rbx, rax)?;
        a.pushfq()?;
        a.pop(rcx)?;
        a.mov(qword_ptr(DATA), rcx)?;
        a.mov(edx, 0x80)?;
        a.out(dx, al)?;
        a.in_(al, dx)?;
        a.mov(eax, 1)?;
        a.mov(rsi, DATA)?;
        a.mov(rdi, DATA + 64)?;
        a.mov(ecx, 3)?;
        a.rep().movsb()?;
        a.inc(r8)?;
        a.cmp(r8, 4)?;
        a.jne(again)?;
        a.mov(edx, 0x81)?;
        a.out(dx, al)
    })
}

/// Runs to the end with `ask`; where it stopped on the way, and the state at its end.
fn run(
    kind: EngineKind,
    cpl: u8,
    ask: impl Fn(&mut Guest, VmEntry) -> DebugStop,
) -> (Vec<u64>, Vec<VmExit>, CpuState, Vec<u8>) {
    let code = program();
    let mut guest = Guest::new(kind, cpl, &code, &[]);
    let (mut stops, mut exits, mut entry) = (Vec::new(), Vec::new(), VmEntry::Resume);
    loop {
        match ask(&mut guest, std::mem::take(&mut entry)) {
            DebugStop::Exit(VmExit::PioWrite { port: 0x81, .. }) => break,
            DebugStop::Exit(VmExit::Kicked) => {}
            DebugStop::Exit(exit) => {
                if matches!(exit, VmExit::PioRead { .. }) {
                    entry = VmEntry::Value(0x5a);
                }
                exits.push(exit);
            }
            DebugStop::Stepped | DebugStop::Breakpoint | DebugStop::Watched => {
                stops.push(guest.engine.rip().expect("RIP"))
            }
        }
        assert!(stops.len() < 1000, "{stops:x?}");
    }
    let state = guest.state();
    let ram = guest.ram.as_slice()[DATA as usize..STACK as usize].to_vec();
    (stops, exits, state, ram)
}

/// Every engine here, at both privilege levels.
fn subjects(test: &str) -> impl Iterator<Item = (EngineKind, u8)> {
    engines(test).into_iter().flat_map(|kind| [(kind, CPL0), (kind, CPL3)])
}

fn plain(guest: &mut Guest, entry: VmEntry) -> DebugStop {
    DebugStop::Exit(guest.run(entry))
}

fn step(guest: &mut Guest, mut entry: VmEntry) -> DebugStop {
    loop {
        let ask = DebugRun { step: true, breakpoints: &NONE, watched: None };
        match guest.engine.run_debug(std::mem::take(&mut entry), None, ask).expect("a step") {
            // The host took the CPU for itself before the instruction.
            DebugStop::Exit(VmExit::Kicked) => {}
            stop => return stop,
        }
    }
}

#[test]
fn stepping_changes_nothing() {
    for (kind, cpl) in subjects("stepping changes nothing") {
        let (_, exits, state, ram) = run(kind, cpl, plain);
        let (stops, stepped_exits, stepped_state, stepped_ram) = run(kind, cpl, step);
        assert_eq!(exits, stepped_exits);
        assert_eq!(state.diff(&stepped_state), Vec::<String>::new(), "{kind}, CPL {cpl}");
        assert!(ram == stepped_ram, "{kind}, CPL {cpl}: memory differs");
        // Every instruction but the two that exit, each of the four rounds; REP stops at every iteration.
        let first = stops.iter().filter(|rip| **rip == CODE + 5).count();
        assert_eq!(first, 4, "{kind}, CPL {cpl}: {stops:x?}");
        assert!(stops.len() >= 4 * 13, "{kind}, CPL {cpl}: {} stops", stops.len());
    }
}

#[test]
fn breakpoints_stop_every_time_and_change_nothing() {
    for (kind, cpl) in subjects("breakpoints stop every time") {
        let (_, exits, state, ram) = run(kind, cpl, plain);
        let breakpoints = BTreeSet::from([CODE + 5]);
        let stopped = Cell::new(false);
        let (stops, stopped_exits, stopped_state, stopped_ram) = run(kind, cpl, |guest, entry| {
            guest.engine.complete(entry).expect("completes");
            if stopped.take() {
                assert_eq!(step(guest, VmEntry::Resume), DebugStop::Stepped);
            }
            let byte = guest.ram.as_slice()[CODE as usize + 5];
            guest.ram.write(CODE as usize + 5, &[0xcc]);
            let ask = DebugRun { step: false, breakpoints: &breakpoints, watched: None };
            let stop = guest.engine.run_debug(VmEntry::Resume, None, ask).expect("runs");
            guest.ram.write(CODE as usize + 5, &[byte]);
            stopped.set(stop == DebugStop::Breakpoint);
            stop
        });
        assert_eq!(exits, stopped_exits, "{kind}, CPL {cpl}");
        assert_eq!(stops, [CODE + 5; 4], "{kind}, CPL {cpl}");
        assert_eq!(state.diff(&stopped_state), Vec::<String>::new(), "{kind}, CPL {cpl}");
        assert!(ram == stopped_ram, "{kind}, CPL {cpl}: memory differs");
    }
}
