//! Recipes: how each guest image is made of Debian packages.
//!
//! A recipe fetches packages, unpacks them into a directory (no script of theirs is run), takes the files it
//! wants, and says how the guest is started. Equal packages give equal images.

use std::path::{Path, PathBuf};

use crate::apt::{Apt, AptError, Package, Versioned};
use crate::cache::{Cache, CacheError, Contents, Guest};
use crate::disk_image::DiskImageError;
use crate::initramfs::Archive;
use crate::kernel::{self, KernelError};
use crate::modules::{ModuleError, Modules};

mod busybox;
mod cpubench;
mod flavour;
mod programs;
mod server;

pub use flavour::{FLAVOURS, Flavour, is_known};

/// Names that a guest's files have in its directory.
const KERNEL: &str = "vmlinux";
const INITRD: &str = "initrd";
const DISK: &str = "disk";

/// What every Linux here is started with: console on the serial port, reset after a panic by triple fault, no
/// self-tests of cryptography (two thirds of the time that a stock kernel takes to boot).
const LINUX_COMMAND_LINE: &str = "console=ttyS0 panic=-1 reboot=t cryptomgr.notests quiet";

/// The network as `lockstep lan` has it.
const NETWORK: &str = "ip=10.77.0.2/24 gw=10.77.0.1";

/// Drivers of the machine's devices; the last one for machines that have them on PCI, as QEMU's `pc` does:
/// one image starts in both, so that they can be compared.
const DRIVERS: [&str; 6] =
    ["virtio_mmio", "virtio_rng", "virtio_console", "virtio_net", "virtio_blk", "virtio_pci"];

/// Drivers of the power button: ACPI's, and the one by which programs read keys.
const BUTTON_DRIVERS: [&str; 2] = ["button", "evdev"];

/// What acpid runs when the power button is pressed, and by which name (busybox' table of events).
const BUTTON_ACTION: &str = "etc/acpi/PWRF/00000080";
const BUTTON_SCRIPT: &str =
    "#!/bin/sh\nexec /sbin/switch-off \"the power button was pressed; switching off\"\n";
const SWITCH_OFF: &str = include_str!("../linux/switch-off.sh");

