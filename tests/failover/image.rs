//! What is on the disk: minikv's log, read from the disk server's file by the guest's own recovery.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, ensure};
use load::History;
use minikv_core::log::SECTOR_LEN;
use minikv_core::{Recovery, Step, Store};

/// Keys and their values.
pub type Contents = BTreeMap<Vec<u8>, Vec<u8>>;

/// Data sets of the tests are far below this.
const MAX_MEMORY: usize = 256 << 20;

/// The data set on the disk of the cluster in `directory`. The file is only read.
pub fn read(directory: &Path) -> anyhow::Result<Contents> {
    let path = directory.join("disks/vms/vm0/disks/disk0.img");
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let sectors = file.metadata()?.len() / SECTOR_LEN as u64;
    let recovered = |error| anyhow::anyhow!("{}: {error}", path.display());
    let mut store = Store::new();
    let mut recovery = Recovery::new(sectors, 0, MAX_MEMORY).map_err(recovered)?;
    loop {
        match recovery.step() {
            Step::Read { sector, count } => {
                let mut bytes = vec![0; count as usize * SECTOR_LEN];
                file.read_exact_at(&mut bytes, sector * SECTOR_LEN as u64)?;
                recovery.read_done(&bytes, &mut store).map_err(recovered)?;
            }
            // Only announces this boot, of which the disk need not know.
            Step::Write(_) => recovery.write_done(),
            Step::Ready(_) => break,
        }
    }
    Ok(store.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect())
}

/// What the clients' last reads say that there must be, as the workload names its keys.
pub fn expected(history: &History) -> anyhow::Result<Contents> {
    let counter = history.final_counter.context("there were no final reads")?;
    let mut contents = Contents::new();
    if counter > 0 {
        contents.insert(b"load:counter".to_vec(), counter.to_string().into_bytes());
    }
    let values = history.final_values.iter().enumerate().filter(|(_, value)| **value > 0);
    contents.extend(values.map(|(key, value)| (format!("load:key:{key}").into(), value.to_string().into())));
    let lengths = history.final_lengths.iter().enumerate().filter(|(_, length)| **length > 0);
    contents.extend(
        lengths.map(|(client, length)| (format!("load:own:{client}").into(), vec![b'x'; *length as usize])),
    );
    Ok(contents)
}

/// Nothing else than `expected` was `found`.
pub fn compare(found: &Contents, expected: &Contents) -> anyhow::Result<()> {
    let say = |value: Option<&Vec<u8>>| match value {
        None => "nothing".to_string(),
        Some(value) if value.len() > 40 => format!("{} bytes", value.len()),
        Some(value) => format!("{:?}", String::from_utf8_lossy(value)),
    };
    for key in expected.keys().chain(found.keys()) {
        ensure!(
            expected.get(key) == found.get(key),
            "key {}: {} on the disk, {} was read last",
            String::from_utf8_lossy(key),
            say(found.get(key)),
            say(expected.get(key))
        );
    }
    Ok(())
}
