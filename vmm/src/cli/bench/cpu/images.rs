//! The images: the two guests of the cache, built when they are missing or older than this program.

use std::path::{Path, PathBuf};

use anyhow::Context;
use guest_images::cache::{Cache, Guest};
use guest_images::recipe::build;
use tempfile::TempDir;

use super::say;

/// What is measured.
pub struct Images {
    /// Runs the kernels and powers off.
    pub cpubench: Guest,
    /// Boots to an init script.
    pub busybox: Option<Guest>,
    /// `cpubench` as a program of the host.
    pub program: PathBuf,
    /// The program is in there.
    pub directory: TempDir,
    /// Directory of the images, as asked for.
    pub cache: Option<PathBuf>,
}

impl Images {
    /// Finds them; `boots` asks for the second guest.
    pub fn new(cache: Option<&Path>, boots: bool) -> anyhow::Result<Self> {
        let images = Cache::new(cache)?;
        let cpubench = match images.find("cpubench") {
            Ok(guest) if is_current(&guest)? => guest,
            _ => make(&images, "cpubench")?,
        };
        let busybox = match boots {
            false => None,
            true => Some(images.find("busybox").or_else(|_| make(&images, "busybox"))?),
        };
        let directory = tempfile::Builder::new().prefix("lockstep-bench-").tempdir()?;
        let program = directory.path().join("cpubench");
        write_program(&program).with_context(|| format!("cannot write {}", program.display()))?;
        Ok(Self { cpubench, busybox, program, directory, cache: cache.map(Path::to_path_buf) })
    }
}

fn make(cache: &Cache, name: &str) -> anyhow::Result<Guest> {
    say(&format!("building the guest image {name}"));
    build(cache, name, &mut |text| say(text)).with_context(|| format!("cannot build the guest image {name}"))
}

/// Whether the guest's first process is the program that is embedded here: the image may be older.
fn is_current(guest: &Guest) -> anyhow::Result<bool> {
    let Some(initrd) = &guest.manifest.initrd else { return Ok(false) };
    let initrd = guest.read(initrd)?;
    Ok(initrd.windows(guest_images::CPUBENCH.len()).any(|part| part == guest_images::CPUBENCH))
}

fn write_program(path: &Path) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o700).open(path)?;
    file.write_all(guest_images::CPUBENCH)
}
