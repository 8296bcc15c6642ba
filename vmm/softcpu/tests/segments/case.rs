//! A case: one instruction in random segments, with offsets at the edges of their limits, and what came of
//! it.

use crate::values::Random;

/// Bytes of a page.
pub const PAGE: u64 = 0x1000;
/// Code and data: linear addresses and bytes. Nothing else is mapped below 4 GiB.
pub const REGIONS: [(u64, usize); 2] = [(CODE, 0x2000), (DATA, 0x4000)];
const CODE: u64 = 0x1000_0000;
const DATA: u64 = 0x2000_0000;
/// CS, SS, DS, ES, GS: entries of the LDT in this order.
pub const SEGMENTS: usize = 5;
const CS: usize = 0;
const SS: usize = 1;
const DS: usize = 2;
const ES: usize = 3;
const GS: usize = 4;
/// Override prefixes in the order of the segments.
const OVERRIDES: [u8; SEGMENTS] = [0x2e, 0x36, 0x3e, 0x26, 0x65];
const ARITHMETIC: u32 = 0x8d5;
const DIRECTION: u32 = 1 << 10;

/// A segment as modify_ldt describes it: always present, DPL 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Descriptor {
    pub base: u32,
    /// 20 bits.
    pub limit: u32,
    pub pages: bool,
    pub big: bool,
    /// 0: data, 1: data that expands down, 2: code.
    pub contents: u32,
    /// Data that cannot be written, code that cannot be read.
    pub restricted: bool,
    /// The register holds a null selector instead.
    pub null: bool,
}

impl Descriptor {
    /// The limit in bytes.
    pub fn bytes(&self) -> u32 {
        if self.pages { self.limit << 12 | 0xfff } else { self.limit }
    }

    /// Access rights as `softcpu::Segment` has them: accessed, present, DPL 3.
    pub fn access(&self) -> u32 {
        0xf1 | u32::from(!self.restricted) << 1
            | self.contents << 2
            | 1 << 12
            | u32::from(self.big) << 14
            | u32::from(self.pages) << 15
    }

    /// An offset at or near an edge of what may be accessed.
    fn offset(&self, random: &mut Random) -> u32 {
        let limit = self.bytes();
        let end = if self.big { u32::MAX } else { 0xffff };
        let near =
            |random: &mut Random, edge: u32| edge.wrapping_add(4).wrapping_sub(random.below(20) as u32);
        match random.below(8) {
            0..4 => near(random, limit),
            4 if self.contents == 1 => near(random, end),
            5 => random.below(24) as u32,
            _ if self.contents == 1 && end > limit => limit + random.below((end - limit).into()) as u32,
            _ => random.below(u64::from(limit) + 1) as u32,
        }
    }
}

/// How an instruction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Retired,
    /// Vector, error code, and CR2 of a page fault.
    Fault(u8, u32, u32),
}

/// What an executor made of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub end: End,
    pub gpr: [u32; 8],
    pub eip: u32,
    pub flags: u32,
}

/// One instruction and everything it can see.
#[derive(Debug, Clone)]
pub struct Case {
    pub code: Vec<u8>,
    pub segments: [Descriptor; SEGMENTS],
    pub gpr: [u32; 8],
    pub eip: u32,
    pub flags: u32,
    /// Arithmetic flags that it leaves undefined.
    pub undefined: u32,
}

