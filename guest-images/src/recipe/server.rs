//! Guests with a root disk that run one of Debian's servers, unmodified: `redis` and `nginx`.
//!
//! The disk has what the server's programs need and no more: the programs, the libraries that they ask for, a
//! busybox, and scripts of ours that start it. No script of a package is run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{
    BUTTON_ACTION, BuildError, DISK, INITRD, KERNEL, Kitchen, LINUX_COMMAND_LINE, NETWORK, Recipe, read,
};
use crate::cache::Contents;
use crate::disk_image::{self, Tree};
use crate::elf::Elf;
use crate::initramfs::Archive;

const INIT_DISK: &str = include_str!("../../linux/init-disk.sh");
const INIT_SERVER: &str = include_str!("../../linux/init-server.sh");
const REDIS_CONF: &str = include_str!("../../linux/redis.conf");
const NGINX_CONF: &str = include_str!("../../linux/nginx.conf");
const INDEX: &str = "<!doctype html>\n<title>Lockstep</title>\n<p>Served by a fault-tolerant pair.</p>\n";

const MEMORY_MIB: u64 = 256;
/// As large as a disk is unless told.
const DISK_MIB: u64 = 256;
/// Where programs look for libraries, and Debian puts them.
pub(super) const LIBRARIES: [&str; 4] =
    ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib64"];
/// The program that loads the others' libraries.
pub(super) const LOADER: &str = "lib64/ld-linux-x86-64.so.2";

pub(super) const REDIS: Recipe = Recipe {
    name: "redis",
    about: "Debian's redis-server on a root disk, every write durable before its answer",
    make: make_redis,
};

pub(super) const NGINX: Recipe = Recipe {
    name: "nginx",
    about: "Debian's nginx on a root disk, serving /var/www on port 80",
    make: make_nginx,
};

/// What distinguishes one server from another.
struct Server {
    packages: &'static [&'static str],
    /// Programs, by their places in the packages.
    programs: &'static [&'static str],
    /// Files copied as they are.
    files: &'static [&'static str],
    /// Files of ours: path, permissions, content.
    own: &'static [(&'static str, u32, &'static str)],
    directories: &'static [&'static str],
    arguments: &'static str,
}

fn make_redis(kitchen: &mut Kitchen<'_>) -> Result<Contents, BuildError> {
    let server = Server {
        packages: &["redis-server", "redis-tools"],
        programs: &["usr/bin/redis-server", "usr/bin/redis-cli", "usr/bin/redis-check-aof"],
        files: &[],
        own: &[
            ("etc/redis.conf", 0o644, REDIS_CONF),
            ("sbin/serve", 0o755, "#!/bin/sh\nexec redis-server /etc/redis.conf --port \"${port:-6379}\"\n"),
        ],
        directories: &["var/lib/redis"],
        arguments: "port=6379",
    };
    make(kitchen, &server)
}

fn make_nginx(kitchen: &mut Kitchen<'_>) -> Result<Contents, BuildError> {
    let server = Server {
        packages: &["nginx"],
        programs: &["usr/sbin/nginx"],
        files: &["etc/nginx/mime.types"],
        own: &[
            ("etc/nginx/nginx.conf", 0o644, NGINX_CONF),
            ("var/www/index.html", 0o644, INDEX),
            ("sbin/serve", 0o755, "#!/bin/sh\nexec nginx\n"),
        ],
        directories: &["var/log/nginx", "var/lib/nginx"],
        arguments: "",
    };
    make(kitchen, &server)
}

fn make(kitchen: &mut Kitchen<'_>, server: &Server) -> Result<Contents, BuildError> {
    let mut archive = Archive::new();
    let mut tree = base(kitchen, &mut archive)?;
    let closure = kitchen.apt.closure(server.packages)?;
    let packages = kitchen.unpack("server", &closure)?;
    fill(&mut tree, &packages, server)?;
    kitchen.say("making the root disk");
    disk_image::make(&tree, DISK_MIB, &kitchen.work, &kitchen.out.join(DISK))?;
    let command_line = format!("{LINUX_COMMAND_LINE} {NETWORK} {}", server.arguments);
    Ok(Contents {
        kernel: KERNEL.into(),
        initrd: Some(INITRD.into()),
        disk: Some(DISK.into()),
        command_line: command_line.trim_end().into(),
        memory_mib: MEMORY_MIB,
        packages: std::mem::take(&mut kitchen.packages),
    })
}

/// Makes the kernel, and the initramfs that goes on from a root disk; the disk's tree, with busybox in it.
pub(super) fn base(kitchen: &mut Kitchen<'_>, archive: &mut Archive) -> Result<Tree, BuildError> {
    kitchen.kernel(archive)?;
    kitchen.busybox(archive)?;
    let mut tree = Tree::new();
    for (path, target) in archive.links() {
        tree.link(path, target);
    }
    for path in ["bin/busybox", "etc/passwd", "etc/group", "sbin/switch-off", BUTTON_ACTION] {
        let (mode, data) = archive.data(path).expect("busybox is in the archive");
        tree.file(path, mode, data);
    }
    archive.file("init", 0o755, INIT_DISK);
    kitchen.write_initrd(archive)?;
    Ok(tree)
}

/// Puts the server and what it needs into the tree of the root disk.
fn fill(tree: &mut Tree, packages: &Path, server: &Server) -> Result<(), BuildError> {
    for directory in ["dev", "proc", "sys", "tmp", "run", "root"].iter().chain(server.directories) {
        tree.directory(directory);
    }
    let name = server.packages[0];
    let mut found = BTreeMap::new();
    for program in server.programs {
        let data = read(packages, name, program)?;
        let needed = Elf::new(&data).map(|elf| elf.needed()).unwrap_or_default();
        libraries(packages, name, needed, &mut found)?;
        tree.file(program, 0o755, &data);
    }
    found.insert(LOADER.into(), read_in(packages, name, "ld-linux-x86-64.so.2")?.1);
    for (path, data) in &found {
        tree.file(path, 0o755, data);
    }
    for file in server.files {
        tree.file(file, 0o644, &read(packages, name, file)?);
    }
    tree.file("sbin/init", 0o755, INIT_SERVER.as_bytes());
    for (path, mode, text) in server.own {
        tree.file(path, *mode, text.as_bytes());
    }
    Ok(())
}

/// Finds the libraries that a program asks for, and those that they ask for.
pub(super) fn libraries(
    packages: &Path,
    package: &str,
    mut wanted: Vec<String>,
    found: &mut BTreeMap<String, Vec<u8>>,
) -> Result<(), BuildError> {
    while let Some(name) = wanted.pop() {
        if name.contains('/') || found.keys().any(|path| path.rsplit('/').next() == Some(&name)) {
            continue;
        }
        let (path, data) = read_in(packages, package, &name)?;
        wanted.extend(Elf::new(&data).map(|elf| elf.needed()).unwrap_or_default());
        found.insert(path, data);
    }
    Ok(())
}

/// A library, by the name that programs ask for it: its path, and what it holds.
pub(super) fn read_in(packages: &Path, package: &str, name: &str) -> Result<(String, Vec<u8>), BuildError> {
    for directory in LIBRARIES {
        let path = PathBuf::from(directory).join(name);
        if let Ok(data) = std::fs::read(packages.join(&path)) {
            return Ok((path.to_string_lossy().into_owned(), data));
        }
    }
    Err(BuildError::NoFile { package: format!("{package} and what it depends on"), file: name.into() })
}
