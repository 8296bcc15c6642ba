//! Decoded code: blocks of ops per physical page, and a table from RIP to block.
//!
//! A block is made for one linear address (RIP-relative operands and branch targets are computed when it is
//! decoded) and one mode, and stays within one page. A write to bytes that blocks were decoded from drops all
//! blocks of that page; chains lead only from a block to another one of the same page, so none dangles.

use crate::decode::LONGEST;
use crate::op::Op;
use crate::ram::PAGE;
use crate::{Cpu, Fault};

/// A request to a server on Linux goes through some five thousand targets of branches; one that is not found
/// here costs six or more misses of the host's caches.
const JUMPS: usize = 32768;
/// `scale` of a branch that may remember the block it leads to.
pub const LINKS: u8 = 1;
const GRANULE: u64 = 64;
const CROSSINGS: usize = 512;

#[derive(Clone, Copy)]
struct Jump {
    rip: u64,
    key: u64,
    first: *const Op,
}

const NO_JUMP: Jump = Jump { rip: 0, key: u64::MAX, first: std::ptr::null() };

/// Two ops, in one line of the host's cache: a block's header is with its first op.
#[repr(align(64))]
struct Line {
    _ops: [Op; 2],
}

/// A block: its first op is its header, whose `imm` counts its instructions.
struct Block {
    lines: *mut [Line],
    rip: u64,
    mode: u32,
    /// Another block at the same offset, plus one; 0 for none.
    other: u16,
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: made by `Box::into_raw` in `add`, and dropped once.
        drop(unsafe { Box::from_raw(self.lines) });
    }
}

impl Block {
    fn first(&self) -> *const Op {
        // SAFETY: a block has a header and at least one more op.
        unsafe { self.lines.cast::<Op>().add(1) }
    }
}

/// A block's ops as they are kept. What fills the last line is never executed: the op before it calls no
/// next.
fn lines(mut ops: Vec<Op>) -> Box<[Line]> {
    if let Some(last) = ops.last().filter(|_| !ops.len().is_multiple_of(2)) {
        ops.push(last.clone());
    }
    let mut ops = ops.into_iter();
    std::iter::from_fn(|| Some(Line { _ops: [ops.next()?, ops.next()?] })).collect()
}

struct CodePage {
    /// By offset in the page: number of a block plus one, or 0.
    at: Box<[u16; PAGE as usize]>,
    blocks: Vec<Block>,
    /// Which 64-byte pieces blocks were decoded from.
    covered: u64,
}

/// An instruction that crosses into the next page. It is compared with memory whenever it is executed, so
/// that nothing needs to drop it.
struct Crossing {
    rip: u64,
    mode: u32,
    bytes: [u8; LONGEST],
    length: usize,
    ops: Vec<Op>,
}

/// All decoded code.
pub struct CodeCache {
    jumps: Box<[Jump; JUMPS]>,
    epoch: u64,
    pages: Vec<Option<Box<CodePage>>>,
    crossings: Vec<Option<Crossing>>,
    scratch: Vec<Op>,
}

#[inline(always)]
fn slot(rip: u64) -> usize {
    // Fibonacci hashing (Knuth, The Art of Computer Programming, vol. 3, section 6.4).
    let hash = rip.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash >> (u64::BITS - JUMPS.trailing_zeros())) as usize % JUMPS
}

fn crossing_slot(rip: u64) -> usize {
    (rip / PAGE) as usize % CROSSINGS
}

fn pieces(offset: u64, size: u64) -> u64 {
    let (first, last) = (offset / GRANULE, (offset + size - 1).min(PAGE - 1) / GRANULE);
    (u64::MAX >> (63 - (last - first))) << first
}

