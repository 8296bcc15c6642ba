//! Signal frames, by which state goes into user code of the host (`rt_sigreturn` loads one) and comes out of
//! it (the signal that ends it leaves one):
//!
//! ```text
//! enter: save host registers ── rt_sigreturn(frame) ──▶ one instruction ──▶ signal
//!    ▲                                                                        │
//!    └──── host registers back, returns the kernel's frame ◀── landed ◀───────┘
//! ```
//!
//! `enter` and `landed` are each test's own, made of the parts here.

use std::arch::naked_asm;
use std::ptr;

/// Bytes of the signal frame up to the end of the kernel's `struct ucontext`.
const CONTEXT_BYTES: usize = 304;
/// Where the frame's FPU state begins in `Frame`, and the most that it may be.
const FPU_AT: usize = 0x400;
const FPU_MOST: usize = 0x3000;
/// XSTATE_BV: x87 and SSE hold something, the rest is in its initial state.
const XSTATE_BV: usize = 512;
/// Places in the signal frame: the return address, then `struct ucontext` with the registers at 40.
const GREGS: usize = 8 + 40;
const FPREGS: usize = GREGS + 23 * 8;
/// Registers in the order of `struct sigcontext`.
pub const RIP: usize = 16;
pub const RFLAGS: usize = 17;
pub const CSGSFS: usize = 18;
pub const ERROR: usize = 19;
pub const TRAP: usize = 20;
pub const CR2: usize = 22;
/// Where RAX, RCX, RDX, ... are among them.
pub const GPR_PLACES: [usize; 16] = [13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7];
/// TF.
pub const TRAP_FLAG: u64 = 1 << 8;
/// IF and the bit that is always set.
pub const FIXED_FLAGS: u64 = 0x202;

/// What `enter` and `landed` share: the host's stack pointer, 0 outside of a run; the host's FS base; whether
/// FS and GS bases are the instruction's.
pub static mut BRIDGE: [u64; 3] = [0; 3];

/// Saves the host's registers; its stack pointer is then in `BRIDGE`.
macro_rules! save_host {
    () => {
        "push rbx
        push rbp
        push r12
        push r13
        push r14
        push r15
        sub rsp, 8
        stmxcsr [rsp]
        fnstcw [rsp + 4]
        mov [rip + {bridge}], rsp"
    };
}

/// Loads the frame whose context RDI points to.
macro_rules! load_frame {
    () => {
        "mov rsp, rdi
        mov eax, 15
        syscall
        ud2"
    };
}

/// Flags become the host's (AC, NT and the like, that the instruction may have left), and RCX its stack
/// pointer; goes to 3 where that is 0.
macro_rules! begin_landing {
    () => {
        "push 2
        popfq
        mov rcx, [rip + {bridge}]
        test rcx, rcx
        jz 3f"
    };
}

/// Returns from `enter`; at 3 what handles a signal of the test itself: by the default action, at the same
/// instruction.
macro_rules! end_landing {
    () => {
        "mov qword ptr [rip + {bridge}], 0
        mov rsp, rcx
        mov rax, rdx
        fninit
        ldmxcsr [rsp]
        fldcw [rsp + 4]
        add rsp, 8
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbp
        pop rbx
        ret
        3:
        sub rsp, 8
        call {unexpected}
        add rsp, 8
        ret"
    };
}

pub(crate) use {begin_landing, end_landing, load_frame, save_host};

