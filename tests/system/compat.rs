//! 32-bit code at CPL3 under a 64-bit kernel: operand and address sizes, segments with bases and limits, ways
//! into the kernel (SDM vol. 3, 5.3; AMD APM vol. 2, 4.12).

use iced_x86::code_asm::*;

use crate::cases::{At, Case};
use crate::control::set_msr;
use crate::hosts::Host;
use crate::machine::{Finish, run};
use crate::scaffold::*;

const NATIVE: &str = "CPL3 has the host's descriptor tables";
const STACK32: u64 = USER_STACK;

fn sizes() -> Vec<Case> {
    let case = |name: &str| Case::compat(format!("32 bits: {name}")).gpr(RBX, USER_DATA);
    vec![
        case("PUSH and POP move ESP by 4")
            .gpr(RAX, 0x1234_5678)
            .probe(|a| {
                a.push(eax)?;
                a.push(7)?;
                a.pop(ecx)?;
                a.mov(edx, esp)
            })
            .done()
            .leaves(RCX, 7)
            .leaves(RDX, STACK32 - 4)
            .value("pushed", 0x1234_5678, |_, ram| crate::cases::word(ram, STACK32 - 4) & 0xffff_ffff),
        case("PUSHW")
            .gpr(RAX, 0x1234_5678)
            .probe(|a| {
                a.push(ax)?;
                a.mov(edx, esp)
            })
            .done()
            .leaves(RDX, STACK32 - 2),
        case("PUSHAD and POPAD")
            .gpr(RAX, 1)
            .gpr(RCX, 2)
            .probe(|a| {
                a.pushad()?;
                a.xor(eax, eax)?;
                a.xor(ecx, ecx)?;
                a.popad()
            })
            .done()
            .leaves(RAX, 1)
            .leaves(RCX, 2)
            .leaves(RSP, STACK32),
        case("CALL and RET of 4 bytes")
            .probe(|a| {
                let mut function = a.create_label();
                let mut end = a.create_label();
                a.call(function)?;
                a.jmp(end)?;
                a.set_label(&mut function)?;
                a.mov(edx, esp)?;
                a.ret()?;
                a.set_label(&mut end)?;
                a.nop()
            })
            .done()
            .leaves(RDX, STACK32 - 4)
            .leaves(RSP, STACK32),
        case("PUSHFD and POPFD")
            .probe(|a| {
                a.push(CF as i32 | ZF as i32 | 2)?;
                a.popfd()?;
                a.pushfd()?;
                a.pop(ecx)
            })
            .done()
            .leaves(RCX, 0x43),
        case("ENTER and LEAVE")
            .probe(|a| {
                a.enter(16, 0)?;
                a.mov(edx, esp)?;
                a.leave()
            })
            .done()
            .leaves(RDX, STACK32 - 20)
            .leaves(RSP, STACK32),
        case("0x40 to 0x4f are INC and DEC")
            .gpr(RAX, 5)
            .bytes(&[0x40, 0x40, 0x48, 0x41])
            .done()
            .leaves(RAX, 6)
            .leaves(RCX, 1),
        case("addresses wrap at 4 GiB")
            .gpr(RBX, 0xffff_fff0)
            .gpr(RSI, 0x10 + USER_DATA)
            .poke64(USER_DATA, 0x77)
            .probe(|a| a.mov(ecx, dword_ptr(ebx + esi)))
            .done()
            .leaves(RCX, 0x77),
        case("16-bit addresses wrap at 64 KiB")
            .gpr(RBX, 0x1_fff0)
            .gpr(RSI, 0x20)
            .probe(|a| a.lea(ecx, ptr(bx + si)))
            .done()
            .leaves(RCX, 0x10),
        case("moffs of 32 bits")
            .poke64(USER_DATA, 0x99)
            .bytes(&[0xa1, 0, 0, 0x28, 0])
            .done()
            .leaves(RAX, 0x99),
        case("JECXZ and LOOP count ECX")
            .gpr(RCX, 3)
            .probe(|a| {
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.inc(edx)?;
                a.loop_(again)
            })
            .done()
            .leaves(RDX, 3)
            .leaves(RCX, 0),
        case("LES and LDS")
            .poke(USER_DATA, [0x78, 0x56, 0x34, 0x12, USER_DS as u8, 0])
            .bytes(&[0xc4, 0x0b])
            .done()
            .leaves(RCX, 0x1234_5678)
            .selector(ES, USER_DS),
        case("PUSH ES, POP DS").bytes(&[0x06, 0x1f]).done().selector(DS, USER_DS).leaves(RSP, STACK32),
        case("upper halves are cleared by 32-bit results")
            .probe(|a| {
                a.mov(ecx, -1)?;
                a.add(ecx, 1)
            })
            .done()
            .leaves(RCX, 0),
        case("PUSH of a segment register writes two bytes")
            .poke64(STACK32 - 8, u64::MAX)
            .bytes(&[0x1e, 0x0f, 0xa0])
            .done()
            .leaves(RSP, STACK32 - 8)
            .memory(STACK32 - 8, 0xffff_0000_ffff_0000 | u64::from(USER_DS) << 32 | u64::from(USER_DS)),
        case("R8 is kept").probe(|a| a.nop()).done().leaves(8, 0x0808_0808_0808_0808),
        case("ARPL raises the RPL")
            .gpr(RAX, 0x28)
            .gpr(RCX, 3)
            .bytes(&[0x63, 0xc8])
            .done()
            .leaves(RAX, 0x2b)
            .flags(ZF, ZF)
            .not_on(Host::Pvm, "#UD of 32-bit code"),
        case("REP STOSD by ECX and EDI")
            .gpr(RDI, USER_DATA)
            .gpr(RCX, 2)
            .gpr(RAX, 5)
            .probe(|a| a.rep().stosd())
            .done()
            .memory(USER_DATA, 5 | 5 << 32)
            .leaves(RDI, USER_DATA + 8),
        case("SSE and x87 work")
            .poke64(USER_DATA, 0x4008_0000_0000_0000)
            .probe(|a| {
                a.movsd_2(xmm0, qword_ptr(ebx))?;
                a.addsd(xmm0, xmm0)?;
                a.movsd_2(qword_ptr(ebx), xmm0)
            })
            .done()
            .memory(USER_DATA, 0x4018_0000_0000_0000)
            .not_on(Host::Pvm, "#UD of 32-bit code"),
    ]
}

