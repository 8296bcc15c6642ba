//! Debug exceptions: single steps, breakpoints on instructions and data, DR6, DR7, general detect (SDM vol.
//! 3, chapter 18).

use iced_x86::code_asm::*;

use crate::cases::{At, Case};
use crate::hosts::Host;
use crate::machine::run;
use crate::scaffold::*;

/// DR6: single step, register access.
const BS: u64 = 1 << 14;
const BD: u64 = 1 << 13;
/// DR7: L0, general detect, and the bit that is always one.
const L0: u64 = 1;
const GD: u64 = 1 << 13;
const ONE: u64 = 1 << 10;

/// Kinds and lengths of breakpoint 0 in DR7.
const EXECUTE: u64 = 0;
const WRITE: u64 = 1 << 16;
const ACCESS: u64 = 3 << 16;
const BYTE: u64 = 0;
const WORD: u64 = 1 << 18;
const QWORD: u64 = 2 << 18;
const DWORD: u64 = 3 << 18;

fn no_kvm(case: Case) -> Case {
    case.not_on(Host::Pvm, "debug registers do not fire")
        .not_on(Host::Emulated, "QEMU 7.2 loses debug exceptions")
}

fn stepping(cpl: u8) -> Vec<Case> {
    let case = |name: &str| {
        let case = Case::at_level(name, cpl).with(|s| s.rflags |= TF);
        let case = case.not_on(Host::Emulated, "QEMU 7.2 loses debug exceptions");
        case.not_on_if(cpl == 0, Host::Pvm, "single steps of the emulator are late")
    };
    let data = if cpl == 0 { KERNEL_DATA } else { USER_DATA };
    vec![
        case("single step")
            .probe(|a| {
                a.nop()?;
                a.nop()?;
                a.nop()
            })
            .debug(At::Probe(1), BS)
            .debug(At::Probe(2), BS)
            .debug(At::Probe(3), BS),
        case("a step over a branch")
            .bytes(&[0xeb, 1, 0xf4, 0x90])
            .debug(At::Probe(2), BS)
            .debug(At::Probe(3), BS),
        case("the frame has TF, the handler has not").probe(|a| a.nop()).debug(At::Probe(1), BS).value(
            "pushed TF and RF",
            TF,
            |o, _| o.events[0].rflags & (TF | RF),
        ),
        case("POPF that clears TF is stepped, the next is not")
            .prelude(|_| Ok(()))
            .probe(|a| {
                a.push(2)?;
                a.popfq()?;
                a.nop()
            })
            .debug(At::Probe(1), BS)
            .debug(At::Probe(2), BS)
            .done(),
        case("a fault comes instead of the step").probe(|a| a.ud2()).faults(6, None).value(
            "pushed TF",
            TF,
            |o, _| o.events[0].rflags & TF,
        ),
        case("each iteration of REP is a step")
            .gpr(RCX, 3)
            .gpr(RDI, data)
            .probe(|a| {
                a.rep().stosb()?;
                a.nop()
            })
            // RF is set between iterations, not after the last (SDM vol. 3, 17.3.1.1).
            .debug(At::Probe(0), BS)
            .rf(true)
            .debug(At::Probe(0), BS)
            .rf(true)
            .debug(At::Probe(1), BS)
            .rf(false)
            .debug(At::Probe(2), BS)
            .rf(false)
            .value("RCX at the steps", 0x0210, |o, _| {
                o.events[0].state.gpr[RCX] << 8 | o.events[1].state.gpr[RCX] << 4 | o.events[2].state.gpr[RCX]
            }),
        case("REP of nothing is one step")
            .gpr(RCX, 0)
            .gpr(RDI, data)
            .probe(|a| a.rep().stosb())
            .debug(At::Probe(1), BS),
    ]
}

