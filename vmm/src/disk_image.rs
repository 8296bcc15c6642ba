//! What may be the first content of a disk: raw bytes. Images of other formats, which would be copied as they
//! are and be of no use to a guest, are refused by name.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use anyhow::{Context, bail};

/// Formats: where, what is there, the name, and what makes a raw image of it.
const FORMATS: [(usize, &[u8], &str, &str); 12] = [
    (0, b"QFI\xfb", "qcow2", "qemu-img convert -O raw"),
    (0, b"QED\0", "QED", "qemu-img convert -O raw"),
    (0, b"KDMV", "VMDK", "qemu-img convert -O raw"),
    (0, b"COWD", "VMDK", "qemu-img convert -O raw"),
    (0, b"# Disk DescriptorFile", "VMDK", "qemu-img convert -O raw"),
    (0, b"vhdxfile", "VHDX", "qemu-img convert -O raw"),
    (0, b"conectix", "VHD", "qemu-img convert -O raw"),
    (0x40, b"\x7f\x10\xda\xbe", "VDI", "qemu-img convert -O raw"),
    (0, b"\x1f\x8b", "gzip", "gunzip -c"),
    (0, b"\xfd7zXZ\0", "xz", "unxz -c"),
    (0, b"\x28\xb5\x2f\xfd", "zstd", "unzstd -c"),
    (0, b"BZh", "bzip2", "bunzip2 -c"),
];
const BEGINNING: u64 = 4096;

/// A fixed VHD is raw but for its last sector.
const FOOTER: (&[u8], i64) = (b"conectix", -512);

/// Refuses what is there but cannot be a raw image for a disk of `disk_bytes`.
pub fn check(path: &Path, disk_bytes: u64) -> anyhow::Result<()> {
    let name = path.display();
    let cannot_read = || format!("cannot read --disk-image {name}");
    let kind = std::fs::metadata(path).with_context(cannot_read)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        bail!("--disk-image {name} is neither a file nor a block device");
    }
    let mut file = File::open(path).with_context(cannot_read)?;
    let mut beginning = Vec::new();
    (&file).take(BEGINNING).read_to_end(&mut beginning).with_context(cannot_read)?;
    if beginning.is_empty() {
        bail!("--disk-image {name} is empty");
    }
    let mut end = [0; FOOTER.0.len()];
    let ends_as_vhd =
        file.seek(SeekFrom::End(FOOTER.1)).and_then(|_| file.read_exact(&mut end)).is_ok() && end == FOOTER.0;
    let found = FORMATS.iter().find(|(at, magic, format, _)| {
        beginning.get(*at..).is_some_and(|b| b.starts_with(magic)) || (ends_as_vhd && *format == "VHD")
    });
    if let Some((_, _, format, command)) = found {
        let redirect = if command.ends_with("-c") { " >" } else { "" };
        bail!(
            "--disk-image {name} is in format {format}, and a raw image is needed: {command} {name}\
             {redirect} disk.raw"
        );
    }
    let bytes = file.seek(SeekFrom::End(0)).with_context(cannot_read)?;
    if bytes > disk_bytes {
        bail!("--disk-image {name} has {bytes} bytes, and the disk {disk_bytes}: give a larger --disk-size");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_refused_by_name_with_what_converts_them() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("disk");
        for (at, magic, format, command) in FORMATS {
            for len in [at + magic.len(), 70_000] {
                let mut bytes = vec![0; len];
                bytes[at..at + magic.len()].copy_from_slice(magic);
                std::fs::write(&path, bytes).expect("a file");
                let error = check(&path, u64::MAX).expect_err(format).to_string();
                assert!(error.contains(format) && error.contains(command), "{error}");
                assert!(
                    error.ends_with("disk.raw") && error.contains(&path.display().to_string()),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn a_fixed_vhd_is_told_by_its_end_and_an_image_must_fit() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("disk");
        let mut bytes = vec![0; 4096 + 512];
        std::fs::write(&path, &bytes).expect("a file");
        check(&path, 4608).expect("a raw image as long as the disk");
        let error = check(&path, 4607).expect_err("too long").to_string();
        assert!(error.contains("4608 bytes") && error.contains("--disk-size"), "{error}");
        bytes[4096..4104].copy_from_slice(b"conectix");
        std::fs::write(&path, &bytes).expect("a file");
        assert!(check(&path, u64::MAX).expect_err("VHD").to_string().contains("format VHD"));
    }

    #[test]
    fn raw_images_of_any_length_pass_and_what_is_no_file_does_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("disk");
        for len in [1, 3, 511, 513, 4096, 100_001] {
            std::fs::write(&path, vec![0; len]).expect("a file");
            check(&path, u64::MAX).unwrap_or_else(|error| panic!("{len} bytes: {error}"));
        }
        std::fs::write(&path, b"").expect("a file");
        assert!(check(&path, u64::MAX).expect_err("empty").to_string().contains("empty"));
        for path in [directory.path(), Path::new("/dev/zero")] {
            assert!(check(path, u64::MAX).expect_err("no file").to_string().contains("neither a file nor"));
        }
        let error = format!("{:#}", check(&directory.path().join("missing"), u64::MAX).expect_err("missing"));
        assert!(error.contains("missing") && error.contains("No such file"), "{error}");
    }
}
