//! The architectural state of the processor: complete, serialisable, comparable field by field.

use serde::{Deserialize, Serialize};

/// Index of a segment register in `State::segments`, in encoding order (SDM vol. 2, 2.1.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Seg {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
    Ldtr,
    Tr,
}

/// A segment register with its hidden part (SDM vol. 3, 3.4.3).
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

impl Segment {
    /// Bit of `access`: present.
    pub const PRESENT: u32 = 1 << 7;
    /// Bit of `access`: 64-bit code.
    pub const LONG: u32 = 1 << 13;
    /// Bit of `access`: 32-bit code, stack or data.
    pub const BIG: u32 = 1 << 14;
    /// Bit of `access`: limit in pages.
    pub const GRANULARITY: u32 = 1 << 15;
    /// Bit of `access`: a null selector was loaded.
    pub const UNUSABLE: u32 = 1 << 16;

    /// Descriptor privilege level.
    pub fn dpl(&self) -> u8 {
        (self.access >> 5 & 3) as u8
    }
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Table {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// Model-specific registers (SDM vol. 4). FS and GS base live in `State::segments`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Msrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub tsc_aux: u64,
    pub pat: u64,
    pub misc_enable: u64,
    pub tsc_adjust: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
}

/// What an instruction holds off for the next one (SDM vol. 3, 6.8.3), numbered as KVM numbers it, which
/// has no number for `Watched`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Shadow {
    /// Nothing.
    #[default]
    None,
    /// Interrupts and debug exceptions: MOV SS, POP SS.
    Stack,
    /// Interrupts: STI.
    Interrupts,
    /// As `Stack`, after data breakpoints were hit: they are in DR6, and trap after the next instruction.
    Watched = 5,
}

/// The x87 unit, as FXSAVE shows it (SDM vol. 1, 10.5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fpu {
    /// Control word.
    pub cw: u16,
    /// Status word; TOP in bits 11–13.
    pub sw: u16,
    /// Abridged tag word by physical register: bit set = not empty.
    pub tag: u8,
    /// Last opcode, 11 bits.
    pub fop: u16,
    /// Last instruction pointer.
    pub fip: u64,
    /// Last data pointer.
    pub fdp: u64,
    /// ST0 to ST7, 80 bits each, little endian.
    pub st: [[u8; 10]; 8],
}

impl Default for Fpu {
    fn default() -> Self {
        Self { cw: 0x37f, sw: 0, tag: 0, fop: 0, fip: 0, fdp: 0, st: [[0; 10]; 8] }
    }
}

/// Everything that the processor computes from, RAM excepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8–R15 (encoding order).
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS, LDTR, TR.
    pub segments: [Segment; 8],
    /// GDTR.
    pub gdtr: Table,
    /// IDTR.
    pub idtr: Table,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8.
    pub cr8: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// DR0–DR3, DR6, DR7.
    pub dr: [u64; 6],
    /// Model-specific registers.
    pub msrs: Msrs,
    /// x87.
    pub fpu: Fpu,
    /// XMM0–XMM15.
    pub xmm: [u128; 16],
    /// MXCSR.
    pub mxcsr: u32,
    /// What is held off for one instruction.
    pub shadow: Shadow,
    /// An external interrupt that `inject` queued.
    pub interrupt: Option<u8>,
    /// Time-stamp counter minus position.
    pub tsc_offset: i64,
}

impl Default for State {
    /// All zero but what must not be: RFLAGS bit 1, MXCSR, the x87 control word, DR6 and DR7.
    fn default() -> Self {
        Self {
            gpr: [0; 16],
            rip: 0,
            rflags: 2,
            segments: [Segment::default(); 8],
            gdtr: Table::default(),
            idtr: Table::default(),
            cr0: 0x10,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            efer: 0,
            dr: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
            // Fast string operations are on.
            msrs: Msrs { pat: 0x0007_0406_0007_0406, misc_enable: 1, ..Msrs::default() },
            fpu: Fpu::default(),
            xmm: [0; 16],
            mxcsr: 0x1f80,
            shadow: Shadow::None,
            interrupt: None,
            tsc_offset: 0,
        }
    }
}

/// Names of `State::gpr`.
pub const GPR_NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// Names of `State::segments`.
pub const SEGMENT_NAMES: [&str; 8] = ["es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"];

impl State {
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
        word("cr0", self.cr0, other.cr0);
        word("cr2", self.cr2, other.cr2);
        word("cr3", self.cr3, other.cr3);
        word("cr4", self.cr4, other.cr4);
        word("cr8", self.cr8, other.cr8);
        word("efer", self.efer, other.efer);
        word("mxcsr", u64::from(self.mxcsr), u64::from(other.mxcsr));
        word("tsc_offset", self.tsc_offset as u64, other.tsc_offset as u64);
        word("shadow", self.shadow as u64, other.shadow as u64);
        for (name, (a, b)) in SEGMENT_NAMES.iter().zip(self.segments.iter().zip(&other.segments)) {
            if a != b {
                out.push(format!("{name} {a:x?} -> {b:x?}"));
            }
        }
        for (number, (a, b)) in self.xmm.iter().zip(&other.xmm).enumerate() {
            if a != b {
                out.push(format!("xmm{number} {a:#034x} -> {b:#034x}"));
            }
        }
        let mut text = |name: &str, a: String, b: String| {
            if a != b {
                out.push(format!("{name} {a} -> {b}"));
            }
        };
        text("gdtr", format!("{:x?}", self.gdtr), format!("{:x?}", other.gdtr));
        text("idtr", format!("{:x?}", self.idtr), format!("{:x?}", other.idtr));
        text("dr", format!("{:x?}", self.dr), format!("{:x?}", other.dr));
        text("msrs", format!("{:x?}", self.msrs), format!("{:x?}", other.msrs));
        text("fpu", format!("{:x?}", self.fpu), format!("{:x?}", other.fpu));
        text("interrupt", format!("{:x?}", self.interrupt), format!("{:x?}", other.interrupt));
        out
    }
}
