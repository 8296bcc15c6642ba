//! Control registers, EFER and other MSRs, CPUID: what may be written, what reads back, what is #GP (SDM vol.
//! 3, 2.5; vol. 2, MOV-CR, RDMSR; AMD APM vol. 2, 3.1).

use iced_x86::code_asm::*;

use crate::cases::Case;
use crate::hosts::Host;
use crate::machine::run;
use crate::scaffold::*;

const EFER: u32 = 0xc000_0080;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const SFMASK: u32 = 0xc000_0084;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const PAT: u32 = 0x277;
const CANONICAL_HIGH: u64 = 0xffff_8000_1234_5678;

/// MOV to CRn of RAX.
fn write(name: &str, register: u32, value: u64) -> Case {
    let case = Case::kernel(name).gpr(RAX, value);
    match register {
        0 => case.probe(|a| a.mov(cr0, rax)),
        3 => case.probe(|a| a.mov(cr3, rax)),
        4 => case.probe(|a| a.mov(cr4, rax)),
        _ => case.probe(|a| a.mov(cr8, rax)),
    }
}

fn registers() -> Vec<Case> {
    let (old_cr0, old_cr4) = (0x8005_0033u64, CR4);
    let in_cr = |case: Case, index: usize, want: u64| {
        case.done().value(format!("CR slot {index}"), want, move |o, _| o.state.cr[index])
    };
    let mut cases = vec![
        in_cr(write("CR0: TS", 0, old_cr0 | CR0_TS), 0, old_cr0 | CR0_TS),
        write("CR0: PG without PE", 0, old_cr0 & !1).faults(13, 0),
        write("CR0: PG cleared in 64-bit mode", 0, old_cr0 & !(1 << 31)).faults(13, 0),
        write("CR0: NW without CD", 0, old_cr0 | 1 << 29).faults(13, 0),
        write("CR0: bit 32", 0, old_cr0 | 1 << 32)
            .faults(13, 0)
            .not_on(Host::Pvm, "KVM's emulator does not check this"),
        write("CR0: bit 63", 0, old_cr0 | 1 << 63)
            .faults(13, 0)
            .not_on(Host::Pvm, "KVM's emulator does not check this"),
        in_cr(write("CR0: reserved bits of the low half stay zero", 0, old_cr0 | 1 << 6), 0, old_cr0)
            .not_always_on(Host::Pvm, "KVM's emulator keeps them"),
        in_cr(write("CR0: ET stays one", 0, old_cr0 & !(1 << 4)), 0, old_cr0),
        in_cr(write("CR4: TSD", 4, old_cr4 | CR4_TSD), 3, old_cr4 | CR4_TSD),
        write("CR4: PAE cleared in long mode", 4, old_cr4 & !0x20).faults(13, 0),
        write("CR4: bit 15", 4, old_cr4 | 1 << 15).faults(13, 0),
        write("CR4: bit 31", 4, old_cr4 | 1 << 31).faults(13, 0),
        write("CR4: bit 32", 4, old_cr4 | 1 << 32)
            .faults(13, 0)
            .not_on(Host::Pvm, "KVM's emulator does not check this"),
        write("CR4: VMXE, not in the model", 4, old_cr4 | 1 << 13).faults(13, 0),
        write("CR4: DE, not in the model", 4, old_cr4 | 1 << 3).faults(13, 0).not_on_kvm("KVM has it"),
        write("CR4: LA57, not in the model", 4, old_cr4 | 1 << 12).faults(13, 0),
        write("CR4: PKE, not in the model", 4, old_cr4 | 1 << 22).faults(13, 0).not_on_kvm("KVM has it"),
        write("CR3: bit 63 without PCID", 3, PML4 | 1 << 63).faults(13, 0),
        write("CR3: an address beyond the physical ones", 3, PML4 | 1 << 51).faults(13, 0),
        in_cr(write("CR3: PWT, PCD are kept", 3, PML4 | 0x18), 2, PML4 | 0x18),
        in_cr(write("CR8", 8, 9), 4, 9),
        write("CR8: 16", 8, 16).faults(13, 0),
        write("CR8: bit 63", 8, 1 << 63).faults(13, 0),
        Case::kernel("LMSW sets, and never clears, PE")
            .gpr(RAX, 0xfff0 | 8)
            .probe(|a| a.lmsw(ax))
            .done()
            .value("CR0", (old_cr0 & !6) | 8, |o, _| o.state.cr[0]),
        Case::kernel("CLTS").with(|s| s.cr[0] |= CR0_TS).probe(|a| a.clts()).done().value(
            "CR0",
            old_cr0,
            |o, _| o.state.cr[0],
        ),
        Case::kernel("SMSW to 64, 32, 16 bits")
            .gpr(RCX, u64::MAX)
            .gpr(RDX, u64::MAX)
            .probe(|a| {
                a.smsw(rax)?;
                a.smsw(ecx)?;
                a.smsw(dx)
            })
            .done()
            .leaves(RAX, old_cr0)
            .leaves(RCX, old_cr0)
            .leaves(RDX, 0xffff_ffff_ffff_0033),
        Case::user("SMSW, SGDT, SIDT, SLDT, STR at CPL3 without UMIP")
            .gpr(RBX, USER_DATA)
            .probe(|a| {
                a.smsw(ax)?;
                a.sgdt(ptr(rbx))?;
                a.sidt(ptr(rbx + 16))?;
                a.sldt(cx)?;
                a.str(dx)
            })
            .done()
            .value("GDT", GDT << 16 | 0x1ff, |_, ram| crate::cases::word(ram, USER_DATA))
            .not_always_on(Host::Pvm, "CPL3 has the host's tables and UMIP"),
    ];
    for register in [1, 5, 6, 7, 9, 15] {
        let modrm = 0xc0 | (register & 7) << 3;
        let rex = 0x40 | (register >> 3) << 2;
        let read = Case::kernel(format!("MOV from CR{register}")).bytes(&[rex, 0x0f, 0x20, modrm]);
        let write = Case::kernel(format!("MOV to CR{register}")).bytes(&[rex, 0x0f, 0x22, modrm]);
        cases.push(read.faults(6, None));
        cases.push(write.faults(6, None));
    }
    cases.push(
        Case::kernel("MOV from CR0 with a mod of memory")
            .bytes(&[0x0f, 0x20, 0x00])
            .done()
            .leaves(RAX, old_cr0),
    );
    cases
}

