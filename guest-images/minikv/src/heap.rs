//! The heap: a buddy allocator over all RAM behind the image.
//!
//! Blocks are powers of two from 32 bytes on, aligned to their size; two free buddies always merge. So what a
//! program holds costs at most twice its size, and what it gave back is whole again: `minikv-core` counts
//! with exactly these block sizes. One bit per block and order says whether that block is free.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{NonNull, null_mut};

const MIN_ORDER: usize = 5;
const MAX_ORDER: usize = 27;
const ORDERS: usize = MAX_ORDER + 1;
/// Block addresses are multiples of their size up to this.
const BASE_ALIGN: usize = 4 << 20;

/// A free block's place in the list of its order.
struct Node {
    next: *mut Node,
    prev: *mut Node,
}

struct Inner {
    base: usize,
    len: usize,
    used: usize,
    lists: [*mut Node; ORDERS],
    /// Bit n: the list of order n is not empty.
    present: u32,
    bits: *mut u64,
    /// Where the bits of each order begin.
    bits_at: [usize; ORDERS],
}

struct Heap(UnsafeCell<Inner>);

// SAFETY: there is one CPU, and nothing interrupts it but exceptions, which never return.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap = Heap(UnsafeCell::new(Inner {
    base: 0,
    len: 0,
    used: 0,
    lists: [null_mut(); ORDERS],
    present: 0,
    bits: null_mut(),
    bits_at: [0; ORDERS],
}));

impl Heap {
    #[expect(clippy::mut_from_ref)]
    fn inner(&self) -> &mut Inner {
        // SAFETY: one CPU, and no function here calls another that asks for this again.
        unsafe { &mut *self.0.get() }
    }
}

/// Makes the heap of the RAM from `start` to `end`. To be called once, before any allocation.
///
/// # Safety
/// That RAM belongs to nothing else, and is zero, as it is at power-on: the bits are not cleared here, so
/// that no page is touched before it is used.
pub unsafe fn init(start: usize, end: usize) {
    let heap = HEAP.inner();
    heap.base = start / BASE_ALIGN * BASE_ALIGN;
    let mut bits = 0;
    for order in MIN_ORDER..ORDERS {
        heap.bits_at[order] = bits;
        bits += ((end - heap.base) >> order) + 1;
    }
    let words = bits.div_ceil(64);
    heap.bits = start as *mut u64;
    let mut at = (start + words * 8).next_multiple_of(1 << MIN_ORDER);
    heap.len = end - at;
    while at + (1 << MIN_ORDER) <= end {
        let offset = at - heap.base;
        let aligned = if offset == 0 { MAX_ORDER } else { offset.trailing_zeros() as usize };
        let fits = (end - at).ilog2() as usize;
        let order = aligned.min(fits).min(MAX_ORDER);
        heap.push(at, order);
        at += 1 << order;
    }
}

/// Bytes given out.
pub fn used() -> usize {
    HEAP.inner().used
}

/// Bytes of the heap.
pub fn len() -> usize {
    HEAP.inner().len
}

/// Zeroed pages for a device, for ever.
pub fn dma_pages(count: usize) -> NonNull<u8> {
    let layout = Layout::from_size_align(count * 4096, 4096).expect("a small number of pages");
    // SAFETY: the layout's size is not zero.
    let pages = unsafe { alloc::alloc::alloc_zeroed(layout) };
    NonNull::new(pages).expect("memory for the devices' rings")
}

fn order_of(layout: Layout) -> usize {
    let size = layout.size().max(layout.align()).max(1 << MIN_ORDER);
    size.next_power_of_two().trailing_zeros() as usize
}

impl Inner {
    /// The word and the mask of a block's bit.
    fn bit(&self, at: usize, order: usize) -> (*mut u64, u64) {
        let index = self.bits_at[order] + ((at - self.base) >> order);
        (self.bits.wrapping_add(index / 64), 1 << (index % 64))
    }

    fn is_free(&self, at: usize, order: usize) -> bool {
        let (word, mask) = self.bit(at, order);
        // SAFETY: `init` made a bit for every block up to the heap's end, and for one more.
        unsafe { word.read() & mask != 0 }
    }

    fn toggle(&mut self, at: usize, order: usize) {
        let (word, mask) = self.bit(at, order);
        // SAFETY: as `is_free`.
        let before = unsafe { word.read() };
        // SAFETY: as `is_free`.
        unsafe { word.write(before ^ mask) };
    }

    fn push(&mut self, at: usize, order: usize) {
        let node = at as *mut Node;
        let next = self.lists[order];
        // SAFETY: the block is free, so its bytes are the heap's; every block has room for a node.
        unsafe { node.write(Node { next, prev: null_mut() }) };
        if !next.is_null() {
            // SAFETY: what is in a list is a free block with a node.
            unsafe { (*next).prev = node };
        }
        self.lists[order] = node;
        self.present |= 1 << order;
        self.toggle(at, order);
    }

    fn unlink(&mut self, at: usize, order: usize) {
        // SAFETY: the block is free, so it has a node.
        let Node { next, prev } = unsafe { (at as *mut Node).read() };
        if !next.is_null() {
            // SAFETY: what is in a list is a free block with a node.
            unsafe { (*next).prev = prev };
        }
        if prev.is_null() {
            self.lists[order] = next;
        } else {
            // SAFETY: as above.
            unsafe { (*prev).next = next };
        }
        if self.lists[order].is_null() {
            self.present &= !(1 << order);
        }
        self.toggle(at, order);
    }

    fn take(&mut self, order: usize) -> *mut u8 {
        if order > MAX_ORDER {
            return null_mut();
        }
        let candidates = self.present >> order;
        if candidates == 0 {
            return null_mut();
        }
        let mut found = order + candidates.trailing_zeros() as usize;
        let at = self.lists[found] as usize;
        self.unlink(at, found);
        while found > order {
            found -= 1;
            self.push(at + (1 << found), found);
        }
        self.used += 1 << order;
        at as *mut u8
    }

    fn give_back(&mut self, at: usize, order: usize) {
        self.used -= 1 << order;
        let (mut at, mut order) = (at, order);
        while order < MAX_ORDER {
            let buddy = self.base + ((at - self.base) ^ (1 << order));
            if !self.is_free(buddy, order) {
                break;
            }
            self.unlink(buddy, order);
            at = at.min(buddy);
            order += 1;
        }
        self.push(at, order);
    }
}

// SAFETY: blocks do not overlap, and are as large and as aligned as the layout asks: a block of an order is
// aligned to its size up to 4 MiB, and no layout here asks for more.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        assert!(layout.align() <= BASE_ALIGN, "no such alignment");
        self.inner().take(order_of(layout))
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.inner().give_back(pointer as usize, order_of(layout));
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let Ok(new_layout) = Layout::from_size_align(new_size, layout.align()) else { return null_mut() };
        if order_of(new_layout) == order_of(layout) {
            return pointer;
        }
        // SAFETY: the caller's promise.
        let new = unsafe { self.alloc(new_layout) };
        if !new.is_null() {
            // SAFETY: both blocks are at least that long, and two blocks do not overlap.
            unsafe { pointer.copy_to_nonoverlapping(new, layout.size().min(new_size)) };
            // SAFETY: the caller's promise.
            unsafe { self.dealloc(pointer, layout) };
        }
        new
    }
}
