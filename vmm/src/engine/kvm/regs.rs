//! The vCPU's whole state, between KVM's structures and `CpuState`.

use std::arch::x86_64::__cpuid;

use kvm_bindings::{
    KVM_VCPUEVENT_VALID_SHADOW, Msrs, kvm_debugregs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{SyncReg, VcpuFd};

use super::{ioctl, msr};
use crate::engine::EngineError;
use crate::engine::state::{CpuState, PendingEvents, Segment, TableRegister, canonical_xsave};

fn segment(s: &kvm_segment) -> Segment {
    let access = u32::from(s.type_)
        | u32::from(s.s) << 4
        | u32::from(s.dpl) << 5
        | u32::from(s.present) << 7
        | u32::from(s.avl) << 12
        | u32::from(s.l) << 13
        | u32::from(s.db) << 14
        | u32::from(s.g) << 15
        | u32::from(s.unusable) << 16;
    Segment { selector: s.selector, base: s.base, limit: s.limit, access }
}

fn kvm_segment_of(s: &Segment) -> kvm_segment {
    let bit = |n: u32| (s.access >> n & 1) as u8;
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: (s.access & 15) as u8,
        present: bit(7),
        dpl: (s.access >> 5 & 3) as u8,
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: bit(16),
        padding: 0,
    }
}

fn events(e: &kvm_vcpu_events) -> PendingEvents {
    let exception = e.exception.injected != 0 || e.exception.pending != 0;
    PendingEvents {
        exception: exception
            .then(|| (e.exception.nr, (e.exception.has_error_code != 0).then_some(e.exception.error_code))),
        interrupt: (e.interrupt.injected != 0).then_some(e.interrupt.nr),
        shadow: e.interrupt.shadow,
        nmi: (e.nmi.pending != 0 || e.nmi.injected != 0, e.nmi.masked != 0),
    }
}

/// Reads everything. SYNC_REGS has brought the general and system registers with the last exit; they are
/// asked anew here because the exit has been completed since.
pub fn save(vcpu: &VcpuFd) -> Result<CpuState, EngineError> {
    let r = ioctl("KVM_GET_REGS", vcpu.get_regs())?;
    let s = ioctl("KVM_GET_SREGS", vcpu.get_sregs())?;
    let xsave = ioctl("KVM_GET_XSAVE", vcpu.get_xsave())?;
    let xcrs = vcpu.get_xcrs().unwrap_or_default();
    let d = ioctl("KVM_GET_DEBUGREGS", vcpu.get_debug_regs())?;
    let e = ioctl("KVM_GET_VCPU_EVENTS", vcpu.get_vcpu_events())?;
    let wanted: Vec<_> =
        msr::SAVED.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
    let mut msrs = Msrs::from_entries(&wanted).map_err(|_| EngineError::Missing("room for the MSRs"))?;
    let read = ioctl("KVM_GET_MSRS", vcpu.get_msrs(&mut msrs))?;
    Ok(CpuState {
        gpr: [
            r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
            r.r14, r.r15,
        ],
        rip: r.rip,
        rflags: r.rflags,
        segments: [&s.es, &s.cs, &s.ss, &s.ds, &s.fs, &s.gs, &s.ldt, &s.tr].map(segment),
        gdtr: TableRegister { base: s.gdt.base, limit: s.gdt.limit },
        idtr: TableRegister { base: s.idt.base, limit: s.idt.limit },
        cr: [s.cr0, s.cr2, s.cr3, s.cr4, s.cr8],
        efer: s.efer,
        apic_base: s.apic_base,
        xcr0: xcrs.xcrs[..xcrs.nr_xcrs.min(16) as usize].iter().find(|x| x.xcr == 0).map_or(0, |x| x.value),
        xsave: canonical_xsave(xsave.region.iter().flat_map(|w| w.to_le_bytes()).collect()),
        dr: [d.db[0], d.db[1], d.db[2], d.db[3], d.dr6, d.dr7],
        msrs: msrs.as_slice()[..read].iter().map(|m| (m.index, m.data)).collect(),
        events: events(&e),
    })
}

/// The bit that tells a busy TSS from an available one (SDM vol. 3, 8.2.2).
const TSS_BUSY: u8 = 2;

