//! Guest RAM: one private anonymous mapping, 2 MiB aligned so that the host can back it with huge pages (0.03
//! µs instead of 0.75 µs for the first touch of a 4 KiB page), and its digest.
//!
//! Invariant: the bytes change only while the vCPU runs, or by a device that copies at a logged position.

use std::{io, ptr};

use twox_hash::XxHash3_64;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, GuestAddress, GuestRegionMmap};

mod writes;

pub use writes::DeviceWrites;

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Guest memory that remembers which pages devices wrote.
pub type GuestMemory = vm_memory::GuestMemoryMmap<DeviceWrites>;

/// Why guest RAM cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Not a size this machine can have.
    #[error("{0} bytes of guest memory: it must be a multiple of 2 MiB, from 4 MiB to 3 GiB")]
    Size(u64),
    /// The host has no such memory to give.
    #[error("cannot map {bytes} bytes of guest memory")]
    Map {
        /// How many bytes were asked.
        bytes: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// vm-memory refused the region.
    #[error("cannot make guest memory of the mapping: {0}")]
    Region(String),
}

/// Digests until every page was hashed anew, whether or not it is said to have changed.
const UNASKED_PART: usize = 32;

/// Guest RAM from guest physical address 0.
pub struct Ram {
    map: GuestMemory,
    writes: DeviceWrites,
    host: *mut u8,
    bytes: usize,
    /// Digest of each page, as of the last digest.
    pages: Vec<u64>,
    /// Where the next digest looks at pages that nobody says have changed.
    unasked: usize,
}

// SAFETY: the mapping is process wide and owned by this value alone; access is by &mut self or, for the vCPU
// and devices, on the one thread that owns the machine.
unsafe impl Send for Ram {}

impl Ram {
    /// Maps `bytes` of zeroed memory.
    pub fn new(bytes: u64) -> Result<Self, MemoryError> {
        let size = usize::try_from(bytes).map_err(|_| MemoryError::Size(bytes))?;
        if !size.is_multiple_of(HUGE_PAGE_BYTES) || !(4 << 20..=3usize << 30).contains(&size) {
            return Err(MemoryError::Size(bytes));
        }
        let host = map_aligned(size).map_err(|source| MemoryError::Map { bytes, source })?;
        let writes = DeviceWrites::new(size);
        let bitmap = writes.clone();
        // SAFETY: `host` is a mapping of `size` bytes, readable and writable, that lives until `drop`.
        let builder = unsafe { MmapRegionBuilder::new_with_bitmap(size, bitmap).with_raw_mmap_pointer(host) };
        let region = builder
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
            .map_err(|e| MemoryError::Region(e.to_string()))?;
        let region = GuestRegionMmap::new(region, GuestAddress(0))
            .ok_or_else(|| MemoryError::Region("it does not fit the address space".into()))?;
        let map = GuestMemory::from_regions(vec![region]).map_err(|e| MemoryError::Region(e.to_string()))?;
        Ok(Self { map, writes, host, bytes: size, pages: Vec::new(), unasked: 0 })
    }

    /// As vm-memory sees it: bounds-checked access by guest physical address.
    pub fn map(&self) -> &GuestMemory {
        &self.map
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Host address of guest physical address 0.
    pub fn host_address(&self) -> u64 {
        self.host as u64
    }

    /// All of it. Must not be held while the vCPU runs, which `&self` of the owning machine ensures.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the mapping is `bytes` long and lives as long as self; the vCPU is stopped.
        unsafe { std::slice::from_raw_parts(self.host, self.bytes) }
    }

    /// One 4 KiB page.
    pub fn page(&self, number: usize) -> &[u8] {
        &self.as_slice()[number * PAGE_BYTES..(number + 1) * PAGE_BYTES]
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.bytes / PAGE_BYTES
    }

    /// Overwrites memory, as a device would: for state transfer and planted faults. Panics beyond the end.
    pub fn write(&mut self, address: usize, data: &[u8]) {
        self.map.write_slice(data, GuestAddress(address as u64)).expect("inside guest memory");
    }

