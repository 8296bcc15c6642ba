//! Archives, read back by the cpio crate.

use std::io::{Cursor, Read};

use cpio::newc::Reader;

use super::*;

fn entries(bytes: Vec<u8>) -> Vec<(String, u32, Vec<u8>)> {
    let mut cursor = Cursor::new(bytes);
    let mut found = Vec::new();
    loop {
        let mut reader = Reader::new(cursor).expect("an entry");
        let entry = reader.entry().clone();
        if entry.is_trailer() {
            return found;
        }
        let mut data = Vec::new();
        reader.read_to_end(&mut data).expect("its data");
        assert_eq!((entry.uid(), entry.gid(), entry.mtime()), (0, 0, 0));
        found.push((entry.name().to_string(), entry.mode(), data));
        cursor = reader.finish().expect("the next");
    }
}

fn archive() -> Archive {
    let mut archive = Archive::new();
    archive.file("/init", 0o755, "#!/bin/sh\n");
    archive.link("usr/bin/ls", "../../bin/busybox");
    archive.device("dev/console", 5, 1);
    archive.directory("proc");
    archive
}

#[test]
fn files_links_and_devices_come_behind_their_directories() {
    let found = entries(archive().encode().expect("encoded"));
    let names: Vec<&str> = found.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["dev", "dev/console", "init", "proc", "usr", "usr/bin", "usr/bin/ls"]);
    let modes: Vec<u32> = found.iter().map(|(_, mode, _)| *mode).collect();
    assert_eq!(modes, [0o40755, 0o20600, 0o100_755, 0o40755, 0o40755, 0o40755, 0o120_777]);
    assert_eq!(found[2].2, b"#!/bin/sh\n");
    assert_eq!(found[6].2, b"../../bin/busybox");
}

#[test]
fn equal_contents_give_equal_bytes() {
    let mut other = Archive::new();
    other.directory("proc/");
    other.device("/dev/console", 5, 1);
    other.file("init", 0o755, *b"#!/bin/sh\n");
    other.link("/usr/bin/ls", "../../bin/busybox");
    assert_eq!(other.encode().expect("encoded"), archive().encode().expect("encoded"));
    other.file("init", 0o700, "");
    assert_ne!(other.encode().expect("encoded"), archive().encode().expect("encoded"));
}
