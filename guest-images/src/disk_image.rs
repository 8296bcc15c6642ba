//! Root disks: an ext4 file system in a file, made by Debian's e2fsprogs from a tree of files, without root.
//!
//! Equal trees give equal bytes: every file belongs to root and is dated alike, and what e2fsprogs draws
//! from a clock or at random is fixed. It copies the change time of the files it finds, which nobody can set;
//! those are overwritten afterwards.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::{AptError, run};

/// Everything on the disk is dated so: 2026-01-01 00:00 UTC.
const TIME_S: u64 = 1_767_225_600;
const TIME_DEBUGFS: &str = "20260101000000";
/// UUID of the file system, and seed of its directory hashes.
const UUID: &str = "6c6f636b-7374-4570-8000-000000000001";

/// Why no file system can be made.
#[derive(Debug, thiserror::Error)]
pub enum DiskImageError {
    /// e2fsprogs is not here.
    #[error("{0} is not here: install e2fsprogs")]
    NoTool(&'static str),
    /// One of its programs failed.
    #[error(transparent)]
    Tool(#[from] AptError),
    /// A file cannot be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

#[derive(Debug, Clone)]
enum Node {
    Directory,
    File { mode: u32, data: Vec<u8> },
    Link { target: String },
}

/// Files to be, by their paths without a leading slash.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds a directory, and those it is in.
    pub(crate) fn directory(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            self.nodes.entry(path[..at].into()).or_insert(Node::Directory);
        }
        self.nodes.entry(path.into()).or_insert(Node::Directory);
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, data: &[u8]) {
        self.add(path, Node::File { mode, data: data.to_vec() });
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.add(path, Node::Link { target: target.into() });
    }

    fn add(&mut self, path: &str, node: Node) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
        self.nodes.insert(path.into(), node);
    }

    fn write(&self, root: &Path) -> io::Result<()> {
        std::fs::create_dir_all(root)?;
        for (path, node) in &self.nodes {
            let at = root.join(path);
            match node {
                Node::Directory => {
                    std::fs::create_dir_all(&at)?;
                    std::fs::set_permissions(&at, PermissionsExt::from_mode(0o755))?;
                }
                Node::File { mode, data } => {
                    std::fs::write(&at, data)?;
                    std::fs::set_permissions(&at, PermissionsExt::from_mode(*mode))?;
                }
                Node::Link { target } => symlink(target, &at)?,
            }
        }
        Ok(())
    }

    /// What `debugfs` has to do to each file.
    fn corrections(&self) -> String {
        let mut commands = String::new();
        let paths = self.nodes.keys().map(|path| format!("/{path}"));
        for path in ["/".to_string(), "/lost+found".to_string()].into_iter().chain(paths) {
            for field in ["atime", "mtime", "ctime", "crtime"] {
                let _ = writeln!(commands, "set_inode_field \"{path}\" {field} {TIME_DEBUGFS}");
                let _ = writeln!(commands, "set_inode_field \"{path}\" {field}_extra 0");
            }
            for field in ["uid", "gid"] {
                let _ = writeln!(commands, "set_inode_field \"{path}\" {field} 0");
            }
        }
        commands
    }
}

/// Makes `image`, a file system of `mib` MiB with the tree in it; `work` is a directory to work in.
pub(crate) fn make(tree: &Tree, mib: u64, work: &Path, image: &Path) -> Result<(), DiskImageError> {
    let (mkfs, debugfs) = (tool("mkfs.ext4")?, tool("debugfs")?);
    let root = work.join("root");
    tree.write(&root).map_err(|source| DiskImageError::Io { path: root.clone(), source })?;
    let fixed = format!("hash_seed={UUID},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard");
    let mut command = Command::new(mkfs);
    command.env("E2FSPROGS_FAKE_TIME", TIME_S.to_string()).env("LC_ALL", "C");
    command.args(["-q", "-F", "-b", "4096", "-L", "lockstep", "-U", UUID, "-E", &fixed, "-d"]);
    run(command.arg(&root).arg(image).arg(format!("{mib}M")))?;
    let script = work.join("corrections");
    let written = std::fs::write(&script, tree.corrections());
    written.map_err(|source| DiskImageError::Io { path: script.clone(), source })?;
    let mut command = Command::new(debugfs);
    command.env("E2FSPROGS_FAKE_TIME", TIME_S.to_string()).env("LC_ALL", "C").env("TZ", "UTC");
    run(command.arg("-w").arg("-f").arg(&script).arg(image))?;
    Ok(())
}

/// Copies all files of an image into the directory `into`: needs no root, and gives the files to who calls.
pub fn extract(image: &Path, into: &Path) -> Result<(), DiskImageError> {
    let request = format!("rdump / \"{}\"", into.display());
    run(Command::new(tool("debugfs")?).env("LC_ALL", "C").arg("-R").arg(request).arg(image))?;
    Ok(())
}

/// A program of e2fsprogs: a user's PATH often lacks the place where distributions put them.
fn tool(name: &'static str) -> Result<PathBuf, DiskImageError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    places.map(|place| place.join(name)).find(|file| file.exists()).ok_or(DiskImageError::NoTool(name))
}

#[cfg(test)]
#[path = "disk_image_tests.rs"]
mod tests;
