//! The state of a disk: its record, and disks without one.

use super::*;

fn disk(dir: &Path) -> File {
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(false).open(dir.join("d.img")).unwrap();
    file.set_len(1 << 20).unwrap();
    file
}

#[test]
fn layout_of_version_1_is_fixed() {
    let bytes = encode(Content::Filled);
    assert_eq!(bytes[..CRC], *b"LKDC\x01\0\x02\0\0\0\0\0");
    assert_eq!(bytes[CRC..], crc32fast::hash(&bytes[..CRC]).to_le_bytes());
}

#[test]
fn every_state_is_kept_and_any_changed_bit_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let file = disk(dir.path());
    create(dir.path(), "d").unwrap();
    assert_eq!(load(dir.path(), "d", &file).unwrap(), Content::New);
    for content in [Content::Filling, Content::Filled] {
        replace(dir.path(), "d", content, &Faults::default()).unwrap();
        assert_eq!(load(dir.path(), "d", &file).unwrap(), content);
    }
    for bit in 0..LEN * 8 {
        let mut bytes = encode(Content::Filled);
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&bytes).is_err(), "bit {bit}");
    }
    std::fs::write(dir.path().join("d.state"), b"").unwrap();
    assert!(matches!(load(dir.path(), "d", &file), Err(ContentError::Damaged)));
}

#[test]
fn a_disk_without_a_record_is_new_only_if_nothing_was_written() {
    for (written, expected) in [(None, Content::New), (Some(0), Content::Filled), (Some(1), Content::Filled)]
    {
        let dir = tempfile::tempdir().unwrap();
        let file = disk(dir.path());
        if let Some(byte) = written {
            file.write_all_at(&[byte; 4096], 512 << 10).unwrap();
        }
        assert_eq!(load(dir.path(), "d", &file).unwrap(), expected, "{written:?}");
        assert_eq!(load(dir.path(), "d", &file).unwrap(), expected, "and a record was made");
        assert!(dir.path().join("d.state").exists());
    }
}

#[test]
fn an_image_put_in_the_place_of_a_new_disk_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    create(dir.path(), "d").unwrap();
    disk(dir.path()).write_all_at(b"precious", 4096).unwrap();
    assert_eq!(load(dir.path(), "d", &disk(dir.path())).unwrap(), Content::Filled);
}

#[test]
fn a_cleared_file_is_zero_and_as_long_as_before() {
    let dir = tempfile::tempdir().unwrap();
    for clear in [clear, write_zeros] {
        let file = disk(dir.path());
        file.write_all_at(&[7; 100_000], 300_000).unwrap();
        clear(&file, 1 << 20).unwrap();
        let bytes = std::fs::read(dir.path().join("d.img")).unwrap();
        assert!(bytes.len() == 1 << 20 && bytes.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_record_is_never_seen_half_written() {
    let dir = tempfile::tempdir().unwrap();
    let file = disk(dir.path());
    file.write_all_at(&[1; 4096], 0).unwrap();
    // A server died as it made the record of an older disk: only the scratch file is there, and only half.
    std::fs::write(dir.path().join("d.state.next"), b"LK").unwrap();
    assert_eq!(load(dir.path(), "d", &file).unwrap(), Content::Filled);
    assert_eq!(std::fs::read(dir.path().join("d.state.next")).unwrap(), encode(Content::Filled));
}
