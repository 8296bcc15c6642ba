//! The architectural state of one vCPU, the same on every engine: serialisable, comparable field by field.

use logchannel::codec;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

/// A segment register with its hidden part (Intel SDM vol. 3, 3.4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Segment {
    /// Visible selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u32,
    /// Access rights as in descriptor bits 40–55 (type, S, DPL, P, AVL, L, D/B, G), bit 16: unusable.
    pub access: u32,
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TableRegister {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// Events that are queued or being delivered between two instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PendingEvents {
    /// An exception is queued: vector and error code.
    pub exception: Option<(u8, Option<u32>)>,
    /// An external interrupt is queued: vector.
    pub interrupt: Option<u8>,
    /// Held off for one instruction, as KVM has it: 1 by MOV SS (interrupts, debug exceptions), 2 by STI.
    pub shadow: u8,
    /// An NMI is pending, and NMIs are masked.
    pub nmi: (bool, bool),
}

/// Everything that the vCPU will compute from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CpuState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8–R15 (encoding order).
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS, LDTR, TR.
    pub segments: [Segment; 8],
    /// GDTR.
    pub gdtr: TableRegister,
    /// IDTR.
    pub idtr: TableRegister,
    /// CR0, CR2, CR3, CR4, CR8.
    pub cr: [u64; 5],
    /// IA32_EFER.
    pub efer: u64,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// XCR0; 0 where the CPU model has no XSAVE.
    pub xcr0: u64,
    /// XSAVE area in standard format, components that are in their initial state zeroed (see
    /// `canonical_xsave`).
    pub xsave: Vec<u8>,
    /// DR0–DR3, DR6, DR7.
    pub dr: [u64; 6],
    /// The model's other MSRs: index and value.
    pub msrs: Vec<(u32, u64)>,
    /// Queued events.
    pub events: PendingEvents,
}

/// Names of `CpuState::gpr`.
pub const GPR_NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// Names of `CpuState::segments`.
pub const SEGMENT_NAMES: [&str; 8] = ["es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"];

impl CpuState {
    /// xxh3-64 of the canonical encoding.
    pub fn digest(&self) -> u64 {
        let bytes = codec::encode(self).expect("a vCPU state is far below the codec's limit");
        XxHash3_64::oneshot(&bytes)
    }

    /// The registers, for people, a few to a line.
    pub fn describe(&self) -> Vec<String> {
        let named = |names: &[&str], values: &[u64]| {
            let words: Vec<String> =
                names.iter().zip(values).map(|(name, value)| format!("{name} {value:016x}")).collect();
            words.chunks(4).map(|line| line.join("  ")).collect::<Vec<_>>()
        };
        let mut lines = named(&["rip", "rflags", "efer"], &[self.rip, self.rflags, self.efer]);
        lines.extend(named(&GPR_NAMES, &self.gpr));
        lines.extend(named(&["cr0", "cr2", "cr3", "cr4"], &self.cr));
        lines
    }

    /// The fields that differ, for people: `rax 0x1 -> 0x2`.
    pub fn diff(&self, other: &Self) -> Vec<String> {
        let mut out = Vec::new();
        let mut word = |name: &str, a: u64, b: u64| {
            if a != b {
                out.push(format!("{name} {a:#x} -> {b:#x}"));
            }
        };
        for (name, (a, b)) in GPR_NAMES.iter().zip(self.gpr.iter().zip(&other.gpr)) {
            word(name, *a, *b);
        }
        word("rip", self.rip, other.rip);
        word("rflags", self.rflags, other.rflags);
        for (name, (a, b)) in ["cr0", "cr2", "cr3", "cr4", "cr8"].iter().zip(self.cr.iter().zip(&other.cr)) {
            word(name, *a, *b);
        }
        word("efer", self.efer, other.efer);
        word("apic_base", self.apic_base, other.apic_base);
        word("xcr0", self.xcr0, other.xcr0);
        for (name, (a, b)) in
            ["dr0", "dr1", "dr2", "dr3", "dr6", "dr7"].iter().zip(self.dr.iter().zip(&other.dr))
        {
            word(name, *a, *b);
        }
        for (name, (a, b)) in SEGMENT_NAMES.iter().zip(self.segments.iter().zip(&other.segments)) {
            if a != b {
                out.push(format!("{name} {a:x?} -> {b:x?}"));
            }
        }
        let pairs = [("gdtr", self.gdtr, other.gdtr), ("idtr", self.idtr, other.idtr)];
        out.extend(pairs.iter().filter(|(_, a, b)| a != b).map(|(n, a, b)| format!("{n} {a:x?} -> {b:x?}")));
        if self.msrs != other.msrs {
            out.push(format!("msrs {:x?} -> {:x?}", self.msrs, other.msrs));
        }
        if self.events != other.events {
            out.push(format!("events {:?} -> {:?}", self.events, other.events));
        }
        for (offset, (a, b)) in self.xsave.chunks(16).zip(other.xsave.chunks(16)).enumerate() {
            if a != b {
                out.push(format!("xsave[{:#x}] {a:02x?} -> {b:02x?}", offset * 16));
            }
        }
        out
    }
}

const LEGACY_BYTES: usize = 512;
const MXCSR: std::ops::Range<usize> = 24..28;
const XSTATE_BV: usize = 512;
/// Offset and length of the AVX component in the standard format (SDM vol. 1, 13.4.2; AMD and Intel alike).
const AVX: std::ops::Range<usize> = 576..832;

/// Makes two XSAVE areas equal when they describe equal register contents (SDM vol. 1, 13.4–13.7): a
/// component whose XSTATE_BV bit is clear is in its initial state whatever its bytes say, and one whose bytes
/// are initial may have its bit set or clear. Whether a host shows the bit is no function of the guest's
/// execution.
pub fn canonical_xsave(mut area: Vec<u8>) -> Vec<u8> {
    if area.len() < AVX.end {
        return area;
    }
    let bv = u64::from_le_bytes(area[XSTATE_BV..XSTATE_BV + 8].try_into().expect("eight bytes"));
    if bv & 1 == 0 {
        area[..24].fill(0);
        area[32..160].fill(0);
        area[..2].copy_from_slice(&0x37fu16.to_le_bytes());
    }
    if bv & 2 == 0 {
        area[160..416].fill(0);
    }
    if bv & 4 == 0 {
        area[AVX].fill(0);
    }
    if bv & 6 == 0 && area[MXCSR] == [0; 4] {
        area[MXCSR].copy_from_slice(&0x1f80u32.to_le_bytes());
    }
    // MXCSR_MASK and the software-reserved bytes describe the host, not the guest.
    area[28..32].fill(0);
    area[416..LEGACY_BYTES].fill(0);
    let known = if area[AVX].iter().any(|b| *b != 0) { 7u64 } else { 3 };
    let bv = (bv & !7) | known;
    area[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&bv.to_le_bytes());
    area
}
