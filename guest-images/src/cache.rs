//! Guest images on disk.
//!
//! ```text
//!  CACHE/guests/busybox-0123456789abcdef/manifest.json, vmlinux, initrd, disk
//!  CACHE/guests/busybox -> busybox-0123456789abcdef        the one built last
//! ```
//!
//! A directory's name ends with the digest of what is in it; its files never change.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::apt::Package;
use crate::recipe::recipes_digest;

/// File that describes an image.
const MANIFEST: &str = "manifest.json";
/// Hexadecimal digits of the digest in a directory's name.
const NAMED_DIGITS: usize = 16;

/// Why an image cannot be found, read or stored.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// No directory to keep images in.
    #[error("neither XDG_CACHE_HOME nor HOME is set: say with --cache where guest images are")]
    NoHome,
    /// Nothing of that name.
    #[error("no guest image {name:?} in {}: lockstep guest build {name}", root.display())]
    Unknown {
        /// What was asked for.
        name: String,
        /// Where it was looked for.
        root: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A manifest that this program cannot read.
    #[error("{}: {reason}; build the image again", path.display())]
    Manifest {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file is not what the manifest says.
    #[error("{} is not the file that was built: build the image again", path.display())]
    Changed {
        /// Which.
        path: PathBuf,
    },
}

/// A file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFile {
    /// Its name in the image's directory.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
    /// BLAKE3 of its content.
    pub digest: String,
}

/// What an image is, and what it was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The recipe's name.
    pub name: String,
    /// One line about it.
    pub about: String,
    /// Digest of all files, of the command line and the memory size.
    pub digest: String,
    /// The kernel, an ELF file.
    pub kernel: ImageFile,
    /// The initramfs, if it has one.
    pub initrd: Option<ImageFile>,
    /// What a new disk of the guest holds, if it has one.
    pub disk: Option<ImageFile>,
    /// The kernel command line when the user gives none.
    pub command_line: String,
    /// Guest memory when the user says nothing, MiB.
    pub memory_mib: u64,
    /// The packages it was made of.
    pub packages: Vec<Package>,
    /// What it was made by: `recipe::recipes_digest`.
    #[serde(default)]
    pub recipes: String,
}

impl Manifest {
    fn compute_digest(&self) -> String {
        let mut hash = blake3::Hasher::new();
        let mut part = |text: &str| {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        };
        part(&self.name);
        part(&self.command_line);
        part(&self.memory_mib.to_string());
        for file in [Some(&self.kernel), self.initrd.as_ref(), self.disk.as_ref()] {
            part(file.map_or("", |file| &file.digest));
        }
        hash.finalize().to_hex().to_string()
    }
}

/// An image in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Guest {
    /// What it is.
    #[serde(flatten)]
    pub manifest: Manifest,
    /// Where it is.
    pub directory: PathBuf,
    /// Whether the recipe's name stands for it: it was built last.
    pub current: bool,
}

impl Guest {
    /// Whether recipes made it that are not those of this program.
    pub fn is_outdated(&self) -> bool {
        self.manifest.recipes != recipes_digest()
    }

    /// Path of one of its files.
    pub fn path(&self, file: &ImageFile) -> PathBuf {
        self.directory.join(&file.name)
    }

    /// Reads one of its files and compares it with the manifest.
    pub fn read(&self, file: &ImageFile) -> Result<Vec<u8>, CacheError> {
        let path = self.path(file);
        let bytes = std::fs::read(&path).map_err(|source| CacheError::Io { path: path.clone(), source })?;
        if blake3::hash(&bytes).to_hex().to_string() != file.digest {
            return Err(CacheError::Changed { path });
        }
        Ok(bytes)
    }
}

/// What a recipe made, before it is stored. Its files are in the directory given to `Cache::store`.
#[derive(Debug, Clone)]
pub struct Contents {
    /// File name of the kernel.
    pub kernel: String,
    /// File name of the initramfs.
    pub initrd: Option<String>,
    /// File name of the disk's first content.
    pub disk: Option<String>,
    /// As in the manifest.
    pub command_line: String,
    /// As in the manifest.
    pub memory_mib: u64,
    /// As in the manifest.
    pub packages: Vec<Package>,
}

