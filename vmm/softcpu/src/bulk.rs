//! Many values of memory at once, where that is in cached pages of RAM: for string instructions.

use crate::Cpu;
use crate::mem::{OFFSET, Value, read_slot, write_slot};
use crate::ram::PAGE;

impl Cpu {
    /// Up to `count` values, from the first on, copied between cached pages of RAM: as if one by one, so no
    /// more at once than lie before an overlap. The result is how many; none if a page is not cached.
    pub(crate) fn copy_forward<W: Value>(&mut self, from: u64, to: u64, count: u64) -> u64 {
        let (source, target) = (&self.tlb.read[read_slot(from)], &self.tlb.write[write_slot(to)]);
        if source.tag != self.tag(from, 1) || target.tag != self.tag(to, 1) {
            return 0;
        }
        let (source, target) = (from.wrapping_add(source.addend), to.wrapping_add(target.addend));
        let mut bytes = (PAGE - (from & OFFSET)).min(PAGE - (to & OFFSET));
        if target > source {
            bytes = bytes.min(target - source);
        }
        let done = count.min(bytes / W::BYTES);
        let (source, target) = (source as *const u8, target as *mut u8);
        // SAFETY: both entries map whole pages to RAM, the second may be written, and both ranges lie in
        // them.
        unsafe { std::ptr::copy(source, target, (done * W::BYTES) as usize) };
        done
    }

    /// Writes `value` up to `count` times in a row into a cached page of RAM. The result is how many times;
    /// none if the page is not cached.
    pub(crate) fn fill<W: Value>(&mut self, to: u64, value: W, count: u64) -> u64 {
        let entry = &self.tlb.write[write_slot(to)];
        if entry.tag != self.tag(to, 1) {
            return 0;
        }
        let target = to.wrapping_add(entry.addend) as *mut W;
        let done = count.min((PAGE - (to & OFFSET)) / W::BYTES);
        for number in 0..done as usize {
            // SAFETY: the entry maps the whole page to RAM that may be written, and the values lie in it.
            unsafe { target.wrapping_add(number).write_unaligned(value) };
        }
        done
    }

    /// The bytes from `address` to the end of its page, if that is a cached page of RAM; else none.
    pub(crate) fn cached_bytes(&self, address: u64) -> &[u8] {
        let entry = &self.tlb.read[read_slot(address)];
        if entry.tag != self.tag(address, 1) {
            return &[];
        }
        let host = address.wrapping_add(entry.addend) as *const u8;
        // SAFETY: the entry maps the whole page to RAM, which nobody changes while the processor is borrowed.
        unsafe { std::slice::from_raw_parts(host, (PAGE - (address & OFFSET)) as usize) }
    }
}
