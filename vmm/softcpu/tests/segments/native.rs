//! Runs one instruction of 32-bit or 16-bit code on the host's processor, in segments of an LDT of this
//! process (modify_ldt).
//!
//! The state goes in by a signal frame that `rt_sigreturn` loads, and comes out in that of the signal which
//! ends it: the trap after one instruction, or a fault.

use crate::case::{Case, Descriptor, End, Outcome, REGIONS, SEGMENTS};
use std::arch::naked_asm;
use std::ptr;

const TRAP_FLAG: u64 = 1 << 8;
/// Bytes of the signal frame up to the end of the kernel's `struct ucontext`.
const CONTEXT_BYTES: usize = 304;
const FPU_AT: usize = 0x400;
const FPU_MOST: usize = 0x3000;
/// Places in the signal frame: the return address, then `struct ucontext` with the registers at 40.
const GREGS: usize = 8 + 40;
const FPREGS: usize = GREGS + 23 * 8;
/// Registers in the order of `struct sigcontext`.
const RIP: usize = 16;
const RFLAGS: usize = 17;
const CSGSFS: usize = 18;
const ERROR: usize = 19;
const TRAP: usize = 20;
const CR2: usize = 22;
/// Where RAX, RCX, RDX, ... are among them.
const GPR_PLACES: [usize; 16] = [13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7];

/// What the kernel pops in `rt_sigreturn`: return address, `struct ucontext`, FPU state.
#[repr(C, align(64))]
struct Frame([u8; FPU_AT + FPU_MOST]);

/// The stack pointer to go back to, 0 outside of a run.
static mut BRIDGE: u64 = 0;

/// The host's processor as an executor. There is one a process.
pub struct Native {
    frame: Box<Frame>,
    /// What the LDT holds.
    table: [Option<Descriptor>; SEGMENTS],
}

