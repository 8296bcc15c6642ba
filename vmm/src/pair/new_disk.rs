//! The first content of a guest's root disk: copied from its image, once.
//!
//! The disk server knows durably whether a disk was filled (`disk_server::protocol::Content`); what is on it
//! does not matter. A copy that was cut short is begun anew, on a disk that is empty again.
#![warn(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss
)]

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use disk_server::client::DiskClient;
use disk_server::protocol::{Content, Opened, SECTOR};
use logchannel::Generation;

/// Bytes of one write.
const PART: u64 = 1 << 20;
/// How long one call may take: at the end, everything must reach the storage.
const CALL: Duration = Duration::from_secs(600);

/// Copies the file `image` to the disk that `opened` describes, unless it was filled before or a guest has
/// written to it; whether it did. Without an image, a disk may be new, but not half filled.
pub fn fill(
    client: &mut DiskClient,
    opened: &Opened,
    generation: Generation,
    image: Option<&Path>,
) -> anyhow::Result<bool> {
    let image = match (opened.content, image) {
        (Content::Filled, _) | (Content::New, None) => return Ok(false),
        (Content::Filling, None) => bail!(
            "the disk was being filled from an image, and that was cut short: start the machine with its \
             image again (--guest or --disk-image), or give it another --disk"
        ),
        (Content::New | Content::Filling, Some(image)) => image,
    };
    let cannot_read = || format!("cannot read the disk image {}", image.display());
    let mut file = File::open(image).with_context(cannot_read)?;
    // Not the metadata's length: that of a block device is 0.
    let bytes = file.seek(SeekFrom::End(0)).with_context(cannot_read)?;
    file.rewind().with_context(cannot_read)?;
    ensure!(bytes > 0, "the disk image {} is empty", image.display());
    ensure!(
        bytes <= opened.bytes,
        "the disk image {} has {} MiB, the disk {}: give the disk that size when it is made, by another name \
         if this one exists (--disk-size, --disk)",
        image.display(),
        bytes.div_ceil(1 << 20),
        opened.bytes >> 20
    );
    eprintln!("lockstep: a new disk: copying {}", image.display());
    let deadline = client.deadline();
    client.set_deadline(CALL)?;
    client.begin_fill(opened.disk, generation, bytes.next_multiple_of(SECTOR))?;
    let (mut at, mut data) = (0, Vec::new());
    while at < bytes {
        data.clear();
        file.by_ref().take(PART).read_to_end(&mut data).with_context(cannot_read)?;
        let read = data.len() as u64;
        ensure!(read == PART.min(bytes - at), "the disk image {} has changed its length", image.display());
        let padded = data.len().next_multiple_of(usize::try_from(SECTOR)?);
        data.resize(padded, 0);
        // The disk is empty.
        if data.iter().any(|&byte| byte != 0) {
            client.write(opened.disk, generation, at, &data, false)?;
        }
        at += read;
    }
    client.end_fill(opened.disk, generation)?;
    // The guest's requests go over this connection too.
    client.set_deadline(deadline)?;
    Ok(true)
}
