//! Whether this host's processor makes of each form that is copied what the interpreter makes of it.
//!
//! A program of samples (`samples`) is run by the interpreter and translated, and what they leave is
//! compared: once per process, before the first block is translated. A form whose results differ is not
//! copied in this process. Digests of the results are pinned by tests, so that hosts of all kinds agree.

use std::sync::OnceLock;

use iced_x86::Code;

use super::Native;
use super::samples::{Extent, MXCSR, Program, SET, VECTORS, program};
use crate::ram::PAGE;
use crate::{Cpu, Exit, Segment, State};

/// ```text
///  0        PML4, PDPT, page directory, two pages of operands
///  CODE     the program
///  RESULTS  of each set of operands
/// ```
const OPERANDS: usize = 0x3000;
const SCRATCH: usize = 0x4000;
const CODE: usize = 0x1_0000;
/// Of a page directory's entry: no address beyond is used.
const RAM: usize = 2 << 20;
/// More steps than a page of any program takes.
const STEPS: u64 = PAGE;

/// Digest of the brief program's results on every host.
pub const PINNED: u64 = 0xf423_9c86_2f2c_fdbe;

/// Sets of operands.
pub const SETS: usize = 4;
/// The same at the start of a process.
const BRIEF_SETS: usize = 2;

/// General registers RAX, RCX, RDX, RBX, of which RBX is not used; MXCSR; a byte for flags; RSI, RDI. Each
/// condition is met by the flags of one set or another.
const GENERAL: [[u64; 8]; SETS] = [
    [0x0000_0000_9234_5678, 0x05, 0x2, 0, 0x1f80, 0xd5, 0x8000_0000_7fff_5f85, 0x0123_4567_89ab_cdef],
    [0xffff_ffff_8000_0000, 0x43, 0xf0f0, 0, 0x1f80, 0x70, 0x0000_0001_0000_0002, 0xffff_ffff_ffff_fff0],
    [0x7fff_ffff_ffff_ff80, 0x20, 0x1, 0, 0x1f80, 0xe0, 0xfedc_ba98_0000_8001, 0x0000_0000_0000_0080],
    [0x0000_0000_0000_0000, 0x81, 0x0, 0, 0x1f80, 0x80, 0x5555_5555_aaaa_aaaa, 0x8000_0000_0000_0000],
];
/// XMM0 to XMM2, and the operand in memory: numbers as integers, singles and doubles; what is too large, too
/// small, or none; text.
const XMM: [[u128; 4]; SETS] = [
    [
        0x8080_8000_7fff_ff01_8000_0006_0000_0003,
        0xc008_8000_3f9d_70a4_4010_0000_40a0_0000,
        0x4021_999a_c0c9_999a_3fe8_0000_4048_f5c3,
        0x0706_8504_0382_0100_8f0e_0d0c_0b8a_0908,
    ],
    [
        0xffff_ffff_0000_0000_8000_0000_7f00_00ff,
        0x3f80_0000_c049_0fdb_4b7f_ffff_3eaa_aaab,
        0xbf00_0000_4049_0fdb_4e80_0001_3f8c_cccd,
        0x3f00_0000_4120_0000_447a_0000_c2c8_0000,
    ],
    [
        0x0000_0000_0000_0004_0000_0000_0000_0008,
        0x7f80_0000_0000_0001_8000_0000_7f7f_ffff,
        0x3f80_0001_0080_0000_4000_0000_7f7f_fffe,
        0x0012_3456_789a_bcde_ffef_ffff_ffff_ffff,
    ],
    [
        0x6162_6300_6465_6667_7a59_5857_0041_4243,
        0x7fc0_1234_4f00_0000_5f00_0000_df00_0000,
        0x6162_6300_6465_6667_4142_4300_5758_595a,
        0x7ff8_0000_0000_1234_4059_0000_0000_0007,
    ],
];

/// Results of the program: for each set of operands, in the order of `Sample::results`.
type Results = Vec<Vec<u8>>;

/// What the self-test of this process found.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Forms whose results differ: they are interpreted.
    pub refused: Vec<Code>,
    /// The translated program did something else altogether.
    pub astray: bool,
    /// Digest of what the interpreter made of the brief program.
    pub digest: u64,
}

static FOUND: OnceLock<Found> = OnceLock::new();

/// The self-test of this process, which is made if it was not yet.
pub fn found() -> &'static Found {
    FOUND.get_or_init(|| {
        let brief = Comparison::new(Extent::Brief, BRIEF_SETS);
        let digest = digest(&brief.interpreted);
        if brief.is_equal() {
            return Found { digest, ..Found::default() };
        }
        let mut refused = brief.differing();
        refused.extend(Comparison::new(Extent::Full, SETS).differing());
        refused.sort_unstable();
        refused.dedup();
        Found { astray: refused.is_empty(), refused, digest }
    })
}

/// Whether the self-test refused a form. False until there was one.
pub fn is_refused(code: Code) -> bool {
    FOUND.get().is_some_and(|found| !found.refused.is_empty() && found.refused.contains(&code))
}

/// FNV-1a of all results.
pub fn digest(results: &Results) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    results.iter().flatten().fold(0xcbf2_9ce4_8422_2325, step)
}

