//! The few system calls that the program makes (x86-64 Linux ABI).

use core::arch::{asm, global_asm};

const WRITE: usize = 1;
const LSEEK: usize = 8;
const OPEN: usize = 2;
const GETPID: usize = 39;
const EXIT: usize = 60;
const REBOOT: usize = 169;
const CLOCK_GETTIME: usize = 228;
const CLOCK_MONOTONIC: usize = 1;

global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {main}",
    "ud2",
    main = sym crate::start,
);

// What compiled code calls by itself, and no library is there to give (System V ABI).
global_asm!(
    ".globl memcpy",
    "memcpy:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    ".globl memset",
    "memset:",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    ".globl bcmp",
    "bcmp:",
    "mov rcx, rdx",
    "xor eax, eax",
    "repe cmpsb",
    "setne al",
    "ret",
    ".globl strlen",
    "strlen:",
    "xor eax, eax",
    "2: cmp byte ptr [rdi + rax], 0",
    "je 3f",
    "inc rax",
    "jmp 2b",
    "3: ret",
);

fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    // SAFETY: the kernel writes only where the arguments of the calls below let it, and keeps all registers
    // but RAX, RCX and R11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    result
}

/// Writes to standard output.
pub fn print(text: &[u8]) {
    call(WRITE, 1, text.as_ptr() as usize, text.len(), 0);
}

/// Nanoseconds of the monotonic clock.
pub fn now_ns() -> u64 {
    let mut time = [0u64; 2];
    call(CLOCK_GETTIME, CLOCK_MONOTONIC, time.as_mut_ptr() as usize, 0, 0);
    time[0] * 1_000_000_000 + time[1]
}

/// Opens /dev/null or, where there is none, gives standard output.
pub fn open_null() -> usize {
    let fd = call(OPEN, c"/dev/null".as_ptr() as usize, 0, 0, 0);
    usize::try_from(fd).unwrap_or(1)
}

/// Seeks to 0.
pub fn seek(fd: usize) {
    call(LSEEK, fd, 0, 0, 0);
}

/// Ends the process, or the machine where this is its first process.
pub fn exit() -> ! {
    const MAGIC: usize = 0xfee1_dead;
    const MAGIC_2: usize = 672_274_793;
    const POWER_OFF: usize = 0x4321_fedc;
    const RESTART: usize = 0x0123_4567;
    if call(GETPID, 0, 0, 0, 0) == 1 {
        call(REBOOT, MAGIC, MAGIC_2, POWER_OFF, 0);
        call(REBOOT, MAGIC, MAGIC_2, RESTART, 0);
    }
    loop {
        call(EXIT, 0, 0, 0, 0);
    }
}
