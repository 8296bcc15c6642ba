//! Runs one instruction on the host CPU, from any user-level state, and says what it did.
//!
//! It ends by the trap after one instruction (TF), by the INT3 behind it, or by a fault (`frame`). Code and
//! data lie at fixed low linear addresses, the same as in the software CPU's guest.

use crate::frame::{
    BRIDGE, CR2, CSGSFS, Context, ERROR, FIXED_FLAGS, Frame, GPR_PLACES, RFLAGS, RIP, TRAP, TRAP_FLAG,
    begin_landing, bytes_at, end_landing, load_frame, map, save_host, u32_at, u64_at, unexpected,
};
use crate::state::{CODE, CODE_BYTES, DATA, DATA_BYTES, End, Outcome, PAGE, PAGES, Stop, User, Vector};
use std::arch::naked_asm;
use std::ptr;

/// The host CPU as an executor. There is one a process.
pub struct Native {
    frame: Frame,
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
        let frame = Frame::new(landed as *const () as usize);
        Self { frame, code, base: base.to_vec(), data: base.to_vec(), bases }
    }

    /// Code and data selectors of user space here.
    pub fn selectors(&self) -> (u16, u16) {
        let all = self.frame.register(CSGSFS);
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
        unsafe { BRIDGE[2] = bases.into() };
        let frame = self.frame.context();
        // SAFETY: the frame is complete, and the instruction can write nothing but the test's own data pages:
        // every address that a vector makes lies there or where nothing is mapped.
        let context = unsafe { enter(frame, vector.user.fs_base, vector.user.gs_base) };
        let outcome = outcome(&Context(context), vector);
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
        for (n, value) in user.gpr.iter().enumerate() {
            self.frame.set(GPR_PLACES[n], *value);
        }
        self.frame.set(RIP, user.rip);
        let trap = if stop == Stop::Step { TRAP_FLAG } else { 0 };
        self.frame.set(RFLAGS, user.rflags | FIXED_FLAGS | trap);
        let fpu = self.frame.fpu();
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

fn outcome(context: &Context, vector: &Vector) -> Outcome {
    let register = |place: usize| context.register(place);
    let fpu = context.fpu();
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

/// Loads the state in `frame` (the address of its `struct ucontext`), runs to the next signal, and returns
/// the kernel's `struct ucontext` of that.
///
/// # Safety
/// The frame is complete; the code it points to harms nothing of the host process.
#[unsafe(naked)]
unsafe extern "C" fn enter(frame: u64, fs_base: u64, gs_base: u64) -> u64 {
    naked_asm!(
        save_host!(),
        "cmp qword ptr [rip + {bridge} + 16], 0",
        "je 2f",
        "rdfsbase rax",
        "mov [rip + {bridge} + 8], rax",
        "wrfsbase rsi",
        "wrgsbase rdx",
        "2:",
        load_frame!(),
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
        begin_landing!(),
        "cmp qword ptr [rip + {bridge} + 16], 0",
        "je 2f",
        "mov rax, [rip + {bridge} + 8]",
        "wrfsbase rax",
        "xor eax, eax",
        "wrgsbase rax",
        "2:",
        end_landing!(),
        bridge = sym BRIDGE,
        unexpected = sym unexpected,
    )
}
