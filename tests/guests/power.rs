//! The power button of Linux guests: who obeys, and what the disk is like afterwards.

use std::process::Command;

use crate::PROMPT;
use crate::guest::{Guest, World};

/// Where ext4's superblock has its incompatible features, and which of them says that the journal holds what
/// is not in its place yet (Documentation/filesystems/ext4/super.rst).
const INCOMPATIBLE: usize = 1024 + 0x60;
const NEEDS_RECOVERY: u32 = 0x4;
const CONTROL: &str = "control.sock";

fn start(world: &World, image: &str, options: &[&str]) -> Guest {
    let control = world.path(CONTROL);
    let control = ["--control", control.to_str().expect("a name in UTF-8")];
    Guest::start(world, image, &[&control, options].concat())
}

fn needs_recovery(disk: &[u8]) -> bool {
    let features = disk[INCOMPATIBLE..INCOMPATIBLE + 4].try_into().expect("four bytes");
    u32::from_le_bytes(features) & NEEDS_RECOVERY != 0
}

#[test]
fn an_idle_shell_and_a_busy_one_obey_the_power_button() {
    let Some(world) = World::new("busybox") else { return };
    for (number, work) in ["", "while true; do true; done\n"].into_iter().enumerate() {
        let vm = format!("button{number}");
        let mut guest = start(&world, "busybox", &["--vm", &vm, "--disk", &vm]);
        guest.expect(PROMPT);
        guest.run("grep acpi /proc/interrupts; echo end-$((1 + 1))", "end-2");
        assert!(guest.said("XT-PIC      acpi"), "{}", guest.transcript());
        guest.type_in(work);
        let (code, said) = world.stop(CONTROL, &["--wait", "200"]);
        assert_eq!((code, said.trim()), (0, "lockstep: the guest switched itself off, status 0"));
        guest.ends("init: the power button was pressed; switching off");
    }
}

#[test]
fn a_guest_that_does_not_obey_runs_on_until_the_cord_is_pulled() {
    let Some(world) = World::new("busybox") else { return };
    let mut guest = start(&world, "busybox", &[]);
    guest.expect(PROMPT);
    guest.run("kill $(cat /run/acpid.pid); echo deaf-$((1 + 1))", "deaf-2");
    let (code, said) = world.stop(CONTROL, &["--wait", "1"]);
    assert_eq!(code, 8, "{said}");
    assert!(said.contains("did not switch itself off within 1 s") && said.contains("--force"), "{said}");
    guest.run("echo on-$((1 + 2))", "on-3");
    let (code, said) = world.stop(CONTROL, &["--force"]);
    assert_eq!((code, said.trim()), (0, "lockstep: powered off from outside"));
    guest.ends("powered off from outside");
    let (code, said) = world.stop(CONTROL, &[]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("nobody answers on"), "{said}");
}

/// The server ends as by SIGTERM, and its file system is left clean; after the cord it is not.
#[test]
fn redis_is_switched_off_with_a_clean_disk() {
    let Some(world) = World::new("redis") else { return };
    let mut guest = start(&world, "redis", &["--disk-size", "256"]);
    guest.expect("Ready to accept connections");
    assert_eq!(world.redis(&["SET", "key", "value"]), "+OK");
    let (code, said) = world.stop(CONTROL, &["--wait", "200"]);
    assert_eq!(code, 0, "{said}");
    guest.ends("Redis is now ready to exit");
    let disk = world.disk("redis");
    assert!(!needs_recovery(&disk));
    check(&world, &disk);

    let mut guest = start(&world, "redis", &["--disk-size", "256"]);
    guest.expect("Ready to accept connections");
    assert_eq!(world.redis(&["GET", "key"]), "value");
    let (code, said) = world.stop(CONTROL, &["--force"]);
    assert_eq!(code, 0, "{said}");
    guest.ends("powered off from outside");
    assert!(needs_recovery(&world.disk("redis")));
}

/// e2fsprogs, which made the file system, finds nothing to mend.
fn check(world: &World, disk: &[u8]) {
    let image = world.path("redis.img");
    std::fs::write(&image, disk).expect("written");
    let output = Command::new("e2fsck").args(["-f", "-n"]).arg(&image).output().expect("e2fsck");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
}
