//! Decoded code: blocks of ops per physical page, and a table from RIP to block.
//!
//! A block is made for one linear address (RIP-relative operands and branch targets are computed when it is
//! decoded) and one mode, and stays within one page. A write to bytes that blocks were decoded from drops all
//! blocks of that page, and what leads to them from elsewhere; chains lead only from a block to another one
//! of the same page, so none dangles.

use crate::arena::{Arena, Ops};
use crate::decode::LONGEST;
use crate::op::Op;
use crate::ram::{CODE, PAGE, TABLE};
use crate::{Cpu, Fault};

/// A request to a server on Linux goes through some five thousand targets of branches; one that is not found
/// here costs six or more misses of the host's caches.
const JUMPS: usize = 32768;
/// `scale` of a branch that may remember the block it leads to.
pub const LINKS: u8 = 1;
/// Bytes of a piece of a page.
const GRANULE: u64 = 64;

#[derive(Clone, Copy)]
struct Jump {
    rip: u64,
    key: u64,
    first: *const Op,
}

const NO_JUMP: Jump = Jump { rip: 0, key: u64::MAX, first: std::ptr::null() };

/// A block: before its first op is its header, whose `imm` counts its instructions.
struct Block {
    first: *const Op,
    rip: u64,
    mode: u32,
    /// Another block that begins in the same piece of the page, plus one; 0 for none.
    other: u16,
}

struct CodePage {
    /// By piece of the page: number of a block that begins there plus one, or 0.
    at: [u16; (PAGE / GRANULE) as usize],
    blocks: Vec<Block>,
    ops: Ops,
    /// Which pieces blocks were decoded from.
    covered: u64,
}

impl Default for CodePage {
    fn default() -> Self {
        let at = [0; (PAGE / GRANULE) as usize];
        Self { at, blocks: Vec::new(), ops: Ops::default(), covered: 0 }
    }
}

/// Pages whose last instruction is remembered if it crosses into the next: a compiler has 8,000 of code.
const CROSSINGS: usize = 4096;

/// An instruction that crosses into the next page. It is compared with memory whenever it is executed, so
/// that nothing needs to drop it.
pub struct Crossing {
    rip: u64,
    mode: u32,
    bytes: [u8; LONGEST],
    length: usize,
    ops: Vec<Op>,
}

impl Crossing {
    /// Its first op.
    pub fn first(&self) -> &Op {
        &self.ops[0]
    }
}

