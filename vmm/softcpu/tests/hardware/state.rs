//! What a test vector is, and what came of it: user-level state, memory, and how the instruction ended.

use std::fmt::Write;

/// Linear address of the two code pages.
pub const CODE: u64 = 0x1000_0000;
/// Bytes of code.
pub const CODE_BYTES: usize = 0x2000;
/// Linear address of the first data page.
///
/// ```text
///  page   0      1     2     3      4     5     6     7
///         absent rw    rw    absent rw    ro    rw    absent
/// ```
pub const DATA: u64 = 0x2000_0000;
/// Bytes of a page.
pub const PAGE: u64 = 0x1000;
/// Present data pages: page number and whether it can be written.
pub const PAGES: [(u64, bool); 5] = [(1, true), (2, true), (4, true), (5, false), (6, true)];
/// Bytes in all present data pages.
pub const DATA_BYTES: usize = PAGES.len() * PAGE as usize;

/// Where `linear` lies in the bytes of the present data pages.
pub fn data_offset(linear: u64) -> Option<usize> {
    let (page, offset) = (linear.wrapping_sub(DATA) / PAGE, linear % PAGE);
    let slot = PAGES.iter().position(|(n, _)| *n == page)?;
    Some(slot * PAGE as usize + offset as usize)
}

/// The linear address of a byte of the present data pages.
pub fn data_address(offset: usize) -> u64 {
    DATA + PAGES[offset / PAGE as usize].0 * PAGE + offset as u64 % PAGE
}

/// What user code sees of a CPU.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub cw: u16,
    pub sw: u16,
    /// One bit a physical register, 1 = holds something (as in FXSAVE).
    pub tag: u8,
    /// ST(0) first.
    pub st: [[u8; 10]; 8],
    pub xmm: [u128; 16],
    pub mxcsr: u32,
}

/// How far an instruction is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// One instruction, or one iteration of a repeated one.
    Step,
    /// To its end: the next instruction is INT3.
    Breakpoint,
}

/// One instruction and everything it can see.
#[derive(Debug, Clone)]
pub struct Vector {
    pub code: Vec<u8>,
    pub user: User,
    /// Data bytes that differ from the usual ones.
    pub patches: Vec<(u64, Vec<u8>)>,
    pub stop: Stop,
}

/// How an instruction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Retired,
    /// Vector, error code, and CR2 of a page fault.
    Fault {
        vector: u8,
        error: u32,
        cr2: u64,
    },
    /// It did what no user instruction can.
    Lost,
}

impl End {
    /// With these bits of CR2 left out.
    fn masked(self, bits: u64) -> Self {
        match self {
            Self::Fault { vector, error, cr2 } => Self::Fault { vector, error, cr2: cr2 & !bits },
            other => other,
        }
    }
}

/// What an executor made of a vector; the data bytes stay in the executor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub end: End,
    pub user: User,
}

/// What is compared of two outcomes: a set bit is left out.
#[derive(Debug, Clone, Default)]
pub struct Mask {
    pub rflags: u64,
    /// Bits of registers: number and mask.
    pub gpr: Vec<(usize, u64)>,
    pub sw: u16,
    /// Status and tag word and the registers' order.
    pub x87: bool,
    pub mxcsr: u32,
    /// Bits of CR2.
    pub cr2: u64,
    /// Data bytes: linear address and count.
    pub memory: Vec<(u64, u64)>,
}

/// The bit of RFLAGS that the way of stopping sets: TF.
const STOPPING_FLAGS: u64 = 1 << 8;

/// Names of `User::gpr`.
pub const GPR_NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// Differences of two outcomes, one a line: `name: before -> host | softcpu`; empty if they are equal.
pub fn differences(vector: &Vector, host: (&Outcome, &[u8]), soft: (&Outcome, &[u8]), mask: &Mask) -> String {
    let mut out = String::new();
    let ((h, host_data), (s, soft_data)) = (host, soft);
    let before = &vector.user;
    if h.end.masked(mask.cr2) != s.end.masked(mask.cr2) {
        let _ = writeln!(out, "    end: {:x?} | {:x?}", h.end, s.end);
    }
    let mut line = |name: &str, before: u128, host: u128, soft: u128| {
        if host != soft {
            let _ = writeln!(out, "    {name}: {before:x} -> {host:x} | {soft:x}");
        }
    };
    for (n, name) in GPR_NAMES.iter().enumerate() {
        let keep = !mask.gpr.iter().filter(|(m, _)| *m == n).fold(0, |all, (_, bits)| all | bits);
        line(name, before.gpr[n].into(), (h.user.gpr[n] & keep).into(), (s.user.gpr[n] & keep).into());
    }
    line("rip", before.rip.into(), h.user.rip.into(), s.user.rip.into());
    let keep = !(mask.rflags | STOPPING_FLAGS);
    line("rflags", before.rflags.into(), (h.user.rflags & keep).into(), (s.user.rflags & keep).into());
    let keep = if mask.x87 { 0 } else { !mask.sw };
    line("sw", before.sw.into(), (h.user.sw & keep).into(), (s.user.sw & keep).into());
    line("cw", before.cw.into(), h.user.cw.into(), s.user.cw.into());
    let x87 = u128::from(!mask.x87);
    line("tag", before.tag.into(), u128::from(h.user.tag) * x87, u128::from(s.user.tag) * x87);
    let [h_mxcsr, s_mxcsr] = [h, s].map(|outcome| outcome.user.mxcsr & !mask.mxcsr);
    line("mxcsr", before.mxcsr.into(), h_mxcsr.into(), s_mxcsr.into());
    for n in 0..8 {
        let [b, h, s] = [&before.st[n], &h.user.st[n], &s.user.st[n]].map(wide);
        line(&format!("st{n}"), b, h * x87, s * x87);
    }
    for n in 0..16 {
        line(&format!("xmm{n}"), before.xmm[n], h.user.xmm[n], s.user.xmm[n]);
    }
    if host_data != soft_data {
        let left_out = |at: u64| mask.memory.iter().any(|(from, count)| at.wrapping_sub(*from) < *count);
        let bytes = host_data.iter().zip(soft_data).enumerate().filter(|(_, (h, s))| h != s);
        let bytes = bytes.map(|(n, (h, s))| (data_address(n), h, s)).filter(|(at, ..)| !left_out(*at));
        for (at, h, s) in bytes.take(16) {
            let _ = writeln!(out, "    [{at:x}]: {h:02x} | {s:02x}");
        }
    }
    out
}

fn wide(bytes: &[u8; 10]) -> u128 {
    let mut all = [0; 16];
    all[..10].copy_from_slice(bytes);
    u128::from_le_bytes(all)
}
