//! Bytes of guest physical memory at whose stores a debugger wants the processor to stand still.
//!
//! Stores to a page that has such bytes are never cached in the TLB: each comes to `before_store`. One that
//! touches the bytes is executed alone, as one that changes code is, and the run ends after its step: the
//! instruction, the iteration, or the delivery whose frame it is. Everything else runs as ever. Whether the
//! bytes have another value now is for the debugger to see.
//!
//! A debugger names linear addresses. Where they lead it knows from the page tables, whose entries it has
//! watched too, and from CR0.PG, CR3 and EFER.LMA, whose changes end the run as stores do. Registers are
//! compared in the run loop: what changes them must come back there.

use std::ops::Range;

use crate::Cpu;
use crate::ram::{PAGE, WATCHED};

const CR0_PG: u64 = 1 << 31;

/// What is watched.
#[derive(Debug, Default)]
pub struct Watch {
    /// In order, none touching the next.
    ranges: Vec<Range<u64>>,
    /// Runs stop.
    obeyed: bool,
    /// A store to watched bytes was made, or begun, in this run.
    hit: bool,
    /// What decided about linear addresses when the run began.
    roots: [u64; 3],
}

impl Watch {
    fn covers(&self, gpa: u64, size: u64) -> bool {
        let next = self.ranges.partition_point(|range| range.end <= gpa);
        self.ranges.get(next).is_some_and(|range| range.start < gpa + size)
    }
}

/// In order, with those that touch made one.
fn merged(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut ranges: Vec<_> = ranges.iter().filter(|range| !range.is_empty()).cloned().collect();
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut().filter(|last| last.end >= range.start) {
            Some(last) => last.end = last.end.max(range.end),
            None => merged.push(range),
        }
    }
    merged
}

impl Cpu {
    /// Sets the bytes of guest physical memory that are watched; what is no RAM does not matter.
    pub fn set_watched(&mut self, ranges: &[Range<u64>]) {
        let ranges = merged(ranges);
        if self.watch.ranges == ranges {
            return;
        }
        for page in self.watched_pages() {
            self.ram.clear_flags(page, WATCHED);
        }
        self.watch.ranges = ranges;
        for page in self.watched_pages() {
            self.watch_stores(page);
        }
    }

    /// Whether `run` stops with `Exit::Watched` after a step that stored to watched bytes, or that changed
    /// CR0.PG, CR3 or EFER.LMA. It may also stop after one that only began to.
    pub fn obey_watched(&mut self, on: bool) {
        self.watch.obeyed = on;
        self.watch.hit = false;
        self.watch.roots = self.roots();
    }

    fn watched_pages(&self) -> Vec<u64> {
        let pages = |range: &Range<u64>| (range.start & !(PAGE - 1)..range.end).step_by(PAGE as usize);
        self.watch.ranges.iter().flat_map(pages).filter(|page| self.ram.holds(*page, PAGE)).collect()
    }

    fn roots(&self) -> [u64; 3] {
        [self.cr0 & CR0_PG, self.cr3, u64::from(self.is_long_mode())]
    }

    /// Whether the run is to end at this boundary.
    #[inline(always)]
    pub(crate) fn is_watched_change(&self) -> bool {
        self.watch.obeyed && (self.watch.hit || self.watch.roots != self.roots())
    }

    /// Whether a store to `size` bytes of a page with watched ones is one that ends the run.
    pub(crate) fn stops_at_store(&self, gpa: u64, size: u64) -> bool {
        self.watch.obeyed && self.watch.covers(gpa, size)
    }

    /// Such a store is about to be made, by an instruction that is executed alone.
    pub(crate) fn note_watched_store(&mut self) {
        self.watch.hit = true;
    }
}