fn special_steps() -> Vec<Case> {
    let kernel = |name: &str| no_kvm(Case::kernel(name).with(|s| s.rflags |= TF));
    let flat = u64::from(KERNEL_DS);
    vec![
        no_kvm(
            Case::kernel("POPF that sets TF: the next instruction is the first to be stepped")
                .prelude(|a| a.push(TF as i32 | 2))
                .probe(|a| {
                    a.popfq()?;
                    a.nop()?;
                    a.nop()
                })
                .debug(At::Probe(2), BS)
                .debug(At::Probe(3), BS),
        ),
        kernel("MOV SS holds the step off for an instruction")
            .gpr(RAX, flat)
            .probe(|a| {
                a.mov(ss, ax)?;
                a.nop()?;
                a.nop()
            })
            .debug(At::Probe(2), BS)
            .debug(At::Probe(3), BS),
        kernel("MOV DS does not")
            .gpr(RAX, flat)
            .probe(|a| {
                a.mov(ds, ax)?;
                a.nop()
            })
            .debug(At::Probe(1), BS)
            .debug(At::Probe(2), BS),
        kernel("STI does not")
            .probe(|a| {
                a.sti()?;
                a.nop()
            })
            .debug(At::Probe(1), BS)
            .debug(At::Probe(2), BS),
        kernel("INT n is not stepped, nor its handler")
            .probe(|a| {
                a.int(0x80)?;
                a.nop()?;
                a.nop()
            })
            .traps_at(0x80, At::Probe(1))
            .debug(At::Probe(2), BS)
            .debug(At::Probe(3), BS),
        no_kvm(
            Case::user("INT3 is not stepped")
                .with(|s| s.rflags |= TF)
                .poke(gate_at(3), usual_gate(3, 3, 0))
                .probe(|a| {
                    a.int3()?;
                    a.nop()
                })
                .traps_at(3, At::Probe(1))
                .debug(At::Probe(2), BS),
        ),
        no_kvm(
            Case::user("IRETQ to TF: one instruction, then the step")
                .prelude(|a| {
                    let mut go = a.create_label();
                    a.lea(rcx, ptr(go))?;
                    a.push(i32::from(USER_DS))?;
                    a.push(USER_STACK as i32)?;
                    a.push(TF as i32 | 2)?;
                    a.push(i32::from(USER_CS))?;
                    a.push(rcx)?;
                    a.iretq()?;
                    a.set_label(&mut go)?;
                    a.zero_bytes()
                })
                .probe(|a| {
                    a.nop()?;
                    a.nop()
                })
                .debug(At::Probe(1), BS)
                .debug(At::Probe(2), BS),
        ),
        kernel("DR6 keeps what software left in it")
            .with(|s| s.dr[4] |= BD)
            .probe(|a| a.nop())
            .debug(At::Probe(1), BS | BD),
    ]
}

/// A case with breakpoint 0.
fn breakpoint(case: Case, address: u64, how: u64) -> Case {
    no_kvm(case.with(move |s| {
        s.dr[0] = address;
        s.dr[5] = ONE | L0 | how;
    }))
}

