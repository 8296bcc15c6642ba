//! `programs`: a root disk with a JVM, a C compiler, openssl and sqlite, as Debian has them, work for each of
//! them, and a program that rewrites its own code. What is compiled is compiled here, by the packages' own
//! compilers, so that a guest and a host run the same files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::server::{LIBRARIES, LOADER, base, libraries, read_in};
use super::{BuildError, DISK, INITRD, KERNEL, Kitchen, LINUX_COMMAND_LINE, Recipe, read, subdirectory};
use crate::apt;
use crate::cache::Contents;
use crate::disk_image::{self, Tree};
use crate::elf::Elf;
use crate::initramfs::Archive;

const INIT: &str = include_str!("../../linux/init-programs.sh");
const WORK: &str = include_str!("../../programs/work.sh");
const SQL: &str = include_str!("../../programs/work.sql");
const JAVA: &str = include_str!("../../programs/Work.java");
const REWRITE: &str = include_str!("../../programs/rewrite.c");
const UNIT: &str = include_str!("../../programs/unit.c");

/// A JVM and the pages of its files.
const MEMORY_MIB: u64 = 512;
/// More than a disk has unless told: `--disk-size`.
const DISK_MIB: u64 = 384;
/// Where the programs' work is, on the disk.
const PLACE: &str = "usr/share/programs";
/// The JVM's home, whatever its version.
const JVM: &str = "usr/lib/jvm/java";
/// Parts of a JVM that only developers read, and what a second kind of heap needs.
const JVM_LEFT_OUT: [&str; 5] = ["legal", "man", "docs", "lib/ct.sym", "lib/server/classes_nocoops.jsa"];
/// What the JVM loads when no program has windows or sounds.
const JVM_LOADS: [&str; 8] = [
    "bin/java",
    "lib/libjli.so",
    "lib/libjava.so",
    "lib/libverify.so",
    "lib/libjimage.so",
    "lib/libzip.so",
    "lib/libnio.so",
    "lib/server/libjvm.so",
];

pub(super) const RECIPE: Recipe = Recipe {
    name: "programs",
    about: "a JVM, gcc, openssl and sqlite on a root disk with work for them: for bench programs",
    make,
};

fn make(kitchen: &mut Kitchen<'_>) -> Result<Contents, BuildError> {
    let mut archive = Archive::new();
    let mut tree = base(kitchen, &mut archive)?;
    let jre = kitchen.apt.dependency("default-jre-headless", "openjdk-")?;
    let wanted = [jre.as_str(), "gcc", "libc6-dev", "libstb-dev", "openssl", "sqlite3"];
    let closure = kitchen.apt.closure(&wanted)?;
    let packages = kitchen.unpack("programs", &closure)?;
    let tools = Tools::new(packages, subdirectory(&kitchen.work, "built")?)?;
    kitchen.say("compiling");
    tools.compile(&mut tree)?;
    fill(&mut tree, &tools)?;
    kitchen.say("making the root disk");
    disk_image::make(&tree, DISK_MIB, &kitchen.work, &kitchen.out.join(DISK))?;
    Ok(Contents {
        kernel: KERNEL.into(),
        initrd: Some(INITRD.into()),
        disk: Some(DISK.into()),
        command_line: LINUX_COMMAND_LINE.into(),
        memory_mib: MEMORY_MIB,
        packages: std::mem::take(&mut kitchen.packages),
    })
}

/// The unpacked packages, whose programs run here by their own loader and libraries.
struct Tools {
    packages: PathBuf,
    /// Directory for what is compiled.
    built: PathBuf,
    /// The compiler's own directory, and the JVM's, within the packages.
    gcc: String,
    jvm: String,
}

impl Tools {
    fn new(packages: PathBuf, built: PathBuf) -> Result<Self, BuildError> {
        let gcc = only(&packages, "usr/lib/gcc/x86_64-linux-gnu", "cc1")?;
        let jvm = only(&packages, "usr/lib/jvm", "lib/server/libjvm.so")?;
        Ok(Self { packages, built, gcc, jvm })
    }

