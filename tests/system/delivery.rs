//! Delivery through the IDT: frames, stacks, privileges, what happens when delivery itself faults (SDM vol.
//! 3, 6.8 to 6.15).

use iced_x86::code_asm::*;

use crate::cases::Case;
use crate::hosts::Host;
use crate::machine::{Finish, run};
use crate::mapper::Mapper;
use crate::scaffold::*;

/// Error code of a fault by an IDT entry: index, IDT bit, EXT bit.
fn idt_error(vector: u8, external: bool) -> u64 {
    u64::from(vector) << 3 | 2 | u64::from(external)
}

const INT_N_QUIRK: &str = "INT n is not supported";

fn int_n(case: Case) -> Case {
    case.not_on(Host::Pvm, INT_N_QUIRK)
}

/// INT n, INT3 and INT1.
fn software_interrupts() -> Vec<Case> {
    let open = |vector: u8| usual_gate(vector, 3, 0);
    let mut cases = vec![
        int_n(Case::kernel("INT n at CPL0").probe(|a| a.int(0x80)).traps(0x80)),
        int_n(
            Case::user("INT n at CPL3, gate of DPL 3")
                .poke(gate_at(0x80), open(0x80))
                .probe(|a| a.int(0x80))
                .traps(0x80)
                .on_stack(RSP0 - 40),
        ),
        int_n(
            Case::user("INT n at CPL3, gate of DPL 0")
                .probe(|a| a.int(0x80))
                .faults(13, idt_error(0x80, false)),
        ),
        int_n(
            Case::kernel("INT n of an absent gate")
                .poke(gate_at(0x80) + 5, [0x0e])
                .probe(|a| a.int(0x80))
                .faults(11, idt_error(0x80, false)),
        ),
        int_n(
            Case::user("INT n of an absent gate at CPL3: DPL comes first")
                .poke(gate_at(0x80) + 5, [0x0e])
                .probe(|a| a.int(0x80))
                .faults(13, idt_error(0x80, false)),
        ),
        int_n(
            Case::kernel("INT n beyond the limit")
                .with(|s| s.idtr.limit = 0x7ff)
                .probe(|a| a.int(0x80))
                .faults(13, idt_error(0x80, false)),
        ),
        int_n(
            Case::kernel("INT n half inside the limit")
                .with(|s| s.idtr.limit = 0x807)
                .probe(|a| a.int(0x80))
                .faults(13, idt_error(0x80, false)),
        ),
        int_n(
            Case::kernel("INT n: INT 14 has no error code")
                .poke(gate_at(14), usual_gate(0x90, 0, 0))
                .probe(|a| a.int(14))
                .traps(0x90),
        ),
        int_n(Case::kernel("INT 3 in two bytes").bytes(&[0xcd, 3]).traps(3)),
        int_n(Case::user("INT 3 in two bytes at CPL3").poke(gate_at(3), open(3)).bytes(&[0xcd, 3]).traps(3)),
        Case::kernel("INT3 at CPL0").probe(|a| a.int3()).traps(3),
        Case::user("INT3 at CPL3, gate of DPL 3").poke(gate_at(3), open(3)).probe(|a| a.int3()).traps(3),
        Case::user("INT3 at CPL3, gate of DPL 0")
            .probe(|a| a.int3())
            .faults(13, idt_error(3, false))
            .not_on(Host::Pvm, "the gate's DPL is not checked"),
        Case::kernel("INT1 at CPL0").probe(|a| a.int1()).traps(1),
        Case::user("INT1 at CPL3 asks for no DPL")
            .probe(|a| a.int1())
            .traps(1)
            .not_always_on(Host::Pvm, "the frame names INT1 itself"),
    ];
    for (kind, what) in [
        (0, "type 0"),
        (5, "a task gate"),
        (6, "a 16-bit gate"),
        (12, "a call gate"),
        (2, "an LDT"),
        (9, "a TSS"),
    ] {
        let gate = gate(kind, KERNEL_CS, handler(0x80), 0, 0);
        let case = Case::kernel(format!("INT n by {what}"));
        cases.push(int_n(
            case.poke(gate_at(0x80), gate).probe(|a| a.int(0x80)).faults(13, idt_error(0x80, false)),
        ));
    }
    let targets: [(&str, u16, u64, u8, u64); 7] = [
        ("a null selector", 0, 0, 13, 0),
        ("a null selector with RPL", 3, 0, 13, 0),
        ("data", KERNEL_DS, 0, 13, u64::from(KERNEL_DS)),
        ("32-bit code", KERNEL32_CS, 0, 13, u64::from(KERNEL32_CS)),
        ("code beyond the GDT's limit", 0x200, 0, 13, 0x200),
        ("code that is not present", FREE, KERNEL64_CODE & !(1 << 47), 11, FREE as u64),
        ("code of an outer level", USER_CS & !3, 0, 13, (USER_CS & !3) as u64),
    ];
    for (what, selector, descriptor, vector, error) in targets {
        let gate = gate(14, selector, handler(0x80), 0, 0);
        let case =
            Case::kernel(format!("INT n by a gate to {what}")).poke64(GDT + u64::from(FREE), descriptor);
        cases.push(int_n(case.poke(gate_at(0x80), gate).probe(|a| a.int(0x80)).faults(vector, error)));
    }
    cases
}