fn breakpoints(cpl: u8) -> Vec<Case> {
    let data = if cpl == 0 { KERNEL_DATA } else { USER_DATA };
    let code = if cpl == 0 { KERNEL_CODE } else { USER_CODE };
    let resuming = KERNEL_CODE + 0x800;
    let on_data = |name: &str, address: u64, how: u64| {
        breakpoint(Case::at_level(name, cpl).gpr(RBX, data), address, how)
    };
    let on_code =
        |name: &str, offset: u64| breakpoint(Case::at_level(name, cpl), code + offset, EXECUTE | BYTE);
    let load = |a: &mut CodeAssembler| {
        a.mov(eax, dword_ptr(rbx))?;
        a.nop()
    };
    let store = |a: &mut CodeAssembler| {
        a.mov(dword_ptr(rbx), eax)?;
        a.nop()
    };
    vec![
        on_data("a write to a watched dword", data, WRITE | DWORD).probe(store).debug(At::Probe(1), 1).done(),
        on_data("a read of a dword watched for writes", data, WRITE | DWORD).probe(load).done(),
        on_data("a read of a dword watched for both", data, ACCESS | DWORD)
            .probe(load)
            .debug(At::Probe(1), 1)
            .done(),
        on_data("a write to the last watched byte", data + 3, WRITE | BYTE)
            .probe(store)
            .debug(At::Probe(1), 1)
            .done(),
        on_data("a write before the watched byte", data + 4, WRITE | BYTE).probe(store).done(),
        on_data("a write behind the watched word", data - 2, WRITE | WORD).probe(store).done(),
        on_data("a write into a watched qword from before it", data, WRITE | QWORD)
            .probe(|a| {
                a.mov(dword_ptr(rbx - 2), eax)?;
                a.nop()
            })
            .debug(At::Probe(1), 1)
            .done(),
        on_data("a watched qword of which a write touches the last byte", data, WRITE | QWORD)
            .probe(|a| {
                a.mov(word_ptr(rbx + 7), ax)?;
                a.nop()
            })
            .debug(At::Probe(1), 1)
            .done(),
        on_data(
            "PUSH to a watched qword",
            if cpl == 0 { KERNEL_STACK } else { USER_STACK } - 8,
            WRITE | QWORD,
        )
        .probe(|a| {
            a.push(rax)?;
            a.nop()
        })
        .debug(At::Probe(1), 1)
        .done(),
        on_data("a read-modify-write", data, WRITE | DWORD)
            .probe(|a| {
                a.inc(dword_ptr(rbx))?;
                a.nop()
            })
            .debug(At::Probe(1), 1)
            .done(),
        on_data("a step and a watched write at once", data, WRITE | DWORD)
            .with(|s| s.rflags |= TF)
            .probe(store)
            .debug(At::Probe(1), 1 | BS)
            .debug(At::Probe(2), BS),
        on_data("REP STOSB stops after the iteration that wrote", data + 1, WRITE | BYTE)
            .gpr(RDI, data)
            .gpr(RCX, 3)
            .probe(|a| {
                a.rep().stosb()?;
                a.nop()
            })
            .debug(At::Probe(0), 1)
            .rf(true)
            .done()
            .value("RCX at the trap", 1, |o, _| o.events[0].state.gpr[RCX]),
        on_data("REP STOSB's last iteration writes: the trap is after it", data + 2, WRITE | BYTE)
            .gpr(RDI, data)
            .gpr(RCX, 3)
            .probe(|a| {
                a.rep().stosb()?;
                a.nop()
            })
            .debug(At::Probe(1), 1)
            .rf(false)
            .done(),
        on_data("a disabled breakpoint", data, WRITE | DWORD).with(|s| s.dr[5] &= !L0).probe(store).done(),
        on_data("enabled by G0", data, WRITE | DWORD)
            .with(|s| s.dr[5] ^= 3)
            .probe(store)
            .debug(At::Probe(1), 1)
            .done(),
        on_data("breakpoint 3", data, 0)
            .with(|s| {
                (s.dr[3], s.dr[5]) = (s.dr[0], ONE | 1 << 6 | 1 << 28 | 3 << 30);
                s.dr[0] = 0;
            })
            .probe(store)
            .debug(At::Probe(1), 8)
            .done(),
        on_code("an instruction breakpoint is a fault", 1)
            .probe(|a| {
                a.nop()?;
                a.nop()
            })
            .debug(At::Probe(1), 1)
            .value("pushed RF", 0, |o, _| o.events[0].rflags & RF),
        on_code("RF lets one instruction pass", 0)
            .with(|s| s.rflags |= RF)
            .probe(|a| {
                a.nop()?;
                a.nop()
            })
            .done()
            .flags(RF, 0),
        on_code("RF lasts for one instruction", 1)
            .with(|s| s.rflags |= RF)
            .probe(|a| {
                a.nop()?;
                a.nop()
            })
            .debug(At::Probe(1), 1),
        on_code("inside an instruction it does not fire", 1).probe(|a| a.mov(eax, 5)).done(),
        on_code("at a REP: before the first iteration", 0)
            .gpr(RCX, 3)
            .gpr(RDI, data)
            .probe(|a| a.rep().stosb())
            .debug(At::Probe(0), 1)
            .value("RCX", 3, |o, _| o.events[0].state.gpr[RCX]),
        on_code("at a REP whose handler sets RF: one stop", 0)
            .gpr(RCX, 5000)
            .gpr(RDI, data)
            .gpr(15, 0)
            .poke(gate_at(1), gate(14, KERNEL_CS, resuming, 0, 0))
            .poke(resuming, counting_handler(resuming))
            .probe(|a| a.rep().stosb())
            .done()
            .leaves(RCX, 0)
            .leaves(15, 1),
    ]
}