impl Native {
    /// Maps memory and installs the signal handlers. `None` where the kernel has no modify_ldt.
    pub fn new() -> Option<Self> {
        if !set_entry(0, &Descriptor::default()) {
            return None;
        }
        for (at, bytes) in REGIONS {
            map(at, bytes, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
        }
        let bytes = 0x10000;
        let at = map(0, bytes, libc::PROT_READ | libc::PROT_WRITE);
        let stack = libc::stack_t { ss_sp: at.cast(), ss_flags: 0, ss_size: bytes };
        // SAFETY: the stack is a mapping of that size which is never unmapped.
        let done = unsafe { libc::sigaltstack(&stack, ptr::null_mut()) };
        assert_eq!(done, 0, "sigaltstack: {}", std::io::Error::last_os_error());
        for signal in [libc::SIGTRAP, libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL] {
            // SAFETY: a sigaction of zeros is a valid one.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = landed as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            // SAFETY: the handler has the signature that SA_SIGINFO asks for.
            let done = unsafe { libc::sigaction(signal, &action, ptr::null_mut()) };
            assert_eq!(done, 0, "sigaction: {}", std::io::Error::last_os_error());
        }
        let mut native = Self { frame: Box::new(Frame([0; FPU_AT + FPU_MOST])), table: [None; SEGMENTS] };
        native.take_template();
        Some(native)
    }

    /// Fills the frame with what the kernel makes for a signal here.
    fn take_template(&mut self) {
        // SAFETY: INT3 raises SIGTRAP, whose handler returns here by way of the saved stack pointer.
        let context = unsafe { first_landing() };
        self.frame.0[8..CONTEXT_BYTES].copy_from_slice(bytes_at(context, CONTEXT_BYTES - 8));
        let fpu = u64_at(&self.frame.0, FPREGS);
        let sw = bytes_at(fpu, 512)[464..].to_vec();
        let word = |at: usize| u32::from_le_bytes(sw[at..at + 4].try_into().expect("four bytes"));
        let extended = if word(0) == 0x4650_5853 { word(4) as usize } else { 512 };
        assert!(extended <= FPU_MOST, "a signal frame with {extended} bytes of FPU state");
        self.frame.0[FPU_AT..][..extended].copy_from_slice(bytes_at(fpu, extended));
        let own = self.frame.0.as_ptr() as u64 + FPU_AT as u64;
        self.frame.0[FPREGS..][..8].copy_from_slice(&own.to_le_bytes());
        // An x87 unit as FNINIT leaves it, zeros in the SSE registers.
        self.frame.0[FPU_AT..FPU_AT + 416].fill(0);
        self.frame.0[FPU_AT..][..2].copy_from_slice(&0x37fu16.to_le_bytes());
        self.frame.0[FPU_AT + 24..][..4].copy_from_slice(&0x1f80u32.to_le_bytes());
        if extended > 512 {
            self.frame.0[FPU_AT + 512..][..8].copy_from_slice(&3u64.to_le_bytes());
        }
    }

    /// Runs a case on `memory`, whose bytes of all regions are then as it leaves them.
    pub fn run(&mut self, case: &Case, memory: &mut [Vec<u8>]) -> Outcome {
        for (n, (descriptor, known)) in case.segments.iter().zip(&mut self.table).enumerate() {
            if *known != Some(*descriptor) && !descriptor.null {
                assert!(set_entry(n as u32, descriptor), "modify_ldt of {descriptor:x?}");
                *known = Some(*descriptor);
            }
        }
        for ((at, _), bytes) in REGIONS.iter().zip(memory.iter()) {
            // SAFETY: the region is a mapping of as many writable bytes.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), *at as *mut u8, bytes.len()) };
        }
        let selectors: Vec<u64> = (0..SEGMENTS).map(|n| u64::from(case.selector(n))).collect();
        let mut set = |at: usize, value: u64| {
            self.frame.0[GREGS + 8 * at..][..8].copy_from_slice(&value.to_le_bytes());
        };
        for (n, place) in GPR_PLACES.iter().enumerate() {
            set(*place, case.gpr.get(n).copied().unwrap_or(0).into());
        }
        set(RIP, case.eip.into());
        set(RFLAGS, u64::from(case.flags) | TRAP_FLAG | 0x202);
        set(CSGSFS, selectors[0] | selectors[1] << 48);
        let frame = self.frame.0.as_ptr() as u64 + 8;
        // SAFETY: the frame is complete, and 32-bit code reaches nothing of the process but the regions.
        let context = unsafe { enter(frame, selectors[2], selectors[3], selectors[4]) };
        let context = bytes_at(context, CONTEXT_BYTES);
        let register = |n: usize| u64_at(context, GREGS - 8 + 8 * n);
        for ((at, bytes), memory) in REGIONS.iter().zip(memory) {
            memory.copy_from_slice(bytes_at(*at, *bytes));
        }
        let gpr = std::array::from_fn(|n| register(GPR_PLACES[n]) as u32);
        let (trap, error) = (register(TRAP) as u8, register(ERROR) as u32);
        let end = match trap {
            1 => End::Retired,
            14 => End::Fault(14, error, register(CR2) as u32),
            _ => End::Fault(trap, error, 0),
        };
        Outcome { end, gpr, eip: register(RIP) as u32, flags: register(RFLAGS) as u32 }
    }
}

/// Sets an entry of the LDT.
fn set_entry(number: u32, descriptor: &Descriptor) -> bool {
    let flags = u32::from(descriptor.big)
        | descriptor.contents << 1
        | u32::from(descriptor.restricted) << 3
        | u32::from(descriptor.pages) << 4
        | 1 << 6;
    let entry = [number, descriptor.base, descriptor.limit, flags];
    // SAFETY: `entry` is a struct user_desc; segments of the LDT concern only code that uses them.
    unsafe { libc::syscall(libc::SYS_modify_ldt, 0x11, entry.as_ptr(), size_of_val(&entry)) == 0 }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Bytes of a mapping or of the kernel's last signal frame: valid until the next run.
fn bytes_at<'a>(address: u64, count: usize) -> &'a [u8] {
    // SAFETY: callers name mapped pages of the test and the frame on the signal stack, both live for the
    // whole process and written only while an instruction runs.
    unsafe { std::slice::from_raw_parts(address as *const u8, count) }
}

/// Private anonymous pages at `address` (0: anywhere).
fn map(address: u64, bytes: usize, protection: i32) -> *mut u8 {
    let fixed = if address == 0 { 0 } else { libc::MAP_FIXED_NOREPLACE };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE | fixed;
    // SAFETY: a new mapping, which replaces none.
    let at = unsafe { libc::mmap(address as *mut _, bytes, protection, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED, "mmap at {address:#x}: {}", std::io::Error::last_os_error());
    at.cast()
}

/// Raises SIGTRAP and returns the kernel's `struct ucontext` of it.
///
/// # Safety
/// `landed` handles SIGTRAP on a signal stack.
#[unsafe(naked)]
unsafe extern "C" fn first_landing() -> u64 {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8",
        "stmxcsr [rsp]",
        "fnstcw [rsp + 4]",
        "mov [rip + {bridge}], rsp",
        "int3",
        bridge = sym BRIDGE,
    )
}

/// Loads DS, ES and GS and the state in `frame` (the address of its `struct ucontext`), runs to the next
/// signal, and returns the kernel's `struct ucontext` of that.
///
/// # Safety
/// The frame is complete; the code it points to harms nothing of the host process.
#[unsafe(naked)]
unsafe extern "C" fn enter(frame: u64, ds: u64, es: u64, gs: u64) -> u64 {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8",
        "stmxcsr [rsp]",
        "fnstcw [rsp + 4]",
        "mov [rip + {bridge}], rsp",
        "mov ds, esi",
        "mov es, edx",
        "mov gs, ecx",
        "mov rsp, rdi",
        "mov eax, 15",
        "syscall",
        "ud2",
        bridge = sym BRIDGE,
    )
}

/// The signal handler: segments, FPU control and stack become the host's again, and `enter` returns.
///
/// # Safety
/// Called by the kernel.
#[unsafe(naked)]
unsafe extern "C" fn landed(signal: i32, info: *const libc::siginfo_t, context: u64) {
    naked_asm!(
        "push 2",
        "popfq",
        "mov rcx, [rip + {bridge}]",
        "test rcx, rcx",
        "jz 3f",
        "xor eax, eax",
        "mov ds, eax",
        "mov es, eax",
        "mov gs, eax",
        "mov qword ptr [rip + {bridge}], 0",
        "mov rsp, rcx",
        "mov rax, rdx",
        "fninit",
        "ldmxcsr [rsp]",
        "fldcw [rsp + 4]",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        // A signal of the test itself: the default action, at the same instruction.
        "3:",
        "sub rsp, 8",
        "call {unexpected}",
        "add rsp, 8",
        "ret",
        bridge = sym BRIDGE,
        unexpected = sym unexpected,
    )
}

extern "C" fn unexpected(signal: i32) {
    // SAFETY: the default action is always valid.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}
