//! Debian's kernel: the symbols that it carries for itself, and gdb in it.

use guest_images::cache::{Cache, Guest};
use lockstep::debug::symbols::Symbols;

use crate::support::{Debuggee, gdb_or_skip};

/// The image, if it was built here; says so loudly if not.
fn busybox_or_skip(test: &str) -> Option<Guest> {
    let guest = Cache::new(None).ok().and_then(|cache| cache.find("busybox").ok());
    if guest.is_none() {
        eprintln!("SKIPPED {test}: no guest busybox here: lockstep guest build busybox");
    }
    guest
}

#[test]
fn a_kernel_names_its_functions() {
    let Some(guest) = busybox_or_skip("a kernel names its functions") else { return };
    let image = guest.read(&guest.manifest.kernel).expect("the kernel");
    let symbols = Symbols::of_file(&image).expect("a table of symbols");
    assert!(symbols.len() > 50_000, "{} symbols", symbols.len());
    assert_eq!(symbols.address("_text"), Some(0xffff_ffff_8100_0000));
    for name in ["start_kernel", "schedule", "do_syscall_64", "vfs_read", "memcpy", "__x64_sys_write"] {
        let address = symbols.address(name).unwrap_or_else(|| panic!("no {name}"));
        assert!(address >= 0xffff_ffff_8100_0000, "{name} at {address:#x}");
        assert!(symbols.describe(address + 1).ends_with("+0x1"), "{name}");
    }
    println!(
        "{} symbols, start_kernel at {:#x}",
        symbols.len(),
        symbols.address("start_kernel").expect("there")
    );
}

#[test]
fn gdb_stops_in_a_kernel_that_boots() {
    if !gdb_or_skip("gdb stops in a kernel that boots") {
        return;
    }
    let Some(guest) = busybox_or_skip("gdb stops in a kernel that boots") else { return };
    let image = guest.read(&guest.manifest.kernel).expect("the kernel");
    let symbols = Symbols::of_file(&image).expect("a table of symbols");
    let address = |name: &str| symbols.address(name).expect("a function");
    let debuggee = Debuggee::start(&["--engine", "soft", "--guest", "busybox"]);
    let output = debuggee
        .gdb(&[
            "file",
            &format!("break *{:#x}", address("start_kernel")),
            "continue",
            "monitor where",
            "stepi 100",
            "monitor where",
            "delete",
            &format!("hbreak *{:#x}", address("kernel_init")),
            "continue",
            "monitor where",
            "monitor symbols",
            "monitor where",
            "info registers cr3 gs_base",
            "x/2i $pc",
            "detach",
        ])
        .finish();
    assert!(output.contains(" start_kernel\n"), "{output}");
    assert_eq!(output.matches(" kernel_init\n").count(), 2, "{output}");
    println!("{output}");
}
