//! REP: restart after page faults with RCX, RSI and RDI precise, in every direction and size (SDM vol. 1,
//! 7.3.9.3; vol. 2, REP); stops between iterations.

use iced_x86::code_asm::*;
use lockstep::engine::{StopPrecision, VmEntry};
use logchannel::Position;

use crate::cases::{At, Case};
use crate::hosts::hosts;
use crate::machine::{Machine, run};
use crate::mapper::Mapper;
use crate::scaffold::*;

const BASE: u64 = 1 << 39;
const ALL: u64 = P | RW | US | A | D;
const WIDE: u64 = 0xffff_ffff_0000_0000;

/// Two pages of which the second is missing (the first, going down).
fn pages(case: Case, down: bool) -> Case {
    let mut tables = Mapper::new();
    for page in 0..2u64 {
        let there = (page == 0) != down;
        let leaf = if there { ALL } else { 0 };
        tables.map(BASE + page * 0x1000, FRAMES + page * 0x1000, 1, [ALL, ALL, ALL, leaf]);
    }
    let mut case = case;
    case.writes.extend(tables.writes);
    case.with(|s| s.rflags |= if down { DF } else { 0 })
}

/// A string instruction: name, opcode of its byte form, uses RSI, uses RDI, writes.
const INSTRUCTIONS: [(&str, u8, bool, bool, bool); 5] = [
    ("MOVS", 0xa4, true, true, true),
    ("STOS", 0xaa, false, true, true),
    ("LODS", 0xac, true, false, false),
    ("CMPS", 0xa6, true, true, false),
    ("SCAS", 0xae, false, true, false),
];

/// It runs into the missing page after `done` of five elements.
fn faulting(cpl: u8) -> Vec<Case> {
    let mut cases = Vec::new();
    let plain = if cpl == 0 { KERNEL_DATA } else { USER_DATA };
    for (name, opcode, uses_rsi, uses_rdi, writes) in INSTRUCTIONS {
        for (shift, down, by_rsi) in
            (0..4).flat_map(|s| [(s, false, false), (s, false, true), (s, true, false), (s, true, true)])
        {
            if (by_rsi && !uses_rsi) || (!by_rsi && !uses_rdi) {
                continue;
            }
            let size = 1u64 << shift;
            let done = 3u64;
            let mut code = if shift == 1 { vec![0x66] } else { Vec::new() };
            code.push(0xf3);
            code.extend(if shift == 3 { &[0x48][..] } else { &[] });
            code.push(if shift == 0 { opcode } else { opcode | 1 });
            let begin = if down { BASE + 0x1000 + (done - 1) * size } else { BASE + 0x1000 - done * size };
            let fault = if down { BASE + 0x1000 - size } else { BASE + 0x1000 };
            let forward = |from: u64| if down { from - done * size } else { from + done * size };
            let side = ["RDI", "RSI"][usize::from(by_rsi)];
            let way = ["up", "down"][usize::from(down)];
            let case = Case::at_level(format!("REP {name} of {size}, {way}, #PF by {side}"), cpl).gpr(RCX, 5);
            let error = if writes && !by_rsi { 2 } else { 0 } | if cpl == 3 { 4 } else { 0 };
            let other = plain + 0x100;
            let (source, target) = if by_rsi { (begin, other) } else { (other, begin) };
            let (source, target) = (if uses_rsi { source } else { 0 }, if uses_rdi { target } else { 0 });
            let case = pages(case, down)
                .with(|s| s.rflags |= CF | ZF)
                .gpr(RSI, source)
                .gpr(RDI, target)
                .bytes(&code)
                .page_fault(error, fault)
                // Comparisons leave the flags as they were (vol. 2, REP).
                .value("pushed status flags", CF | ZF, |o, _| o.events[0].rflags & STATUS)
                .value("RCX", 5 - done, |o, _| o.events[0].state.gpr[RCX])
                .value("RSI", if uses_rsi { forward(source) } else { 0 }, |o, _| o.events[0].state.gpr[RSI])
                .value("RDI", if uses_rdi { forward(target) } else { 0 }, |o, _| o.events[0].state.gpr[RDI]);
            cases.push(case);
        }
    }
    cases
}

