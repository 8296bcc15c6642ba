//! Segmentation in compatibility mode (SDM vol. 3, 5.3 to 5.5): which segments need looking at, and the
//! checks of an access before anything of it is done.
//!
//! What is the same for all code in a flat segment costs nothing: a bit of the mode for each segment register
//! says whether accesses through it are checked, and the mode is part of what a block is known by. A code
//! segment with a base or a limit has a number in the mode, so that its blocks are its own.

use crate::cpu::mode;
use crate::exception::{Exception, vector};
use crate::state::{Seg, Segment};
use crate::{Cpu, Fault};

/// Code segments that are numbered at a time.
const NUMBERS: usize = 254;
/// No number was left: blocks are made after all numbers were given up.
const UNNUMBERED: u32 = 255;
/// Bits of a segment's type (SDM vol. 3, table 3-1).
const CODE: u32 = 8;
const EXPAND_DOWN: u32 = 4;
const WRITABLE: u32 = 2;
const READABLE: u32 = 2;

/// Whether nothing that is done through a data segment needs looking at. An operand that wraps at 4 GiB is
/// allowed in such a segment, and in no other of that size: so it is in processors of Intel's.
fn is_flat(segment: &Segment) -> bool {
    let kind = segment.access & (CODE | EXPAND_DOWN | WRITABLE | Segment::UNUSABLE);
    kind == WRITABLE && segment.base == 0 && segment.limit == u32::MAX
}

/// Whether `size` bytes at `offset` may be accessed.
fn allows(segment: &Segment, offset: u64, size: u64, write: bool) -> bool {
    let (access, limit) = (segment.access, u64::from(segment.limit));
    let of_type = match (access & CODE != 0, write) {
        (true, true) => false,
        (true, false) => access & READABLE != 0,
        (false, true) => access & WRITABLE != 0,
        (false, false) => true,
    };
    let last = offset + (size - 1);
    let within = if access & (CODE | EXPAND_DOWN) == EXPAND_DOWN {
        let end = if access & Segment::BIG != 0 { 0xffff_ffff } else { 0xffff };
        offset > limit && last <= end
    } else {
        last <= limit
    };
    access & Segment::UNUSABLE == 0 && of_type && within
}

impl Cpu {
    /// What the segment registers add to the mode in compatibility mode.
    pub(crate) fn segmentation(&mut self) -> u32 {
        // Through CS nothing is ever written.
        let mut bits = mode::CHECKED << Seg::Cs as u32;
        for seg in [Seg::Es, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs] {
            if !is_flat(&self.segments[seg as usize]) {
                bits |= mode::CHECKED << seg as u32;
            }
        }
        bits | self.code_number() << mode::CODE_NUMBER
    }

    /// The number of the code segment; 0 of a flat one.
    fn code_number(&mut self) -> u32 {
        let code = self.segments[Seg::Cs as usize];
        let key = (code.base, code.limit);
        if key == (0, u32::MAX) {
            return 0;
        }
        let known = &mut self.code_segments;
        let place = known.iter().position(|other| *other == key).or_else(|| {
            (known.len() < NUMBERS).then(|| {
                known.push(key);
                known.len() - 1
            })
        });
        place.map_or(UNNUMBERED, |place| place as u32 + 1)
    }

    /// Outside of blocks: gives the code segment a number if it has none.
    pub(crate) fn number_code(&mut self) {
        if self.mode >> mode::CODE_NUMBER == UNNUMBERED {
            self.code_segments.clear();
            self.cache.forget_crossings();
            self.ram_written(0, self.ram.pages() * crate::ram::PAGE as usize);
            self.update_mode();
        }
    }

    /// The linear address of code.
    #[inline(always)]
    pub(crate) fn code_linear(&self, rip: u64) -> u64 {
        if self.mode & mode::LONG != 0 {
            return rip;
        }
        self.base(Seg::Cs).wrapping_add(rip) & 0xffff_ffff
    }

    /// How many bytes of code there may be from `rip` on. In a segment of 4 GiB they go on at its begin.
    pub(crate) fn code_room(&self, rip: u64) -> u64 {
        let limit = self.code_limit();
        if limit < 0xffff_ffff { (limit + 1).saturating_sub(rip) } else { u64::MAX }
    }

    /// The last instruction pointer that a branch may lead to, but for canonical addresses in 64-bit mode.
    pub(crate) fn code_limit(&self) -> u64 {
        if self.mode & mode::LONG != 0 { u64::MAX } else { u64::from(self.segments[Seg::Cs as usize].limit) }
    }

    /// EIP has 32 bits.
    #[inline(always)]
    pub(crate) fn wrap_rip(&mut self) {
        if self.mode & mode::LONG == 0 {
            self.rip &= 0xffff_ffff;
        }
    }

    /// The linear address of `size` bytes at `offset` in a segment in compatibility mode; #SS(0) or #GP(0)
    /// where the segment does not allow the access.
    #[inline(always)]
    pub(crate) fn segment_linear(
        &mut self,
        seg: usize,
        offset: u64,
        size: u64,
        write: bool,
    ) -> Result<u64, Fault> {
        let seg = seg % 8;
        if self.mode & (mode::CHECKED << seg) != 0 {
            self.check_segment(seg, offset, size, write)?;
        }
        Ok(self.bases[seg].wrapping_add(offset) & 0xffff_ffff)
    }

    #[cold]
    #[inline(never)]
    fn check_segment(&mut self, seg: usize, offset: u64, size: u64, write: bool) -> Result<(), Fault> {
        if allows(&self.segments[seg], offset, size, write) {
            return Ok(());
        }
        let vector = if seg == Seg::Ss as usize { vector::SS } else { vector::GP };
        self.raise(Exception::coded(vector, 0))
    }
}
