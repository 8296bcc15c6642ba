//! Far transfers: JMP, CALL, RET and IRET in 64-bit mode, to compatibility mode and back, call gates (SDM
//! vol. 2, CALL, RET, IRET; vol. 3, 5.8).

use iced_x86::code_asm::*;

use lockstep::engine::state::Segment;

use crate::cases::Case;
use crate::hosts::Host;
use crate::machine::{Finish, run};
use crate::scaffold::*;

const TARGET: u64 = KERNEL_CODE + 0x800;
const USER_TARGET: u64 = USER_CODE + 0x800;
const NON_CANONICAL: u64 = 1 << 47;

/// A far pointer m16:32.
fn far32(selector: u16, offset: u32) -> Vec<u8> {
    let mut bytes = offset.to_le_bytes().to_vec();
    bytes.extend(selector.to_le_bytes());
    bytes
}

/// FF /5 (far JMP) or /3 (far CALL) of [RBX], m16:32.
const JMP_FAR: [u8; 2] = [0xff, 0x2b];
const CALL_FAR: [u8; 2] = [0xff, 0x1b];
const RETF: [u8; 1] = [0xcb];
const RETFQ: [u8; 2] = [0x48, 0xcb];

/// At TARGET (CPL0): halts, wherever it came from.
fn kernel_target(case: Case) -> Case {
    case.poke(TARGET, [0xf4]).poke(USER_TARGET, [0xe6, DONE_PORT as u8])
}

fn jumps() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, code) in [("JMP", JMP_FAR), ("CALL", CALL_FAR)] {
        let kernel = |what: &str, selector: u16, offset: u64| {
            let case = Case::kernel(format!("far {name}: {what}")).gpr(RBX, KERNEL_DATA);
            kernel_target(case).poke(KERNEL_DATA, far32(selector, offset as u32)).bytes(&code)
        };
        let user = |what: &str, selector: u16, offset: u64| {
            let case = Case::user(format!("far {name} at CPL3: {what}")).gpr(RBX, USER_DATA);
            kernel_target(case)
                .poke(USER_DATA, far32(selector, offset as u32))
                .bytes(&code)
                .not_always_on(Host::Pvm, "CPL3 has the host's descriptor tables")
        };
        let free = u64::from(FREE);
        let with = |case: Case, entry: u64| case.poke64(GDT + free, entry);
        let halted = |case: Case| case.ends(Finish::Halted(TARGET + 1));
        let top = if name == "CALL" { KERNEL_STACK - 8 } else { KERNEL_STACK };
        cases.push(halted(kernel("same level", KERNEL_CS, TARGET)).selector(CS, KERNEL_CS).leaves(RSP, top));
        cases.push(kernel("null selector", 0, TARGET).faults(13, 0));
        cases.push(kernel("null selector with RPL", 3, TARGET).faults(13, 0));
        cases.push(kernel("beyond the limit", 0x200, TARGET).faults(13, 0x200));
        cases.push(kernel("data", KERNEL_DS, TARGET).faults(13, u64::from(KERNEL_DS)));
        cases.push(kernel("RPL above CPL", KERNEL_CS | 3, TARGET).faults(13, u64::from(KERNEL_CS)));
        cases.push(kernel("code of an outer level", USER_CS, TARGET).faults(13, u64::from(USER_CS & !3)));
        cases.push(with(kernel("absent code", FREE, TARGET), KERNEL64_CODE & !(1 << 47)).faults(11, free));
        cases.push(with(kernel("L and D both set", FREE, TARGET), KERNEL64_CODE | 1 << 54).faults(13, free));
        cases.push(with(kernel("a TSS", FREE, TARGET), 0x0000_8900_0000_0068).faults(13, free));
        cases.push(
            with(halted(kernel("conforming code", FREE, TARGET)), KERNEL64_CODE | 4 << 40).selector(CS, FREE),
        );
        cases.push(
            with(kernel("conforming code of an outer level", FREE, TARGET), USER64_CODE | 4 << 40)
                .faults(13, free),
        );
        cases.push(user("kernel code", KERNEL_CS, USER_TARGET).faults(13, u64::from(KERNEL_CS)));
        cases.push(user("same level", USER_CS, USER_TARGET).done().selector(CS, USER_CS));
        cases.push(
            user("the RPL of the new CS is CPL", USER_CS & !3, USER_TARGET).done().selector(CS, USER_CS),
        );
        cases.push(
            with(user("conforming kernel code stays at CPL3", FREE, USER_TARGET), KERNEL64_CODE | 4 << 40)
                .done()
                .selector(CS, FREE | 3),
        );
        // 32-bit code counts EAX down in a byte that is REX.W in 64-bit mode.
        let compat = user("compatibility mode", USER32_CS, USER_TARGET)
            .gpr(RAX, 5)
            .poke(USER_TARGET, [0x48, 0xe6, DONE_PORT as u8]);
        cases.push(compat.done().selector(CS, USER32_CS).leaves(RAX, 4));
        let beyond = with(
            user("compatibility mode beyond its limit", FREE | 3, USER_TARGET),
            descriptor(0xc0fb & !0x8000, 0, 0xfff),
        );
        cases.push(beyond.faults(13, 0));
    }
    cases
}

