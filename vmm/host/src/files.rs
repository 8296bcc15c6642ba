//! Files and directories with what a guest or a user wrote: their owner alone reads them.
//!
//! A new file has mode 0600 from its first moment, a new directory 0700. What exists keeps the mode that
//! somebody gave it: a file made beforehand with mode 0640 is a way to let a group read it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Mode of a new file.
pub const FILE_MODE: u32 = 0o600;
/// Mode of a new directory.
pub const DIRECTORY_MODE: u32 = 0o700;

/// Makes a file that does not exist yet, for writing and reading.
pub fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(FILE_MODE).open(path)
}

/// Opens a file for writing from its beginning, without what it held; makes it if it does not exist.
pub fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(path)
}

/// Opens a file for writing at its end; makes it if it does not exist.
pub fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(FILE_MODE).open(path)
}

/// Makes `content` all that a file holds.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> io::Result<()> {
    create(path)?.write_all(content.as_ref())
}

/// Makes a directory, and those above it, as far as they do not exist.
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn what_is_new_is_its_owners_and_what_exists_keeps_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        create_new(&at("new")).unwrap();
        create(&at("created")).unwrap();
        append(&at("appended")).unwrap();
        write(&at("written"), b"text").unwrap();
        for name in ["new", "created", "appended", "written"] {
            assert_eq!(mode(&at(name)), 0o600, "{name}");
        }
        create_dir_all(&at("a/b")).unwrap();
        assert_eq!((mode(&at("a")), mode(&at("a/b"))), (0o700, 0o700));
        std::fs::set_permissions(at("written"), std::fs::Permissions::from_mode(0o640)).unwrap();
        write(&at("written"), b"more").unwrap();
        append(&at("written")).unwrap().write_all(b", and more").unwrap();
        assert_eq!(
            (mode(&at("written")), std::fs::read(at("written")).unwrap()),
            (0o640, b"more, and more".to_vec())
        );
        create_new(&at("written")).unwrap_err();
    }
}