/// Opcode, the reg field of its ModRM (8: any), bytes of its immediate.
type Form = (&'static [u8], u8, usize);

const MEMORY: [Form; 46] = [
    (&[0x8b], 8, 0),
    (&[0x89], 8, 0),
    (&[0x8a], 8, 0),
    (&[0x88], 8, 0),
    (&[0xc6], 0, 1),
    (&[0x01], 8, 0),
    (&[0x03], 8, 0),
    (&[0x29], 8, 0),
    (&[0x39], 8, 0),
    (&[0x3b], 8, 0),
    (&[0x85], 8, 0),
    (&[0x80], 7, 1),
    (&[0x80], 0, 1),
    (&[0xff], 0, 0),
    (&[0xfe], 1, 0),
    (&[0xf7], 2, 0),
    (&[0xf7], 3, 0),
    (&[0xf6], 4, 0),
    (&[0xf7], 5, 0),
    (&[0xf6], 6, 0),
    (&[0xf6], 7, 0),
    (&[0xf7], 6, 0),
    (&[0xf7], 7, 0),
    (&[0x62], 8, 0),
    (&[0x87], 8, 0),
    (&[0x0f, 0xb1], 8, 0),
    (&[0x0f, 0xc1], 8, 0),
    (&[0x0f, 0xc7], 1, 0),
    (&[0x0f, 0xa3], 8, 0),
    (&[0x0f, 0xab], 8, 0),
    (&[0x0f, 0xba], 4, 1),
    (&[0x0f, 0xba], 5, 1),
    (&[0x0f, 0xb6], 8, 0),
    (&[0x0f, 0xbf], 8, 0),
    (&[0x0f, 0x94], 0, 0),
    (&[0x0f, 0x44], 8, 0),
    (&[0xff], 6, 0),
    (&[0x8f], 0, 0),
    (&[0xff], 2, 0),
    (&[0xff], 4, 0),
    (&[0xd9], 0, 0),
    (&[0xdd], 3, 0),
    (&[0xdb], 7, 0),
    (&[0x0f, 0x10], 8, 0),
    (&[0x0f, 0x11], 8, 0),
    (&[0x0f, 0xae], 3, 0),
];

/// Instructions on the stack, on strings and on decimal digits, without a ModRM: bytes, and those of an
/// immediate.
const IMPLIED: [(&[u8], usize); 36] = [
    (&[0x50], 0),
    (&[0x53], 0),
    (&[0x58], 0),
    (&[0x60], 0),
    (&[0x61], 0),
    (&[0x6a], 1),
    (&[0xc9], 0),
    (&[0xc3], 0),
    (&[0xc8, 0x10, 0, 0], 0),
    (&[0xc8, 0x04, 0, 1], 0),
    (&[0x9d], 0),
    (&[0x06], 0),
    (&[0x0e], 0),
    (&[0x16], 0),
    (&[0x1e], 0),
    (&[0x0f, 0xa0], 0),
    (&[0x0f, 0xa8], 0),
    (&[0x27], 0),
    (&[0x2f], 0),
    (&[0x37], 0),
    (&[0x3f], 0),
    (&[0xd4], 1),
    (&[0xd5], 1),
    (&[0xce], 0),
    (&[0xa4], 0),
    (&[0xa5], 0),
    (&[0xaa], 0),
    (&[0xab], 0),
    (&[0xac], 0),
    (&[0xad], 0),
    (&[0xa6], 0),
    (&[0xa7], 0),
    (&[0xae], 0),
    (&[0xaf], 0),
    (&[0xd7], 0),
    (&[0xa1], 4),
];

/// Branches with a displacement of one byte, or as wide as the operand.
const BRANCHES: [(&[u8], bool); 8] = [
    (&[0xeb], false),
    (&[0x74], false),
    (&[0x75], false),
    (&[0xe2], false),
    (&[0xe3], false),
    (&[0xe9], true),
    (&[0xe8], true),
    (&[0x0f, 0x84], true),
];

/// Arithmetic flags that an instruction with this opcode, or reg field, leaves undefined.
fn undefined(opcode: &[u8], reg: u8) -> u32 {
    const CF: u32 = 1;
    const AF: u32 = 1 << 4;
    const OF: u32 = 1 << 11;
    match (opcode, reg) {
        ([0x0f, 0xa3 | 0xab | 0xba], _) => ARITHMETIC & !CF,
        ([0xf6 | 0xf7], 4 | 5) => ARITHMETIC & !(CF | OF),
        ([0xf6 | 0xf7], 6 | 7) => ARITHMETIC,
        ([0x27 | 0x2f], _) => OF,
        ([0x37 | 0x3f], _) => ARITHMETIC & !(CF | AF),
        ([0xd4 | 0xd5], _) => OF | AF | CF,
        _ => 0,
    }
}

struct Maker<'a> {
    random: &'a mut Random,
    case: Case,
    /// An offset in each segment where something of the case lies.
    hot: [u32; SEGMENTS],
    short_operands: bool,
    short_addresses: bool,
}

/// The case of a seed: a function of it alone.
pub fn make(seed: u64) -> Case {
    let random = &mut Random::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5e65);
    let segments = [Descriptor::default(); SEGMENTS];
    let case = Case { code: Vec::new(), segments, gpr: [0; 8], eip: 0, flags: 0, undefined: 0 };
    let mut maker = Maker { random, case, hot: [0; SEGMENTS], short_operands: false, short_addresses: false };
    maker.segments();
    maker.registers();
    maker.instruction();
    maker.code_segment();
    maker.case
}