/// A frame for RETF or IRET, as PUSHes in order.
fn pushes(a: &mut CodeAssembler, words: &[u64]) -> Result<(), iced_x86::IcedError> {
    for word in words {
        a.mov(rax, *word)?;
        a.push(rax)?;
    }
    Ok(())
}

fn returns() -> Vec<Case> {
    let kernel = |what: &str, words: &'static [u64], code: &'static [u8]| {
        kernel_target(Case::kernel(format!("far RET: {what}"))).prelude(|a| pushes(a, words)).bytes(code)
    };
    const CS0: u64 = KERNEL_CS as u64;
    const CS3: u64 = USER_CS as u64;
    const SS3: u64 = USER_DS as u64;
    const CS32: u64 = USER32_CS as u64;
    let quirk = |case: Case| case.not_on(Host::Pvm, "returns to outer levels are not emulated");
    vec![
        kernel("same level", &[CS0, TARGET], &RETFQ)
            .ends(Finish::Halted(TARGET + 1))
            .leaves(RSP, KERNEL_STACK),
        kernel("32-bit operands", &[CS0 << 32 | TARGET], &RETF)
            .ends(Finish::Halted(TARGET + 1))
            .leaves(RSP, KERNEL_STACK),
        kernel("and 16 bytes more", &[1, 2, CS0, TARGET], &[0x48, 0xca, 16, 0])
            .ends(Finish::Halted(TARGET + 1))
            .leaves(RSP, KERNEL_STACK),
        kernel("null selector", &[0, TARGET], &RETFQ).faults(13, 0),
        kernel("data", &[KERNEL_DS as u64, TARGET], &RETFQ).faults(13, u64::from(KERNEL_DS)),
        kernel("not canonical", &[CS0, NON_CANONICAL], &RETFQ).faults(13, 0),
        quirk(
            kernel("to CPL3", &[SS3, USER_STACK, CS3, USER_TARGET], &RETFQ)
                .done()
                .selector(CS, USER_CS)
                .selector(SS, USER_DS)
                .leaves(RSP, USER_STACK),
        ),
        quirk(
            kernel("to CPL3 with 8 bytes more", &[SS3, USER_STACK, 1, CS3, USER_TARGET], &[0x48, 0xca, 8, 0])
                .done()
                .leaves(RSP, USER_STACK + 8),
        ),
        quirk(
            kernel("to CPL3 clears segments of inner levels", &[SS3, USER_STACK, CS3, USER_TARGET], &RETFQ)
                .done()
                .selector(DS, 0)
                .selector(ES, 0)
                .selector(FS, 0)
                .selector(GS, 0),
        ),
        quirk(
            with_null_selectors(kernel(
                "to CPL3 with null selectors",
                &[SS3, USER_STACK, CS3, USER_TARGET],
                &RETFQ,
            ))
            .done(),
        ),
        quirk(kernel("to CPL3 with a null SS", &[0, USER_STACK, CS3, USER_TARGET], &RETFQ).faults(13, 0)),
        quirk(
            kernel("to compatibility mode", &[SS3, USER_STACK, CS32, USER_TARGET], &RETFQ)
                .done()
                .selector(CS, USER32_CS),
        ),
        quirk(
            kernel("to CPL3 with an SS of CPL0", &[KERNEL_DS as u64, USER_STACK, CS3, USER_TARGET], &RETFQ)
                .faults(13, u64::from(KERNEL_DS)),
        ),
        Case::user("far RET to an inner level")
            .prelude(|a| pushes(a, &[CS0, TARGET]))
            .bytes(&RETFQ)
            .faults(13, CS0)
            .not_always_on(Host::Pvm, "CPL3 has the host's descriptor tables"),
    ]
}

