//! Unmodified Linux guests on the software CPU, as processes: images built of Debian packages, drivers that
//! find the machine's devices, the console, a server whose disk outlives it.
//!
//! Images come from the user's cache; one that is missing is built, which needs Debian and its package
//! servers.

mod bench;
mod guest;
mod kernels;
mod power;
mod programs;
mod reboot;
mod seccomp;
mod translator;

use std::collections::BTreeMap;

use guest::{Guest, World};

/// Prompt of the shell.
const PROMPT: &str = "~ # ";

#[test]
fn linux_reaches_a_shell_and_its_drivers_find_every_device() {
    let Some(world) = World::new("busybox") else { return };
    let mut guest = Guest::start(&world, "busybox", &[]);
    guest.expect(PROMPT);
    guest.run("ls /dev/ttyS0 /dev/hvc0 /dev/vda /dev/hwrng /dev/rtc0 && echo all-$((1 + 1))", "all-2");
    guest.run("ip addr show eth0; echo end-$((1 + 2))", "end-3");
    assert!(guest.said("inet 10.77.0.2/24"), "{}", guest.transcript());
    guest.run("cat /proc/interrupts; dmesg | grep -i acpi; echo end-$((2 + 2))", "end-4");
    for text in ["XT-PIC      virtio0", "XT-PIC      virtio3", "Using PIC for interrupt routing", "PM-Timer"]
    {
        assert!(guest.said(text), "{text:?} is missing:\n{}", guest.transcript());
    }
    guest.run(
        "cat /sys/class/misc/hw_random/rng_current; head -c 64 /dev/hwrng | wc -c; echo end-$((2 + 3))",
        "end-5",
    );
    assert!(guest.said("virtio_rng.0\r\n64\r\n"), "{}", guest.transcript());
    // The CPU model's caches, as libraries see them.
    guest.run("cat /sys/devices/system/cpu/cpu0/cache/index*/size; echo end-$((3 + 4))", "end-7");
    assert!(guest.said("32K\r\n32K\r\n1024K\r\n16384K\r\n"), "{}", guest.transcript());
    // Through virtio-console as well.
    guest.run("echo by-$((3 + 3)) >/dev/hvc0", "by-6");
    guest.type_in("exit\n");
    guest.ends("the guest switched itself off, status 0");
}

#[test]
fn a_shell_on_virtio_console() {
    let Some(world) = World::new("busybox") else { return };
    let line = "console=ttyS0 console=hvc0 panic=-1 reboot=t cryptomgr.notests quiet";
    let mut guest = Guest::start(&world, "busybox", &["--cmdline", line, "--on-reset", "stop"]);
    guest.expect(PROMPT);
    guest.run("tty; echo end-$((1 + 1))", "end-2");
    guest.run("cat /proc/consoles; echo end-$((1 + 2))", "end-3");
    assert!(guest.said("hvc0"), "{}", guest.transcript());
    guest.type_in("reboot -f\n");
    guest.ends("the guest asked for a reset");
}

/// Input that is there before the guest is reaches its shell whole, by either console.
#[test]
fn what_was_typed_before_the_guest_listens_is_read() {
    let Some(world) = World::new("busybox") else { return };
    for console in ["ttyS0", "hvc0"] {
        let line = format!("console={console} panic=-1 reboot=t cryptomgr.notests quiet");
        let mut guest = Guest::start(&world, "busybox", &["--cmdline", &line, "--disk", console]);
        guest.type_in("echo first-$((40 + 2))\npoweroff -f\n");
        guest.ends("the guest switched itself off, status 0");
        assert!(guest.said("first-42"), "{}", guest.transcript());
    }
}

#[test]
fn commands_of_the_command_line_run_instead_of_a_shell() {
    let Some(world) = World::new("busybox") else { return };
    let line =
        "console=ttyS0 panic=-1 reboot=t cryptomgr.notests quiet run=\"uname -m; echo ran-$((40 + 2))\"";
    let mut guest = Guest::start(&world, "busybox", &["--cmdline", line, "--clock", "virtual"]);
    guest.expect("ran-42");
    assert!(guest.said("x86_64"));
    guest.ends("the guest switched itself off, status 0");
}

/// Nothing of the host enters a run with a virtual clock, and no guest can tell whether it is translated.
/// `LOCKSTEP_BOOTS` says how many; every other one is interpreted.
#[test]
fn boots_with_a_virtual_clock_end_in_the_same_state_at_the_same_instruction() {
    let Some(world) = World::new("busybox") else { return };
    let boots = std::env::var("LOCKSTEP_BOOTS").map_or(4, |text| text.parse().expect("a number of boots"));
    let line = "console=ttyS0 panic=-1 reboot=t cryptomgr.notests quiet run=\"dmesg | wc -l\"";
    let mut ends = BTreeMap::new();
    for number in 0..boots {
        let vm = format!("boot{number}");
        let tier = if number % 2 == 0 { "on" } else { "off" };
        let options = ["--cmdline", line, "--clock", "virtual", "--vm", &vm, "--disk", &vm, "--jit", tier];
        let mut guest = Guest::start(&world, "busybox", &options);
        guest.ends("the same inputs end at position");
        let said = guest.transcript();
        let end = said.lines().find(|line| line.contains("the same inputs end at")).expect("just seen");
        *ends.entry(end.to_string()).or_insert(0) += 1;
    }
    println!("{boots} boots: {ends:?}");
    assert_eq!(ends.len(), 1, "{ends:#?}");
}

/// The server's root disk is filled when it is new, and what a client was told survives the machine's sudden
/// end.
#[test]
fn what_redis_acknowledged_is_there_after_the_plug_was_pulled() {
    let Some(world) = World::new("redis") else { return };
    let mut guest = Guest::start(&world, "redis", &["--disk-size", "256"]);
    guest.expect("a new disk");
    guest.expect("Ready to accept connections");
    for number in 0..20 {
        assert_eq!(world.redis(&["SET", &format!("key{number}"), &format!("value{number}")]), "+OK");
    }
    guest.kill();
    let mut guest = Guest::start(&world, "redis", &["--disk-size", "256", "--take-over"]);
    guest.expect("Ready to accept connections");
    for number in 0..20 {
        assert_eq!(world.redis(&["GET", &format!("key{number}")]), format!("value{number}"));
    }
    assert!(!guest.said("a new disk"), "the disk was filled again");
    guest.kill();
}
