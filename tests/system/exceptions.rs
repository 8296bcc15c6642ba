//! Every exception that code can raise, with its error code, its frame and its class (SDM vol. 3, chapter 6).

use iced_x86::code_asm::*;

use crate::cases::{Case, word};
use crate::hosts::Host;
use crate::machine::run;
use crate::mapper::Mapper;
use crate::scaffold::*;

const NON_CANONICAL: u64 = 0x0000_8000_0000_0000;

/// Exceptions of computation, at both levels.
fn arithmetic(cpl: u8) -> Vec<Case> {
    let case = |name: &str| Case::at_level(name, cpl);
    vec![
        case("#DE: DIV by zero").probe(|a| a.div(ecx)).faults(0, None),
        case("#DE: quotient too large").gpr(RDX, 5).gpr(RCX, 5).probe(|a| a.div(rcx)).faults(0, None),
        case("#DE: IDIV of the smallest by -1")
            .gpr(RAX, 1 << 63)
            .gpr(RDX, u64::MAX)
            .gpr(RCX, u64::MAX)
            .probe(|a| a.idiv(rcx))
            .faults(0, None),
        case("IDIV of +2^63 by -1")
            .gpr(RAX, 1 << 63)
            .gpr(RDX, 0)
            .gpr(RCX, u64::MAX)
            .probe(|a| a.idiv(rcx))
            .undefined(STATUS)
            .done()
            .leaves(RAX, 1 << 63)
            .leaves(RDX, 0),
        case("#DE: IDIV of 2^63 + 1 by -1")
            .gpr(RAX, 1 << 63 | 1)
            .gpr(RDX, 0)
            .gpr(RCX, u64::MAX)
            .probe(|a| a.idiv(rcx))
            .faults(0, None),
        case("#DE: IDIV of the smallest dividend by -1")
            .gpr(RAX, 0)
            .gpr(RDX, 1 << 63)
            .gpr(RCX, u64::MAX)
            .probe(|a| a.idiv(rcx))
            .faults(0, None),
        case("#UD: UD2").probe(|a| a.ud2()).faults(6, None),
        case("#UD: LOCK on a register").bytes(&[0xf0, 0x01, 0xc8]).faults(6, None),
        case("#UD: PUSH ES does not exist").bytes(&[0x06]).faults(6, None),
        case("#UD: INTO does not exist").bytes(&[0xce]).faults(6, None),
        case("#UD: AAA does not exist").bytes(&[0x37]).faults(6, None),
        case("#UD: far JMP to an immediate does not exist")
            .bytes(&[0xea, 0, 0, 0, 0, 0x10, 0])
            .faults(6, None),
        case("#UD: MOV CS").bytes(&[0x8e, 0xc8]).faults(6, None),
        case("#UD: UD1").bytes(&[0x0f, 0xb9, 0xc0]).faults(6, None),
    ]
}

/// Exceptions of addresses: non-canonical ones, by way of the stack segment and others.
fn addresses(cpl: u8) -> Vec<Case> {
    let case = |name: &str| {
        let mut case = Case::at_level(name, cpl).gpr(RBX, NON_CANONICAL + 0x100);
        // The last page of the lower half is there, so that nothing but the hole is wrong. #SS needs a stack.
        let mut tables = Mapper::new();
        tables.map(NON_CANONICAL - 0x1000, FRAMES, 1, [P | RW | US | A | D; 4]);
        case.writes.extend(tables.writes);
        case.poke(gate_at(12), usual_gate(12, 0, 1))
    };
    vec![
        case("#GP: load from a non-canonical address").probe(|a| a.mov(rax, qword_ptr(rbx))).faults(13, 0),
        case("#GP: store to a non-canonical address").probe(|a| a.mov(byte_ptr(rbx), al)).faults(13, 0),
        case("#GP: the last byte is non-canonical")
            .gpr(RBX, NON_CANONICAL - 4)
            .probe(|a| a.mov(rax, qword_ptr(rbx)))
            .faults(13, 0)
            .not_on(Host::Pvm, "an operand across the end of the lower half is #PF"),
        case("#SS: load by RBP from a non-canonical address")
            .prelude(|a| a.mov(rbp, rbx))
            .probe(|a| a.mov(rax, qword_ptr(rbp)))
            .faults(12, 0),
        case("#SS: load by RSP from a non-canonical address")
            .prelude(|a| a.mov(rsp, rbx))
            .probe(|a| a.mov(rax, qword_ptr(rsp + 8)))
            .faults(12, 0),
        case("#SS: PUSH at a non-canonical RSP")
            .prelude(|a| a.mov(rsp, rbx))
            .probe(|a| a.push(rax))
            .faults(12, 0),
        case("#SS: POP at a non-canonical RSP")
            .prelude(|a| a.mov(rsp, rbx))
            .probe(|a| a.pop(rax))
            .faults(12, 0),
        case("#GP: JMP to a non-canonical address").probe(|a| a.jmp(rbx)).faults(13, 0),
        case("#GP: CALL to a non-canonical address").probe(|a| a.call(rbx)).faults(13, 0),
        case("#GP: RET to a non-canonical address").prelude(|a| a.push(rbx)).probe(|a| a.ret()).faults(13, 0),
        case("#GP: MOVAPS from an unaligned address")
            .gpr(RBX, KERNEL_OR_USER[usize::from(cpl == 3)] + 8)
            .probe(|a| a.movaps(xmm0, xmmword_ptr(rbx)))
            .faults(13, 0),
    ]
}

