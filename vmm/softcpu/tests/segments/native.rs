//! Runs one instruction of 32-bit or 16-bit code on the host's processor, in segments of an LDT of this
//! process (modify_ldt).
//!
//! It ends by the trap after one instruction, or by a fault (`frame`).

use crate::case::{Case, Descriptor, End, Outcome, REGIONS, SEGMENTS};
use crate::frame::{
    BRIDGE, CR2, CSGSFS, Context, ERROR, FIXED_FLAGS, Frame, GPR_PLACES, RFLAGS, RIP, TRAP, TRAP_FLAG,
    begin_landing, bytes_at, end_landing, load_frame, map, save_host, unexpected,
};
use std::arch::naked_asm;
use std::ptr;

/// The host's processor as an executor. There is one a process.
pub struct Native {
    frame: Frame,
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
        let mut frame = Frame::new(landed as *const () as usize);
        // An x87 unit as FNINIT leaves it, zeros in the SSE registers.
        let fpu = frame.fpu();
        fpu[..416].fill(0);
        fpu[..2].copy_from_slice(&0x37fu16.to_le_bytes());
        fpu[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        Some(Self { frame, table: [None; SEGMENTS] })
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
        for (n, place) in GPR_PLACES.iter().enumerate() {
            self.frame.set(*place, case.gpr.get(n).copied().unwrap_or(0).into());
        }
        self.frame.set(RIP, case.eip.into());
        self.frame.set(RFLAGS, u64::from(case.flags) | TRAP_FLAG | FIXED_FLAGS);
        self.frame.set(CSGSFS, selectors[0] | selectors[1] << 48);
        let frame = self.frame.context();
        // SAFETY: the frame is complete, and 32-bit code reaches nothing of the process but the regions.
        let context = unsafe { enter(frame, selectors[2], selectors[3], selectors[4]) };
        let register = |place: usize| Context(context).register(place);
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

/// Loads DS, ES and GS and the state in `frame` (the address of its `struct ucontext`), runs to the next
/// signal, and returns the kernel's `struct ucontext` of that.
///
/// # Safety
/// The frame is complete; the code it points to harms nothing of the host process.
#[unsafe(naked)]
unsafe extern "C" fn enter(frame: u64, ds: u64, es: u64, gs: u64) -> u64 {
    naked_asm!(
        save_host!(),
        "mov ds, esi",
        "mov es, edx",
        "mov gs, ecx",
        load_frame!(),
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
        begin_landing!(),
        "xor eax, eax",
        "mov ds, eax",
        "mov es, eax",
        "mov gs, eax",
        end_landing!(),
        bridge = sym BRIDGE,
        unexpected = sym unexpected,
    )
}