/// The directory of all images.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The cache at `root`, or at the user's place for such things.
    pub fn new(root: Option<&Path>) -> Result<Self, CacheError> {
        if let Some(root) = root {
            return Ok(Self { root: root.to_path_buf() });
        }
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let base = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
        Ok(Self { root: base.ok_or(CacheError::NoHome)?.join("lockstep") })
    }

    /// Where images are.
    pub fn guests(&self) -> PathBuf {
        self.root.join("guests")
    }

    /// Where lists of packages are, should the host's not do.
    pub fn lists(&self) -> PathBuf {
        self.root.join("apt")
    }

    /// A fresh directory to build in, on the file system where images are.
    pub fn workshop(&self) -> Result<tempfile::TempDir, CacheError> {
        let path = self.guests();
        let make = || {
            std::fs::create_dir_all(&path)?;
            tempfile::Builder::new().prefix(".build-").tempdir_in(&path)
        };
        make().map_err(|source| CacheError::Io { path: path.clone(), source })
    }

    /// All images, by name, the current one of each name first.
    pub fn list(&self) -> Result<Vec<Guest>, CacheError> {
        let path = self.guests();
        let entries = match std::fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|source| CacheError::Io { path: path.clone(), source })?,
        };
        let mut guests = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| CacheError::Io { path: path.clone(), source })?;
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_directory && entry.path().join(MANIFEST).exists() {
                guests.push(self.open(&entry.path())?);
            }
        }
        guests.sort_by(|a, b| {
            let key =
                |guest: &Guest| (guest.manifest.name.clone(), !guest.current, guest.manifest.digest.clone());
            key(a).cmp(&key(b))
        });
        Ok(guests)
    }

    /// The image of that name: a recipe's (the one built last), or a directory's as `list` shows it.
    pub fn find(&self, name: &str) -> Result<Guest, CacheError> {
        let unknown = || CacheError::Unknown { name: name.into(), root: self.root.clone() };
        let plain = !name.is_empty() && !name.contains(['/', '\0']) && !name.starts_with('.');
        let directory = plain.then(|| self.guests().join(name)).ok_or_else(unknown)?;
        // The link of a recipe's name leads to the image built last.
        let directory = std::fs::canonicalize(&directory).map_err(|_| unknown())?;
        if directory.join(MANIFEST).exists() { self.open(&directory) } else { Err(unknown()) }
    }

    fn open(&self, directory: &Path) -> Result<Guest, CacheError> {
        let path = directory.join(MANIFEST);
        let text = std::fs::read(&path).map_err(|source| CacheError::Io { path: path.clone(), source })?;
        let manifest: Manifest = serde_json::from_slice(&text)
            .map_err(|error| CacheError::Manifest { path: path.clone(), reason: error.to_string() })?;
        if manifest.compute_digest() != manifest.digest {
            return Err(CacheError::Manifest { path, reason: "it was changed by hand".into() });
        }
        let current = std::fs::read_link(self.guests().join(&manifest.name)).ok();
        let current = current.is_some_and(|target| directory.file_name() == Some(target.as_os_str()));
        Ok(Guest { manifest, directory: directory.to_path_buf(), current })
    }

    /// Keeps what a recipe made, whose files are in `made`. An equal image that is there already stays.
    pub fn store(
        &self,
        name: &str,
        about: &str,
        made: &Path,
        contents: Contents,
    ) -> Result<Guest, CacheError> {
        let file = |name: &String| describe(made, name);
        let mut manifest = Manifest {
            name: name.into(),
            about: about.into(),
            digest: String::new(),
            kernel: file(&contents.kernel)?,
            initrd: contents.initrd.as_ref().map(file).transpose()?,
            disk: contents.disk.as_ref().map(file).transpose()?,
            command_line: contents.command_line,
            memory_mib: contents.memory_mib,
            packages: contents.packages,
            recipes: recipes_digest(),
        };
        manifest.digest = manifest.compute_digest();
        let directory_name = format!("{name}-{}", &manifest.digest[..NAMED_DIGITS]);
        let directory = self.guests().join(&directory_name);
        let text = serde_json::to_vec_pretty(&manifest)
            .map_err(|error| CacheError::Manifest { path: directory.clone(), reason: error.to_string() })?;
        let path = made.join(MANIFEST);
        std::fs::write(&path, text).map_err(|source| CacheError::Io { path: path.clone(), source })?;
        // Of an equal image the files stay, and what is said about them is new.
        let (from, to) = match directory.join(MANIFEST) {
            old if old.exists() => (path, old),
            _ => (made.to_path_buf(), directory.clone()),
        };
        std::fs::rename(from, &to).map_err(|source| CacheError::Io { path: to, source })?;
        self.point(name, &directory_name)?;
        self.open(&directory)
    }

    /// Lets `name` stand for the image in `directory`.
    fn point(&self, name: &str, directory: &str) -> Result<(), CacheError> {
        let (link, fresh) = (self.guests().join(name), self.guests().join(format!(".{name}.new")));
        let swap = || {
            let _ = std::fs::remove_file(&fresh);
            std::os::unix::fs::symlink(directory, &fresh)?;
            std::fs::rename(&fresh, &link)
        };
        swap().map_err(|source| CacheError::Io { path: link.clone(), source })
    }
}

fn describe(directory: &Path, name: &str) -> Result<ImageFile, CacheError> {
    let path = directory.join(name);
    let io = |source| CacheError::Io { path: path.clone(), source };
    let mut hash = blake3::Hasher::new();
    let mut file = std::fs::File::open(&path).map_err(io)?;
    let bytes = io::copy(&mut file, &mut hash).map_err(io)?;
    Ok(ImageFile { name: name.into(), bytes, digest: hash.finalize().to_hex().to_string() })
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