/// Frames, flags and stacks.
fn frames() -> Vec<Case> {
    let user = |name: &str| Case::user(name).with(|s| s.gpr[RSP] = USER_STACK - 3);
    let words = |case: Case, top: u64, stack: u64, code: u64| {
        case.value("pushed RSP", top, |o, _| o.events[0].rsp)
            .value("pushed SS", stack, |o, _| o.events[0].ss)
            .value("pushed CS", code, |o, _| o.events[0].cs)
    };
    let own_flags = CF | ZF | DF | ID | AC | 2;
    let flags = |case: Case| {
        case.with(move |s| {
            s.rflags = own_flags;
            s.cr[0] &= !CR0_AM;
        })
        .value("pushed RFLAGS", own_flags | RF, |o, _| o.events[0].rflags)
        .value("flags of the handler", own_flags, |o, _| o.events[0].state.rflags)
    };
    let mut cases = vec![
        words(
            user("frame of CPL3 on RSP0").probe(|a| a.ud2()).faults(6, None).on_stack(RSP0 - 40),
            USER_STACK - 3,
            USER_DS.into(),
            USER_CS.into(),
        ),
        words(
            user("frame of CPL3 with an error code").probe(|a| a.hlt()).faults(13, 0).on_stack(RSP0 - 48),
            USER_STACK - 3,
            USER_DS.into(),
            USER_CS.into(),
        ),
        words(
            Case::kernel("frame of CPL0").probe(|a| a.ud2()).faults(6, None).on_stack(KERNEL_STACK - 40),
            KERNEL_STACK,
            KERNEL_DS.into(),
            KERNEL_CS.into(),
        ),
        Case::user("an unaligned RSP0 is aligned")
            .poke64(TSS + 4, RSP0 - 5)
            .probe(|a| a.ud2())
            .faults(6, None)
            .on_stack(RSP0 - 16 - 40),
        Case::user("IST1 at CPL3")
            .poke(gate_at(6), usual_gate(6, 0, 1))
            .probe(|a| a.ud2())
            .faults(6, None)
            .on_stack(IST1 - 40),
        Case::kernel("IST1 at CPL0")
            .poke(gate_at(6), usual_gate(6, 0, 1))
            .probe(|a| a.ud2())
            .faults(6, None)
            .on_stack(IST1 - 40),
        Case::kernel("IST7 with an error code")
            .poke(gate_at(13), usual_gate(13, 0, 7))
            .gpr(RBX, 1 << 63)
            .probe(|a| a.mov(al, byte_ptr(rbx)))
            .faults(13, 0)
            .on_stack(IST1 + 6 * 0x400 - 48),
        Case::kernel("an unaligned IST is aligned")
            .poke(gate_at(6), usual_gate(6, 0, 1))
            .poke64(TSS + 0x24, IST1 + 9)
            .probe(|a| a.ud2())
            .faults(6, None)
            .on_stack(IST1 - 40),
        flags(Case::user("flags at CPL3").probe(|a| a.ud2()).faults(6, None))
            .not_on(Host::Pvm, "AC is cleared in the handler"),
        flags(Case::kernel("flags at CPL0").probe(|a| a.ud2()).faults(6, None))
            .not_on(Host::Pvm, "AC of CPL0 is cleared"),
        Case::user("an interrupt gate clears IF")
            .with(|s| s.rflags |= IF)
            .probe(|a| a.ud2())
            .faults(6, None)
            .value("pushed IF", IF, |o, _| o.events[0].rflags & IF),
        Case::user("conforming code: the handler stays at CPL3")
            .poke64(GDT + u64::from(FREE), KERNEL64_CODE | 4 << 40)
            .poke(gate_at(6), gate(14, FREE, USER_CODE + 0x800, 0, 0))
            .poke(
                USER_CODE + 0x800,
                assemble(64, USER_CODE + 0x800, |a| {
                    a.mov(rbx, rsp)?;
                    a.mov(cx, cs)?;
                    a.out(i32::from(DONE_PORT), al)
                }),
            )
            .probe(|a| a.ud2())
            .done()
            .leaves(RCX, u64::from(FREE) | 3)
            .leaves(RBX, USER_STACK - 40)
            .not_on(Host::Pvm, "exceptions go to CPL0 always"),
    ];
    for shift in 0..16 {
        cases.push(
            Case::kernel(format!("RSP is aligned before the frame, {shift} bytes off"))
                .gpr(RSP, KERNEL_STACK - shift)
                .probe(|a| a.ud2())
                .faults(6, None)
                .on_stack((KERNEL_STACK - shift) / 16 * 16 - 40)
                .value("pushed RSP", KERNEL_STACK - shift, |o, _| o.events[0].rsp),
        );
    }
    for vector in [0u8, 6, 13] {
        let fault: fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError> = match vector {
            0 => |a| a.div(ecx),
            6 => |a| a.ud2(),
            _ => |a| a.mov(rax, cr0),
        };
        let case = Case::user(format!("a trap gate keeps IF, vector {vector}")).with(|s| s.rflags |= IF);
        let gate = gate(15, KERNEL_CS, handler(vector), 0, 0);
        cases.push(
            case.poke(gate_at(vector), gate)
                .probe(fault)
                .ends(Finish::Raised)
                .value("vector", vector.into(), |o, _| o.events[0].vector.into())
                .value("IF of the handler", IF, |o, _| o.events[0].state.rflags & IF),
        );
    }
    cases
}

