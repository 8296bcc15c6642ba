//! The files of one disk: found, or made.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::content;
use crate::disk::Disk;
use crate::faults::Faults;
use crate::fill::Fill;
use crate::options::Limits;
use crate::protocol::SECTOR;
use crate::store::StoreError;

/// Where a disk is, or will be.
pub(crate) struct Place<'a> {
    /// The VM's name.
    pub(crate) vm: &'a str,
    /// The directory of its disks.
    pub(crate) dir: PathBuf,
    /// The disk's name.
    pub(crate) disk: &'a str,
}

impl Place<'_> {
    /// The disk there, created first if `create_bytes` is given and it does not exist.
    pub(crate) fn open(
        &self,
        create_bytes: Option<u64>,
        limits: &Limits,
        faults: &Arc<Faults>,
    ) -> Result<Arc<Disk>, StoreError> {
        let (file, bytes) = self.file(create_bytes, limits)?;
        let content = content::load(&self.dir, self.disk, &file).map_err(|source| {
            let path = self.dir.join(format!("{}.state", self.disk));
            StoreError::DiskState { vm: self.vm.into(), disk: self.disk.into(), path, source }
        })?;
        let fill = Fill::new(self.dir.clone(), self.disk, content, Arc::clone(faults));
        Ok(Arc::new(Disk::new(self.vm, self.disk, file, bytes, fill, Arc::clone(faults))))
    }

    fn file(&self, create_bytes: Option<u64>, limits: &Limits) -> Result<(File, u64), StoreError> {
        let path = self.dir.join(format!("{}.img", self.disk));
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => match create_bytes {
                Some(bytes) => self.create(&path, bytes, limits)?,
                None => return Err(StoreError::NoDisk { vm: self.vm.into(), disk: self.disk.into() }),
            },
            Err(error) => return Err(StoreError::io("open", &path, error)),
        };
        let metadata = file.metadata().map_err(|error| StoreError::io("examine", &path, error))?;
        if !metadata.is_file() || !metadata.len().is_multiple_of(SECTOR) || metadata.len() == 0 {
            return Err(StoreError::NotADisk { path, bytes: metadata.len() });
        }
        Ok((file, metadata.len()))
    }

    /// A new disk appears under its name only when it has its size and its record, durably.
    fn create(&self, path: &Path, bytes: u64, limits: &Limits) -> Result<File, StoreError> {
        if bytes == 0 || !bytes.is_multiple_of(SECTOR) || bytes > limits.max_disk_bytes {
            return Err(StoreError::DiskSize { bytes, limit: limits.max_disk_bytes });
        }
        let create = || {
            let images = |entry: &std::io::Result<std::fs::DirEntry>| {
                entry.as_ref().is_ok_and(|entry| entry.path().extension().is_some_and(|e| e == "img"))
            };
            if std::fs::read_dir(&self.dir)?.filter(images).count() >= limits.max_disks {
                return Ok(None);
            }
            content::create(&self.dir, self.disk)?;
            let unfinished = path.with_extension("new");
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(true).mode(0o600);
            let file = options.open(&unfinished)?;
            file.set_len(bytes)?;
            file.sync_all()?;
            File::open(&self.dir)?.sync_all()?;
            std::fs::rename(&unfinished, path)?;
            File::open(&self.dir)?.sync_all()?;
            Ok(Some(file))
        };
        let file = create().map_err(|error| StoreError::io("create", path, error))?;
        tracing::info!(vm = %self.vm, path = %path.display(), bytes, created = file.is_some(), "new disk");
        file.ok_or(StoreError::Limit { what: "disks of this VM", limit: limits.max_disks })
    }
}