/// AAA, AAS, DAA, DAS, AAM, AAD: bytes, AX and flags before, AX and flags after. Measured on a processor of
/// Intel's, what the manuals leave undefined too.
fn decimal() -> Vec<Case> {
    const AF: u64 = 1 << 4;
    const PF: u64 = 1 << 2;
    const SF: u64 = 1 << 7;
    let case = |name: &str, bytes: &[u8], (value, before): (u64, u64), (after, flags): (u64, u64)| {
        Case::compat(format!("decimal: {name}"))
            .gpr(RAX, 0x5555_0000 | value)
            .with(move |s| s.rflags |= before)
            .bytes(bytes)
            .done()
            .leaves(RAX, 0x5555_0000 | after)
            .flags(STATUS, flags)
            .not_always_on(Host::Pvm, "#UD of 32-bit code")
    };
    vec![
        case("AAA of a digit", &[0x37], (0x0309, 0), (0x0309, PF)),
        case("AAA with a carry", &[0x37], (0x000a, 0), (0x0100, CF | AF | ZF | PF)),
        case("AAA with a carry out of AL", &[0x37], (0x01fa, 0), (0x0300, CF | AF | ZF | PF)),
        case("AAS of a digit", &[0x3f], (0x0301, CF), (0x0301, 0)),
        case("AAS with a borrow", &[0x3f], (0x0000, AF), (0xfe0a, CF | AF | PF)),
        case("DAA of a digit", &[0x27], (0x0042, 0), (0x0042, PF)),
        case("DAA of both digits", &[0x27], (0x009a, 0), (0x0000, CF | AF | ZF | PF)),
        case("DAA with CF", &[0x27], (0x001a, CF), (0x0080, CF | AF | SF)),
        case("DAS of a digit", &[0x2f], (0x0042, 0), (0x0042, PF)),
        case("DAS with AF below 6", &[0x2f], (0x0005, AF), (0x00ff, CF | AF | SF | PF)),
        case("DAS with CF", &[0x2f], (0x0080, CF), (0x0020, CF)),
        case("AAM", &[0xd4, 10], (0x7f4f, 0), (0x0709, PF)),
        case("AAM by 16", &[0xd4, 16], (0x7f4f, 0), (0x040f, PF)),
        case("AAD", &[0xd5, 10], (0x0709, 0), (0x004f, 0)),
        case("AAD with a carry", &[0xd5, 255], (0x0205, 0), (0x0003, CF | AF | PF)),
        Case::compat("decimal: AAM by zero: #DE")
            .bytes(&[0xd4, 0])
            .faults(0, None)
            .not_always_on(Host::Pvm, "#UD of 32-bit code"),
    ]
}

#[test]
fn decimal_digits_are_adjusted() {
    run("decimal", decimal());
}

