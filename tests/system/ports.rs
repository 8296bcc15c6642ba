//! Ports at CPL3: the I/O permission bitmap of the TSS and IOPL (SDM vol. 1, 19.5); string I/O.

use iced_x86::code_asm::*;
use lockstep::engine::VmExit;

use crate::cases::Case;
use crate::hosts::Host;
use crate::machine::run;
use crate::scaffold::*;

const MAP: u64 = TSS + 0x68;
const NATIVE: &str = "ports open by what the host's bitmap and KVM make of it";

/// An access of `size` bytes to `port` through DX.
fn access(name: &str, case: fn(String) -> Case, port: u64, size: u64, input: bool) -> Case {
    let way = ["OUT", "IN"][usize::from(input)];
    let case = case(format!("{way} of {size} at port {port:#x}: {name}")).gpr(RDX, port);
    case.bytes(match (input, size) {
        (false, 1) => &[0xee],
        (false, 2) => &[0x66, 0xef],
        (false, _) => &[0xef],
        (true, 1) => &[0xec],
        (true, 2) => &[0x66, 0xed],
        (true, _) => &[0xed],
    })
}

fn user(name: String) -> Case {
    Case::user(name).not_always_on(Host::Pvm, NATIVE)
}

fn kernel(name: String) -> Case {
    Case::kernel(name)
}

fn bitmap() -> Vec<Case> {
    let mut cases = Vec::new();
    let port = 0x1234u64;
    for (size, input) in [(1, false), (2, false), (4, false), (1, true), (2, true), (4, true)] {
        let exits = |case: Case| case.done().value("exits", 1, |o, _| o.exits.len() as u64);
        cases.push(exits(access("open", user, port, size, input)));
        for closed in 0..8u64 {
            let base = port & !7;
            let case = access(&format!("port {:#x} closed", base + closed), user, port, size, input);
            let case = case.poke(MAP + base / 8, [1u8 << closed]);
            let hit = (port & 7..(port & 7) + size).contains(&closed);
            cases.push(if hit {
                case.faults(13, 0).value("exits", 0, |o, _| o.exits.len() as u64)
            } else {
                exits(case)
            });
        }
        // An access may reach into the next byte of the map.
        let case = access("the next byte of the map is closed", user, 0x1237, size, input)
            .poke(MAP + 0x1238 / 8, [0xff]);
        cases.push(if size > 1 { case.faults(13, 0) } else { exits(case) });
        let case = access("everything closed, but CPL0", kernel, port, size, input).poke(MAP, [0xff; 0x2000]);
        cases.push(exits(case));
        let case = access("everything closed, but IOPL 3", user, port, size, input).poke(MAP, [0xff; 0x2000]);
        cases.push(exits(case.with(|s| s.rflags |= IOPL3)));
        let limit = |at: u64| (0x68 + at) as u32;
        let case = access("the map ends before it", user, port, size, input);
        cases.push(
            case.with(|s| s.segments[TR].limit = limit(port / 8 - 1))
                .faults(13, 0)
                .not_always_on(Host::Emulated, "QEMU reads beyond"),
        );
        // Two bytes are always read.
        let case = access("the map ends with its byte", user, port, size, input);
        cases.push(case.with(|s| s.segments[TR].limit = limit(port / 8)).faults(13, 0));
        let case = access("the map is outside the TSS", user, port, size, input);
        cases.push(case.poke(TSS + 0x66, 0xffffu16.to_le_bytes()).faults(13, 0));
    }
    cases
}

fn strings() -> Vec<Case> {
    let sent = |o: &crate::machine::Outcome| {
        let mut all: Vec<u8> = Vec::new();
        for exit in &o.exits {
            match exit {
                VmExit::PioWrite { value, size, .. } => {
                    all.extend(&value.to_le_bytes()[..usize::from(*size)])
                }
                VmExit::PioWriteString { data, .. } => all.extend(data),
                _ => {}
            }
        }
        all.iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte))
    };
    vec![
        Case::kernel("REP OUTSB")
            .gpr(RSI, KERNEL_DATA)
            .gpr(RCX, 4)
            .gpr(RDX, 0x80)
            .poke(KERNEL_DATA, [1, 2, 3, 4])
            .probe(|a| a.rep().outsb())
            .done()
            .value("sent", 0x0102_0304, move |o, _| sent(o))
            .leaves(RCX, 0)
            .leaves(RSI, KERNEL_DATA + 4),
        Case::kernel("OUTSD")
            .gpr(RSI, KERNEL_DATA)
            .gpr(RDX, 0x80)
            .poke(KERNEL_DATA, [1, 2, 3, 4])
            .probe(|a| a.outsd())
            .done()
            .value("sent", 0x0102_0304, move |o, _| sent(o))
            .leaves(RSI, KERNEL_DATA + 4),
        Case::kernel("REP INSW")
            .gpr(RDI, KERNEL_DATA)
            .gpr(RCX, 3)
            .gpr(RDX, 0x80)
            .probe(|a| a.rep().insw())
            .done()
            .memory(KERNEL_DATA, 0xffff_ffff_ffff)
            .leaves(RCX, 0)
            .leaves(RDI, KERNEL_DATA + 6),
        Case::kernel("INSB to a missing page: no port is read")
            .gpr(RDI, 1 << 39)
            .gpr(RCX, 3)
            .gpr(RDX, 0x80)
            .probe(|a| a.rep().insb())
            .page_fault(2, 1 << 39)
            .value("exits", 0, |o, _| o.exits.len() as u64)
            .value("RCX", 3, |o, _| o.events[0].state.gpr[RCX])
            .not_on(Host::Pvm, "KVM's emulator reads the port first"),
        Case::kernel("OUTSB from a missing page")
            .gpr(RSI, 1 << 39)
            .gpr(RCX, 3)
            .gpr(RDX, 0x80)
            .probe(|a| a.rep().outsb())
            .page_fault(0, 1 << 39)
            .value("exits", 0, |o, _| o.exits.len() as u64),
        Case::user("OUTSB at CPL3 through the bitmap")
            .gpr(RSI, USER_DATA)
            .gpr(RDX, 0x80)
            .poke(USER_DATA, [9])
            .probe(|a| a.outsb())
            .done()
            .value("sent", 9, move |o, _| sent(o))
            .not_always_on(Host::Pvm, NATIVE),
        Case::user("INSB at CPL3, port closed")
            .gpr(RDI, USER_DATA)
            .gpr(RDX, 0x80)
            .poke(MAP + 0x10, [1])
            .probe(|a| a.insb())
            .faults(13, 0)
            .not_always_on(Host::Pvm, NATIVE),
        Case::kernel("IN AL leaves the rest of RAX")
            .gpr(RAX, 0)
            .probe(|a| a.in_(al, 0x80))
            .done()
            .leaves(RAX, 0xff),
        Case::kernel("IN EAX clears the upper half")
            .gpr(RAX, u64::MAX << 32)
            .probe(|a| a.in_(eax, 0x80))
            .done()
            .leaves(RAX, 0xffff_ffff),
    ]
}

#[test]
fn the_permission_bitmap_decides_at_cpl3() {
    run("bitmap", bitmap());
}

#[test]
fn string_io() {
    run("string_io", strings());
}
