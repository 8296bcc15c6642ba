//! A file system made twice.

use super::*;

fn sample() -> Tree {
    let mut tree = Tree::new();
    tree.file("etc/motd", 0o644, b"hello\n");
    tree.file("sbin/init", 0o755, &[7; 10_000]);
    tree.link("bin/sh", "busybox");
    tree.directory("var/lib/redis");
    tree
}

#[test]
fn equal_trees_give_equal_disks() {
    if tool("mkfs.ext4").and(tool("debugfs")).is_err() {
        println!("SKIPPED: no e2fsprogs here");
        return;
    }
    let images: Vec<Vec<u8>> = (0..2)
        .map(|_| {
            let work = tempfile::tempdir().expect("a directory");
            let image = work.path().join("disk");
            make(&sample(), 16, work.path(), &image).expect("made");
            let listed = run(Command::new(tool("debugfs").unwrap()).args(["-R", "ls -l /etc"]).arg(&image));
            assert!(listed.expect("listed").contains("motd"));
            std::fs::read(&image).expect("read")
        })
        .collect();
    assert_eq!(images[0].len(), 16 << 20);
    let differs = images[0].iter().zip(&images[1]).position(|(a, b)| a != b);
    assert_eq!(differs, None, "they differ");
}