fn wrmsr(name: &str, index: u32, value: u64) -> Case {
    let case = Case::kernel(name).gpr(RCX, index.into()).gpr(RAX, value & 0xffff_ffff).gpr(RDX, value >> 32);
    case.probe(|a| {
        a.wrmsr()?;
        a.xor(eax, eax)?;
        a.xor(edx, edx)?;
        a.rdmsr()
    })
}

fn msrs() -> Vec<Case> {
    let kept = |name: &str, index: u32, value: u64| {
        let case = wrmsr(&format!("{name} keeps its value"), index, value).done();
        case.leaves(RAX, value & 0xffff_ffff).leaves(RDX, value >> 32)
    };
    let refused = |name: &str, index: u32, value: u64| wrmsr(name, index, value).faults(13, 0);
    let mut cases = vec![
        kept("STAR", STAR, 0x0023_0010_1234_5678),
        kept("LSTAR", LSTAR, CANONICAL_HIGH),
        kept("CSTAR", CSTAR, CANONICAL_HIGH),
        kept("SFMASK", SFMASK, 0x4_7700),
        kept("FS.base", FS_BASE, CANONICAL_HIGH),
        kept("GS.base", GS_BASE, 0x7fff_1234_5678),
        kept("KERNEL_GS_BASE", KERNEL_GS_BASE, CANONICAL_HIGH),
        kept("PAT", PAT, 0x0007_0406_0007_0406),
        refused("LSTAR, not canonical", LSTAR, 1 << 63),
        refused("CSTAR, not canonical", CSTAR, 1 << 47).not_on(Host::Emulated, "QEMU does not check it"),
        refused("FS.base, not canonical", FS_BASE, 1 << 47),
        refused("GS.base, not canonical", GS_BASE, 1 << 63),
        refused("KERNEL_GS_BASE, not canonical", KERNEL_GS_BASE, 1 << 63),
        refused("PAT of a reserved type", PAT, 2).not_on(Host::Pvm, "KVM's emulator does not check this"),
        refused("PAT of a reserved type on top", PAT, 3 << 56)
            .not_on(Host::Pvm, "KVM's emulator does not check this"),
        refused("EFER: reserved bit 1", EFER, 0xd03),
        refused("EFER: reserved bit 63", EFER, 0xd01 | 1 << 63),
        refused("EFER: LME cleared with paging on", EFER, 0xc01),
        kept("EFER: SCE", EFER, 0xd00),
        Case::kernel("EFER: LMA cannot be written")
            .gpr(RCX, EFER.into())
            .gpr(RAX, 0x901)
            .probe(|a| {
                a.wrmsr()?;
                a.rdmsr()
            })
            .done()
            .leaves(RAX, 0xd01),
        Case::kernel("WRMSR of FS.base moves FS")
            .gpr(RCX, FS_BASE.into())
            .gpr(RAX, KERNEL_DATA)
            .probe(|a| {
                a.wrmsr()?;
                a.mov(rbx, qword_ptr(8).fs())
            })
            .poke64(KERNEL_DATA + 8, 0x1234)
            .done()
            .leaves(RBX, 0x1234),
        Case::kernel("RDMSR clears the upper halves")
            .gpr(RCX, EFER.into())
            .gpr(RAX, u64::MAX)
            .gpr(RDX, u64::MAX)
            .probe(|a| a.rdmsr())
            .done()
            .leaves(RAX, 0xd01)
            .leaves(RDX, 0),
        Case::kernel("RDMSR takes ECX alone")
            .gpr(RCX, 0xffff_ffff_0000_0000 | u64::from(EFER))
            .probe(|a| a.rdmsr())
            .done()
            .leaves(RAX, 0xd01),
        Case::kernel("SWAPGS")
            .with(|s| {
                s.segments[GS].base = 0x1111_0000;
                set_msr(s, KERNEL_GS_BASE, CANONICAL_HIGH);
            })
            .probe(|a| a.swapgs())
            .done()
            .segment(GS, "base", CANONICAL_HIGH, |s| s.base)
            .value("KERNEL_GS_BASE", 0x1111_0000, |o, _| msr(&o.state, KERNEL_GS_BASE)),
    ];
    for index in [0x1234_5678u32, 0xc001_ffff, 0x4000_0fff, 0xffff_ffff, 0x5555] {
        cases.push(
            Case::kernel(format!("RDMSR of unknown {index:#x}"))
                .gpr(RCX, index.into())
                .probe(|a| a.rdmsr())
                .faults(13, 0),
        );
        cases.push(
            Case::kernel(format!("WRMSR of unknown {index:#x}"))
                .gpr(RCX, index.into())
                .probe(|a| a.wrmsr())
                .faults(13, 0),
        );
    }
    cases
}