const KERNEL_OR_USER: [u64; 2] = [KERNEL_DATA, USER_DATA];

/// What CPL3 may not do: #GP(0), and nothing happens (SDM vol. 3, 5.9).
fn privileged() -> Vec<Case> {
    let case = |name: &str| Case::user(format!("privileged at CPL3: {name}"));
    vec![
        case("HLT").probe(|a| a.hlt()).faults(13, 0),
        case("CLI").probe(|a| a.cli()).faults(13, 0),
        case("STI").probe(|a| a.sti()).faults(13, 0),
        case("CLTS").probe(|a| a.clts()).faults(13, 0),
        case("MOV from CR0").probe(|a| a.mov(rax, cr0)).faults(13, 0),
        case("MOV to CR0").probe(|a| a.mov(cr0, rax)).faults(13, 0),
        case("MOV from CR2").probe(|a| a.mov(rax, cr2)).faults(13, 0),
        case("MOV to CR3").probe(|a| a.mov(cr3, rax)).faults(13, 0),
        case("MOV to CR4").probe(|a| a.mov(cr4, rax)).faults(13, 0),
        case("MOV to CR8").probe(|a| a.mov(cr8, rax)).faults(13, 0),
        case("MOV from DR0").probe(|a| a.mov(rax, dr0)).faults(13, 0),
        case("MOV to DR7").probe(|a| a.mov(dr7, rax)).faults(13, 0),
        case("RDMSR").prelude(|a| a.mov(ecx, 0xc000_0080u32)).probe(|a| a.rdmsr()).faults(13, 0),
        case("WRMSR").prelude(|a| a.mov(ecx, 0xc000_0080u32)).probe(|a| a.wrmsr()).faults(13, 0),
        case("LGDT").gpr(RBX, USER_DATA).probe(|a| a.lgdt(ptr(rbx))).faults(13, 0),
        case("LIDT").gpr(RBX, USER_DATA).probe(|a| a.lidt(ptr(rbx))).faults(13, 0),
        case("LLDT").probe(|a| a.lldt(ax)).faults(13, 0),
        case("LTR").probe(|a| a.ltr(ax)).faults(13, 0),
        case("LMSW").probe(|a| a.lmsw(ax)).faults(13, 0),
        case("INVLPG").gpr(RBX, USER_DATA).probe(|a| a.invlpg(ptr(rbx))).faults(13, 0),
        case("INVD").probe(|a| a.invd()).faults(13, 0),
        case("WBINVD").probe(|a| a.wbinvd()).faults(13, 0),
        case("SWAPGS").probe(|a| a.swapgs()).faults(13, 0),
        case("SYSRET").probe(|a| a.sysretq()).faults(13, 0),
    ]
}