    /// Runs one of the packages' programs.
    fn run(&self, program: &str, arguments: &[&str]) -> Result<(), BuildError> {
        let at = |path: &str| self.packages.join(path);
        let libraries = LIBRARIES.map(|path| at(path).display().to_string()).join(":");
        let mut command = Command::new(at(LOADER));
        command.arg("--library-path").arg(libraries).arg(at(program));
        command.env_clear().env("LC_ALL", "C").current_dir(&self.packages).args(arguments);
        Ok(apt::run(&mut command).map(drop)?)
    }

    /// Compiles all that the image has of ours, and puts it into the tree.
    fn compile(&self, tree: &mut Tree) -> Result<(), BuildError> {
        let path = |name: &str| self.built.join(name).display().to_string();
        let write = |name: &str, text: &str| {
            let path = self.built.join(name);
            std::fs::write(&path, text).map_err(|source| BuildError::Io { path, source })
        };
        for (name, text) in [("rewrite.c", REWRITE), ("unit.c", UNIT), ("Work.java", JAVA)] {
            write(name, text)?;
        }
        let cc1 = format!("{}/cc1", self.gcc);
        let own = format!("{}/include", self.gcc);
        let headers =
            ["-nostdinc", "-I", &own, "-I", "usr/include/x86_64-linux-gnu", "-I", "usr/include", "-quiet"];
        let (source, assembly, object) = (path("rewrite.c"), path("rewrite.s"), path("rewrite.o"));
        self.run(&cc1, &[headers.as_slice(), &["-O2", "-o", &assembly, &source]].concat())?;
        self.run("usr/bin/x86_64-linux-gnu-as", &["--64", "-o", &object, &assembly])?;
        self.link(&object, &path("rewrite"))?;
        let (unit, whole) = (path("unit.c"), path("unit.i"));
        self.run(&cc1, &[headers.as_slice(), &["-E", "-P", "-o", &whole, &unit]].concat())?;
        // The JVM has the compiler in it.
        let (java, javac) = (format!("{}/bin/java", self.jvm), "jdk.compiler/com.sun.tools.javac.Main");
        self.run(&java, &["-m", javac, "-d", &path("classes"), &path("Work.java")])?;

        let program = read(&self.built, "gcc", "rewrite")?;
        tree.file(&format!("{PLACE}/rewrite"), 0o755, &program);
        tree.file(&format!("{PLACE}/unit.i"), 0o644, &read(&self.built, "gcc", "unit.i")?);
        let classes = self.built.join("classes");
        for name in names(&classes)? {
            tree.file(&format!("{PLACE}/{name}"), 0o644, &read(&classes, "openjdk", &name)?);
        }
        Ok(())
    }

    /// Links a program that needs no libraries when it runs.
    fn link(&self, object: &str, program: &str) -> Result<(), BuildError> {
        let libraries = "usr/lib/x86_64-linux-gnu";
        let start = ["crt1.o", "crti.o"].map(|name| format!("{libraries}/{name}"));
        let (begin, end) = (format!("{}/crtbeginT.o", self.gcc), format!("{}/crtend.o", self.gcc));
        let last = format!("{libraries}/crtn.o");
        let arguments: [&[&str]; 3] = [
            &["-static", "--build-id=none", "-o", program, &start[0], &start[1], &begin, object],
            &["-L", libraries, "-L", &self.gcc, "--start-group", "-lgcc", "-lgcc_eh", "-lc", "--end-group"],
            &[&end, &last],
        ];
        self.run("usr/bin/x86_64-linux-gnu-ld.bfd", &arguments.concat())
    }
}