/// Why an image cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No such recipe.
    #[error("no recipe {name:?}: there are {known}, each also with -generic or -rt")]
    NoRecipe {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// Packages.
    #[error(transparent)]
    Apt(#[from] AptError),
    /// All versions that can be had of a kernel hang.
    #[error(
        "{package} {version} hangs on a machine without a local APIC, and there is no older one here: add \
         the distribution itself to apt's sources, not its security updates alone"
    )]
    Hangs {
        /// The kernel's package.
        package: String,
        /// The newest version.
        version: String,
    },
    /// The cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Kernel modules.
    #[error(transparent)]
    Modules(#[from] ModuleError),
    /// The root disk.
    #[error(transparent)]
    Disk(#[from] DiskImageError),
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A package does not have what it used to.
    #[error("package {package} has no {file}")]
    NoFile {
        /// The package.
        package: String,
        /// The file.
        file: String,
    },
}

/// How one image is made.
#[derive(Debug, Clone, Copy)]
pub struct Recipe {
    /// The image's name.
    pub name: &'static str,
    /// One line about it.
    pub about: &'static str,
    make: fn(&mut Kitchen<'_>) -> Result<Contents, BuildError>,
}

/// All recipes.
pub const RECIPES: &[Recipe] =
    &[busybox::RECIPE, cpubench::RECIPE, server::REDIS, server::NGINX, programs::RECIPE];

/// Digest of everything here that an image is made by: of another one comes, perhaps, another image.
pub fn recipes_digest() -> String {
    let parts: [&[u8]; 20] = [
        include_bytes!("recipe.rs"),
        include_bytes!("recipe/busybox.rs"),
        include_bytes!("recipe/cpubench.rs"),
        include_bytes!("recipe/flavour.rs"),
        include_bytes!("recipe/server.rs"),
        include_bytes!("recipe/programs.rs"),
        include_bytes!("../linux/init-busybox.sh"),
        include_bytes!("../linux/init-disk.sh"),
        include_bytes!("../linux/init-server.sh"),
        include_bytes!("../linux/init-programs.sh"),
        include_bytes!("../linux/switch-off.sh"),
        include_bytes!("../linux/nginx.conf"),
        include_bytes!("../linux/redis.conf"),
        include_bytes!("../programs/Work.java"),
        include_bytes!("../programs/rewrite.c"),
        include_bytes!("../programs/unit.c"),
        include_bytes!("../programs/work.sh"),
        include_bytes!("../programs/work.sql"),
        include_bytes!("initramfs.rs"),
        crate::CPUBENCH,
    ];
    let mut hash = blake3::Hasher::new();
    for part in parts {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().to_hex().to_string()
}

/// Makes the image `name` and keeps it in `cache`; `say` hears of the progress.
pub fn build(cache: &Cache, name: &str, say: &mut dyn FnMut(&str)) -> Result<Guest, BuildError> {
    let Some((recipe, flavour)) = flavour::parse(name) else {
        let known = RECIPES.iter().map(|recipe| recipe.name).collect::<Vec<_>>().join(", ");
        return Err(BuildError::NoRecipe { name: name.into(), known });
    };
    let workshop = cache.workshop()?;
    let mut kitchen = Kitchen {
        apt: Apt::new(&cache.lists())?,
        out: subdirectory(workshop.path(), "out")?,
        work: workshop.path().to_path_buf(),
        packages: Vec::new(),
        flavour,
        say,
    };
    let contents = (recipe.make)(&mut kitchen)?;
    let out = kitchen.out.clone();
    let about = match flavour.name == FLAVOURS[0].name {
        true => recipe.about.to_string(),
        false => format!("{}; {} kernel", recipe.about, flavour.name),
    };
    Ok(cache.store(name, &about, &out, contents)?)
}

/// Where a recipe works.
struct Kitchen<'a> {
    apt: Apt,
    /// Directory of the image's files.
    out: PathBuf,
    /// Directory for everything else, removed at the end.
    work: PathBuf,
    packages: Vec<Package>,
    flavour: Flavour,
    say: &'a mut dyn FnMut(&str),
}

impl Kitchen<'_> {
    fn say(&mut self, text: &str) {
        (self.say)(text);
    }

    /// Fetches packages (`name` or `name=version`) and unpacks them into one tree, `name`; where it is.
    fn unpack(&mut self, name: &str, packages: &[String]) -> Result<PathBuf, BuildError> {
        match packages {
            [package] => self.say(&format!("fetching {package}")),
            _ => self.say(&format!("fetching {} packages", packages.len())),
        }
        let debs = subdirectory(&self.work, &format!("{name}.debs"))?;
        let tree = subdirectory(&self.work, name)?;
        for package in self.apt.fetch(packages, &debs)? {
            self.say(&format!("unpacking {}", package.file));
            self.apt.unpack(&debs.join(&package.file), &tree)?;
            self.packages.push(package);
        }
        self.packages.sort();
        Ok(tree)
    }

    /// Fetches the image's kernel: leaves `vmlinux` among the image's files, and puts the modules that
    /// drive the machine's devices into `archive`, `lib/modules/order` with their order.
    fn kernel(&mut self, archive: &mut Archive) -> Result<(), BuildError> {
        let Versioned { name: package, version } = self.newest_kernel()?;
        let tree = self.unpack("kernel", &[format!("{package}={version}")])?;
        let version = package.trim_start_matches("linux-image-");
        let image = read(&tree, &package, &format!("boot/vmlinuz-{version}"))?;
        self.say("unpacking the kernel");
        self.write(KERNEL, &kernel::vmlinux(&image)?)?;
        let places = ["lib/modules", "usr/lib/modules"].map(|place| tree.join(place));
        let place = places
            .into_iter()
            .find(|place| place.exists())
            .ok_or_else(|| BuildError::NoFile { package: package.clone(), file: "lib/modules".into() })?;
        let mut order = String::new();
        let wanted = [DRIVERS.as_slice(), &BUTTON_DRIVERS].concat();
        for module in Modules::below(&place)?.load_order(&wanted)? {
            order += &format!("{}.ko\n", module.name);
            archive.file(&format!("lib/modules/{}.ko", module.name), 0o644, module.data);
        }
        archive.file("lib/modules/order", 0o644, order);
        Ok(())
    }

    /// The newest kernel of the image's flavour that starts on this machine.
    fn newest_kernel(&mut self) -> Result<Versioned, BuildError> {
        let Flavour { package, hangs, .. } = self.flavour;
        let kernels = self.apt.dependencies(package, "linux-image-")?;
        let fit = kernels.iter().find(|kernel| !hangs(&kernel.version)).cloned();
        fit.ok_or_else(|| match kernels.first() {
            Some(newest) => BuildError::Hangs { package: package.into(), version: newest.version.clone() },
            None => AptError::NoPackage { package: "linux-image-...".into() }.into(),
        })
    }

    /// Fetches busybox and puts it with a link for each of its commands into `archive`.
    fn busybox(&mut self, archive: &mut Archive) -> Result<(), BuildError> {
        let package = "busybox-static".to_string();
        let tree = self.unpack("busybox", std::slice::from_ref(&package))?;
        let places = ["bin/busybox", "usr/bin/busybox"];
        let place = places.into_iter().find(|place| tree.join(place).exists()).unwrap_or(places[0]);
        archive.file("bin/busybox", 0o755, read(&tree, &package, place)?);
        let applets = crate::apt::run(std::process::Command::new(tree.join(place)).arg("--list-full"))?;
        for applet in applets.lines().filter(|applet| *applet != "bin/busybox") {
            let up = "../".repeat(applet.matches('/').count());
            archive.link(applet, &format!("{up}bin/busybox"));
        }
        archive.link("bin/sh", "busybox");
        for directory in ["dev", "proc", "sys", "tmp", "run", "etc", "mnt"] {
            archive.directory(directory);
        }
        // What the first process has as its standard streams before it makes devices.
        archive.device("dev/console", 5, 1);
        archive.file("etc/passwd", 0o644, "root:x:0:0:root:/:/bin/sh\n");
        archive.file("etc/group", 0o644, "root:x:0:\n");
        archive.file("sbin/switch-off", 0o755, SWITCH_OFF);
        archive.file(BUTTON_ACTION, 0o755, BUTTON_SCRIPT);
        Ok(())
    }

    fn write(&self, name: &str, data: &[u8]) -> Result<(), BuildError> {
        let path = self.out.join(name);
        std::fs::write(&path, data).map_err(|source| BuildError::Io { path, source })
    }

    fn write_initrd(&self, archive: &Archive) -> Result<(), BuildError> {
        let path = self.out.join(INITRD);
        let bytes = archive.encode().map_err(|source| BuildError::Io { path, source })?;
        self.write(INITRD, &bytes)
    }
}

fn read(tree: &Path, package: &str, file: &str) -> Result<Vec<u8>, BuildError> {
    std::fs::read(tree.join(file))
        .map_err(|_| BuildError::NoFile { package: package.into(), file: file.into() })
}

fn subdirectory(of: &Path, name: &str) -> Result<PathBuf, BuildError> {
    let path = of.join(name);
    match std::fs::create_dir_all(&path) {
        Ok(()) => Ok(path),
        Err(source) => Err(BuildError::Io { path, source }),
    }
}
