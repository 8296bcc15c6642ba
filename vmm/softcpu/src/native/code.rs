//! Memory for translated code: one file in memory, mapped twice, so that nothing is writable and executable
//! at one address.

use std::ptr;

use super::emit::{Code, Target};
use super::mapping::{Mapping, memory_file};

/// Bytes for what is executed often; as many again for the rest.
const PART: usize = 64 << 20;
/// Room that must be left for a block.
const ROOM: usize = 64 << 10;

/// Pieces of code memory, in which few calls fit.
const GRANULE: usize = 16;
pub const GRANULES: usize = 2 * PART / GRANULE;

/// The piece of an offset.
pub fn granule(offset: u32) -> usize {
    offset as usize / GRANULE
}

/// Code memory with two parts, each filled from its start on.
pub struct CodeMemory {
    write: Mapping,
    run: Mapping,
    hot: usize,
    cold: usize,
    /// Where they start again when everything is dropped.
    first: (usize, usize),
    /// Code was changed since the host's processor was last told.
    changed: bool,
}

impl CodeMemory {
    /// `None` where the host gives no executable memory.
    pub fn new() -> Option<Self> {
        let file = memory_file(2 * PART as u64)?;
        let write = Mapping::of(&file, 2 * PART, libc::PROT_READ | libc::PROT_WRITE)?;
        let run = Mapping::of(&file, 2 * PART, libc::PROT_READ | libc::PROT_EXEC)?;
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
        self.run.start() as u64 + u64::from(offset)
    }

    /// Offset of an address in code memory.
    pub fn offset(&self, address: u64) -> u32 {
        let offset = address.wrapping_sub(self.run.start() as u64);
        assert!(offset < 2 * PART as u64, "{address:#x} is not in code memory");
        offset as u32
    }

    /// Places both parts of a block at `next`.
    pub fn place(&mut self, hot: &Code, cold: &Code) {
        let (at_hot, at_cold) = (self.hot, self.cold);
        assert!(at_hot + hot.here() <= PART && at_cold + cold.here() <= 2 * PART, "room for a block");
        for (at, code) in [(at_hot, hot), (at_cold, cold)] {
            let to = self.write.start().wrapping_add(at);
            // SAFETY: the range is in the mapping, as just asserted.
            unsafe { ptr::copy_nonoverlapping(code.bytes.as_ptr(), to, code.here()) };
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

    /// Code that was placed.
    #[cfg(any(debug_assertions, feature = "planted-faults"))]
    pub fn bytes(&self, offset: u32, count: usize) -> &[u8] {
        assert!(offset as usize + count <= 2 * PART);
        // SAFETY: the range is in the mapping; it changes only through this value.
        unsafe { std::slice::from_raw_parts(self.write.start().wrapping_add(offset as usize), count) }
    }

    /// Makes the 32-bit displacement at `place` lead to `target`.
    pub fn point(&mut self, place: u32, target: u32) {
        self.set(place, target.wrapping_sub(place + 4));
    }

    /// Code at `old` goes to `new` at once: five bytes change, which none but `old` itself are entered at.
    pub fn replace(&mut self, old: u32, new: u32) {
        let to = self.write.start().wrapping_add(old as usize);
        assert!(old as usize + 5 <= 2 * PART);
        // SAFETY: the byte is in the mapping.
        unsafe { to.write(0xe9) };
        self.point(old + 1, new);
    }

    /// Changes 32 bits of code.
    pub fn set(&mut self, place: u32, value: u32) {
        assert!(place as usize + 4 <= 2 * PART);
        let to = self.write.start().wrapping_add(place as usize);
        // SAFETY: the four bytes are in the mapping.
        unsafe { to.cast::<u32>().write_unaligned(value) };
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
