//! The CPL0 part (`cpl0.s`), and CPL3's side of it: stacks, and the report of an exception.

use core::arch::global_asm;
use core::cell::UnsafeCell;

use crate::port;
use crate::println;

global_asm!(include_str!("cpl0.s"));

const MAIN_STACK_LEN: usize = 512 << 10;
const EXCEPTION_STACK_LEN: usize = 16 << 10;

#[repr(C, align(16))]
struct Stack<const LEN: usize>(UnsafeCell<[u8; LEN]>);

// SAFETY: only the CPU uses it, through RSP, and there is one CPU.
unsafe impl<const LEN: usize> Sync for Stack<LEN> {}

static MAIN_STACK: Stack<MAIN_STACK_LEN> = Stack(UnsafeCell::new([0; MAIN_STACK_LEN]));
static EXCEPTION_STACK: Stack<EXCEPTION_STACK_LEN> = Stack(UnsafeCell::new([0; EXCEPTION_STACK_LEN]));

// `call` in user_entry and exception_entry makes the alignment right.
global_asm!(
    ".globl MAIN_STACK_TOP",
    ".set MAIN_STACK_TOP, {main} + {main_len}",
    ".globl EXCEPTION_STACK_TOP",
    ".set EXCEPTION_STACK_TOP, {exception} + {exception_len}",
    main = sym MAIN_STACK,
    main_len = const MAIN_STACK_LEN,
    exception = sym EXCEPTION_STACK,
    exception_len = const EXCEPTION_STACK_LEN,
);

/// What the stub notes of an exception.
#[repr(C)]
struct ExceptionRecord(UnsafeCell<[u64; 5]>);

// SAFETY: written once, by the stub, before the only function that reads it runs.
unsafe impl Sync for ExceptionRecord {}

/// Vector, error code, RIP, RSP, CR2.
#[unsafe(no_mangle)]
static EXCEPTION_RECORD: ExceptionRecord = ExceptionRecord(UnsafeCell::new([0; 5]));

/// Prints the exception that the stub noted, and ends the machine with 0x80 | vector.
#[unsafe(no_mangle)]
extern "C" fn exception_report() -> ! {
    // SAFETY: the stub filled the record before it came here, and nothing writes to it any more.
    let [vector, error, rip, rsp, cr2] = unsafe { EXCEPTION_RECORD.0.get().read_volatile() };
    println!("minikv: exception {vector} error {error:#x} rip {rip:#x} rsp {rsp:#x} cr2 {cr2:#x}");
    port::end_machine(0x80 | vector as u8)
}
