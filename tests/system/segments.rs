//! Segment registers and system segments in 64-bit mode: which loads fault with what, and what gets loaded
//! (SDM vol. 3, 3.4, 5.2 to 5.6; vol. 2, MOV, POP, LFS, LLDT, LTR, LAR, LSL, VERR).

use iced_x86::code_asm::*;

use crate::cases::Case;
use crate::hosts::Host;
use crate::machine::run;
use crate::scaffold::*;

const NATIVE: &str = "CPL3 has the host's descriptor tables";
const EMULATOR: &str = "KVM's emulator does not check this";

/// Access bytes (present unless told).
const DATA_RO: u64 = 0x91;
const DATA_RW: u64 = 0x93;
const DATA_DOWN: u64 = 0x97;
const CODE_X: u64 = 0x99;
const CODE_RX: u64 = 0x9b;
const CONFORMING_X: u64 = 0x9d;
const CONFORMING_RX: u64 = 0x9f;
const PRESENT: u64 = 0x80;
const BIG: u64 = 0xc000;

fn dpl(level: u64) -> u64 {
    level << 5
}

/// Loads `selector` with `access` in the test's descriptor by MOV to `register` (its number in the encoding).
fn load(name: String, cpl: u8, register: u8, selector: u16, access: u64) -> Case {
    Case::at_level(name, cpl)
        .poke64(GDT + u64::from(FREE), descriptor(access | BIG, 0x1000, 0xfffff))
        .gpr(RAX, selector.into())
        .bytes(&[0x8e, 0xc0 | register << 3])
}

const REGISTERS: [(&str, u8); 5] = [("ES", 0), ("SS", 2), ("DS", 3), ("FS", 4), ("GS", 5)];

/// What a load of a data segment register must do: none is success (SDM vol. 2, MOV).
fn data_fault(cpl: u64, rpl: u64, access: u64) -> Option<u8> {
    let (level, code, readable, conforming) =
        (access >> 5 & 3, access & 8 != 0, access & 2 != 0, access & 4 != 0);
    let system = access & 0x10 == 0;
    let bad_type = system || (code && !readable);
    let bad_level = !(code && conforming) && level < cpl.max(rpl);
    match access & PRESENT {
        _ if bad_type || bad_level => Some(13),
        0 => Some(11),
        _ => None,
    }
}

/// The same for SS.
fn stack_fault(cpl: u64, rpl: u64, access: u64) -> Option<u8> {
    let writable_data = access & 0x1a == 0x12;
    match access & PRESENT {
        _ if rpl != cpl || access >> 5 & 3 != cpl || !writable_data => Some(13),
        0 => Some(12),
        _ => None,
    }
}

fn loads() -> Vec<Case> {
    let mut cases = Vec::new();
    let kinds = [
        ("read-only data", DATA_RO),
        ("data", DATA_RW),
        ("expand-down data", DATA_DOWN),
        ("execute-only code", CODE_X),
        ("code", CODE_RX),
        ("conforming execute-only code", CONFORMING_X),
        ("conforming code", CONFORMING_RX),
        ("an LDT", 0x82),
        ("a TSS", 0x89),
        ("absent data", DATA_RW & !PRESENT),
        ("absent code", CODE_RX & !PRESENT),
    ];
    for (kind, access) in kinds {
        for (cpl, level, rpl) in
            [(0, 0, 0), (0, 0, 3), (0, 3, 0), (0, 3, 3), (3, 0, 0), (3, 0, 3), (3, 3, 0), (3, 3, 3)]
        {
            for (register, number) in REGISTERS {
                let access = access | dpl(level);
                let name = format!("MOV {register}, {kind} of DPL {level} with RPL {rpl}");
                let selector = FREE | rpl as u16;
                let case = load(name, cpl as u8, number, selector, access);
                let fault =
                    if number == 2 { stack_fault(cpl, rpl, access) } else { data_fault(cpl, rpl, access) };
                let index = usize::from(number);
                cases.push(match fault {
                    Some(vector) => case.faults(vector, u64::from(FREE)),
                    None => case
                        .done()
                        .selector(index, selector)
                        .segment(index, "base", 0x1000, |s| s.base)
                        .segment(index, "limit", 0xffff_ffff, |s| s.limit.into())
                        .value("accessed bit in the table", 1, |_, ram| {
                            crate::cases::word(ram, GDT + u64::from(FREE)) >> 40 & 1
                        }),
                });
            }
        }
    }
    cases
}