/// Null selectors of RPL 1 to 3, which a return to an outer level makes 0; bases of FS and GS stay.
fn with_null_selectors(case: Case) -> Case {
    let case = case.with(|s| {
        for (index, selector) in [(DS, 3), (ES, 1), (FS, 2), (GS, 3)] {
            s.segments[index] = Segment { selector, base: 0, limit: 0, access: 1 << 16 };
        }
        s.segments[FS].base = 0x5000;
    });
    [DS, ES, FS, GS].into_iter().fold(case, |case, index| case.selector(index, 0)).segment(
        FS,
        "base",
        0x5000,
        |s| s.base,
    )
}

const IRETQ: [u8; 2] = [0x48, 0xcf];
const IRETD: [u8; 1] = [0xcf];

fn interrupt_returns() -> Vec<Case> {
    const CS0: u64 = KERNEL_CS as u64;
    const SS0: u64 = KERNEL_DS as u64;
    const CS3: u64 = USER_CS as u64;
    const SS3: u64 = USER_DS as u64;
    const CS32: u64 = USER32_CS as u64;
    let kernel = |what: &str, words: &'static [u64]| {
        kernel_target(Case::kernel(format!("IRETQ: {what}"))).prelude(|a| pushes(a, words)).bytes(&IRETQ)
    };
    let halted = |case: Case| case.ends(Finish::Halted(TARGET + 1));
    let all_flags = 0x24_4ed7 & !NT; // ID, AC, IOPL 0, OF, DF, IF, SF, ZF, AF, PF, CF.
    vec![
        halted(kernel("same level takes RSP and SS too", &[SS0, KERNEL_STACK - 0x123, 2, CS0, TARGET]))
            .leaves(RSP, KERNEL_STACK - 0x123)
            .selector(SS, KERNEL_DS),
        halted(kernel("same level with a null SS", &[0, KERNEL_STACK - 0x100, 2, CS0, TARGET]))
            .selector(SS, 0),
        halted(kernel("32-bit operands", &[]))
            .with(|_| ())
            .poke(
                KERNEL_DATA,
                [TARGET as u32, u32::from(KERNEL_CS), 2, KERNEL_STACK as u32 - 64, u32::from(KERNEL_DS)]
                    .map(u32::to_le_bytes)
                    .concat(),
            )
            .gpr(RSP, KERNEL_DATA)
            .bytes(&IRETD)
            .not_on(Host::Pvm, "IRETD is not emulated")
            .leaves(RSP, KERNEL_STACK - 64),
        kernel("to CPL3", &[SS3, USER_STACK - 1, 0x202, CS3, USER_TARGET])
            // Data segments of CPL0 keep their selectors there.
            .incomparable_on(Host::Pvm)
            .done()
            .selector(CS, USER_CS)
            .selector(SS, USER_DS)
            .leaves(RSP, USER_STACK - 1)
            .flags(IF, IF),
        kernel("to CPL3 clears segments of inner levels", &[SS3, USER_STACK, 2, CS3, USER_TARGET])
            .done()
            .selector(DS, 0)
            .selector(ES, 0)
            .selector(FS, 0)
            .selector(GS, 0)
            .not_on(Host::Pvm, "data segments keep the selectors"),
        with_null_selectors(kernel("to CPL3 with null selectors", &[SS3, USER_STACK, 2, CS3, USER_TARGET]))
            .done()
            .not_always_on(Host::Pvm, "data segments keep the selectors"),
        kernel("to CPL3 leaves the bases of FS and GS", &[SS3, USER_STACK, 2, CS3, USER_TARGET])
            .with(|s| {
                s.segments[FS].base = 0x1234_5678_9abc;
                s.segments[GS].base = 0xffff_8765_4321_0000;
            })
            .done()
            .selector(FS, 0)
            .segment(FS, "base", 0x1234_5678_9abc, |s| s.base)
            .segment(GS, "base", 0xffff_8765_4321_0000, |s| s.base)
            .not_always_on(Host::Pvm, "data segments keep the selectors"),
        kernel("to CPL3 keeps segments of CPL3", &[SS3, USER_STACK, 2, CS3, USER_TARGET])
            .with(|s| {
                for index in [ES, DS, FS, GS] {
                    s.segments[index].selector = USER_DS;
                    s.segments[index].access = 0xc0f3;
                }
                s.segments[FS].base = 0x1234;
            })
            .done()
            .selector(DS, USER_DS)
            .selector(FS, USER_DS)
            .segment(FS, "base", 0x1234, |s| s.base),
        kernel("to compatibility mode", &[SS3, 0x1_0000_0000 | USER_STACK, 2, CS32, USER_TARGET])
            .gpr(RAX, 0)
            .poke(USER_TARGET, [0x48, 0xe6, DONE_PORT as u8])
            // Data segments of CPL0 keep their selectors there.
            .incomparable_on(Host::Pvm)
            .done()
            .selector(CS, USER32_CS)
            .value("EAX counted down", (USER_TARGET - 1) & 0xffff_ffff, |o, _| {
                o.state.gpr[RAX] & 0xffff_ffff
            }),
        kernel("to CPL3 with a null SS", &[0, USER_STACK, 2, CS3, USER_TARGET]).faults(13, 0),
        kernel("to CPL3 with a null SS of RPL 3", &[3, USER_STACK, 2, CS3, USER_TARGET]).faults(13, 0),
        kernel("to CPL3 with an SS of CPL0", &[SS0, USER_STACK, 2, CS3, USER_TARGET]).faults(13, SS0),
        kernel("to CPL3 with an SS that is code", &[CS3, USER_STACK, 2, CS3, USER_TARGET])
            .faults(13, CS3 & !3)
            .not_on(Host::Pvm, "KVM's emulator does not check this"),
        kernel("to a null CS", &[SS3, USER_STACK, 2, 0, USER_TARGET]).faults(13, 0),
        kernel("to data", &[SS0, USER_STACK, 2, SS0, USER_TARGET])
            .faults(13, SS0)
            .not_on(Host::Pvm, "KVM's emulator does not check this"),
        kernel("beyond the GDT", &[SS0, USER_STACK, 2, 0x200, USER_TARGET]).faults(13, 0x200),
        kernel("RPL above the DPL of the code", &[SS3, USER_STACK, 2, CS0 | 3, USER_TARGET]).faults(13, CS0),
        kernel("not canonical, same level", &[SS0, KERNEL_STACK, 2, CS0, NON_CANONICAL])
            .faults(13, 0)
            .not_on(Host::Pvm, "the fault is at the target"),
        kernel("not canonical, to CPL3", &[SS3, USER_STACK, 2, CS3, NON_CANONICAL])
            .faults(13, 0)
            .not_on(Host::Emulated, "QEMU faults at the target")
            .not_on(Host::Pvm, "the fault is at the target"),
        kernel("absent code", &[SS0, KERNEL_STACK, 2, FREE as u64, TARGET])
            .poke64(GDT + u64::from(FREE), KERNEL64_CODE & !(1 << 47))
            .faults(11, u64::from(FREE)),
        kernel("absent stack", &[FREE as u64 | 3, USER_STACK, 2, CS3, USER_TARGET])
            .poke64(GDT + u64::from(FREE), USER_FLAT & !(1 << 47))
            .faults(12, u64::from(FREE)),
        kernel("with NT set", &[SS0, KERNEL_STACK, 2, CS0, TARGET]).with(|s| s.rflags |= NT).faults(13, 0),
        halted(kernel("flags at CPL0", &[SS0, KERNEL_STACK, 0x24_4ed7 & !0x4000, CS0, TARGET]))
            .flags(0x3f_7fd7, all_flags),
        halted(kernel("IOPL and NT at CPL0", &[SS0, KERNEL_STACK, 0x7002, CS0, TARGET]))
            .flags(0x7000, 0x7000)
            .not_always_on(Host::Pvm, "IOPL stays 0"),
        Case::user("IRETQ at CPL3 keeps IOPL and IF")
            .prelude(|a| pushes(a, &[SS3, USER_STACK, 0x3202, CS3, USER_TARGET]))
            .bytes(&IRETQ)
            .poke(USER_TARGET, [0xe6, DONE_PORT as u8])
            .done()
            .flags(IF | IOPL3, 0)
            .leaves(RSP, USER_STACK),
        Case::user("IRETQ at CPL3 to an inner level")
            .prelude(|a| pushes(a, &[SS0, USER_STACK, 2, CS0, USER_TARGET]))
            .bytes(&IRETQ)
            .faults(13, CS0)
            .not_always_on(Host::Pvm, "CPL3 has the host's descriptor tables"),
    ]
}