/// A handler of #DB that counts in R15 and lets the instruction pass.
fn counting_handler(at: u64) -> Vec<u8> {
    assemble(64, at, |a| {
        a.inc(r15)?;
        a.or(dword_ptr(rsp + 16), RF as i32)?;
        a.iretq()
    })
}

/// MOV to and from debug registers.
fn registers() -> Vec<Case> {
    let kernel = |name: &str| Case::kernel(format!("debug registers: {name}"));
    let detect =
        |name: &str| kernel(name).with(|s| s.dr[5] = ONE | GD).not_on(Host::Pvm, "DR7.GD has no effect");
    let cleared = |case: Case| {
        case.value("DR7.GD in the handler", 0, |o, _| o.events[0].state.dr[5] & GD)
            .not_on(Host::Emulated, "QEMU 7.2 loses debug exceptions")
    };
    vec![
        kernel("DR0 to DR3 keep 64 bits")
            .gpr(RAX, 0x1234_5678_9abc_def0)
            .probe(|a| {
                a.mov(dr0, rax)?;
                a.mov(dr3, rax)?;
                a.mov(rcx, dr0)?;
                a.mov(rdx, dr3)
            })
            .done()
            .leaves(RCX, 0x1234_5678_9abc_def0)
            .leaves(RDX, 0x1234_5678_9abc_def0),
        kernel("DR6 of zeros")
            .gpr(RAX, 0)
            .probe(|a| {
                a.mov(dr6, rax)?;
                a.mov(rcx, dr6)
            })
            .done()
            .leaves(RCX, 0xffff_0ff0),
        kernel("DR6 of ones")
            .gpr(RAX, 0xffff_ffff)
            .probe(|a| {
                a.mov(dr6, rax)?;
                a.mov(rcx, dr6)
            })
            .done()
            .leaves(RCX, 0xffff_efff),
        kernel("DR7 of zeros")
            .gpr(RAX, 0)
            .probe(|a| {
                a.mov(dr7, rax)?;
                a.mov(rcx, dr7)
            })
            .done()
            .leaves(RCX, ONE),
        kernel("DR7's reserved bits stay zero")
            .gpr(RAX, 0xd8ff & !GD)
            .probe(|a| {
                a.mov(dr7, rax)?;
                a.mov(rcx, dr7)
            })
            .done()
            .leaves(RCX, 0x4ff)
            .not_on(Host::Pvm, "KVM's emulator keeps them"),
        kernel("DR6 above 32 bits").gpr(RAX, 1 << 32).probe(|a| a.mov(dr6, rax)).faults(13, 0),
        kernel("DR7 above 32 bits").gpr(RAX, 1 << 32).probe(|a| a.mov(dr7, rax)).faults(13, 0),
        kernel("DR4 is DR6").probe(|a| a.mov(rcx, dr4)).done().leaves(RCX, 0xffff_0ff0),
        kernel("DR5 is DR7").probe(|a| a.mov(rcx, dr5)).done().leaves(RCX, ONE),
        kernel("DR8 does not exist").bytes(&[0x44, 0x0f, 0x21, 0xc0]).faults(6, None),
        cleared(detect("general detect, read").probe(|a| a.mov(rax, dr0)).debug(At::Probe(0), BD)),
        cleared(detect("general detect, write").probe(|a| a.mov(dr7, rax)).debug(At::Probe(0), BD)),
    ]
}

