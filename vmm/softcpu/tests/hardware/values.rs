//! Random values among which edge values are always found: integers, floating-point numbers of all three
//! formats, whole vector and x87 registers.

/// SplitMix64: every value is a function of the seed alone.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 uniform bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// True in one of `n` cases.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of them.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// An integer whose low `width` bits, at least, are of interest: an edge value in half of the cases.
    pub fn integer(&mut self) -> u64 {
        match self.below(8) {
            0 => self.pick(&INTEGER_EDGES),
            1 => self.below(130),
            2 => self.below(130).wrapping_neg(),
            3 => {
                // Edges of a narrow part below arbitrary bits.
                let narrow = self.pick(&INTEGER_EDGES);
                let bits = self.pick(&[8, 16, 32]);
                (self.bits() << bits) | (narrow & ((1 << bits) - 1))
            }
            4 => {
                // One run of ones.
                let (a, b) = (self.below(64), self.below(64));
                (u64::MAX << a) & (u64::MAX >> b)
            }
            _ => self.bits(),
        }
    }

    /// A single-precision number, as bits.
    pub fn single(&mut self) -> u32 {
        let sign = (self.bits() as u32) & 0x8000_0000;
        sign | match self.below(12) {
            0..4 => self.pick(&SINGLE_EDGES),
            4 => self.bits() as u32 & 0x007f_ffff,
            5 => 0x7f80_0000 | (self.bits() as u32 & 0x007f_ffff),
            6..9 => ((self.below(70) as f32) / self.pick(&[1.0, 2.0, 3.0, 4.0])).to_bits(),
            9 => ((self.bits() >> self.below(64)) as f32).to_bits(),
            // Near one another, so that sums cancel and comparisons tie.
            10 => 0x3f80_0000 + self.below(4) as u32,
            _ => self.bits() as u32 & 0x7fff_ffff,
        }
    }

    /// A double-precision number, as bits.
    pub fn double(&mut self) -> u64 {
        let sign = self.bits() & (1 << 63);
        sign | match self.below(12) {
            0..4 => self.pick(&DOUBLE_EDGES),
            4 => self.bits() & 0x000f_ffff_ffff_ffff,
            5 => 0x7ff0_0000_0000_0000 | (self.bits() & 0x000f_ffff_ffff_ffff),
            6..9 => ((self.below(70) as f64) / self.pick(&[1.0, 2.0, 3.0, 4.0])).to_bits(),
            9 => ((self.bits() >> self.below(64)) as f64).to_bits(),
            10 => 0x3ff0_0000_0000_0000 + self.below(4),
            _ => self.bits() & !(1 << 63),
        }
    }

    /// A double extended-precision number, of all its classes, the unsupported ones too.
    pub fn extended(&mut self) -> [u8; 10] {
        let sign = (self.bits() as u16) & 0x8000;
        let fraction = match self.below(5) {
            0 => 0,
            1 => self.below(4),
            2 => 0x3fff_ffff_ffff_ffff + self.below(4),
            _ => self.bits() >> 1,
        };
        let (exponent, significand) = match self.below(16) {
            0 => (0, 0),
            1 => (0x3fff, 1 << 63),
            2 => (0, fraction & !(1 << 63)),
            // Pseudo-denormal.
            3 => (0, fraction | (1 << 63)),
            4 => (0x7fff, 1 << 63),
            // Quiet and signalling NaN.
            5 => (0x7fff, (3 << 62) | fraction),
            6 => (0x7fff, (1 << 63) | (fraction & !(1 << 62)) | 1),
            // Unsupported: pseudo-infinity, pseudo-NaN, unnormal.
            7 => (0x7fff, fraction & !(1 << 63)),
            8 if self.one_in(4) => (1 + self.below(0x7ffd) as u16, fraction & !(1 << 63)),
            9 => (0x7ffe, (1 << 63) | fraction),
            10 => (1 + self.below(70) as u16, (1 << 63) | fraction),
            // A whole number or a half, and magnitudes that integers and the narrow formats just hold.
            11..13 => {
                let n = (self.bits() >> self.below(64)).max(1);
                let zeros = n.leading_zeros() as u16;
                (0x3fff + 63 - zeros - self.below(2) as u16, n << zeros)
            }
            13 => (0x3fff - 2 + self.below(70) as u16, (1 << 63) | fraction),
            14 => {
                (self.pick(&[0x3fff - 1023, 0x3fff + 1023, 0x3fff - 127, 0x3fff + 127]), (1 << 63) | fraction)
            }
            _ => (self.bits() as u16 & 0x7fff, (1 << 63) | fraction),
        };
        let mut out = [0; 10];
        out[..8].copy_from_slice(&significand.to_le_bytes());
        out[8..].copy_from_slice(&(exponent | sign).to_le_bytes());
        out
    }

    /// Sixteen bytes: lanes of any one kind.
    pub fn vector(&mut self) -> u128 {
        let low = |v: u64, high: u64| u128::from(v) | (u128::from(high) << 64);
        match self.below(8) {
            0..3 => (0..4).fold(0, |v, _| (v << 32) | u128::from(self.single())),
            3..6 => low(self.double(), self.double()),
            6 => low(self.integer(), self.integer()),
            _ => {
                let bits = self.pick(&[8, 16, 32]);
                let mask = (1u64 << bits) - 1;
                (0..128 / bits).fold(0, |v, _| (v << bits) | u128::from(self.integer() & mask))
            }
        }
    }

    /// Bytes for a memory operand of any type.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(count + 16);
        if count == 10 && !self.one_in(4) {
            return match self.below(4) {
                // Packed decimal.
                0 => (0..10).map(|_| (self.below(10) << 4 | self.below(10)) as u8).collect(),
                _ => self.extended().to_vec(),
            };
        }
        while out.len() < count {
            match count {
                4 if self.one_in(2) => out.extend(self.single().to_le_bytes()),
                8 if self.one_in(2) => out.extend(self.double().to_le_bytes()),
                0..=8 => out.extend(self.integer().to_le_bytes()),
                _ => out.extend(self.vector().to_le_bytes()),
            }
        }
        out.truncate(count);
        out
    }
}