/// Call gates of 16 bytes, type 12.
fn call_gates() -> Vec<Case> {
    let free = u64::from(FREE);
    let call = |name: &str, kind: u64, selector: u16, level: u64| {
        let gate = gate(kind, selector, TARGET, level, 0);
        let case = Case::user(format!("call gate: {name}")).gpr(RBX, USER_DATA).poke(GDT + free, gate);
        case.poke(USER_DATA, far32(FREE | 3, 0xdead))
            .poke(TARGET, [0xf4])
            .poke(TARGET + 1, RETFQ)
            .bytes(&CALL_FAR)
            .not_always_on(Host::Pvm, "CPL3 has the host's descriptor tables")
    };
    let halted = |case: Case| case.ends(Finish::Halted(TARGET + 1));
    vec![
        halted(call("to CPL0", 12, KERNEL_CS, 3))
            .selector(CS, KERNEL_CS)
            .selector(SS, 0)
            .leaves(RSP, RSP0 - 32)
            .memory(RSP0 - 8, USER_DS.into())
            .memory(RSP0 - 16, USER_STACK)
            .memory(RSP0 - 24, USER_CS.into())
            .memory(RSP0 - 32, USER_CODE + 2),
        call("of DPL 0", 12, KERNEL_CS, 0).faults(13, free),
        call("to a null selector", 12, 0, 3).faults(13, 0),
        call("to data", 12, KERNEL_DS, 3).faults(13, u64::from(KERNEL_DS)),
        call("to 32-bit code", 12, KERNEL32_CS, 3).faults(13, u64::from(KERNEL32_CS)),
        call("absent", 12, KERNEL_CS, 3).poke(GDT + free + 5, [0x6c]).faults(11, free),
        call("of 16 bits", 4, KERNEL_CS, 3).faults(13, free),
        call("a task gate", 5, KERNEL_CS, 3).faults(13, free),
        call("type in the upper half", 12, KERNEL_CS, 3)
            .poke(GDT + free + 13, [1])
            .faults(13, free)
            .not_always_on(Host::Emulated, "QEMU does not check it"),
        call("JMP does not change the level", 12, KERNEL_CS, 3)
            .bytes(&JMP_FAR)
            .faults(13, u64::from(KERNEL_CS)),
        call("an RSP0 that is not canonical", 12, KERNEL_CS, 3)
            .poke64(TSS + 4, 1 << 63)
            .poke(gate_at(12), usual_gate(12, 0, 1))
            .faults(12, 0)
            .not_always_on(Host::Emulated, "QEMU 7.2 does not check it"),
        halted(call("conforming code stays at CPL3", 12, FREE + 0x10, 3))
            .ends(Finish::Raised)
            .poke64(GDT + free + 0x10, KERNEL64_CODE | 4 << 40)
            .poke(GDT + free, gate(12, FREE + 0x10, USER_TARGET, 3, 0))
            .poke(USER_TARGET, [0xe6, DONE_PORT as u8])
            .done()
            .selector(CS, (FREE + 0x10) | 3)
            .leaves(RSP, USER_STACK - 16),
        kernel_call_gate("at the same level", KERNEL_CS)
            .ends(Finish::Halted(TARGET + 1))
            .leaves(RSP, KERNEL_STACK - 16)
            .not_on(Host::Pvm, "call gates are not emulated"),
    ]
}