impl Case {
    /// What the segment register holds.
    pub fn selector(&self, segment: usize) -> u16 {
        if self.segments[segment].null { 0 } else { (segment as u16) << 3 | 7 }
    }

    /// FSTP of 80 bits.
    pub fn is_long_store(&self) -> bool {
        self.code.windows(2).any(|bytes| bytes[0] == 0xdb && bytes[1] >> 3 & 7 == 7)
    }

    /// Puts the code where it is.
    pub fn place(&self, memory: &mut [Vec<u8>]) {
        let at = self.segments[CS].base.wrapping_add(self.eip).wrapping_sub(CODE as u32) as usize;
        memory[0][at..at + self.code.len()].copy_from_slice(&self.code);
    }
}

impl Maker<'_> {
    fn segments(&mut self) {
        for n in [SS, DS, ES, GS] {
            let random = &mut *self.random;
            let pages = random.one_in(2);
            let limit = match (random.below(6), pages) {
                (0..3, true) => random.below(17) as u32,
                (3, true) => 0xf_fffe,
                (_, true) => 0xf_ffff,
                (0, false) => 0xffff,
                (1, false) => 0xf_ffff,
                (2, false) => random.below(1 << 20) as u32,
                (_, false) => random.below(0x3000) as u32,
            };
            let data = random.one_in(2) || n == SS;
            let contents = if data { u32::from(random.one_in(3)) } else { random.pick(&[0, 0, 1, 2]) };
            // Code that cannot be read is not for data segment registers.
            let restricted = n != SS && contents != 2 && random.one_in(4);
            let null = n != SS && random.one_in(12);
            let big = random.one_in(2);
            let mut segment = Descriptor { base: 0, limit, pages, big, contents, restricted, null };
            let hot = segment.offset(random);
            let at = match random.below(12) {
                0 => random.below(0x40).wrapping_sub(0x20),
                1 => 0x1000u64.wrapping_sub(random.below(8)),
                _ => 0x100 + random.below(0x3e00),
            };
            segment.base = (DATA.wrapping_add(at) as u32).wrapping_sub(hot);
            if random.one_in(12) {
                segment = Descriptor { limit: 0xf_ffff, pages: true, big: true, ..Descriptor::default() };
                // Somewhere, or where an operand would wrap.
                self.hot[n] = if random.one_in(3) {
                    12u32.wrapping_sub(random.below(24) as u32)
                } else {
                    DATA as u32 + 0x100 + random.below(0x3e00) as u32
                };
            } else {
                self.hot[n] = hot;
            }
            self.case.segments[n] = segment;
        }
        self.case.segments[CS].big = !self.random.one_in(3);
    }

    fn registers(&mut self) {
        for register in &mut self.case.gpr {
            *register = self.random.integer() as u32;
        }
        self.case.flags = self.random.bits() as u32 & (ARITHMETIC | DIRECTION);
        let near = |random: &mut Random, hot: u32| hot.wrapping_add(8).wrapping_sub(random.below(16) as u32);
        self.case.gpr[4] = if self.random.one_in(2) { self.hot[SS] } else { near(self.random, self.hot[SS]) };
        self.case.gpr[5] = self.hot[SS];
        self.case.gpr[6] = self.hot[DS];
        self.case.gpr[7] = self.hot[ES];
        if self.random.one_in(2) {
            self.case.gpr[1] = self.random.below(3) as u32;
        }
    }

    fn immediate(&mut self, bytes: usize) {
        for _ in 0..bytes {
            let byte = self.random.bits() as u8;
            self.case.code.push(byte);
        }
    }

    fn instruction(&mut self) {
        let big = self.case.segments[CS].big;
        let (operands, addresses) = (self.random.one_in(4), self.random.one_in(4));
        (self.short_operands, self.short_addresses) = (big == operands, big == addresses);
        let kind = self.random.below(10);
        let chosen = self.random.one_in(2).then(|| self.random.below(SEGMENTS as u64) as usize);
        let mut prefixes = Vec::new();
        if operands {
            prefixes.push(0x66);
        }
        if addresses {
            prefixes.push(0x67);
        }
        if let Some(segment) = chosen {
            prefixes.push(OVERRIDES[segment]);
        }
        let implied = self.random.pick(&IMPLIED);
        let is_string = matches!(implied.0[0], 0xa4..=0xaf if implied.0[0] != 0xa1);
        if (5..8).contains(&kind) && is_string && self.random.one_in(2) {
            prefixes.push(self.random.pick(&[0xf3, 0xf2]));
        }
        // In every order.
        for n in (1..prefixes.len()).rev() {
            prefixes.swap(n, self.random.below(n as u64 + 1) as usize);
        }
        self.case.code = prefixes;
        match kind {
            0..5 => self.memory_form(chosen),
            5..8 => {
                self.case.code.extend_from_slice(implied.0);
                self.case.undefined = undefined(implied.0, 0);
                let source = chosen.unwrap_or(DS);
                self.case.gpr[6] = self.hot[source];
                if implied.0[0] == 0xd7 {
                    self.case.gpr[3] = self.hot[source].wrapping_sub(self.case.gpr[0] & 0xff);
                }
                if implied.0[0] == 0xa1 {
                    let bytes = self.hot[source].to_le_bytes();
                    self.case.code.extend(&bytes[..if self.short_addresses { 2 } else { 4 }]);
                } else {
                    self.immediate(implied.1);
                }
            }
            _ => {
                let (opcode, wide) = self.random.pick(&BRANCHES);
                self.case.code.extend_from_slice(opcode);
                self.immediate(1);
                if wide {
                    let sign = self.random.pick(&[0, 0, 0xff, 0x10]);
                    let more = if self.short_operands { 1 } else { 3 };
                    self.case.code.extend(std::iter::repeat_n(sign, more));
                }
            }
        }
    }

    /// An instruction with a memory operand at the hot offset of its segment.
    fn memory_form(&mut self, chosen: Option<usize>) {
        let (opcode, reg, immediate) = self.random.pick(&MEMORY);
        if opcode == [0x0f, 0xae] {
            // With 66h it is another instruction.
            self.case.code.retain(|prefix| *prefix != 0x66);
            self.short_operands = !self.case.segments[CS].big;
        }
        self.case.code.extend_from_slice(opcode);
        self.case.undefined = undefined(opcode, reg);
        let reg = if reg == 8 { self.random.below(8) as u8 } else { reg };
        // ModRM's base: its field, the register, whether SS is the default.
        let bases: &[(u8, usize, bool)] = if self.short_addresses {
            &[(4, 6, false), (5, 7, false), (6, 5, true), (7, 3, false)]
        } else {
            &[(0, 0, false), (1, 1, false), (3, 3, false), (5, 5, true), (6, 6, false), (7, 7, false)]
        };
        let (field, base, stack) = self.random.pick(bases);
        let segment = chosen.unwrap_or(if stack { SS } else { DS });
        let long = self.random.one_in(2);
        self.case.code.push(if long { 0x80 } else { 0x40 } | reg << 3 | field);
        let bytes = if !long {
            1
        } else if self.short_addresses {
            2
        } else {
            4
        };
        let from = self.case.code.len();
        self.immediate(bytes);
        let displacement =
            self.case.code[from..].iter().rev().fold(0u32, |all, byte| all << 8 | u32::from(*byte));
        let unused = 32 - 8 * bytes as u32;
        let displacement = ((displacement << unused) as i32 >> unused) as u32;
        let offset = self.hot[segment].wrapping_add(3).wrapping_sub(self.random.below(6) as u32);
        self.case.gpr[base] = offset.wrapping_sub(displacement);
        self.immediate(immediate);
    }

    /// Code at or near the end of its segment, or anywhere.
    fn code_segment(&mut self) {
        let random = &mut *self.random;
        let length = self.case.code.len() as u32;
        let eip = match random.below(6) {
            0 => random.below(0x100) as u32,
            1 => 0xffff - random.below(24) as u32,
            2 => 0xffff_ff00 - random.below(0x100) as u32,
            3 => random.below(0xf_0000) as u32,
            _ => 0x1000 * (1 + random.below(0xff) as u32) - random.below(20) as u32,
        };
        let code = &mut self.case.segments[CS];
        code.contents = 2;
        code.restricted = random.one_in(3);
        (code.limit, code.pages) = (0xf_ffff, true);
        if eip < 0xf_0000 && random.one_in(2) {
            // From one byte of the instruction to some bytes behind it.
            (code.limit, code.pages) = (eip + random.below(u64::from(length) + 4) as u32, false);
        } else if random.one_in(2) {
            code.limit = eip >> 12;
        }
        self.case.eip = eip;
        let at = if random.one_in(4) { 0x1000 - random.below(16) } else { 0x200 + random.below(0x1c00) };
        code.base = (CODE as u32 + at as u32).wrapping_sub(eip);
        self.hot[CS] = eip;
    }
}
