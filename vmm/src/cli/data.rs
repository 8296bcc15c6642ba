//! Where a machine without a backup keeps its disk, unless a disk server does.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use disk_server::Embedded;

use crate::cli::headings::DISK;
use crate::config::VmConfig;

/// Options of commands that run one machine without a backup.
#[derive(Debug, Clone, Args)]
pub struct DataArgs {
    /// Directory in which this process keeps the disk, where no --disk-server does; $XDG_DATA_HOME/lockstep
    /// or ~/.local/share/lockstep without it. Made if it is not there. Machines of other names may share it.
    #[arg(long, help_heading = DISK, value_name = "DIR", conflicts_with = "disk_server")]
    pub data: Option<PathBuf>,
}

impl DataArgs {
    /// Opens the directory, unless the options name a disk server. The disk is there as long as the result.
    pub fn keep_disk(&self, config: &mut VmConfig) -> anyhow::Result<Option<Embedded>> {
        if !config.args.disk_server.is_empty() {
            return Ok(None);
        }
        let directory = match &self.data {
            Some(directory) => directory.clone(),
            None => default_directory()?,
        };
        let store = Embedded::open(&directory, &config.args.vm)?;
        config.args.disk_server = store.address().into();
        Ok(Some(store))
    }
}

fn default_directory() -> anyhow::Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || set("HOME").map(|home| home.join(".local/share"));
    let data = set("XDG_DATA_HOME").or_else(home);
    Ok(data
        .context("neither XDG_DATA_HOME nor HOME is set: --data DIR says where to keep the disk")?
        .join("lockstep"))
}