    /// Makes all of it zero again.
    pub fn clear(&mut self) {
        let zero = vec![0; HUGE_PAGE_BYTES];
        for address in (0..self.bytes).step_by(HUGE_PAGE_BYTES) {
            if self.as_slice()[address..address + HUGE_PAGE_BYTES] != zero {
                self.write(address, &zero);
            }
        }
    }

    /// Makes all of it zero at once, by giving its pages back to the host; every page counts as written.
    pub fn zero(&mut self) -> io::Result<()> {
        // SAFETY: the range is this value's own private anonymous mapping, of which the host hands out zeroed
        // pages afterwards; nobody holds a reference into it, and the vCPU is stopped.
        let given = unsafe { libc::madvise(self.host.cast(), self.bytes, libc::MADV_DONTNEED) };
        if given != 0 {
            return Err(io::Error::last_os_error());
        }
        vm_memory::bitmap::Bitmap::mark_dirty(&self.writes, 0, self.bytes);
        Ok(())
    }

    /// Pages that devices wrote since the last call, a bit each.
    pub fn take_device_writes(&self) -> Vec<u64> {
        self.writes.take_for_transfer()
    }

    /// What notes the writes of devices, for an engine that must know of them.
    pub fn device_writes(&self) -> DeviceWrites {
        self.writes.clone()
    }

    /// xxh3-64 over the xxh3-64 of every page, hashing anew the pages named in `changed` (all, when `None`).
    ///
    /// The caller answers for `changed` holding every page written since the last call. Some others are
    /// hashed too, in turn: a change that nobody noted is in the digest a little later.
    pub fn digest(&mut self, changed: Option<&[u64]>) -> u64 {
        let count = self.bytes / PAGE_BYTES;
        let mut pages = std::mem::take(&mut self.pages);
        match changed {
            Some(bitmap) if pages.len() == count => {
                for (word, bits) in bitmap.iter().enumerate() {
                    let mut bits = *bits;
                    while bits != 0 {
                        let number = word * 64 + bits.trailing_zeros() as usize;
                        pages[number] = XxHash3_64::oneshot(self.page(number));
                        bits &= bits - 1;
                    }
                }
                for _ in 0..count.div_ceil(UNASKED_PART) {
                    pages[self.unasked] = XxHash3_64::oneshot(self.page(self.unasked));
                    self.unasked = (self.unasked + 1) % count;
                }
            }
            _ => pages = (0..count).map(|number| XxHash3_64::oneshot(self.page(number))).collect(),
        }
        let mut hash = XxHash3_64::new();
        for page in &pages {
            std::hash::Hasher::write(&mut hash, &page.to_le_bytes());
        }
        self.pages = pages;
        std::hash::Hasher::finish(&hash)
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: `host` and `bytes` name the mapping made in `new`, and nothing uses it any more.
        unsafe { libc::munmap(self.host.cast(), self.bytes) };
    }
}

/// Maps `size` bytes at a 2 MiB boundary and asks for huge pages.
fn map_aligned(size: usize) -> io::Result<*mut u8> {
    let reserve = size + HUGE_PAGE_BYTES;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
    let base =
        unsafe { libc::mmap(ptr::null_mut(), reserve, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let base = base as usize;
    let start = base.next_multiple_of(HUGE_PAGE_BYTES);
    let (before, after) = (start - base, base + reserve - (start + size));
    if before > 0 {
        // SAFETY: the range is the unused head of the mapping made above.
        unsafe { libc::munmap(base as *mut _, before) };
    }
    if after > 0 {
        // SAFETY: the range is the unused tail of the mapping made above.
        unsafe { libc::munmap((start + size) as *mut _, after) };
    }
    // SAFETY: the range is ours; the advice may be refused, which only costs speed.
    unsafe { libc::madvise(start as *mut _, size, libc::MADV_HUGEPAGE) };
    Ok(start as *mut u8)
}
