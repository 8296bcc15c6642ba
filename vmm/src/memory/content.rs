//! What a guest is started with, kept so that it can be started again: a copy, or a file of which this
//! process takes no memory.

use std::fs::File;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::{fmt, io, ptr, slice};

/// Bytes that all clones share.
#[derive(Clone)]
pub struct Content(Arc<Bytes>);

enum Bytes {
    Copied(Box<[u8]>),
    Mapped(Mapping),
}

/// A file, mapped to be read.
struct Mapping {
    at: *mut libc::c_void,
    bytes: usize,
}

// SAFETY: the mapping is the value's own, of the whole process, and only read.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Content {
    /// The content of a file that never changes, as those of guest images: it is mapped, not copied. A file
    /// that is cut short all the same ends this process when what is gone is looked at.
    pub fn map(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let bytes = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        if bytes == 0 {
            return Ok(Self::default());
        }
        let (protection, flags) = (libc::PROT_READ, libc::MAP_PRIVATE);
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let at = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, file.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(Arc::new(Bytes::Mapped(Mapping { at, bytes }))))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `map`, and nothing borrows it any more.
        unsafe { libc::munmap(self.at, self.bytes) };
    }
}

impl Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &*self.0 {
            Bytes::Copied(bytes) => bytes,
            // SAFETY: the mapping is that long, lives as long as self, and its file does not change.
            Bytes::Mapped(mapping) => unsafe { slice::from_raw_parts(mapping.at.cast(), mapping.bytes) },
        }
    }
}

impl Default for Content {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Bytes::Copied(bytes.into())))
    }
}

impl From<&[u8]> for Content {
    fn from(bytes: &[u8]) -> Self {
        bytes.to_vec().into()
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_is_as_a_copied_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        for bytes in [Vec::new(), vec![7], vec![9; 10_000]] {
            std::fs::write(&path, &bytes).expect("written");
            let mapped = Content::map(&path).expect("mapped");
            assert_eq!(*mapped, *Content::from(bytes.clone()));
            // It is kept although another file takes its name.
            let kept = mapped.clone();
            std::fs::remove_file(&path).expect("removed");
            std::fs::write(&path, b"another").expect("written");
            drop(mapped);
            assert_eq!(*kept, *bytes);
        }
        assert!(Content::map(&directory.path().join("none")).is_err());
    }
}
