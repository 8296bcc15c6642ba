//! A mistake that tests plant: decoded code that outlives a write to its bytes.

use std::collections::BTreeMap;

use crate::Cpu;
use crate::ram::PAGE;

/// Code that the guest has overwritten and the processor still executes.
pub struct StaleCode {
    /// From this position on the guest's writes drop no decoded code.
    from: u64,
    /// Pages as they were when the first of their writes was lost.
    pages: BTreeMap<u64, Vec<u8>>,
}

impl Default for StaleCode {
    fn default() -> Self {
        Self { from: u64::MAX, pages: BTreeMap::new() }
    }
}

impl StaleCode {
    /// Makes of bytes read at `gpa`, all of one page, what the processor takes them for.
    pub(crate) fn show(&self, gpa: u64, bytes: &mut [u8]) {
        let offset = (gpa % PAGE) as usize;
        if let Some(was) =
            self.pages.get(&(gpa / PAGE)).and_then(|page| page.get(offset..offset + bytes.len()))
        {
            bytes.copy_from_slice(was);
        }
    }

    /// The page's code is dropped after all.
    pub(crate) fn forget(&mut self, gpa: u64) {
        self.pages.remove(&(gpa / PAGE));
    }
}

impl Cpu {
    /// Plants it: from a position on, writes of the guest drop no code that was decoded from their page.
    pub fn lose_invalidations_from(&mut self, position: u64) {
        self.stale.from = position;
    }

    /// Whether the guest's write to code at `gpa`, which is next, drops nothing.
    pub(crate) fn loses_invalidation(&mut self, gpa: u64) -> bool {
        if self.retired < self.stale.from {
            return false;
        }
        let (first, ram) = (gpa - gpa % PAGE, &self.ram);
        self.stale.pages.entry(gpa / PAGE).or_insert_with(|| {
            let mut page = vec![0; PAGE as usize];
            ram.read(first, &mut page);
            page
        });
        true
    }
}