impl CodeCache {
    pub(crate) fn new(pages: usize) -> Self {
        let mut all = Vec::new();
        all.resize_with(pages, || None);
        let mut crossings = Vec::new();
        crossings.resize_with(CROSSINGS, || None);
        Self { jumps: Box::new([NO_JUMP; JUMPS]), epoch: 1, pages: all, crossings, scratch: Vec::new() }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Forgets which block a RIP leads to; `jump_key` must be derived anew.
    pub(crate) fn forget_jumps(&mut self) {
        self.next_epoch();
    }

    /// Entries of the jump cache made so far are not found again: the epoch has the upper half of their keys.
    fn next_epoch(&mut self) {
        self.epoch += 1;
        if self.epoch > u64::from(u32::MAX) {
            self.epoch = 1;
            self.jumps.fill(NO_JUMP);
        }
    }

    /// Forgets instructions that cross into the next page.
    pub(crate) fn forget_crossings(&mut self) {
        self.crossings.fill_with(|| None);
    }

    /// Instructions in the block that begins with `first`.
    #[inline(always)]
    pub(crate) fn count(&self, first: *const Op) -> u64 {
        // SAFETY: a block's first op follows its header.
        unsafe { (*first.wrapping_sub(1)).imm }
    }

    /// Whether blocks were decoded from any of these bytes.
    pub(crate) fn covers(&self, gpa: u64, size: u64) -> bool {
        let page = self.pages[(gpa / PAGE) as usize].as_ref();
        page.is_some_and(|page| page.covered & pieces(gpa % PAGE, size) != 0)
    }

    /// Translated code of the page's blocks, as their headers have it.
    pub(crate) fn translated(&self, gpa: u64) -> impl Iterator<Item = u64> {
        let blocks = self.pages[(gpa / PAGE) as usize].iter().flat_map(|page| &page.blocks);
        // SAFETY: the block is alive, and its first op follows its header.
        blocks.map(|block| unsafe { (*block.first().wrapping_sub(1)).disp.get() })
    }

    pub(crate) fn drop_page(&mut self, gpa: u64) {
        self.pages[(gpa / PAGE) as usize] = None;
        self.next_epoch();
    }

    /// Keeps the ops of a page that is about to be dropped: a planted mistake goes on to use them.
    #[cfg(feature = "planted-faults")]
    fn leak_page(&mut self, gpa: u64) {
        std::mem::forget(self.pages[(gpa / PAGE) as usize].take());
    }

    fn find(&self, gpa: u64, rip: u64, mode: u32) -> Option<*const Op> {
        let page = self.pages[(gpa / PAGE) as usize].as_ref()?;
        let mut number = page.at[(gpa % PAGE) as usize];
        while number != 0 {
            let block = &page.blocks[usize::from(number) - 1];
            if block.rip == rip && block.mode == mode {
                return Some(block.first());
            }
            number = block.other;
        }
        None
    }

    /// Adds a block decoded from `bytes` bytes at `gpa`; `ops` has its header.
    fn add(&mut self, gpa: u64, rip: u64, mode: u32, bytes: u64, ops: Vec<Op>) -> *const Op {
        let page = self.pages[(gpa / PAGE) as usize].get_or_insert_with(|| {
            Box::new(CodePage { at: Box::new([0; PAGE as usize]), blocks: Vec::new(), covered: 0 })
        });
        let mut full = false;
        if page.blocks.len() == usize::from(u16::MAX) - 1 {
            *page.at = [0; PAGE as usize];
            page.blocks.clear();
            full = true;
        }
        page.covered |= pieces(gpa % PAGE, bytes);
        let at = &mut page.at[(gpa % PAGE) as usize];
        let lines = Box::into_raw(lines(ops));
        page.blocks.push(Block { lines, rip, mode, other: *at });
        *at = page.blocks.len() as u16;
        let first = page.blocks[page.blocks.len() - 1].first();
        if full {
            self.next_epoch();
        }
        first
    }

    pub(crate) fn take_scratch(&mut self) -> Vec<Op> {
        let mut ops = std::mem::take(&mut self.scratch);
        ops.clear();
        ops
    }

    pub(crate) fn keep_scratch(&mut self, ops: Vec<Op>) {
        self.scratch = ops;
    }
}

/// The first time that a branch is followed; or always, if its target is not in the same page.
#[inline(never)]
fn link(cpu: &mut Cpu, op: &Op) {
    let rip = cpu.rip;
    if let Some(first) = cpu.cached_block(rip) {
        if op.scale == LINKS {
            op.disp.set(std::ptr::from_ref(first) as u64);
        }
        (first.run)(cpu, first)
    }
}

impl Cpu {
    /// The block at `target`, if it is known and fits below the limit.
    #[inline(always)]
    pub(crate) fn cached_block<'a>(&mut self, target: u64) -> Option<&'a Op> {
        let jump = &self.cache.jumps[slot(target)];
        if jump.rip == target
            && jump.key == self.jump_key
            && self.retired + self.cache.count(jump.first) <= self.limit
        {
            // SAFETY: entries whose key is valid lead to blocks that are alive.
            return Some(unsafe { &*jump.first });
        }
        None
    }