fn special_loads() -> Vec<Case> {
    let mut cases = Vec::new();
    for (cpl, rpl) in [(0u8, 0u16), (0, 1), (0, 3), (3, 0), (3, 3)] {
        for (register, number) in REGISTERS {
            let name = format!("MOV {register}, null selector with RPL {rpl}");
            let case = load(name, cpl, number, rpl, DATA_RW).not_on_if(cpl == 3, Host::Pvm, NATIVE);
            // SS may be null in 64-bit mode below CPL3, with RPL = CPL.
            let faults = number == 2 && (cpl == 3 || rpl != 0);
            cases.push(if faults { case.faults(13, 0) } else { case.done().selector(number.into(), rpl) });
        }
    }
    for (register, number) in REGISTERS {
        let beyond = load(format!("MOV {register} beyond the GDT's limit"), 0, number, 0x200, DATA_RW);
        cases.push(beyond.faults(13, 0x200));
        let no_ldt = load(format!("MOV {register} from an LDT that is not there"), 0, number, 0x0c, DATA_RW);
        cases.push(no_ldt.faults(13, 0x0c));
        let with_ldt = load(format!("MOV {register} from the LDT"), 0, number, 0x0c, DATA_RW)
            .poke64(LDT + 8, descriptor(DATA_RW | BIG, 0x5000, 0xfffff))
            .with(|s| {
                s.segments[LDTR] =
                    lockstep::engine::state::Segment { selector: LOCAL, base: LDT, limit: 0xff, access: 0x82 }
            });
        cases.push(with_ldt.done().selector(number.into(), 0x0c).segment(
            number.into(),
            "base",
            0x5000,
            |s| s.base,
        ));
    }
    let flat = u64::from(USER_DS);
    cases.push(
        Case::user("PUSH and POP of FS and GS")
            .gpr(RAX, flat)
            .probe(|a| {
                a.push(rax)?;
                a.pop(fs)?;
                a.push(fs)?;
                a.pop(rcx)?;
                a.push(rax)?;
                a.pop(gs)
            })
            .done()
            .leaves(RCX, flat)
            .leaves(RSP, USER_STACK)
            .selector(FS, USER_DS)
            .selector(GS, USER_DS),
    );
    for (name, pop) in [("POP FS", [0x0f, 0xa1]), ("POP GS", [0x0f, 0xa9])] {
        let case = Case::user(format!("{name} of kernel data: #GP, RSP as before"))
            .prelude(|a| a.push(i32::from(KERNEL_DS)));
        cases.push(case.bytes(&pop).faults(13, u64::from(KERNEL_DS)).value(
            "pushed RSP",
            USER_STACK - 8,
            |o, _| o.events[0].rsp,
        ));
    }
    // L[FGS]S r64, m16:64 and r32, m16:32.
    for (name, modrm, index) in [("LSS", 0xb2u8, SS), ("LFS", 0xb4, FS), ("LGS", 0xb5, GS)] {
        for cpl in [0u8, 3] {
            let selector = if cpl == 3 { USER_DS } else { KERNEL_DS };
            let data = if cpl == 3 { USER_DATA } else { KERNEL_DATA };
            let mut far = 0x1234_5678u32.to_le_bytes().to_vec();
            far.extend(selector.to_le_bytes());
            let case = Case::at_level(format!("{name} ECX, m16:32"), cpl)
                .gpr(RBX, data)
                .gpr(RCX, u64::MAX)
                .poke(data, &far);
            cases.push(
                case.bytes(&[0x0f, modrm, 0x0b]).done().leaves(RCX, 0x1234_5678).selector(index, selector),
            );
            let bad = Case::at_level(format!("{name} of a selector that is none: ECX stays"), cpl)
                .gpr(RBX, data)
                .gpr(RCX, 7)
                .poke(data, [1, 0, 0, 0, 0xf8, 0xff]);
            cases.push(
                bad.bytes(&[0x0f, modrm, 0x0b])
                    .faults(13, 0xfff8)
                    .value("RCX", 7, |o, _| o.events[0].state.gpr[RCX]),
            );
        }
        cases.push(
            Case::kernel(format!("{name} with a register operand"))
                .bytes(&[0x0f, modrm, 0xc0])
                .faults(6, None),
        );
    }
    cases
}