/// Whether the host's processor is QEMU's software emulation (`tests/nested`). Its I/O permission check asks
/// for an *available* TSS in TR (`helper_check_io`), which LTR leaves there in QEMU, but on no processor:
/// there TR is always busy, and VMX refuses any other. kvm_amd reads TR back as busy whatever it is, so that
/// no saved state can tell.
fn emulated_by_qemu() -> bool {
    let hypervisor = __cpuid(0x4000_0000);
    [hypervisor.ebx, hypervisor.ecx, hypervisor.edx].map(u32::to_le_bytes) == [*b"TCGT", *b"CGTC", *b"GTCG"]
}

/// Writes everything, and forgets whatever the vCPU had queued.
pub fn restore(vcpu: &mut VcpuFd, state: &CpuState) -> Result<(), EngineError> {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = state.gpr;
    let (rip, rflags) = (state.rip, state.rflags);
    let regs = kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    };
    let [es, cs, ss, ds, fs, gs, ldt, mut tr] = state.segments.each_ref().map(kvm_segment_of);
    if emulated_by_qemu() {
        tr.type_ &= !TSS_BUSY;
    }
    let table = |t: &TableRegister| kvm_dtable { base: t.base, limit: t.limit, ..Default::default() };
    let sregs = kvm_sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt: table(&state.gdtr),
        idt: table(&state.idtr),
        cr0: state.cr[0],
        cr2: state.cr[1],
        cr3: state.cr[2],
        cr4: state.cr[3],
        cr8: state.cr[4],
        efer: state.efer,
        apic_base: state.apic_base,
        interrupt_bitmap: [0; 4],
    };
    ioctl("KVM_SET_SREGS", vcpu.set_sregs(&sregs))?;
    ioctl("KVM_SET_REGS", vcpu.set_regs(&regs))?;
    restore_extended(vcpu, state)?;
    let (shadow, interrupt) = (state.events.shadow, state.events.interrupt);
    let mut events = kvm_vcpu_events { flags: KVM_VCPUEVENT_VALID_SHADOW, ..Default::default() };
    (events.interrupt.injected, events.interrupt.nr) =
        (u8::from(interrupt.is_some()), interrupt.unwrap_or(0));
    events.interrupt.shadow = shadow;
    if let Some((vector, error)) = state.events.exception {
        (events.exception.injected, events.exception.nr) = (1, vector);
        (events.exception.has_error_code, events.exception.error_code) =
            (u8::from(error.is_some()), error.unwrap_or(0));
    }
    (events.nmi.pending, events.nmi.masked) = (u8::from(state.events.nmi.0), u8::from(state.events.nmi.1));
    ioctl("KVM_SET_VCPU_EVENTS", vcpu.set_vcpu_events(&events))?;
    vcpu.clear_sync_dirty_reg(SyncReg::Register);
    vcpu.clear_sync_dirty_reg(SyncReg::SystemRegister);
    Ok(())
}

fn restore_extended(vcpu: &VcpuFd, state: &CpuState) -> Result<(), EngineError> {
    if state.xcr0 != 0 {
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        xcrs.xcrs[0].value = state.xcr0;
        ioctl("KVM_SET_XCRS", vcpu.set_xcrs(&xcrs))?;
    }
    if !state.xsave.is_empty() {
        let mut area = kvm_xsave::default();
        for (word, bytes) in area.region.iter_mut().zip(state.xsave.chunks_exact(4)) {
            *word = u32::from_le_bytes(bytes.try_into().expect("four bytes"));
        }
        // SAFETY: no dynamically enabled feature makes the area larger than kvm_xsave.
        ioctl("KVM_SET_XSAVE", unsafe { vcpu.set_xsave(&area) })?;
    }
    let [d0, d1, d2, d3, dr6, dr7] = state.dr;
    let debug = kvm_debugregs { db: [d0, d1, d2, d3], dr6, dr7, ..Default::default() };
    ioctl("KVM_SET_DEBUGREGS", vcpu.set_debug_regs(&debug))?;
    let entries: Vec<_> =
        state.msrs.iter().map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
    let msrs = Msrs::from_entries(&entries).map_err(|_| EngineError::Missing("room for the MSRs"))?;
    ioctl("KVM_SET_MSRS", vcpu.set_msrs(&msrs))?;
    Ok(())
}
