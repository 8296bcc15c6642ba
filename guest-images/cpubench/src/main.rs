//! Nine kernels that measure a processor, as one static Linux program: run natively, or as the first process
//! of a guest, which it powers off at the end.
//!
//! Two lines per kernel: `cpubench NAME begins`, then `cpubench NAME NANOSECONDS CHECKSUM`. In the
//! environment (on the kernel's command line, for a first process) `scale=N` divides the work by N, and
//! `only=NAME` chooses one kernel.
#![no_std]
#![no_main]

mod kernels;
mod linux;

use core::fmt::Write;

use kernels::Kernel;

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

/// What the environment says.
struct Options {
    scale: u64,
    only: Option<&'static [u8]>,
}

/// Reads the environment behind the arguments on the first stack.
fn options(stack: *const u64) -> Options {
    let mut options = Options { scale: 1, only: None };
    // SAFETY: the kernel puts argc, the arguments, a null, the environment and a null there (System V ABI).
    let argc = unsafe { *stack };
    let mut at = stack.wrapping_add(argc as usize + 2);
    loop {
        // SAFETY: the environment ends with a null, at which this stops.
        let text = unsafe { *at } as *const core::ffi::c_char;
        if text.is_null() {
            return options;
        }
        // SAFETY: each entry is a string that ends with a zero, and stays as long as the program.
        let text: &'static [u8] = unsafe { core::ffi::CStr::from_ptr(text) }.to_bytes();
        let number = text.strip_prefix(b"scale=").and_then(|number| core::str::from_utf8(number).ok());
        if let Some(number) = number.and_then(|number| number.parse::<u64>().ok()) {
            options.scale = number.max(1);
        }
        options.only = text.strip_prefix(b"only=").or(options.only);
        at = at.wrapping_add(1);
    }
}

fn print(text: core::fmt::Arguments<'_>) {
    let mut line = Line { text: [0; 128], length: 0 };
    let _ = line.write_fmt(text);
    linux::print(&line.text[..line.length]);
}

extern "C" fn start(stack: *const u64) -> ! {
    let Options { scale, only } = options(stack);
    linux::print(b"cpubench begins\n");
    for Kernel { name, prepare, work } in kernels::ALL {
        if only.is_some_and(|only| only != name.as_bytes()) {
            continue;
        }
        prepare();
        print(format_args!("cpubench {name} begins\n"));
        let begin = linux::now_ns();
        let checksum = work(scale);
        let taken = linux::now_ns() - begin;
        print(format_args!("cpubench {name} {taken} {checksum:016x}\n"));
    }
    linux::print(b"cpubench ends\n");
    linux::exit()
}