/// An MSR of the state.
pub fn msr(state: &lockstep::engine::CpuState, index: u32) -> u64 {
    state.msrs.iter().find(|(other, _)| *other == index).map_or(0, |(_, value)| *value)
}

/// Sets an MSR of the state.
pub fn set_msr(state: &mut lockstep::engine::CpuState, index: u32, value: u64) {
    state.msrs.retain(|(other, _)| *other != index);
    state.msrs.push((index, value));
}

/// CPUID: nothing may be advertised that the engine refuses; here what the model promises or forbids.
fn identity() -> Vec<Case> {
    let leaf = |name: &str, eax_in: u32| {
        Case::user(format!("CPUID {name}"))
            .gpr(RAX, eax_in.into())
            .gpr(RCX, 0)
            .probe(|a| a.cpuid())
            .done()
            .not_on_kvm("the software CPU's model is meant")
            .incomparable()
    };
    let in_edx = |case: Case, what: &str, mask: u64, want: u64| {
        case.value(what, want, move |o, _| o.state.gpr[RDX] & mask)
    };
    let in_ecx = |case: Case, what: &str, mask: u64, want: u64| {
        case.value(what, want, move |o, _| o.state.gpr[RCX] & mask)
    };
    // FPU TSC MSR PAE CX8 SEP(no) PGE CMOV PAT FXSR SSE SSE2.
    let base = 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 13 | 1 << 15 | 1 << 24 | 1 << 25 | 1 << 26;
    vec![
        in_edx(leaf("1: the baseline", 1), "EDX", base, base),
        in_edx(leaf("1: no APIC, no DE", 1), "EDX", 1 << 9 | 1 << 2, 0),
        // XSAVE, OSXSAVE, AVX, PCID, x2APIC, TSC deadline, RDRAND, MONITOR, VMX, AES, PCLMULQDQ, FMA, F16C.
        in_ecx(
            leaf("1: what is not there", 1),
            "ECX",
            0x7f00_0000 | 1 << 17 | 1 << 21 | 1 << 3 | 1 << 5 | 1 << 1 | 1 << 12,
            0,
        ),
        // SMEP, SMAP, IA32_TSC_ADJUST; no FSGSBASE, BMI, AVX2, INVPCID, RDSEED, ADX, SHA and the like.
        leaf("7: what is there", 7).value("EBX", 1 << 1 | 1 << 7 | 1 << 20, |o, _| o.state.gpr[RBX]),
        // Nor protection keys, LA57, UMIP, CET.
        leaf("7: nothing else", 7).value("ECX and EDX", 0, |o, _| o.state.gpr[RCX] | o.state.gpr[RDX]),
        in_ecx(leaf("0x80000001: LAHF alone", 0x8000_0001), "ECX", u64::MAX, 1),
        Case::user("RDTSCP")
            .with(|s| set_msr(s, 0xc000_0103, 0x1234_5678))
            .gpr(RAX, u64::MAX)
            .gpr(RCX, u64::MAX)
            .gpr(RDX, u64::MAX)
            .probe(|a| a.rdtscp())
            .done()
            .leaves(RCX, 0x1234_5678)
            .value("upper halves", 0, |o, _| (o.state.gpr[RAX] | o.state.gpr[RDX]) >> 32)
            .not_on_kvm("its value at CPL3 may be the host's")
            .incomparable(),
        in_edx(
            leaf("0x80000001: SYSCALL, NX, LM", 0x8000_0001),
            "EDX",
            1 << 11 | 1 << 20 | 1 << 29,
            1 << 11 | 1 << 20 | 1 << 29,
        ),
        leaf("writes whole registers", 0).gpr(RBX, u64::MAX).gpr(RDX, u64::MAX).value(
            "upper halves",
            0,
            |o, _| [RAX, RBX, RCX, RDX].iter().map(|r| o.state.gpr[*r] >> 32).sum(),
        ),
        Case::user("RDRAND is refused")
            .probe(|a| a.rdrand(eax))
            .faults(6, None)
            .not_on_kvm("SVM cannot trap it"),
        Case::user("RDSEED is refused")
            .probe(|a| a.rdseed(eax))
            .faults(6, None)
            .not_on_kvm("SVM cannot trap it"),
        Case::kernel("XGETBV is refused").probe(|a| a.xgetbv()).faults(6, None),
        Case::kernel("XSAVE is refused").gpr(RBX, KERNEL_DATA).probe(|a| a.xsave(ptr(rbx))).faults(6, None),
        Case::kernel("MONITOR is refused").probe(|a| a.monitor()).faults(6, None),
        Case::kernel("VMXON is refused")
            .gpr(RBX, KERNEL_DATA)
            .probe(|a| a.vmxon(qword_ptr(rbx)))
            .faults(6, None),
        Case::kernel("INVPCID is refused")
            .gpr(RBX, KERNEL_DATA)
            .probe(|a| a.invpcid(rax, xmmword_ptr(rbx)))
            .faults(6, None),
        Case::kernel("RDFSBASE is refused")
            .probe(|a| a.rdfsbase(rax))
            .faults(6, None)
            .not_on(Host::Pvm, "the host's instruction works"),
        Case::user("RDTSC with CR4.TSD at CPL3")
            .with(|s| s.cr[3] |= CR4_TSD)
            .probe(|a| a.rdtsc())
            .faults(13, 0)
            .not_on(Host::Pvm, "CR4 bits without effect at CPL3"),
        Case::kernel("RDTSC with CR4.TSD at CPL0")
            .with(|s| s.cr[3] |= CR4_TSD)
            .probe(|a| a.rdtsc())
            .done()
            .incomparable(),
        Case::user("the counter advances by one for each instruction and iteration")
            .gpr(RDI, USER_DATA)
            .probe(|a| {
                a.rdtsc()?;
                a.mov(ebx, eax)?;
                a.mov(ecx, 5)?;
                a.rep().stosb()?;
                a.rdtsc()?;
                a.sub(eax, ebx)
            })
            .done()
            .leaves(RAX, 8)
            .not_on_kvm("its time is the host's")
            .incomparable(),
        Case::kernel("WBINVD changes nothing").probe(|a| a.wbinvd()).done(),
        Case::user("RDPMC without CR4.PCE").probe(|a| a.rdpmc()).faults(13, 0),
        Case::user("two RDTSCs: time does not stand still, nor go back")
            .probe(|a| {
                a.rdtsc()?;
                a.shl(rdx, 32)?;
                a.or(rax, rdx)?;
                a.mov(rbx, rax)?;
                a.rdtsc()?;
                a.shl(rdx, 32)?;
                a.or(rax, rdx)?;
                a.cmp(rax, rbx)?;
                a.seta(cl)
            })
            .done()
            .value("later", 1, |o, _| o.state.gpr[RCX] & 0xff)
            .incomparable(),
    ]
}

#[test]
fn control_registers_take_what_they_may() {
    run("control_registers", registers());
}

#[test]
fn model_specific_registers_keep_or_refuse_values() {
    run("msrs", msrs());
}

#[test]
fn what_is_not_advertised_is_refused() {
    run("identity", identity());
}
