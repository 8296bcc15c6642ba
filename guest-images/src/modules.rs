//! Kernel modules in the order in which they can be loaded. Packages bring no `modules.dep` (depmod makes it
//! when they are installed), so the modules themselves are asked: `depends=` in their `.modinfo`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::compress::{UnpackError, unpack};
use crate::elf::Elf;

/// Directories within directories below which modules are looked for.
const MAX_DEPTH: usize = 16;

/// Why modules cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The kernel's package has no such module.
    #[error("the kernel has no module {0}")]
    Missing(String),
    /// A directory or file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A packed module cannot be unpacked.
    #[error("{}: {source}", path.display())]
    Unpack {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: UnpackError,
    },
}

/// The modules of one kernel, found but not read.
#[derive(Debug)]
pub(crate) struct Modules {
    paths: BTreeMap<String, PathBuf>,
}

/// A module, ready to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// The ELF file.
    pub data: Vec<u8>,
}

impl Modules {
    /// Looks for modules below `directory`.
    pub(crate) fn below(directory: &Path) -> Result<Self, ModuleError> {
        let mut paths = BTreeMap::new();
        find(directory, MAX_DEPTH, &mut paths)?;
        Ok(Self { paths })
    }

    /// `wanted` and all that they need, each behind those it needs.
    pub(crate) fn load_order(&self, wanted: &[&str]) -> Result<Vec<Module>, ModuleError> {
        let mut order = Vec::new();
        for name in wanted {
            self.add(name, &mut Vec::new(), &mut order)?;
        }
        Ok(order)
    }

    fn add(&self, name: &str, path: &mut Vec<String>, order: &mut Vec<Module>) -> Result<(), ModuleError> {
        let name = name.replace('-', "_");
        // Modules cannot need each other in a circle; a damaged file might say so.
        if order.iter().any(|module| module.name == name) || path.contains(&name) {
            return Ok(());
        }
        let file = self.paths.get(&name).ok_or_else(|| ModuleError::Missing(name.clone()))?;
        let data = read(file)?;
        path.push(name.clone());
        let depends = Elf::new(&data).map(|elf| elf.modinfo("depends")).unwrap_or_default();
        for needed in depends.iter().flat_map(|list| list.split(',')).filter(|needed| !needed.is_empty()) {
            self.add(needed, path, order)?;
        }
        path.pop();
        order.push(Module { name, data });
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ModuleError> {
    let data = std::fs::read(path).map_err(|source| ModuleError::Io { path: path.to_path_buf(), source })?;
    if path.extension().is_some_and(|extension| extension == "ko") {
        return Ok(data);
    }
    unpack(&data).map_err(|source| ModuleError::Unpack { path: path.to_path_buf(), source })
}

fn find(directory: &Path, depth: usize, out: &mut BTreeMap<String, PathBuf>) -> Result<(), ModuleError> {
    let io = |source| ModuleError::Io { path: directory.to_path_buf(), source };
    for entry in std::fs::read_dir(directory).map_err(io)? {
        let entry = entry.map_err(io)?;
        let kind = entry.file_type().map_err(io)?;
        if kind.is_dir() && depth > 0 {
            find(&entry.path(), depth - 1, out)?;
        } else if let (true, Some(file)) = (kind.is_file(), entry.file_name().to_str())
            && let Some((name, "" | ".xz" | ".gz" | ".zst")) = file.split_once(".ko")
        {
            out.insert(name.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}