const INTEGER_EDGES: [u64; 20] = [
    0,
    1,
    2,
    u64::MAX,
    u64::MAX - 1,
    1 << 63,
    (1 << 63) - 1,
    (1 << 63) + 1,
    1 << 31,
    (1 << 31) - 1,
    1 << 32,
    (1 << 32) - 1,
    !((1 << 31) - 1),
    1 << 15,
    (1 << 15) - 1,
    0xffff,
    0x80,
    0x7f,
    0xff,
    0x8080_8080_8080_8080,
];

const SINGLE_EDGES: [u32; 14] = [
    0,
    0,
    1,
    0x007f_ffff,
    0x0080_0000,
    0x7f7f_ffff,
    0x7f80_0000,
    0x7f80_0001,
    0x7fc0_0000,
    0x3f80_0000,
    // 2^31, the number below it, 2^63, one half.
    0x4f00_0000,
    0x4eff_ffff,
    0x5f00_0000,
    0x3f00_0000,
];

const DOUBLE_EDGES: [u64; 18] = [
    0,
    0,
    1,
    0x000f_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0x7ff0_0000_0000_0000,
    0x7ff0_0000_0000_0001,
    0x7ff8_0000_0000_0000,
    0x3ff0_0000_0000_0000,
    // 2^31, 2^31 - 1/2, 2^63, the number below it, one half; the edges of single precision.
    0x41e0_0000_0000_0000,
    0x41df_ffff_ffe0_0000,
    0x43e0_0000_0000_0000,
    0x43df_ffff_ffff_ffff,
    0x3fe0_0000_0000_0000,
    0x47ef_ffff_e000_0000,
    0x3810_0000_0000_0000,
    0x36a0_0000_0000_0000,
];
