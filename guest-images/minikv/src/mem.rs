//! The functions that compiled code expects of a C library: the host's target has none without it.
//!
//! Copies and fills are assembly: a `memcpy` that is compiled into a call of `memcpy` would never end.

use core::arch::asm;

/// As C's memcpy.
///
/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller gives `len` readable bytes at `from`, writable ones at `to`; DF is clear by the ABI.
    unsafe {
        asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

/// As C's memmove.
///
/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: going up, no byte is overwritten before it is read.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: as `memcpy`; going down from the end, no byte is overwritten before it is read.
    unsafe {
        asm!(
            "2:",
            "cmp {len}, 8",
            "jb 3f",
            "sub {len}, 8",
            "mov {word}, [{from} + {len}]",
            "mov [{to} + {len}], {word}",
            "jmp 2b",
            "3:",
            "test {len}, {len}",
            "jz 4f",
            "dec {len}",
            "movzx {word:e}, byte ptr [{from} + {len}]",
            "mov [{to} + {len}], {word:l}",
            "jmp 3b",
            "4:",
            len = inout(reg) len => _,
            word = out(reg) _,
            from = in(reg) from,
            to = in(reg) to,
            options(nostack),
        );
    }
    to
}

/// As C's memset.
///
/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller gives `len` writable bytes at `to`; DF is clear by the ABI.
    unsafe {
        asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") byte as u8,
            options(nostack, preserves_flags));
    }
    to
}

/// As C's memcmp.
///
/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
    let mut at = 0;
    while at + 8 <= len {
        // SAFETY: the caller gives `len` readable bytes, and at + 8 <= len.
        let a = unsafe { left.wrapping_add(at).cast::<u64>().read_unaligned() };
        // SAFETY: as above.
        let b = unsafe { right.wrapping_add(at).cast::<u64>().read_unaligned() };
        if a != b {
            return if a.swap_bytes() < b.swap_bytes() { -1 } else { 1 };
        }
        at += 8;
    }
    while at < len {
        // SAFETY: at < len.
        let a = unsafe { left.wrapping_add(at).read() };
        // SAFETY: at < len.
        let b = unsafe { right.wrapping_add(at).read() };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
        at += 1;
    }
    0
}

/// As bcmp.
///
/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(left, right, len) }
}

/// As C's strlen.
///
/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let rest: usize;
    // SAFETY: the caller gives bytes with a zero among them; DF is clear by the ABI.
    unsafe {
        asm!("repne scasb", inout("rcx") usize::MAX => rest, inout("rdi") text => _, in("al") 0u8,
            options(nostack, readonly));
    }
    !rest - 1
}
