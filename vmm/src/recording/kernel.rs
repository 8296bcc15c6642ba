//! The kernel of a recorded guest, for its symbols: of the recording itself, or a file that has the digest
//! that is written there.

use guest_images::MINIKV;
use guest_images::cache::Cache;

use crate::recording::reader::Recording;

/// Longest file that is looked at.
const MOST_BYTES: u64 = 1 << 30;

/// The kernel, if it can be had: from the recording, of what is embedded here, where it was when the run was
/// recorded, or among the images that were built.
pub fn kernel(recording: &Recording) -> Option<Vec<u8>> {
    if let Ok(Some(image)) = recording.image() {
        return Some(image.kernel.to_vec());
    }
    let (path, digest) = recording.header().files.first()?;
    let is_it = |bytes: &[u8]| blake3::hash(bytes).as_bytes() == digest;
    if is_it(MINIKV) {
        return Some(MINIKV.to_vec());
    }
    // Whoever made the recording chose the path.
    if std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() <= MOST_BYTES)
        && let Ok(bytes) = std::fs::read(path)
        && is_it(&bytes)
    {
        return Some(bytes);
    }
    let guests = Cache::new(None).and_then(|cache| cache.list()).unwrap_or_default();
    let wanted = blake3::Hash::from_bytes(*digest).to_hex();
    let guest = guests.into_iter().find(|guest| guest.manifest.kernel.digest == wanted.as_str())?;
    guest.read(&guest.manifest.kernel).ok()
}