/// The program run by both tiers.
pub struct Comparison {
    pub program: Program,
    pub interpreted: Results,
    /// `None` where the host lets nothing be translated.
    pub translated: Option<Results>,
    /// Share of the instructions of the last that ran as the host's.
    pub native: f64,
}

impl Comparison {
    /// Runs the program with the first `sets` of operands.
    pub fn new(extent: Extent, sets: usize) -> Self {
        Self::prepared(extent, sets, |_| {})
    }

    fn prepared(extent: Extent, sets: usize, prepare: impl FnOnce(&mut Cpu)) -> Self {
        let program = program(CODE as u64, extent);
        let mut bench = Bench::new(&program);
        let interpreted = bench.run(&program, sets, 1).expect("the interpreter executes it to its end");
        let mut comparison = Self { program, interpreted, translated: None, native: 0.0 };
        if let Ok(native) = Native::new(1) {
            bench.cpu.native = Some(native);
            bench.cpu.drop_all_code();
            let before = bench.cpu.retired();
            prepare(&mut bench.cpu);
            // One that does not come to its end is equal to nothing.
            comparison.translated = Some(bench.run(&comparison.program, sets, 2).unwrap_or_default());
            let executed = bench.cpu.statistics().native_instructions;
            comparison.native = executed as f64 / (bench.cpu.retired() - before) as f64;
        }
        comparison
    }

    fn is_equal(&self) -> bool {
        self.translated.as_ref().is_none_or(|translated| *translated == self.interpreted)
    }

    /// Forms that leave something else when translated.
    pub fn differing(&self) -> Vec<Code> {
        let Some(translated) = &self.translated else { return Vec::new() };
        let differs = |range: &std::ops::Range<usize>| {
            self.interpreted.iter().zip(translated).any(|(a, b)| a[range.clone()] != b[range.clone()])
        };
        let samples = self.program.samples.iter();
        samples.filter(|sample| differs(&sample.results)).map(|sample| sample.code).collect()
    }
}

/// A processor, and RAM with the program.
struct Bench {
    ram: Box<[u8]>,
    cpu: Box<Cpu>,
}

impl Bench {
    fn new(program: &Program) -> Self {
        let mut ram = vec![0u8; RAM].into_boxed_slice();
        for (at, entry) in [(0, 0x1003u64), (0x1000, 0x2003), (0x2000, 0x83)] {
            ram[at..][..8].copy_from_slice(&entry.to_le_bytes());
        }
        ram[CODE..][..program.bytes.len()].copy_from_slice(&program.bytes);
        for (set, (general, xmm)) in GENERAL.iter().zip(XMM).enumerate() {
            let at = OPERANDS + set * SET;
            // RSI and RDI are numbers 6 and 7; MXCSR and the flags take the places of RSP and RBP.
            for (number, value) in general.iter().enumerate() {
                ram[at + 8 * number..][..8].copy_from_slice(&value.to_le_bytes());
            }
            for (number, value) in xmm.iter().enumerate() {
                ram[at + usize::from(VECTORS) + 16 * number..][..16].copy_from_slice(&value.to_le_bytes());
            }
        }
        // SAFETY: the RAM lives as long as the processor, and is touched only between its runs.
        let cpu = unsafe { Cpu::new(ram.as_mut_ptr(), RAM) };
        Self { ram, cpu }
    }

    /// Runs the program with each set of operands, with the first so many times; `None` if it does not end as
    /// it should.
    fn run(&mut self, program: &Program, sets: usize, passes: usize) -> Option<Results> {
        let end = RAM - 0x1000;
        let first = end - program.results;
        assert!(CODE + program.bytes.len() <= first & !0xfff, "room for results");
        self.cpu.set_state(&state(0, end));
        let run = |set: usize| {
            let state = state(set, end);
            // Where a page is found first, the rest of a block is interpreted.
            for _ in 0..if set == 0 { passes } else { 1 } {
                self.ram[first..end].fill(0);
                self.cpu.regs[..16].copy_from_slice(&state.gpr);
                self.cpu.rip = state.rip;
                if !self.pass(program) || self.cpu.regs[4] != first as u64 {
                    return None;
                }
            }
            Some(self.ram[first..end].iter().rev().copied().collect())
        };
        (0..sets).map(run).collect()
    }

    /// Runs the program to its last HLT.
    fn pass(&mut self, program: &Program) -> bool {
        let end = (CODE + program.bytes.len()) as u64;
        while self.cpu.run(self.cpu.retired() + STEPS) == Exit::Hlt {
            if self.cpu.rip == end {
                return true;
            }
        }
        false
    }
}

/// 64-bit code at CPL 0.
fn state(set: usize, stack: usize) -> State {
    let flat = |selector, access| Segment { selector, base: 0, limit: u32::MAX, access };
    let mut state = State { rip: CODE as u64, cr0: 0x8005_0033, cr4: 0x6a0, efer: 0xd01, ..State::default() };
    state.segments[..6].fill(flat(0x10, 0xc093));
    state.segments[1] = flat(8, 0xa09b);
    (state.gpr[3], state.gpr[4], state.gpr[5]) =
        ((OPERANDS + set * SET) as u64, stack as u64, SCRATCH as u64);
    state.mxcsr = 0x1f80;
    state
}

const _: () = assert!(MXCSR == 32 && SETS * SET <= 0x1000);

#[cfg(test)]
#[path = "self_test_tests.rs"]
mod tests;
