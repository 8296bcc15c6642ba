//! `cpubench`: Debian's kernel whose first process is `cpubench`, measures a CPU, then powers off.

use super::{BuildError, INITRD, KERNEL, Kitchen, LINUX_COMMAND_LINE, Recipe};
use crate::cache::Contents;
use crate::initramfs::Archive;

const MEMORY_MIB: u64 = 256;

pub(super) const RECIPE: Recipe = Recipe {
    name: "cpubench",
    about: "Debian's kernel that runs nine processor benchmarks and powers off",
    make,
};

fn make(kitchen: &mut Kitchen<'_>) -> Result<Contents, BuildError> {
    let mut archive = Archive::new();
    kitchen.kernel(&mut Archive::new())?;
    archive.file("init", 0o755, crate::CPUBENCH);
    kitchen.write_initrd(&archive)?;
    Ok(Contents {
        kernel: KERNEL.into(),
        initrd: Some(INITRD.into()),
        disk: None,
        command_line: LINUX_COMMAND_LINE.into(),
        memory_mib: MEMORY_MIB,
        packages: std::mem::take(&mut kitchen.packages),
    })
}