    /// Instructions in the block at RIP, if it is decoded.
    pub fn known_block(&self) -> Option<u64> {
        let jump = &self.cache.jumps[slot(self.rip)];
        let known = jump.rip == self.rip && jump.key == self.jump_key;
        known.then(|| self.cache.count(jump.first))
    }

    /// Goes to the target of a branch in the same page. `op` remembers where it leads: blocks of a page are
    /// dropped together.
    #[inline(always)]
    pub(crate) fn follow(&mut self, op: &Op) {
        let first = op.disp.get() as *const Op;
        if first.is_null() {
            return link(self, op);
        }
        if self.retired + self.cache.count(first) <= self.limit {
            // SAFETY: the block is of the same page as the one being executed, which is alive.
            let first = unsafe { &*first };
            (first.run)(self, first)
        }
    }

    /// The block at RIP, decoded if need be; `None` for an instruction that crosses into the next page.
    pub(crate) fn block_at_rip(&mut self) -> Result<Option<*const Op>, Fault> {
        let rip = self.rip;
        let jump = self.cache.jumps[slot(rip)];
        if jump.rip == rip && jump.key == self.jump_key {
            return Ok(Some(jump.first));
        }
        if self.known_crossing(rip) {
            return Ok(None);
        }
        self.number_code();
        let gpa = self.translate_code(self.code_linear(rip))?;
        if !self.ram.holds(gpa, 1) {
            return Ok(None);
        }
        let first = match self.cache.find(gpa, rip, self.mode) {
            Some(first) => first,
            None => {
                let Some((mut ops, bytes)) = self.decode_block(gpa) else { return Ok(None) };
                if self.native.is_some() && self.mode & crate::cpu::mode::LONG != 0 {
                    crate::native::install(&mut ops);
                }
                self.watch_code(gpa);
                let epoch = self.cache.epoch;
                let first = self.cache.add(gpa, rip, self.mode, bytes, ops);
                if epoch != self.cache.epoch {
                    self.update_space();
                }
                first
            }
        };
        self.cache.jumps[slot(rip)] = Jump { rip, key: self.jump_key, first };
        Ok(Some(first))
    }

    /// Runs the instruction at RIP, which crosses into the next page.
    pub(crate) fn run_crossing(&mut self) {
        let rip = self.rip;
        let linear = self.code_linear(rip);
        let slot = crossing_slot(rip);
        if let Ok(crossing) = self.crossing(slot) {
            self.enter(crossing.ops.as_ptr());
            self.wrap_rip();
            // Other code may be there than at the last time.
            if linear % PAGE + crossing.length as u64 > PAGE {
                self.cache.crossings[slot] = Some(crossing);
            }
        }
    }

    /// Whether the instruction at `rip` crossed into the next page when it was executed last. Code that is
    /// there now and does not is executed as well, and then forgotten here.
    fn known_crossing(&self, rip: u64) -> bool {
        let known = self.cache.crossings[crossing_slot(rip)].as_ref();
        known.is_some_and(|known| known.rip == rip && known.mode == self.mode)
    }

    fn crossing(&mut self, slot: usize) -> Result<Crossing, Fault> {
        let known = self.cache.crossings[slot].take();
        match known.filter(|known| known.rip == self.rip && known.mode == self.mode) {
            Some(known) if self.fetch_bytes(self.rip, known.length)? == known.bytes => Ok(known),
            _ => self.decode_crossing(),
        }
    }

    fn decode_crossing(&mut self) -> Result<Crossing, Fault> {
        let ops = self.decode_part(1)?;
        let length = ops.last().map_or(0, |op| usize::from(op.ip));
        let bytes = self.fetch_bytes(self.rip, length)?;
        Ok(Crossing { rip: self.rip, mode: self.mode, bytes, length, ops })
    }

    /// Drops the decoded code of the page of `gpa`. The privilege of the access under way stays.
    pub(crate) fn drop_code(&mut self, gpa: u64) {
        let space = self.space;
        #[cfg(feature = "planted-faults")]
        if self.makes(crate::planted::Mistake::StaleEdge) {
            self.cache.leak_page(gpa);
        }
        if let Some(native) = &mut self.native {
            native.note_dropped(self.cache.translated(gpa));
        }
        self.cache.drop_page(gpa);
        #[cfg(feature = "planted-faults")]
        self.stale.forget(gpa);
        self.ram.clear_flags(gpa, crate::ram::CODE);
        self.update_space();
        self.restore_privilege(space);
    }
}