/// Takes a signal that nothing of the test has raised.
pub extern "C" fn unexpected(signal: i32) {
    // SAFETY: the default action is always valid.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

#[repr(C, align(64))]
struct Bytes([u8; FPU_AT + FPU_MOST]);

/// What the kernel pops in `rt_sigreturn`: return address, `struct ucontext`, FPU state. There is one a
/// process.
pub struct Frame(Box<Bytes>);

impl Frame {
    /// Has `landed` handle every signal by which an instruction ends, and takes over what the kernel makes
    /// for one: selectors, mask, signal stack, FPU layout.
    pub fn new(landed: usize) -> Self {
        let bytes = 0x10000;
        let at = map(0, bytes, libc::PROT_READ | libc::PROT_WRITE);
        let stack = libc::stack_t { ss_sp: at.cast(), ss_flags: 0, ss_size: bytes };
        // SAFETY: the stack is a mapping of that size which is never unmapped.
        let done = unsafe { libc::sigaltstack(&stack, ptr::null_mut()) };
        assert_eq!(done, 0, "sigaltstack: {}", std::io::Error::last_os_error());
        handle(landed);
        // SAFETY: INT3 raises SIGTRAP, whose handler returns here by way of the saved stack pointer.
        let context = Context(unsafe { first_landing() });
        let mut frame = Self(Box::new(Bytes([0; FPU_AT + FPU_MOST])));
        let all = &mut frame.0.0;
        all[8..CONTEXT_BYTES].copy_from_slice(bytes_at(context.0, CONTEXT_BYTES - 8));
        // struct _fpx_sw_bytes, in the last 48 of the 512 bytes: magic1, extended_size, xfeatures,
        // xstate_size.
        let sw = &context.fpu()[464..];
        let extended = if u32_at(sw, 0) == 0x4650_5853 { u32_at(sw, 4) as usize } else { 512 };
        assert!(extended <= FPU_MOST, "a signal frame with {extended} bytes of FPU state");
        all[FPU_AT..][..extended].copy_from_slice(bytes_at(context.fpu().as_ptr() as u64, extended));
        let own = all.as_ptr() as u64 + FPU_AT as u64;
        all[FPREGS..][..8].copy_from_slice(&own.to_le_bytes());
        if extended > 512 {
            all[FPU_AT + XSTATE_BV..][..8].copy_from_slice(&3u64.to_le_bytes());
        }
        frame
    }

    /// Sets a register, by its place.
    pub fn set(&mut self, place: usize, value: u64) {
        self.0.0[GREGS + 8 * place..][..8].copy_from_slice(&value.to_le_bytes());
    }

    /// A register, by its place.
    pub fn register(&self, place: usize) -> u64 {
        u64_at(&self.0.0, GREGS + 8 * place)
    }

    /// FXSAVE's area.
    pub fn fpu(&mut self) -> &mut [u8] {
        &mut self.0.0[FPU_AT..][..512]
    }

    /// What `enter` wants: the address of the `struct ucontext`.
    pub fn context(&self) -> u64 {
        self.0.0.as_ptr() as u64 + 8
    }
}

/// A `struct ucontext` that the kernel has made, valid until the next run.
pub struct Context(pub u64);

impl Context {
    /// A register, by its place.
    pub fn register(&self, place: usize) -> u64 {
        u64_at(bytes_at(self.0, CONTEXT_BYTES), GREGS - 8 + 8 * place)
    }

    /// FXSAVE's area.
    pub fn fpu(&self) -> &[u8] {
        bytes_at(u64_at(bytes_at(self.0, CONTEXT_BYTES), FPREGS - 8), 512)
    }
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// Bytes of a mapping or of the kernel's last signal frame: valid until the next run.
pub fn bytes_at<'a>(address: u64, count: usize) -> &'a [u8] {
    // SAFETY: callers name mapped pages of the test and the frame on the signal stack, both live for the
    // whole process and written only while an instruction runs.
    unsafe { std::slice::from_raw_parts(address as *const u8, count) }
}

/// Private anonymous pages at `address` (0: anywhere), resident from the start.
pub fn map(address: u64, bytes: usize, protection: i32) -> *mut u8 {
    let fixed = if address == 0 { 0 } else { libc::MAP_FIXED_NOREPLACE };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE | fixed;
    // SAFETY: a new mapping, which replaces none.
    let at = unsafe { libc::mmap(address as *mut _, bytes, protection, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED, "mmap at {address:#x}: {}", std::io::Error::last_os_error());
    at.cast()
}

fn handle(handler: usize) {
    for signal in [libc::SIGTRAP, libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL] {
        // SAFETY: a sigaction of zeros is a valid one.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        // SAFETY: the handler has the signature that SA_SIGINFO asks for.
        let done = unsafe { libc::sigaction(signal, &action, ptr::null_mut()) };
        assert_eq!(done, 0, "sigaction: {}", std::io::Error::last_os_error());
    }
}

/// Raises SIGTRAP and returns the kernel's `struct ucontext` of it.
///
/// # Safety
/// `landed` handles SIGTRAP on a signal stack.
#[unsafe(naked)]
unsafe extern "C" fn first_landing() -> u64 {
    naked_asm!(save_host!(), "int3", bridge = sym BRIDGE)
}
