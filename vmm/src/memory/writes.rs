//! Which pages of guest RAM were written by somebody other than the vCPU: devices, boot, state transfer.
//!
//! Two readers ask independently of each other: state transfer, now and then, and an engine that caches what
//! it derived from RAM, before each run. For the second the answer must cost nothing when nothing was
//! written, and little when it was a few pages, so its bits have a summary above them.
//!
//! ```text
//!  any ─▶ summary: a bit per 4096 pages ─▶ fresh: a bit per page       transfer: a bit per page
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use vm_memory::bitmap::{Bitmap, RefSlice, WithBitmapSlice};

use super::PAGE_BYTES;

const BITS: usize = 64;

/// Handle to the writes noted of one RAM; all handles of it are one. Everything happens on the thread that
/// owns the machine: the atomics are what shares it without a lock, not a protocol.
#[derive(Debug, Clone)]
pub struct DeviceWrites(Arc<Noted>);

#[derive(Debug)]
struct Noted {
    transfer: Vec<AtomicU64>,
    fresh: Vec<AtomicU64>,
    /// A bit for each word of `fresh`.
    summary: Vec<AtomicU64>,
    any: AtomicBool,
    pages: usize,
}

fn words(count: usize) -> Vec<AtomicU64> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

fn set(words: &[AtomicU64], bit: usize) {
    words[bit / BITS].fetch_or(1 << (bit % BITS), Relaxed);
}

/// The numbers of the bits set, which are cleared.
fn take(words: &[AtomicU64], word: usize) -> impl Iterator<Item = usize> + use<> {
    let mut bits = words[word].swap(0, Relaxed);
    std::iter::from_fn(move || {
        let bit = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
        bits &= bits - 1;
        Some(word * BITS + bit)
    })
}

impl DeviceWrites {
    /// Of a RAM of `bytes` bytes.
    pub(super) fn new(bytes: usize) -> Self {
        let pages = bytes / PAGE_BYTES;
        let count = pages.div_ceil(BITS);
        let summary = words(count.div_ceil(BITS));
        let any = AtomicBool::new(false);
        Self(Arc::new(Noted { transfer: words(count), fresh: words(count), summary, any, pages }))
    }

    /// Pages written since the last call, a bit each.
    pub(super) fn take_for_transfer(&self) -> Vec<u64> {
        self.0.transfer.iter().map(|word| word.swap(0, Relaxed)).collect()
    }

    /// Calls `page` with the number of every page written since the last call.
    pub fn take_fresh(&self, mut page: impl FnMut(usize)) {
        if !self.0.any.load(Relaxed) {
            return;
        }
        self.0.any.store(false, Relaxed);
        for word in (0..self.0.summary.len()).flat_map(|word| take(&self.0.summary, word)) {
            take(&self.0.fresh, word).for_each(&mut page);
        }
    }
}

impl<'a> WithBitmapSlice<'a> for DeviceWrites {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for DeviceWrites {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        let last = offset.saturating_add(len - 1) / PAGE_BYTES;
        for page in offset / PAGE_BYTES..=last.min(self.0.pages - 1) {
            set(&self.0.transfer, page);
            set(&self.0.fresh, page);
            set(&self.0.summary, page / BITS);
        }
        self.0.any.store(true, Relaxed);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / PAGE_BYTES;
        page < self.0.pages && self.0.transfer[page / BITS].load(Relaxed) & 1 << (page % BITS) != 0
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(writes: &DeviceWrites) -> Vec<usize> {
        let mut pages = Vec::new();
        writes.take_fresh(|page| pages.push(page));
        pages
    }

    #[test]
    fn both_readers_see_every_write_once() {
        let writes = DeviceWrites::new(64 << 20);
        assert!(fresh(&writes).is_empty());
        writes.mark_dirty(4095, 2);
        writes.slice_at(63 << 20).mark_dirty(5, 1);
        writes.mark_dirty(100, 0);
        assert_eq!(fresh(&writes), [0, 1, (63 << 20) / PAGE_BYTES]);
        assert!(fresh(&writes).is_empty());
        let transfer = writes.take_for_transfer();
        assert_eq!((transfer[0], transfer[(63 << 20) / PAGE_BYTES / 64]), (3, 1));
        assert!(writes.take_for_transfer().iter().all(|word| *word == 0));
        writes.mark_dirty(0, 1);
        assert!(writes.dirty_at(4095) && !writes.dirty_at(4096));
    }

    #[test]
    fn a_write_that_reaches_past_the_end_marks_the_last_page() {
        let writes = DeviceWrites::new(4 << 20);
        writes.mark_dirty((4 << 20) - 1, 4096);
        writes.mark_dirty(usize::MAX - 1, 4096);
        assert_eq!(fresh(&writes), [(4 << 20) / PAGE_BYTES - 1]);
    }
}
