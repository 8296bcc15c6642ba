//! An initramfs: a cpio archive of the "newc" kind, not packed, which a guest's kernel copies into its first
//! file system (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Equal contents give equal bytes: entries are sorted, owned by root, dated 1970, and inodes count up.

use std::collections::BTreeMap;
use std::io::{self, Write};

use cpio::newc::{Builder, ModeFileType, trailer};

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Directory,
    File { mode: u32, data: Vec<u8> },
    Link { target: String },
    Device { major: u32, minor: u32 },
}

/// Files to be, by their paths without a leading slash.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Archive {
    nodes: BTreeMap<String, Node>,
}

impl Archive {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory, and those it is in.
    pub fn directory(&mut self, path: &str) {
        let path = path.trim_matches('/');
        for (at, _) in path.match_indices('/') {
            self.nodes.entry(path[..at].into()).or_insert(Node::Directory);
        }
        if !path.is_empty() {
            self.nodes.entry(path.into()).or_insert(Node::Directory);
        }
    }

    /// Adds a file; `mode` is its permissions.
    pub fn file(&mut self, path: &str, mode: u32, data: impl Into<Vec<u8>>) {
        self.add(path, Node::File { mode, data: data.into() });
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.add(path, Node::Link { target: target.into() });
    }

    /// Adds a character device.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.add(path, Node::Device { major, minor });
    }

    /// Its symbolic links: path and target.
    pub(crate) fn links(&self) -> impl Iterator<Item = (&str, &str)> {
        self.nodes.iter().filter_map(|(path, node)| match node {
            Node::Link { target } => Some((path.as_str(), target.as_str())),
            _ => None,
        })
    }

    /// A file's permissions and content.
    pub(crate) fn data(&self, path: &str) -> Option<(u32, &[u8])> {
        match self.nodes.get(path)? {
            Node::File { mode, data } => Some((*mode, data)),
            _ => None,
        }
    }

    fn add(&mut self, path: &str, node: Node) {
        let path = path.trim_matches('/');
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
        self.nodes.insert(path.into(), node);
    }

    /// The archive's bytes.
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        for (inode, (path, node)) in (1..).zip(&self.nodes) {
            let (builder, data): (Builder, &[u8]) = match node {
                Node::Directory => (mode(path, 0o755, ModeFileType::Directory).nlink(2), &[]),
                Node::File { mode: bits, data } => (mode(path, *bits, ModeFileType::Regular), data),
                Node::Link { target } => (mode(path, 0o777, ModeFileType::Symlink), target.as_bytes()),
                Node::Device { major, minor } => {
                    let device = mode(path, 0o600, ModeFileType::Char).rdev_major(*major);
                    (device.rdev_minor(*minor), &[])
                }
            };
            let size = u32::try_from(data.len())
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{path} is too large")))?;
            let mut writer = builder.ino(inode).write(&mut out, size);
            writer.write_all(data)?;
            writer.finish()?;
        }
        trailer(&mut out)?;
        Ok(out)
    }
}

fn mode(path: &str, permissions: u32, kind: ModeFileType) -> Builder {
    Builder::new(path).mode(permissions).set_mode_file_type(kind).nlink(1)
}

#[cfg(test)]
#[path = "initramfs_tests.rs"]
mod tests;
