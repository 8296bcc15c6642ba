//! Runs one instruction on the host CPU, from any user-level state, and says what it did.
//!
//! The state goes in by a signal frame of our own that `rt_sigreturn` loads, and comes out in the frame of
//! the signal that ends it, whether that is the trap after one instruction (TF), the INT3 behind it, or a
//! fault:
//!
//! ```text
//! enter: save host registers ── rt_sigreturn(frame) ──▶ one instruction ──▶ signal
//!    ▲                                                                        │
//!    └──── host registers back, returns the kernel's frame ◀── landed ◀───────┘
//! ```
//!
//! Code and data lie at fixed low linear addresses, the same as in the software CPU's guest.

use crate::state::{CODE, CODE_BYTES, DATA, DATA_BYTES, End, Outcome, PAGE, PAGES, Stop, User, Vector};
use std::arch::naked_asm;
use std::ptr;

/// TF.
const TRAP_FLAG: u64 = 1 << 8;
/// IF and the bit that is always set.
const FIXED_FLAGS: u64 = 0x202;
/// Bytes of the signal frame up to the end of the kernel's `struct ucontext`.
const CONTEXT_BYTES: usize = 304;
/// Where the frame's FPU state begins in `Frame`, and the most that it may be.
const FPU_AT: usize = 0x400;
const FPU_MOST: usize = 0x3000;
/// XSTATE_BV: x87 and SSE hold something, the rest is in its initial state.
const XSTATE_BV: usize = 512;

/// What the kernel pops in `rt_sigreturn`: return address, `struct ucontext`, FPU state.
#[repr(C, align(64))]
struct Frame([u8; FPU_AT + FPU_MOST]);

/// What `enter` and `landed` share.
#[repr(C)]
struct Bridge {
    /// Host stack pointer, 0 outside of a run.
    rsp: u64,
    fs_base: u64,
    /// Whether FS and GS bases are the vector's.
    bases: u64,
}

static mut BRIDGE: Bridge = Bridge { rsp: 0, fs_base: 0, bases: 0 };

/// The host CPU as an executor. There is one a process.
pub struct Native {
    frame: Box<Frame>,
    code: *mut u8,
    /// Addresses of the present data pages, in the order of `PAGES`.
    base: Vec<u8>,
    data: Vec<u8>,
    /// Whether FS and GS bases can be set.
    pub bases: bool,
}

