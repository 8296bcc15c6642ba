//! Port I/O. The TSS opens every port to CPL3.

use core::arch::asm;

const END_PORT: u16 = 0x4c58;
/// Reset control register of PC chipsets, and its bits for a hard reset.
const RESET_PORT: u16 = 0xcf9;
const HARD_RESET: u8 = 0x06;

/// Writes a byte to a port.
pub fn out8(port: u16, value: u8) {
    // SAFETY: the ports of this machine change no memory but what its drivers gave to a device.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) };
}

/// Writes four bytes to a port.
pub fn out32(port: u16, value: u32) {
    // SAFETY: as `out8`; the compiler is told that memory may change.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags)) };
}

/// Reads four bytes from a port.
pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: as `out8`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack, preserves_flags)) };
    value
}

/// Resets the machine.
pub fn reset_machine() -> ! {
    loop {
        out8(RESET_PORT, HARD_RESET);
    }
}

/// Ends the machine with this exit status.
pub fn end_machine(status: u8) -> ! {
    loop {
        out8(END_PORT, status);
    }
}
