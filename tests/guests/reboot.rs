//! Linux reboots in place: by every way that it knows, after a panic, on request and by itself.

use std::process::Command;

use crate::PROMPT;
use crate::guest::{Guest, PROGRAM, World};

/// What the shell says of itself when it starts.
const SHELL: &str = "built-in shell (ash)";

/// Waits for the shell of the machine's boot of this number, the first being 1.
fn expect_boot(guest: &mut Guest, number: usize) {
    guest.wait(&format!("the shell of boot {number}"), |guest| {
        let said = guest.transcript();
        said.split(SHELL).nth(number).is_some_and(|boot| boot.contains(PROMPT))
    });
}

#[test]
fn linux_reboots_in_place_whatever_made_it_and_the_recording_replays() {
    let Some(world) = World::new("busybox") else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let recording = directory.path().join("reboots.lkr");
    let recording = recording.to_str().expect("a name in UTF-8");
    // The disk outlives a reboot, the file system in RAM does not.
    let line = "console=ttyS0 panic=1 reboot=a cryptomgr.notests quiet";
    let options = ["--cmdline", line, "--memory", "128", "--record", recording, "--checkpoint-every", "3"];
    let mut guest = Guest::start(&world, "busybox", &options);
    expect_boot(&mut guest, 1);
    guest.run(
        "echo kept | dd of=/dev/vda conv=sync 2>/dev/null; touch /gone; date +%s; echo end-$((1 + 1))",
        "end-2",
    );
    let ways = ["reboot -f", "echo b >/proc/sysrq-trigger", "echo c >/proc/sysrq-trigger"];
    for (number, way) in ways.into_iter().enumerate() {
        guest.type_in(&format!("{way}\n"));
        expect_boot(&mut guest, number + 2);
        let (answer, of) = (format!("gone=0 kept={}", 40 + number), 30 + number);
        let command = "ls /gone 2>/dev/null | wc -l";
        guest.run(&format!("head -c 4 /dev/vda; echo; echo gone=$({command}) kept=$((10 + {of}))"), &answer);
    }
    assert!(guest.transcript().matches("kept\r\n").count() >= ways.len(), "{}", guest.transcript());
    guest.type_in("poweroff -f\n");
    guest.ends("the guest switched itself off, status 0");
    let verified = Command::new(PROGRAM)
        .args(["verify", recording, "-n", "1", "--stops", "20"])
        .output()
        .expect("the program runs");
    let said = String::from_utf8_lossy(&verified.stdout);
    assert!(verified.status.success() && said.contains("all equal"), "{verified:?}");
}

/// By the keyboard controller, and by a triple fault; then again and again, until it is too much.
#[test]
fn linux_that_panics_at_every_boot_ends_with_an_error() {
    let Some(world) = World::new("busybox") else { return };
    for reboot in ["k", "t"] {
        let line = format!(
            "console=ttyS0 panic=-1 reboot={reboot} cryptomgr.notests quiet run=\"echo c >/proc/sysrq-trigger\""
        );
        let vm = format!("panics-{reboot}");
        let options =
            ["--cmdline", &line, "--memory", "128", "--reset-limit", "2", "--vm", &vm, "--clock", "virtual"];
        let mut guest = Guest::start(&world, "busybox", &options);
        guest.ends("the guest reset itself more than 2 times within a minute of its time");
        assert!(guest.said("the console's last lines:"), "{}", guest.transcript());
        assert_eq!(guest.exit_code(), Some(6));
    }
}
