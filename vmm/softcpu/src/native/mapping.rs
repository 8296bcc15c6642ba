//! Memory of the host's own kinds.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr;

/// A mapping, until it is dropped.
pub struct Mapping {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the mapping belongs to this value alone.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(bytes: usize, protection: i32, flags: i32, file: i32) -> Option<Self> {
        // SAFETY: a new mapping somewhere; nothing there was in use.
        let at = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, file, 0) };
        (at != libc::MAP_FAILED).then_some(Self { start: at.cast(), bytes })
    }

    /// Of a file, which a child process does not get.
    pub fn of(file: &File, bytes: usize, protection: i32) -> Option<Self> {
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        let mapping = Self::new(bytes, protection, flags, file.as_raw_fd())?;
        // SAFETY: the range is the mapping's; only what a fork does with it changes.
        let told = unsafe { libc::madvise(mapping.start.cast(), bytes, libc::MADV_DONTFORK) };
        // Where /sys/kernel/mm/transparent_hugepage/shmem_enabled lets it, the host's processor finds code in
        // fewer pages.
        // SAFETY: as above.
        unsafe { libc::madvise(mapping.start.cast(), bytes, libc::MADV_HUGEPAGE) };
        (told == 0).then_some(mapping)
    }

    /// Zeros that may be read and written, but for the first `guard` bytes.
    pub fn guarded(bytes: usize, guard: usize) -> Option<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let mapping = Self::new(bytes, access, flags, -1)?;
        // SAFETY: the range is in the mapping, which nobody uses yet.
        let guarded = unsafe { libc::mprotect(mapping.start.cast(), guard, libc::PROT_NONE) };
        (guarded == 0).then_some(mapping)
    }

    pub fn start(&self) -> *mut u8 {
        self.start
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made in `new`; who drops it uses it no more.
        unsafe { libc::munmap(self.start.cast(), self.bytes) };
    }
}

/// A file in memory.
pub fn memory_file(bytes: u64) -> Option<File> {
    // SAFETY: the name is a string with an end.
    let descriptor = unsafe { libc::memfd_create(c"lockstep-code".as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return None;
    }
    // SAFETY: the descriptor was just made, and nobody else has it.
    let file = unsafe { File::from_raw_fd(descriptor) };
    file.set_len(bytes).ok().map(|()| file)
}
