//! Guest RAM as the processor reaches it, and what it knows of each page.
//!
//! All raw access to guest memory is here: every function checks its bounds.

/// The page holds decoded code.
pub const CODE: u8 = 1;
/// The page was walked as a page table for a translation that is cached.
pub const TABLE: u8 = 2;
/// The page was written since the last `take_dirty`.
pub const DIRTY: u8 = 4;
/// The page has bytes at whose stores a debugger wants the processor to stop.
pub const WATCHED: u8 = 8;
/// The TLB's table of writes may have an entry for the page.
pub const AT_HAND: u8 = 16;
/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// RAM from guest physical address 0.
pub struct GuestRam {
    host: *mut u8,
    bytes: u64,
    pages: Vec<u8>,
}

impl GuestRam {
    /// # Safety
    /// As for `Cpu::new`.
    pub unsafe fn new(host: *mut u8, bytes: usize) -> Self {
        Self { host, bytes: bytes as u64, pages: vec![0; bytes.div_ceil(PAGE as usize)] }
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Whether `size` bytes at `gpa` are RAM.
    #[inline(always)]
    pub fn holds(&self, gpa: u64, size: u64) -> bool {
        gpa.checked_add(size).is_some_and(|end| end <= self.bytes)
    }

    /// Flags of the page of `gpa`.
    #[inline(always)]
    pub fn flags(&self, gpa: u64) -> u8 {
        self.pages[(gpa / PAGE) as usize]
    }

    /// Sets flags of the page of `gpa`.
    pub fn set_flags(&mut self, gpa: u64, flags: u8) {
        self.pages[(gpa / PAGE) as usize] |= flags;
    }

    /// Clears flags of the page of `gpa`.
    pub fn clear_flags(&mut self, gpa: u64, flags: u8) {
        self.pages[(gpa / PAGE) as usize] &= !flags;
    }

    /// Host address of the page of `gpa`, which is RAM.
    #[inline(always)]
    pub fn host_page(&self, gpa: u64) -> u64 {
        let page = gpa & !(PAGE - 1);
        assert!(self.holds(page, PAGE));
        self.host as u64 + page
    }

    /// Reads `into.len()` bytes; false beyond the end of RAM.
    #[inline(always)]
    pub fn read(&self, gpa: u64, into: &mut [u8]) -> bool {
        if !self.holds(gpa, into.len() as u64) {
            return false;
        }
        // SAFETY: the range is inside the mapping, which no reference covers.
        unsafe {
            std::ptr::copy_nonoverlapping(self.host.wrapping_add(gpa as usize), into.as_mut_ptr(), into.len())
        };
        true
    }

    /// Writes `from`; false beyond the end of RAM.
    #[inline(always)]
    pub fn write(&mut self, gpa: u64, from: &[u8]) -> bool {
        if !self.holds(gpa, from.len() as u64) {
            return false;
        }
        // SAFETY: the range is inside the mapping, which no reference covers.
        unsafe {
            std::ptr::copy_nonoverlapping(from.as_ptr(), self.host.wrapping_add(gpa as usize), from.len())
        };
        true
    }

    /// Eight bytes at `gpa`; zero beyond the end of RAM.
    #[inline(always)]
    pub fn word(&self, gpa: u64) -> u64 {
        let mut bytes = [0; 8];
        self.read(gpa, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// `size` bytes at `gpa`, at most 16, zero-extended: the usual sizes without a call to copy them.
    #[inline(always)]
    pub fn value(&self, gpa: u64, size: u64) -> u128 {
        let mut bytes = [0; 16];
        match size {
            8 => self.read(gpa, &mut bytes[..8]),
            4 => self.read(gpa, &mut bytes[..4]),
            1 => self.read(gpa, &mut bytes[..1]),
            _ => self.read(gpa, &mut bytes[..size as usize % 17]),
        };
        u128::from_le_bytes(bytes)
    }

    /// Pages written since the last call, a bit each.
    pub fn take_dirty(&mut self) -> Vec<u64> {
        let mut bits = vec![0u64; self.pages.len().div_ceil(64)];
        for (number, flags) in self.pages.iter_mut().enumerate() {
            if *flags & DIRTY != 0 {
                bits[number / 64] |= 1 << (number % 64);
                *flags &= !DIRTY;
            }
        }
        bits
    }
}
