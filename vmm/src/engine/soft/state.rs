//! The processor's state in the engines' common form, and back.

use softcpu::{Fpu, Shadow, State, Table};

use crate::engine::CpuState;
use crate::engine::state::{PendingEvents, Segment, TableRegister, canonical_xsave};

/// MSRs of the saved state, as the KVM engine has them and in its order, then those that only this processor
/// has.
mod msr {
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const PAT: u32 = 0x277;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const SFMASK: u32 = 0xc000_0084;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const TSC: u32 = 0x10;
}

/// Size of KVM's XSAVE area, so that states of both engines compare.
const XSAVE_BYTES: usize = 4096;
const LEGACY_BYTES: usize = 512;
const XSTATE_BV: usize = 512;
const X87_AND_SSE: u8 = 3;
const ST: usize = 32;
const XMM: usize = 160;

fn segment_to(segment: &softcpu::Segment) -> Segment {
    let softcpu::Segment { selector, base, limit, access } = *segment;
    Segment { selector, base, limit, access }
}

fn segment_from(segment: &Segment) -> softcpu::Segment {
    let Segment { selector, base, limit, access } = *segment;
    softcpu::Segment { selector, base, limit, access }
}

fn xsave(state: &State) -> Vec<u8> {
    let mut area = vec![0; XSAVE_BYTES];
    let fpu = &state.fpu;
    let mut put = |at: usize, bytes: &[u8]| area[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &fpu.cw.to_le_bytes());
    put(2, &fpu.sw.to_le_bytes());
    put(4, &[fpu.tag]);
    put(6, &fpu.fop.to_le_bytes());
    put(8, &fpu.fip.to_le_bytes());
    put(16, &fpu.fdp.to_le_bytes());
    put(24, &state.mxcsr.to_le_bytes());
    for (number, register) in fpu.st.iter().enumerate() {
        put(ST + 16 * number, register);
    }
    for (number, register) in state.xmm.iter().enumerate() {
        put(XMM + 16 * number, &register.to_le_bytes());
    }
    put(XSTATE_BV, &[X87_AND_SSE]);
    canonical_xsave(area)
}

/// Reads the legacy area of an XSAVE image; one too short for it leaves the initial state.
fn set_xsave(state: &mut State, area: &[u8]) {
    let area = canonical_xsave(area.to_vec());
    if area.len() < LEGACY_BYTES {
        return;
    }
    fn get<const N: usize>(area: &[u8], at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&area[at..at + N]);
        bytes
    }
    state.fpu = Fpu {
        cw: u16::from_le_bytes(get(&area, 0)),
        sw: u16::from_le_bytes(get(&area, 2)),
        tag: area[4],
        fop: u16::from_le_bytes(get(&area, 6)),
        fip: u64::from_le_bytes(get(&area, 8)),
        fdp: u64::from_le_bytes(get(&area, 16)),
        st: std::array::from_fn(|number| get(&area, ST + 16 * number)),
    };
    // Its upper half is reserved, and a processor refuses to load it.
    state.mxcsr = u32::from_le_bytes(get(&area, 24)) & 0xffff;
    state.xmm = std::array::from_fn(|number| u128::from_le_bytes(get(&area, XMM + 16 * number)));
}

/// The state at `position` for everybody.
pub fn to_engine(state: &State, position: u64) -> CpuState {
    let table = |table: &Table| TableRegister { base: table.base, limit: table.limit };
    let m = &state.msrs;
    CpuState {
        gpr: state.gpr,
        rip: state.rip,
        rflags: state.rflags,
        segments: state.segments.each_ref().map(segment_to),
        gdtr: table(&state.gdtr),
        idtr: table(&state.idtr),
        cr: [state.cr0, state.cr2, state.cr3, state.cr4, state.cr8],
        efer: state.efer,
        apic_base: 0,
        xcr0: 0,
        xsave: xsave(state),
        dr: state.dr,
        msrs: vec![
            (msr::SYSENTER_CS, m.sysenter_cs),
            (msr::SYSENTER_ESP, m.sysenter_esp),
            (msr::SYSENTER_EIP, m.sysenter_eip),
            (msr::PAT, m.pat),
            (msr::STAR, m.star),
            (msr::LSTAR, m.lstar),
            (msr::CSTAR, m.cstar),
            (msr::SFMASK, m.sfmask),
            (msr::KERNEL_GS_BASE, m.kernel_gs_base),
            (msr::TSC_AUX, m.tsc_aux),
            (msr::MISC_ENABLE, m.misc_enable),
            (msr::TSC_ADJUST, m.tsc_adjust),
            (msr::TSC, position.wrapping_add_signed(state.tsc_offset)),
        ],
        events: PendingEvents {
            interrupt: state.interrupt,
            shadow: state.shadow as u8,
            ..PendingEvents::default()
        },
    }
}

/// A first state, with the time stamp counter of a processor just powered on.
pub fn from_power_on(first: &CpuState) -> CpuState {
    let mut state = first.clone();
    state.msrs.push((msr::TSC, 0));
    state
}

/// The processor's state of one that may come from a peer. What the model does not have is left out.
pub fn from_engine(from: &CpuState, position: u64) -> State {
    let table = |table: &TableRegister| Table { base: table.base, limit: table.limit };
    let [cr0, cr2, cr3, cr4, cr8] = from.cr;
    let mut state = State {
        gpr: from.gpr,
        rip: from.rip,
        rflags: from.rflags,
        segments: from.segments.each_ref().map(segment_from),
        gdtr: table(&from.gdtr),
        idtr: table(&from.idtr),
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer: from.efer,
        dr: from.dr,
        shadow: match from.events.shadow {
            0 => Shadow::None,
            1 => Shadow::Stack,
            5 => Shadow::Watched,
            _ => Shadow::Interrupts,
        },
        interrupt: from.events.interrupt,
        ..State::default()
    };
    set_xsave(&mut state, &from.xsave);
    for (index, value) in &from.msrs {
        let m = &mut state.msrs;
        let register = match *index {
            msr::SYSENTER_CS => &mut m.sysenter_cs,
            msr::SYSENTER_ESP => &mut m.sysenter_esp,
            msr::SYSENTER_EIP => &mut m.sysenter_eip,
            msr::PAT => &mut m.pat,
            msr::STAR => &mut m.star,
            msr::LSTAR => &mut m.lstar,
            msr::CSTAR => &mut m.cstar,
            msr::SFMASK => &mut m.sfmask,
            msr::KERNEL_GS_BASE => &mut m.kernel_gs_base,
            msr::TSC_AUX => &mut m.tsc_aux,
            msr::MISC_ENABLE => &mut m.misc_enable,
            msr::TSC_ADJUST => &mut m.tsc_adjust,
            msr::TSC => {
                state.tsc_offset = value.wrapping_sub(position) as i64;
                continue;
            }
            _ => continue,
        };
        *register = *value;
    }
    state
}