/// What comes when delivery faults (SDM vol. 3, table 6-5).
fn nested() -> Vec<Case> {
    let absent = |vector: u8| (gate_at(vector) + 5, [0x0e]);
    let poked = |case: Case, vector: u8| {
        let (at, bytes) = absent(vector);
        case.poke(at, bytes)
    };
    let gp = |a: &mut CodeAssembler| a.mov(rax, qword_ptr(rbx));
    let kernel = |name: &str| Case::kernel(name).gpr(RBX, 1 << 63);
    let unmapped = 1u64 << 40;
    vec![
        poked(kernel("#UD, its gate absent: #NP with EXT"), 6)
            .probe(|a| a.ud2())
            .faults(11, idt_error(6, true))
            .not_on(Host::Pvm, "any fault of a gate is #DF"),
        poked(kernel("#DB class: INT3, its gate absent: #NP without EXT"), 3)
            .probe(|a| a.int3())
            .faults(11, idt_error(3, false)),
        poked(kernel("#DE, its gate absent: #DF"), 0).probe(|a| a.div(ecx)).faults(8, 0).any_rf(),
        poked(kernel("#GP, its gate absent: #DF"), 13).probe(gp).faults(8, 0).any_rf(),
        poked(kernel("#PF, its gate absent: #DF"), 14).gpr(RBX, unmapped).probe(gp).faults(8, 0).any_rf(),
        poked(poked(kernel("#GP, its gate and that of #NP absent: #DF"), 13), 11)
            .probe(gp)
            .faults(8, 0)
            .any_rf(),
        poked(poked(kernel("#UD, its gate and that of #NP absent: #DF"), 6), 11)
            .probe(|a| a.ud2())
            .faults(8, 0)
            .any_rf(),
        poked(poked(kernel("#GP, gates of it and #DF absent: shutdown"), 13), 8)
            .probe(gp)
            .ends(Finish::Shutdown),
        kernel("no IDT: shutdown").with(|s| s.idtr.limit = 0).probe(|a| a.ud2()).ends(Finish::Shutdown),
        kernel("#GP: stack not mapped: #PF after #GP is #DF, on an IST")
            .poke(gate_at(8), usual_gate(8, 0, 1))
            .prelude(move |a| a.mov(rsp, unmapped))
            .probe(gp)
            .faults(8, 0)
            .any_rf()
            .on_stack(IST1 - 48)
            .value("CR2", unmapped - 8, |o, _| o.events[0].state.cr[1])
            .not_on(Host::Pvm, "CR2 of a frame that is not mapped"),
        kernel("#UD: stack not mapped: #PF, on an IST")
            .poke(gate_at(14), usual_gate(14, 0, 1))
            .prelude(move |a| a.mov(rsp, unmapped))
            .probe(|a| a.ud2())
            .page_fault(2, unmapped - 8)
            .not_on(Host::Pvm, "CR2 of a frame that is not mapped"),
        kernel("stack not mapped, no IST: shutdown")
            .prelude(move |a| a.mov(rsp, unmapped))
            .probe(|a| a.ud2())
            .ends(Finish::Shutdown),
        Case::user("RSP0 not mapped: #PF of the supervisor, on an IST")
            .poke64(TSS + 4, unmapped)
            .poke(gate_at(14), usual_gate(14, 0, 1))
            .probe(|a| a.ud2())
            .page_fault(2, unmapped - 8)
            .not_on(Host::Pvm, "CR2 of a frame that is not mapped"),
        Case::user("RSP0 not canonical: #SS(0) with EXT, on an IST")
            .poke64(TSS + 4, 1 << 63)
            .poke(gate_at(12), usual_gate(12, 0, 1))
            .probe(|a| a.ud2())
            .faults(12, 1)
            .not_on(Host::Pvm, "#SS of a frame is a shutdown"),
        Case::user("TSS too short for RSP0: #TS with EXT")
            .with(|s| s.segments[TR].limit = 10)
            .poke(gate_at(6), usual_gate(6, 0, 0))
            .poke(gate_at(10), usual_gate(10, 0, 1))
            .probe(|a| a.ud2())
            .ends(Finish::Shutdown)
            .not_on(Host::Pvm, "the TSS's limit is not checked"),
        Case::user("TSS too short for RSP0 alone: none of the gates needs it")
            .with(|s| s.segments[TR].limit = 0x66)
            .probe(|a| a.ud2())
            .faults(6, None),
    ]
}

