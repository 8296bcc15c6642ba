//! `busybox`: Debian's kernel with an initramfs of one program, that gives a shell on the console.

use super::{BuildError, INITRD, KERNEL, Kitchen, LINUX_COMMAND_LINE, NETWORK, Recipe};
use crate::cache::Contents;
use crate::initramfs::Archive;

const INIT: &str = include_str!("../../linux/init-busybox.sh");
const MEMORY_MIB: u64 = 256;

pub(super) const RECIPE: Recipe = Recipe {
    name: "busybox",
    about: "Debian's kernel with a busybox initramfs: a shell on the serial console",
    make,
};

fn make(kitchen: &mut Kitchen<'_>) -> Result<Contents, BuildError> {
    let mut archive = Archive::new();
    kitchen.kernel(&mut archive)?;
    kitchen.busybox(&mut archive)?;
    archive.file("init", 0o755, INIT);
    kitchen.write_initrd(&archive)?;
    Ok(Contents {
        kernel: KERNEL.into(),
        initrd: Some(INITRD.into()),
        disk: None,
        command_line: format!("{LINUX_COMMAND_LINE} {NETWORK}"),
        memory_mib: MEMORY_MIB,
        packages: std::mem::take(&mut kitchen.packages),
    })
}