/// A segment register for data at the start: index, base, limit in bytes, access.
fn segment(case: Case, index: usize, base: u64, limit: u32, access: u32) -> Case {
    case.poke64(GDT + u64::from(FREE), descriptor(u64::from(access), base, u64::from(limit)))
        .with(move |s| {
            s.segments[index] = lockstep::engine::state::Segment { selector: FREE | 3, base, limit, access }
        })
        .not_always_on(Host::Pvm, NATIVE)
}

fn segments() -> Vec<Case> {
    let case = |name: &str| {
        Case::compat(format!("32-bit segments: {name}")).not_on(Host::Emulated, "QEMU does not check limits")
    };
    const RW: u32 = 0x40f3;
    let load = |a: &mut CodeAssembler| a.mov(ecx, dword_ptr(ebx));
    let data = |name: &str, offset: u64, access: u32| {
        segment(case(name).gpr(RBX, offset), DS, USER_DATA, 0xfff, access).poke64(USER_DATA + 0x100, 0x55)
    };
    vec![
        data("the base is added", 0x100, RW).probe(load).done().leaves(RCX, 0x55),
        data("the last dword", 0xffc, RW).probe(load).done(),
        data("one byte beyond the limit", 0xffd, RW).probe(load).faults(13, 0),
        data("far beyond the limit", 0x1000_0000, RW).probe(load).faults(13, 0),
        data("an offset that wraps", 0xffff_fffe, RW).probe(load).faults(13, 0),
        data("a write beyond the limit", 0x1000, RW).probe(|a| a.mov(byte_ptr(ebx), al)).faults(13, 0),
        data("a write to read-only data", 0, 0x40f1).probe(|a| a.mov(byte_ptr(ebx), al)).faults(13, 0),
        data("expand-down: below the limit", 0xffc, 0x40f7).probe(load).faults(13, 0),
        data("expand-down: above the limit", 0x1000, 0x40f7).probe(load).done(),
        data("a read of execute-only code", 0, 0x40f9).probe(load).faults(13, 0),
        data("a write to code", 0, 0x40fb).probe(|a| a.mov(byte_ptr(ebx), al)).faults(13, 0),
        segment(case("FS with a base").gpr(RBX, 0x100), FS, USER_DATA, 0xfff, RW)
            .poke64(USER_DATA + 0x100, 0x66)
            .probe(|a| a.mov(ecx, dword_ptr(ebx).fs()))
            .done()
            .leaves(RCX, 0x66),
        segment(case("SS beyond its limit: #SS").gpr(RSP, 0x2000), SS, USER_DATA, 0xfff, RW)
            .probe(|a| a.push(eax))
            .faults(12, 0),
        segment(case("SS with a base").gpr(RSP, 0x800), SS, USER_DATA, 0xfff, RW)
            .gpr(RAX, 0x33)
            .probe(|a| a.push(eax))
            .done()
            .memory(USER_DATA + 0x7fc, 0x33)
            .leaves(RSP, 0x7fc),
        segment(case("EBP means SS").gpr(RSP, 0x800), SS, USER_DATA, 0xfff, RW)
            .prelude(|a| a.mov(ebp, 0x2000))
            .probe(|a| a.mov(ecx, dword_ptr(ebp)))
            .faults(12, 0),
        segment(case("a 16-bit stack wraps SP").gpr(RSP, 0x1234_0000), SS, USER_DATA, 0xffff, 0x00f3)
            .gpr(RAX, 0x44)
            .probe(|a| a.push(eax))
            .done()
            .leaves(RSP, 0x1234_fffc),
        case("a null DS is #GP when used")
            .with(|s| {
                s.segments[DS] = lockstep::engine::state::Segment { access: 1 << 16, ..Default::default() }
            })
            .gpr(RBX, USER_DATA)
            .probe(load)
            .faults(13, 0)
            .not_always_on(Host::Pvm, NATIVE),
        case("a jump beyond the limit of CS")
            .with(|s| {
                s.segments[CS].limit = USER_CODE as u32 + 0xfff;
                s.segments[CS].access = 0x40fb;
            })
            .gpr(RAX, USER_CODE + 0x1000)
            .probe(|a| a.jmp(eax))
            .faults(13, 0)
            .not_always_on(Host::Pvm, NATIVE),
        case("a CS with a base")
            .with(|s| {
                s.segments[CS].base = USER_CODE;
                s.rip = 0;
            })
            .bytes(&[0xe8, 0, 0, 0, 0, 0x58])
            .done()
            .leaves(RAX, 5)
            .not_always_on(Host::Pvm, NATIVE),
    ]
}