/// The one directory in `place` that has `file` and is not a link.
fn only(packages: &Path, place: &str, file: &str) -> Result<String, BuildError> {
    let found = names(&packages.join(place))?.into_iter().find(|name| {
        let directory = packages.join(place).join(name);
        !directory.is_symlink() && directory.join(file).exists()
    });
    let missing = || BuildError::NoFile { package: place.into(), file: file.into() };
    found.map(|name| format!("{place}/{name}")).ok_or_else(missing)
}

/// What is in a directory, sorted.
fn names(directory: &Path) -> Result<Vec<String>, BuildError> {
    let io = |source| BuildError::Io { path: directory.to_path_buf(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(io)? {
        names.push(entry.map_err(io)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Puts the programs and what they need into the tree of the root disk.
fn fill(tree: &mut Tree, tools: &Tools) -> Result<(), BuildError> {
    let packages = &tools.packages;
    for directory in ["dev", "proc", "sys", "tmp", "run", "root"] {
        tree.directory(directory);
    }
    let programs = [
        ("openssl", "usr/bin/openssl".to_string(), "usr/bin/openssl".to_string()),
        ("sqlite3", "usr/bin/sqlite3".into(), "usr/bin/sqlite3".into()),
        ("gcc", format!("{}/cc1", tools.gcc), format!("{PLACE}/cc1")),
        ("binutils", "usr/bin/x86_64-linux-gnu-as".into(), format!("{PLACE}/as")),
    ];
    let mut found = BTreeMap::new();
    for (package, from, to) in &programs {
        let data = read(packages, package, from)?;
        let needed = Elf::new(&data).map(|elf| elf.needed()).unwrap_or_default();
        libraries(packages, package, needed, &mut found)?;
        tree.file(to, 0o755, &data);
    }
    for file in JVM_LOADS {
        let data = read(packages, "openjdk", &format!("{}/{file}", tools.jvm))?;
        let own = |name: &String| {
            ["lib", "lib/server"]
                .iter()
                .any(|place| packages.join(&tools.jvm).join(place).join(name).exists())
        };
        let mut needed = Elf::new(&data).map(|elf| elf.needed()).unwrap_or_default();
        needed.retain(|name| !own(name));
        libraries(packages, "openjdk", needed, &mut found)?;
    }
    found.insert(LOADER.into(), read_in(packages, "libc6", "ld-linux-x86-64.so.2")?.1);
    for (path, data) in &found {
        tree.file(path, 0o755, data);
    }
    copy(tree, tools, "")?;
    tree.link(JVM, tools.jvm.rsplit('/').next().unwrap_or_default());
    tree.file("sbin/init", 0o755, INIT.as_bytes());
    tree.file(&format!("{PLACE}/work.sh"), 0o755, WORK.as_bytes());
    tree.file(&format!("{PLACE}/work.sql"), 0o644, SQL.as_bytes());
    Ok(())
}

/// Copies the JVM's files, and in the place of links what they lead to: some lead to /etc, which is another
/// one on the host.
fn copy(tree: &mut Tree, tools: &Tools, below: &str) -> Result<(), BuildError> {
    use std::os::unix::fs::PermissionsExt;
    let home = tools.packages.join(&tools.jvm);
    for name in names(&home.join(below))? {
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        if JVM_LEFT_OUT.contains(&path.as_str()) {
            continue;
        }
        let mut from = home.join(&path);
        if let Ok(target) = std::fs::read_link(&from)
            && let Ok(target) = target.strip_prefix("/")
        {
            from = tools.packages.join(target);
        }
        // A link that leads out of the packages is of no use here.
        let Ok(metadata) = std::fs::metadata(&from) else { continue };
        if metadata.is_dir() {
            copy(tree, tools, &path)?;
            continue;
        }
        let data = std::fs::read(&from).map_err(|source| BuildError::Io { path: from.clone(), source })?;
        let mode = metadata.permissions().mode() & 0o777;
        tree.file(&format!("{}/{path}", tools.jvm), mode, &data);
    }
    Ok(())
}
