//! Lazy flags: an instruction leaves its result and its carries; the six status flags are read off when
//! asked.
//!
//! ```text
//! result  the result, sign-extended to 64 bits        ZF: result = 0   SF: bit 63 ^ aux bit 0
//!                                                     PF: parity of (low byte ^ aux bits 8–15)
//! aux     bit 63: carry out of the top bit            CF
//!         bit 62: carry into the top bit ^ …          OF = bit 63 ^ bit 62
//!         bit 3: carry out of bit 3                   AF
//!         bits 8–15, bit 0: corrections to PF and SF, for flags that no result has (POPF, SAHF)
//! ```
//!
//! No kind of instruction is kept, so reading a flag never branches on what made it (SDM vol. 1, 3.4.3.1).

use crate::word::Word;

/// Carry.
pub const CF: u64 = 1;
/// Parity of the low byte.
pub const PF: u64 = 1 << 2;
/// Carry out of bit 3.
pub const AF: u64 = 1 << 4;
/// Zero.
pub const ZF: u64 = 1 << 6;
/// Sign.
pub const SF: u64 = 1 << 7;
/// Single-step trap.
pub const TF: u64 = 1 << 8;
/// Interrupts enabled.
pub const IF: u64 = 1 << 9;
/// String direction.
pub const DF: u64 = 1 << 10;
/// Overflow.
pub const OF: u64 = 1 << 11;
/// I/O privilege level.
pub const IOPL: u64 = 3 << 12;
/// Nested task.
pub const NT: u64 = 1 << 14;
/// Resume.
pub const RF: u64 = 1 << 16;
/// Virtual-8086 mode.
pub const VM: u64 = 1 << 17;
/// Alignment check; access to user pages under SMAP.
pub const AC: u64 = 1 << 18;
/// CPUID is there.
pub const ID: u64 = 1 << 21;
/// The flags that instructions compute.
pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

const CARRY: u64 = 1 << 63;
const CARRY_IN: u64 = 1 << 62;
const AUX_AF: u64 = 8;

/// The status flags, not yet computed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lazy {
    /// The result, sign-extended.
    pub result: u64,
    /// Carries and corrections, see above.
    pub aux: u64,
}

impl Lazy {
    /// After an addition or subtraction: `carries` has the carry (or borrow) out of every bit.
    #[inline(always)]
    pub fn arithmetic<W: Word>(result: W, carries: u64) -> Self {
        let top = (carries << (64 - W::BITS)) & (CARRY | CARRY_IN);
        Self { result: result.sext(), aux: top | carries & AUX_AF }
    }

    /// After AND, OR, XOR, TEST: CF = OF = AF = 0.
    #[inline(always)]
    pub fn logic<W: Word>(result: W) -> Self {
        Self { result: result.sext(), aux: 0 }
    }

    /// With CF, OF and AF given, the others from the result.
    #[inline(always)]
    pub fn with<W: Word>(result: W, cf: bool, of: bool, af: bool) -> Self {
        let aux = (u64::from(cf) << 63) | (u64::from(cf ^ of) << 62) | (u64::from(af) << 3);
        Self { result: result.sext(), aux }
    }

    /// From RFLAGS.
    pub fn from_rflags(rflags: u64) -> Self {
        let bit = |flag: u64| u64::from(rflags & flag != 0);
        let result = if rflags & ZF != 0 { 0 } else { 0x100 };
        let aux =
            (bit(CF) << 63) | ((bit(CF) ^ bit(OF)) << 62) | (bit(AF) << 3) | ((bit(PF) ^ 1) << 8) | bit(SF);
        Self { result, aux }
    }

    /// As bits of RFLAGS.
    #[inline]
    pub fn rflags(self) -> u64 {
        u64::from(self.cf())
            | u64::from(self.pf()) << 2
            | u64::from(self.af()) << 4
            | u64::from(self.zf()) << 6
            | u64::from(self.sf()) << 7
            | u64::from(self.of()) << 11
    }

    /// Carry.
    #[inline(always)]
    pub fn cf(self) -> bool {
        self.aux >> 63 != 0
    }

    /// Overflow.
    #[inline(always)]
    pub fn of(self) -> bool {
        (self.aux ^ self.aux << 1) >> 63 != 0
    }

    /// Zero.
    #[inline(always)]
    pub fn zf(self) -> bool {
        self.result == 0
    }

    /// Sign.
    #[inline(always)]
    pub fn sf(self) -> bool {
        (self.result >> 63 ^ self.aux & 1) != 0
    }

    /// Parity.
    #[inline(always)]
    pub fn pf(self) -> bool {
        ((self.result ^ self.aux >> 8) as u8).count_ones() & 1 == 0
    }

    /// Carry out of bit 3.
    #[inline(always)]
    pub fn af(self) -> bool {
        self.aux & AUX_AF != 0
    }

    /// The same with another CF.
    #[inline(always)]
    pub fn set_cf(&mut self, cf: bool) {
        self.set_cf_of(cf, self.of());
    }

    /// The same with other CF and OF.
    #[inline(always)]
    pub fn set_cf_of(&mut self, cf: bool, of: bool) {
        self.aux = self.aux & !(CARRY | CARRY_IN) | u64::from(cf) << 63 | u64::from(cf ^ of) << 62;
    }

    /// The same with another ZF.
    pub fn set_zf(&mut self, zf: bool) {
        *self = Self::from_rflags(self.rflags() & !ZF | if zf { ZF } else { 0 });
    }

    /// The condition `CODE` of Jcc, SETcc and CMOVcc (SDM vol. 1, appendix B).
    #[inline(always)]
    pub fn condition<const CODE: u8>(self) -> bool {
        let value = match CODE >> 1 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() || self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.sf() != self.of(),
            _ => self.zf() || self.sf() != self.of(),
        };
        value != (CODE & 1 != 0)
    }
}
