//! The four operand sizes of integer instructions.

use crate::mem::Value;

/// u8, u16, u32 or u64 as an operand.
pub trait Word: Value + Eq + 'static {
    /// Size in bits.
    const BITS: u32;
    /// All bits set, zero-extended.
    const MASK: u64;
    /// Zero-extended.
    fn zext(self) -> u64;
    /// Sign-extended.
    fn sext(self) -> u64;
    /// The low bits of `value`.
    fn of(value: u64) -> Self;
    /// Writes a register: 32-bit results clear the upper half, smaller ones leave it (SDM vol. 1, 3.4.1.1).
    ///
    /// # Safety
    /// `at` points to the register's low byte (or, for u8, to its second byte).
    unsafe fn put(self, at: *mut u8);
}

macro_rules! word {
    ($t:ty, $s:ty, $put:ty) => {
        impl Word for $t {
            const BITS: u32 = <$t>::BITS;
            const MASK: u64 = <$t>::MAX as u64;
            #[inline(always)]
            fn zext(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn sext(self) -> u64 {
                self as $s as i64 as u64
            }
            #[inline(always)]
            fn of(value: u64) -> Self {
                value as $t
            }
            // SAFETY: the contract is that of `Word::put`.
            #[inline(always)]
            unsafe fn put(self, at: *mut u8) {
                // SAFETY: by the caller's contract the bytes belong to one register.
                unsafe { at.cast::<$put>().write_unaligned(self as $put) }
            }
        }
    };
}

word!(u8, i8, u8);
word!(u16, i16, u16);
word!(u32, i32, u64);
word!(u64, i64, u64);