/// LLDT, LTR, SLDT, STR, LGDT, LIDT.
fn system_loads() -> Vec<Case> {
    let free = u64::from(FREE);
    let lldt = |name: &str, selector: u64, access: u64| {
        let case = Case::kernel(format!("LLDT {name}")).gpr(RAX, selector);
        case.poke(GDT + free, system_descriptor(access, 0xffff_8000_0000_1000, 0x77)).probe(|a| a.lldt(ax))
    };
    let ltr = |name: &str, selector: u64, access: u64| {
        let case = Case::kernel(format!("LTR {name}")).gpr(RAX, selector);
        case.poke(GDT + free, system_descriptor(access, TSS, 0x68)).probe(|a| a.ltr(ax))
    };
    vec![
        lldt("of an LDT", free, 0x82).done().selector(LDTR, FREE),
        lldt("of a null selector", 3, 0x82).done().selector(LDTR, 3),
        lldt("of an absent LDT", free, 0x02).faults(11, free),
        lldt("of a TSS", free, 0x89).faults(13, free),
        lldt("of data", KERNEL_DS.into(), 0x82).faults(13, u64::from(KERNEL_DS)),
        lldt("of a selector in the LDT", free | 4, 0x82).faults(13, free | 4),
        lldt("beyond the limit", 0x200, 0x82).faults(13, 0x200),
        lldt("half beyond the limit", 0x1f8, 0x82)
            .poke(GDT + 0x1f8, system_descriptor(0x82, 0, 0x77))
            .faults(13, 0x1f8)
            .not_on(Host::Pvm, EMULATOR),
        ltr("of a TSS", free, 0x89).done().selector(TR, FREE).value(
            "busy in the table",
            0x8b,
            move |_, ram| crate::cases::word(ram, GDT + free) >> 40 & 0xff,
        ),
        ltr("of a busy TSS", free, 0x8b).faults(13, free),
        ltr("of a null selector", 0, 0x89).faults(13, 0),
        ltr("of an absent TSS", free, 0x09).faults(11, free),
        ltr("of an LDT", free, 0x82).faults(13, free),
        ltr("of a 16-bit TSS", free, 0x81).faults(13, free).not_on(Host::Pvm, EMULATOR),
        ltr("of a selector in the LDT", free | 4, 0x89).faults(13, free | 4).not_on(Host::Pvm, EMULATOR),
        Case::kernel("LGDT of a non-canonical base")
            .gpr(RBX, KERNEL_DATA)
            .poke(KERNEL_DATA, [0xff, 1, 0, 0, 0, 0, 0, 0x80, 0, 0])
            .probe(|a| a.lgdt(ptr(rbx)))
            .faults(13, 0),
        Case::kernel("LIDT of a non-canonical base")
            .gpr(RBX, KERNEL_DATA)
            .poke(KERNEL_DATA, [0xff, 1, 0, 0, 0, 0, 0, 0x80, 0, 0])
            .probe(|a| a.lidt(ptr(rbx)))
            .faults(13, 0),
        Case::kernel("LGDT, SGDT, LIDT, SIDT of ten bytes")
            .gpr(RBX, KERNEL_DATA)
            .poke(KERNEL_DATA, [0xff, 1, 0x00, 0x00, 0x16, 0, 0, 0, 0, 0])
            .probe(|a| {
                a.lgdt(ptr(rbx))?;
                a.sgdt(ptr(rbx + 0x10))?;
                a.sidt(ptr(rbx + 0x20))
            })
            .done()
            .memory(KERNEL_DATA + 0x10, 0x16_0000_01ff)
            .memory(KERNEL_DATA + 0x20, IDT << 16 | 0xfff),
        Case::kernel("STR and SLDT")
            .gpr(RAX, u64::MAX)
            .gpr(RCX, u64::MAX)
            .probe(|a| {
                a.str(eax)?;
                a.sldt(cx)
            })
            .done()
            .leaves(RAX, TASK.into())
            .leaves(RCX, 0xffff_ffff_ffff_0000),
        Case::kernel("MOV from a segment register")
            .gpr(RAX, u64::MAX)
            .gpr(RCX, u64::MAX)
            .probe(|a| {
                a.mov(eax, ds)?;
                a.mov(cx, ds)
            })
            .done()
            .leaves(RAX, KERNEL_DS.into())
            .leaves(RCX, 0xffff_ffff_ffff_0000 | u64::from(KERNEL_DS)),
    ]
}