fn kernel_ways() -> Vec<Case> {
    let case = |name: &str| Case::compat(format!("32 bits, into the kernel: {name}"));
    let frame = |case: Case| {
        case.value("pushed CS", USER32_CS.into(), |o, _| o.events[0].cs)
            .value("pushed RSP", USER_STACK, |o, _| o.events[0].rsp)
            .value("pushed SS", USER_DS.into(), |o, _| o.events[0].ss)
    };
    let target = KERNEL_CODE + 0x800;
    vec![
        frame(
            case("INT 0x80")
                .poke(gate_at(0x80), usual_gate(0x80, 3, 0))
                .probe(|a| a.int(0x80))
                .traps(0x80)
                .on_stack(RSP0 - 40),
        )
        .not_on(Host::Pvm, "INT n is not supported"),
        case("INT 0x80 and back")
            .poke(gate_at(0x80), usual_gate(0x80, 3, 0))
            .probe(|a| {
                a.int(0x80)?;
                a.inc(eax)
            })
            .traps_at(0x80, At::Probe(1))
            .done()
            .leaves(RAX, 1)
            .selector(CS, USER32_CS)
            .not_on(Host::Pvm, "INT n is not supported"),
        frame(case("#UD").probe(|a| a.ud2()).faults(6, None)),
        frame(case("#GP").probe(|a| a.hlt()).faults(13, 0)),
        frame(case("#DE").probe(|a| a.div(ecx)).faults(0, None)),
        frame(case("#PF").gpr(RBX, 0x10_0000).probe(|a| a.mov(eax, dword_ptr(ebx))).page_fault(5, 0x10_0000)),
        frame(
            case("#OF by INTO")
                .with(|s| s.rflags |= 1 << 11)
                .bytes(&[0xce])
                .poke(gate_at(4), usual_gate(4, 3, 0))
                .traps(4),
        )
        .not_on(Host::Pvm, "INT n is not supported"),
        case("INTO without OF").bytes(&[0xce]).done(),
        frame(
            case("#BR by BOUND")
                .gpr(RAX, 11)
                .gpr(RBX, USER_DATA)
                .poke(USER_DATA, [5, 0, 0, 0, 10, 0, 0, 0])
                .bytes(&[0x62, 0x03])
                .faults(5, None)
                .not_on(Host::Pvm, "#UD of 32-bit code"),
        ),
        case("BOUND inside")
            .gpr(RAX, 10)
            .gpr(RBX, USER_DATA)
            .poke(USER_DATA, [5, 0, 0, 0, 10, 0, 0, 0])
            .bytes(&[0x62, 0x03])
            .done()
            .not_on(Host::Pvm, "#UD of 32-bit code"),
        case("far JMP to 64-bit code")
            .bytes(&[0xea, 0, 8, 0x20, 0, USER_CS as u8, 0])
            .poke(USER_CODE + 0x800, [0x48, 0xff, 0xc0, 0xe6, DONE_PORT as u8])
            .done()
            .leaves(RAX, 1)
            .selector(CS, USER_CS)
            .not_always_on(Host::Pvm, NATIVE),
        // Vendors differ: AMD's processors go to CSTAR, Intel's (and the software CPU) have no SYSCALL here.
        case("SYSCALL is #UD")
            .with(|s| s.efer |= 1)
            .probe(|a| a.syscall())
            .faults(6, None)
            .not_on_kvm("AMD's goes to CSTAR"),
        case("SYSCALL goes to CSTAR")
            .with(move |s| {
                set_msr(s, 0xc000_0081, 0x0023_0010 << 32);
                set_msr(s, 0xc000_0082, target + 0x100);
                set_msr(s, 0xc000_0083, target);
                set_msr(s, 0xc000_0084, 0x4_7700);
            })
            .poke(target, [0xf4])
            .probe(|a| a.syscall())
            .ends(Finish::Halted(target + 1))
            .leaves(RCX, USER_CODE + 2)
            .selector(CS, KERNEL_CS)
            .not_on(Host::Pvm, "SYSCALL stays at CPL3")
            .not_on(Host::Soft, "Intel's is #UD")
            .not_on(Host::KvmIntel, "Intel's is #UD"),
        case("SWAPGS does not exist")
            .bytes(&[0x0f, 0x01, 0xf8])
            .faults(6, None)
            .not_on(Host::Pvm, "#GP of the host"),
    ]
}

#[test]
fn operands_and_addresses_have_32_bits() {
    run("compat_sizes", sizes());
}

#[test]
fn segments_have_bases_and_limits() {
    run("compat_segments", segments());
}

#[test]
fn the_kernel_is_entered_with_64_bit_frames() {
    run("compat_kernel", kernel_ways());
}
