//! The first content of a guest's root disk: copied from its image when the disk is still empty.
//!
//! The first part is written last, when everything else is durable: a disk whose beginning is zero is new,
//! also when an earlier copy was cut short.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, ensure};
use disk_server::client::DiskClient;
use disk_server::protocol::Handle;
use logchannel::Generation;

/// Bytes of one write.
const PART: u64 = 1 << 20;
/// Bytes at the beginning that tell a new disk.
const BEGINNING: u32 = 64 << 10;

/// Copies the file `image` to `disk`, of `disk_bytes`, unless something is there; whether it did.
pub fn fill(
    client: &mut DiskClient,
    disk: Handle,
    disk_bytes: u64,
    generation: Generation,
    image: &Path,
) -> anyhow::Result<bool> {
    let beginning = client.read(disk, generation, 0, BEGINNING.min(disk_bytes as u32))?;
    if beginning.iter().any(|&byte| byte != 0) {
        return Ok(false);
    }
    let file = File::open(image).with_context(|| format!("cannot read {}", image.display()))?;
    let bytes = file.metadata()?.len();
    ensure!(
        bytes <= disk_bytes,
        "the guest's disk needs {} MiB, and it has {}: --disk-size",
        bytes.div_ceil(1 << 20),
        disk_bytes >> 20
    );
    eprintln!("lockstep: a new disk: copying {}", image.display());
    let mut data = vec![0; PART as usize];
    for part in (0..bytes.div_ceil(PART)).rev() {
        let at = part * PART;
        let data = &mut data[..(bytes - at).min(PART) as usize];
        file.read_exact_at(data, at).with_context(|| format!("cannot read {}", image.display()))?;
        if data.iter().all(|&byte| byte == 0) {
            continue;
        }
        if part == 0 {
            client.flush(disk, generation)?;
        }
        client.write(disk, generation, at, data, false)?;
    }
    client.flush(disk, generation)?;
    Ok(true)
}
