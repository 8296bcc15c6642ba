//! What redis has on the disk: its append-only file, read from the disk server's image without mounting it.
//!
//! ```text
//!  redis.img ──copy──▶ e2fsck (replays the journal, checks the rest) ──▶ debugfs rdump ──▶ appendonlydir/
//!      appendonly.aof.manifest        the parts: one base (type b), then increments (type i)
//!      appendonly.aof.1.base.rdb      empty, as nothing was there when redis started first
//!      appendonly.aof.1.incr.aof      the commands since, in RESP
//! ```
//!
//! Redis' documentation "Redis persistence" describes the parts, the comments in its rdb.h the base.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use load::resp::{self, Reply};

use crate::disk_tools::{check_file_system, copy_sparse, debugfs};
use crate::image::Contents;

const DISK: &str = "disks/vms/vm0/disks/redis.img";
const PARTS: &str = "appendonlydir";
const MANIFEST: &str = "appendonly.aof.manifest";

/// The data set in the append-only file on the disk of the cluster in `directory`. The image is only read.
pub fn read(directory: &Path) -> anyhow::Result<Contents> {
    let place = tempfile::tempdir()?;
    let copy = place.path().join("disk.img");
    copy_sparse(&directory.join(DISK), &copy)?;
    check_file_system(&copy)?;
    let said = debugfs(&copy, false, &[format!("rdump /var/lib/redis/{PARTS} {}", place.path().display())])?;
    let parts = place.path().join(PARTS);
    let manifest = std::fs::read_to_string(parts.join(MANIFEST)).context(said)?;
    let mut contents = Contents::new();
    for line in manifest.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let ["file", name, "seq", _, "type", kind] = words[..] else {
            bail!("{MANIFEST} has the line {line:?}")
        };
        let bytes = std::fs::read(parts.join(name)).with_context(|| name.to_string())?;
        let applied = match kind {
            "b" => empty_base(&bytes),
            "i" => apply(&bytes, &mut contents),
            _ => bail!("{MANIFEST} has the line {line:?}"),
        };
        applied.with_context(|| name.to_string())?;
    }
    Ok(contents)
}

/// A base without a key: "REDIS", a version, auxiliary fields (0xfa, a name, a value), 0xff, a checksum.
fn empty_base(bytes: &[u8]) -> anyhow::Result<()> {
    ensure!(bytes.starts_with(b"REDIS"), "it is no RDB file");
    let mut rest = bytes.get(9..).context("it is cut off")?;
    loop {
        let (&code, after) = rest.split_first().context("it is cut off")?;
        match code {
            0xfa => rest = skip_string(skip_string(after)?)?,
            0xff => return Ok(()),
            _ => bail!("it holds data (opcode {code:#x}), and nothing was there when it was made"),
        }
    }
}

/// What follows a string: its length in 6, 14 or 32 bits, or an integer of 1, 2 or 4 bytes.
fn skip_string(bytes: &[u8]) -> anyhow::Result<&[u8]> {
    let (&first, after) = bytes.split_first().context("a string is cut off")?;
    let byte = |index: usize| after.get(index).map(|&byte| usize::from(byte)).context("a string is cut off");
    let skip = match (first >> 6, first & 0x3f) {
        (0, length) => usize::from(length),
        (1, high) => 1 + (usize::from(high) << 8 | byte(0)?),
        (3, size @ 0..3) => 1 << size,
        _ => bail!("a string begins with {first:#x}"),
    };
    after.get(skip..).context("a string is cut off")
}

/// Executes the commands that the tests' clients give.
fn apply(mut bytes: &[u8], contents: &mut Contents) -> anyhow::Result<()> {
    while !bytes.is_empty() {
        let (command, length) = resp::parse(bytes)?.context("the last command is cut off")?;
        bytes = &bytes[length..];
        let words = words(command)?;
        let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        match words[..] {
            [b"SELECT", b"0"] => {}
            [b"SET", key, value] => drop(contents.insert(key.to_vec(), value.to_vec())),
            [b"APPEND", key, value] => contents.entry(key.to_vec()).or_default().extend(value),
            [b"INCR", key] => {
                let value = contents.entry(key.to_vec()).or_insert_with(|| b"0".to_vec());
                let number: i64 = std::str::from_utf8(value)?.parse()?;
                *value = (number + 1).to_string().into_bytes();
            }
            _ => bail!("a command that no client gave: {}", String::from_utf8_lossy(&words.join(&b' '))),
        }
    }
    Ok(())
}

fn words(command: Reply) -> anyhow::Result<Vec<Vec<u8>>> {
    let Reply::Array(Some(items)) = command else { bail!("{command:?} is no command") };
    let word = |item| match item {
        Reply::Bulk(Some(word)) => Ok(word),
        other => bail!("{other:?} in a command"),
    };
    items.into_iter().map(word).collect()
}

#[test]
fn an_append_only_file_is_executed() {
    let mut file = Vec::new();
    for words in [
        &[&b"SELECT"[..], b"0"][..],
        &[b"INCR", b"n"],
        &[b"SET", b"k", b"a\r\nb"],
        &[b"APPEND", b"own", b"x"],
        &[b"APPEND", b"own", b"x"],
        &[b"INCR", b"n"],
    ] {
        resp::command(words, &mut file);
    }
    let mut contents = Contents::new();
    apply(&file, &mut contents).expect("commands");
    let expected = [(&b"k"[..], &b"a\r\nb"[..]), (b"n", b"2"), (b"own", b"xx")];
    assert_eq!(contents, expected.map(|(key, value)| (key.to_vec(), value.to_vec())).into());
    assert!(apply(&file[..file.len() - 1], &mut Contents::new()).is_err());
    assert!(apply(b"*1\r\n$8\r\nFLUSHALL\r\n", &mut Contents::new()).is_err());
}

#[test]
fn a_base_with_keys_is_told() {
    let base =
        b"REDIS0010\xfa\x09redis-ver\x067.0.15\xfa\x0aredis-bits\xc0\x40\xfa\x05ctime\xc2\x48\xbe\x01\x6b";
    assert!(empty_base(&[&base[..], b"\xff12345678"].concat()).is_ok());
    assert!(empty_base(&[&base[..], b"\xfe\x00\xfb\x01\x00\x00\x01k\x01v\xff12345678"].concat()).is_err());
    assert!(empty_base(base).is_err());
}