#[test]
fn single_steps_come_after_every_instruction() {
    run("stepping", [stepping(0), stepping(3), special_steps()].into_iter().flatten().collect());
}

/// What an instruction holds off on the next.
fn held_off() -> Vec<Case> {
    let at = |name: &str, offset: u64| {
        let case = Case::kernel(name).gpr(RAX, KERNEL_DS.into()).with(move |s| {
            s.dr[0] = KERNEL_CODE + offset;
            s.dr[5] = ONE | L0 | EXECUTE | BYTE;
        });
        case.not_on(Host::Emulated, "QEMU 7.2 loses debug exceptions")
    };
    let load = [0x8e, 0xd0, 0x90, 0x90]; // mov ss, eax; nop; nop
    vec![
        at("MOV SS: no breakpoint on the next instruction", 2).bytes(&load).done(),
        at("MOV SS: a breakpoint on the one after", 3).bytes(&load).debug(At::Probe(2), 1),
        at("MOV DS holds no breakpoint off", 2).bytes(&[0x8e, 0xd8, 0x90]).debug(At::Probe(1), 1),
        at("STI holds no breakpoint off", 1)
            .probe(|a| {
                a.sti()?;
                a.nop()
            })
            .debug(At::Probe(1), 1),
    ]
}

/// A data breakpoint that MOV SS itself hits: the trap comes after the next instruction (SDM vol. 3, 6.8.3).
fn late() -> Vec<Case> {
    let case = |name: &str, code: &[u8]| {
        let case = breakpoint(Case::kernel(name), KERNEL_DATA, ACCESS | WORD);
        let case = case.gpr(RAX, KERNEL_DS.into()).gpr(RBX, KERNEL_DATA);
        case.poke(KERNEL_DATA, KERNEL_DS.to_le_bytes()).bytes(code)
    };
    vec![
        // mov ss, [rbx]; nop; nop
        case("MOV SS from a watched word", &[0x8e, 0x13, 0x90, 0x90]).debug(At::Probe(2), 1).done(),
        case("MOV SS from a watched word, with a step", &[0x8e, 0x13, 0x90, 0x90])
            .with(|s| s.rflags |= TF)
            .debug(At::Probe(2), 1 | BS)
            .debug(At::Probe(3), BS),
        // mov ss, [rbx]; mov ss, eax; nop
        case("MOV SS from a watched word, MOV SS", &[0x8e, 0x13, 0x8e, 0xd0, 0x90])
            .debug(At::Probe(3), 1)
            .done(),
        // mov ss, [rbx]; mov cx, [rbx]; nop
        case("MOV SS and the next from a watched word", &[0x8e, 0x13, 0x66, 0x8b, 0x0b, 0x90])
            .debug(At::Probe(2), 1)
            .done(),
        case("MOV SS from a watched word, and a breakpoint on the next", &[0x8e, 0x13, 0x90, 0x90])
            .with(|s| {
                s.dr[1] = KERNEL_CODE + 2;
                s.dr[5] |= L0 << 2;
            })
            .debug(At::Probe(2), 1)
            .done(),
        // mov ss, [rbx]; rep stosb; nop
        case("MOV SS from a watched word, REP STOSB", &[0x8e, 0x13, 0xf3, 0xaa, 0x90])
            .gpr(RCX, 2)
            .gpr(RDI, KERNEL_DATA + 8)
            .debug(At::Probe(1), 1)
            .rf(true)
            .done(),
        case("MOV DS from a watched word", &[0x8e, 0x1b, 0x90, 0x90]).debug(At::Probe(1), 1).done(),
    ]
}

#[test]
fn data_breakpoints_of_mov_ss_are_late() {
    run("late", late());
}

#[test]
fn breakpoints_wait_for_the_stack_to_be_switched() {
    run("held_off", held_off());
}

#[test]
fn breakpoints_fire_where_they_are_set() {
    run("breakpoints", [breakpoints(0), breakpoints(3)].into_iter().flatten().collect());
}

#[test]
fn debug_registers_take_what_they_may() {
    run("debug_registers", registers());
}