/// Page faults of what the processor reads on its own.
fn implicit() -> Vec<Case> {
    let away = 1u64 << 39;
    let mapped = |case: Case, page: u64, flags: u64| {
        let mut tables = Mapper::new();
        tables.map(away, page, 1, [P | RW | US | A, P | RW | US | A, P | RW | US | A, flags]);
        let mut case = case;
        case.writes.extend(tables.writes);
        case
    };
    let all = P | RW | A | D;
    vec![
        mapped(Case::kernel("IDT: read by the supervisor"), IDT, all)
            .with(|s| s.idtr.base = 1 << 39)
            .probe(|a| a.ud2())
            .faults(6, None),
        mapped(Case::user("IDT of the supervisor, fault of CPL3"), IDT, all)
            .with(|s| s.idtr.base = 1 << 39)
            .probe(|a| a.ud2())
            .faults(6, None),
        mapped(Case::kernel("GDT not mapped: MOV to DS"), GDT, 0)
            .with(|s| s.gdtr.base = 1 << 39)
            .poke(gate_at(14), gate(14, KERNEL_CS, handler(14), 0, 0))
            .gpr(RAX, KERNEL_DS.into())
            .probe(|a| a.mov(ds, ax))
            .ends(Finish::Shutdown),
        mapped(
            Case::user("GDT in user pages with SMAP: AC does not help the CPU's own reads"),
            GDT,
            all | US,
        )
        .with(|s| {
            s.gdtr.base = 1 << 39;
            s.cr[3] |= CR4_SMAP;
            s.rflags |= AC;
            s.cr[0] &= !CR0_AM;
        })
        .gpr(RAX, USER_DS.into())
        .probe(|a| a.mov(ds, ax))
        .ends(Finish::Shutdown)
        .not_on(Host::Pvm, "the guest sees the host's SMAP"),
    ]
}

#[test]
fn software_interrupts_pass_the_gates_they_may() {
    run("software_interrupts", software_interrupts());
}

#[test]
fn frames_and_stacks_are_as_drawn() {
    run("frames", frames());
}

#[test]
fn faults_in_delivery_become_other_exceptions_or_shutdown() {
    run("nested", nested());
}

#[test]
fn tables_are_read_with_the_supervisors_rights() {
    run("implicit", implicit());
}

#[test]
fn an_exception_is_left_by_iretq_and_the_code_goes_on() {
    let skip_ud2 = assemble(64, KERNEL_CODE + 0x800, |a| {
        a.add(qword_ptr(rsp), 2)?;
        a.iretq()
    });
    let cases = [0u8, 3].map(|cpl| {
        Case::at_level("UD2 skipped by its handler", cpl)
            .poke(gate_at(6), gate(14, KERNEL_CS, KERNEL_CODE + 0x800, 0, 0))
            .poke(KERNEL_CODE + 0x800, &skip_ud2)
            .with(|s| s.rflags |= CF | ZF)
            .probe(|a| {
                a.ud2()?;
                a.ud2()?;
                a.mov(eax, 5)
            })
            .done()
            .leaves(RAX, 5)
            .flags(CF | ZF | RF, CF | ZF)
    });
    run("return", cases.into_iter().collect());
}
