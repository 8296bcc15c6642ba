//! Names of translated code for `perf report`, where it looks for them: /tmp/perf-PID.map, with a line for
//! each piece of code (address, size and name; the kernel's tools/perf/Documentation/jit-interface.txt).

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The file of this process, which all its processors write. It goes with the last of them.
struct Listed {
    file: File,
    path: PathBuf,
}

impl Drop for Listed {
    fn drop(&mut self) {
        let listed = LISTED.lock().unwrap_or_else(PoisonError::into_inner);
        if listed.strong_count() == 0 {
            let _ = fs::remove_file(&self.path);
        }
    }
}

static LISTED: Mutex<Weak<Listed>> = Mutex::new(Weak::new());

/// The list of one processor's code.
pub struct PerfMap(Arc<Listed>);

impl PerfMap {
    /// `None` where the file cannot be made.
    pub fn open() -> Option<Self> {
        let mut listed = LISTED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = listed.upgrade() {
            return Some(Self(there));
        }
        let path = PathBuf::from(format!("/tmp/perf-{}.map", std::process::id()));
        // A process that had this number before may have left one; whatever else is there is not written to.
        let _ = fs::remove_file(&path);
        let file = OpenOptions::new().append(true).create_new(true).open(&path).ok()?;
        let map = Arc::new(Listed { file, path });
        *listed = Arc::downgrade(&map);
        Some(Self(map))
    }

    /// Lists a piece of code of the block at `rip`; `part` is appended to its name.
    pub fn note(&self, address: u64, bytes: usize, rip: u64, part: &str) {
        if bytes > 0 {
            // Nothing depends on it.
            let _ =
                (&self.0.file).write_all(format!("{address:x} {bytes:x} guest {rip:#x}{part}\n").as_bytes());
        }
    }

    /// The code that was listed is there no more, and other code will be.
    pub fn clear(&self) {
        let _ = self.0.file.set_len(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_listed_until_the_last_processor_is_gone() {
        let path = format!("/tmp/perf-{}.map", std::process::id());
        let (one, two) = (PerfMap::open().expect("a file"), PerfMap::open().expect("the same"));
        one.note(0x7f00_0000_1000, 0x2a, 0xffff_ffff_8100_0000, "");
        two.note(0x7f00_0000_2000, 0, 1, "");
        two.note(0x7f00_0000_2000, 1, 0x40_0000, " slow");
        let listed = fs::read_to_string(&path).expect("it is there");
        assert_eq!(listed, "7f0000001000 2a guest 0xffffffff81000000\n7f0000002000 1 guest 0x400000 slow\n");
        one.clear();
        drop(one);
        assert_eq!(fs::read_to_string(&path).expect("it is there"), "");
        drop(two);
        assert!(!std::path::Path::new(&path).exists());
    }
}