/// All decoded code.
pub struct CodeCache {
    jumps: Box<[Jump; JUMPS]>,
    epoch: u64,
    pages: Vec<Option<Box<CodePage>>>,
    arena: Arena,
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
        let (jumps, arena) = (Box::new([NO_JUMP; JUMPS]), Arena::default());
        Self { jumps, epoch: 1, pages: all, arena, crossings, scratch: Vec::new() }
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
        blocks.map(|block| unsafe { (*block.first.wrapping_sub(1)).disp.get() })
    }

    /// Takes the blocks of a page, to which nothing here leads any more.
    fn take_page(&mut self, gpa: u64) -> Option<Box<CodePage>> {
        let page = self.pages[(gpa / PAGE) as usize].take()?;
        for block in &page.blocks {
            let jump = &mut self.jumps[slot(block.rip)];
            if jump.first == block.first {
                *jump = NO_JUMP;
            }
        }
        Some(page)
    }

    fn drop_page(&mut self, gpa: u64) {
        if let Some(page) = self.take_page(gpa) {
            self.arena.give_back(page.ops);
        }
    }

    fn find(&self, gpa: u64, rip: u64, mode: u32) -> Option<*const Op> {
        let page = self.pages[(gpa / PAGE) as usize].as_ref()?;
        let mut number = page.at[(gpa % PAGE / GRANULE) as usize];
        while number != 0 {
            let block = &page.blocks[usize::from(number) - 1];
            if block.rip == rip && block.mode == mode {
                return Some(block.first);
            }
            number = block.other;
        }
        None
    }

    /// Adds a block decoded from `bytes` bytes at `gpa`; `ops` has its header.
    fn add(&mut self, gpa: u64, rip: u64, mode: u32, bytes: u64, ops: &[Op]) -> *const Op {
        let page = self.pages[(gpa / PAGE) as usize].get_or_insert_default();
        let full = page.blocks.len() == usize::from(u16::MAX) - 1;
        if full {
            let before = std::mem::take(&mut **page);
            self.arena.give_back(before.ops);
        }
        page.covered |= pieces(gpa % PAGE, bytes);
        let at = &mut page.at[(gpa % PAGE / GRANULE) as usize];
        let first = self.arena.keep(&mut page.ops, ops).wrapping_add(1);
        page.blocks.push(Block { first, rip, mode, other: *at });
        *at = page.blocks.len() as u16;
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

    /// The block at `rip`, which `cached_block` did not find, if it is decoded and fits below the limit, and
    /// the run loop would go there. In 64-bit code only.
    #[inline(never)]
    pub(crate) fn decoded_block<'a>(&mut self, rip: u64) -> Option<&'a Op> {
        if self.breakpoints.has(rip) {
            return None;
        }
        let gpa = self.known_code(rip).filter(|gpa| self.ram.holds(*gpa, 1))?;
        let first = self.cache.find(gpa, rip, self.mode)?;
        self.cache.jumps[slot(rip)] = Jump { rip, key: self.jump_key, first };
        self.cached_block(rip)
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
                let first = self.cache.add(gpa, rip, self.mode, bytes, &ops);
                self.cache.keep_scratch(ops);
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
        let linear = self.code_linear(self.rip);
        if let Ok(crossing) = self.crossing(crossing_slot(self.rip)) {
            self.enter(crossing.ops.as_ptr());
            self.wrap_rip();
            // Other code may be there than at the last time.
            if linear % PAGE + crossing.length as u64 > PAGE {
                self.keep_crossing(crossing);
            }
        }
    }

    /// The instruction at RIP, of 64-bit code, if it crossed into the next page when it was executed last and
    /// still does. It is to be given back.
    pub(crate) fn take_crossing(&mut self) -> Option<Crossing> {
        let rip = self.rip;
        if !self.known_crossing(rip) {
            return None;
        }
        let crossing = self.crossing(crossing_slot(rip)).ok()?;
        (rip % PAGE + crossing.length as u64 > PAGE).then_some(crossing)
    }

    /// Remembers such an instruction.
    pub(crate) fn keep_crossing(&mut self, crossing: Crossing) {
        let slot = crossing_slot(crossing.rip);
        self.cache.crossings[slot] = Some(crossing);
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

    /// Drops the decoded code of the page of `gpa`.
    pub(crate) fn drop_code(&mut self, gpa: u64) {
        #[cfg(feature = "planted-faults")]
        if self.makes(crate::planted::Mistake::StaleEdge) {
            // Translated code goes on to use the ops.
            std::mem::forget(self.cache.take_page(gpa));
        }
        if let Some(native) = &mut self.native {
            native.note_dropped(self.cache.translated(gpa));
        }
        self.cache.drop_page(gpa);
        #[cfg(feature = "planted-faults")]
        self.stale.forget(gpa);
        self.ram.clear_flags(gpa, CODE);
    }

    /// Somebody else wrote RAM: what is cached of it is dropped.
    pub fn ram_written(&mut self, gpa: u64, bytes: usize) {
        let mut at = gpa & !(PAGE - 1);
        let end = gpa.saturating_add(bytes as u64);
        while at < end && self.ram.holds(at, PAGE) {
            let flags = self.ram.flags(at);
            if flags & TABLE != 0 {
                self.flush_translations();
            }
            if flags & CODE != 0 {
                self.drop_code(at);
            }
            at += PAGE;
        }
    }
}