/// LAR, LSL, VERR, VERW: ZF tells; no fault.
fn queries() -> Vec<Case> {
    let mut cases = Vec::new();
    let kinds = [
        ("data", DATA_RW),
        ("read-only data", DATA_RO),
        ("code", CODE_RX),
        ("execute-only code", CODE_X),
        ("conforming code", CONFORMING_RX),
        ("an LDT", 0x82),
        ("a TSS", 0x89),
        ("a busy TSS", 0x8b),
        ("a call gate", 0x8c),
        ("an interrupt gate", 0x8e),
        ("a 16-bit TSS", 0x81),
        ("absent data", 0x13),
        ("a 16-bit call gate", 0x84),
    ];
    for ((kind, access), (cpl, level, rpl)) in kinds
        .into_iter()
        .flat_map(|kind| [(0u8, 0u64, 0u64), (3, 0, 3), (3, 3, 3), (0, 0, 3)].map(|levels| (kind, levels)))
    {
        let access = access | dpl(level);
        let (system, code, conforming) = (access & 0x10 == 0, access & 8 != 0, access & 4 != 0);
        let visible = (!system && code && conforming) || level >= u64::from(cpl).max(rpl);
        let selector = u64::from(FREE) | rpl;
        let entry = if system {
            system_descriptor(access, 0x1234_5000, 0x7_1234)
        } else {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&descriptor(access | BIG, 0x1234_5000, 0x7_1234).to_le_bytes());
            bytes
        };
        let case = |name: &str| {
            let name = format!("{name} of {kind}, DPL {level}, RPL {rpl}");
            Case::at_level(name, cpl)
                .poke(GDT + u64::from(FREE), entry)
                .gpr(RAX, selector)
                .gpr(RCX, 0x55)
                .not_on_if(cpl == 3, Host::Pvm, NATIVE)
        };
        // In 64-bit mode the 16-bit types do not exist, nor does an LSL of gates.
        let kind = access & 0xf;
        let lar = visible && (!system || matches!(kind, 2 | 9 | 0xb | 0xc));
        let lsl = visible && (!system || matches!(kind, 2 | 9 | 0xb));
        let verr = visible && !system && (!code || access & 2 != 0);
        let verw = visible && !system && !code && access & 2 != 0;
        let flag = |on: bool| if on { ZF } else { 0 };
        let low = u64::from_le_bytes(entry[..8].try_into().expect("eight bytes"));
        let limit = if system { 0x7_1234 } else { 0x7123_4fff };
        cases.push(
            case("LAR")
                .probe(|a| a.lar(ecx, eax))
                .done()
                .flags(ZF, flag(lar))
                .value(
                    "rights",
                    if lar { low >> 32 & 0x00f0_ff00 } else { 0x50 },
                    // The four bits in between are undefined.
                    |o, _| o.state.gpr[RCX] & !0xf_000f,
                )
                .incomparable(),
        );
        cases.push(
            case("LSL")
                .probe(|a| a.lsl(ecx, eax))
                .done()
                .flags(ZF, flag(lsl))
                .leaves(RCX, if lsl { limit } else { 0x55 }),
        );
        cases.push(case("VERR").probe(|a| a.verr(ax)).done().flags(ZF, flag(verr)));
        cases.push(case("VERW").probe(|a| a.verw(ax)).done().flags(ZF, flag(verw)));
    }
    for selector in [0u64, 3, 0x200, 0x0c] {
        let case = Case::user(format!("LAR, LSL, VERR, VERW of selector {selector:#x}: ZF clear"))
            .gpr(RAX, selector)
            .gpr(RCX, 0x55);
        cases.push(
            case.with(|s| s.rflags |= ZF).probe(|a| a.lar(ecx, eax)).done().flags(ZF, 0).leaves(RCX, 0x55),
        );
    }
    cases
}

#[test]
fn loads_of_segment_registers_check_type_level_and_presence() {
    run("loads", loads());
}

#[test]
fn null_selectors_local_descriptors_and_far_pointers() {
    run("special_loads", special_loads());
}

#[test]
fn system_segments_and_tables() {
    run("system_loads", system_loads());
}

#[test]
fn queries_of_descriptors_tell_by_zf() {
    run("queries", queries());
}