/// #NM, #MF, #XM and the #UD of switched-off extensions.
fn floating_point(cpl: u8) -> Vec<Case> {
    let case = |name: &str| Case::at_level(name, cpl);
    let with_cr0 = |name: &str, set: u64| case(name).with(|s| s.cr[0] |= set);
    let divide = |a: &mut CodeAssembler| {
        a.push(0x33b)?; // ZM clear
        a.fninit()?;
        a.fldcw(word_ptr(rsp))?;
        a.fldz()?;
        a.fld1()?;
        a.fdiv_2(st0, st1)
    };
    let simd = |a: &mut CodeAssembler| {
        a.push(0)?;
        a.ldmxcsr(dword_ptr(rsp))?;
        a.xorps(xmm1, xmm1)?;
        a.mov(eax, 0x3f80_0000)?;
        a.movd(xmm0, eax)
    };
    let quirk = |case: Case| case.not_on(Host::Pvm, "CR0 and CR4 bits without effect at CPL3");
    let data = KERNEL_OR_USER[usize::from(cpl == 3)];
    vec![
        case("FNINIT clears the pointers")
            .gpr(RBX, data)
            .poke(data, [0xff; 32])
            .probe(|a| {
                a.fld(qword_ptr(rbx))?;
                a.fninit()?;
                a.fxsave64(ptr(rbx))
            })
            .done()
            .value("FOP", 0, move |_, ram| word(ram, data) >> 48)
            .memory(data + 8, 0)
            .memory(data + 16, 0),
        quirk(with_cr0("#NM: x87 with CR0.TS", CR0_TS).probe(|a| a.fld1()).faults(7, None)),
        quirk(with_cr0("#NM: SSE with CR0.TS", CR0_TS).probe(|a| a.movaps(xmm0, xmm1)).faults(7, None)),
        quirk(with_cr0("#NM: MMX with CR0.TS", CR0_TS).probe(|a| a.emms()).faults(7, None)),
        quirk(with_cr0("#NM: FWAIT with CR0.MP and TS", CR0_TS).probe(|a| a.wait()).faults(7, None)),
        quirk(
            case("FWAIT with CR0.TS alone")
                .with(|s| s.cr[0] = s.cr[0] & !CR0_MP | CR0_TS)
                .probe(|a| a.wait())
                .done(),
        ),
        quirk(
            with_cr0("#NM: FXSAVE with CR0.TS", CR0_TS)
                .gpr(RBX, KERNEL_OR_USER[usize::from(cpl == 3)])
                .probe(|a| a.fxsave(ptr(rbx)))
                .faults(7, None),
        ),
        quirk(with_cr0("#NM: x87 with CR0.EM", CR0_EM).probe(|a| a.fld1()).faults(7, None)),
        quirk(with_cr0("#UD: SSE with CR0.EM", CR0_EM).probe(|a| a.movaps(xmm0, xmm1)).faults(6, None)),
        quirk(with_cr0("#UD: MMX with CR0.EM", CR0_EM).probe(|a| a.pxor(mm0, mm1)).faults(6, None)),
        quirk(
            case("#UD: SSE without CR4.OSFXSR")
                .with(|s| s.cr[3] &= !CR4_OSFXSR)
                .probe(|a| a.addps(xmm0, xmm1))
                .faults(6, None),
        ),
        quirk(case("#UD: VEX without OSXSAVE").probe(|a| a.vzeroupper()).faults(6, None)),
        case("#MF: FWAIT after a division by zero").prelude(divide).probe(|a| a.wait()).faults(16, None),
        case("#MF: the next x87 instruction reports").prelude(divide).probe(|a| a.fld1()).faults(16, None),
        case("FNSTSW and FNINIT report nothing")
            .prelude(divide)
            .probe(|a| {
                a.fnstsw(ax)?;
                a.fninit()?;
                a.wait()
            })
            .done()
            .value("ES and ZE", 0x84, |o, _| o.state.gpr[RAX] & 0x84),
        case("#XM: DIVPS by zero").prelude(simd).probe(|a| a.divps(xmm0, xmm1)).faults(19, None),
        quirk(
            case("#UD: the same without CR4.OSXMMEXCPT")
                .with(|s| s.cr[3] &= !CR4_OSXMMEXCPT)
                .prelude(simd)
                .probe(|a| a.divps(xmm0, xmm1))
                .faults(6, None),
        ),
        case("#GP: LDMXCSR with reserved bits")
            .prelude(|a| a.push(0x1_0000))
            .probe(|a| a.ldmxcsr(dword_ptr(rsp)))
            .faults(13, 0)
            .not_on(Host::Pvm, "a #GP of LDMXCSR comes as #UD"),
    ]
}

/// #AC (SDM vol. 3, 6.15): CPL3, CR0.AM and RFLAGS.AC.
fn alignment() -> Vec<Case> {
    let case = |case: Case| case.with(|s| s.rflags |= AC).not_on(Host::Emulated, "QEMU 7.2 has no #AC");
    let user = |name: &str| case(Case::user(name).gpr(RBX, USER_DATA));
    vec![
        user("#AC: word at an odd address").probe(|a| a.mov(ax, word_ptr(rbx + 1))).faults(17, 0),
        user("#AC: dword at 2 mod 4").probe(|a| a.mov(eax, dword_ptr(rbx + 2))).faults(17, 0),
        user("#AC: qword at 4 mod 8").probe(|a| a.mov(rax, qword_ptr(rbx + 4))).faults(17, 0),
        user("#AC: store").probe(|a| a.mov(dword_ptr(rbx + 1), eax)).faults(17, 0),
        user("#AC: PUSH").prelude(|a| a.lea(rsp, ptr(rbx + 0x101))).probe(|a| a.push(rax)).faults(17, 0),
        user("no #AC: aligned").probe(|a| a.mov(rax, qword_ptr(rbx + 8))).done(),
        user("no #AC: bytes").probe(|a| a.mov(al, byte_ptr(rbx + 1))).done(),
        user("no #AC: CR0.AM clear")
            .with(|s| s.cr[0] &= !CR0_AM)
            .probe(|a| a.mov(eax, dword_ptr(rbx + 1)))
            .done()
            .not_on(Host::Pvm, "CR0.AM without effect at CPL3"),
        case(Case::kernel("no #AC: CPL0").gpr(RBX, KERNEL_DATA))
            .probe(|a| a.mov(eax, dword_ptr(rbx + 1)))
            .done(),
    ]
}

#[test]
fn computation_faults_with_its_exception() {
    run("computation", [arithmetic(0), arithmetic(3)].into_iter().flatten().collect());
}

#[test]
fn addresses_fault_with_gp_or_ss() {
    run("addresses", [addresses(0), addresses(3)].into_iter().flatten().collect());
}

#[test]
fn privileged_instructions_fault_at_cpl3() {
    run("privileged", privileged());
}

#[test]
fn floating_point_exceptions_and_switches() {
    run("floating_point", [floating_point(0), floating_point(3)].into_iter().flatten().collect());
}

#[test]
fn alignment_checks_are_of_cpl3() {
    run("alignment", alignment());
}