fn kernel_call_gate(name: &str, selector: u16) -> Case {
    let case = Case::kernel(format!("call gate: {name}")).gpr(RBX, KERNEL_DATA);
    case.poke(GDT + u64::from(FREE), gate(12, selector, TARGET, 0, 0))
        .poke(KERNEL_DATA, far32(FREE, 0xdead))
        .poke(TARGET, [0xf4])
        .bytes(&CALL_FAR)
}

const INTELS: &str = "SYSENTER and SYSEXIT of long mode are Intel's";

/// SYSCALL, SYSRET, SYSENTER, SYSEXIT (SDM vol. 2; AMD APM vol. 3).
fn system_calls() -> Vec<Case> {
    use crate::control::set_msr;
    let star = 0x0023_0010u64 << 32;
    let ready = move |case: Case| {
        kernel_target(case).with(move |s| {
            set_msr(s, 0xc000_0081, star);
            set_msr(s, 0xc000_0082, TARGET);
            set_msr(s, 0xc000_0083, TARGET + 0x100);
            set_msr(s, 0xc000_0084, 0x4_7700);
        })
    };
    let syscall = |a: &mut CodeAssembler| a.syscall();
    let user = |name: &str| ready(Case::user(name)).not_on(Host::Pvm, "SYSCALL stays at CPL3");
    let kernel = |name: &str| ready(Case::kernel(name)).not_on(Host::Pvm, "SYSRET is not emulated");
    let sysexit = |name: &str| {
        kernel_target(Case::kernel(name)).with(|s| set_msr(s, 0x174, KERNEL_CS.into())).not_on_kvm(INTELS)
    };
    let halted = |case: Case| case.ends(Finish::Halted(TARGET + 1));
    vec![
        halted(
            user("SYSCALL")
                .with(|s| s.rflags |= IF | DF | CF | AC)
                .with(|s| s.cr[0] &= !CR0_AM)
                .probe(syscall),
        )
        .selector(CS, KERNEL_CS)
        .selector(SS, KERNEL_DS)
        .leaves(RCX, USER_CODE + 2)
        .leaves(11, IF | DF | CF | AC | 2)
        .leaves(RSP, USER_STACK)
        .flags(0x3f_7fd5, CF)
        .segment(CS, "base", 0, |s| s.base)
        .segment(SS, "limit", 0xffff_ffff, |s| s.limit.into()),
        user("SYSCALL without EFER.SCE").with(|s| s.efer &= !1).probe(syscall).faults(6, None),
        halted(ready(Case::kernel("SYSCALL at CPL0")).probe(syscall))
            .leaves(RCX, KERNEL_CODE + 2)
            .leaves(11, 2),
        kernel("SYSRET to 64 bits")
            .gpr(RCX, USER_TARGET)
            .gpr(11, IF | CF | 2)
            .probe(|a| a.sysretq())
            .done()
            .selector(CS, USER_CS)
            .selector(SS, USER_DS)
            .flags(IF | CF, IF | CF)
            .leaves(RSP, KERNEL_STACK),
        kernel("SYSRET to 32 bits")
            .gpr(RCX, USER_TARGET | 5 << 32)
            .gpr(11, 2)
            .gpr(RAX, 7)
            .poke(USER_TARGET, [0x48, 0xe6, DONE_PORT as u8])
            .probe(|a| a.sysret())
            .done()
            .selector(CS, USER32_CS)
            .leaves(RAX, 6),
        kernel("SYSRET clears RF and VM")
            .gpr(RCX, USER_TARGET)
            .gpr(11, 0x3_0002)
            .probe(|a| a.sysretq())
            .done()
            .flags(0x3_0000, 0),
        halted(
            user("SYSENTER")
                .with(|s| {
                    set_msr(s, 0x174, KERNEL_CS.into());
                    set_msr(s, 0x175, KERNEL_STACK - 0x100);
                    set_msr(s, 0x176, TARGET);
                    s.rflags |= IF | CF;
                })
                .probe(|a| a.sysenter()),
        )
        .selector(CS, KERNEL_CS)
        .selector(SS, KERNEL_DS)
        .leaves(RSP, KERNEL_STACK - 0x100)
        .flags(IF | CF, CF)
        .not_on_kvm(INTELS),
        user("SYSENTER without a selector").probe(|a| a.sysenter()).faults(13, 0).not_on_kvm(INTELS),
        sysexit("SYSEXIT to 64 bits")
            .gpr(RDX, USER_TARGET)
            .gpr(RCX, USER_STACK - 0x40)
            .with(|s| s.rflags |= IF | CF)
            .probe(|a| a.sysexitq())
            .done()
            .selector(CS, (KERNEL_CS + 32) | 3)
            .selector(SS, (KERNEL_CS + 40) | 3)
            .leaves(RSP, USER_STACK - 0x40)
            .flags(IF | CF, IF | CF),
        sysexit("SYSEXIT to 32 bits")
            .gpr(RDX, USER_TARGET | 5 << 32)
            .gpr(RCX, USER_STACK | 5 << 32)
            .gpr(RAX, 7)
            .poke(USER_TARGET, [0x48, 0xe6, DONE_PORT as u8])
            .probe(|a| a.sysexit())
            .done()
            .selector(CS, (KERNEL_CS + 16) | 3)
            .selector(SS, (KERNEL_CS + 24) | 3)
            .leaves(RSP, USER_STACK)
            .leaves(RAX, 6),
        sysexit("SYSEXIT to an address that is not canonical")
            .gpr(RDX, 1 << 63)
            .gpr(RCX, USER_STACK)
            .probe(|a| a.sysexitq())
            .faults(13, 0),
        sysexit("SYSEXIT without a selector")
            .with(|s| set_msr(s, 0x174, 0))
            .gpr(RDX, USER_TARGET)
            .gpr(RCX, USER_STACK)
            .probe(|a| a.sysexitq())
            .faults(13, 0),
        user("SYSEXIT at CPL3").probe(|a| a.sysexitq()).faults(13, 0).not_on_kvm(INTELS),
        kernel("SYSRET to an address that is not canonical: #GP at CPL0, as Intel has it")
            .gpr(RCX, 1 << 63)
            .gpr(11, 2)
            .probe(|a| a.sysretq())
            .faults(13, 0)
            .not_on_kvm("AMD's faults at CPL3"),
        kernel("SYSRET without EFER.SCE").with(|s| s.efer &= !1).probe(|a| a.sysretq()).faults(6, None),
    ]
}

#[test]
fn far_jumps_and_calls() {
    run("far_jumps", jumps());
}

#[test]
fn far_returns() {
    run("far_returns", returns());
}

#[test]
fn interrupt_returns_of_every_form() {
    run("iret", interrupt_returns());
}

#[test]
fn call_gates_switch_stacks() {
    run("call_gates", call_gates());
}

#[test]
fn system_calls_and_returns() {
    run("system_calls", system_calls());
}
