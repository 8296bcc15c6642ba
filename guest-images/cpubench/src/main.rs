//! Nine kernels that measure a processor, as one static Linux program: run natively, or as the first process
//! of a guest, which it powers off at the end.
//!
//! One line per kernel: `cpubench NAME NANOSECONDS CHECKSUM`. `scale=N` in the environment (on the kernel's
//! command line, for a first process) divides the work by N.
#![no_std]
#![no_main]

mod kernels;
mod linux;

use core::fmt::Write;

struct Line {
    text: [u8; 128],
    length: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes().take(self.text.len() - self.length) {
            self.text[self.length] = byte;
            self.length += 1;
        }
        Ok(())
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    linux::print(b"cpubench panicked\n");
    linux::exit()
}

/// Reads `scale=N` behind the arguments on the first stack.
fn scale(stack: *const u64) -> u64 {
    // SAFETY: the kernel puts argc, the arguments, a null, the environment and a null there (System V ABI).
    let argc = unsafe { *stack };
    let mut at = stack.wrapping_add(argc as usize + 2);
    loop {
        // SAFETY: the environment ends with a null, at which this stops.
        let text = unsafe { *at } as *const core::ffi::c_char;
        if text.is_null() {
            return 1;
        }
        // SAFETY: each entry is a string that ends with a zero.
        let text = unsafe { core::ffi::CStr::from_ptr(text) };
        let number = text.to_bytes().strip_prefix(b"scale=").and_then(|n| core::str::from_utf8(n).ok());
        if let Some(number) = number.and_then(|number| number.parse::<u64>().ok()) {
            return number.max(1);
        }
        at = at.wrapping_add(1);
    }
}

extern "C" fn start(stack: *const u64) -> ! {
    let scale = scale(stack);
    linux::print(b"cpubench begins\n");
    for (name, kernel) in kernels::ALL {
        let begin = linux::now_ns();
        let checksum = kernel(scale);
        let taken = linux::now_ns() - begin;
        let mut line = Line { text: [0; 128], length: 0 };
        let _ = writeln!(line, "cpubench {name} {taken} {checksum:016x}");
        linux::print(&line.text[..line.length]);
    }
    linux::print(b"cpubench ends\n");
    linux::exit()
}