/// What REP does without faults.
fn counting(cpl: u8) -> Vec<Case> {
    let data = if cpl == 0 { KERNEL_DATA } else { USER_DATA };
    let case = |name: &str| Case::at_level(name, cpl).gpr(RDI, data + 0x100).gpr(RSI, data);
    let words: Vec<u8> = (1..=64).collect();
    // What Intel's processors zero-extend; AMD's keep all of it.
    let narrow = |name: &str, opcode: u8, count: u64| {
        case(&format!("REP {name} with 32-bit addresses, {count} times"))
            .gpr(RCX, WIDE | count)
            .gpr(RSI, WIDE | data)
            .gpr(RDI, WIDE | (data + 0x100))
            .bytes(&[0x67, 0xf3, opcode])
            .done()
            .leaves(RCX, 0)
    };
    vec![
        case("REP of zero iterations touches nothing")
            .gpr(RDI, 1 << 62)
            .gpr(RCX, 0)
            .probe(|a| a.rep().stosb())
            .done()
            .leaves(RDI, 1 << 62),
        case("REP MOVSQ")
            .gpr(RCX, 4)
            .poke(data, &words)
            .probe(|a| a.rep().movsq())
            .done()
            .leaves(RCX, 0)
            .leaves(RDI, data + 0x120)
            .leaves(RSI, data + 32)
            .memory(data + 0x118, 0x201f_1e1d_1c1b_1a19),
        case("REP MOVSB onto itself repeats a pattern")
            .gpr(RDI, data + 3)
            .gpr(RCX, 9)
            .poke(data, b"abc")
            .probe(|a| a.rep().movsb())
            .done()
            .memory(data + 4, u64::from_le_bytes(*b"bcabcabc")),
        case("REPE CMPSB stops at a difference")
            .gpr(RCX, 10)
            .poke(data, b"abcdXf")
            .poke(data + 0x100, b"abcdef")
            .probe(|a| a.repe().cmpsb())
            .done()
            .leaves(RCX, 5)
            .leaves(RSI, data + 5)
            .flags(ZF, 0),
        case("REPNE SCASB finds")
            .gpr(RCX, 10)
            .gpr(RAX, u64::from(b'd'))
            .poke(data + 0x100, b"abcdef")
            .probe(|a| a.repne().scasb())
            .done()
            .leaves(RCX, 6)
            .leaves(RDI, data + 0x104)
            .flags(ZF, ZF),
        case("REP with 32-bit addresses counts ECX and clears the upper halves")
            .gpr(RCX, 0xffff_ffff_0000_0002)
            .gpr(RDI, 0xffff_ffff_0000_0000 | (data + 0x100))
            .gpr(RAX, 0x41)
            .bytes(&[0x67, 0xf3, 0xaa])
            .done()
            .leaves(RCX, 0)
            .leaves(RDI, data + 0x102),
        narrow("STOSB", 0xaa, 0).leaves(RSI, WIDE | data).leaves(RDI, data + 0x100),
        narrow("MOVSB", 0xa4, 0).leaves(RSI, data).leaves(RDI, data + 0x100),
        narrow("LODSB", 0xac, 0).leaves(RSI, WIDE | data).leaves(RDI, WIDE | (data + 0x100)),
        narrow("CMPSB", 0xa6, 0).leaves(RSI, WIDE | data).leaves(RDI, WIDE | (data + 0x100)),
        narrow("SCASB", 0xae, 0).leaves(RSI, WIDE | data).leaves(RDI, WIDE | (data + 0x100)),
        case("backwards")
            .with(|s| s.rflags |= DF)
            .gpr(RCX, 2)
            .gpr(RAX, 0x55)
            .probe(|a| a.rep().stosd())
            .done()
            .leaves(RDI, data + 0xf8)
            .memory(data + 0xfc, 0x55 | 0x55 << 32),
    ]
}

/// Stops before the first iteration, between iterations and after the last: RF says which.
#[test]
fn rf_is_set_between_iterations_and_nowhere_else() {
    for host in hosts("rep_rf") {
        for at in [0u64, 1, 63, 4096, 5000] {
            let case = Case::user("stopped REP")
                .with(|s| s.rflags |= IF)
                .gpr(RCX, 5000)
                .gpr(RDI, USER_DATA)
                .probe(|a| a.rep().stosb());
            let mut machine = Machine::of(host, &case).expect("starts");
            if machine.engine.stops() != StopPrecision::Exact {
                eprintln!("SKIPPED rep_rf on {}: it stops only at exits", host.engine());
                break;
            }
            let want = if at > 0 && at < 5000 { RF } else { 0 };
            let stop = Position::at(machine.engine.position().count + at);
            if at > 0 {
                machine.engine.run(VmEntry::Resume, Some(stop)).expect("runs");
            }
            assert_eq!(machine.state().rflags & RF, want, "after {at}");
            machine.engine.inject(0x31).expect("injects");
            assert_eq!(machine.run(VmEntry::Resume), lockstep::engine::VmExit::Hlt);
            let state = machine.state();
            assert_eq!(machine.event(state).rflags & RF, want, "pushed after {at}");
            let outcome = machine.play(0, true);
            assert_eq!((outcome.finish, outcome.state.rflags & RF), (crate::machine::Finish::Done, 0));
            assert_eq!(outcome.state.gpr[RCX], 0);
        }
    }
}

