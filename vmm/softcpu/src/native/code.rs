//! Memory for translated code: one file in memory, mapped twice, so that nothing is writable and executable
//! at one address.

use std::ptr;

use super::emit::{Code, Target};

/// Bytes for what is executed often; as many again for the rest.
const PART: usize = 32 << 20;
/// Room that must be left for a block.
const ROOM: usize = 64 << 10;

/// Pieces of the main part, in which few calls fit.
const GRANULE: usize = 16;
pub const GRANULES: usize = PART / GRANULE;

/// The piece of an offset in the main part.
pub fn granule(offset: u32) -> usize {
    offset as usize / GRANULE
}

/// Code memory with two parts, each filled from its start on.
pub struct CodeMemory {
    write: *mut u8,
    run: *const u8,
    hot: usize,
    cold: usize,
    /// Where they start again when everything is dropped.
    first: (usize, usize),
    /// Code was changed since the host's processor was last told.
    changed: bool,
}

// SAFETY: the mappings belong to this value alone.
unsafe impl Send for CodeMemory {}

impl CodeMemory {
    /// `None` where the host gives no executable memory.
    pub fn new() -> Option<Self> {
        // SAFETY: plain system calls; their results are checked, and the descriptor is closed.
        let (write, run) = unsafe {
            let file = libc::memfd_create(c"lockstep-code".as_ptr(), libc::MFD_CLOEXEC);
            if file < 0 {
                return None;
            }
            let sized = libc::ftruncate(file, 2 * PART as i64) == 0;
            let map = |protection| {
                let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
                let at = libc::mmap(ptr::null_mut(), 2 * PART, protection, flags, file, 0);
                (at != libc::MAP_FAILED).then_some(at.cast::<u8>())
            };
            let write = if sized { map(libc::PROT_READ | libc::PROT_WRITE) } else { None };
            let run = write.and_then(|_| map(libc::PROT_READ | libc::PROT_EXEC));
            libc::close(file);
            if let (Some(write), None) = (write, run) {
                libc::munmap(write.cast(), 2 * PART);
            }
            let (write, run) = (write?, run?);
            libc::madvise(write.cast(), 2 * PART, libc::MADV_DONTFORK);
            libc::madvise(run.cast(), 2 * PART, libc::MADV_DONTFORK);
            (write, run)
        };
        Some(Self { write, run, hot: 0, cold: PART, first: (0, PART), changed: false })
    }

    /// What was placed until now is kept when all code is dropped.
    pub fn keep(&mut self) {
        self.first = (self.hot, self.cold);
    }

    /// Whether another block might not fit.
    pub fn is_full(&self) -> bool {
        self.hot + ROOM > PART || self.cold + ROOM > 2 * PART
    }

    /// Forgets all blocks.
    pub fn clear(&mut self) {
        (self.hot, self.cold) = self.first;
    }

    /// Bytes used by blocks.
    pub fn used(&self) -> u64 {
        (self.hot - self.first.0 + self.cold - self.first.1) as u64
    }

    /// Where the next block's parts will be placed.
    pub fn next(&self) -> (u32, u32) {
        (self.hot as u32, self.cold as u32)
    }

    /// Address of code at an offset, for execution.
    pub fn address(&self, offset: u32) -> u64 {
        assert!((offset as usize) < 2 * PART);
        self.run as u64 + u64::from(offset)
    }

    /// Offset of an address in code memory.
    pub fn offset(&self, address: u64) -> u32 {
        let offset = address.wrapping_sub(self.run as u64);
        assert!(offset < 2 * PART as u64, "{address:#x} is not in code memory");
        offset as u32
    }

    /// Places both parts of a block at `next`.
    pub fn place(&mut self, hot: &Code, cold: &Code) {
        let (at_hot, at_cold) = (self.hot, self.cold);
        assert!(at_hot + hot.here() <= PART && at_cold + cold.here() <= 2 * PART, "room for a block");
        for (at, code) in [(at_hot, hot), (at_cold, cold)] {
            // SAFETY: the range is in the mapping, as just asserted.
            unsafe { ptr::copy_nonoverlapping(code.bytes.as_ptr(), self.write.add(at), code.here()) };
            for (place, target) in &code.fixups {
                let target = match target {
                    Target::Hot(offset) => at_hot + offset,
                    Target::Cold(offset) => at_cold + offset,
                    Target::Code(offset) => *offset as usize,
                };
                self.point((at + place) as u32, target as u32);
            }
        }
        self.hot = (at_hot + hot.here()).next_multiple_of(16);
        self.cold = at_cold + cold.here();
        self.changed = true;
    }

    /// Makes the 32-bit displacement at `place` lead to `target`.
    pub fn point(&mut self, place: u32, target: u32) {
        self.set(place, target.wrapping_sub(place + 4));
    }

    /// Changes 32 bits of code.
    pub fn set(&mut self, place: u32, value: u32) {
        assert!(place as usize + 4 <= 2 * PART);
        // SAFETY: the four bytes are in the mapping.
        unsafe { self.write.add(place as usize).cast::<u32>().write_unaligned(value) };
        self.changed = true;
    }

    /// Tells the host's processor that code was changed through another address than it is executed at
    /// (SDM vol. 3, 8.1.3): IRETQ serialises, also where CPUID would trap.
    #[inline(always)]
    pub fn synchronize(&mut self) {
        if std::mem::take(&mut self.changed) {
            // SAFETY: returns to the next instruction with the same stack, flags and segments.
            unsafe {
                std::arch::asm!(
                    "mov {old}, rsp",
                    "mov {s:e}, ss",
                    "push {s}",
                    "push {old}",
                    "pushfq",
                    "mov {s:e}, cs",
                    "push {s}",
                    "lea {s}, [rip + 2f]",
                    "push {s}",
                    "iretq",
                    "2:",
                    s = out(reg) _,
                    old = out(reg) _,
                );
            }
        }
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        // SAFETY: both mappings were made in `new`, and nothing is executed in them any more.
        unsafe {
            libc::munmap(self.write.cast(), 2 * PART);
            libc::munmap(self.run.cast_mut().cast(), 2 * PART);
        }
    }
}