impl Native {
    /// Maps code and data and installs the signal handlers. `base` is what the data pages hold.
    pub fn new(base: &[u8]) -> Self {
        assert_eq!(base.len(), DATA_BYTES);
        let code = map(CODE, CODE_BYTES, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
        for (slot, (page, writable)) in PAGES.iter().enumerate() {
            let at = map(DATA + page * PAGE, PAGE as usize, libc::PROT_READ | libc::PROT_WRITE);
            let from = &base[slot * PAGE as usize..][..PAGE as usize];
            // SAFETY: `at` is a mapping of PAGE writable bytes that nothing else uses.
            unsafe { ptr::copy_nonoverlapping(from.as_ptr(), at, PAGE as usize) };
            if !writable {
                // SAFETY: the page was mapped above.
                let done = unsafe { libc::mprotect(at.cast(), PAGE as usize, libc::PROT_READ) };
                assert_eq!(done, 0, "mprotect: {}", std::io::Error::last_os_error());
            }
        }
        // SAFETY: getauxval only reads.
        let bases = unsafe { libc::getauxval(libc::AT_HWCAP2) } & 2 != 0;
        let frame = Box::new(Frame([0; FPU_AT + FPU_MOST]));
        let mut native = Self { frame, code, base: base.to_vec(), data: base.to_vec(), bases };
        native.take_template();
        handle(landed as *const () as usize, libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER);
        native
    }

    /// Fills the frame with what the kernel makes for a signal here: selectors, mask, signal stack, FPU
    /// layout.
    fn take_template(&mut self) {
        let bytes = 0x10000;
        let at = map(0, bytes, libc::PROT_READ | libc::PROT_WRITE);
        let stack = libc::stack_t { ss_sp: at.cast(), ss_flags: 0, ss_size: bytes };
        // SAFETY: the stack is a mapping of that size which is never unmapped.
        let done = unsafe { libc::sigaltstack(&stack, ptr::null_mut()) };
        assert_eq!(done, 0, "sigaltstack: {}", std::io::Error::last_os_error());
        handle(landed as *const () as usize, libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER);
        // SAFETY: INT3 raises SIGTRAP, whose handler returns here by way of the saved stack pointer.
        let context = unsafe { first_landing() };
        self.frame.0[8..CONTEXT_BYTES].copy_from_slice(bytes_at(context, CONTEXT_BYTES - 8));
        let fpu = u64_at(&self.frame.0, FPREGS);
        // struct _fpx_sw_bytes, in the last 48 of the 512 bytes: magic1, extended_size, xfeatures,
        // xstate_size.
        let sw = bytes_at(fpu, 512)[464..].to_vec();
        let extended = if u32_at(&sw, 0) == 0x4650_5853 { u32_at(&sw, 4) as usize } else { 512 };
        assert!(extended <= FPU_MOST, "a signal frame with {extended} bytes of FPU state");
        self.frame.0[FPU_AT..][..extended].copy_from_slice(bytes_at(fpu, extended));
        let own = self.frame.0.as_ptr() as u64 + FPU_AT as u64;
        self.frame.0[FPREGS..][..8].copy_from_slice(&own.to_le_bytes());
        if extended > 512 {
            self.frame.0[FPU_AT + XSTATE_BV..][..8].copy_from_slice(&3u64.to_le_bytes());
        }
    }

    /// Code and data selectors of user space here.
    pub fn selectors(&self) -> (u16, u16) {
        let all = u64_at(&self.frame.0, GREGS + 8 * CSGSFS);
        (all as u16, (all >> 48) as u16)
    }

    /// Runs `vector`; the data bytes stay as it leaves them until `restore`.
    pub fn run(&mut self, vector: &Vector) -> Outcome {
        self.write_code(vector);
        for (at, bytes) in &vector.patches {
            for (at, byte) in (*at..).zip(bytes) {
                let page = PAGES.iter().find(|(page, _)| *page == (at - DATA) / PAGE);
                assert!(page.is_some_and(|(_, writable)| *writable), "a patch of an absent page");
                // SAFETY: `at` lies in a mapped and writable data page, which nothing else uses.
                unsafe { *(at as *mut u8) = *byte };
            }
        }
        self.fill_frame(&vector.user, vector.stop);
        let bases = self.bases && (vector.user.fs_base != 0 || vector.user.gs_base != 0);
        // SAFETY: one thread at a time uses the bridge: the only `Native` of the process.
        unsafe { BRIDGE.bases = bases.into() };
        let frame = self.frame.0.as_ptr() as u64 + 8;
        // SAFETY: the frame is complete, and the instruction can write nothing but the test's own data pages:
        // every address that a vector makes lies there or where nothing is mapped.
        let context = unsafe { enter(frame, vector.user.fs_base, vector.user.gs_base) };
        let outcome = read_frame(bytes_at(context, CONTEXT_BYTES), vector);
        for (slot, (page, _)) in PAGES.iter().enumerate() {
            let bytes = bytes_at(DATA + page * PAGE, PAGE as usize);
            self.data[slot * PAGE as usize..][..PAGE as usize].copy_from_slice(bytes);
        }
        outcome
    }

    /// The data bytes after the last run.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Puts the usual data bytes back.
    pub fn restore(&mut self) {
        for (slot, (page, writable)) in PAGES.iter().enumerate() {
            let range = slot * PAGE as usize..(slot + 1) * PAGE as usize;
            if *writable && self.data[range.clone()] != self.base[range.clone()] {
                let at = (DATA + page * PAGE) as *mut u8;
                // SAFETY: the page is mapped, writable and used by nothing else.
                unsafe { ptr::copy_nonoverlapping(self.base[range].as_ptr(), at, PAGE as usize) };
            }
        }
    }

    fn write_code(&mut self, vector: &Vector) {
        let at = (vector.user.rip - CODE) as usize;
        let present = &vector.code[..vector.code.len().min(CODE_BYTES - at)];
        // SAFETY: `at` is below CODE_BYTES.
        let to = unsafe { self.code.add(at) };
        // SAFETY: the bytes fit the mapping, as cut; nothing runs them now.
        unsafe { ptr::copy_nonoverlapping(present.as_ptr(), to, present.len()) };
        if at + present.len() < CODE_BYTES {
            // SAFETY: the byte behind them is in the mapping, too.
            let end = unsafe { to.add(present.len()) };
            // SAFETY: as above.
            unsafe { *end = 0xcc };
        }
    }

    fn fill_frame(&mut self, user: &User, stop: Stop) {
        let frame = &mut self.frame.0;
        let mut set = |at: usize, value: u64| frame[at..at + 8].copy_from_slice(&value.to_le_bytes());
        for (n, value) in user.gpr.iter().enumerate() {
            set(GREGS + 8 * GPR_PLACES[n], *value);
        }
        set(GREGS + 8 * RIP, user.rip);
        let trap = if stop == Stop::Step { TRAP_FLAG } else { 0 };
        set(GREGS + 8 * RFLAGS, user.rflags | FIXED_FLAGS | trap);
        let fpu = &mut frame[FPU_AT..];
        fpu[0..2].copy_from_slice(&user.cw.to_le_bytes());
        fpu[2..4].copy_from_slice(&user.sw.to_le_bytes());
        fpu[4] = user.tag;
        fpu[5..24].fill(0);
        fpu[24..28].copy_from_slice(&user.mxcsr.to_le_bytes());
        for n in 0..8 {
            fpu[32 + 16 * n..][..10].copy_from_slice(&user.st[n]);
        }
        for n in 0..16 {
            fpu[160 + 16 * n..][..16].copy_from_slice(&user.xmm[n].to_le_bytes());
        }
    }
}

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

fn read_frame(context: &[u8], vector: &Vector) -> Outcome {
    let register = |n: usize| u64_at(context, GREGS - 8 + 8 * n);
    let fpu = bytes_at(u64_at(context, FPREGS - 8), 512);
    let short = |at: usize| u16::from_le_bytes([fpu[at], fpu[at + 1]]);
    let mut user = User {
        gpr: GPR_PLACES.map(register),
        rip: register(RIP),
        rflags: register(RFLAGS),
        fs_base: vector.user.fs_base,
        gs_base: vector.user.gs_base,
        cw: short(0),
        sw: short(2),
        tag: fpu[4],
        mxcsr: u32_at(fpu, 24),
        ..User::default()
    };
    for n in 0..8 {
        user.st[n].copy_from_slice(&fpu[32 + 16 * n..][..10]);
    }
    for n in 0..16 {
        let at = 160 + 16 * n;
        user.xmm[n] = u128::from(u64_at(fpu, at)) | (u128::from(u64_at(fpu, at + 8)) << 64);
    }
    let (trap, error) = (register(TRAP) as u8, register(ERROR) as u32);
    let end = match (trap, vector.stop) {
        (1, Stop::Step) => End::Retired,
        (3, Stop::Breakpoint) => {
            user.rip -= 1;
            End::Retired
        }
        (14, _) => {
            let cr2 = register(CR2);
            // The kernel says of its addresses, and of the last page below, that they are present.
            let error = if cr2 >> 12 == 0x7_ffff_ffff { error & !1 } else { error };
            End::Fault { vector: 14, error, cr2 }
        }
        (1 | 3, _) => End::Fault { vector: trap, error: 0, cr2: 0 },
        _ => End::Fault { vector: trap, error, cr2: 0 },
    };
    Outcome { end, user }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// Bytes of a mapping or of the kernel's last signal frame: valid until the next run.
fn bytes_at<'a>(address: u64, count: usize) -> &'a [u8] {
    // SAFETY: callers name mapped pages of the test and the frame on the signal stack, both live for the
    // whole process and written only while the instruction runs.
    unsafe { std::slice::from_raw_parts(address as *const u8, count) }
}

/// Private anonymous pages at `address` (0: anywhere), resident from the start.
fn map(address: u64, bytes: usize, protection: i32) -> *mut u8 {
    let fixed = if address == 0 { 0 } else { libc::MAP_FIXED_NOREPLACE };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE | fixed;
    // SAFETY: a new mapping, which replaces none.
    let at = unsafe { libc::mmap(address as *mut _, bytes, protection, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED, "mmap at {address:#x}: {}", std::io::Error::last_os_error());
    at.cast()
}

fn handle(handler: usize, flags: i32) {
    for signal in [libc::SIGTRAP, libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL] {
        // SAFETY: a sigaction of zeros is a valid one.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler;
        action.sa_flags = flags;
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

/// Loads the state in `frame` (the address of its `struct ucontext`), runs to the next signal, and returns
/// the kernel's `struct ucontext` of that.
///
/// # Safety
/// The frame is complete; the code it points to harms nothing of the host process.
#[unsafe(naked)]
unsafe extern "C" fn enter(frame: u64, fs_base: u64, gs_base: u64) -> u64 {
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
        "cmp qword ptr [rip + {bridge} + 16], 0",
        "je 2f",
        "rdfsbase rax",
        "mov [rip + {bridge} + 8], rax",
        "wrfsbase rsi",
        "wrgsbase rdx",
        "2:",
        "mov rsp, rdi",
        "mov eax, 15",
        "syscall",
        "ud2",
        bridge = sym BRIDGE,
    )
}

/// The signal handler: flags, segment bases, FPU control and stack become the host's again, and `enter`
/// returns.
///
/// # Safety
/// Called by the kernel.
#[unsafe(naked)]
unsafe extern "C" fn landed(signal: i32, info: *const libc::siginfo_t, context: u64) {
    naked_asm!(
        // AC, NT and the like, that the instruction may have left.
        "push 2",
        "popfq",
        "mov rcx, [rip + {bridge}]",
        "test rcx, rcx",
        "jz 3f",
        "cmp qword ptr [rip + {bridge} + 16], 0",
        "je 2f",
        "mov rax, [rip + {bridge} + 8]",
        "wrfsbase rax",
        "xor eax, eax",
        "wrgsbase rax",
        "2:",
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