/// The page is made present by the handler, and the instruction goes on where it was.
fn resumed() -> Vec<Case> {
    let at = KERNEL_CODE + 0x800;
    let mut tables = Mapper::new();
    tables.map(BASE, FRAMES, 1, [ALL; 4]);
    let entry = tables.at(BASE + 0x1000, 1);
    let handler = assemble(64, at, |a| {
        a.push(rax)?;
        a.mov(rax, FRAMES + 0x1000 + ALL)?;
        a.mov(qword_ptr(entry), rax)?;
        a.pop(rax)?;
        a.lea(rsp, ptr(rsp + 8))?;
        a.inc(r15)?;
        a.iretq()
    });
    [0u8, 3]
        .map(|cpl| {
            let case = pages(Case::at_level("REP STOSQ across a page that the handler maps", cpl), false);
            case.poke(gate_at(14), gate(14, KERNEL_CS, at, 0, 0))
                .poke(at, &handler)
                .gpr(15, 0)
                .gpr(RAX, 0x1111_2222_3333_4444)
                .gpr(RCX, 0x200)
                .gpr(RDI, BASE + 0x800)
                .probe(|a| a.rep().stosq())
                .done()
                .leaves(15, 1)
                .leaves(RCX, 0)
                .leaves(RDI, BASE + 0x1800)
                .memory(FRAMES + 0xff8, 0x1111_2222_3333_4444)
                .memory(FRAMES + 0x17f8, 0x1111_2222_3333_4444)
                .memory(FRAMES + 0x1800, 0)
        })
        .into_iter()
        .collect()
}

#[test]
fn rep_restarts_precisely_after_page_faults() {
    run("rep_faults", [faulting(0), faulting(3)].into_iter().flatten().collect());
}

#[test]
fn rep_counts() {
    run("rep_counts", [counting(0), counting(3)].into_iter().flatten().collect());
}

#[test]
fn rep_goes_on_after_its_page_fault() {
    run("rep_resumed", resumed());
}

#[test]
fn an_engine_that_stops_anywhere_stops_and_interrupts_between_iterations() {
    for host in hosts("rep_interrupts") {
        let case = Case::user("interrupted REP")
            .with(|s| s.rflags |= IF)
            .gpr(RCX, 100)
            .gpr(RDI, USER_DATA)
            .gpr(RAX, 7)
            .probe(|a| a.rep().stosb());
        let mut machine = Machine::of(host, &case).expect("starts");
        if machine.engine.stops() != StopPrecision::Exact {
            eprintln!("SKIPPED rep_interrupts on {}: it stops only at exits", host.engine());
            continue;
        }
        let mut before = 0;
        for at in [10u64, 11, 60] {
            // The handler's IRETQ is still to come, from the second time on.
            let steps = at - before + u64::from(before > 0);
            let position = Position::at(machine.engine.position().count + steps);
            before = at;
            let exit = machine.engine.run(VmEntry::Resume, Some(position)).expect("runs");
            assert_eq!(exit, lockstep::engine::VmExit::Reached);
            let state = machine.state();
            assert_eq!((state.gpr[RCX], state.gpr[RDI], state.rip), (100 - at, USER_DATA + at, USER_CODE));
            assert!(machine.engine.interruptible());
            machine.engine.inject(0x31).expect("injects");
            let exit = machine.run(VmEntry::Resume);
            assert_eq!(exit, lockstep::engine::VmExit::Hlt);
            let state = machine.state();
            let event = machine.event(state);
            assert_eq!((event.vector, event.error, event.rip), (0x31, None, case.address(At::Probe(0))));
            assert_eq!(event.rflags & RF, RF, "between iterations (SDM vol. 3, 17.3.1.1)");
        }
        let outcome = machine.play(0, true);
        assert_eq!(outcome.finish, crate::machine::Finish::Done);
        assert_eq!((outcome.state.gpr[RCX], outcome.state.gpr[RDI]), (0, USER_DATA + 100));
        assert!(machine.ram.as_slice()[USER_DATA as usize..][..101].iter().eq([7; 100].iter().chain(&[0])));
    }
}
